"""What does each part contribute? Two tables on the embedded teacher.

* "paper": the paper's Table 6, its Table 5, and the rest of Table 1, with the paper's recipe.
* "memory": how far every structure's recall gets with a long memory and the recipe made for recall (chapter 09).

Every variant is linearized, recovered with the same recipe and data, and measured with its branch ablation, for several
seeds. A finished (variant, seed) is a file of its own, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from liger_mini.convert import linearize
from liger_mini.corpora import World
from liger_mini.evaluation import HeldOut, branch_ablation, evaluate
from liger_mini.experiments import WINDOW, load_teacher
from liger_mini.experiments.journey import travel
from liger_mini.experiments.variants import learned_features, random_gate
from liger_mini.recovery import RECIPES, Recipe
from liger_mini.structures import structures
from liger_mini.support.paths import claim, write_atomically
from liger_mini.support.provenance import provenance


@dataclass(frozen=True)
class Variant:
    """One line of the table: how to linearize, what to change after that, what to train besides LoRA, whether to recover."""

    linearize: dict[str, Any] = dataclasses.field(default_factory=dict)
    change: Callable[[PreTrainedModel], None] | None = None
    train_in_full: tuple[str, ...] = ()
    lora: bool = True


VARIANTS: dict[str, Variant] = {
    "full": Variant(),
    "random gate projection": Variant(change=random_gate, train_in_full=("alpha_proj",)),
    "learned feature map": Variant(change=learned_features, train_in_full=("q_features", "k_features")),
    "no gate": Variant({"structure": "linear"}),
    "no LoRA": Variant(lora=False),
    "no window": Variant({"mix": 1.0}),
    "no recurrence": Variant({"mix": 0.0}),
    **{name: Variant({"structure": name}) for name in structures if name not in ("gla", "linear")},
}
# the best that was found for recall where the write is tied to the gate, else one beyond the context
TEMPERS = {"hgrn2": 16, "gsa": 16}
REMEMBERING: dict[str, Variant] = {
    name: Variant({"structure": name, "temper": None if structure.temper is None else TEMPERS.get(name, 1024)})
    for name, structure in structures.items()
}


@dataclass(frozen=True)
class Comparison:
    """Variants, and the recipe they all get."""

    variants: dict[str, Variant]
    recipe: Recipe


TABLES = {
    "paper": Comparison(VARIANTS, RECIPES["quick"]),
    "memory": Comparison(REMEMBERING, dataclasses.replace(RECIPES["recall"], transfer_steps=300, steps=500)),
}
PAPER_PERPLEXITY = {  # Table 6: Llama-3-8B, validation perplexity on cleaned Alpaca
    "full": 2.96,
    "random gate projection": 3.16,
    "learned feature map": 9.04,
    "no gate": 3.00,
    "no LoRA": 3.23,
    "no window": 3.75,
    "no recurrence": 3.01,
}


def run_one(variant: Variant, recipe: Recipe, held_out: HeldOut, output_dir: Path) -> dict[str, Any]:
    """Linearize, recover, measure: one variant, one seed."""
    model, tokenizer = load_teacher()
    torch.manual_seed(recipe.seed)  # of what is drawn at random before recovery draws LoRA
    settings: dict[str, Any] = {"structure": "gla", "window": WINDOW, **variant.linearize}
    if not variant.lora:
        reports = branch_ablation(linearize(model, **settings), held_out)
    else:
        rows, how = World(tokenizer, recipe.rows, seed=recipe.seed), {"train_in_full": variant.train_in_full}
        reports = travel(
            model, rows, held_out, output_dir, recipe=recipe, change=variant.change, **how, **settings
        ).after
    return {name: report.to_dict() for name, report in reports.items()}


def run(
    output_dir: str | Path = "runs/ablation",
    *,
    table: str = "paper",
    seeds: Sequence[int] = (0, 1, 2),
    variants: Iterable[str] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """One of the tables; writes ``ablation.json`` into `output_dir`.

    Args:
        table: "paper" or "memory".
        seeds: of LoRA, the data and what a variant draws at random; the held-out rows stay the same.
        variants: some of the table's; None takes all.
        changes: fields of the table's recipe that are to be different, such as `steps`.
    Raises:
        ValueError: an unknown table or variant.
        FileExistsError: `output_dir` holds another run, or something else.
    """
    if table not in TABLES:
        raise ValueError(f"unknown table {table!r}: allowed are {', '.join(map(repr, TABLES))}")
    chosen, recipe = TABLES[table].variants, dataclasses.replace(TABLES[table].recipe, **changes)
    variants = list(chosen if variants is None else variants)
    if unknown := set(variants) - set(chosen):
        raise ValueError(f"unknown variants {sorted(unknown)}: allowed are {', '.join(map(repr, chosen))}")
    output_dir = Path(output_dir)
    claim(output_dir / "recipe.json", {"table": table, **dataclasses.asdict(recipe)})
    teacher, tokenizer = load_teacher()
    held_out = HeldOut(tokenizer)
    result: dict[str, Any] = {"table": table, "recipe": dataclasses.asdict(recipe), "seeds": list(seeds)}
    result["window"] = WINDOW
    result["teacher"] = evaluate(teacher, held_out, window=WINDOW).to_dict()
    if table == "paper":
        result["paper_perplexity"] = PAPER_PERPLEXITY  # another model and corpus: the order may be compared
    result["variants"] = {}
    for name in variants:
        runs = []
        for seed in seeds:
            path = output_dir / f"{name.replace(' ', '-')}-{seed}.json"
            if not path.is_file():
                seeded = dataclasses.replace(recipe, seed=seed)
                report = run_one(chosen[name], seeded, held_out, output_dir / path.stem)
                write_atomically(path, json.dumps(report, indent=1))
            runs.append(json.loads(path.read_text()))
        numbers = summary(runs)
        result["variants"][name] = {"linearize": chosen[name].linearize, "summary": numbers, "runs": runs}
        print(f"{name:24}" + "".join(f"  {k} {m:.3f} ± {s:.3f}" for k, (m, s) in numbers.items()), flush=True)
    result["provenance"] = provenance()
    write_atomically(output_dir / "ablation.json", json.dumps(result, indent=1))
    return result


def summary(runs: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over seeds (0 of a single one) of what the table shows."""

    def over_seeds(values: list[float]) -> tuple[float, float]:
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    return {
        "perplexity": over_seeds([run["both"]["perplexity"] for run in runs]),
        "inside": over_seeds([run["both"]["recall_inside"] for run in runs]),
        "outside": over_seeds([run["both"]["recall_outside"] for run in runs]),
        "outside, window only": over_seeds([run["window only"]["recall_outside"] for run in runs]),
    }
