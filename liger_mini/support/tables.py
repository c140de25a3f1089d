"""Tables that read well in a terminal, in a notebook and in the book."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A head, rows of text with a name in front, and a caption. `print` it, or leave it as a cell's last line.

    Raises:
        ValueError: a row that has not as many cells as the head.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"the row {row} has {len(row)} cells, the head {len(self.head)}: {self.head}")

    @classmethod
    def of(cls, records: Iterable[Any], columns: Mapping[str, Callable[[Any], Any]], caption: str = "") -> Table:
        """One row a record; column name -> what it shows of a record (None: an empty cell)."""
        shown = lambda x: "" if x is None else str(x)  # noqa: E731
        rows = [[shown(show(record)) for show in columns.values()] for record in records]
        return cls(list(columns), rows, caption)

    def __str__(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(len(row[i]) for row in lines) for i in range(len(self.head))]
        first, *rest = (
            "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
            for row in lines
        )
        return "\n".join([first, "-" * len(first), *rest, *([self.caption] if self.caption else [])])

    def _repr_html_(self) -> str:
        looks = [_look(i, column) for i, column in enumerate(zip(*self.rows))] or [_look(0, ())] * len(self.head)
        tops = [(look, html.escape(cell)) for look, cell in zip(looks, self.head)]
        head = "".join(f'<th scope="col" style="{look}">{cell}</th>' if cell else "<td></td>" for look, cell in tops)
        body = "".join(
            f'<tr><th scope="row" style="{looks[0]}{_whole(name)}">{html.escape(name)}</th>'
            + "".join(
                f'<td style="{look}{_whole(cell)}">{html.escape(cell)}</td>' for look, cell in zip(looks[1:], cells)
            )
            + "</tr>"
            for name, *cells in self.rows
        )
        left_edge = "text-align:left;position:sticky;left:0;max-width:100cqw"  # of what is seen, also on a phone
        caption = f'<caption style="{left_edge}">{html.escape(self.caption)}</caption>' if self.caption else ""
        return (
            f'<div class="wide" tabindex="0" style="overflow-x:auto;container-type:inline-size"><table>{caption}'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )


SHORT, PROSE = 24, 40  # characters: what is not broken into lines, and what is read rather than compared


def _look(i: int, cells: Sequence[str]) -> str:
    """The style of a column: names and prose begin on the left, prose has room, numbers end on the right."""
    prose = max(map(len, cells), default=0) > PROSE
    side = "left" if i == 0 or prose else "right"
    return f"text-align:{side};padding:.2em .7em" + (";min-width:14em" if prose else "")


def _whole(cell: str) -> str:
    return ";white-space:nowrap" if len(cell) <= SHORT else ""
