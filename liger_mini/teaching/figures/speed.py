"""When it is faster, and when not: cost models, counters and figures of time against length (chapter 10)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from liger_mini.teaching.counting import COSTS, crossover
from liger_mini.teaching.figures.theme import described, line, log_ticks, marker, new_figure

LENGTHS = tuple(2**n for n in range(5, 17))


def cost_model(cost: str = "prefill FLOPs", width: int = 64, window: int = 64) -> go.Figure:
    """Cost per token and head against length, as the formulas have it, with their crossover.

    Args:
        cost: "prefill FLOPs" or "decode bytes". width: K = V. window: W.
    Raises:
        ValueError: another cost, or a size that is not a whole number ≥ 1.
    """
    if cost not in COSTS:
        raise ValueError(f"cost = {cost!r}: allowed are {', '.join(map(repr, COSTS))}")
    values = [COSTS[cost](T, width, window) for T in LENGTHS]
    unit = cost.split()[1]
    figure = new_figure(f"{cost}, K = {width}, W = {window}", "length T (tokens)", f"cost ({unit})", height=440)
    for i, name in enumerate(("softmax", "Liger")):
        figure.add_scatter(
            x=LENGTHS, y=[v[i] for v in values], name=name, mode="lines", line={**line(i), "simplify": False}
        )
    at = crossover(LENGTHS, [softmax / liger for softmax, liger in values])
    here = COSTS[cost](round(at), width, window)[1] if at else None
    name = f"crossover {at:,.0f}" if at else "no crossover"
    figure.add_scatter(x=[at], y=[here], name=name, mode="markers", marker={**marker(2, 12), "color": "#D55E00"})
    _log_log(figure, LENGTHS)
    figure.update_yaxes(range=[3, 8.5], dtick=1)
    figure.update_layout(legend={"orientation": "v", "x": 0.02, "y": 1, "bgcolor": "rgba(255,255,255,0.7)"})
    return described(
        figure,
        f"{cost} a token and head for K = V = {width} and a window of {window}, by formula. Softmax grows with length, "
        f"Liger does not: {values[-1][1]:,.0f} {unit}. {name[0].upper() + name[1:]}{' tokens' if at else ''}.",
    )


def time_against_length(
    lengths: Sequence[int], seconds: Mapping[str, Sequence[float]], *, title: str, per_token: bool = True
) -> go.Figure:
    """Time against length, one line per variant, both axes logarithmic.

    Args:
        lengths: tokens, rising. seconds: name -> seconds at each length. per_token: divide by the length.
    Raises:
        ValueError: lengths and times that do not fit each other.
    """
    if list(lengths) != sorted(set(lengths)) or not lengths or lengths[0] < 1:
        raise ValueError(f"lengths = {list(lengths)}: allowed are rising whole numbers ≥ 1")
    figure = new_figure(title, "length T (tokens)", "time (µs per token)" if per_token else "time (µs)")
    told = []
    for i, (name, values) in enumerate(seconds.items()):
        if len(values) != len(lengths):
            raise ValueError(f"{name!r} has {len(values)} times for {len(lengths)} lengths")
        y = [1e6 * s / (T if per_token else 1) for T, s in zip(lengths, values)]
        figure.add_scatter(x=list(lengths), y=y, name=name, mode="lines+markers", line=line(i), marker=marker(i))
        told.append(f"{name} {y[0]:.3g} at {lengths[0]:,} and {y[-1]:.3g} at {lengths[-1]:,}")
    _log_log(figure, lengths)
    log_ticks(figure)
    unit = "microseconds per token" if per_token else "microseconds"
    return described(figure, f"{title}. Line chart of time against length, {unit}: {'; '.join(told)} tokens.")


def speed_ratios(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> go.Figure:
    """How many times faster Liger is than softmax, against length; above the line at 1 it wins.

    Args:
        curves: name -> (lengths in tokens, softmax's time over Liger's).
    Raises:
        ValueError: no curve, or one that `crossover` refuses.
    """
    if not curves:
        raise ValueError("no curve: give at least one, for example {'this run': ([512, 1024], [0.4, 0.7])}")
    figure = new_figure("Where Liger begins to win", "length T (tokens)", "softmax time / Liger time", height=460)
    told, every, crossings = [], set(), []
    for i, (name, (lengths, ratios)) in enumerate(curves.items()):
        at = crossover(lengths, ratios)
        figure.add_scatter(
            x=list(lengths), y=list(ratios), name=name, mode="lines+markers", line=line(i), marker=marker(i)
        )
        ends = f"{ratios[0]:.2f} at {lengths[0]:,} tokens to {ratios[-1]:.2f} at {lengths[-1]:,}"
        told.append(f"{name}: {ends}, " + (f"crossover near {at:,.0f}" if at else "no crossover in between"))
        every |= set(lengths)
        crossings += [at] if at else []
    crossings.sort()
    figure.add_hline(y=1, line_width=2, line_color="#666666")
    figure.add_scatter(
        x=crossings,
        y=[1] * len(crossings),
        name="crossover",
        mode="markers+text",
        text=[f"{at:,.0f}" for at in crossings],
        textposition=["top center" if i % 2 else "bottom center" for i in range(len(crossings))],
        marker={"symbol": "circle-open", "size": 12, "color": "#D55E00", "line": {"width": 2}},
    )
    _log_log(figure, sorted(every))
    figure.update_yaxes(dtick=math.log10(2), tickformat=".2~f")
    return described(figure, f"Line chart of softmax's time over Liger's. {'; '.join(told)}.")


def kernel_times(rows: Sequence[Mapping[str, Any]], recurrence: str = "diagonal") -> go.Figure:
    """GPU times of a recurrence's implementations beside softmax and the window, forward, per token.

    Args:
        rows: of `liger_mini.experiments.benchmark.kernels`. recurrence: "diagonal", "scalar", "slots"
            or "delta". A row without a time is left out.
    Raises:
        ValueError: no row of that recurrence.
    """
    known = sorted({row["recurrence"] for row in rows} - {"window"})
    if recurrence not in known:
        raise ValueError(f"recurrence = {recurrence!r}: these rows have {', '.join(map(repr, known)) or 'none'}")
    chosen = [row for row in rows if row["recurrence"] in (recurrence, "window") and "forward_ms" in row]
    lengths = sorted({row["T"] for row in chosen})
    curves: dict[str, list[float]] = {}
    for name, where in {_kernel_name(row): (row["recurrence"], row["implementation"]) for row in chosen}.items():
        own = {row["T"]: row for row in chosen if (row["recurrence"], row["implementation"]) == where}
        curves[name] = [own[T]["forward_ms"][0] / 1e3 / own[T]["B"] if T in own else math.nan for T in lengths]
    return time_against_length(lengths, curves, title=f"On a GPU, forward, {recurrence}")


def _kernel_name(row: Mapping[str, Any]) -> str:
    if row["implementation"] == "liger_mini":
        return "our window" if row["recurrence"] == "window" else "our kernel"
    return "SDPA" if "SDPA" in row["implementation"] else row["implementation"]


def _log_log(figure: go.Figure, lengths: Sequence[int]) -> None:
    """Logarithmic axes with the lengths themselves as ticks, at most six of them."""
    ticks = list(lengths)[:: math.ceil(len(lengths) / 6)]
    text = [f"{T // 1024}K" if T >= 1024 and T % 1024 == 0 else f"{T:,}" for T in ticks]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=text)
    figure.update_yaxes(type="log", automargin=True)
