"""The chunked form in pictures: triangles and rectangles, anchors, halving, overflow, cost (chapter 04)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from torch import Tensor

from liger_mini.teaching.figures.theme import COLOURS, POSITIVE, described, line, marker, new_figure

LARGEST = math.log(torch.finfo(torch.float32).max)  # 88.7: exp of more is no float32
NOT_FINITE = 100.0  # where a form that gave inf or NaN is drawn


def chunk_map(A: Tensor, C: int, t: int) -> go.Figure:
    """A [T, T], what token i reads of token j, cut into chunks of C; token t's row split into its two parts.

    Solid, the triangles inside the chunks; dashed, what each chunk reads through the state before it.

    Raises:
        ValueError: A that is not square, C or t outside 1 … T.
    """
    T = _square(A)
    for name, value in {"C": C, "t": t}.items():
        if not 1 <= value <= T:
            raise ValueError(f"{name} = {value}: allowed are 1 to T = {T}")
    starts = list(range(0, T, C))
    triangles, through = [_stairs(s, min(s + C, T)) for s in starts], [_box(s, min(s + C, T), 0, s) for s in starts[1:]]
    own = t - (t - 1) // C * C
    title = f"C = {C}: {len(starts)} steps, {_inside(T, C)} pairs in triangles"
    figure = new_figure(title, "token j, written", "token i, reads", height=480)
    _heat(figure, A, "A_ij")
    _outline(figure, triangles, "triangles", {"color": COLOURS[2], "width": 4})
    _outline(figure, through, "rectangles", {"color": COLOURS[1], "width": 3, "dash": "dash"})
    _outline(figure, [_box(t - 1, t, 0, t)], f"token {t}", {"color": COLOURS[4], "width": 3, "dash": "dot"})
    return described(
        figure,
        f"The {T} x {T} lower triangle in chunks of {C}: {len(triangles)} triangles with {_inside(T, C)} pairs, "
        f"{len(through)} rectangles with {T * (T + 1) // 2 - _inside(T, C)} pairs. "
        f"Token {t} reads {own} tokens inside its chunk and {t - own} through the state.",
    )


def anchored_exponents(b: Tensor, anchor: int) -> go.Figure:
    """Exponents b_i - b_m of the queries and b_m - b_j of the keys, for running sums of log-gates b [C] and anchor m.

    Anchor m is the sum after m tokens; 0 is the start of the chunk, where b = 0.

    Raises:
        ValueError: b that is not one row, an anchor outside 0 … C.
    """
    if b.ndim != 1:
        raise ValueError(f"b has shape {tuple(b.shape)}; it must be one row of running sums [C]")
    C = len(b)
    if not 0 <= anchor <= C:
        raise ValueError(f"anchor = {anchor}: allowed are 0 (the chunk's start) to C = {C}")
    queries = (b - (b[anchor - 1] if anchor else 0)).tolist()
    tokens = list(range(1, C + 1))
    figure = new_figure(f"Exponents, anchored after token {anchor}", "token in the chunk", "exponent (nats)")
    figure.add_scatter(x=tokens, y=queries, name="queries", mode="lines+markers", line=line(1), marker=marker(1, 6))
    keys = [-x for x in queries]
    figure.add_scatter(x=tokens, y=keys, name="keys", mode="lines+markers", line=line(2), marker=marker(2, 6))
    limit = {"color": "#555", "dash": "dot", "width": 2}
    figure.add_scatter(x=[1, C], y=[LARGEST] * 2, name=f"overflow: {LARGEST:.1f}", mode="lines", line=limit)
    reach = math.ceil(max(abs(x) for x in b.tolist()) / 10) * 10
    figure.update_yaxes(range=[-reach * 1.05, max(reach, LARGEST) * 1.05])
    over = sum(x > LARGEST for x in (*queries, *keys))
    told = f"largest exponent {max(*queries, *keys):.1f}, and {over} of {2 * C} overflow above {LARGEST:.1f}"
    return described(figure, f"Exponents of queries and keys with the anchor after token {anchor}: {told}.")


def halving_levels(C: int) -> go.Figure:
    """At which level of the halving each pair j < i is parted: 1 in the first cut of a chunk of C.

    Raises:
        ValueError: C that is not a power of two, or below 2.
    """
    if C < 2 or C & (C - 1):
        raise ValueError(f"C = {C}: allowed are powers of two from 2, so that every block halves evenly")
    depth = C.bit_length() - 1
    levels = [[depth - (i ^ j).bit_length() + 1 if j < i else None for j in range(C)] for i in range(C)]
    figure = new_figure(f"Halving a chunk of C = {C}", "token j, written", "token i, reads", height=480)
    tokens = list(range(1, C + 1))
    figure.add_heatmap(
        x=tokens,
        y=tokens,
        z=levels,
        text=[[str(x or "") for x in row] for row in levels],
        texttemplate="%{text}",
        colorscale=POSITIVE,
        reversescale=True,
        showscale=False,
        xgap=1,
        ygap=1,
        hovertemplate="i = %{y}, j = %{x}: level %{z}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", dtick=max(1, C // 8))
    figure.update_xaxes(dtick=max(1, C // 8))
    counts = [C >> level for level in range(1, depth + 1)]
    told = "; ".join(f"level {n}: {C // (2 * h)} squares of {h} x {h}" for n, h in enumerate(counts, start=1))
    return described(figure, f"Heat map of the pairs below the diagonal of a {C} x {C} matrix by level. {told}.")


def errors_by_strength(strengths: Sequence[float], errors: Mapping[str, Sequence[float]]) -> go.Figure:
    """Relative error of each form against the strength -log α of a constant gate; inf and NaN at the top edge.

    Raises:
        ValueError: a form that has not one error for each strength.
    """
    figure = new_figure("Where each form breaks", "strength −log α (nats/token)", "relative RMS error")
    told = []
    for i, (name, values) in enumerate(errors.items()):
        if len(values) != len(strengths):
            raise ValueError(f"{name}: {len(values)} errors for {len(strengths)} strengths; give one for each")
        drawn = [x if math.isfinite(x) else NOT_FINITE for x in values]
        how = {"line": line(i + 1), "marker": marker(i + 1)}
        figure.add_scatter(x=list(strengths), y=drawn, name=name, mode="lines+markers", **how)
        broken = [s for s, x in zip(strengths, values) if not math.isfinite(x)]
        told.append(f"{name} not finite from {broken[0]:.2f}" if broken else f"{name} at most {max(values):.0e}")
    figure.update_xaxes(type="log", dtick="D2")
    figure.update_yaxes(
        type="log",
        tickvals=[1e-8, 1e-6, 1e-4, 1e-2, 1, NOT_FINITE],
        ticktext=["1e-8", "1e-6", "1e-4", "0.01", "1", "inf, NaN"],
    )
    figure.update_layout(margin_l=90)
    return described(figure, f"Relative error against gate strength: {'; '.join(told)}.")


def flops_by_chunk(counts: Mapping[str, Mapping[int, float]], *, marked: int) -> go.Figure:
    """FLOPs per token and head against the chunk length: name -> {C: FLOPs}; `marked` is the package's C.

    Raises:
        ValueError: no counts.
    """
    if not counts:
        raise ValueError("no counts: give at least one line, {'diagonal': {C: FLOPs per token}}")
    figure = new_figure("Work against chunk length", "chunk length C (tokens)", "FLOPs per token and head")
    for i, (name, values) in enumerate(counts.items()):
        figure.add_scatter(
            x=list(values), y=list(values.values()), name=name, mode="lines+markers", line=line(i), marker=marker(i)
        )
    figure.add_vline(x=marked, line_width=1)
    where = {"x": math.log10(marked), "y": 1, "yref": "paper"}  # on a log axis a line takes C, a text log C
    figure.add_annotation(text=f"C = {marked}", showarrow=False, xanchor="left", xshift=4, **where)
    _log_axes(figure, sorted({C for values in counts.values() for C in values}))
    told = "; ".join(
        f"{name} {values[min(values)]:,.0f} at C = {min(values)} and {values[max(values)]:,.0f} at C = {max(values)}"
        for name, values in counts.items()
    )
    return described(figure, f"FLOPs per token and head against chunk length: {told}.")


def _log_axes(figure: go.Figure, ticks: Sequence[int]) -> None:
    """Both axes logarithmic, the x axis ticked where there are points, written as whole numbers."""
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[str(x) for x in ticks])
    figure.update_yaxes(type="log", dtick="D2")
    figure.update_layout(margin_l=80)


def _square(A: Tensor) -> int:
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"A has shape {tuple(A.shape)}; it must be square, [T, T]")
    return len(A)


def _inside(T: int, C: int) -> int:
    """Pairs j ≤ i in one chunk."""
    return sum(n * (n + 1) // 2 for n in (min(C, T - s) for s in range(0, T, C)))


def _heat(figure: go.Figure, A: Tensor, name: str) -> None:
    """The lower triangle of A in numbers and colours; tokens count from 1, the first row on top."""
    tokens = list(range(1, len(A) + 1))
    z = [[x if j <= i else None for j, x in enumerate(row)] for i, row in enumerate(A.tolist())]
    text = [["" if x is None else f"{x:.2f}" for x in row] for row in z]
    figure.add_heatmap(
        x=tokens,
        y=tokens,
        z=z,
        text=text,
        texttemplate="%{text}",
        colorscale="Greys",
        zmin=0,
        zmax=2 * max(x for row in z for x in row if x is not None),  # pale, so that outlines and numbers stand out
        showscale=False,
        hovertemplate=f"i = %{{y}}, j = %{{x}}: {name} = %{{z:.3f}}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", dtick=1, showgrid=False)
    figure.update_xaxes(dtick=1, showgrid=False, range=[0.4, len(A) + 0.6])


def _outline(figure: go.Figure, paths: Sequence[list[tuple]], name: str, how: dict) -> None:
    """Closed paths as one line trace, so that every figure has the same traces however many paths there are."""
    points = [point for path in paths for point in [*path, (None, None)]]
    x, y = zip(*points) if points else ((None,), (None,))
    figure.add_scatter(x=list(x), y=list(y), name=name, mode="lines", line=how, hoverinfo="skip")


def _box(top: int, bottom: int, left: int, right: int) -> list[tuple[float, float]]:
    """Around rows top+1 … bottom and columns left+1 … right."""
    x0, x1, y0, y1 = left + 0.5, right + 0.5, top + 0.5, bottom + 0.5
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]


def _stairs(start: int, end: int) -> list[tuple[float, float]]:
    """Around the pairs j ≤ i of tokens start+1 … end."""
    steps = [point for t in range(start, end) for point in ((t + 0.5, t + 0.5), (t + 1.5, t + 0.5))]
    return [*steps, (end + 0.5, end + 0.5), (start + 0.5, end + 0.5), (start + 0.5, start + 0.5)]
