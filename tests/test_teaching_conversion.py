"""Chapter 07's figures show the numbers they are given, say them in words, and refuse what makes no sense."""

import pytest
import torch

from liger_mini.teaching import figures, widgets
from liger_mini.teaching.figures.conversion import (
    cache_growth,
    loss_after_conversion,
    next_token,
    parameters_before_and_after,
    parameters_by_kind,
)

STATE = {
    "model.embed_tokens.weight": torch.zeros(10, 4),
    "model.layers.0.self_attn.k_proj.weight": torch.zeros(4, 4),
    "model.layers.0.self_attn.k_proj.bias": torch.zeros(4),
    "model.layers.1.self_attn.k_proj.weight": torch.zeros(4, 4),
    "model.layers.1.input_layernorm.weight": torch.zeros(4),
    "model.norm.weight": torch.zeros(4),
}


def test_parameters_are_counted_by_kind(tiny):
    assert parameters_by_kind(STATE) == {"embed_tokens": 40, "k_proj": 36, "norms": 8}
    model = tiny("qwen3")
    assert sum(parameters_by_kind(dict(model.named_parameters())).values()) == model.num_parameters()


def test_parameters_before_and_after():
    after = {**STATE, "model.gate_proj.weight": torch.zeros(4, 4)}
    figure = parameters_before_and_after(STATE, after)
    before_bars, after_bars = figure.data
    assert dict(zip(before_bars.y, before_bars.x)) == {"embed_tokens": 0.04, "k_proj": 0.036, "norms": 0.008}
    assert dict(zip(after_bars.y, after_bars.x))["gate_proj"] == 0.016
    assert figure.layout.xaxis.title.text == "parameters (thousands)"
    assert "before 84 in 6 tensors; after 100 in 7 tensors" in figures.alt_text(figure)
    with pytest.raises(ValueError, match="no parameters"):
        parameters_before_and_after({}, STATE)


def test_losses_and_references():
    figure = loss_after_conversion({"gla": 7.5, "rwkv6": 3.25}, references={"teacher": 2.0, "window only": 2.5})
    bars, teacher, window = figure.data
    assert dict(zip(bars.y, bars.x)) == {"gla": 7.5, "rwkv6": 3.25}
    assert list(bars.text) == ["7.50", "3.25"]
    assert (list(teacher.x), teacher.name) == ([2.0, 2.0], "teacher 2.00")
    assert (list(window.x), list(window.y)) == ([2.5, 2.5], ["gla", "rwkv6"])
    assert "nats per token" in figure.layout.xaxis.title.text
    assert "gla 7.50, rwkv6 3.25. teacher: 2.00. window only: 2.50." in figures.alt_text(figure)
    with pytest.raises(ValueError, match="no loss to show"):
        loss_after_conversion({}, references={})
    with pytest.raises(ValueError, match="loss of 'gla' is nan; allowed are finite"):
        loss_after_conversion({"gla": float("nan")}, references={})


def test_next_token():
    figure = next_token(["Rome", "Oslo"], [0.75, 0.25], [0.5, 0.125], name="gla, mix 0.5", loss=0.693)
    assert [list(trace.y) for trace in figure.data] == [[0.75, 0.25], [0.5, 0.125]]
    assert list(figure.layout.xaxis.ticktext) == ["Rome", "Oslo"]
    assert figure.layout.yaxis.title.text == "probability"
    assert "'Rome' 0.75, the converted model 0.50, a loss of 0.69 nats" in figures.alt_text(figure)
    with pytest.raises(ValueError, match="2 tokens, 1 and 2 probabilities"):
        next_token(["Rome", "Oslo"], [1.0], [0.5, 0.5], name="", loss=0)
    with pytest.raises(ValueError, match="apply softmax"):
        next_token(["Rome"], [1.0], [-3.0], name="", loss=0)


def test_cache_growth():
    kept = {"softmax": [4096, 65536], "Liger": [8192, 8192]}
    figure = cache_growth([16, 256], kept)
    assert {trace.name: list(trace.y) for trace in figure.data} == {"softmax": [4.0, 64.0], "Liger": [8.0, 8.0]}
    assert figure.layout.yaxis.title.text == "cache (KiB)"
    assert list(figure.layout.xaxis.tickvals) == [16, 64, 256]
    assert "softmax from 4,096 to 65,536 bytes; Liger from 8,192 to 8,192 bytes" in figures.alt_text(figure)
    with pytest.raises(ValueError, match="rising whole numbers"):
        cache_growth([256, 16], kept)
    with pytest.raises(ValueError, match="'softmax' has 1 values for 2 contexts"):
        cache_growth([16, 256], {"softmax": [1]})


def test_the_widget_follows_both_controls():
    def draw(structure, mix):
        p = {"gla": 0.1, "rwkv6": 0.6}[structure]
        return next_token(["Rome", "others"], [1.0, 0.0], [p - mix / 10, 1 - p], name=f"{structure} {mix}", loss=1.0)

    box = widgets.explore(draw, structure=["gla", "rwkv6"], mix=[0.5, 0.25, 0.0])
    structure, mix, view, words = box.children
    for s, m in (("rwkv6", 0.25), ("rwkv6", 0.0), ("gla", 0.25), ("gla", 0.5)):
        structure.value, mix.value = s, m
        expected = draw(s, m)
        assert [list(trace.y) for trace in view.data] == [list(trace.y) for trace in expected.data]
        assert view.layout.title.text == f"{s} {m}: 1.00 nats"
        assert words.value.startswith(f"Probability of the next token, {s} {m}.")
    assert "structure rwkv6, mix 0.0" in box.twin
