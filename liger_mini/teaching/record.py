"""The reader's own results beside the recorded ones: `compare` ends a chapter."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from liger_mini.support.paths import data_dir, write_atomically
from liger_mini.support.provenance import provenance
from liger_mini.support.records import where
from liger_mini.support.tables import Table
from liger_mini.teaching.tier import tier


def compare(chapter: str, measured: Mapping[str, float], *, digits: int = 3) -> Table:
    """The closing table of a chapter: what the reader measured, beside what was recorded in the same tier.

    With `LIGER_MINI_RECORD=1` it first records the reader's values as the new ones (``make record`` does that).

    Args:
        chapter: two digits, "02"; recorded in ``data/results/chapter-02.json``.
        measured: name with its unit -> value. digits: significant ones shown.
    Raises:
        ValueError: a value that is not a number.
    """
    for name, value in measured.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"measured[{name!r}] is {value!r}; a number is needed (a tensor: take .item())")
    file = data_dir() / "results" / f"chapter-{chapter}.json"
    there = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if os.environ.get("LIGER_MINI_RECORD") == "1":
        there[tier()] = {"values": dict(measured), "provenance": provenance()}
        write_atomically(file, json.dumps(there, indent=1))
    ours = there.get(tier())
    values = ours["values"] if ours else {}
    shown = lambda x: "" if x is None else f"{x:,}" if isinstance(x, int) else f"{x:.{digits}g}"  # noqa: E731
    rows = [[name, shown(value), shown(values.get(name))] for name, value in measured.items()]
    origin = f"Ours: {where(ours)}, tier {tier()}." if ours else f"Nothing was recorded in the tier {tier()!r}."
    return Table(["", "yours", "ours"], rows, origin + " Times differ between machines; the rest should be close.")
