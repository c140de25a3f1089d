"""Loss, recall and branches: what a recovery is judged by (chapters 00, 08, 09)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from liger_mini.evaluation.measure import Report
from liger_mini.teaching.figures.theme import add_bars, described, line, marker, new_figure


def loss_curves(curves: Mapping[str, Sequence[tuple[int, float]]], *, teacher_loss: float | None = None) -> go.Figure:
    """Training loss against optimizer step, one line a run; dashed, what the teacher scores on such rows."""
    figure = new_figure("Recovery: the loss while LoRA trains", "optimizer step", "training loss (nats per token)")
    for i, (name, points) in enumerate(curves.items()):
        steps, losses = zip(*points)
        figure.add_scatter(x=steps, y=losses, name=name, mode="lines", line=line(i + 1))
    if teacher_loss is not None:
        figure.add_hline(y=teacher_loss, line_dash="dot", annotation_text="teacher, held out")
    ends = "; ".join(f"{name} from {points[0][1]:.2f} to {points[-1][1]:.2f}" for name, points in curves.items())
    return described(figure, f"Line chart of training loss against step: {ends} nats per token.")


def losses(reports: Mapping[str, Report]) -> go.Figure:
    """Held-out loss of each model on the two corpora."""
    figure = new_figure("Held-out loss: lost, and won back", None, "loss (nats per token)")
    for i, (corpus, values) in enumerate(
        {
            "tinyworld": [r.loss_tinyworld for r in reports.values()],
            "Python docs": [r.loss_pydocs for r in reports.values()],
        }.items()
    ):
        add_bars(figure, i + 1, corpus, list(reports), values, 2)
    figure.update_layout(barmode="group")
    told = "; ".join(f"{name} {r.loss_tinyworld:.2f} and {r.loss_pydocs:.2f}" for name, r in reports.items())
    return described(figure, f"Bars of held-out loss on tinyworld and the Python docs: {told}.")


def recall_by_distance(reports: Mapping[str, Report]) -> go.Figure:
    """Recall against how far back the answer was told, with the window and its stacked reach marked."""
    figure = new_figure("Recall by distance", "distance, up to (tokens)", "share of answers right")
    figure.update_xaxes(rangemode="tozero")
    for i, (name, report) in enumerate(reports.items()):
        bins = [(high, r) for high, r in report.recall_by_distance if r.questions >= 20]
        figure.add_scatter(
            x=[high for high, _ in bins],
            y=[r.recall for _, r in bins],
            error_y={"array": [1.96 * r.standard_error for _, r in bins], "thickness": 1},
            customdata=[(r.questions, r.chance) for _, r in bins],
            hovertemplate="%{y:.2f} of %{customdata[0]} questions (guessing: %{customdata[1]:.2f})",
            name=name,
            line=line(i),
            marker=marker(i),
        )
    report = next(iter(reports.values()))
    bins = [(high, r) for high, r in report.recall_by_distance if r.questions >= 20]
    figure.add_scatter(
        x=[high for high, _ in bins],
        y=[r.chance for _, r in bins],
        name="guessing among the story's values",
        line={"color": "#888888", "dash": "dot", "width": 1},
        mode="lines",
    )
    figure.add_vline(
        x=report.window, line_width=1, annotation_text=f"window {report.window}", annotation_position="top left"
    )
    figure.add_vline(
        x=report.reach + 1, line_width=1, annotation_text=f"reach {report.reach}", annotation_position="top right"
    )
    figure.update_yaxes(range=[0, 1.15])  # room for the words at the lines
    told = "; ".join(
        f"{name} {r.recall_inside:.2f} inside and {r.recall_outside:.2f} outside" for name, r in reports.items()
    )
    return described(figure, f"Line chart of recall against distance. Inside the window and outside its reach: {told}.")


def branch_bars(ablations: Mapping[str, Mapping[str, Report]]) -> go.Figure:
    """Loss, and below it recall outside the reach with its standard error: both branches, one or neither, for each model.

    The numbers stand above the bars of up to two models; more would overlap on a narrow page.
    """
    figure = new_figure("Which branch carries it?", None, None, height=600)
    make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08, figure=figure)
    told, few = [], len(ablations) <= 2
    for i, (name, reports) in enumerate(ablations.items()):
        branches, values = list(reports), list(reports.values())
        losses, recalls = [r.loss for r in values], [r.recall_outside for r in values]
        errors, inside = zip(*((r.recall["outside"].standard_error, r.recall_inside) for r in values))
        group = {"legendgroup": name, "offsetgroup": name, "cliponaxis": False, "col": 1}
        small = {"textfont": {"size": 11}, **group}
        add_bars(figure, i + 1, name, branches, losses, 2, textangle=0, row=1, **small)
        hover = {"customdata": inside, "hovertemplate": "recall outside %{y:.2f}, inside %{customdata:.2f}"}
        below = {"error_y": {"array": errors, "thickness": 1.5}, "showlegend": False, "row": 2}
        add_bars(figure, i + 1, name, branches, recalls, 2, **hover, **below, **group)
        ends, words = [r + error for r, error in zip(recalls, errors)], [f"{r:.2f}" for r in recalls]
        above = {"mode": "text", "textposition": "top center", "hoverinfo": "skip", "showlegend": False, "row": 2}
        figure.add_scatter(x=branches, y=ends, text=words, visible=few, **above, **small)
        told.append(f"{name}: " + ", ".join(f"{b} {x:.2f} and {r:.2f}" for b, x, r in zip(branches, losses, recalls)))
    below = {"type": "bar", "yaxis": "y2"}  # its numbers stand above the error bars
    figure.update_traces(textposition="none", selector=below if few else {"type": "bar"})
    ticks = {"tickvals": branches, "ticktext": [branch.replace(" ", "<br>") for branch in branches]}
    figure.update_xaxes(tickangle=0, tickfont={"size": 11}, **ticks)
    figure.update_yaxes(title="loss (nats per token)", rangemode="tozero", row=1)
    figure.update_yaxes(title="recall outside (share)", range=[0, 1.1], row=2)
    figure.update_layout(barmode="group", scattermode="group", bargap=0.1, scattergap=0.1, legend_y=-0.18)
    what = "of recall outside the windows' reach, with both branches, one, or neither"
    return described(figure, f"Bars of held-out loss, and below them {what}. Loss and recall: {'; '.join(told)}.")
