"""Which branch works: retention, half-life against window, ablations over seeds, remedies, needles (chapters 08, 09)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from liger_mini.teaching.figures.theme import POSITIVE, add_bars, bar, described, line, marker, new_figure


def retention(scores: Mapping[str, tuple[tuple[float, float], tuple[float, float]]]) -> go.Figure:
    """What linearizing keeps, average without MMLU beside MMLU.

    Args:
        scores: model -> ((teacher, linearized) without MMLU, (teacher, linearized) on MMLU), in percent.
    """
    figure = new_figure("What survives linearization", None, "share of the teacher's score (%)")
    told = []
    for i, (name, column) in enumerate({"average without MMLU": 0, "MMLU": 1}.items()):
        kept = [100 * pair[column][1] / pair[column][0] for pair in scores.values()]
        add_bars(figure, i + 1, name, list(scores), kept, 0)
        told.append(f"{name}: " + ", ".join(f"{model} {x:.0f} %" for model, x in zip(scores, kept)))
    figure.update_layout(barmode="group")
    figure.update_yaxes(range=[0, 115])
    return described(figure, f"Bars of the share of the teacher's score that is kept. {'; '.join(told)}.")


def half_life_and_window(temper: float, window: int) -> go.Figure:
    """What a neutral gate still holds after so many tokens, and how far windows see.

    Args:
        temper: half-life in tokens. window: W in tokens.
    Raises:
        ValueError: a temper or window that is not positive.
    """
    if temper <= 0 or window < 1:
        raise ValueError(f"temper = {temper}, window = {window}: allowed are tempers > 0 and windows ≥ 1")
    ages = list(range(257))  # the embedded teacher's context
    left = [0.5 ** (age / temper) for age in ages]
    figure = new_figure(f"Half-life {temper:g}, window {window}", "age of a fact (tokens)", "share left in the state")
    figure.add_scatter(
        x=[0, window, window, 0], y=[0, 0, 1, 1], fill="toself", name="window", mode="lines", line=line(6)
    )
    figure.add_scatter(x=ages, y=left, name="recurrence", mode="lines", line=line(2))
    figure.add_scatter(x=[window] * 2, y=[0, 1], name="window's end", mode="lines", line=line(4))
    figure.update_yaxes(range=[0, 1.05])
    told = f"With half-life {temper:g}, {0.5 ** (window / temper):.0%} of a fact is left after {window} tokens"
    return described(figure, f"{told}, where windows of {window} end. After {ages[-1]} tokens it is {left[-1]:.0%}.")


def spread_bars(
    summaries: Mapping[str, Mapping[str, Sequence[float]]], what: str, unit: str, *, title: str
) -> go.Figure:
    """Mean and standard deviation over seeds of one number, a bar a variant.

    Args:
        summaries: variant -> {number: (mean, standard deviation)}, as in the ablation's JSON. what: which number.
    Raises:
        ValueError: a number that the summaries do not have.
    """
    for variant, numbers in summaries.items():
        if what not in numbers:
            raise ValueError(f"{variant!r} has no {what!r}: there are {', '.join(map(repr, numbers))}")
    figure = new_figure(title, unit, None, height=140 + 26 * len(summaries))
    means, spreads = zip(*(numbers[what] for numbers in summaries.values()))
    figure.add_bar(
        x=means,
        y=list(summaries),
        orientation="h",
        marker=bar(1),
        error_x={"array": spreads, "thickness": 1.5},
        text=[f"{mean:.2f}" for mean in means],
        textposition="inside",
        insidetextanchor="start",
        showlegend=False,
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    told = "; ".join(f"{name} {mean:.2f} ± {spread:.2f}" for name, mean, spread in zip(summaries, means, spreads))
    return described(figure, f"Bars of {unit}, mean and standard deviation over seeds. {told}.")


def remedies(rows: Sequence[Mapping[str, Any]], teacher: float) -> go.Figure:
    """Recall outside against training steps, transfer included, one dot a recovery.

    Args:
        rows: name, steps (transfer and all), outside (both branches), window_only. teacher: its recall outside.
    """
    figure = new_figure("Making the recurrence work", "training steps, transfer included", "recall outside")
    families = dict.fromkeys(row["structure"] for row in rows)
    for i, family in enumerate(families):
        mine = [row for row in rows if row["structure"] == family]
        figure.add_scatter(
            x=[row["steps"] for row in mine],
            y=[row["outside"] for row in mine],
            mode="markers",
            name=family,
            marker={**marker(i, 11), "color": line(i)["color"]},
            hovertext=[row["name"] for row in mine],
        )
    figure.add_hline(y=teacher, line_dash="dot", annotation_text=f"teacher {teacher:.2f}")
    highest = max(row["window_only"] for row in rows)
    figure.add_hline(y=highest, line_dash="dash", annotation_text=f"window only, at most {highest:.2f}")
    figure.update_yaxes(range=[0, 1.08])
    best = max(rows, key=lambda row: row["outside"])
    return described(
        figure,
        f"Dots of recall outside against steps for {len(rows)} recoveries. The best is {best['name']}: {best['outside']:.2f} "
        f"after {best['steps']} steps; the teacher {teacher:.2f}; with the window only at most {highest:.2f}.",
    )


def needles(rows: Sequence[Mapping[str, Any]], *, title: str) -> go.Figure:
    """Share of needles found for each context length and depth.

    Args:
        rows: as `liger_mini.needle.needle` returns them.
    """
    lengths, depths = sorted({row["length"] for row in rows}), sorted({row["depth"] for row in rows})
    found = {(row["length"], row["depth"]): row["found"] for row in rows}
    figure = new_figure(title, "context length (tokens)", "depth (0 start, 1 end)", height=320)
    share = [[found[length, depth] for length in lengths] for depth in depths]
    figure.add_heatmap(
        x=[f"{length:,}" for length in lengths],
        y=[str(depth) for depth in depths],
        z=share,
        zmin=0,
        zmax=1,
        colorscale=POSITIVE,
        text=[[f"{x:.2f}" for x in row] for row in share],
        texttemplate="%{text}",
        colorbar={"title": "found"},
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    mean = {length: sum(found[length, depth] for depth in depths) / len(depths) for length in lengths}
    told = ", ".join(f"{length:,} tokens {share:.2f}" for length, share in mean.items())
    return described(figure, f"Heat map of the share of needles found, mean over depths: {told}.")
