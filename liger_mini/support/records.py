"""Recorded results in ``data/results``: JSON with provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from liger_mini.support.paths import data_dir


def available() -> list[str]:
    """The names `recorded` knows."""
    return sorted(path.stem for path in (data_dir() / "results").glob("*.json"))


def recorded(name: str) -> dict[str, Any]:
    """``data/results/<name>.json``.

    Raises:
        FileNotFoundError: nothing of that name was recorded; the message lists what there is.
    """
    if name not in available():
        raise FileNotFoundError(f"no recorded result {name!r} in data/results; there are {', '.join(available())}")
    return json.loads((data_dir() / "results" / f"{name}.json").read_text("utf-8"))


def where(result: Mapping[str, Any]) -> str:
    """One line for a caption: when, on what and with which torch a recorded result was measured."""
    origin = result["provenance"]
    threads = f"{origin['threads']} thread{'s' * (origin['threads'] != 1)}"
    machine = origin["gpu"] or f"{origin['processor']}, {threads}"
    return f"recorded {origin['date']} on {machine}, torch {origin['torch']}"
