"""The needle test on the embedded teacher and on its recoveries (chapter 09)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from liger_mini.evaluation.haystacks import LENGTHS, needle
from liger_mini.experiments import load_recovered, load_teacher
from liger_mini.support.paths import write_atomically
from liger_mini.support.provenance import provenance

NAMES = ("teacher", "paper", "additive", "recall", "needles")
ASKED_MORE = ("additive", "recall", "needles")


def run(
    output: str | Path = "runs/needle.json",
    *,
    lengths: Sequence[int] = LENGTHS,
    teacher_up_to: int = 8192,
    samples: int = 8,
    more: int = 32,
    **how: Any,
) -> dict[str, Any]:
    """The needle test on the embedded teacher and on its recoveries, written as JSON.

    Args:
        teacher_up_to: tokens; the teacher's time is quadratic, and beyond this it would be most of the whole.
        more: samples at the first two lengths of the recoveries that find any, under ``many``; the first are the same.
        how: `depths`, `seed` of `needle`.
    """
    result: dict[str, Any] = {"models": {}, "many": {}}
    for name in NAMES:
        model, tokenizer = load_teacher() if name == "teacher" else load_recovered(name)
        reached = [length for length in lengths if name != "teacher" or length <= teacher_up_to]
        result["models"][name] = needle(model, tokenizer, lengths=reached, samples=samples, **how)
        if name in ASKED_MORE:
            result["many"][name] = needle(model, tokenizer, lengths=lengths[:2], samples=more, **how)
        for row in result["models"][name]:
            print(f"{name:8} {row['length']:6} tokens, depth {row['depth']:.1f}: found {row['found']:.2f}")
    result["provenance"] = provenance()
    write_atomically(Path(output), json.dumps(result, indent=1))
    return result
