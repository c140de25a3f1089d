"""Races (chapter 10): our forms and their peers on the same inputs, in turns; each race is saved as it ends.

A row is one contestant of one race: its seconds, and their ratio to those of the first contestant, turn by turn, as median
and quartiles. A contestant that is not installed, raises, or needs more memory than is free has a row that says so.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import shutil
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel

from liger_mini.convert import linearize
from liger_mini.experiments import WINDOW as EMBEDDED_WINDOW
from liger_mini.experiments import profile
from liger_mini.experiments.benchmark import (
    HEADS,
    KERNEL_LENGTHS,
    WIDTH,
    WINDOW,
    causal_softmax,
    decode,
    decode_against_prefill,
    growth,
    in_turns,
    kernels,
    random_ids,
    random_inputs,
    reason,
    recurrences,
    stream,
    trainer,
)
from liger_mini.experiments.embedded import load_recovered, load_smollm2, load_teacher
from liger_mini.recurrences import gated_recurrence
from liger_mini.support.paths import claim, write_atomically
from liger_mini.support.provenance import provenance
from liger_mini.window import sliding_window_attention

LENGTHS: dict[str, tuple[int, ...]] = {
    "recurrence": (512, 2048),
    "layer": (1024, 2048, 4096, 8192, 16384, 32768),
    "prefill": (512, 2048),
    "decode": (1024, 8192, 16384),
    "recovery": (512, 1024),
}
DTYPES = (torch.float32, torch.bfloat16)
LONGEST_BACKWARD = 8192
TOKENS = 64  # that are decoded
BUDGET = 15  # seconds for the turns of a race, where three of each take less
DIRECTIONS = ("forward", "forward + backward")
FORMS = ("chunked", "compiled", "naive")


@dataclass(frozen=True)
class Contestant:
    """Something to time, and about how many bytes it needs beyond its inputs."""

    run: Callable[[], Any]
    bytes: float = 0


Contestants: TypeAlias = "dict[str, Contestant | str]"  # by name; a text says why one cannot take part
Races: TypeAlias = "Iterator[tuple[str, str, Callable[[], Contestants]]]"  # (subject, direction, who takes part)


def race(contestants: Contestants, repeats: int = 3) -> Iterator[dict[str, Any]]:
    """A row each: seconds in turns and their ratio to the first contestant's; or the reason why there are none.

    Args:
        repeats: how often; if that takes little time, it is done again with up to 15.
    """
    reasons = {name: _reason(contestant) for name, contestant in contestants.items()}
    ready = {name: c.run for name, c in contestants.items() if isinstance(c, Contestant) and not reasons[name]}
    times = in_turns(ready, repeats=repeats)
    round_s = sum(sum(x["seconds"]) for x in times.values()) / repeats
    if repeats < 15 and ready and (more := min(15, int(BUDGET / max(round_s, 1e-9)))) > repeats:
        times = in_turns(ready, repeats=more)
    first = next(iter(contestants))
    for name in contestants:
        row: dict[str, Any] = {"contestant": name}
        if reasons[name]:
            row["reason"] = reasons[name]
        else:
            row["times"] = times[name]
            if first in times:
                row |= {"against": first, "ratio": _quartiles(times[name]["seconds"], times[first]["seconds"])}
        yield row


def _quartiles(seconds: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    ratios = [x / y for x, y in zip(seconds, others)]
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
    return {"lower": lower, "median": median, "upper": upper}


def _reason(contestant: Contestant | str) -> str:
    """Why it cannot take part, in a line; nothing where it can: it has run once."""
    if isinstance(contestant, str):
        return contestant
    free = psutil.virtual_memory().available
    if contestant.bytes > 0.8 * free:
        return f"needs about {contestant.bytes / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
    try:
        contestant.run()
    except Exception as error:  # a peer may raise anything: that is its result
        return reason(error)
    return ""


# what races --------------------------------------------------------------------------------------------------------------


def recurrence_races(T: int, dtype: torch.dtype) -> Races:
    """Every recurrence in every form that a CPU runs, and fla's naive reference."""
    for name, reference in REFERENCES.items():
        for direction in DIRECTIONS:
            yield name, direction, functools.partial(_recurrence, name, reference, direction, T, dtype)


def _recurrence(name: str, reference: Callable, direction: str, T: int, dtype: torch.dtype) -> Contestants:
    call = recurrences(*random_inputs(T, dtype, requires_grad=True))[name]
    kept = (
        12 * T * HEADS * WIDTH**2 if direction == DIRECTIONS[1] else 0
    )  # by autograd of a loop: states, and parts of them
    turn = functools.partial(directed, direction, call.args)
    ours = {form: functools.partial(call, backend=form) for form in FORMS}
    contestants: Contestants = {form: Contestant(turn(run), kept * (form == "naive")) for form, run in ours.items()}
    theirs = functools.partial(reference, *call.args)
    return contestants | {"fla's naive reference": Contestant(turn(theirs), kept)}


def _fla(path: str) -> Callable[..., Any]:
    """A loop of flash-linear-attention, found when it is called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        module, name = path.rsplit(".", 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that this machine has no GPU
            return getattr(importlib.import_module(f"fla.ops.{module}"), name)(*args, **kwargs)

    return call


def directed(direction: str, leaves: Sequence[torch.Tensor], call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` without a graph; or with it, and the gradient of every leaf by its output (or the first of them)."""

    def forward_backward() -> None:
        output = call()
        output = output[0] if isinstance(output, tuple) else output
        torch.autograd.grad(output, leaves, torch.ones_like(output), allow_unused=True)

    return torch.no_grad()(call) if direction == DIRECTIONS[0] else forward_backward


def layer_races(T: int, dtype: torch.dtype) -> Races:
    """A layer's attention, recurrence and window, beside softmax attention over everything and within the window."""
    for direction in DIRECTIONS[: 2 if T <= LONGEST_BACKWARD else 1]:
        yield "layer", direction, functools.partial(_layer, direction, T, dtype)


def _layer(direction: str, T: int, dtype: torch.dtype) -> Contestants:
    leaves = q, k, v, log_gate = random_inputs(T, dtype, requires_grad=True)
    heads_first = queries, keys, values = [x.transpose(1, 2) for x in (q, k, v)]
    turn = functools.partial(directed, direction, leaves)
    near = functools.partial(sliding_window_attention, q, k, v, WINDOW)

    def layer(backend: str = "auto") -> torch.Tensor:
        return gated_recurrence(q.softmax(-1), k.softmax(-1), v, log_gate, backend=backend)[0] + near()

    def masked() -> torch.Tensor:
        band = torch.ones(T, T, dtype=torch.bool).tril().triu(1 - WINDOW)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=band)

    pairs = T**2 * (6 if direction == DIRECTIONS[0] else 8 * HEADS)  # the mask; and scores of each head
    return {
        "recurrence + window": Contestant(turn(layer)),
        "recurrence + window, chunked": Contestant(turn(functools.partial(layer, "chunked"))),
        "causal SDPA": Contestant(turn(functools.partial(causal_softmax, *heads_first))),
        "window": Contestant(turn(near)),
        "SDPA, the window as a mask": Contestant(turn(masked), pairs),
        "FlexAttention, the window": "it has no backward on a CPU"
        if direction == DIRECTIONS[1]
        else Contestant(turn(functools.partial(_flex, *(x.detach() for x in heads_first)))),
    }


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    attention, blocks = _flex_compiled(q.shape[2])
    return attention(q, k, v, block_mask=blocks)


@functools.lru_cache(maxsize=1)
def _flex_compiled(T: int) -> tuple[Callable, Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def near(b, h, i, j):
        return (j <= i) & (j > i - WINDOW)

    return torch.compile(flex_attention), create_block_mask(near, None, None, T, T, device="cpu")


@dataclass(frozen=True)
class Models:
    """What is linearized, with which window; and what was recovered from it, if that races as well."""

    load: Callable[[], tuple[PreTrainedModel, Any]]
    window: int
    recovered: Callable[[], tuple[PreTrainedModel, Any]] | None = None

    def contestants(self, make: Callable[[PreTrainedModel], Callable[[], Any]], dtype: torch.dtype) -> Contestants:
        """What `make` does with each model."""
        ways: dict[str, Callable[[], PreTrainedModel]] = {
            "linearized": lambda: linearize(self.load()[0].to(dtype), window=self.window),
            "unconverted": lambda: self.load()[0].to(dtype),
        }
        if self.recovered is not None:
            load = self.recovered
            ways["recovered"] = lambda: load()[0].to(dtype)
        try:
            return {way: Contestant(make(model())) for way, model in ways.items()}
        except FileNotFoundError as error:
            return dict.fromkeys(ways, str(error))


MODELS = {"embedded teacher": Models(load_teacher, EMBEDDED_WINDOW), "SmolLM2": Models(load_smollm2, WINDOW)}
DECODING = MODELS | {
    "SmolLM2": dataclasses.replace(MODELS["SmolLM2"], recovered=functools.partial(load_recovered, "smollm2"))
}


def _of_models(
    direction: str,
    make: Callable[[PreTrainedModel, int], Callable],
    T: int,
    dtype: torch.dtype,
    models: Mapping[str, Models] = MODELS,
) -> Races:
    """What `make` does with a model and T, with each model linearized and as it was."""
    for name, some in models.items():
        yield name, direction, functools.partial(some.contestants, functools.partial(make, T=T), dtype)


def _reader(model: PreTrainedModel, T: int) -> Callable[[], Any]:
    """Reads T tokens at once: prefill."""
    return torch.no_grad()(functools.partial(model, random_ids(model, T), use_cache=False, logits_to_keep=1))


@torch.no_grad()
def _writer(model: PreTrainedModel, T: int) -> Callable[[], Any]:
    """Writes one token more with each call, after T that were read in pieces, which need less memory at once."""
    cache, token = DynamicCache(config=model.config), torch.tensor([[2]])
    for piece in random_ids(model, T).split(1024, dim=1):
        model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return torch.no_grad()(functools.partial(model, token, past_key_values=cache, use_cache=True))


REFERENCES: dict[str, Callable] = {  # each takes what our own recurrence takes
    "diagonal": lambda q, k, v, g: _fla("gla.naive.naive_recurrent_gla")(q * WIDTH**0.5, k, v, g),  # it divides by √K
    "scalar": lambda *inputs: _fla("simple_gla.naive.naive_recurrent_simple_gla")(*inputs, scale=1.0),
    "slots": lambda *inputs: _fla("gsa.naive.naive_recurrent_gsa")(*inputs, 1.0),
    "delta": lambda *inputs: _fla("gated_delta_rule.naive.naive_recurrent_gated_delta_rule")(*inputs, 1.0),
}
PARTS: dict[str, Callable[[int, torch.dtype], Races]] = {
    "recurrence": recurrence_races,
    "layer": layer_races,
    "prefill": functools.partial(_of_models, DIRECTIONS[0], _reader),
    "decode": functools.partial(_of_models, DIRECTIONS[0], _writer, models=DECODING),
    "recovery": functools.partial(_of_models, DIRECTIONS[1], trainer),
}


# the record --------------------------------------------------------------------------------------------------------------


def run(
    output: str | Path = "runs/benchmark.json", parts: Sequence[str] = (), lengths: Sequence[int] | None = None
) -> dict[str, Any]:
    """The races of these parts (of all, and what the chapters read besides), written as JSON.

    The part "kernels" is for a GPU: Triton's beside their peers (`benchmark.kernels`). It is in all of them where there is one.

    An interrupted run keeps its races in the folder ``<output>.races``; the same command goes on from there.

    Args:
        lengths: T of every part, instead of `LENGTHS`.
    Raises:
        ValueError: an unknown part, a length below 1.
        FileExistsError: the folder holds races of other lengths, another machine or version.
    """
    if unknown := set(parts) - {*PARTS, "kernels"}:
        raise ValueError(f"unknown parts {sorted(unknown)}: allowed are {', '.join(map(repr, (*PARTS, 'kernels')))}")
    if "kernels" in parts and not torch.cuda.is_available():
        raise ValueError("the part 'kernels' times what runs on a GPU, and PyTorch sees none here; leave it out")
    if lengths and min(lengths) < 1:
        raise ValueError(f"lengths = {list(lengths)}: allowed are whole numbers ≥ 1")
    output = Path(output)
    folder = output.with_suffix(".races")
    machine = {name: x for name, x in provenance().items() if name != "date"}
    claim(folder / "run.json", {"lengths": lengths, **machine})
    rows = list(_rows((part for part in parts or PARTS if part in PARTS), lengths, folder))
    result = {"rows": rows, **(_read_by_chapters(rows, folder) if not parts else {}), "provenance": provenance()}
    if torch.cuda.is_available() and (not parts or "kernels" in parts):
        result["kernels"] = [
            row
            for T in lengths or KERNEL_LENGTHS
            for row in _once(folder / f"kernels-{T}.json", functools.partial(kernels, (T,)))
        ]
    write_atomically(output, json.dumps(result, indent=1))
    shutil.rmtree(folder)
    return result


def _rows(parts: Iterable[str], lengths: Sequence[int] | None, folder: Path) -> Iterator[dict[str, Any]]:
    for part, dtype in ((name, dtype) for name in parts for dtype in DTYPES):
        for T in lengths or LENGTHS[part]:
            for subject, direction, contestants in PARTS[part](T, dtype):
                kind = str(dtype).removeprefix("torch.")
                about = {"part": part, "subject": subject, "T": T, "dtype": kind, "direction": direction}
                repeats = TOKENS if part == "decode" else 3
                measure = lambda: [about | row for row in race(contestants(), repeats)]  # noqa: B023, E731
                yield from _once(folder / ("-".join(map(str, about.values())).replace(" ", "") + ".json"), measure)


def _once(path: Path, measure: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What `measure` gives, kept in a file: it is measured only where that is missing."""
    if not path.is_file():
        result = measure()
        write_atomically(path, json.dumps(result, indent=1))
        for row in result:
            if "contestant" in row:
                print(line(row), flush=True)
    return json.loads(path.read_text("utf-8"))


def _read_by_chapters(rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Chunked against naive and against softmax, picked from the rows; how time grows, and the embedded model's decoding."""

    def times(part: str, T: int, subject: str, contestant: str) -> dict[str, Any]:
        wanted = {"part": part, "T": T, "subject": subject, "contestant": contestant}
        wanted |= {"dtype": "float32", "direction": "forward"}
        return next(row["times"] for row in rows if row.items() >= wanted.items())

    result: dict[str, Any] = {"chunked_against_naive": [], "liger_against_softmax": []}
    T = max(row["T"] for row in rows if row["part"] == "recurrence")
    for name in REFERENCES:
        pair = {form: times("recurrence", T, name, form) for form in ("naive", "chunked")}
        ratio = pair["naive"]["median_s"] / pair["chunked"]["median_s"]
        result["chunked_against_naive"].append({"recurrence": name, "T": T, "times": pair, "naive_over_chunked": ratio})
    for T in dict.fromkeys(row["T"] for row in rows if row["part"] == "layer"):
        contestants = {"liger": "recurrence + window, chunked", "softmax": "causal SDPA"}
        pair = {side: times("layer", T, "layer", name) for side, name in contestants.items()}
        ratio = pair["softmax"]["median_s"] / pair["liger"]["median_s"]
        result["liger_against_softmax"].append({"T": T, "times": pair, "softmax_over_liger": ratio})
    result["growth"] = _once(folder / "growth.json", growth)
    model = linearize(load_teacher()[0], window=EMBEDDED_WINDOW)
    first, *_, last = result["decode"] = _once(folder / "decode.json", functools.partial(decode, model))
    result["decode_seconds_ratio"] = last["seconds_per_token"] / first["seconds_per_token"]
    result["decode_state_ratio"] = last["state_bytes"] / first["state_bytes"]
    result["profile"] = _once(folder / "profile.json", profile.rows)
    result["tried"] = _once(folder / "tried.json", profile.tried)
    (result["stream"],) = _once(folder / "stream.json", lambda: [stream(model)])
    result["decode_against_prefill"] = decode_against_prefill(model)
    return result


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    about = (
        f"{row['part']}, {row['subject']}, T = {row['T']:,}, {row['dtype']}, {row['direction']}: {row['contestant']}"
    )
    if "reason" in row:
        return f"{about}: {row['reason']}"
    time = f"{about}: {1e3 * row['times']['median_s']:,.2f} ms"
    return f"{time}, {shown(row)} x {row['against']}" if "ratio" in row else time


def shown(row: Mapping[str, Any]) -> str:
    """A row's ratio as median and quartiles; a dash where it has none."""
    ratio = row.get("ratio")
    return f"{ratio['median']:.2f} ({ratio['lower']:.2f} to {ratio['upper']:.2f})" if ratio else "–"
