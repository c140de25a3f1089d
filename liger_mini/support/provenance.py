"""Where a number comes from: machine, versions, date. Every recorded result carries this."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from liger_mini.support.version import __version__


def provenance() -> dict[str, Any]:
    """JSON-ready: date (UTC), processor, threads, GPU if any, and the versions that matter."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": platform.system(),
        "python": platform.python_version(),
        "liger_mini": __version__,
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }


def _processor() -> str:
    """The processor's own name where the system tells it (Linux), else the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
