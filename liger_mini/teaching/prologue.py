"""What every chapter does first, in one call."""

from __future__ import annotations

import torch
from transformers.utils import logging

from liger_mini.support.provenance import provenance
from liger_mini.support.records import machine
from liger_mini.teaching.tier import tier


def prologue(seed: int = 0) -> None:
    """Seed torch, silence transformers' loading bars and advice, and say what this chapter runs on, in which tier."""
    torch.manual_seed(seed)
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights; recovery has its own
    here = provenance()
    print(f"tier {tier()!r}; {machine(here)}; torch {here['torch']}, transformers {here['transformers']}")
