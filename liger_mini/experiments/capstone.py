"""The capstone: a gate or a write rule of one's own, trained on a fixed budget, judged on held-out recall and loss.

A submission is a Python file that defines ``structure``, and whatever else it wants of ``mix``, ``recipe`` and ``rows``
(`Submission`). Everybody gets the embedded teacher, windows of 16 tokens, rows of 256, and the same number of steps.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liger_mini.attention import liger_layers
from liger_mini.corpora import World
from liger_mini.evaluation import HeldOut
from liger_mini.experiments.embedded import WINDOW, load_teacher
from liger_mini.experiments.journey import travel
from liger_mini.recovery import Recipe
from liger_mini.structures import Structure, structures
from liger_mini.support.paths import claim, data_dir, write_atomically
from liger_mini.support.provenance import provenance
from liger_mini.support.tables import Table

BUDGET = Recipe(rank=64, alpha=128, learning_rate=5e-3, batch_size=8, transfer_steps=120, steps=220)
FIXED = ("batch_size", "steps", "transfer_steps", "epochs", "packing")  # what the budget is made of
LENGTH = 256  # tokens per row, at most
RUN = 32  # tokens in a row that are not found in two texts by chance
BASELINES = ("gla", "lightnet", "gated_deltanet", "hedgehog_deltanet")  # the course's own entries


@dataclass(frozen=True)
class Submission:
    """What a team hands in.

    Attributes:
        structure: a `Structure`, such as an instance of a class that overrides `log_gate` or `inputs`; or the name of one of
            the course's. It has no parameters, and reads the raw projections q, k and v.
        mix: the weight of the recurrence, from 0 to 1.
        recipe: fields of `Recipe` that are to be different. The budget stays: steps, transfer_steps and batch_size.
        rows: (tokenizer, number of rows) -> what to train on; None takes the course's own.
        source: of the file; a run is gone on with only if it is still the same.
    """

    structure: Structure | str
    mix: float = 0.5
    recipe: dict[str, Any] = field(default_factory=dict)
    rows: Callable[[PreTrainedTokenizerBase, int], Dataset] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.structure, str) and self.structure not in structures:
            raise ValueError(f"structure = {self.structure!r}: allowed are {', '.join(structures)}, or a Structure")
        if not isinstance(self.structure, (str, Structure)):
            raise TypeError(
                f"structure is a {type(self.structure).__name__}; it has to be a Structure, or the name of one"
            )
        allowed = {f.name for f in dataclasses.fields(Recipe)} - set(FIXED)
        if other := set(self.recipe) - allowed:
            raise ValueError(f"recipe sets {', '.join(sorted(other))}: allowed are {', '.join(sorted(allowed))}")


def read(path: str | Path) -> Submission:
    """The submission in a Python file.

    Raises:
        FileNotFoundError: no such file. ValueError: it defines no `structure`, or something that is not allowed.
        Whatever the file itself raises.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no submission at {path}: give a Python file that defines `structure`")
    spec = importlib.util.spec_from_file_location(f"submission_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "structure"):
        raise ValueError(f"{path} defines no `structure`: an instance of liger_mini.structures.Structure, or a name")
    names = [f.name for f in dataclasses.fields(Submission) if f.name != "source" and hasattr(module, f.name)]
    return Submission(**{name: getattr(module, name) for name in names}, source=path.read_text("utf-8"))


def leaks(rows: Iterable[Sequence[int]], held_out: HeldOut) -> list[str]:
    """Which held-out rows stand in these training rows, by half or more of their runs of `RUN` tokens.

    Half, because texts share phrases: two stories a sentence, two modules a licence.
    """
    wanted = {f"story {i}": row["input_ids"] for i, row in enumerate(held_out.story_rows)}
    wanted |= {f"document {i}": row["input_ids"] for i, row in enumerate(held_out.document_rows)}
    runs = {name: set(_runs(ids)) for name, ids in wanted.items()}
    known = set().union(*runs.values())
    seen = {run for ids in rows for run in _runs(ids) if run in known}
    return [name for name, own in runs.items() if own and len(own & seen) >= len(own) / 2]


def _runs(ids: Sequence[int]) -> Iterable[tuple[int, ...]]:
    ids = tuple(ids)
    return (ids[i : i + RUN] for i in range(len(ids) - RUN + 1))


def train_on(submission: Submission, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, held_out: HeldOut) -> Dataset:
    """The rows a submission trains on, once they are allowed.

    Raises:
        ValueError: too few rows, one that is too long, or rows that are evaluated.
    """
    rows = (submission.rows or World)(tokenizer, recipe.rows)
    if len(rows) < recipe.rows:
        raise ValueError(f"rows has {len(rows)} rows; the budget reads {recipe.rows}")
    ids = [rows[i]["input_ids"] for i in range(recipe.rows)]
    if (longest := max(map(len, ids))) > LENGTH:
        raise ValueError(f"rows has a row of {longest} tokens; the budget allows {LENGTH}")
    if found := leaks(ids, held_out):
        raise ValueError(
            f"the rows to train on hold what is evaluated: {', '.join(found[:3])}{' …' * (len(found) > 3)}. Train on the "
            'split "train", or on texts of your own'
        )
    return rows


def judge(
    submission: Submission, name: str, output_dir: str | Path = "runs/capstone", **changes: Any
) -> dict[str, Any]:
    """Train a submission on the budget and measure it; writes ``NAME.json`` into `output_dir`. It resumes.

    Args:
        changes: fields of the budget that are to be different, for a rehearsal; the result tells them.
    Raises:
        ValueError: see `train_on`, or a name that is no file's. FileExistsError: the name is another submission's.
    """
    if not name or Path(name).name != name:
        raise ValueError(f"name = {name!r}: it names a file, so it has no slash")
    recipe = dataclasses.replace(BUDGET, **{**submission.recipe, **changes})
    folder = Path(output_dir) / name
    asked = {"structure": repr(submission.structure), "source": submission.source, "recipe": dataclasses.asdict(recipe)}
    claim(folder / "submission.json", asked)
    teacher, tokenizer = load_teacher()
    held_out = HeldOut(tokenizer)
    rows = train_on(submission, tokenizer, recipe, held_out)
    base, own = (
        (submission.structure, None) if isinstance(submission.structure, str) else ("linear", submission.structure)
    )
    journey = travel(
        teacher,
        rows,
        held_out,
        folder / "run",
        recipe=recipe,
        change=None if own is None else lambda model: _give(model, own),
        structure=base,
        window=WINDOW,
        mix=submission.mix,
    )
    result = {
        "name": name,
        "structure": repr(submission.structure),
        "mix": submission.mix,
        "recipe": dataclasses.asdict(recipe),
        "after": {branch: report.to_dict() for branch, report in journey.after.items()},
        "provenance": provenance(),
    }
    write_atomically(Path(output_dir) / f"{name}.json", json.dumps(result, indent=1))
    return result


def train_baselines(output_dir: str | Path, output: str | Path) -> None:
    """Judge the course's own entries in `output_dir`, and write the record that every leaderboard shows to `output`."""
    entries = [judge(Submission(name), name, output_dir) for name in BASELINES]
    write_atomically(Path(output), json.dumps({"provenance": provenance(), "entries": entries}, indent=1))


def _give(model: PreTrainedModel, structure: Structure) -> None:
    for layer in liger_layers(model):
        layer.structure = structure


def leaderboard(output_dir: str | Path | None = "runs/capstone") -> Table:
    """Every result in a folder beside the course's own entries, the best recall first; None: the course's alone."""
    record = data_dir() / "results" / "capstone-cpu.json"
    entries = json.loads(record.read_text("utf-8"))["entries"] if record.is_file() else []
    results = [] if output_dir is None else sorted(Path(output_dir).glob("*.json"))
    mine = [json.loads(path.read_text("utf-8")) for path in results]
    entries = [entry | {"name": f"{entry['name']} (the course's)"} for entry in entries] + mine

    def outside(entry: dict[str, Any], branch: str = "both") -> str:
        recall = entry["after"][branch]["recall"]["outside"]
        error = (recall["recall"] * (1 - recall["recall"]) / recall["questions"]) ** 0.5
        return f"{recall['recall']:.2f} ± {error:.2f}"

    entries.sort(key=lambda entry: -entry["after"]["both"]["recall_outside"])
    return Table.of(
        entries,
        {
            "entry": lambda entry: entry["name"],
            "recall outside": outside,
            "window only": lambda entry: outside(entry, "window only"),
            "loss": lambda entry: f"{entry['after']['both']['loss']:.3f}",
            "steps": lambda entry: f"{entry['recipe']['transfer_steps']} + {entry['recipe']['steps']}",
        },
        f"Recall of what was told beyond the windows' reach, on held-out stories; windows of {WINDOW}, rows of {LENGTH}.",
    )
