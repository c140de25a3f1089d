"""Every cache transformers can make for a linearized model, and everything it does to one (promises 2 and 4)."""

import copy
import itertools

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS

import liger_mini as lm
from liger_mini.attention import liger_layers
from liger_mini.evaluation import branches
from liger_mini.experiments.benchmark import state_bytes

WINDOW = 4
PROMPTS = (1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW)
LOGITS = 2e-4  # float32; the logits of these models are of order 1 to 10
MODELS = [*lm.structures, "hybrid"]
# offloaded ones need a GPU; quantised ones are transformers' to refuse
CACHES = [name for name in ALL_CACHE_IMPLEMENTATIONS if "offloaded" not in name and name != "quantized"]


@pytest.fixture
def make(tiny):
    def linearized(name, window=WINDOW, sinks=0):
        structure, every = ("gla", 2) if name == "hybrid" else (name, None)
        model = lm.linearize(tiny(), structure, window=window, softmax_every=every, sinks=sinks)
        model.generation_config.eos_token_id = None
        return model

    return linearized


def tokens(B, T):
    return torch.randint(2, 97, (B, T))


def padded(prompt, padding):
    """Two rows of `prompt` tokens, the first with so many tokens of padding on the left and the second with none."""
    ids = tokens(2, prompt + padding)
    mask = torch.ones_like(ids)
    mask[0, :padding], ids[0, :padding] = 0, 1
    return ids, mask


@torch.no_grad()
def without_cache(model, ids, mask):
    return model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=False).logits


@pytest.mark.parametrize("padding", [0, 3], ids=["no padding", "left padding"])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("name", MODELS)
def test_generate_has_the_logits_of_the_forward_without_a_cache(make, name, kind, prompt, padding):
    model, (ids, mask) = make(name), padded(prompt, padding)
    how = {"max_new_tokens": 2 * WINDOW + 1, "cache_implementation": kind, "disable_compile": True}
    how |= {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    if name == "hybrid" and kind not in ("dynamic", "hybrid"):  # transformers takes "hybrid" for "dynamic"
        with pytest.raises(ValueError, match=r"softmax_every cannot decode with a StaticCache.*DynamicCache\("):
            model.generate(ids, attention_mask=mask, **how)
        return
    out = model.generate(ids, attention_mask=mask, **how)
    mask = torch.cat([mask, torch.ones(2, 2 * WINDOW + 1, dtype=torch.long)], dim=1)
    expected = without_cache(model, out.sequences, mask)[:, ids.shape[1] - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, 1), expected, atol=LOGITS, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["gla", "gsa", "lightnet"])
def test_pieces_of_any_length_with_padding_inside_the_window(make, name, kind):
    """Whatever the pieces, and with a mask of all tokens, of those given now, or, static, of the whole buffer's length."""
    model, (ids, mask) = make(name, window=6), padded(17, 4)
    expected = without_cache(model, ids, mask)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for form in ("all", "these", "longer"):
        cache, logits = caches(model)[kind], []
        for a, b in itertools.pairwise((0, 2, 3, 9, 10, 21)):
            given = {"all": mask[:, :b], "these": mask[:, a:b], "longer": torch.cat([mask, mask[:, :5]], 1)}[form]
            how = {"attention_mask": given, "position_ids": positions[:, a:b], "past_key_values": cache}
            logits.append(model(ids[:, a:b], use_cache=True, **how).logits)
        torch.testing.assert_close(torch.cat(logits, 1)[mask.bool()], expected[mask.bool()], atol=LOGITS, rtol=0)


SINKS = (1, 3, 9)  # within the window, and more than it and the shorter prompts hold, so that decoding fills them


@pytest.mark.parametrize("padding", [0, 3], ids=["no padding", "left padding"])
@pytest.mark.parametrize("prompt", [1, WINDOW + 1, 3 * WINDOW])
@pytest.mark.parametrize("sinks", SINKS)
@pytest.mark.parametrize(("name", "kind"), [("gla", "dynamic"), ("gla", "static"), ("hybrid", "dynamic")])
def test_generate_with_sinks_has_the_logits_of_the_forward_without_a_cache(make, name, kind, sinks, prompt, padding):
    """Sinks that the prompt holds, fills in part, and not at all; the window has long moved on at the end."""
    model, (ids, mask) = make(name, sinks=sinks), padded(prompt, padding)
    how = {"max_new_tokens": 12, "cache_implementation": kind, "disable_compile": True, "do_sample": False}
    out = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **how)
    mask = torch.cat([mask, torch.ones(2, 12, dtype=torch.long)], dim=1)
    expected = without_cache(model, out.sequences, mask)[:, ids.shape[1] - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, 1), expected, atol=LOGITS, rtol=0)
    sinkless = without_cache(make(name), out.sequences, mask)[:, ids.shape[1] - 1 : -1]
    assert (expected - sinkless).abs().max() > 100 * LOGITS


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("sinks", SINKS)
def test_pieces_of_any_length_with_sinks_and_padding(make, kind, sinks):
    """Sinks filled in several pieces; padding in front, and in a row's middle, counts as none."""
    model, (ids, mask) = make("gla", window=6, sinks=sinks), padded(17, 4)
    mask[1, 5:8] = 0
    expected, positions = without_cache(model, ids, mask), (mask.cumsum(1) - 1).clamp(min=0)
    cache, logits = caches(model)[kind], []
    for a, b in itertools.pairwise((0, 2, 3, 9, 10, 21)):
        how = {"attention_mask": mask[:, :b], "position_ids": positions[:, a:b], "past_key_values": cache}
        logits.append(model(ids[:, a:b], use_cache=True, **how).logits)
    torch.testing.assert_close(torch.cat(logits, 1)[mask.bool()], expected[mask.bool()], atol=LOGITS, rtol=0)


@torch.no_grad()
def test_the_last_of_packed_documents_goes_on_with_its_own_sinks(make):
    """Decoding after a packed row is decoding after its last document."""
    model, ids, following = make("gla", sinks=3), tokens(1, 20), tokens(1, 6)
    for first in (5, 18):  # the last document has more tokens than sinks, and fewer
        positions = torch.cat([torch.arange(first), torch.arange(20 - first)]).unsqueeze(0)
        cache = DynamicCache(config=model.config)
        model(ids, position_ids=positions, past_key_values=cache, use_cache=True)
        places = torch.arange(20 - first, 26 - first).unsqueeze(0)
        logits = [
            model(following[:, t : t + 1], position_ids=places[:, t : t + 1], past_key_values=cache).logits
            for t in range(6)
        ]
        alone = model(torch.cat([ids[:, first:], following], 1), use_cache=False).logits[:, 20 - first :]
        torch.testing.assert_close(torch.cat(logits, 1), alone, atol=LOGITS, rtol=0)


def caches(model):
    return {
        "dynamic": DynamicCache(config=model.config),
        "static": StaticCache(config=model.config, max_cache_len=64),
        "short static": StaticCache(config=model.config, max_cache_len=2),  # shorter than the window
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static", "short static"])
@pytest.mark.parametrize("name", lm.structures)
@pytest.mark.parametrize("seen", [2, 9])
@pytest.mark.parametrize("what", ["permuted", "selected", "repeated", "reordered", "copied", "forgotten"])
def test_what_is_done_to_the_rows_of_a_filled_cache(make, name, kind, seen, what):
    check_rows(make(name), caches, kind, seen, what)


@torch.no_grad()
@pytest.mark.parametrize("what", ["permuted", "selected", "repeated", "reordered", "copied", "forgotten"])
def test_what_is_done_to_the_rows_of_a_hybrids_cache(make, what):
    """Dynamic only: a static one is refused."""
    check_rows(make("hybrid"), lambda model: {"dynamic": DynamicCache(config=model.config)}, "dynamic", 9, what)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static", "short static"])
@pytest.mark.parametrize("seen", [2, 9])
@pytest.mark.parametrize("what", ["permuted", "selected", "repeated", "reordered", "copied", "forgotten"])
def test_what_is_done_to_the_rows_of_a_cache_with_sinks(make, kind, seen, what):
    """With two tokens seen a third sink has its place still to fill."""
    check_rows(make("gla", sinks=3), caches, kind, seen, what)


def check_rows(model, caches, kind, seen, what):
    """Rows of a filled cache are chosen, and go on as they would have without one."""
    ids, following = tokens(3, seen), tokens(3, 3)
    cache = caches(model)[kind]
    model(ids, past_key_values=cache, use_cache=True)
    rows = {"selected": [2], "repeated": [0, 0, 1, 1, 2, 2], "copied": [0, 1, 2]}.get(what, [2, 0, 1])
    if what in ("permuted", "selected"):
        cache.batch_select_indices(torch.tensor(rows))
    elif what == "repeated":
        cache.batch_repeat_interleave(2)
    elif what == "reordered":
        cache.reorder_cache(torch.tensor(rows))
    elif what == "copied":
        before, cache = cache, copy.deepcopy(cache)
        model(tokens(3, 2), past_key_values=before, use_cache=True)  # must not reach the copy
    else:
        cache.reset()
        model(ids[rows], past_key_values=cache, use_cache=True)
    whole = torch.cat([ids[rows], following[rows]], dim=1)
    expected = model(whole, use_cache=False).logits[:, seen:]
    for t in range(3):  # and on, token by token
        logits = model(following[rows][:, t : t + 1], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(logits, expected[:, t : t + 1], atol=LOGITS, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("structure", lm.structures)
def test_what_is_kept_does_not_grow(make, structure, window, kind):
    """For every window that is allowed, one token included: bytes of the cache at 5, 40 and 400 tokens."""
    model, sizes = make(structure, window), []
    for T in (5, 40, 400):
        cache = caches(model)[kind]
        model(tokens(1, T), past_key_values=cache, use_cache=True)
        for _ in range(3):
            model(tokens(1, 1), past_key_values=cache, use_cache=True)
        sizes.append(state_bytes(cache))
    assert len(set(sizes)) == 1
    assert all(layer.keys.shape[2] == window - 1 for layer in cache.layers)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize(("window", "sinks"), [(1, 2), (5, 1), (5, 9)])
def test_what_is_kept_with_sinks_does_not_grow(make, window, sinks, kind):
    model, sizes = make("gla", window, sinks), []
    for T in (5, 40, 400):
        cache = caches(model)[kind]
        model(tokens(1, T), past_key_values=cache, use_cache=True)
        for _ in range(3):
            model(tokens(1, 1), past_key_values=cache, use_cache=True)
        sizes.append(state_bytes(cache))
    few, *enough = sizes  # 5 tokens and 3 may be fewer than it keeps
    assert few <= enough[0] == enough[1]
    assert all(layer.keys.shape[2] == sinks + window - 1 for layer in cache.layers)


@torch.no_grad()
def test_a_row_too_many_is_told(make):
    model = make("gla")
    cache = DynamicCache(config=model.config)
    model(tokens(2, 5), past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="the cache holds 2 rows, and 3 were given"):
        model(tokens(3, 1), past_key_values=cache, use_cache=True)


def foreign(make, tiny):
    """Caches that were made, or filled, for something else."""
    teacher, ids = tiny(), tokens(1, 6)

    def filled(model, cache=None):
        return model(ids, past_key_values=cache or DynamicCache(config=model.config), use_cache=True).past_key_values

    return {
        "none given its config": DynamicCache(),
        "of the teacher": filled(teacher),
        "of the teacher, empty": DynamicCache(config=teacher.config),
        "of the teacher, static": StaticCache(config=teacher.config, max_cache_len=32),
        "keys and values alone": DynamicCache(ddp_cache_data=[(torch.zeros(1, 2, 3, 8),) * 2] * 3),
        "other structure": filled(make("rwkv6")),
        "other number of states": DynamicCache(config=make("gsa").config),
        "other window": filled(make("gla", 7)),
        "other sinks": filled(make("gla", sinks=2)),
        "other window, empty": DynamicCache(config=make("gla", 7).config),
        "other window, static": StaticCache(config=make("gla", 7).config, max_cache_len=32),
        "a hybrid's": filled(make("hybrid")),
        "fewer layers": DynamicCache(config=lm.linearize(tiny(num_hidden_layers=2), window=WINDOW).config),
    }


@torch.no_grad()
def test_a_cache_made_for_something_else_is_refused(make, tiny):
    model, hybrid, strangers = make("gla"), make("hybrid"), foreign(make, tiny)
    tried = [(model, cache, what) for what, cache in strangers.items()]
    tried.append((hybrid, DynamicCache(config=model.config), "a hybrid given one without softmax blocks"))
    accepted = []
    for given, cache, what in tried:
        try:
            given(tokens(1, 1), past_key_values=cache, use_cache=True)
            accepted.append(what)
        except ValueError as error:
            assert "DynamicCache(config=model.config)" in str(error), what  # noqa: PT017 (all of them, then which)
    assert not accepted


@pytest.mark.parametrize("name", MODELS)
def test_rolling_back_is_refused_before_it_starts(make, tiny, name):
    model, ids = make(name), tokens(1, 9)
    teacher = tiny()
    teacher.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(ids, prompt_lookup_num_tokens=2, max_new_tokens=4)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(ids, assistant_model=teacher, max_new_tokens=4)
    with pytest.raises(ValueError, match="cannot be the assistant of another"):
        teacher.generate(ids, assistant_model=model, max_new_tokens=4)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match=r"crop\(-2\): a recurrent state cannot forget"):
        cache.crop(-2)
    cache.crop(0)


def test_a_static_cache_stays_where_it_is(make):
    """A compiled or captured step finds every tensor at the address it had."""
    model = make("gsa", sinks=2)
    cache = StaticCache(config=model.config, max_cache_len=64)
    addresses = []
    with torch.no_grad():
        for T in (3, 1, 1, 7, 1):
            model(tokens(1, T), past_key_values=cache, use_cache=True)
            kept = [
                x
                for layer in cache.layers
                for x in (layer.keys, layer.values, layer.real, *layer.recurrent_states.values())
            ]
            addresses.append([x.data_ptr() for x in kept])
    assert all(seen == addresses[0] for seen in addresses)


def test_a_branch_of_weight_zero_runs_for_what_its_cache_keeps_or_not_at_all(make, monkeypatch):
    model, ids = make("gla", sinks=2), tokens(1, 12)
    layers = liger_layers(model)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        for weights, piece in (((0.0, 1.0), ids[:, :5]), ((1.0, 0.0), ids[:, 5:8])):
            with branches(model, weights):
                model(piece, past_key_values=cache, use_cache=True)
        kept = [layer.recurrent_states[0] for layer in cache.layers[:1]]
        assert kept[0].any()  # of the first layer, whose inputs no branch has touched
        assert cache.layers[0].keys.shape[2] == 2 + WINDOW - 1
        for branch, weights in (("recurrence", (0.0, 1.0)), ("windowed", (1.0, 0.0))):
            with branches(model, weights):
                both = model(ids, use_cache=False).logits
                for layer in layers:
                    monkeypatch.setattr(layer, branch, None)  # called, it would raise
                assert torch.equal(model(ids, use_cache=False).logits, both)
                monkeypatch.undo()
    assert not torch.equal(whole, both)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("sinks", [0, 3])
def test_a_mask_of_ones_is_no_mask(make, kind, sinks):
    """What `generate` passes: the same numbers to the bit, and no layer has to look at a mask."""
    model, ids, seen = make("gla", sinks=sinks), tokens(2, 11), []
    for layer in liger_layers(model):
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["padding_mask"]), with_kwargs=True
        )
    results = []
    for mask in (None, torch.ones(2, 11, dtype=torch.long)):
        cache = caches(model)[kind]
        with torch.no_grad():
            for first, last in ((0, 2), (2, 7), (7, 8), (8, 11)):
                given = None if mask is None else mask[:, :last]
                out = model(ids[:, first:last], attention_mask=given, past_key_values=cache, use_cache=True)
        results.append(out.logits)
    assert torch.equal(*results)
    assert all(mask is None for mask in seen)


@pytest.mark.parametrize("seen", [1, 2, 4, 30])
def test_padding_may_come_after_tokens_without_it(make, seen):
    """Sinks that have no places of their own yet get them with the first mask that has a zero."""
    model, ids = make("gla", sinks=4), tokens(1, seen + 9)
    mask = torch.ones(1, seen + 9, dtype=torch.long)
    mask[:, [seen, seen + 3]] = 0
    real = mask[0].bool()
    with torch.no_grad():
        whole = without_cache(model, ids, mask)[:, real]
        cache, got = DynamicCache(config=model.config), []
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        for first, last in ((0, seen), (seen, seen + 5), (seen + 5, seen + 6), (seen + 6, seen + 9)):
            got.append(
                model(
                    ids[:, first:last],
                    attention_mask=mask[:, :last],
                    position_ids=positions[:, first:last],
                    past_key_values=cache,
                    use_cache=True,
                ).logits
            )
    torch.testing.assert_close(torch.cat(got, dim=1)[:, real], whole, rtol=1e-4, atol=1e-4)
