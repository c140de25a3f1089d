"""Loss, recall and branches: what a recovery is judged by (chapters 00, 08, 09)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

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
    figure = new_figure("Recall by distance", "distance (tokens, upper edge of the bin)", "share of answers right")
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
    """Recall outside the reach and loss, with one branch or both, for each model."""
    figure = new_figure("Which branch carries it?", None, "loss (nats per token)")
    for i, (name, reports) in enumerate(ablations.items()):
        values = [r.loss for r in reports.values()]
        recalls = [(r.recall_inside, r.recall_outside) for r in reports.values()]
        hover = "loss %{y:.3f}<br>recall inside %{customdata[0]:.2f}, outside %{customdata[1]:.2f}"
        add_bars(figure, i + 1, name, list(reports), values, 2, customdata=recalls, hovertemplate=hover)
    figure.update_layout(barmode="group")
    told = "; ".join(
        f"{name}: " + ", ".join(f"{branch} {r.loss:.2f}" for branch, r in reports.items())
        for name, reports in ablations.items()
    )
    return described(figure, f"Bars of held-out loss with both branches, one, or neither. {told}.")
