"""Three tiers of the same notebook, chosen by one variable, `LIGER_MINI_TIER`.

* quick: seconds to a few minutes a chapter; a first read, and what continuous integration runs.
* full: a CPU and more minutes.
* gpu: the cells that need a GPU run too.

Without the variable it is "gpu" where a GPU is present, and "full" elsewhere.
"""

from __future__ import annotations

import os
from typing import TypeVar

import torch

TIERS = ("quick", "full", "gpu")
T = TypeVar("T")


def tier() -> str:
    """The tier this notebook runs in.

    Raises:
        ValueError: an unknown tier. RuntimeError: "gpu" on a machine without one.
    """
    chosen = os.environ.get("LIGER_MINI_TIER") or ("gpu" if torch.cuda.is_available() else "full")
    if chosen not in TIERS:
        raise ValueError(f"LIGER_MINI_TIER = {chosen!r}: allowed are {', '.join(map(repr, TIERS))}")
    if chosen == "gpu" and not torch.cuda.is_available():
        raise RuntimeError(
            "LIGER_MINI_TIER is 'gpu', but torch sees no CUDA GPU here; set it to 'full' (or 'quick') and run again: "
            "the GPU figures then come from recorded results, where there are any"
        )
    return chosen


def by_tier(*, quick: T, full: T) -> T:
    """`quick` in the quick tier, `full` in the others: a number of steps, of samples, a list of lengths."""
    return quick if tier() == "quick" else full
