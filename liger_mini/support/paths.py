"""Files: where the embedded teacher and the recorded results are, and writing without leaving half a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def data_dir() -> Path:
    """The data folder: inside the installed package, or `data/` at the top of a clone.

    Raises:
        FileNotFoundError: neither is there; the installation is incomplete.
    """
    package = Path(__file__).parent.parent
    for folder in (package / "data", package.parent / "data"):
        if (folder / "teacher" / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"liger_mini's data folder (with teacher/config.json) is neither in {package} nor beside it; reinstall the package"
    )


def write_atomically(path: Path, text: str) -> None:
    """Write beside, then rename: a kill leaves the old file or the new one, never half of one. Makes the folder.

    A link is followed, and a device (/dev/stdout) is written to.
    """
    if path.parts[:2] == ("/", "dev"):
        with path.open("a", encoding="utf-8") as device:
            device.write(text)
        return
    path = path.resolve()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(path.suffix + ".tmp")
    beside.write_text(text, "utf-8")
    os.replace(beside, path)


def claim(
    record: Path, asked: dict[str, Any], differences: Callable[[dict, dict], Iterable[str]] | None = None
) -> dict[str, Any] | None:
    """Make the folder of `record` the run's that `asked` describes, or make sure that it is.

    Args:
        record: the JSON file that tells whose folder it is.
        differences: (there, asked) -> in words, what makes it another run; None: every entry that is not the same.
    Returns:
        what was there; None if the folder is new.
    Raises:
        FileExistsError: it holds another run, or something else.
    """
    folder, asked = record.parent, json.loads(json.dumps(asked))  # as it will be read: lists for tuples
    if record.is_file():
        there = json.loads(record.read_text("utf-8"))
        told = list((differences or _differences)(there, asked))
        if told:
            raise FileExistsError(
                f"{folder} holds another run ({'; '.join(told)}). Use another folder, or delete this one"
            )
        return there
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty, and no run of this kind (it has no {record.name}). Use another folder"
        )
    write_atomically(record, json.dumps(asked, indent=1))
    return None


def _differences(there: dict[str, Any], asked: dict[str, Any]) -> Iterable[str]:
    for name in sorted(there.keys() | asked.keys()):
        if there.get(name) != asked.get(name):
            yield f"{name}: there {there.get(name)}, now {asked.get(name)}"
