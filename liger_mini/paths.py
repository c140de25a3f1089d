"""Files: where the embedded teacher and the recorded results are, and writing without leaving half a file."""

from __future__ import annotations

import os
from pathlib import Path


def data_dir() -> Path:
    """The data folder: inside the installed package, or `data/` at the top of a clone.

    Raises:
        FileNotFoundError: neither is there; the installation is incomplete.
    """
    package = Path(__file__).parent
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
