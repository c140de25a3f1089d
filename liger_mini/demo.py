"""`make demo`: the whole journey on the embedded teacher, twice, in a few minutes on a laptop.

Teacher -> linearized (loss up) -> LoRA recovery (loss down), once with the paper's gate and recipe
and once with a gate whose half-life covers the context. Prints a table and writes a report.
"""

from __future__ import annotations

import dataclasses
import html
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from liger_mini.convert import linearize, load
from liger_mini.corpus import World
from liger_mini.evaluate import HeldOut, Report, branch_ablation, evaluate
from liger_mini.paths import data_dir, write_atomically
from liger_mini.provenance import provenance
from liger_mini.recover import RECIPES, Recipe, Recovery, quiet_peft, recover
from liger_mini.teaching import figures
from liger_mini.teaching.tables import Table

WINDOW = 16  # with 4 layers the stacked windows reach 60 of the teacher's 256 tokens of context


@dataclass(frozen=True)
class Plan:
    """One way to linearize and recover the embedded teacher."""

    title: str
    temper: float
    recipe: Recipe


PLANS = {
    "paper": Plan(
        "the paper's: half-life 16 tokens, LoRA rank 8",
        temper=16,
        recipe=RECIPES["quick"],
    ),
    "half_life": Plan(
        "longer half-life: 1024 tokens, LoRA rank 32",
        temper=1024,
        recipe=RECIPES["long"],
    ),
}


@dataclass(frozen=True)
class Journey:
    """Everything measured on one plan."""

    plan: Plan
    before: dict[str, Report]  # branch ablation of the linearized model
    recovery: Recovery
    after: dict[str, Report]  # and of the recovered one
    seconds: float


def load_teacher() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded teacher and its tokenizer, from the package's data."""
    folder = data_dir() / "teacher"
    return load(folder).eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_recovered(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded teacher as a recovery left it: linearized, with an adapter from ``data/recovered`` merged.

    Args:
        name: "paper" (the paper's gate and recipe) or "recall" (`RECIPES["recall"]`); ``run.json`` beside it tells all.
    Raises:
        ValueError: another name.
    """
    folder = data_dir() / "recovered"
    names = sorted(path.name for path in folder.iterdir())
    if name not in names:
        raise ValueError(f"no recovered teacher {name!r}: there are {', '.join(map(repr, names))}")
    model, tokenizer = load_teacher()
    linearize(model, **json.loads((folder / name / "run.json").read_text("utf-8"))["liger"])
    with quiet_peft():
        return PeftModel.from_pretrained(model, folder / name).merge_and_unload().eval(), tokenizer


def travel(plan: Plan, held_out: HeldOut, output_dir: Path) -> Journey:
    """Linearize the embedded teacher, measure, recover, measure."""
    start = time.perf_counter()
    model, tokenizer = load_teacher()
    linearize(model, "gla", window=WINDOW, temper=plan.temper)
    before = branch_ablation(model, held_out)
    rows = World(tokenizer, plan.recipe.steps * plan.recipe.batch_size)
    recovery = recover(model, rows, output_dir=output_dir, recipe=plan.recipe)
    after = branch_ablation(model, held_out)
    return Journey(plan, before, recovery, after, time.perf_counter() - start)


def run(output_dir: str | Path = "runs/demo") -> dict[str, Any]:
    """The demo; writes ``report.html`` and ``result.json`` into `output_dir` and returns the latter.

    An interrupted demo goes on where it was; a finished one starts anew.
    """
    start = time.perf_counter()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # of loading weights; recovery has its own
    output_dir = Path(output_dir)
    if (output_dir / "result.json").is_file():  # finished: start anew, touching nothing but our own runs
        for name in PLANS:
            if (output_dir / name / "run.json").is_file():
                shutil.rmtree(output_dir / name)
        (output_dir / "result.json").unlink()
    output_dir.mkdir(parents=True, exist_ok=True)
    print("1/3  loading the embedded teacher and measuring it", flush=True)
    teacher, tokenizer = load_teacher()
    held_out = HeldOut(tokenizer)
    teacher_report = evaluate(teacher, held_out, window=WINDOW)
    journeys = {}
    for number, (name, plan) in enumerate(PLANS.items(), start=2):
        print(f"{number}/3  linearize and recover, {plan.title}", flush=True)
        journeys[name] = travel(plan, held_out, output_dir / name)
    seconds = time.perf_counter() - start
    result = as_result(teacher_report, journeys, seconds)
    page = as_page(teacher_report, journeys, result["provenance"], seconds)
    write_atomically(output_dir / "report.html", page)
    write_atomically(output_dir / "result.json", json.dumps(result, indent=1))
    print(f"\n{measurements(teacher_report, journeys)}\n\n{ablations(journeys)}")
    print(f"\nReport: {output_dir / 'report.html'}  (numbers: result.json; {seconds:.0f} s in all)")
    print("Next: `make lab` opens the course at notebook 00, where you take the same steps by hand.")
    return result


def as_result(teacher: Report, journeys: dict[str, Journey], seconds: float) -> dict[str, Any]:
    """The JSON: the paper's plan at the top level, the longer half-life beside it under its name."""

    def one(journey: Journey) -> dict[str, Any]:
        return {
            "plan": dataclasses.asdict(journey.plan),
            "linearized": journey.before["both"].to_dict(),
            "recovered": journey.after["both"].to_dict(),
            "gap_closed": gap_closed(teacher, journey),
            "branch_ablation": {
                "before": {branch: report.to_dict() for branch, report in journey.before.items()},
                "after": {branch: report.to_dict() for branch, report in journey.after.items()},
            },
            "recovery": journey.recovery.to_dict(),
            "seconds": journey.seconds,
        }

    return {
        "teacher": teacher.to_dict(),
        **one(journeys["paper"]),
        "half_life": one(journeys["half_life"]),
        "seconds": seconds,
        "provenance": provenance(),
    }


def gap_closed(teacher: Report, journey: Journey) -> float:
    """Share of the loss that linearizing cost and recovery won back: 1 is all of it."""
    lost = journey.before["both"].loss - teacher.loss
    return (journey.before["both"].loss - journey.after["both"].loss) / lost


def measurements(teacher: Report, journeys: dict[str, Journey]) -> Table:
    head = [
        "model",
        "loss",
        "perplexity",
        "inside",
        "between",
        "outside",
        "gap closed",
        "seconds",
        "parameters",
        "trained",
    ]

    def row(name: str, report: Report, *rest: str) -> list[str]:
        recalls = [f"{report.recall[where].recall:.2f}" for where in ("inside", "between", "outside")]
        return [name, f"{report.loss:.3f}", f"{report.perplexity:.2f}", *recalls, *rest]

    some = next(iter(journeys.values())).recovery
    rows = [row("teacher", teacher, "", "", f"{some.parameters:,}", "")]
    for journey in journeys.values():
        tau, recovery = f"half-life {journey.plan.temper:g}", journey.recovery
        rows.append(row(f"linearized, {tau}", journey.before["both"], "0 %", "", f"{recovery.parameters:,}", "0"))
        closed, after = f"{gap_closed(teacher, journey):.0%}".replace("%", " %"), journey.after["both"]
        rows.append(
            row(
                f"recovered, {tau}",
                after,
                closed,
                f"{recovery.seconds:.0f}",
                f"{recovery.parameters:,}",
                f"{recovery.parameters_trained:,}",
            )
        )
    chance = teacher.recall
    rows.append(
        [
            "guessing a value of the story",
            "",
            "",
            *(f"{chance[w].chance:.2f}" for w in ("inside", "between", "outside")),
            "",
            "",
            "",
            "",
        ]
    )
    return Table(
        head,
        rows,
        f"Held-out loss (nats per token, mean of tinyworld and Python docs) and recall: the answer inside the window "
        f"({teacher.window} tokens), between, and outside the reach of stacked windows ({teacher.reach} tokens).",
    )


def ablations(journeys: dict[str, Journey]) -> Table:
    rows = []
    for journey in journeys.values():
        rows.append([f"half-life {journey.plan.temper:g}", "before", "recovery", "", "after", "recovery", ""])
        for branch in journey.before:
            cells = [branch]
            for report in (journey.before[branch], journey.after[branch]):
                cells += [f"{report.loss:.3f}", f"{report.recall_inside:.2f}", f"{report.recall_outside:.2f}"]
            rows.append(cells)
    return Table(
        ["branches", "loss", "inside", "outside", "loss", "inside", "outside"],
        rows,
        "Both branches, each branch alone at full weight, and neither; loss and recall before and after recovery.",
    )


def as_page(teacher: Report, journeys: dict[str, Journey], where: dict[str, Any], seconds: float) -> str:
    """One HTML file that needs no network: plotly.js, the figures, the tables and where they come from."""
    models = {"teacher": teacher}
    for journey in journeys.values():
        models[f"linearized, half-life {journey.plan.temper:g}"] = journey.before["both"]
        models[f"recovered, half-life {journey.plan.temper:g}"] = journey.after["both"]
    recovered = {name: report for name, report in models.items() if not name.startswith("linearized")}
    branches = {f"recovered, half-life {j.plan.temper:g}": j.after for j in journeys.values()}
    charts: list[go.Figure] = [
        figures.losses(models),
        figures.loss_curves(
            {f"half-life {j.plan.temper:g}": j.recovery.losses for j in journeys.values()}, teacher_loss=teacher.loss
        ),
        figures.recall_by_distance(recovered),
        figures.branch_bars(branches),
    ]
    blocks = [figures.as_html(chart, include_plotlyjs=i == 0) for i, chart in enumerate(charts)]
    machine = ", ".join(f"{name} {value}" for name, value in where.items() if value)
    return PAGE.format(
        summary=html.escape(_summary(teacher, journeys)),
        measurements=measurements(teacher, journeys)._repr_html_(),
        ablations=ablations(journeys)._repr_html_(),
        figures="\n".join(blocks),
        machine=html.escape(f"{machine}. The whole demo took {seconds:.0f} s."),
    )


def _summary(teacher: Report, journeys: dict[str, Journey]) -> str:
    sentences = [f"The teacher recalls {teacher.recall_outside:.0%} of the answers told beyond the windows' reach."]
    for journey in journeys.values():
        after, alone = journey.after["both"], journey.after["window only"]
        sentences.append(
            f"With a gate half-life of {journey.plan.temper:g} tokens, recovery trained "
            f"{journey.recovery.parameters_trained / journey.recovery.parameters:.1%} as many numbers as the model has and won back "
            f"{gap_closed(teacher, journey):.0%} of the lost loss; recall beyond the reach is {after.recall_outside:.0%} "
            f"({alone.recall_outside:.0%} with the window alone; guessing among the values the story holds would give {after.recall['outside'].chance:.0%})."
        )
    return " ".join(sentences)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>liger_mini: a Transformer linearized and recovered</title>
<style>
  body {{ font: 17px/1.55 system-ui, sans-serif; color: #1a1a1a; margin: 0 auto; padding: 1rem; max-width: 62rem; }}
  h1 {{ line-height: 1.2; }} figure {{ margin: 2.5rem 0; }} figcaption, footer {{ color: #555; font-size: .9rem; }}
  .wide {{ overflow-x: auto; margin: 2rem 0; }} table {{ border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }}
  caption {{ text-align: left; padding-bottom: .5rem; color: #555; position: sticky; left: 0; max-width: min(60rem, 90vw); }}
  th, td {{ padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }}
  th:first-child {{ text-align: left; }} th[scope=row] {{ font-weight: normal; }}
</style>
</head>
<body>
<main>
<h1>A Transformer linearized, and recovered</h1>
<p>{summary}</p>
{measurements}
{figures}
{ablations}
</main>
<footer><p>Measured on this machine: {machine}</p></footer>
</body>
</html>
"""
