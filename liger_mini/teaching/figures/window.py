"""The window: its band, its blocks, its reach, and what its cache is worth (chapter 06)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from torch import Tensor

from liger_mini.teaching.figures.theme import POSITIVE, described, line, marker, new_figure

SHADES = {"skipped": "#f2f2f2", "masked": "#a8a8a8", "seen": "#0072B2"}


def blocks(T: int, window: int) -> Tensor:
    """[T, T], True where the blocked form computes a score: a block of W queries, its own keys and the W before.

    Raises:
        ValueError: a window outside 1 … T.
    """
    if not isinstance(window, int) or not 1 <= window <= T:
        raise ValueError(f"window = {window} for T = {T} tokens: allowed are whole numbers from 1 to T")
    block = torch.arange(T) // window
    return (block[:, None] == block) | (block[:, None] == block + 1)


def band(visible: Tensor, window: int) -> go.Figure:
    """Who sees whom, and which scores the blocked form computes for it.

    Args:
        visible: [T, T], True where query i (row) sees key j (column). window: W, at most T.
    """
    if visible.ndim != 2 or visible.shape[0] != visible.shape[1] or visible.dtype != torch.bool:
        raise ValueError(
            f"visible has shape {tuple(visible.shape)} and dtype {visible.dtype}; it must be a bool [T, T]"
        )
    T, computed = len(visible), blocks(len(visible), window)
    level = computed.int() + (computed & visible).int()
    seen, total = int(visible.sum()), int(computed.sum())
    figure = new_figure(f"W = {window}: {total} scores for {seen} seen", "key s (token)", "query t (token)", height=500)
    colours = [[(i + step) / 3, colour] for i, colour in enumerate(SHADES.values()) for step in (0, 1)]
    figure.add_heatmap(z=level.tolist(), zmin=-0.5, zmax=2.5, colorscale=colours, showscale=False, xgap=1, ygap=1)
    for name, colour in SHADES.items():
        look = {"symbol": "square", "size": 12, "color": colour, "line": {"color": "#666", "width": 1}}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=look, name=name)
    figure.update_xaxes(range=[-0.5, T - 0.5], showgrid=False, constrain="domain")
    figure.update_yaxes(range=[T - 0.5, -0.5], showgrid=False, scaleanchor="x", constrain="domain")
    return described(
        figure,
        f"A {T} x {T} map of scores for a window of {window} tokens: a band along the diagonal, {seen} seen of {T * T}; "
        f"the blocks around it hold {total}.",
    )


def reach_map(changes: Tensor, window: int) -> go.Figure:
    """How far a changed token is felt, layer by layer; the staircase is l (W - 1).

    Args:
        changes: [L + 1, D], largest change of the hidden state after l layers, at each distance from the changed token.
    """
    if changes.ndim != 2 or len(changes) < 2 or not bool((changes >= 0).all()):
        raise ValueError(f"changes has shape {tuple(changes.shape)}; it must be [L + 1, D] with numbers ≥ 0")
    L, D = len(changes) - 1, changes.shape[1]
    furthest = [int(row.nonzero().max()) if row.any() else 0 for row in changes]
    logs = [[x if x > -300 else None for x in row] for row in changes.double().clamp(min=1e-320).log10().tolist()]
    figure = new_figure(f"W = {window}: felt {furthest[-1]} tokens on", "distance (tokens)", "after layer", height=400)
    ticks = {
        "title": {"text": "change", "side": "top"},
        "tickvals": [-6, -4, -2, 0],
        "ticktext": ["1e-6", "1e-4", "0.01", "1"],
    }
    figure.add_heatmap(z=logs, zmin=-7, zmax=0, colorscale=POSITIVE, colorbar=ticks)
    bound = {"symbol": "x", "size": 9, "color": "#D55E00"}
    figure.add_scatter(x=[i * (window - 1) for i in range(L + 1)], y=list(range(L + 1)), mode="markers", marker=bound)
    figure.update_xaxes(range=[-0.5, D - 0.5], showgrid=False)
    figure.update_yaxes(range=[-0.5, L + 0.5], dtick=1, showgrid=False)
    figure.update_layout(showlegend=False)
    told = ", ".join(f"{distance} after layer {layer}" for layer, distance in enumerate(furthest) if layer)
    return described(
        figure,
        f"Heat map of the change against distance and layer, W = {window}. It is felt up to a distance of {told}; "
        "crosses mark layers times (W - 1).",
    )


def gaps(errors: Mapping[str, Tensor]) -> go.Figure:
    """Relative difference of the logits between decoding and the parallel forward at each token, on a logarithmic axis.

    Args:
        errors: which decoding -> [T].
    """
    if not errors or any(x.ndim != 1 or len(x) == 0 for x in errors.values()):
        raise ValueError("gaps needs at least one series of shape [T], T ≥ 1")
    figure = new_figure("Decoding against the parallel form", "t (tokens)", "relative difference")
    for i, (name, values) in enumerate(errors.items()):
        shown = values.clamp(min=1e-9).tolist()
        figure.add_scatter(x=list(range(1, len(values) + 1)), y=shown, name=name, mode="lines", line=line(i))
    figure.update_yaxes(type="log", exponentformat="e", dtick=2)
    figure.update_layout(margin_l=75)
    told = "; ".join(f"{name} {x.max():.1e} at the most" for name, x in errors.items())
    return described(figure, f"Relative difference of the logits against t: {told}.")


def loss_by_window(windows: Sequence[int], losses: Mapping[str, Sequence[float]], teacher: float) -> go.Figure:
    """Held-out loss of models that see W tokens, against W; dotted, the teacher, which sees everything.

    Args:
        losses: name -> one loss for each W.
    """
    if not losses or not len(windows):
        raise ValueError("nothing to draw: give at least one series and one window")
    figure = new_figure("How much of the loss is local?", "window W (tokens)", "loss (nats per token)")
    for i, (name, values) in enumerate(losses.items()):
        if len(values) != len(windows):
            raise ValueError(f"{name!r} has {len(values)} losses for {len(windows)} windows; they must be as many")
        figure.add_scatter(x=list(windows), y=list(values), name=name, line=line(i + 1), marker=marker(i + 1))
    figure.add_hline(y=teacher, line_dash="dot", annotation_text="teacher", annotation_position="bottom left")
    figure.update_xaxes(type="log", tickvals=list(windows))
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=True)
    told = "; ".join(f"{name} {', '.join(f'{x:.2f}' for x in values)}" for name, values in losses.items())
    return described(
        figure, f"Loss against windows of {', '.join(map(str, windows))} tokens: {told}. The teacher has {teacher:.2f}."
    )
