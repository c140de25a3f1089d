"""Tables that a reader filters: the equivalence matrix, and every recorded run of a structure with where it comes from."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from liger_mini.support.records import available, machine, recorded, where

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
RUN = ("structure", "number type", "machine", "run", "measured", "where it comes from")
RUN_BY = RUN[:3]


def filtered_table(head: Sequence[str], rows: Sequence[Sequence[str]], by: int, caption: str, name: str) -> str:
    """An HTML table, above it a filter for each of its first `by` columns; site.js makes them work.

    Args:
        head: the columns. rows: cells; those after the first `by` are HTML already. caption, name: for a screen reader, too.
    """
    filters = "".join(_filter(i, column, rows) for i, column in enumerate(head[:by]))
    tops = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in head)
    body = "".join(_row(row, by) for row in rows)
    return (
        f'<div class="filters">{filters}<output aria-live="polite">{len(rows)} of {len(rows)} rows</output></div>'
        f'<div class="wide" tabindex="0" role="group" aria-label="{html.escape(name)}"><table class="matrix">'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{tops}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _filter(i: int, column: str, rows: Sequence[Sequence[str]]) -> str:
    values = dict.fromkeys(row[i] for row in rows)
    options = "".join(f"<option>{html.escape(value)}</option>" for value in values)
    return f'<label>{column} <select data-column="{i}"><option value="">all</option>{options}</select></label> '


def _row(row: Sequence[str], by: int) -> str:
    first, *others = map(html.escape, row[:by])
    named = "".join(f"<td>{other}</td>" for other in others)
    return f'<tr><th scope="row">{first}</th>{named}{"".join(row[by:])}</tr>'


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
    over = sum(row["error"] > row["tolerance"] for row in rows)
    verdict = f"{len(rows) - over} of {len(rows)} errors are within their tolerances, {over} are over."
    body = [[*group, *_errors(found)] for group, found in groups.items()]
    head, caption = [*NAMES.values(), "tolerance", *COLUMNS], f"{verdict} {name}, {where(result)}."
    return filtered_table(head, body, len(BY), caption, "the equivalence matrix")


def _errors(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"<td>{found[0]['tolerance']:.0e}</td>"
    for begin in COLUMNS.values():
        errors = [(row["error"], row["tolerance"]) for row in found if row["what"].startswith(begin)]
        yield _cell(*max(errors)) if errors else '<td><span class="none">none</span></td>'


def _cell(error: float, tolerance: float) -> str:
    word = "within" if error <= tolerance else "over"
    return f'<td class="{word}">{error:.0e} {word}</td>'


def all_runs() -> str:
    """Every recorded run that is of one structure, as a table with filters: what was measured, when, and on what."""
    rows = [[*run[:3], *(f"<td>{html.escape(cell)}</td>" for cell in run[3:])] for run in runs()]
    return filtered_table(RUN, rows, len(RUN_BY), f"{len(rows)} runs.", "all recorded runs")


def runs() -> Iterator[tuple[str, ...]]:
    """The rows of `all_runs`: structure, number type, machine, the run's name, what was measured, and its record.

    Raises:
        KeyError: a record without a field that is shown; the message names file and field.
    """
    kinds = {"equivalence": _equivalences, "ablation": _variants, "memory": _variants, "demo": _demo}
    kinds |= {"recall-search": _searched, "real": _real}
    for name in available():
        kind, record = kinds.get(name.rpartition("-")[0]), recorded(name)
        for structure, bf16, run, measured, origin in kind(record) if kind else ():
            number = bf16 if isinstance(bf16, str) else "bfloat16" if bf16 else "float32"
            told = ", ".join(f"{what} {value}" for what, value in measured.items())
            recorded_on = f"{name}.json, recorded {origin['provenance']['date'][:10]}"  # the machine has a column
            yield structure, number, machine(origin["provenance"]), run, told, recorded_on


Run = tuple[
    str, Any, str, Mapping[str, str], Mapping[str, Any]
]  # structure, bfloat16?, name, measured, whose provenance


def _equivalences(record: Mapping[str, Any]) -> Iterator[Run]:
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault((row["structure"], row["dtype"], row["backend"]), []).append(row)
    for (structure, dtype, form), rows in groups.items():
        worst = max(rows, key=lambda row: row["error"])
        error = f"{worst['error']:.0e} ({worst['what']}, allowed {worst['tolerance']:.0e})"
        yield structure, dtype, f"equivalence, {form}", {"largest error": error}, record


def _variants(record: Mapping[str, Any]) -> Iterator[Run]:
    from liger_mini.structures import structures

    for name, variant in record["variants"].items():
        what = {"perplexity": 2, "outside": 2, "outside, window only": 2}
        mean = {("recall " if w == "outside" else "") + w: f"{variant['summary'][w][0]:.{d}f}" for w, d in what.items()}
        structure = name if name in structures else "gla"  # the paper's Table 6 takes parts of it away
        seeds = f"{len(variant['runs'])} seed{'s' * (len(variant['runs']) > 1)}"
        yield structure, record["recipe"]["bf16"], f"{name}, recovered, {seeds}", mean, record


def _demo(record: Mapping[str, Any]) -> Iterator[Run]:
    for way in (record, record["delta"]):
        plan = way["plan"]
        for stage in ("linearized", "recovered"):
            measured = {"loss": f"{way[stage]['loss']:.2f}", "recall outside": f"{way[stage]['recall_outside']:.2f}"}
            yield plan["structure"], plan["recipe"]["bf16"], f"demo, {plan['name']}, {stage}", measured, record


def _searched(record: Mapping[str, Any]) -> Iterator[Run]:
    for part in (record, record["delta"]):
        for row in part["rows"]:
            measured = {"loss": f"{row['loss']:.2f}", "recall outside": f"{row['recall']['outside']:.2f}"}
            measured["window only"] = f"{row['window_only']['outside']:.2f}"
            yield row["structure"], False, f"search, {row['name']}", measured, part


def _real(record: Mapping[str, Any]) -> Iterator[Run]:
    for plan in ("untrained", "screen"):
        for name, way in record[plan]["ways"].items():
            if way["settings"]["mix"] in ([0.0, 1.0], [0.0, 0.5]):  # a window alone, or the teacher
                continue
            losses = {text: sum(way[text]["loss"]) / len(way[text]["loss"]) for text in ("pydocs", "pysource")}
            measured = {f"loss on {text}": f"{loss:.3f}" for text, loss in losses.items()}
            yield way["settings"]["structure"], False, f"SmolLM2, {plan}, {name}", measured, record[plan]
