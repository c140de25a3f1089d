"""What people do with a transformers model works on a linearized one: pipelines, streaming, compile, device_map, bf16."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache, TextIteratorStreamer, pipeline

import liger_mini as lm
from liger_mini.demo import load_teacher

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
    assert ((rounded.float() - exact).norm() / exact.norm()).item() < 0.05
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
