"""What should come out of a task, drawn without a kernel: a small SVG in the statement."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import torch
from torch import Tensor

from liger_mini.teaching.exercises.task import Draw, Task

POSITIVE, NEGATIVE = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermilion
SHADES = 16  # so few that the last digit of another machine does not show
NUMBERED = 10  # columns: more are drawn without their numbers


def picture(task: Task) -> str:
    """Markdown: the expected output of the first case of seed 0, and what the case is called with.

    Raises:
        ValueError: the output is not a matrix.
    """
    case = next(iter(task.inputs(Draw(0))))
    matrix = task.run(task.reference, *case.args.values())
    if not isinstance(matrix, Tensor) or matrix.ndim != 2:
        raise ValueError(f"task {task.number} has picture=True, but its output is not a matrix")
    rows, columns = matrix.shape
    what = "Blue is True." if matrix.dtype == torch.bool else "Blue is positive, orange negative, white 0."
    alt = f"A matrix of {rows} rows and {columns} columns. {what}"
    image = base64.b64encode(_svg(matrix.double()).encode()).decode()
    drawn = f'<img alt="{alt}" src="data:image/svg+xml;base64,{image}">'  # HTML: Markdown refuses this in a link
    return f"What should come out of the check's first case ({case}). {what}\n\n{drawn}"


def _svg(matrix: Tensor) -> str:
    rows, columns = matrix.shape
    side = 36 if columns <= NUMBERED else 12
    size = f'width="{columns * side + 2}" height="{rows * side + 2}"'
    drawn = '<rect width="100%" height="100%" fill="white"/>' + "".join(_squares(matrix, side))
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">{drawn}</svg>'


def _squares(matrix: Tensor, side: int) -> Iterator[str]:
    largest = matrix.abs().max().clamp(min=1e-30)
    for i, row in enumerate(matrix.tolist()):
        for j, x in enumerate(row):
            shade = round(abs(x) / largest.item() * SHADES) / SHADES
            colour = POSITIVE if x > 0 else NEGATIVE
            at = f'x="{j * side + 1}" y="{i * side + 1}" width="{side}" height="{side}"'
            yield f'<rect {at} fill="{colour}" fill-opacity="{shade:.3g}" stroke="#bbb"/>'
            if matrix.shape[1] <= NUMBERED:
                middle = f'x="{j * side + 1 + side / 2:g}" y="{i * side + side / 2 + 5:g}" text-anchor="middle"'
                ink = "white" if shade > 0.6 else "#1a1a1a"
                yield f'<text {middle} fill="{ink}">{_short(x)}</text>'


def _short(x: float) -> str:
    """Two digits; nothing for nothing."""
    text = f"{x:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text.replace("-", "−")
