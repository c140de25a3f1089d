"""linearize inside transformers: same weights, decode ≡ prefill, save and load (promises 2, 3 and 4)."""

import itertools
import json
import subprocess
import sys
import textwrap
from argparse import Namespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    DynamicCache,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import liger_mini as lm
from liger_mini.attention import liger_layers
from liger_mini.commands import options
from liger_mini.commands.convert import convert_folder, model_card
from liger_mini.corpora import Collator, instructions
from liger_mini.evaluation import branches
from liger_mini.experiments import load_teacher
from liger_mini.experiments.benchmark import state_bytes
from liger_mini.support.hub import open_model, open_tokenizer
from liger_mini.support.paths import data_dir

from .conftest import FAMILIES

WINDOW = 8
LOGITS = 1e-4  # the promise in float32; the logits of these models are of order 1 to 10


OTHER_FAMILIES = [name for name in FAMILIES if name != "llama"]
MODELS = [f"llama, {name}" for name in lm.structures] + [f"{family}, gla" for family in OTHER_FAMILIES]
MODELS += [f"{family}, gla, hybrid" for family in FAMILIES]
MODELS += [f"{family}, gated_deltanet" for family in OTHER_FAMILIES]
MODELS += ["llama, gated_deltanet, told", "qwen3, gla, told", "llama, gla, sinks", "qwen3, gla, sinks, hybrid"]


@pytest.fixture(params=MODELS)
def model(request, tiny):
    """Every structure on a Llama, every family with GLA and a delta rule, hybrids, and half-lives read off the teacher."""
    family, structure, *more = request.param.split(", ")
    how = {"temper": "teacher", "sample": tokens(2, 40)} if "told" in more else {}
    how |= {"sinks": 3, "mix": (0.1, 1.0)} if "sinks" in more else {}
    return lm.linearize(tiny(family), structure, window=WINDOW, softmax_every=2 if "hybrid" in more else None, **how)


def tokens(B, T):
    return torch.randint(2, 97, (B, T))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_parameter_is_added_or_changed(tiny, family):
    original = tiny(family)
    before = {name: p.clone() for name, p in original.state_dict().items()}
    after = lm.linearize(original, window=WINDOW).state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_window_alone_with_a_full_window_is_the_teacher(tiny, family):
    """The window at full weight, wide enough for everything, is softmax attention: biases, norms, rotary, groups."""
    teacher = tiny(family)
    ids = tokens(2, 30)
    expected = teacher(ids).logits
    linearized = lm.linearize(teacher, window=30, mix=0.0)
    torch.testing.assert_close(linearized(ids).logits, expected, atol=LOGITS, rtol=0)


def test_recurrence_reads_keys_before_rotation(tiny):
    """Alone, the recurrence has no position: shifting position_ids changes nothing. The window is relative too."""
    model = lm.linearize(tiny(), window=WINDOW)
    ids = tokens(1, 20)
    with branches(model, (1.0, 0.0)):
        a = model(ids).logits
        b = model(ids, position_ids=torch.arange(20).unsqueeze(0) * 3).logits
    torch.testing.assert_close(a, b, atol=LOGITS, rtol=0)
    assert (model(ids).logits - model(ids, position_ids=torch.arange(20).unsqueeze(0) * 3).logits).abs().max() > 1e-2


@pytest.mark.parametrize("cuts", [range(0, 71), [0, 3, 4, 40, 70]], ids=["token by token", "in pieces"])
@torch.no_grad()
def test_decode_is_prefill(model, cuts):
    ids = tokens(2, 70)
    cache, pieces = DynamicCache(config=model.config), []
    for a, b in zip(cuts, list(cuts)[1:]):
        pieces.append(model(ids[:, a:b], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids, use_cache=False).logits, atol=LOGITS, rtol=0)


@torch.no_grad()
def test_left_padding_changes_nothing(model):
    ids, padding = tokens(2, 50), 20
    ids[0, :padding] = 1
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    alone = model(ids[:1, padding:]).logits
    torch.testing.assert_close(
        model(ids, attention_mask=mask, position_ids=positions).logits[:1, padding:], alone, atol=LOGITS, rtol=0
    )


@torch.no_grad()
def test_right_padding_changes_nothing(model):
    ids = tokens(1, 40)
    padded = torch.cat([ids, torch.ones(1, 9, dtype=torch.long)], 1)
    mask = (torch.arange(49) < 40).long().unsqueeze(0)
    torch.testing.assert_close(
        model(padded, attention_mask=mask).logits[:, :40], model(ids).logits, atol=LOGITS, rtol=0
    )


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}], ids=["greedy", "beam", "sample"]
)
def test_generate_in_a_padded_batch_equals_alone(model, how):
    ids = tokens(2, 30)
    ids[0, :12] = 1
    mask = (ids != 1).long()
    mask[1] = 1
    model.generation_config.eos_token_id = None
    torch.manual_seed(3)
    batch = model.generate(ids, attention_mask=mask, max_new_tokens=12, **how)
    assert batch.shape == (2, 42)
    if "do_sample" not in how:  # sampling draws for both rows at once, so only the others can be compared
        alone = model.generate(ids[:1, 12:], max_new_tokens=12, **how)
        assert torch.equal(batch[0, 30:], alone[0, 18:])


def test_save_and_load_through_auto_model(model, tmp_path):
    ids = tokens(1, 40)
    model.save_pretrained(tmp_path)
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path).eval(), lm.load(tmp_path).eval()):
        assert type(loaded) is type(model)
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert torch.equal(loaded.generate(ids, max_new_tokens=5), model.generate(ids, max_new_tokens=5))


@torch.no_grad()
def test_decode_memory_does_not_grow(tiny):
    model = lm.linearize(tiny(), window=WINDOW)
    sizes = []
    for T in (WINDOW, 50, 200):
        cache = DynamicCache(config=model.config)
        model(tokens(1, T), past_key_values=cache, use_cache=True)
        sizes.append(state_bytes(cache))
    assert len(set(sizes)) == 1


def test_no_mask_of_T_by_T_is_built(tiny, monkeypatch):
    """A long input stays far below T x T memory: count what any single tensor of the forward pass holds."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return out

    model, T = lm.linearize(tiny(), window=WINDOW), 3000
    mask = torch.ones(1, T, dtype=torch.long)
    mask[0, :5] = 0
    with torch.no_grad(), Watch():
        model(tokens(1, T), attention_mask=mask, logits_to_keep=1)
    assert largest < T * T / 8


def test_gradient_checkpointing_gives_the_same_gradients(model):
    ids = tokens(2, 30)
    grads = []
    for checkpointed in (False, True):
        model.train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"structure": "mamba9"}, "unknown structure 'mamba9': allowed are 'gla'"),
        ({"window": 0}, "window = 0"),
        ({"mix": 1.5}, "mix = 1.5"),
        ({"mix": -0.1}, "mix = -0.1"),
        ({"mix": True}, "mix = True"),
        ({"mix": float("nan")}, "mix = nan"),
        ({"mix": (0, 0)}, r"mix = \(0, 0\): allowed are numbers from 0 .* to 1 .*, or a pair .*not both 0"),
        ({"mix": (0.5, -1)}, r"mix = \(0.5, -1\)"),
        ({"mix": (0.5, float("inf"))}, r"mix = \(0.5, inf\)"),
        ({"mix": [0.5]}, r"mix = \(0.5,\)"),
        ({"mix": (0.2, 0.3, 0.5)}, r"mix = \(0.2, 0.3, 0.5\)"),
        ({"mix": "half"}, "mix = 'half'"),
        ({"sinks": -1}, "sinks = -1: allowed are whole numbers ≥ 0"),
        ({"sinks": 1.0}, "sinks = 1.0"),
        ({"sinks": True}, "sinks = True"),
        ({"temper": 0}, "temper = 0"),
        ({"softmax_every": 0}, "softmax_every = 0"),
    ],
)
def test_bad_arguments_leave_the_model_alone(tiny, arguments, words):
    model = tiny()
    with pytest.raises(ValueError, match=words):
        lm.linearize(model, **arguments)
    assert type(model).__name__ == "LlamaForCausalLM"


@torch.no_grad()
def test_a_pair_weighs_both_branches(tiny):
    """(a, 1 - a) is a, (a, b) is the sum it says, and no recurrence is left where a is 0."""
    ids, models = tokens(1, 20), {}
    for mix in (0.25, (0.25, 0.75), (0.5, 2.0), (0, 1), 0.0):
        models[mix] = lm.linearize(tiny(num_hidden_layers=1), window=WINDOW, mix=mix)
        models[mix].load_state_dict(models[0.25].state_dict())
    assert torch.equal(models[0.25](ids).logits, models[0.25, 0.75](ids).logits)
    assert torch.equal(models[0, 1](ids).logits, models[0.0](ids).logits)

    def attention(mix):  # [1, T, D]
        seen = []
        hook = models[mix].model.layers[0].self_attn.register_forward_hook(lambda *call: seen.append(call[-1][0]))
        models[mix](ids)
        hook.remove()
        return seen[0]

    window = attention((0, 1))
    recurrence = (attention(0.25) - 0.75 * window) / 0.25
    torch.testing.assert_close(attention((0.5, 2.0)), 0.5 * recurrence + 2 * window, atol=LOGITS, rtol=0)
    with branches(models[0.5, 2.0], (0.0, 1.0)):
        assert torch.equal(attention((0.5, 2.0)), window)
    assert models[0.5, 2.0].model.layers[0].self_attn.branches == (0.5, 2.0)


@torch.no_grad()
def test_a_sink_is_seen_from_everywhere(tiny):
    """By the window branch alone, one layer deep: the token behind the sinks is not, nor is padding in front of them."""
    model, ids = lm.linearize(tiny(num_hidden_layers=1), window=4, mix=0.0, sinks=2), tokens(1, 30)
    before = model(ids).logits
    for place, seen in ((0, True), (1, True), (2, False)):
        changed = ids.clone()
        changed[0, place] = (changed[0, place] + 1) % 97
        moved = (model(changed).logits - before).abs().amax((0, 2)) > 0
        assert moved[place : place + 4].all()
        assert moved[place + 4 :].all() == moved[place + 4 :].any() == seen


def test_sinks_and_pairs_are_in_the_folder_and_in_its_card(tiny, tmp_path):
    tiny().save_pretrained(tmp_path / "teacher")
    how = {"window": WINDOW, "sinks": 4, "mix": (0.1, 1)}
    with pytest.warns(UserWarning, match="no tokenizer"):
        model = convert_folder(tmp_path / "teacher", tmp_path / "liger", **how)
    loaded = lm.load(tmp_path / "liger").eval()
    assert (loaded.config.liger["sinks"], loaded.config.liger["mix"]) == (4, [0.1, 1])
    assert [layer.self_attn.branches for layer in loaded.model.layers] == 3 * [(0.1, 1)]
    ids = tokens(1, 20)
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    card = (tmp_path / "liger" / "README.md").read_text()
    assert "8 tokens, and always the first 4 of the text" in card
    assert "0.1 recurrence + 1 window" in card


def test_qwen3_gates_read_the_normalised_key(tiny):
    """The key whose products the teacher was trained with: scaling W_k changes nothing, as it does in the teacher."""
    model = lm.linearize(tiny("qwen3"), window=WINDOW)
    ids, attention = tokens(1, 20), model.model.layers[0].self_attn
    with torch.no_grad(), branches(model, (1.0, 0.0)):
        before = model(ids).logits
        attention.k_proj.weight *= 3
        torch.testing.assert_close(model(ids).logits, before, atol=LOGITS, rtol=0)
        attention.k_norm.weight *= 3
        assert (model(ids).logits - before).abs().max() > 1e-2


def test_other_families_and_a_second_time_are_refused(tiny):
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 10}
    with pytest.raises(TypeError, match=r"GPT2LMHeadModel: it has no k_proj .*fused qkv.*Allowed are LlamaForCausalLM"):
        lm.linearize(GPT2LMHeadModel(GPT2Config(**sizes)))
    with pytest.raises(TypeError, match="BertModel: it is no causal language model"):
        lm.linearize(BertModel(BertConfig(**sizes, intermediate_size=8)))
    with pytest.raises(TypeError, match=r"cannot linearize a Gemma\w+\. Allowed"):
        lm.linearize(GemmaForCausalLM(GemmaConfig(**sizes, head_dim=4, intermediate_size=8, num_key_value_heads=1)))
    with pytest.raises(ValueError, match="linearized already"):
        lm.linearize(lm.linearize(tiny()))


def test_a_hybrid_of_a_model_with_its_own_window_is_refused(tiny):
    with pytest.raises(ValueError, match="own attention has a window of 4096"):
        lm.linearize(tiny("mistral", sliding_window=4096), softmax_every=2)
    assert lm.linearize(tiny("mistral", sliding_window=4096)).config.sliding_window == 64


def test_quantised_weights_are_refused(tiny):
    model = tiny()
    model.hf_quantizer = object()
    with pytest.raises(ValueError, match=r"quantised.*dequantize"):
        lm.linearize(model)


def test_a_mask_of_four_axes_is_refused(tiny):
    model = lm.linearize(tiny())
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 1, 5, 5\).*\[B, T\]"):
        model(tokens(1, 5), attention_mask=torch.ones(1, 1, 5, 5))


@torch.no_grad()
def test_packed_documents_are_alone(model):
    """Both branches, and kept softmax blocks, end at document boundaries; positions restart."""
    lengths = [13, 1, 26]
    ids, ends = tokens(1, 40), torch.tensor([0, 13, 14, 40], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    packed = model(ids, position_ids=positions, cu_seq_lens_q=ends, use_cache=False).logits
    alone = [model(ids[:, a:b], use_cache=False).logits for a, b in itertools.pairwise(ends.tolist())]
    torch.testing.assert_close(packed, torch.cat(alone, 1), atol=LOGITS, rtol=0)


def test_load_says_what_is_missing_without_asking_a_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        lm.load(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"no config.json \(found: notes.txt\)"):
        lm.load(tmp_path)


def test_convert_from_disk_writes_a_folder_that_loads(tiny, tmp_path):
    tiny().to(torch.bfloat16).save_pretrained(tmp_path / "teacher")
    with pytest.warns(UserWarning, match="no tokenizer"):
        model = convert_folder(tmp_path / "teacher", tmp_path / "liger", structure="gsa", window=WINDOW)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "liger")
    assert loaded.dtype == torch.bfloat16
    ids = tokens(1, 20)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    card = (tmp_path / "liger" / "README.md").read_text()
    for fact in ("| structure | gsa |", "16 tokens", "8 tokens", "none yet", f"{model.num_parameters():,}"):
        assert fact in card
    with pytest.raises(FileExistsError, match="not empty"):
        convert_folder(tmp_path / "teacher", tmp_path / "liger")


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_of_text(tmp_path):
    tokenizer = load_teacher()[1]
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    opened = open_tokenizer(tmp_path)
    assert opened.pad_token_id == opened.eos_token_id == tokenizer.eos_token_id
    rows = instructions(data_dir() / "instructions.jsonl", opened, length=512)
    batch = Collator(opened.pad_token_id)([rows[0], rows[1]])
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (batch["labels"][padding] == -100).all()
    ends = (batch["input_ids"] == opened.eos_token_id) & ~padding
    assert (batch["labels"][ends] == opened.eos_token_id).all()  # the ends of answers are still learned
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no end-of-text token"):
        open_tokenizer(tmp_path)


@pytest.mark.slow
def test_loading_never_holds_two_copies_of_the_weights(tmp_path):
    """Peak memory of a process that converts from disk, beyond a process that only loads: less than half a model."""
    script = textwrap.dedent(
        """
        import resource, sys, warnings
        warnings.simplefilter("ignore")
        from liger_mini.convert import linearize
        from liger_mini.support.hub import open_model
        model = open_model(sys.argv[1], dtype="auto")
        if sys.argv[2] == "convert":
            linearize(model).save_pretrained(sys.argv[3])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        """
    )
    config = LlamaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=4, vocab_size=32000)
    model = LlamaForCausalLM(config)
    size = 4 * model.num_parameters()
    model.save_pretrained(tmp_path / "teacher", max_shard_size="100MB")
    del model
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", script, tmp_path / "teacher", what, tmp_path / "out"],
                capture_output=True,
                check=True,
                text=True,
            ).stdout
        )
        for what in ("load", "convert")
    ]
    assert size > 5e8
    assert peaks[1] - peaks[0] < size / 2


class FakeResponse:
    headers, request = {}, None


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (
            GatedRepoError("gated", response=FakeResponse()),
            PermissionError,
            "accept its licence at https://huggingface.co/a/b",
        ),
        (
            RepositoryNotFoundError("none", response=FakeResponse()),
            FileNotFoundError,
            "no folder a/b here and no model a/b",
        ),
        (OSError("no route"), ConnectionError, r"cannot be reached \(no route\); give a local folder"),
    ],
)
def test_the_hub_is_asked_and_its_answer_explained(monkeypatch, answer, error, words):
    def refuse(repository):
        raise answer

    monkeypatch.setattr("huggingface_hub.auth_check", refuse)
    with pytest.raises(error, match=words):
        open_model("a/b")


def test_a_path_is_not_mistaken_for_a_hub_id(tmp_path):
    for path in (tmp_path / "model", "./model", "runs/some/model"):
        with pytest.raises(FileNotFoundError, match="no model folder"):
            open_model(path)


def with_added_adapter(model, folder):
    model.add_adapter(LoraConfig(target_modules=["q_proj"]), "mine")
    return model


def from_an_adapter_folder(model, folder):
    model.save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    get_peft_model(base, LoraConfig(target_modules=["v_proj"])).save_pretrained(folder / "adapter")
    return AutoModelForCausalLM.from_pretrained(folder / "adapter")


def inside_peft(model, folder):
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"]))


def what_peft_left_inside(model, folder):
    get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    return model


def trained_head_alone(model, folder):
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])).base_model.model


def prompt_tuning(model, folder):
    return get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


@pytest.mark.parametrize(
    "put",
    [
        with_added_adapter,
        from_an_adapter_folder,
        inside_peft,
        what_peft_left_inside,
        trained_head_alone,
        prompt_tuning,
    ],
)
def test_a_model_with_something_of_peft_inside_is_refused(tiny, tmp_path, put):
    with pytest.raises(TypeError, match=r"carries PEFT's '.*merge_and_unload"):
        lm.linearize(put(tiny(tie_word_embeddings=False), tmp_path))


def test_merged_adapters_are_kept(tiny, tmp_path):
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    merged = get_peft_model(tiny(), config).merge_and_unload().eval()
    ids = tokens(1, 20)
    expected = merged(ids).logits
    model = lm.linearize(merged, window=20, mix=0.0)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(lm.load(tmp_path).eval()(ids).logits, expected, atol=LOGITS, rtol=0)


def test_a_projection_that_something_was_put_around_is_refused(tiny):
    model = tiny()
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[1].self_attn.k_proj)
    with pytest.raises(TypeError, match=r"layers.1.self_attn.k_proj is a ParametrizedLinear"):
        lm.linearize(model)


def test_an_adapter_folder_is_not_a_model(tiny, tmp_path):
    get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds an adapter, not a model.*merge_and_unload"):
        open_model(tmp_path)


def test_the_card_counts(tiny):
    model = lm.linearize(tiny(), window=WINDOW)
    assert "Counted: no parameter was added." in model_card(model, "here")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # untied
    model.config.tie_word_embeddings = False
    assert f"Counted: {97 * 32:,} parameters were added." in model_card(model, "here")


def test_ungated_sums_in_float16_are_warned_of(tiny):
    with pytest.warns(UserWarning, match=r"float16 ends at 65,504"):
        lm.linearize(tiny().half(), "linear")


def test_folders_of_the_first_version_load(tiny, tmp_path):
    """What `config.liger` has gained since may be missing."""
    model, ids = lm.linearize(tiny(), "gsa", window=WINDOW), tokens(1, 20)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["liger"] = {
        name: config["liger"][name] for name in ("structure", "window", "mix", "temper", "softmax_every")
    }
    del config["auto_map"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(lm.load(tmp_path).eval()(ids).logits, model(ids).logits)


def test_a_model_names_the_form_it_runs_in(monkeypatch, tmp_path, tiny):
    """In its config, with the environment above it; a single token is one step in any case."""
    from liger_mini.recurrences import dispatch

    seen, form = [], dispatch._form
    monkeypatch.setattr(dispatch, "_form", lambda what, backend, x: seen.append(backend) or form(what, backend, x))
    model = lm.linearize(tiny(), backend="chunked")
    model.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.liger["backend"] == "chunked"
    layers = model.config.num_hidden_layers
    ids = torch.arange(2, 12)[None]
    model(ids)
    model(ids[:, :1])
    monkeypatch.setattr(dispatch, "ASKED", "naive")
    model(ids)
    assert seen == layers * ["chunked"] + layers * ["auto"] + layers * ["naive"]
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    del config["liger"]["backend"]  # as in older folders
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    AutoModelForCausalLM.from_pretrained(tmp_path)(ids)


@pytest.mark.parametrize(("structure", "backend"), [("gla", "fastest"), ("gsa", "compiled")])
def test_a_form_that_cannot_be_is_refused_at_once(structure, backend, tiny):
    with pytest.raises(
        ValueError, match=f"backend = '{backend}': allowed with structure '{structure}' are 'auto', 'naive'"
    ):
        lm.linearize(tiny(), structure, backend=backend)


def test_a_command_may_change_the_form_of_a_linearized_model(tiny):
    """Unlike every other setting, which would need the original model."""
    model = lm.linearize(tiny(), backend="chunked")
    assert options.settings(Namespace(model="here", backend="naive"), model) == {"backend": "naive"}
    assert model.config.liger["backend"] == "naive"
    assert {layer.backend for layer in liger_layers(model)} == {"naive"}
    with pytest.raises(ValueError, match=r"linearized already, with \{'window': 64\}"):
        options.settings(Namespace(model="here", window=5), model)
