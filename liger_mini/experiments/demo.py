"""`make demo`: the whole journey on the embedded teacher, twice, in a few minutes on a laptop.

Teacher -> linearized (loss up) -> LoRA recovery (loss down), once with the paper's gate and recipe
and once with a state that corrects itself (chapter 11). Prints a table and writes a report.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from liger_mini.corpora import World
from liger_mini.evaluation import HeldOut, Report, evaluate
from liger_mini.experiments import WINDOW, load_teacher
from liger_mini.experiments.journey import Journey, travel
from liger_mini.recovery import RECIPES, Recipe
from liger_mini.support.paths import write_atomically
from liger_mini.support.provenance import provenance
from liger_mini.support.tables import Table


@dataclass(frozen=True)
class Plan:
    """One way to linearize and recover the embedded teacher.

    Attributes:
        name: in tables. title: what is printed when it begins. structure, temper: as in `linearize`.
    """

    name: str
    title: str
    structure: str
    temper: float
    recipe: Recipe


SHORT = dataclasses.replace(RECIPES["recall"], transfer_steps=120, steps=220)
PLANS = {
    "paper": Plan("paper's gate", "GLA with a half-life of 16 tokens, LoRA rank 8", "gla", 16, RECIPES["quick"]),
    "delta": Plan("delta rule", "the delta rule, half-life 1024, LoRA rank 64", "hedgehog_deltanet", 1024, SHORT),
}


@dataclass(frozen=True)
class Line:
    """A model of the demo, as the tables and the report show it."""

    name: str
    report: Report
    journey: Journey | None = None  # of a recovered one


def lines(teacher: Report, journeys: dict[str, Journey]) -> Iterator[Line]:
    """The teacher, and each plan's model before and after its recovery."""
    yield Line("teacher", teacher)
    for key, journey in journeys.items():
        yield Line(f"linearized, {PLANS[key].name}", journey.before["both"])
        yield Line(f"recovered, {PLANS[key].name}", journey.after["both"], journey)


def table(teacher: Report, journeys: dict[str, Journey]) -> Table:
    """The five rows that the demo prints and the README shows."""
    return Table.of(
        lines(teacher, journeys),
        {
            "model": lambda line: line.name,
            "loss": lambda line: f"{line.report.loss:.2f}",
            "finds what is near": lambda line: f"{line.report.recall_inside:.2f}",
            "finds what is far": lambda line: f"{line.report.recall_outside:.2f}",
        },
        f"Held-out loss in nats per token; share of questions answered right, where the answer was told within the window "
        f"of {teacher.window} tokens (near), and beyond the {teacher.reach} tokens that stacked windows reach (far).",
    )


def run(output_dir: str | Path = "runs/demo") -> dict[str, Any]:
    """The demo; writes ``report.html`` and ``result.json`` into `output_dir` and returns the latter.

    An interrupted demo goes on where it was; a finished one starts anew.
    """
    from liger_mini.experiments.report import page  # draws with Plotly

    start, output_dir = time.perf_counter(), Path(output_dir)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # of loading weights; recovery has its own
    _begin(output_dir)
    print("1/3  loading the embedded teacher and measuring it", flush=True)
    model, tokenizer = load_teacher()
    held_out = HeldOut(tokenizer)
    teacher, journeys = evaluate(model, held_out, window=WINDOW), {}
    for number, (name, plan) in enumerate(PLANS.items(), start=2):
        print(f"{number}/3  linearize and recover, {plan.title}", flush=True)
        model, rows = load_teacher()[0], World(tokenizer, plan.recipe.rows)
        settings: dict[str, Any] = {"structure": plan.structure, "window": WINDOW, "temper": plan.temper}
        journeys[name] = travel(model, rows, held_out, output_dir / name, recipe=plan.recipe, **settings)
    result = as_result(teacher, journeys, time.perf_counter() - start)
    write_atomically(output_dir / "report.html", page(teacher, journeys, result))
    write_atomically(output_dir / "result.json", json.dumps(result, indent=1))
    print(f"\n{table(teacher, journeys)}")
    print(f"\nEverything else, with figures: {output_dir / 'report.html'}  ({result['seconds']:.0f} s in all)")
    print("Next: `make lab` opens the course at notebook 00, where you take the same steps by hand.")
    return result


def _begin(output_dir: Path) -> None:
    """Make the folder; of a finished demo remove our own runs, and nothing else."""
    if (output_dir / "result.json").is_file():
        for name in PLANS:
            if (output_dir / name / "run.json").is_file():
                shutil.rmtree(output_dir / name)
        (output_dir / "result.json").unlink()
    output_dir.mkdir(parents=True, exist_ok=True)


def as_result(teacher: Report, journeys: dict[str, Journey], seconds: float) -> dict[str, Any]:
    """The JSON: the paper's plan at the top level, the delta rule's beside it under its name."""

    def one(name: str) -> dict[str, Any]:
        journey = journeys[name]
        return {
            "plan": dataclasses.asdict(PLANS[name]),
            "linearized": journey.before["both"].to_dict(),
            "recovered": journey.after["both"].to_dict(),
            "gap_closed": journey.gap_closed(teacher),
            "branch_ablation": {
                "before": {branch: report.to_dict() for branch, report in journey.before.items()},
                "after": {branch: report.to_dict() for branch, report in journey.after.items()},
            },
            "recovery": journey.recovery.to_dict(),
            "seconds": journey.seconds,
        }

    return {
        "teacher": teacher.to_dict(),
        **one("paper"),
        "delta": one("delta"),
        "seconds": seconds,
        "provenance": provenance(),
    }
