"""What a conversion keeps and what it breaks (chapter 07)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from torch import Tensor

from liger_mini.teaching.counting import parameters_by_kind
from liger_mini.teaching.figures.theme import bar, described, line, marker, new_figure


def parameters_before_and_after(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> go.Figure:
    """Bars of how many parameters each kind of module holds, before and after a conversion.

    Args:
        before, after: name -> tensor of any shape.
    Raises:
        ValueError: one of them is empty.
    """
    if not before or not after:
        raise ValueError("no parameters: give dict(model.named_parameters()) from before and from after linearize")
    figure = new_figure("The same parameters, kind by kind", "parameters (thousands)", None, height=460)
    told = []
    for i, (name, state) in enumerate({"before": before, "after": after}.items()):
        kinds = parameters_by_kind(state)
        figure.add_bar(y=list(kinds), x=[n / 1e3 for n in kinds.values()], name=name, orientation="h", marker=bar(i))
        told.append(f"{name} {sum(kinds.values()):,} in {len(state)} tensors")
    figure.update_layout(barmode="group")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return described(figure, f"Bars of parameters by kind of module, before and after. In all: {'; '.join(told)}.")


def loss_after_conversion(
    losses: Mapping[str, float], *, references: Mapping[str, float], title: str = "Right after conversion"
) -> go.Figure:
    """A bar for each converted model's held-out loss, and a vertical line for each reference.

    Args:
        losses: name -> loss in nats per token. references: the same, for example of the teacher.
    Raises:
        ValueError: nothing to show, or a loss that is not finite.
    """
    if not losses:
        raise ValueError("no loss to show: give at least one, for example {'gla': 7.6}")
    for name, value in {**losses, **references}.items():
        if not math.isfinite(value):
            raise ValueError(f"the loss of {name!r} is {value}; allowed are finite numbers (nats per token)")
    figure = new_figure(title, "loss (nats per token)", None, height=210 + 30 * len(losses))
    figure.add_bar(
        y=list(losses),
        x=list(losses.values()),
        orientation="h",
        marker=bar(6),
        text=[f"{value:.2f}" for value in losses.values()],
        textposition="outside",
        cliponaxis=False,
        showlegend=False,
    )
    for i, (name, value) in enumerate(references.items()):
        ends = [next(iter(losses)), next(reversed(list(losses)))]
        figure.add_scatter(
            x=[value] * 2, y=ends, name=f"{name} {value:.2f}", mode="lines+markers", line=line(2 * i), marker=marker(i)
        )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(range=[0, 1.15 * max(*losses.values(), *references.values(), 0)])
    told = ", ".join(f"{name} {value:.2f}" for name, value in losses.items())
    beside = "".join(f" {name}: {value:.2f}." for name, value in references.items())
    return described(figure, f"Bars of held-out loss in nats per token: {told}.{beside}")


def next_token(
    tokens: Sequence[str], teacher: Sequence[float], converted: Sequence[float], *, name: str, loss: float
) -> go.Figure:
    """What two models expect next: bars over the teacher's favourite tokens.

    Args:
        tokens: labels. teacher, converted: each one's probability. name: of the converted model.
        loss: nats the converted model would pay for the teacher's first choice, ``tokens[0]``.
    Raises:
        ValueError: lengths that differ, or a number that is no probability.
    """
    if not len(tokens) == len(teacher) == len(converted):
        raise ValueError(
            f"{len(tokens)} tokens, {len(teacher)} and {len(converted)} probabilities; all must be as many"
        )
    if not all(0 <= p <= 1 for p in (*teacher, *converted)):
        raise ValueError("a probability outside 0 to 1: apply softmax to the logits first")
    figure = new_figure(f"{name}: {loss:.2f} nats", "next token", "probability")
    for i, (model, values) in enumerate({"teacher": teacher, "converted": converted}.items()):
        figure.add_bar(x=list(range(len(tokens))), y=list(values), name=model, marker=bar(i))
    figure.update_xaxes(tickvals=list(range(len(tokens))), ticktext=list(tokens))
    figure.update_yaxes(range=[0, 1.05])
    figure.update_layout(barmode="group", legend={"y": 1, "yanchor": "bottom"}, margin={"t": 80})
    return described(
        figure,
        f"Probability of the next token, {name}. The teacher gives {tokens[0]!r} {teacher[0]:.2f}, "
        f"the converted model {converted[0]:.2f}, a loss of {loss:.2f} nats.",
    )


def cache_growth(contexts: Sequence[int], kept: Mapping[str, Sequence[int]]) -> go.Figure:
    """Bytes a decode cache holds against the length of the context, one line per model, both axes logarithmic.

    Args:
        contexts: lengths in tokens, rising, > 0. kept: name -> bytes at each of them.
    Raises:
        ValueError: lengths that do not fit the contexts, or contexts that do not rise.
    """
    if list(contexts) != sorted(set(contexts)) or not contexts or contexts[0] < 1:
        raise ValueError(f"contexts = {list(contexts)}: allowed are rising whole numbers ≥ 1")
    for name, values in kept.items():
        if len(values) != len(contexts):
            raise ValueError(f"{name!r} has {len(values)} values for {len(contexts)} contexts")
    figure = new_figure("What the cache keeps", "context (tokens)", "cache (KiB)")
    for i, (name, values) in enumerate(kept.items()):
        figure.add_scatter(
            x=list(contexts),
            y=[value / 1024 for value in values],
            name=name,
            mode="lines+markers",
            line=line(i),
            marker=marker(i),
        )
    powers = [4**n for n in range(12) if contexts[0] <= 4**n <= contexts[-1]]
    figure.update_xaxes(type="log", tickvals=powers or list(contexts), ticktext=[f"{p:,}" for p in powers or contexts])
    figure.update_yaxes(type="log", dtick=1, automargin=True)
    told = "; ".join(f"{name} from {values[0]:,} to {values[-1]:,} bytes" for name, values in kept.items())
    return described(figure, f"Cache size against context, {contexts[0]:,} to {contexts[-1]:,} tokens. {told}.")
