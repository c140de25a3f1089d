"""The equivalence matrix as a page shows it: every structure in every form, each error beside what is allowed."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from liger_mini.support.records import where

COLUMNS = {  # head -> how the record's names for it begin
    "output": "output",
    "final state": "final state",
    "d q": "d q",
    "d k": "d k",
    "d v": "d v",
    "d gate": "d log_gate",
    "d state": "d initial state",
    "d write": ("d beta", "d slot_write"),
}
BY = ("structure", "backend", "dtype")
NAMES = {"structure": "structure", "backend": "form", "dtype": "number type"}


def equivalence_matrix(result: Mapping[str, Any], name: str) -> str:
    """The record of `python -m liger_mini equivalence` as an HTML table with a filter for each of its first columns.

    A cell is the largest relative RMS error against the loop in float64, and in words whether the tolerance allows it.

    Args:
        result: the record. name: its file's, for the caption.
    Raises:
        ValueError: a row without one of its fields; the message names the row.
    """
    rows = result["rows"]
    for number, row in enumerate(rows):
        if missing := {*BY, "what", "error", "tolerance"} - row.keys():
            raise ValueError(f"{name}, row {number} has no {', '.join(sorted(missing))}: {row}")
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[by] for by in BY), []).append(row)
    head = "".join(f'<th scope="col">{name}</th>' for name in [*NAMES.values(), "tolerance", *COLUMNS])
    body = "".join(_row(group, found) for group, found in groups.items())
    over = sum(row["error"] > row["tolerance"] for row in rows)
    verdict = f"{len(rows) - over} of {len(rows)} errors are within their tolerances, {over} are over."
    caption = html.escape(f"{verdict} {name}, {where(result)}.")
    return (
        f'<div class="filters">{"".join(_filter(i, by, groups) for i, by in enumerate(BY))}</div>'
        f'<div class="wide" tabindex="0" role="group" aria-label="the equivalence matrix"><table class="matrix">'
        f"<caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _filter(i: int, by: str, groups: Mapping[tuple[str, ...], Any]) -> str:
    options = "".join(f"<option>{html.escape(value)}</option>" for value in dict.fromkeys(group[i] for group in groups))
    return f'<label>{NAMES[by]} <select data-by="{by}"><option value="">all</option>{options}</select></label> '


def _row(group: tuple[str, ...], found: Sequence[Mapping[str, Any]]) -> str:
    named = " ".join(f'data-{by}="{html.escape(value)}"' for by, value in zip(BY, group))
    first, *others = map(html.escape, group)
    cells = [f'<th scope="row">{first}</th>', *(f"<td>{other}</td>" for other in others)]
    cells.append(f"<td>{found[0]['tolerance']:.0e}</td>")
    for begin in COLUMNS.values():
        errors = [(row["error"], row["tolerance"]) for row in found if row["what"].startswith(begin)]
        cells.append(_cell(*max(errors)) if errors else '<td><span class="none">none</span></td>')
    return f"<tr {named}>{''.join(cells)}</tr>"


def _cell(error: float, tolerance: float) -> str:
    word = "within" if error <= tolerance else "over"
    return f'<td class="{word}">{error:.0e} {word}</td>'
