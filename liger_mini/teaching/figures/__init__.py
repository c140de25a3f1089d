"""Plotly figures of the course, one module a topic, one theme."""

from liger_mini.teaching.figures.course import course_map
from liger_mini.teaching.figures.display import alt_text, as_html
from liger_mini.teaching.figures.recovery import branch_bars, loss_curves, losses, recall_by_distance
from liger_mini.teaching.figures.theme import with_slider

__all__ = [
    "alt_text",
    "as_html",
    "branch_bars",
    "course_map",
    "loss_curves",
    "losses",
    "recall_by_distance",
    "with_slider",
]
