"""Recorded results in ``data/results``: JSON with provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from liger_mini.support.paths import data_dir


def available() -> list[str]:
    """The names `recorded` knows."""
    return sorted(path.stem for path in (data_dir() / "results").glob("*.json"))


class Fields(dict[str, Any]):
    """A JSON object of a record. Asked for a field that is not there, it names the file and what is there."""

    def __init__(self, fields: Mapping[str, Any], file: str):
        super().__init__(fields)
        self.file = file

    def __missing__(self, field: str) -> Any:
        raise KeyError(f"data/results/{self.file} has no field {field!r} in {{{', '.join(self)}}}")


def recorded(name: str) -> dict[str, Any]:
    """``data/results/<name>.json``.

    Raises:
        FileNotFoundError: nothing of that name was recorded; the message lists what there is.
        KeyError: later, when a field is read that the file does not have; the message names file and field.
    """
    if name not in available():
        raise FileNotFoundError(f"no recorded result {name!r} in data/results; there are {', '.join(available())}")
    file = data_dir() / "results" / f"{name}.json"
    return json.loads(file.read_text("utf-8"), object_hook=lambda fields: Fields(fields, file.name))


def machine(origin: Mapping[str, Any]) -> str:
    """What a result was measured on, from its provenance."""
    return origin["gpu"] or f"{origin['processor']}, {origin['threads']} thread{'s' * (origin['threads'] != 1)}"


def where(result: Mapping[str, Any]) -> str:
    """One line for a caption: when, on what and with which torch a recorded result was measured."""
    origin = result["provenance"]
    return f"recorded {origin['date']} on {machine(origin)}, torch {origin['torch']}"
