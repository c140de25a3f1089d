"""A memory that corrects itself (chapter 11): crowded keys, the size of a step, substitution against powers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from liger_mini.teaching.counting import check_series
from liger_mini.teaching.figures.theme import described, line, marker, new_figure


def errors_by_facts(stored: Sequence[int], errors: Mapping[str, Sequence[float]], *, unit: str) -> go.Figure:
    """How wrong a recalled value is against the number of facts in one state, both on log axes.

    Args:
        stored: n of each point. errors: way of writing -> an error for each n, above 0. unit: what is drawn upwards.
    """
    check_series(stored, errors)
    figure = new_figure("Facts in one state", "stored facts n (log)", f"{unit} (log)")
    for i, (name, values) in enumerate(errors.items()):
        figure.add_scatter(x=list(stored), y=list(values), name=name, line=line(i), marker=marker(i))
    figure.update_xaxes(type="log", tickvals=list(stored))
    figure.update_yaxes(type="log")
    told = "; ".join(f"{name} {values[0]:.2f} to {values[-1]:.2f}" for name, values in errors.items())
    return described(figure, f"Lines of the {unit} from n = {stored[0]} to {stored[-1]} stored facts: {told}.")


def repeated_writes(errors: Sequence[float], step: float) -> go.Figure:
    """What is still wrong for one key after each of several writes of the same value, on a log axis.

    Args:
        errors: ‖v - k S‖ / ‖v‖ before the first write and after each. step: β ‖k‖² of every write.
    """
    writes = list(range(len(errors)))
    figure = new_figure(f"The same fact again and again, β‖k‖² = {step:g}", "writes", "‖v - k S‖ / ‖v‖ (log)")
    figure.add_scatter(x=writes, y=list(errors), line=line(1), marker=marker(1), name="error")
    bound = {"color": "#888888", "dash": "dot", "width": 1}
    figure.add_hline(y=1, line=bound, annotation_text="as wrong as an empty state", annotation_position="top right")
    figure.update_yaxes(type="log", range=[-4.2, 4.2], tickvals=[1e-4, 1e-2, 1, 1e2, 1e4], exponentformat="power")
    return described(
        figure,
        f"A line of the error against writes with β‖k‖² = {step:g}: from {errors[0]:.2g} to {errors[1]:.2g} after one write "
        f"and {errors[-1]:.2g} after {writes[-1]}.",
    )


def largest_entries(lengths: Sequence[int], sizes: Mapping[str, Sequence[float]]) -> go.Figure:
    """The largest entry of a matrix, and of what its inverse is made from, against the length of the chunk.

    Args:
        lengths: C of each point. sizes: what -> a size for each C, above 0.
    """
    check_series(lengths, sizes)
    figure = new_figure("Two ways to the same inverse", "chunk length C (tokens)", "largest entry (log)")
    for i, (name, values) in enumerate(sizes.items()):
        figure.add_scatter(x=list(lengths), y=list(values), name=name, line=line(i), marker=marker(i))
    exact = {"color": "#888888", "dash": "dot", "width": 1}
    words = "float32 has no digit left for ±1"
    figure.add_hline(y=2**24, line=exact, annotation_text=words, annotation_position="top left")
    figure.update_yaxes(type="log", exponentformat="power")
    figure.update_xaxes(tickvals=list(lengths))
    told = "; ".join(f"{name} {values[0]:.1e} to {values[-1]:.1e}" for name, values in sizes.items())
    return described(figure, f"Lines of the largest entry from C = {lengths[0]} to {lengths[-1]}: {told}.")
