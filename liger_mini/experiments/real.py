"""What does a recurrence add to a window with a sink? Asked of a real language model (chapter 12).

A table has rows: ways to linearize the model, untrained, or recovered with the same tokens and the same LoRA. Among them are
the opponents: a window and its sink alone, and the teacher itself with the same training, because LoRA also learns the
documentation it is trained on. Every row reads the same held-out text, and rows are compared pair by pair.

A finished row is a file of its own, so an interrupted table goes on where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liger_mini.attention import liger_layers
from liger_mini.convert import linearize
from liger_mini.corpora import (
    Documentation,
    OwnAnswers,
    PhoneBooks,
    SeededRows,
    held_out_answers,
    pydocs_rows,
    pydocs_tokens,
    source_rows,
)
from liger_mini.evaluation import (
    agreement,
    branches,
    choices,
    loss_by_position,
    loss_by_repeat,
    paired,
    remember,
    row_losses,
    short_answers,
)
from liger_mini.evaluation.language import REPEATS, Remembered, mean
from liger_mini.evaluation.language_tasks import TASKS, questions, recall_by_generation
from liger_mini.evaluation.measure import BRANCHES
from liger_mini.experiments.embedded import load_recovered, load_smollm2
from liger_mini.experiments.variants import learned_features, one_normaliser, ramp
from liger_mini.recovery import Recipe, recover
from liger_mini.structures import structures
from liger_mini.support.paths import claim, write_atomically
from liger_mini.support.provenance import provenance
from liger_mini.support.tables import Table

EVERYTHING = 8192  # a window over every row that is read here: the teacher's own attention
# tasks of recall, and how many tokens back the answer is: near, and beyond what thirty windows of 16 pass on
ASKED = (("phone_book", 100), ("phone_book", 500), ("passkey", 100), ("passkey", 500))
NEAR = 64
TELLING_ROWS = 4  # from which half-lives are read off the teacher
EDGES, FAR_ROWS = (512, 1024, 2048, 4096, 8192), 4


@dataclass(frozen=True)
class Way:
    """One way to linearize, and whether LoRA is trained after it.

    Attributes:
        settings: arguments of `linearize`.
        change: what is done after that. train_in_full: what is trained besides LoRA.
        adapter: a recovery that comes along (`load_recovered`), in place of all this.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    change: Callable[[PreTrainedModel], None] | None = None
    train_in_full: tuple[str, ...] = ()
    adapter: str | None = None


def window(W: int, sinks: int = 1, *, structure: str = "gated_deltanet", mix: Any = (0.0, 1.0), **more: Any) -> Way:
    """Softmax attention over the last W tokens and the first `sinks`; alone, unless `mix` gives the recurrence a part."""
    return Way({"structure": structure, "window": W, "sinks": sinks, "mix": mix, **more})


WAYS: dict[str, Way] = {
    "teacher": window(EVERYTHING, 0),
    "window 64": window(64, 0),
    "window 64 + sink": window(64),
    "window 64 + 4 sinks": window(64, 4),
    "window 64 + sink, half": window(64, mix=(0.0, 0.5)),
    "window 96 + sink": window(96),  # 32 keys and values more: the bytes of a state of 64 x 64
    "window 16": window(16, 0),
    "window 16 + sink": window(16),
    "paper's way": window(64, 0, structure="gla", mix=0.5),
    **{f"{name}, half": window(64, structure=name, mix=0.5) for name in structures},
    **{f"{name}, a tenth": window(64, structure=name, mix=(0.1, 1.0)) for name in structures},
    "hedgehog_deltanet, a fiftieth": window(64, structure="hedgehog_deltanet", mix=(0.02, 1.0)),
    "hedgehog_deltanet, a ramp": dataclasses.replace(
        window(64, structure="hedgehog_deltanet", mix=(0.1, 1.0)), change=ramp
    ),
    "one normaliser": dataclasses.replace(window(64, structure="linear"), change=one_normaliser),
    "hedgehog_deltanet, a tenth, window 16": window(16, structure="hedgehog_deltanet", mix=(0.1, 1.0)),
    "hedgehog_deltanet, a tenth, half-lives told": window(
        64, structure="hedgehog_deltanet", mix=(0.1, 1.0), temper="teacher"
    ),
    "hedgehog_deltanet, half on top": window(64, structure="hedgehog_deltanet", mix=(0.5, 1.0)),
    **{
        f"{name}, half, window 16": window(16, structure=name, mix=(0.5, 1.0))
        for name in ("hedgehog_deltanet", "lightnet")
    },
    "recovered": Way(adapter="smollm2"),
    "learned features": dataclasses.replace(
        window(64, structure="gla", mix=0.5), change=learned_features, train_in_full=("q_features", "k_features")
    ),
}


@dataclass(frozen=True)
class Plan:
    """The ways of a table, and the recipe all of them get; without one they are measured as they are."""

    ways: tuple[str, ...]
    recipe: Recipe | None = None
    length: int = 1024  # tokens per row of training, and no more than in those that are measured
    rows: int | None = None  # of each text; None: all held-out documentation, and 48 of source code
    data: type[SeededRows] = Documentation  # what is trained on


# a hundred rows: first each layer learns to answer as the teacher's, then all of them the next token
SHORT = Recipe(rank=32, alpha=64, learning_rate=1e-3, batch_size=1, transfer_steps=60, steps=40)
# rows that ask again and again: so many that something was learned
ASKING = Recipe(rank=32, alpha=64, learning_rate=2e-3, batch_size=1, steps=600)
OPPONENTS = ("teacher", "window 64 + sink", "window 96 + sink", "paper's way")
CHOSEN = "hedgehog_deltanet, a tenth"
PLANS = {
    "journey": Plan(("window 64", "window 64 + sink", CHOSEN, "recovered"), rows=4),
    "untrained": Plan(tuple(name for name in WAYS if name not in ("recovered", "learned features"))),
    "screen": Plan(
        (
            *OPPONENTS,
            "gated_deltanet, half",
            "gated_deltanet, a tenth",
            CHOSEN,
            "hedgehog_deltanet, a tenth, half-lives told",
            "lightnet, a tenth",
            "learned features",
            "window 16 + sink",
            "hedgehog_deltanet, a tenth, window 16",
        ),
        SHORT,
    ),
    "answers": Plan(("recovered", "window 64 + sink", CHOSEN), SHORT, data=OwnAnswers),
    "recall": Plan(("teacher", "window 16 + sink", "hedgehog_deltanet, half, window 16"), ASKING, data=PhoneBooks),
    "long": Plan(
        ("teacher", "window 64 + sink", "hedgehog_deltanet, half on top"), dataclasses.replace(SHORT, steps=1000)
    ),
}


@dataclass(frozen=True)
class Texts:
    """What every row of a table reads, and what the teacher said to it."""

    rows: dict[str, list[list[int]]]
    told: dict[str, Remembered]

    @classmethod
    def of(
        cls,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        rows: int | None,
        data: type[SeededRows],
    ) -> Texts:
        """Held-out documentation, and source code, which no recovery here is trained on; `rows` of each, None for all.

        Where a recovery is trained on the model's own answers, also those that are held out.
        """
        made = {
            "pydocs": pydocs_rows(tokenizer, length=length, rows=rows),
            "pysource": source_rows(tokenizer, length=length, rows=48 if rows is None else rows),
        }
        if data is OwnAnswers:
            made["answers"] = held_out_answers(tokenizer, length=length, rows=rows)
        return cls(made, {name: remember(teacher, some) for name, some in made.items()})


def on_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Texts) -> dict[str, Any]:
    """Loss, KL, agreement and entropy above the teacher's of each row of all texts; of pydocs also the loss of each branch."""
    found: dict[str, Any] = {}
    for name, rows in texts.rows.items():
        said = agreement(model, texts.told[name], rows)
        numbers = {"loss": said.per_row_loss, "kl": said.per_row_kl, "top1": said.per_row_top1}
        numbers["entropy"] = said.per_row_entropy
        found[name] = {what: [round(x, 5) for x in per_row.tolist()] for what, per_row in numbers.items()}
    found["branches"] = {}
    recurrent = any(layer.branches[0] for layer in liger_layers(model))
    for branch, weights in BRANCHES.items():
        if weights is not None and recurrent:
            with branches(model, weights):
                losses = row_losses(model, texts.rows["pydocs"], batch_size=1)
            found["branches"][branch] = [round(x, 5) for x in losses.tolist()]
    return found


def recall(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Texts) -> dict[str, Any]:
    """What it writes when asked for something told `distance` tokens before: right (1) or not (0), question by question."""
    found = {}
    for task, distance in ASKED:
        answers = recall_by_generation(model, tokenizer, questions(TASKS[task], tokenizer, distance))
        found[f"{task}, {distance}"] = {
            "right": [int(x) for x in answers.right.tolist()],
            "text": answers.groups,
            "distance": [question.distance for question in answers.questions],
            "chance": answers.chance,
        }
    return found


def far(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Texts) -> dict[str, Any]:
    """Loss by position in rows of 8,192 tokens of held-out documentation: [edge, mean, standard error] per bin."""
    tokens = pydocs_tokens("heldout", tokenizer)
    rows = [tokens[i * EDGES[-1] : (i + 1) * EDGES[-1]] for i in range(FAR_ROWS)]
    return {"edges": loss_by_position(model, rows, EDGES), "rows": FAR_ROWS}


def repeated(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Texts) -> dict[str, Any]:
    """Of each text and kind of token (new, repeated within a window of `NEAR`, repeated from farther): [loss, count] per row."""
    return {name: loss_by_repeat(model, rows, NEAR) for name, rows in texts.rows.items()}


def chat(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Texts) -> dict[str, Any]:
    """What it writes when it is asked for 36 simple facts, with nothing offered: right (1) or not (0), and the answers."""
    answers = short_answers(model, tokenizer)
    return {"right": [int(x) for x in answers.right.tolist()], "wrote": answers.wrote}


Measure = Callable[[PreTrainedModel, PreTrainedTokenizerBase, Texts], dict[str, Any]]
MEASURES: dict[str, Measure] = {"text": on_texts, "recall": recall, "far": far, "repeats": repeated, "chat": chat}
READ = ("text", "repeats")  # those that read `Texts`


def made(
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    name: str,
    plan: Plan,
    length: int,
    output_dir: Path,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Linearize, and recover if the plan says so: the model, its tokenizer, and how it was made."""
    way = WAYS[name]
    if way.adapter is not None:
        return *load_recovered(way.adapter), {"settings": {"adapter": way.adapter}}
    model, tokenizer = load()
    length, sample = min(plan.length, length), None
    if way.settings.get("temper") == "teacher":
        sample = [row["input_ids"] for row in plan.data(tokenizer, TELLING_ROWS, length=length)]
    linearize(model, sample=sample, **way.settings)
    how: dict[str, Any] = {"settings": {name: model.config.liger[name] for name in way.settings}}
    if way.change is not None:
        torch.manual_seed(0)
        way.change(model)
    if plan.recipe is not None:
        recipe = plan.recipe
        if way.settings["window"] == EVERYTHING:  # its attention is the teacher's already: there is nothing to transfer
            recipe = dataclasses.replace(recipe, transfer_steps=0)
        rows = plan.data(tokenizer, plan.recipe.rows, length=length, seed=plan.recipe.seed)
        done = recover(
            model, rows, output_dir=output_dir, recipe=recipe, train_in_full=way.train_in_full, save_every=20
        )
        how |= {"seconds": done.seconds, "tokens": done.tokens, "losses": done.losses}
    return model.eval(), tokenizer, how


def run(
    output_dir: str | Path = "runs/real",
    *,
    plan: str = "journey",
    ways: Iterable[str] | None = None,
    measures: Iterable[str] = ("text",),
    rows: int | None = None,
    length: int = 1024,
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]] = load_smollm2,
    **changes: Any,
) -> dict[str, Any]:
    """One of the tables; writes ``real.json`` into `output_dir` and returns it.

    Args:
        plan: "journey" (what comes along, beside its opponents), "untrained" (all ways), "screen" (100 rows of training for
            each), "answers" (100 rows, every other one of the model's own answers), "recall" (600 rows of phone books, which ask
            for what they told) or "long" (1,000 of documentation).
        ways: some of the plan's; None takes all.
        measures: what is asked of each: "text" (loss, KL and agreement on two texts), "recall" (what it writes when asked for
            something told before), "far" (loss by position to 8,192 tokens), "repeats" (loss of what is new in a row, and of
            what was there before), "chat" (whether it still answers 36 simple questions). More of them can be asked later: a
            recovery that is done is not done again.
        rows: of each text, for a first look; None: as many as the plan has.
        length: tokens per row that is measured, and at most so many in training.
        load: makes the model to linearize, anew each time, and its tokenizer.
        changes: fields of the plan's recipe that are to be different, such as `steps` or `seed`.
    Raises:
        ValueError: a plan, a way or a measure that does not exist, or a change to a plan without a recipe.
        FileExistsError: `output_dir` holds another table, or something else.
    """
    if plan not in PLANS:
        raise ValueError(f"unknown plan {plan!r}: allowed are {', '.join(map(repr, PLANS))}")
    chosen, asked = PLANS[plan], list(PLANS[plan].ways if ways is None else ways)
    if unknown := set(asked) - set(WAYS):
        raise ValueError(f"unknown ways {sorted(unknown)}: allowed are {', '.join(map(repr, WAYS))}")
    if unknown := set(measures := tuple(measures)) - set(MEASURES):
        raise ValueError(f"unknown measures {sorted(unknown)}: allowed are {', '.join(map(repr, MEASURES))}")
    if chosen.recipe is not None:
        chosen = dataclasses.replace(chosen, recipe=dataclasses.replace(chosen.recipe, **changes))
    elif changes:
        raise ValueError(f"the plan {plan!r} trains nothing, so {', '.join(changes)} cannot be changed")
    output_dir, rows = Path(output_dir), chosen.rows if rows is None else rows
    recipe = chosen.recipe and dataclasses.asdict(chosen.recipe)
    claim(
        output_dir / "table.json",
        {"plan": plan, "rows": rows, "length": length, "training_length": chosen.length, "recipe": recipe},
    )
    texts = Texts({}, {})
    if set(READ) & set(measures):
        print("reading the texts with the teacher, once", flush=True)
        texts = Texts.of(*load(), length, rows, chosen.data)
    untouched = {name: told.losses.tolist() for name, told in texts.told.items()}
    result: dict[str, Any] = {
        "plan": plan,
        "length": length,
        "training_length": chosen.length,
        "recipe": recipe,
        "untouched": untouched,
        "ways": {},
    }
    for name in (bar := tqdm(asked, desc=plan, unit="way")):
        paths = {measure: _path(output_dir, name, measure) for measure in measures}
        if missing := [measure for measure, path in paths.items() if not path.is_file()]:
            model, tokenizer, how = made(load, name, chosen, length, _path(output_dir, name).with_suffix(""))
            for measure in missing:
                write_atomically(paths[measure], json.dumps(how | MEASURES[measure](model, tokenizer, texts)))
        found = {measure: json.loads(path.read_text("utf-8")) for measure, path in paths.items()}
        result["ways"][name] = found.pop("text", {}) | found
        if "text" in measures:
            bar.write(f"{name}: {_loss(result['ways'][name], 'pydocs')}")
    result["provenance"] = provenance()
    write_atomically(output_dir / "real.json", json.dumps(result))
    return result


NOTICE = """\
An adapter for SmolLM2-135M-Instruct (Hugging Face TB, Apache-2.0), made by this course; no weight of the base model is in it.
The change of W_q, W_k and W_v is licensed as the course's code, Apache-2.0. `liger_mini.experiments.load_recovered("{name}")`
loads both; `run.json` tells how it was trained.
"""


def keep(result: dict[str, Any], name: str, output_dir: str | Path, to: str | Path) -> None:
    """Save the adapter of one way of a finished table in bfloat16, with how it was made, for `load_recovered`.

    Args:
        result: what `run` returned for `output_dir`. to: the folder, "data/recovered/smollm2".
    Raises:
        ValueError: that way was not trained.
    """
    source, to = _path(Path(output_dir), name).with_suffix("") / "adapter", Path(to)
    if not source.is_dir():
        raise ValueError(f"{name!r} has no adapter in {source}: the plan {result['plan']!r} did not train it")
    to.mkdir(parents=True, exist_ok=True)
    weights = load_file(source / "adapter_model.safetensors")
    save_file({key: x.to(torch.bfloat16) for key, x in weights.items()}, to / "adapter_model.safetensors")
    (to / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    made = {"teacher": "smollm2", "liger": result["ways"][name]["settings"], "way": name}
    made |= {what: result[what] for what in ("plan", "recipe", "training_length", "provenance")}
    write_atomically(to / "run.json", json.dumps(made, indent=1))
    write_atomically(to / "NOTICE.md", NOTICE.format(name=to.name))


def _path(output_dir: Path, name: str, measure: str = "text") -> Path:
    """Where a way's numbers are; its training is in the folder of that name."""
    stem = name.replace(", ", "-").replace(" + ", "-").replace(" ", "-")
    return output_dir / (f"{stem}.json" if measure == "text" else f"{stem}.{measure}.json")


def _loss(found: dict[str, Any], text: str) -> str:
    return f"{_mean(found[text]['loss']):.3f}"


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def summary(result: dict[str, Any], against: str) -> str:
    """The table in sentences: where each way stands, and whether it differs from `against` by more than the noise."""
    told = []
    for text, teacher in result["untouched"].items():
        told.append(f"On {text} the untouched teacher has {_mean(teacher):.3f} nats per token.")
        for name, found in result["ways"].items():
            above = paired(found[text]["loss"], teacher)
            told.append(f"{name}: {above.mean:+.3f} above it")
            d = paired(found[text]["loss"], result["ways"][against][text]["loss"])
            verdict = (
                "the same"
                if name == against
                else f"{abs(d.sigmas):.1f} standard errors {'below' if d.mean < 0 else 'above'} {against}"
            )
            told[-1] += f" ({verdict})."
    return " ".join(told)


def table(result: dict[str, Any], against: str, text: str = "pydocs") -> Table:
    """Loss and KL of each way, the difference to `against` pair by pair, and what its recurrence is worth.

    Args:
        result: what `run` returns. against: the way that all are compared with; it has to be in the result.
    """
    base, three = result["ways"][against][text], lambda numbers: f"{_mean(numbers):.3f}"

    def difference(what: str, found: dict[str, Any]) -> str:
        d = paired(found[text][what], base[what])
        return f"{d.mean:+.3f} ± {d.standard_error:.3f}"

    return Table.of(
        result["ways"].items(),
        {
            "model": lambda item: item[0],
            "loss": lambda item: three(item[1][text]["loss"]),
            f"loss, minus {against}": lambda item: difference("loss", item[1]),
            "KL from the teacher": lambda item: three(item[1][text]["kl"]),
            f"KL, minus {against}": lambda item: difference("kl", item[1]),
            "same first choice": lambda item: three(item[1][text]["top1"]),
        },
        f"{len(base['loss'])} rows of {result['length']} tokens of {text}; nats per token; differences are paired by row.",
    )


def recall_table(result: dict[str, Any]) -> Table:
    """Share of right answers of each way, with its standard error (questions about one text are not independent)."""

    def share(task: str, way: tuple[str, dict[str, Any]]) -> str:
        asked = way[1]["recall"][task]
        right, error = mean(torch.tensor(asked["right"], dtype=torch.float64), asked["text"])
        return f"{right:.2f} ± {error:.2f}"

    columns: dict[str, Callable] = {"model": lambda way: way[0]}
    asked = next(iter(result["ways"].values()))["recall"]  # a record of an earlier day asked other things
    columns |= {f"{task} tokens back": functools.partial(share, task) for task in asked if ", " in task}
    return Table.of(result["ways"].items(), columns, "Share of answers written right; a number is whole or wrong.")


def far_table(result: dict[str, Any]) -> Table:
    """Loss of each way in the bins of `EDGES`."""

    def loss(bin: int, way: tuple[str, dict[str, Any]]) -> str:
        _, centre, error = way[1]["far"]["edges"][bin]
        return f"{centre:.3f} ± {error:.3f}"

    columns: dict[str, Callable] = {"model": lambda way: way[0]}
    columns |= {f"to {edge:,}": functools.partial(loss, i) for i, edge in enumerate(EDGES)}
    return Table.of(result["ways"].items(), columns, f"Nats per token of {FAR_ROWS} rows of pydocs, by position.")


def repeats_table(result: dict[str, Any], text: str = "pydocs") -> Table:
    """Loss of each way on tokens that are new, repeated within `NEAR` tokens, or repeated from farther; share of each."""
    some = next(iter(result["ways"].values()))["repeats"][text]
    tokens = {kind: sum(some[kind][1]) for kind in REPEATS}
    words = {"new": "new", "near": f"seen within {NEAR} tokens", "far": "seen before those"}

    def loss(kind: str, way: tuple[str, dict[str, Any]]) -> str:
        sums, counts = way[1]["repeats"][text][kind]
        return f"{sum(sums) / sum(counts):.3f}"

    columns: dict[str, Callable] = {"model": lambda way: way[0]}
    for kind, said in words.items():
        columns[f"{said} ({tokens[kind] / sum(tokens.values()):.0%} of tokens)"] = functools.partial(loss, kind)
    caption = (
        f"Nats per token of {text}. A token is seen before if the pair of it and the one before it stood in the row."
    )
    return Table.of(result["ways"].items(), columns, caption)


def chat_table(result: dict[str, Any]) -> Table:
    """Share of simple facts that each way still tells when it is asked, and its standard error; and what it writes to the first."""

    def share(way: tuple[str, dict[str, Any]]) -> str:
        right, error = mean(torch.tensor(way[1]["chat"]["right"], dtype=torch.float64))
        return f"{right:.2f} ± {error:.2f}"

    columns: dict[str, Callable] = {"model": lambda way: way[0], "right": share}
    columns[choices()[0].question] = lambda way: way[1]["chat"]["wrote"][0]
    ways = {name: way for name, way in result["ways"].items() if "chat" in way}
    return Table.of(
        ways.items(), columns, f"{len(choices())} questions in the chat template, nothing offered, 24 tokens."
    )


TABLES = {"recall": recall_table, "far": far_table, "repeats": repeats_table, "chat": chat_table}
