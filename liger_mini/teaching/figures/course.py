"""The map of the course: which chapter needs which (chapter 00)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import plotly.graph_objects as go

from liger_mini.teaching.exercises.check import tasks
from liger_mini.teaching.figures.theme import described, new_figure


@dataclass(frozen=True)
class Chapter:
    """A chapter, the chapters it builds on, and its place on the map."""

    title: str
    needs: tuple[str, ...]
    place: tuple[float, float]


CHAPTERS = {
    "00": Chapter("quickstart", (), (0, 1)),
    "01": Chapter("attention to recurrence", ("00",), (1, 1)),
    "02": Chapter("gates from keys", ("01",), (2, 1.6)),
    "03": Chapter("gated recurrences", ("02",), (3, 1)),
    "04": Chapter("the chunked form", ("03",), (4, 0.2)),
    "05": Chapter("Triton kernels", ("04",), (5, -0.4)),
    "06": Chapter("Liger Attention", ("03",), (4, 1.8)),
    "07": Chapter("linearize a model", ("06",), (5, 2.3)),
    "08": Chapter("LoRA recovery", ("07",), (6, 1.9)),
    "09": Chapter("does the recurrence work?", ("08",), (7, 1.5)),
    "10": Chapter("speed", ("04", "06"), (6, 0.5)),
    "11": Chapter("the delta rule", ("04", "09"), (8, 0.9)),
    "12": Chapter("a language model you know", ("09", "11"), (9, 1.6)),
}


def course_map() -> go.Figure:
    """Chapters as dots, and an arrow from each to the ones that build on it. Pointing at one tells its graded tasks."""
    graded = Counter(number[:2] for number in tasks())
    figure = new_figure("The course, and what builds on what", None, None, height=400)
    for chapter in CHAPTERS.values():
        for need in chapter.needs:
            (x, y), (ax, ay) = chapter.place, CHAPTERS[need].place
            arrow = {"showarrow": True, "arrowhead": 2, "arrowcolor": "#888888", "standoff": 16, "startstandoff": 16}
            figure.add_annotation(x=x, y=y, ax=ax, ay=ay, xref="x", yref="y", axref="x", ayref="y", text="", **arrow)
    places = [chapter.place for chapter in CHAPTERS.values()]
    figure.add_scatter(
        x=[x for x, _ in places],
        y=[y for _, y in places],
        mode="markers+text",
        marker={"size": 30, "color": "#ffffff", "line": {"color": "#0072B2", "width": 2}},
        text=list(CHAPTERS),
        hovertext=[f"{chapter.title}, {graded[n]} graded tasks" for n, chapter in CHAPTERS.items()],
        hoverinfo="text",
    )
    figure.update_xaxes(visible=False, range=[-0.5, 9.5])
    figure.update_yaxes(visible=False, range=[-0.9, 2.8])
    figure.update_layout(margin={"l": 10, "r": 10, "b": 10})
    told = "; ".join(f"{n} {c.title} needs {' and '.join(c.needs)}" for n, c in CHAPTERS.items() if c.needs)
    exercises = ", ".join(f"{count} in {n}" for n, count in graded.items())
    return described(figure, f"A graph of the chapters: {told}. Graded tasks: {exercises}.")
