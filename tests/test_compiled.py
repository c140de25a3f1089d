"""What holds in eager holds compiled and exported: packed rows, padding, decoding with a static cache (promise 7)."""

import itertools
import shutil

import pytest
import torch
from transformers import DataCollatorWithFlattening, StaticCache

import liger_mini as lm

WINDOW = 4
LOGITS = 1e-4
MODELS = [*lm.structures, "hybrid", "gla, sinks"]
ENDS = [0, 13, 14, 40]


@pytest.fixture
def make(tiny):
    def linearized(name):
        structure, every = ("gla", 2) if name == "hybrid" else (name.removesuffix(", sinks"), None)
        return lm.linearize(tiny(), structure, window=WINDOW, softmax_every=every, sinks=2 * name.endswith("sinks"))

    return linearized


def tokens(B, T):
    return torch.randint(2, 97, (B, T))


def given(form):
    """A row of 40 tokens in the forms it comes in."""
    positions = torch.cat([torch.arange(b - a) for a, b in itertools.pairwise(ENDS)]).unsqueeze(0)
    left = (torch.arange(40) >= 7).long().unsqueeze(0)
    return {
        "one document": {"position_ids": torch.arange(40).unsqueeze(0)},
        "no positions": {},
        "packed": {"position_ids": positions},
        "boundaries": {"position_ids": positions, "cu_seq_lens_q": torch.tensor(ENDS, dtype=torch.int32)},
        "left padding": {"attention_mask": left, "position_ids": (left.cumsum(1) - 1).clamp(min=0)},
        "right padding": {"attention_mask": left.flip(1)},
    }[form]


FORMS = ("one document", "no positions", "packed", "boundaries", "left padding", "right padding")


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_compiled_is_eager(make, name):
    """Dynamo's graph, without a break, run as it was traced."""
    model, ids = make(name), tokens(1, 40)
    for form in ("packed", "left padding") if name == "gla, sinks" else FORMS:
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        how = {**given(form), "use_cache": False}
        torch.testing.assert_close(compiled(ids, **how).logits, model(ids, **how).logits, atol=LOGITS, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("cl") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["mamba2"])
def test_inductor_is_eager(make, name):
    model, ids, how = make(name), tokens(1, 40), {**given("packed"), "use_cache": False}
    compiled = torch.compile(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, **how).logits, model(ids, **how).logits, atol=LOGITS, rtol=0)


@pytest.mark.parametrize("name", ["gla", "lightnet", "hybrid"])
def test_gradients_of_packed_rows_compiled_are_eagers(make, name):
    """As a Trainer with DataCollatorWithFlattening and torch_compile has them; and each document's alone."""
    model, rows = make(name), [tokens(1, n)[0].tolist() for n in (13, 5, 22)]
    batch = DataCollatorWithFlattening()([{"input_ids": row, "labels": row} for row in rows])
    gradients = []
    for forward in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        forward(**batch, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)
    model.zero_grad()
    scored = sum(len(row) - 1 for row in rows)
    for row in rows:
        ids = torch.tensor([row])
        (model(ids, labels=ids, use_cache=False).loss * (len(row) - 1) / scored).backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients[0], atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gla", "gsa", "lightnet", "lightning", "gla, sinks"])
def test_compiled_decoding_with_a_static_cache(make, name):
    """Prefill and single steps through one compiled forward, with left padding; the step is not compiled again and again."""
    model, prompt = make(name), 7
    ids = tokens(2, prompt + 9)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    cache, torch_compiled = StaticCache(config=model.config, max_cache_len=32), []
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    step = torch.compile(model, backend=counter, fullgraph=True)
    full = torch.cat([mask, mask[:, :16]], 1)[:, :32]  # a mask of the buffer's length, as a static graph wants it
    pieces = [(0, prompt), *((t, t + 1) for t in range(prompt, ids.shape[1]))]
    for a, b in pieces:
        how = {"position_ids": positions[:, a:b], "attention_mask": full, "past_key_values": cache, "use_cache": True}
        torch_compiled.append(step(ids[:, a:b], **how).logits)
    torch.testing.assert_close(torch.cat(torch_compiled, 1)[mask.bool()], expected[mask.bool()], atol=LOGITS, rtol=0)
    assert counter.frame_count <= 4


@torch.no_grad()
@pytest.mark.parametrize("name", ["gla", "gsa", "lightnet", "gla, sinks"])
def test_exported_is_eager(make, name):
    model, ids, how = make(name), tokens(1, 40), {**given("packed"), "use_cache": False}
    program = torch.export.export(model, (ids,), how, strict=False)
    torch.testing.assert_close(program.module()(ids, **how).logits, model(ids, **how).logits, atol=LOGITS, rtol=0)
