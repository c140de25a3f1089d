"""A real language model: how far each way is from its teacher, and where the teacher looks (chapter 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from torch import Tensor

from liger_mini.evaluation import paired
from liger_mini.teaching.figures.theme import add_dots, bar, described, line, marker, new_figure


def above_teacher(result: Mapping[str, Any], ways: Sequence[str] | None = None) -> go.Figure:
    """Loss of each way above the untouched teacher's, on the same rows, a kind of mark for each text.

    Args:
        result: what `experiments.real.run` returns. ways: which of its ways, in this order; None: all.
    """
    names = list(result["ways"] if ways is None else ways)
    series = {}
    for text, teacher in result["untouched"].items():
        differences = {name: paired(result["ways"][name][text]["loss"], teacher) for name in names}
        series[text] = {name: (d.mean, d.standard_error) for name, d in differences.items()}
    figure = new_figure("Above the untouched teacher", "loss above the teacher's (nats)", None)
    told = add_dots(figure, series, 3)
    figure.add_vline(x=0, line_dash="dot", annotation_text="untouched", annotation_position="top")
    return described(figure, f"Dots of loss above the untouched teacher's, ± standard error by row. {'; '.join(told)}.")


def first_token(shares: Tensor) -> go.Figure:
    """How much of each layer's attention the first token gets: mean over heads, and the most that a head gives.

    Args:
        shares: [layers, heads], mean over queries.
    """
    if shares.ndim != 2:
        raise ValueError(f"shares has shape {tuple(shares.shape)}; needed is [layers, heads]")
    figure = new_figure("What the first token gets", "layer", "share of the attention")
    layers = list(range(len(shares)))
    figure.add_bar(x=layers, y=shares.mean(1).tolist(), name="mean of the heads", marker=bar(1))
    most = shares.amax(1).tolist()
    figure.add_scatter(
        x=layers,
        y=most,
        name="the head that gives most",
        mode="markers",
        marker={**marker(2), "color": line(2)["color"]},
    )
    figure.update_yaxes(range=[0, 1.02])
    return described(
        figure,
        f"Bars of the first token's share of the attention in {len(shares)} layers, from {shares.mean(1).min():.2f} to "
        f"{shares.mean(1).max():.2f}; mean {shares.mean():.2f}. The head that gives most gives {max(most):.2f}.",
    )
