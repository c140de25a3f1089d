"""Shared fixtures: one seed a test, tiny random models, and the embedded teacher loaded once."""

import contextlib
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when it is imported, and transformers imports triton
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)


def pytest_addoption(parser):
    parser.addoption("--index", action="store_true", help="also ask the package index whether the pins resolve")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama 3 rope": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": (MistralConfig, MistralForCausalLM, {"head_dim": 12, "sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
}


@pytest.fixture
def tiny():
    """Random weights, large enough that attention is far from uniform; grouped keys/values, biases where there are any."""

    def make(family="llama", **changes):
        config, model, own = FAMILIES[family]
        model = model(config(**{**TINY, **own, **changes})).eval()
        for name, p in model.named_parameters():
            if name.endswith(("_proj.bias", "_norm.weight")):  # biases start at 0 and norms at 1: make them count
                torch.nn.init.normal_(p, mean=float(name.endswith("weight")), std=0.2)
        return model

    return make


@pytest.fixture(scope="session")
def teacher():
    """(model, tokenizer) of the embedded teacher; read-only: tests that change it load their own."""
    from liger_mini.experiments import load_teacher

    return load_teacher()


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, one for all tests of a process; a machine without one skips with a sentence."""
    pytest.importorskip("playwright", reason="to read pages in a browser: pip install playwright")
    from liger_mini.teaching.pdf import chromium

    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(chromium())
        except RuntimeError as missing:
            pytest.skip(str(missing))
        yield running
