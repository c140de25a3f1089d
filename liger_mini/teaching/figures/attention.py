"""Attention as a recurrence: what it costs, what its state holds, and what it loses (chapter 01)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from torch import Tensor

from liger_mini.teaching.counting import check_series, exponent
from liger_mini.teaching.figures.theme import SIGNED, bar, described, line, log_ticks, marker, new_figure


def growth(lengths: Sequence[int], series: Mapping[str, Sequence[float]], *, title: str, unit: str) -> go.Figure:
    """What grows with the number of tokens T, on two logarithmic axes: slope 1 is linear, slope 2 quadratic.

    Args:
        lengths: T of each point. series: name -> a positive value for each T. title, unit: of the vertical axis.
    """
    check_series(lengths, series)
    figure = new_figure(title, "T (tokens)", unit)
    figure.update_xaxes(type="log", tickvals=list(lengths))
    told = []
    for i, (name, values) in enumerate(series.items()):
        figure.add_scatter(x=list(lengths), y=list(values), name=name, line=line(i), marker=marker(i))
        told.append(
            f"{name} {_number(values[0])} to {_number(values[-1])}, as T to the {exponent(lengths, values):.2f}"
        )
    log_ticks(figure)
    return described(figure, f"{title}, {unit}, from T = {lengths[0]} to {lengths[-1]}: {'; '.join(told)}.")


def state_stream(state: Tensor, scores: Tensor, names: Sequence[str], values: Sequence[str]) -> go.Figure:
    """The state after t facts, and below it what each key asked for finds: a right answer is on the diagonal.

    Args:
        state: S_t [K, V]. scores: [t, t], score of stored value j when asked with key i.
        names, values: labels of all facts, stored or to come; at least t.
    """
    n, t = len(names), len(scores)
    if state.ndim != 2 or scores.shape != (t, t) or len(values) != n or not 1 <= t <= n:
        raise ValueError(
            f"state has shape {tuple(state.shape)}, scores {tuple(scores.shape)}, with {n} names and {len(values)} "
            "values; needed are state [K, V], scores [t, t], and as many names as values, at least t of each, t ≥ 1"
        )
    best = scores.argmax(1).tolist()
    right = sum(found == i for i, found in enumerate(best))
    title = f"Facts stored t = {t}, found {right}"
    figure = new_figure(title, None, None, height=520).set_subplots(
        2, 1, row_heights=[0.34, 0.66], vertical_spacing=0.2
    )
    shown = [row + [None] * (n - t) for row in scores.tolist()] + [[None] * n] * (n - t)
    look = {"colorscale": SIGNED, "zmid": 0, "zmin": -1.5, "zmax": 1.5}
    figure.add_heatmap(z=state.tolist(), **look, showscale=False, row=1, col=1)
    figure.add_heatmap(z=shown, x=list(values), y=list(names), **look, colorbar={"len": 0.55, "y": 0.24}, row=2, col=1)
    chosen = {"symbol": "circle-open", "size": 10, "color": "#000000", "line": {"width": 2}}
    figure.add_scatter(x=[values[j] for j in best], y=list(names[:t]), mode="markers", marker=chosen, row=2, col=1)
    _stream_axes(figure, names, values)
    size = f"{state.shape[0]} x {state.shape[1]} state"
    return described(
        figure,
        f"Two heat maps. Above, the {size} after {t} facts, its largest entry {state.abs().max():.2f}. Below, the score "
        f"of every stored value for every key; circles mark the highest in each row, right for {right} of {t}.",
    )


def _stream_axes(figure: go.Figure, names: Sequence[str], values: Sequence[str]) -> None:
    figure.update_yaxes(title="key channel", row=1)
    figure.update_xaxes(title="value channel", row=1)
    figure.update_yaxes(title="asked for", row=2, categoryorder="array", categoryarray=list(names), dtick=1)
    figure.update_xaxes(row=2, categoryorder="array", categoryarray=list(values), dtick=1, tickangle=-60)
    small = {"showgrid": False, "tickfont": {"size": 11}, "title_font": {"size": 12}, "title_standoff": 4}
    figure.update_yaxes(autorange="reversed", **small)
    figure.update_xaxes(**small)
    figure.update_layout(showlegend=False, margin={"l": 70, "b": 70})


def interference(stored: Sequence[int], errors: Mapping[str, Sequence[float]], width: int) -> go.Figure:
    """Relative error of a recalled value against the number of facts in one state; dotted, √((n-1)/K).

    Args:
        stored: n of each point. errors: kind of memory -> an error for each n. width: K.
    """
    check_series(stored, errors)
    if width < 1:
        raise ValueError(f"width = {width}: allowed are whole numbers ≥ 1")
    figure = new_figure(f"Facts in one state, K = {width}", "stored facts n", "error / length of the value")
    for i, (name, values) in enumerate(errors.items()):
        figure.add_scatter(x=list(stored), y=list(values), name=name, line=line(i), marker=marker(i))
    theory = [math.sqrt((n - 1) / width) for n in stored]
    dotted = {"color": "#888888", "dash": "dot", "width": 1}
    figure.add_scatter(x=list(stored), y=theory, name="√((n-1)/K)", mode="lines", line=dotted)
    figure.add_vline(x=width, line_width=1, annotation_text=f"K = {width}", annotation_position="top left")
    told = "; ".join(f"{name} {values[0]:.2f} to {values[-1]:.2f}" for name, values in errors.items())
    return described(figure, f"Error of recall from n = {stored[0]} to {stored[-1]} stored facts, K = {width}: {told}.")


def total_weight(weights: Mapping[str, Tensor]) -> go.Figure:
    """The sum of the weights a query puts on all values so far, against t; a softmax would keep it at 1.

    Args:
        weights: kind of memory -> [T].
    """
    check_series(range(len(next(iter(weights.values()), ()))), weights)
    figure = new_figure("Without a denominator the weights add up", "t (tokens)", "sum of weights")
    for i, (name, values) in enumerate(weights.items()):
        figure.add_scatter(
            x=list(range(1, len(values) + 1)), y=values.tolist(), name=name, mode="lines", line=line(i + 1)
        )
    figure.add_hline(
        y=1,
        line={"color": "#888888", "dash": "dot", "width": 1},
        annotation_text="softmax: 1",
        annotation_position="bottom right",
    )
    told = "; ".join(f"{name} {values[-1]:.2f}" for name, values in weights.items())
    return described(figure, f"Sum of the weights against t. At the last token: {told}. Softmax stays at 1.")


def key_overlap(cosines: Mapping[str, Sequence[float]]) -> go.Figure:
    """Mean cosine between the keys of different tokens, for each layer.

    Args:
        cosines: "keys" or "φ(keys)" -> one value per layer.
    """
    layers = range(len(next(iter(cosines.values()), ())))
    check_series(layers, cosines)
    figure = new_figure("How alike are a teacher's keys?", "layer", "mean cosine of two keys")
    for i, (name, values) in enumerate(cosines.items()):
        text = [f"{v:.2f}" for v in values]
        figure.add_bar(x=[str(j) for j in layers], y=list(values), name=name, marker=bar(i + 1), text=text)
    figure.update_traces(textposition="outside", textfont={"size": 11})
    figure.update_xaxes(type="category")
    figure.update_yaxes(range=[min(0, *(v for values in cosines.values() for v in values)), 1.15])
    told = "; ".join(f"{name} {', '.join(f'{v:.2f}' for v in values)}" for name, values in cosines.items())
    return described(figure, f"Bars of the mean cosine between keys of different tokens, layer by layer: {told}.")


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
