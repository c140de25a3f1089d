"""Where the embedded teacher and the recorded results are, from a clone or from an installed package."""

from __future__ import annotations

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
