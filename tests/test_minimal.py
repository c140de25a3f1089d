"""`minimal.py` is what the package computes: a layer of a Hugging Face model, linearized, outputs and every gradient."""

import torch
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from liger_mini.attention import LigerAttention
from liger_mini.convert import Settings
from liger_mini.experiments.equivalence import relative_rms
from liger_mini.minimal import liger_layer

from .conftest import FAMILIES, TINY


def test_one_layer_by_its_definition_is_the_packages():
    kind, _, _ = FAMILIES["llama"]
    config = kind(**{**TINY, "num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
    attention = LlamaAttention(config, layer_idx=0)
    liger = LigerAttention(attention, Settings(window=5))
    x = torch.randn(1, 70, 32)  # two chunks and a rest
    rotary = LlamaRotaryEmbedding(config)(x, torch.arange(70).unsqueeze(0))
    weights = [getattr(attention, name).weight for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    ours, _ = liger(x, rotary)
    minimal = liger_layer(x[0], *weights, heads=4, window=5)
    assert relative_rms(minimal, ours[0]) <= 1e-6
    upstream = torch.randn(70, 32)
    for by_definition, by_package in zip(*(torch.autograd.grad(o, weights, upstream) for o in (minimal, ours[0]))):
        assert relative_rms(by_definition, by_package) <= 1e-5
