"""Races (chapter 10): our forms and their peers on the same inputs, in turns, on a CPU or a GPU; each is saved as it ends.

A row is one contestant of one race: its seconds, and their ratio to those of the first contestant, turn by turn, as median
and quartiles. A contestant that is not installed, raises, or needs more memory than is free has a row that says so.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import re
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
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

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
    "graph": (1024, 16384),
    "recovery": (512, 1024),
}
DTYPES = (torch.float32, torch.bfloat16)
LONGEST_BACKWARD = 8192
TOKENS = 64  # that are decoded
ROOM = 128  # that a static cache takes besides what was read
BUDGET = 15  # seconds for the turns of a race, where three of each take less
DIRECTIONS = ("forward", "forward + backward")
FORMS = ("chunked", "compiled", "naive")


def forms(device: str) -> tuple[str, ...]:
    """Those of PyTorch; and Triton's on a GPU, since its interpreter's time means nothing."""
    return (*FORMS, "triton") if device == "cuda" else FORMS


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Attributes:
        bytes: about how many it needs beyond its inputs.
        launches: counts what one call makes the machine begin: operators that do more than look at memory in another way.
    """

    run: Callable[[], Any]
    bytes: float = 0
    launches: Callable[[], int] | None = None


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
            count = getattr(contestants[name], "launches", None)
            row |= {"launches": count()} if count else {}
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
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_initialized() else psutil.virtual_memory().available
    if contestant.bytes > 0.8 * free:
        return f"needs about {contestant.bytes / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
    try:
        contestant.run()
    except Exception as error:  # a peer may raise anything: that is its result
        return reason(error)
    return ""


# what races --------------------------------------------------------------------------------------------------------------


def recurrence_races(T: int, dtype: torch.dtype, device: str) -> Races:
    """Every recurrence in every form that runs there, and fla's naive reference."""
    for name, reference in REFERENCES.items():
        for direction in DIRECTIONS:
            yield name, direction, functools.partial(_recurrence, name, reference, direction, T, dtype, device)


def _recurrence(name: str, reference: Callable, direction: str, T: int, dtype: torch.dtype, device: str) -> Contestants:
    call = recurrences(*random_inputs(T, dtype, requires_grad=True, device=device))[name]
    kept = (
        12 * T * HEADS * WIDTH**2 if direction == DIRECTIONS[1] else 0
    )  # by autograd of a loop: states, and parts of them
    turn = functools.partial(directed, direction, call.args)
    ours = {form: functools.partial(call, backend=form) for form in forms(device)}
    contestants: Contestants = {form: Contestant(turn(run), kept * (form == "naive")) for form, run in ours.items()}
    theirs = functools.partial(reference, *call.args)
    return contestants | {"fla's naive reference": Contestant(turn(theirs), kept)}


def _fla(path: str) -> Callable[..., Any]:
    """A loop of flash-linear-attention, found when it is called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        module, name = path.rsplit(".", 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says where there is no GPU
            return getattr(importlib.import_module(f"fla.ops.{module}"), name)(*args, **kwargs)

    return call


def directed(direction: str, leaves: Sequence[torch.Tensor], call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` without a graph; or with it, and the gradient of every leaf by its output (or the first of them)."""

    def forward_backward() -> None:
        output = call()
        output = output[0] if isinstance(output, tuple) else output
        torch.autograd.grad(output, leaves, torch.ones_like(output), allow_unused=True)

    return torch.no_grad()(call) if direction == DIRECTIONS[0] else forward_backward


def layer_races(T: int, dtype: torch.dtype, device: str) -> Races:
    """A layer's attention, recurrence and window, beside softmax attention over everything and within the window."""
    for direction in DIRECTIONS[: 2 if T <= LONGEST_BACKWARD else 1]:
        yield "layer", direction, functools.partial(_layer, direction, T, dtype, device)


def _layer(direction: str, T: int, dtype: torch.dtype, device: str) -> Contestants:
    leaves = q, k, v, log_gate = random_inputs(T, dtype, requires_grad=True, device=device)
    heads_first = queries, keys, values = [x.transpose(1, 2) for x in (q, k, v)]
    turn = functools.partial(directed, direction, leaves)
    near = functools.partial(sliding_window_attention, q, k, v, WINDOW)

    def layer(backend: str = "auto") -> torch.Tensor:
        o, _ = gated_recurrence(q.softmax(-1), k.softmax(-1), v, log_gate, backend=backend)
        return o + near(backend=backend)

    def masked() -> torch.Tensor:
        band = torch.ones(T, T, dtype=torch.bool, device=device).tril().triu(1 - WINDOW)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=band)

    pairs = T**2 * (6 if direction == DIRECTIONS[0] else 8 * HEADS)  # the mask; and scores of each head
    return {
        "recurrence + window": Contestant(turn(layer)),
        **{
            f"recurrence + window, {form}": Contestant(turn(functools.partial(layer, form)))
            for form in forms(device)
            if form in ("chunked", "triton")
        },
        "causal SDPA": Contestant(turn(functools.partial(causal_softmax, *heads_first))),
        "window": Contestant(turn(near)),
        "SDPA, the window as a mask": Contestant(turn(masked), pairs),
        "FlexAttention, the window": "it has no backward on a CPU"
        if direction == DIRECTIONS[1] and device == "cpu"
        else Contestant(turn(functools.partial(_flex, *(x.detach() for x in heads_first)))),
    }


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    attention, blocks = _flex_compiled(q.shape[2], q.device)
    return attention(q, k, v, block_mask=blocks)


@functools.lru_cache(maxsize=1)
def _flex_compiled(T: int, device: torch.device) -> tuple[Callable, Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def near(b, h, i, j):
        return (j <= i) & (j > i - WINDOW)

    return torch.compile(flex_attention), create_block_mask(near, None, None, T, T, device=device)


@dataclass(frozen=True)
class Models:
    """What is linearized, with which window; and what was recovered from it, if that races as well."""

    load: Callable[[], tuple[PreTrainedModel, Any]]
    window: int
    recovered: Callable[[], tuple[PreTrainedModel, Any]] | None = None

    def contestants(
        self, makes: Mapping[str, Callable[[PreTrainedModel], Contestant]], dtype: torch.dtype, device: str
    ) -> Contestants:
        """What each of `makes` does with each model; its name stands behind the model's."""

        def linearized(backend: str = "auto") -> PreTrainedModel:
            return linearize(self.load()[0], window=self.window, backend=backend)

        ways: dict[str, Callable[[], PreTrainedModel]] = {
            "linearized": linearized,
            "unconverted": lambda: self.load()[0],
        }
        if "triton" in forms(device):
            ways["linearized, triton"] = functools.partial(linearized, "triton")
        if self.recovered is not None:
            load = self.recovered
            ways["recovered"] = lambda: load()[0]
        try:
            return {
                way + name: make(model().to(device, dtype))
                for way, model in ways.items()
                for name, make in makes.items()
            }
        except FileNotFoundError as error:
            return {way + name: str(error) for way in ways for name in makes}


MODELS = {"embedded teacher": Models(load_teacher, EMBEDDED_WINDOW), "SmolLM2": Models(load_smollm2, WINDOW)}
DECODING = MODELS | {
    "SmolLM2": dataclasses.replace(MODELS["SmolLM2"], recovered=functools.partial(load_recovered, "smollm2"))
}


def _of_models(
    direction: str,
    makes: Mapping[str, Callable[..., Contestant]],
    T: int,
    dtype: torch.dtype,
    device: str,
    models: Mapping[str, Models] = MODELS,
) -> Races:
    """What each of `makes` does with a model and T, with each model linearized and as it was."""
    with_T = {name: functools.partial(make, T=T) for name, make in makes.items()}
    for name, some in models.items():
        yield name, direction, functools.partial(some.contestants, with_T, dtype, device)


def decode_races(T: int, dtype: torch.dtype, device: str) -> Races:
    """A token more after T; on a GPU for one text, and for sixteen at once."""
    for batch in (1,) if device == "cpu" else (1, 16):
        makes = {"": functools.partial(_writer, batch=batch)}
        for name, direction, contestants in _of_models(DIRECTIONS[0], makes, T, dtype, device, DECODING):
            yield name if batch == 1 else f"{name}, batch {batch}", direction, contestants


def graph_races(T: int, dtype: torch.dtype, device: str) -> Races:
    """A token more after T: with a cache that grows, with one that has room already, and as one compiled graph with that."""
    makes: dict[str, Callable[..., Contestant]] = {
        "": _writer,
        ", static cache": functools.partial(_writer, static=True),
        ", compiled": _graph,
    }
    if dtype == torch.float32 or device != "cpu":  # compiling takes a minute for each model
        yield from _of_models(DIRECTIONS[0], makes, T, dtype, device)


def _reader(model: PreTrainedModel, T: int) -> Contestant:
    """Reads T tokens at once: prefill."""
    read = functools.partial(model, random_ids(model, T), use_cache=False, logits_to_keep=1)
    return Contestant(torch.no_grad()(read))


def _trainer(model: PreTrainedModel, T: int) -> Contestant:
    return Contestant(trainer(model, T))


def _writer(model: PreTrainedModel, T: int, batch: int = 1, static: bool = False) -> Contestant:
    """Writes one token more with each call."""
    write = _after(model, T, static, model, batch)
    return Contestant(write, launches=functools.partial(profile.launches, write, model.device))


def _graph(model: PreTrainedModel, T: int) -> Contestant:
    """As `_writer`, compiled with a static cache; on a GPU replayed as a CUDA graph."""
    kernels: list[int] = []

    def compiler(graph: Any, inputs: Any) -> Callable:
        from torch._inductor import compile_fx, metrics

        metrics.reset()
        done = compile_fx.compile_fx(graph, inputs)
        kernels[:] = [metrics.generated_kernel_count]  # of the last graph, which is the one that goes on running
        return done

    how: dict[str, Any] = {"backend": compiler} if model.device.type == "cpu" else {"mode": "reduce-overhead"}
    write = _after(model, T, True, torch.compile(model, fullgraph=True, **how))
    return Contestant(write, launches=lambda: profile.launches(write, model.device, sum(kernels)))


@torch.no_grad()
def _after(model: PreTrainedModel, T: int, static: bool, step: Callable, batch: int = 1) -> Callable[[], Any]:
    """`step` with one token, after the model has read T; in pieces, which need less memory at once."""
    cache: Cache = DynamicCache(config=model.config)
    if static:
        cache = StaticCache(config=model.config, max_cache_len=T + ROOM)
    token = torch.full((batch, 1), 2, device=model.device)
    for piece in random_ids(model, T).expand(batch, -1).split(1024, dim=1):
        model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return torch.no_grad()(functools.partial(step, token, past_key_values=cache, use_cache=True))


REFERENCES: dict[str, Callable] = {  # each takes what our own recurrence takes
    "diagonal": lambda q, k, v, g: _fla("gla.naive.naive_recurrent_gla")(q * WIDTH**0.5, k, v, g),  # it divides by √K
    "scalar": lambda *inputs: _fla("simple_gla.naive.naive_recurrent_simple_gla")(*inputs, scale=1.0),
    "slots": lambda *inputs: _fla("gsa.naive.naive_recurrent_gsa")(*inputs, 1.0),
    "delta": lambda *inputs: _fla("gated_delta_rule.naive.naive_recurrent_gated_delta_rule")(*inputs, 1.0),
}
PARTS: dict[str, Callable[[int, torch.dtype, str], Races]] = {
    "recurrence": recurrence_races,
    "layer": layer_races,
    "prefill": functools.partial(_of_models, DIRECTIONS[0], {"": _reader}),
    "decode": decode_races,
    "graph": graph_races,
    "recovery": functools.partial(_of_models, DIRECTIONS[1], {"": _trainer}),
}


# the record --------------------------------------------------------------------------------------------------------------


def run(
    output: str | Path = "runs/benchmark.json",
    parts: Sequence[str] = (),
    lengths: Sequence[int] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """The races of these parts (of all but "graph", and what the chapters read besides), written as JSON.

    The part "kernels" is for a GPU: Triton's beside their peers (`benchmark.kernels`). It is in all of them where there is one.

    An interrupted run keeps its races in the folder ``<output>.races``; the same command goes on from there.

    Args:
        lengths: T of every part, instead of `LENGTHS`.
        device: "cpu" or "cuda", where the parts run; the rest of what the chapters read runs on the CPU.
    Raises:
        ValueError: an unknown part, a length below 1, a GPU where there is none.
        FileExistsError: the folder holds races of other lengths, another machine or version.
    """
    if unknown := set(parts) - {*PARTS, "kernels"}:
        raise ValueError(f"unknown parts {sorted(unknown)}: allowed are {', '.join(map(repr, (*PARTS, 'kernels')))}")
    if ("kernels" in parts or device == "cuda") and not torch.cuda.is_available():
        raise ValueError(
            "the part 'kernels' and device 'cuda' are for a GPU, and PyTorch sees none here; leave them out"
        )
    if lengths and min(lengths) < 1:
        raise ValueError(f"lengths = {list(lengths)}: allowed are whole numbers ≥ 1")
    output = Path(output)
    folder = output.with_suffix(".races")
    machine = {name: x for name, x in provenance().items() if name != "date"}
    claim(folder / "run.json", {"lengths": lengths, "device": device, **machine})
    result: dict[str, Any] = {}
    if torch.cuda.is_available() and (not parts or "kernels" in parts):
        result["kernels"] = kernels(lengths or KERNEL_LENGTHS, once=functools.partial(_kept, folder))
    raced = [part for part in PARTS if (part in parts if parts else part != "graph")]
    rows = result["rows"] = list(_rows(raced, lengths, folder, device))
    result |= {**(_read_by_chapters(rows, folder) if not parts else {}), "provenance": provenance()}
    write_atomically(output, json.dumps(result, indent=1))
    shutil.rmtree(folder)
    return result


def _rows(parts: Iterable[str], lengths: Sequence[int] | None, folder: Path, device: str) -> Iterator[dict[str, Any]]:
    for part, dtype in ((name, dtype) for name in parts for dtype in DTYPES):
        for T in lengths or LENGTHS[part]:
            for subject, direction, contestants in PARTS[part](T, dtype, device):
                kind = str(dtype).removeprefix("torch.")
                about = {"part": part, "subject": subject, "T": T, "dtype": kind, "direction": direction}
                repeats = TOKENS if part in ("decode", "graph") else 3
                measure = lambda: [about | row for row in race(contestants(), repeats)]  # noqa: B023, E731
                yield from _kept(folder, "-".join(map(str, about.values())), measure)


def _kept(folder: Path, name: str, measure: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What `measure` gives, kept in a file: it is measured only where that is missing."""
    path = folder / (re.sub(r"[^\w-]", "", name) + ".json")
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
    result["growth"] = _kept(folder, "growth", growth)
    model = linearize(load_teacher()[0], window=EMBEDDED_WINDOW)
    first, *_, last = result["decode"] = _kept(folder, "decode", functools.partial(decode, model))
    result["decode_seconds_ratio"] = last["seconds_per_token"] / first["seconds_per_token"]
    result["decode_state_ratio"] = last["state_bytes"] / first["state_bytes"]
    result["profile"] = _kept(folder, "profile", profile.rows)
    result["tried"] = _kept(folder, "tried", profile.tried)
    (result["stream"],) = _kept(folder, "stream", lambda: [stream(model)])
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
