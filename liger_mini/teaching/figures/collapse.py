"""Which branch works: retention, half-life against window, recall of many recoveries, its price, needles (chapters 08, 09)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from liger_mini.evaluation.measure import Recall
from liger_mini.teaching.figures.theme import add_bars, add_dots, bar, described, line, marker, new_figure

GUESS = {"mode": "lines", "line": {"color": "#888888", "dash": "dot", "width": 1}}


def retention(
    scores: Mapping[str, tuple[tuple[float, float], tuple[float, float]]], *, chance: float | None = None
) -> go.Figure:
    """What linearizing keeps, average without MMLU beside MMLU.

    Args:
        scores: model -> ((teacher, linearized) without MMLU, (teacher, linearized) on MMLU), in percent.
        chance: what guessing scores on MMLU, in percent; given, a third bar shows what is kept of the rest.
    """
    figure = new_figure("What survives linearization", None, "share of the teacher's score (%)", height=460)
    short, mmlu = zip(*scores.values())
    kinds = {"average without MMLU": (short, 0.0), "MMLU": (mmlu, 0.0)}
    if chance is not None:
        kinds["MMLU above chance"] = (mmlu, chance)
    told = []
    for i, (name, (pairs, less)) in enumerate(kinds.items()):
        kept = [100 * (after - less) / (before - less) for before, after in pairs]
        add_bars(figure, i + 1, name, list(scores), kept, 0, textangle=0, cliponaxis=False, textfont={"size": 12})
        told.append(f"{name}: " + ", ".join(f"{model} {x:.0f} %" for model, x in zip(scores, kept)))
    figure.update_layout(barmode="group")
    figure.update_xaxes(tickvals=list(scores), ticktext=[name.replace("-", "<br>", 1) for name in scores], tickangle=0)
    figure.update_yaxes(range=[0 if chance is None else -60, 115])
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
    figure.add_scatter(x=[window] * 2, y=[0, 1], mode="lines", line=line(4), showlegend=False)
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
        error_x={"array": spreads, "thickness": 1.5, "color": "#666666"},
        text=[f"{mean:.2f}" for mean in means],
        textposition="inside",
        insidetextanchor="start",
        showlegend=False,
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    told = "; ".join(f"{name} {mean:.2f} ± {spread:.2f}" for name, mean, spread in zip(summaries, means, spreads))
    return described(figure, f"Bars of {unit}, mean and standard deviation over seeds. {told}.")


def recall_dots(
    series: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    title: str,
    teacher: float | None = None,
    spread: str = "standard error",
) -> go.Figure:
    """Recall outside of many models, a row each; a series is a kind of mark.

    Args:
        series: name -> {model: (recall, its spread)}. Models come in the order of the first series, the first on top.
        teacher: its recall, as a line. spread: what the error bars are.
    """
    figure = new_figure(title, "recall outside (share)", None)
    told = add_dots(figure, series)
    if teacher is not None:
        figure.add_vline(
            x=teacher,
            line_dash="dot",
            annotation_text="teacher",
            annotation_xanchor="right",
            annotation_yanchor="bottom",
        )
        told.append(f"the teacher: {teacher:.2f}")
    figure.update_xaxes(range=[-0.02, 1.04])
    return described(figure, f"Dots of recall outside, ± {spread}. {'; '.join(told)}.")


def remedies(rows: Sequence[Mapping[str, Any]], teacher: float) -> go.Figure:
    """Recall outside against training steps, transfer included, one dot a recovery.

    Structures stand a little beside each other, so that no dot hides another; the steps on hover are exact.

    Args:
        rows: name, structure, steps (transfer and all), outside (both branches), error (its standard error), window_only,
            and variation: whether something beside structure, half-life, rank and steps was changed (an open mark).
        teacher: its recall outside.
    """
    figure = new_figure("Making the recurrence work", "training steps (log)", "recall outside (share)")
    families = list(dict.fromkeys(row["structure"] for row in rows))
    for i, family in enumerate(families):
        mine = [row for row in rows if row["structure"] == family]
        shape, aside = marker(i)["symbol"], 1.03 ** (i - (len(families) - 1) / 2)
        symbols = [shape + ("-open" if row["variation"] else "") for row in mine]
        figure.add_scatter(
            x=[row["steps"] * aside for row in mine],
            y=[row["outside"] for row in mine],
            error_y={"array": [row["error"] for row in mine], "thickness": 1, "width": 2},
            mode="markers",
            name=family,
            marker={"symbol": symbols, "size": 10, "color": line(i)["color"], "line_width": 2},
            customdata=[(row["name"], row["steps"]) for row in mine],
            hovertemplate="%{customdata[0]}<br>%{y:.2f} after %{customdata[1]:,} steps",
        )
    highest = max(row["window_only"] for row in rows)
    for y, dash, words in (
        (teacher, "dot", f"teacher {teacher:.2f}"),
        (highest, "dash", f"window only ≤ {highest:.2f}"),
    ):
        figure.add_hline(y=y, line_dash=dash, annotation_text=words, annotation_position="top right")
    ticks = (300, 600, 1200, 2400)
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{n:,}" for n in ticks])
    figure.update_yaxes(range=[0, 1.12])
    figure.update_layout(height=560, legend={"y": -0.2, "entrywidth": 95, "font_size": 12})
    ranked = sorted(rows, key=lambda row: -row["outside"])
    best = [next(row for row in ranked if row["structure"] == family) for family in families]
    told = "; ".join(f"{row['name']} {row['outside']:.2f}" for row in sorted(best, key=lambda row: -row["outside"]))
    lowest = f"{ranked[-1]['name']} {ranked[-1]['outside']:.2f}"
    return described(
        figure,
        f"Dots of recall outside against steps for {len(rows)} recoveries; the teacher {teacher:.2f}, the window alone at most "
        f"{highest:.2f}. From the best down: {told}, the best of each structure; the lowest of all is {lowest}.",
    )


def losses_against_recall(
    points: Mapping[str, Mapping[str, float]], *, named: Mapping[str, str] | None = None
) -> go.Figure:
    """Loss on either corpus against recall outside, a dot a model.

    Args:
        points: model -> outside, error (its standard error), loss_tinyworld, loss_pydocs (nats per token).
        named: model -> where its name stands beside its dot ("top center", …); the others say theirs on hover.
    """
    named = named or {}
    figure = new_figure("Does remembering lower the loss?", None, None, height=620)
    titles = {"loss_tinyworld": "tinyworld", "loss_pydocs": "Python docs"}
    make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.1, figure=figure)
    recalls: dict[str, Any] = {"x": [p["outside"] for p in points.values()]}
    recalls["error_x"] = {"array": [p["error"] for p in points.values()], "thickness": 1, "color": "#888888"}
    recalls |= {"text": [name if name in named else "" for name in points], "hovertext": list(points)}
    for i, (key, corpus) in enumerate(titles.items()):
        losses = [p[key] for p in points.values()]
        dots = {"mode": "markers+text", "marker": {**marker(i + 1, 10), "color": line(i + 1)["color"]}}
        dots |= {"textposition": [named.get(name, "top center") for name in points], "textfont": {"size": 12}}
        figure.add_scatter(y=losses, name=corpus, showlegend=False, row=i + 1, col=1, **dots, **recalls)
        room = 0.2 * (max(losses) - min(losses))
        words = {
            "title": f"loss, {corpus}<br>(nats per token)",
            "range": [min(losses) - room, max(losses) + 1.5 * room],
        }
        figure.update_yaxes(row=i + 1, automargin=True, **words)
    figure.update_xaxes(range=[0, 1.45 * max(recalls["x"])])
    figure.update_xaxes(title="recall outside (share)", row=2)
    told = "; ".join(
        f"{name} {p['outside']:.2f}, {p['loss_tinyworld']:.3f} and {p['loss_pydocs']:.3f}" for name, p in points.items()
    )
    return described(
        figure, f"Dots of loss on tinyworld and on Python docs against recall outside. Recall and losses: {told}."
    )


def recall_by_rivals(models: Mapping[str, Mapping[int, Recall]]) -> go.Figure:
    """Recall outside against how many values compete, one line a model, with its standard error.

    Args:
        models: name -> {values of the relation in force, the right one included: Recall}.
    """
    figure = new_figure("The more values compete", "values in force", "recall outside (share)")
    told = []
    for i, (name, by) in enumerate(models.items()):
        errors = {"array": [r.standard_error for r in by.values()], "thickness": 1.5}
        y, hover = [r.recall for r in by.values()], [f"{r.questions} questions" for r in by.values()]
        look = {"line": line(i), "marker": marker(i), "mode": "lines+markers"}
        figure.add_scatter(x=list(by), y=y, error_y=errors, hovertext=hover, name=name, **look)
        told.append(f"{name}: " + ", ".join(f"{n}: {r.recall:.2f} ± {r.standard_error:.2f}" for n, r in by.items()))
    rivals = sorted({n for by in models.values() for n in by})
    figure.add_scatter(x=rivals, y=[1 / n for n in rivals], name="guessing one of them", **GUESS)
    figure.update_xaxes(tickvals=rivals)
    figure.update_yaxes(range=[0, 1.05])
    return described(figure, f"Lines of recall outside, ± standard error, by the number of values. {'; '.join(told)}.")


def needles_by_length(
    models: Mapping[str, Mapping[int, tuple[float, int]]], *, title: str, chance: float | None = None
) -> go.Figure:
    """Share of needles found against the length of the context, one line a model, with its standard error.

    Args:
        models: name -> {length in tokens: (share found, needles asked for)}. chance: what a blind guess would find.
    """
    figure = new_figure(title, "context length (tokens, log)", "needles found (share)")
    told, lengths = [], sorted({length for by in models.values() for length in by})
    for i, (name, by) in enumerate(models.items()):
        shares, needles = zip(*by.values())
        errors = [(x * (1 - x) / n) ** 0.5 for x, n in by.values()]
        look = {"line": line(i), "marker": marker(i), "mode": "lines+markers", "cliponaxis": False}
        hover = [f"of {n} needles" for n in needles]
        bars = {"array": errors, "thickness": 1.5}
        figure.add_scatter(x=list(by), y=shares, error_y=bars, hovertext=hover, name=name, **look)
        told.append(f"{name}: " + ", ".join(f"{length:,} tokens {x:.2f}" for length, (x, _) in by.items()))
    if chance is not None:
        figure.add_scatter(x=lengths, y=[chance] * len(lengths), name="guessing", **GUESS)
        told.append(f"guessing: {chance:.2f}")
    figure.update_xaxes(
        type="log", tickvals=lengths, ticktext=[f"{n // 1024} K" if n >= 1024 else str(n) for n in lengths]
    )
    figure.update_yaxes(range=[0, 1.05])
    return described(figure, f"Lines of the share of needles found, by length. {'; '.join(told)}.")
