"""Recoveries that differ in nothing but the form their recurrence runs in: are their losses the same? (chapter 08)

A gradient that is wrong now and then fails no comparison of one call, and a training feels it. So the same rows teach the same
model in two forms, step by step. Rounding differs, and training makes small differences larger, so they are told as they are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from liger_mini.convert import linearize
from liger_mini.corpora import World
from liger_mini.experiments import WINDOW, load_teacher
from liger_mini.recovery import RECIPES, recover
from liger_mini.support.paths import write_atomically
from liger_mini.support.provenance import provenance

FORMS = {"cpu": ("chunked", "compiled"), "cuda": ("chunked", "triton")}
STRUCTURES = {  # one for each recurrence; slots have no compiled loop
    "cpu": ["gla", "gated_retention", "gated_deltanet"],
    "cuda": ["gla", "gated_retention", "gated_deltanet", "gsa"],
}


def run(
    output: str | Path = "runs/twins.json",
    *,
    steps: int = 200,
    length: int = 128,
    structures: Sequence[str] | None = None,
    forms: Sequence[str] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Recover the embedded teacher in each form, from the same rows and seed; written as JSON.

    An interrupted run keeps what it trained in the folder ``<output>.runs``; the same command goes on from there.

    Args:
        steps, length: of each training; tokens per row.
        structures, forms: None: one structure for each recurrence, and what the course runs on a CPU, or Triton's on a GPU,
            each beside "chunked". The first form is what the others are compared with.
        changes: fields of the recipe, such as `bf16`.
    Returns:
        under "rows" one per structure and form: the loss of every step and, but for the first form, the largest difference of a
        step's loss and the difference of the means over the last tenth of the steps.
    """
    output, device = Path(output), "cuda" if torch.cuda.is_available() else "cpu"
    forms = FORMS[device] if forms is None else tuple(forms)
    recipe = dataclasses.replace(RECIPES["quick"], steps=steps, **changes)
    rows: list[dict[str, Any]] = []
    for structure in STRUCTURES[device] if structures is None else structures:
        first: list[float] = []
        for form in forms:
            model, tokenizer = load_teacher()
            linearize(model.to(device), structure, window=WINDOW, backend=form)
            folder = output.with_suffix(".runs") / f"{structure}-{form}"
            dataset = World(tokenizer, recipe.rows, length=length)
            done = recover(model, dataset, output_dir=folder, recipe=recipe, save_every=20, log_every=1)
            losses = [loss for _, loss in done.losses]
            row: dict[str, Any] = {"structure": structure, "form": form, "losses": losses}
            if first:
                apart, last = [x - y for x, y in zip(losses, first, strict=True)], max(1, steps // 10)
                row |= {"largest_difference": max(map(abs, apart)), "difference_of_the_last": sum(apart[-last:]) / last}
                print(
                    f"{structure}: {form} beside {forms[0]}: at most {row['largest_difference']:.1e} nats apart",
                    flush=True,
                )
            rows.append(row)
            first = first or losses
    result = {"recipe": dataclasses.asdict(recipe), "length": length, "rows": rows, "provenance": provenance()}
    write_atomically(output, json.dumps(result))
    return result
