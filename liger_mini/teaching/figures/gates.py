"""What a gate does and where it comes from (chapter 02): forgetting, distributions, pooling, what a gate depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from liger_mini import gates
from liger_mini.teaching.counting import PARTS, share_left
from liger_mini.teaching.figures.theme import POSITIVE, bar, described, line, marker, new_figure


def gate_functions(functions: Mapping[str, Callable[[Tensor], Tensor]], *, reach: float = 6) -> go.Figure:
    """α against P, one line per function.

    Args:
        functions: name -> P to α. reach: P goes from -reach to reach.
    """
    P = torch.linspace(-reach, reach, 97)
    curves = {name: function(P).tolist() for name, function in functions.items()}
    figure = new_figure("From P to a gate", "P = Pool(k)", "gate α")
    for i, (name, alpha) in enumerate(curves.items()):
        figure.add_scatter(x=P.tolist(), y=alpha, name=name, mode="lines", line=line(i))
    figure.update_yaxes(range=[0, 1.05])
    told = "; ".join(f"{name} {y[0]:.2f}, {y[48]:.2f}, {y[-1]:.2f}" for name, y in curves.items())
    return described(figure, f"Lines of the gate against P. At P = {-reach:g}, 0 and {reach:g}: {told}.")


def forgetting(
    curves: Mapping[str, Sequence[float]], ages: Sequence[int], *, window: int | None = None, title: str | None = None
) -> go.Figure:
    """Share of a write that is left against its age, one line per curve; a window is marked.

    Args:
        curves: name -> share left at each of `ages`, numbers from 0 to 1.
        window: W in tokens.
    """
    figure = new_figure(title or "How much of a write is left", "age (tokens)", "share left")
    for i, (name, shares) in enumerate(curves.items()):
        _same_length(f"curves[{name!r}]", shares, "ages", ages)
        figure.add_scatter(x=list(ages), y=list(shares), name=name, mode="lines", line=line(i))
    if window is not None:
        figure.add_vline(x=window, line_width=1, annotation_text=f"window {window}", annotation_position="top right")
    figure.update_yaxes(range=[0, 1.05])
    told = "; ".join(f"{name} {shares[-1]:.2f}" for name, shares in curves.items())
    return described(figure, f"Lines of the share left against age. After {ages[-1]} tokens: {told}.")


def remembering(
    k: Float[Tensor, "B T H K"], *, temper: float, lower_bound: float = 0.0, window: int = 64, oldest: int = 128
) -> go.Figure:
    """The share left with the gate (γ + (1 - γ) σ(k))^(1/τ): a neutral key, and the mean over the channels of real keys.

    Args:
        k: keys of one layer. temper: τ > 0. lower_bound: γ in [0, 1). oldest: the largest age shown, below T.
    """
    if not 0 < temper < math.inf:
        raise ValueError(f"temper = {temper}: allowed are numbers > 0 (half-life of a neutral gate in tokens)")
    if not 0 <= lower_bound < 1:
        raise ValueError(f"lower_bound = {lower_bound}: allowed are numbers from 0 up to, not including, 1")
    ages = range(0, oldest + 1, max(1, oldest // 32))
    neutral = gates.sigmoid_gate(torch.zeros(()), temper, lower_bound).item()
    log_gate = gates.sigmoid_gate(k, temper, lower_bound)
    curves = {
        "neutral key": [math.exp(neutral * age) for age in ages],
        "real keys": [share_left(log_gate, age).mean().item() for age in ages],
    }
    figure = forgetting(curves, ages, window=window, title="Temper τ and lower bound γ")
    figure.update_layout(legend={"y": 1.02, "yanchor": "bottom"}, margin_t=80)  # below is the slider
    at = {name: f"{shares[-1]:.2f}" for name, shares in curves.items()}
    half_life = math.log(0.5) / neutral
    return described(
        figure,
        f"Temper {temper}, lower bound {lower_bound}: the neutral half-life is {half_life:.1f} tokens; after {ages[-1]} "
        f"tokens {at['neutral key']} is left with a neutral key, {at['real keys']} with real keys.",
    )


def gate_distributions(panels: Mapping[str, Mapping[str, Tensor]], *, bins: int = 40) -> go.Figure:
    """Histograms of gates α, two panels per row: one panel per layer, one line per head (or per way to make the gate).

    Args:
        panels: title of the panel -> name of the line -> gates in [0, 1], any shape. Every panel has the same lines.
    """
    names = list(next(iter(panels.values())))
    rows = -(-len(panels) // 2)
    figure = new_figure("How the gates are spread", None, None, height=200 * rows + 120)
    make_subplots(
        rows=rows, cols=2, subplot_titles=list(panels), figure=figure, vertical_spacing=0.2, horizontal_spacing=0.17
    )
    centres = [(i + 0.5) / bins for i in range(bins)]
    for p, (panel, lines) in enumerate(panels.items()):
        if list(lines) != names:
            raise ValueError(
                f"panel {panel!r} has the lines {list(lines)}, the first one {names}; they must be the same"
            )
        for i, alpha in enumerate(lines.values()):
            counts = _histogram(alpha, bins)
            style = {"name": names[i], "legendgroup": names[i], "showlegend": p == 0, "line": line(i)}
            figure.add_scatter(x=centres, y=counts, mode="lines", row=p // 2 + 1, col=p % 2 + 1, **style)
    figure.update_xaxes(range=[0, 1])
    figure.update_xaxes(title="gate α", row=rows)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title="share of gates", col=1)
    figure.update_layout(legend_y=-0.22, margin_t=80)
    told = "; ".join(
        f"{panel}: " + ", ".join(f"{name} from {low:.2f} to {high:.2f}" for name, (low, high) in _spans(lines).items())
        for panel, lines in panels.items()
    )
    return described(figure, f"Histograms of gates; nine tenths of them lie in, {told}.")


def pooled_spread(spread: Mapping[str, Sequence[float]], widths: Sequence[int]) -> go.Figure:
    """Standard deviation of P = Pool(k) against the number of gates per head, one line per layer.

    Args:
        spread: name -> standard deviation at each of `widths`. widths: gates per head, 1 to K.
    """
    figure = new_figure(
        "Pooling pulls P to its mean", "gates per head (log scale)", "standard deviation of P", height=460
    )
    figure.update_layout(legend_y=-0.3)
    for i, (name, values) in enumerate(spread.items()):
        _same_length(f"spread[{name!r}]", values, "widths", widths)
        figure.add_scatter(x=list(widths), y=list(values), name=name, line=line(i), marker=marker(i))
    figure.update_xaxes(type="log", tickvals=list(widths), ticktext=[str(w) for w in widths])
    figure.update_yaxes(rangemode="tozero")
    told = "; ".join(f"{name} from {v[0]:.2f} to {v[-1]:.2f}" for name, v in spread.items())
    return described(
        figure, f"Lines of the standard deviation of P, from {widths[0]} to {widths[-1]} gates per head: {told}."
    )


def gates_over_tokens(
    alpha: Float[Tensor, "T K"], tokens: Sequence[str], *, title: str = "Gates, token by token"
) -> go.Figure:
    """A heat map of one head's gates: tokens from left to right, channels sorted by their mean gate.

    Args:
        alpha: gates in [0, 1]. tokens: T labels.
    """
    if alpha.ndim != 2 or len(alpha) != len(tokens):
        raise ValueError(
            f"alpha has shape {tuple(alpha.shape)}; it must be [T, K] with T = {len(tokens)}, as many as tokens"
        )
    alpha = alpha[:, alpha.mean(0).argsort()]
    figure = new_figure(title, "token", "channel (by mean gate)", height=460)
    x = list(range(len(tokens)))
    z = [[round(value, 3) for value in row] for row in alpha.T.tolist()]
    figure.add_heatmap(z=z, x=x, zmin=0, zmax=1, colorscale=POSITIVE, colorbar={"title": "α", "thickness": 12})
    figure.update_xaxes(tickvals=x, ticktext=list(tokens), tickangle=-90, tickfont={"size": 9}, showgrid=False)
    over_tokens, over_channels = alpha.std(0).mean().item(), alpha.mean(0).std().item()
    return described(
        figure,
        f"Heat map of {alpha.shape[1]} gates over {len(tokens)} tokens. A gate's standard deviation over tokens is "
        f"{over_tokens:.2f}, that of the channels' means {over_channels:.2f}.",
    )


def variance_bars(parts: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Stacked bars of `variance_parts`, one bar per name."""
    figure = new_figure("What does a gate depend on?", None, "share of the variance of P")
    for i, part in enumerate(PARTS):
        missing = [name for name, shares in parts.items() if part not in shares]
        if missing:
            raise ValueError(f"{missing[0]!r} lacks the part {part!r}; each needs {', '.join(PARTS)}")
        values = [shares[part] for shares in parts.values()]
        figure.add_bar(x=list(parts), y=values, name=part, marker=bar(i + 1))
    figure.update_layout(barmode="stack", legend_y=-0.35)
    figure.update_yaxes(range=[0, 1])
    told = "; ".join(
        f"{name}: " + ", ".join(f"{part} {shares[part]:.2f}" for part in PARTS) for name, shares in parts.items()
    )
    return described(figure, f"Stacked bars of the shares of variance. {told}.")


def _histogram(alpha: Tensor, bins: int) -> list[float]:
    """Share of the gates in each of `bins` equal bins from 0 to 1."""
    if not len(alpha) or alpha.min() < 0 or alpha.max() > 1:
        raise ValueError("gates must be at least one number, all from 0 to 1; pass α = log_gate.exp()")
    return (torch.histc(alpha.detach().float(), bins, 0, 1) / alpha.numel()).tolist()


def _spans(lines: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """The 5 % and 95 % quantiles of each line."""
    spans = {}
    for name, alpha in lines.items():
        ordered = alpha.detach().flatten().sort().values
        spans[name] = tuple(ordered[round(q * (len(ordered) - 1))].item() for q in (0.05, 0.95))
    return spans


def _same_length(name: str, values: Sequence, other: str, reference: Sequence) -> None:
    if len(values) != len(reference):
        raise ValueError(f"{name} has {len(values)} values, {other} {len(reference)}; they must be as many")
