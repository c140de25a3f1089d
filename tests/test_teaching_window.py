"""Figures of chapter 06: they show the numbers they were given, say them in words, and refuse what they cannot draw."""

import pytest
import torch

import liger_mini as lm
from liger_mini.teaching import widgets
from liger_mini.teaching.figures import alt_text
from liger_mini.teaching.figures import window as draw


def visible(T, window):
    """Who sees whom, by the package's own window: values that are the identity give the weights."""
    q, k = torch.randn(2, 1, T, 1, 4, generator=torch.Generator().manual_seed(0))
    return lm.sliding_window_attention(q, k, torch.eye(T)[None, :, None], window)[0, :, 0] > 0


@pytest.mark.parametrize("window", [1, 3, 4, 12])
def test_blocks_hold_the_band(window):
    computed = draw.blocks(12, window)
    assert bool((computed | ~visible(12, window)).all())
    assert int(computed.sum()) == sum(min(2, t // window + 1) * window for t in range(12))


def test_band_tells_seen_from_masked_from_skipped():
    figure = draw.band(visible(6, 2), 2)
    expected = [
        [2, 1, 0, 0, 0, 0],
        [2, 2, 0, 0, 0, 0],
        [1, 2, 2, 1, 0, 0],
        [1, 1, 2, 2, 0, 0],
        [0, 0, 1, 2, 2, 1],
        [0, 0, 1, 1, 2, 2],
    ]
    assert [list(row) for row in figure.data[0].z] == expected
    assert figure.layout.title.text == "W = 2: 20 scores for 11 seen"
    assert "11 seen of 36; the blocks around it hold 20" in alt_text(figure)
    assert [trace.name for trace in figure.data[1:]] == ["skipped", "masked", "seen"]
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("key s (token)", "query t (token)")


def test_band_refuses_what_it_cannot_draw():
    for window in (0, 7, 2.0):
        with pytest.raises(ValueError, match="allowed are whole numbers from 1 to T"):
            draw.band(visible(6, 2), window)
    for bad in (torch.ones(6, 5, dtype=torch.bool), torch.ones(6, 6), torch.ones(6, dtype=torch.bool)):
        with pytest.raises(ValueError, match="it must be a bool"):
            draw.band(bad, 2)


def test_the_band_widget_follows_its_slider():
    box = widgets.explore(lambda W: draw.band(visible(8, W), W), W=[1, 2, 4, 8])
    slider, view, words = box.children
    for W in (4, 8, 2, 1):
        slider.value = W
        expected = draw.band(visible(8, W), W)
        assert [list(row) for row in view.data[0].z] == [list(row) for row in expected.data[0].z]
        assert view.layout.title.text == expected.layout.title.text
        assert words.value == alt_text(expected)
    assert "W 8" in box.twin


def staircase(L, D, window):
    """Changes that are felt exactly l (W - 1) tokens on, ten times weaker at each."""
    return torch.stack([torch.tensor([10.0**-d * (d <= i * (window - 1)) for d in range(D)]) for i in range(L + 1)])


def test_reach_map_is_a_staircase():
    figure = draw.reach_map(staircase(3, 12, 3), 3)
    heat, bound = figure.data
    assert [sum(x is not None for x in row) for row in heat.z] == [1, 3, 5, 7]
    assert heat.z[3][4] == pytest.approx(-4)
    assert list(bound.x) == [0, 2, 4, 6]
    assert list(bound.y) == [0, 1, 2, 3]
    assert figure.layout.title.text == "W = 3: felt 6 tokens on"
    assert "2 after layer 1, 4 after layer 2, 6 after layer 3" in alt_text(figure)
    assert figure.layout.yaxis.title.text == "after layer"
    for bad in (torch.ones(4), torch.ones(1, 4), -torch.ones(2, 4), torch.full((2, 4), torch.nan)):
        with pytest.raises(ValueError, match=r"it must be \[L \+ 1, D\]"):
            draw.reach_map(bad, 3)


def test_the_reach_widget_follows_its_slider():
    box = widgets.explore(lambda W: draw.reach_map(staircase(3, 12, W), W), W=[4, 3, 2])
    slider, view, words = box.children
    for W in (2, 3, 4):
        slider.value = W
        expected = draw.reach_map(staircase(3, 12, W), W)
        assert [list(row) for row in view.data[0].z] == [list(row) for row in expected.data[0].z]
        assert list(view.data[1].x) == list(expected.data[1].x)
        assert words.value == alt_text(expected)


def test_gaps_draws_every_token_on_a_log_axis():
    figure = draw.gaps({"intact": torch.tensor([0.0, 1e-6]), "no window": torch.tensor([1e-6, 0.5])})
    assert list(figure.data[0].x) == [1, 2]
    assert list(figure.data[0].y) == pytest.approx([1e-9, 1e-6])  # zero has no logarithm
    assert list(figure.data[1].y) == pytest.approx([1e-6, 0.5])
    assert figure.layout.yaxis.type == "log"
    assert "intact 1.0e-06 at the most; no window 5.0e-01" in alt_text(figure)
    for bad in ({}, {"intact": torch.ones(2, 2)}, {"intact": torch.ones(0)}):
        with pytest.raises(ValueError, match=r"shape \[T\], T ≥ 1"):
            draw.gaps(bad)


def test_loss_by_window_stands_beside_the_teacher():
    figure = draw.loss_by_window([1, 4, 16], {"window only": [6.5, 3.0, 2.25]}, 2.0)
    assert list(figure.data[0].x) == [1, 4, 16]
    assert list(figure.data[0].y) == [6.5, 3.0, 2.25]
    assert [shape.y0 for shape in figure.layout.shapes] == [2.0]
    assert "windows of 1, 4, 16 tokens: window only 6.50, 3.00, 2.25. The teacher has 2.00" in alt_text(figure)
    assert figure.layout.yaxis.title.text == "loss (nats per token)"
    with pytest.raises(ValueError, match="'window only' has 1 losses for 3 windows"):
        draw.loss_by_window([1, 4, 16], {"window only": [6.5]}, 2.0)
    with pytest.raises(ValueError, match="nothing to draw"):
        draw.loss_by_window([], {}, 2.0)
