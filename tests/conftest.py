"""Shared fixtures: one seed a test, tiny random models, and the embedded teacher loaded once."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when it is imported, and transformers imports triton
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny_llama():
    """Random weights, large enough that attention is far from uniform; grouped keys/values, tied embeddings."""

    def make(**changes):
        settings = {
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
        return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()

    return make


@pytest.fixture(scope="session")
def teacher():
    """(model, tokenizer) of the embedded teacher; read-only: tests that change it load their own."""
    from liger_mini.demo import load_teacher

    return load_teacher()
