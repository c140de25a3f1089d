"""What people do with a transformers model works on a linearized one: pipelines, streaming, compile, device_map, bf16."""

import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
    TextIteratorStreamer,
    pipeline,
)

import liger_mini as lm
from liger_mini.experiments import load_teacher
from liger_mini.experiments.equivalence import relative_rms

STRUCTURES = ["gla", "gsa"]  # one state, and two


@pytest.fixture(params=STRUCTURES)
def model(request, tiny):
    return lm.linearize(tiny(), request.param, window=8)


def tokens(T):
    return torch.randint(2, 97, (1, T))


def test_pipeline_and_streaming_give_what_generate_gives():
    teacher, tokenizer = load_teacher()
    model = lm.linearize(teacher, window=16)
    prompt, how = "Anna lives in Paris. Anna", {"max_new_tokens": 8, "do_sample": False}
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    expected = tokenizer.decode(model.generate(**inputs, **how)[0], skip_special_tokens=True)
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert generator(prompt, **how)[0]["generated_text"] == expected
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    model.generate(**inputs, streamer=streamer, **how)
    assert "".join(streamer) == expected


def test_a_conversation_goes_on_from_the_cache(model):
    """Several tokens at once after generation: the state, the window and the positions go on."""
    first, second = tokens(20), tokens(7)
    cache = DynamicCache(config=model.config)
    model.generation_config.eos_token_id = None
    answer = model.generate(first, past_key_values=cache, max_new_tokens=5)
    whole = torch.cat([answer, second], dim=1)
    continued = model.generate(whole, past_key_values=cache, max_new_tokens=5)
    assert torch.equal(continued, model.generate(whole, max_new_tokens=5))


@pytest.mark.slow
def test_compiled_forward_is_the_same(model):
    ids = tokens(40)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


def test_bfloat16_is_close_and_keeps_float32_states(tiny, model):
    ids = tokens(30)
    exact = model(ids).logits
    half = model.to(torch.bfloat16)
    cache = DynamicCache(config=half.config)
    rounded = half(ids, past_key_values=cache, use_cache=True).logits
    assert rounded.dtype == torch.bfloat16
    assert relative_rms(rounded, exact) < 0.05
    assert all(S.dtype == torch.float32 for layer in cache.layers for S in layer.recurrent_states.values())


def test_device_map(model, tmp_path):
    ids = tokens(20)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_peft_saves_loads_and_merges(tiny, model, tmp_path):
    ids = tokens(20)
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config)
    expected = adapted(ids).logits
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(lm.load(tmp_path / "base"), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(ids).logits, expected)
    torch.testing.assert_close(again.merge_and_unload()(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_another_attention_implementation_is_refused(model):
    with pytest.raises(ValueError, match=r"attn_implementation = 'sdpa'.*would lose the padding"):
        model.set_attn_implementation("sdpa")


@torch.no_grad()
def test_positions_that_start_again_are_documents(model):
    """In one row or in several, whose documents end in different places."""
    ids = torch.randint(2, 97, (2, 11))
    positions = torch.stack([torch.cat([torch.arange(n), torch.arange(11 - n)]) for n in (4, 7)])
    packed = model(ids, position_ids=positions, use_cache=False).logits
    for row, n in enumerate((4, 7)):
        alone = [model(ids[row : row + 1, part], use_cache=False).logits for part in (slice(n), slice(n, None))]
        torch.testing.assert_close(packed[row : row + 1], torch.cat(alone, dim=1), atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_inner_decoder_takes_positional_arguments(model):
    ids, mask = tokens(12), (torch.arange(12) >= 4).long().unsqueeze(0)
    for decoder in (model.model, model.get_decoder()):
        named = decoder(input_ids=ids, attention_mask=mask, use_cache=False)
        torch.testing.assert_close(decoder(ids, mask, use_cache=False)[0], named[0])
        cache = DynamicCache(config=model.config)
        pieces = [decoder(ids[:, part], None, None, cache)[0] for part in (slice(5), slice(5, 12))]
        torch.testing.assert_close(torch.cat(pieces, 1), decoder(ids, use_cache=False)[0], atol=1e-4, rtol=0)


def test_what_a_recurrence_cannot_give_is_refused(model):
    with pytest.raises(ValueError, match="no T x T attention weights"):
        model(tokens(5), output_attentions=True)
    with pytest.raises(ValueError, match="runs from left to right"):
        model.model(tokens(5), is_causal=False)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@torch.no_grad()
def test_other_heads_load_and_are_linearized(tiny, tmp_path, family, auto):
    """A decoder from a saved folder has the saved model's hidden states; a classifier is swapped, saved and loaded."""
    causal, ids = lm.linearize(tiny(family), window=4), tokens(20)
    causal.save_pretrained(tmp_path / "causal")
    loaded = auto.from_pretrained(tmp_path / "causal").eval()
    assert type(loaded).__name__.startswith("Liger")
    expected = causal.model(ids, use_cache=False)[0]
    torch.testing.assert_close(loaded.base_model(ids, use_cache=False)[0], expected, atol=1e-5, rtol=0)
    softmax = auto.from_config(tiny(family).config).eval()
    before = softmax.num_parameters()
    classifier = lm.linearize(softmax, window=4)
    assert classifier.num_parameters() == before
    classifier.save_pretrained(tmp_path / "own")
    again = auto.from_pretrained(tmp_path / "own").eval()
    torch.testing.assert_close(again(ids)[0], classifier(ids)[0], atol=1e-5, rtol=0)


FOLDER = """
import sys
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
assert "liger_mini" not in sys.modules
folder, *trust = sys.argv[1:]
for auto in (AutoModelForCausalLM, AutoModel, AutoModelForSequenceClassification):
    model = auto.from_pretrained(folder, **({"trust_remote_code": True} if trust else {}))
    print(type(model).__module__, type(model).__name__)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(folder + "-again")
"""


@pytest.mark.slow
def test_a_process_that_never_heard_of_us_opens_a_folder(tiny, tmp_path):
    """With trust_remote_code=True (as lm_eval and others pass it on); without, transformers says what is missing."""
    folder = tmp_path / "liger"
    lm.linearize(tiny(), window=4).save_pretrained(folder)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": os.getcwd()}

    def run(*arguments):
        command = [sys.executable, "-c", FOLDER, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)

    trusted = run(folder, "trust")
    assert trusted.returncode == 0, trusted.stderr[-2000:]
    names = ("LigerLlamaForCausalLM", "LigerLlamaModel", "LigerLlamaForSequenceClassification")
    assert trusted.stdout.split("\n")[:3] == [f"liger_mini.convert {name}" for name in names]
    files = {path.name for path in folder.iterdir()}
    assert {path.name for path in (tmp_path / "liger-again").iterdir()} == files  # no copy of the package's files
    untrusted = run(folder)
    assert untrusted.returncode != 0
    assert "trust_remote_code=True" in untrusted.stderr
