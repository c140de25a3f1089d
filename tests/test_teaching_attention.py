"""Figures of chapter 01: they show the numbers they were given, say them in words, and refuse what they cannot draw."""

import math

import pytest
import torch

from liger_mini.teaching import widgets
from liger_mini.teaching.figures import alt_text
from liger_mini.teaching.figures import attention as draw

NAMES, VALUES = ["Ada", "Ben", "Cleo", "Dan"], ["Rome", "Oslo", "Cork", "Bern"]


def facts(K=3, t=3, shift=0.0):
    generator = torch.Generator().manual_seed(t)
    k, v = torch.eye(K)[torch.arange(t) % K] + shift, torch.eye(4)[:t]
    state = k.T @ v + 0.01 * torch.randn(K, 4, generator=generator)
    return state, k @ state @ v.T


def test_exponent_is_the_slope():
    lengths = [512, 1024, 2048, 4096]
    assert draw.exponent(lengths, [3 * T**2 for T in lengths]) == pytest.approx(2)
    assert draw.exponent(lengths, [5 * T for T in lengths]) == pytest.approx(1)
    assert draw.exponent(lengths, [7] * 4) == pytest.approx(0)
    for bad_lengths, bad_values in (([8], [1.0]), ([8, 16], [1.0, 0.0])):
        with pytest.raises(ValueError, match="two or more positive points"):
            draw.exponent(bad_lengths, bad_values)


def test_growth_shows_each_series_and_its_exponent():
    lengths = [8, 16, 32]
    series = {"softmax": [64.0, 256.0, 1024.0], "recurrence": [8.0, 16.0, 32.0]}
    figure = draw.growth(lengths, series, title="Time", unit="time (ms)")
    assert {trace.name: list(trace.y) for trace in figure.data} == series
    assert list(figure.data[0].x) == lengths
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("T (tokens)", "time (ms)")
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    assert "softmax 64 to 1,024, as T^2.00" in alt_text(figure)
    assert "recurrence 8 to 32, as T^1.00" in alt_text(figure)
    with pytest.raises(ValueError, match="'softmax' has 2 values for 3 points"):
        draw.growth(lengths, {"softmax": [1.0, 2.0]}, title="Time", unit="time (ms)")
    with pytest.raises(ValueError, match="nothing to draw"):
        draw.growth(lengths, {}, title="Time", unit="time (ms)")


def test_state_stream_marks_the_best_value_of_each_key():
    state, scores = facts()
    scores[1] = torch.tensor([2.0, 1.0, 0.0])  # Ben is found in Rome
    figure = draw.state_stream(state, scores, NAMES, VALUES)
    heat_state, heat_scores, best = figure.data
    assert torch.allclose(torch.tensor(heat_state.z), state)
    assert torch.allclose(torch.tensor([row[:3] for row in heat_scores.z[:3]]), scores)
    assert all(x is None for x in heat_scores.z[3])
    assert [row[3] for row in heat_scores.z] == [None] * 4
    assert list(best.x) == ["Rome", "Rome", "Cork"]
    assert list(best.y) == NAMES[:3]
    assert "right for 2 of 3" in alt_text(figure)
    assert figure.layout.title.text == "Facts stored t = 3, found 2"
    assert figure.layout.yaxis2.title.text == "asked for"


@pytest.mark.parametrize(
    ("state", "scores", "names"),
    [
        (torch.ones(2), torch.ones(2, 2), NAMES),
        (torch.ones(2, 2), torch.ones(2, 3), NAMES),
        (torch.ones(2, 2), torch.ones(5, 5), NAMES),
        (torch.ones(2, 2), torch.ones(2, 2), NAMES[:3]),
        (torch.ones(2, 2), torch.ones(0, 0), NAMES),
    ],
)
def test_state_stream_refuses_what_does_not_fit(state, scores, names):
    with pytest.raises(ValueError, match=r"needed are state \[K, V\], scores \[t, t\]"):
        draw.state_stream(state, scores, names, VALUES)


def test_the_stream_widget_follows_both_sliders():
    def stream(shift, t):
        return draw.state_stream(*facts(t=t, shift=shift), NAMES, VALUES)

    box = widgets.explore(stream, shift=[0.0, 0.5], t=[1, 2, 3, 4])
    shift, t, view, words = box.children
    for s, n in ((0.5, 3), (0.0, 4), (0.5, 1), (0.0, 2)):
        shift.value, t.value = s, n
        expected = stream(s, n)
        assert [list(row) for row in view.data[0].z] == [list(row) for row in expected.data[0].z]
        assert list(view.data[2].x) == list(expected.data[2].x)
        assert view.layout.title.text == expected.layout.title.text
        assert words.value == alt_text(expected)
    assert "shift 0.5, t 4" in box.twin


def test_interference_stands_beside_its_theory():
    stored, errors = [1, 5, 17], {"random": [0.0, 0.9, 2.1], "softmax": [0.0, 0.0, 0.01]}
    figure = draw.interference(stored, errors, width=4)
    assert list(figure.data[0].y) == errors["random"]
    assert list(figure.data[1].y) == errors["softmax"]
    assert list(figure.data[2].y) == [0, 1, 2]
    assert [shape.x0 for shape in figure.layout.shapes] == [4]
    assert "random 0.00 to 2.10; softmax 0.00 to 0.01" in alt_text(figure)
    assert "value" in figure.layout.yaxis.title.text
    with pytest.raises(ValueError, match="width = 0"):
        draw.interference(stored, errors, width=0)
    with pytest.raises(ValueError, match="'random' has 1 values for 3 points"):
        draw.interference(stored, {"random": [1.0]}, width=4)


def test_total_weight_draws_every_token():
    weights = {"no gate": torch.arange(1, 6) / 4, "gate": torch.full((5,), 0.25)}
    figure = draw.total_weight(weights)
    assert list(figure.data[0].x) == [1, 2, 3, 4, 5]
    assert list(figure.data[0].y) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.25])
    assert "no gate 1.25; gate 0.25" in alt_text(figure)
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("t (tokens)", "sum of weights")
    with pytest.raises(ValueError, match="'gate' has 4 values for 5 points"):
        draw.total_weight(weights | {"gate": torch.ones(4)})
    with pytest.raises(ValueError, match="nothing to draw"):
        draw.total_weight({})


def test_key_overlap_has_a_bar_for_each_layer():
    cosines = {"keys": [0.9, -0.25], "φ(keys)": [0.95, 0.4]}
    figure = draw.key_overlap(cosines)
    assert {trace.name: list(trace.y) for trace in figure.data} == cosines
    assert figure.layout.yaxis.range[0] == -0.25
    assert figure.layout.yaxis.title.text == "mean cosine of two keys"
    assert "keys 0.90, -0.25; φ(keys) 0.95, 0.40" in alt_text(figure)
    assert math.isclose(figure.layout.yaxis.range[1], 1.15)
    with pytest.raises(ValueError, match=r"'φ\(keys\)' has 1 values for 2 points"):
        draw.key_overlap(cosines | {"φ(keys)": [0.1]})
