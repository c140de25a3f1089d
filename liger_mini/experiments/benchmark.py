"""Time and memory against peers (chapter 10), as ratios within one run, written as JSON.

Absolute times belong to one machine on one day; a ratio of two medians taken in turns in one process
travels better. Nothing here is asserted in a test.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel

from liger_mini.convert import linearize
from liger_mini.recurrences import gated_recurrence, slot_recurrence
from liger_mini.support.paths import write_atomically
from liger_mini.support.provenance import provenance
from liger_mini.window import sliding_window_attention

HEADS, WIDTH, WINDOW = 8, 64, 64


def in_turns(variants: dict[str, Callable[[], Any]], *, repeats: int = 5) -> dict[str, dict[str, float]]:
    """Median, fastest and slowest seconds of each variant, taken in turns after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(repeats):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median_s": statistics.median(s), "fastest_s": min(s), "slowest_s": max(s), "repeats": repeats}
        for name, s in seconds.items()
    }


def random_inputs(T: int) -> tuple[torch.Tensor, ...]:
    """q, k, v and a vector log-gate with half-lives around 16 tokens, each [1, T, HEADS, WIDTH], from a seed of T's."""
    generator = torch.Generator().manual_seed(T)
    q, k, v, logits = (torch.randn(1, T, HEADS, WIDTH, generator=generator) for _ in range(4))
    return q, k, v, F.logsigmoid(logits) / 16


@torch.no_grad()
def chunked_against_naive(T: int = 2048) -> list[dict[str, Any]]:
    """Each recurrence in its two PyTorch forms, forward."""
    rows = []
    for recurrence, run in _recurrences(*random_inputs(T)).items():
        times = in_turns({form: functools.partial(run, backend=form) for form in ("naive", "chunked")})
        ratio = times["naive"]["median_s"] / times["chunked"]["median_s"]
        rows.append({"recurrence": recurrence, "T": T, "times": times, "naive_over_chunked": ratio})
    return rows


def _derived(log_gate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A scalar gate and a slot write, leaves like the log-gate they come from."""
    return tuple(x.detach().requires_grad_(log_gate.requires_grad) for x in (log_gate.mean(-1), -log_gate.expm1()))


def _recurrences(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_gate: torch.Tensor) -> dict[str, Callable]:
    """One call of each recurrence on the same tensors."""
    scalar_gate, write = _derived(log_gate)
    return {
        "diagonal": functools.partial(gated_recurrence, q, k, v, log_gate),
        "scalar": functools.partial(gated_recurrence, q, k, v, scalar_gate),
        "slots": lambda **how: slot_recurrence(q, k, v, write.to(q.dtype), log_gate, **how),
    }


@torch.no_grad()
def growth(lengths: tuple[int, ...] = (2048, 4096, 8192, 16384)) -> list[dict[str, Any]]:
    """How the chunked forms' time grows with T: the exponent p of time ~ T^p between the shortest and the longest."""
    inputs = {T: random_inputs(T) for T in lengths}
    rows = []
    for recurrence in _recurrences(*inputs[lengths[0]]):
        times = in_turns({str(T): _recurrences(*inputs[T])[recurrence] for T in lengths})
        first, last = times[str(lengths[0])]["median_s"], times[str(lengths[-1])]["median_s"]
        exponent = math.log(last / first) / math.log(lengths[-1] / lengths[0])
        rows.append({"recurrence": recurrence, "times": times, "exponent": exponent})
    return rows


def _softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@torch.no_grad()
def liger_against_softmax(lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)) -> list[dict[str, Any]]:
    """Recurrence + window against causal scaled_dot_product_attention, forward, one row of 8 heads of 64."""
    rows = []
    for T in lengths:
        q, k, v, log_gate = random_inputs(T)

        def liger() -> None:
            gated_recurrence(q.softmax(-1), k.softmax(-1), v, log_gate)  # noqa: B023
            sliding_window_attention(q, k, v, WINDOW)  # noqa: B023

        heads_first = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        softmax = functools.partial(_softmax, *heads_first)
        times = in_turns({"liger": liger, "softmax": softmax}, repeats=3)
        rows.append(
            {"T": T, "times": times, "softmax_over_liger": times["softmax"]["median_s"] / times["liger"]["median_s"]}
        )
    return rows


@torch.no_grad()
def decode(model: PreTrainedModel, contexts: Sequence[int] = (512, 16384), tokens: int = 64) -> list[dict[str, Any]]:
    """Seconds a token and bytes of state after contexts of different lengths, token by token in turns."""
    caches = {}
    for context in contexts:
        ids = torch.randint(2, model.config.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
        caches[context] = DynamicCache(config=model.config)
        model(ids.to(model.device), past_key_values=caches[context], use_cache=True, logits_to_keep=1)
    token = torch.tensor([[2]], device=model.device)
    seconds: dict[int, list[float]] = {context: [] for context in contexts}
    for _ in range(tokens):
        for context, cache in caches.items():
            start = _now(model.device)
            model(token, past_key_values=cache, use_cache=True)
            seconds[context].append(_now(model.device) - start)
    return [
        {"context": c, "seconds_per_token": statistics.median(seconds[c]), "state_bytes": state_bytes(caches[c])}
        for c in contexts
    ]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def state_bytes(cache: DynamicCache) -> int:
    """Bytes of everything a cache keeps between tokens: keys, values and recurrent states."""
    total = 0
    for layer in cache.layers:
        kept = [layer.keys, layer.values, *getattr(layer, "recurrent_states", {}).values()]
        total += sum(x.numel() * x.element_size() for x in kept if x is not None)
    return total


@torch.no_grad()
def decode_against_prefill(model: PreTrainedModel, T: int = 300) -> float:
    """Largest difference of a logit between T single-token steps and one parallel forward."""
    ids = torch.randint(2, model.config.vocab_size, (2, T), generator=torch.Generator().manual_seed(1))
    cache = DynamicCache(config=model.config)
    stepped = torch.cat(
        [model(ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits for t in range(T)], dim=1
    )
    return (stepped - model(ids, use_cache=False).logits).abs().max().item()


def kernels(
    lengths: tuple[int, ...] = (1024, 4096, 16384, 65536),
    *,
    tokens: int = 32768,
    heads: int = 16,
    width: int = 128,
    device: str = "cuda",
    milliseconds: Callable[[Callable], list[float]] | None = None,
) -> list[dict[str, Any]]:
    """The Triton kernels beside their peers on a GPU, bfloat16: forward, and forward with backward.

    Args:
        tokens: B T; a row longer than that is alone in its batch.
        milliseconds: times a function: [median, 20th, 80th percentile]. Default: `triton.testing.do_bench`, which warms
            up, empties the L2 cache between runs and reads the GPU's own clock.
    """
    if milliseconds is None:
        from triton.testing import do_bench

        milliseconds = functools.partial(do_bench, warmup=100, rep=500, quantiles=[0.5, 0.2, 0.8])
    rows = []
    for T in lengths:
        shape = (max(1, tokens // T), T, heads, width)
        draw = functools.partial(torch.randn, *shape, device=device, dtype=torch.bfloat16, requires_grad=True)
        q, k, v, logits = draw(), draw(), draw(), draw()
        leaves = (q, k, v, F.logsigmoid(logits.detach().float()).div(16).requires_grad_())
        for (recurrence, name), call in {**_kernels(*leaves), **_peers(*leaves)}.items():
            row = {"T": T, "B": shape[0], "H": heads, "K": width, "V": width, "dtype": "bfloat16"}
            row |= {"recurrence": recurrence, "implementation": name}
            rows.append(row | _forward_and_backward(call, leaves, milliseconds))
    return rows


def _kernels(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_gate: torch.Tensor) -> dict[tuple, Callable]:
    ours: dict[tuple, Callable] = {
        (recurrence, "liger_mini"): functools.partial(call, backend="triton")
        for recurrence, call in _recurrences(q, k, v, log_gate).items()
    }
    ours["window", "liger_mini"] = functools.partial(sliding_window_attention, q, k, v, WINDOW, backend="triton")
    return ours


def _peers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_gate: torch.Tensor) -> dict[tuple, Callable]:
    """flash-linear-attention's kernels for the same shapes where it is installed, and causal softmax attention."""
    softmax = functools.partial(_softmax, *(x.transpose(1, 2) for x in (q, k, v)))
    peers: dict[tuple, Callable] = {("window", "softmax over everything (SDPA)"): softmax}
    if q.is_cuda and importlib.util.find_spec("fla"):
        from fla.ops.gla import chunk_gla
        from fla.ops.gsa import chunk_gsa
        from fla.ops.simple_gla import chunk_simple_gla

        how = {"scale": 1.0, "output_final_state": True}
        scalar_gate, write = _derived(log_gate)
        peers["diagonal", "fla"] = functools.partial(chunk_gla, q, k, v, log_gate, **how)
        peers["scalar", "fla"] = functools.partial(chunk_simple_gla, q, k, v, scalar_gate, **how)
        peers["slots", "fla"] = lambda: chunk_gsa(q, k, v, write.to(q.dtype), log_gate, **how)
    return peers


def _forward_and_backward(call: Callable, leaves: tuple, milliseconds: Callable) -> dict[str, Any]:
    """Times of forward and forward + backward, and the peak memory of the latter beyond its inputs."""

    def output() -> torch.Tensor:
        o = call()
        return o[0] if isinstance(o, tuple) else o

    def both() -> None:
        o = output()
        torch.autograd.grad(o, leaves, torch.ones_like(o), allow_unused=True)

    with torch.no_grad():
        result = {"forward_ms": milliseconds(output)}
    result["forward_backward_ms"] = milliseconds(both)
    if leaves[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both()
        result["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    return result


def run(output: str | Path = "runs/benchmark.json") -> dict[str, Any]:
    """Everything above on this machine; prints a table and writes JSON."""
    from liger_mini.experiments import WINDOW as DEMO_WINDOW
    from liger_mini.experiments import load_teacher

    teacher, _ = load_teacher()
    model = linearize(teacher, window=DEMO_WINDOW)
    decoded = decode(model)
    first, last = decoded[0], decoded[-1]
    result = {
        "chunked_against_naive": chunked_against_naive(),
        "growth": growth(),
        "liger_against_softmax": liger_against_softmax(),
        "decode": decoded,
        "decode_seconds_ratio": last["seconds_per_token"] / first["seconds_per_token"],
        "decode_state_ratio": last["state_bytes"] / first["state_bytes"],
        "decode_against_prefill": decode_against_prefill(model),
        "provenance": provenance(),
    }
    if torch.cuda.is_available():
        result["kernels"] = kernels()
    for row in result["chunked_against_naive"]:
        print(f"{row['recurrence']}: naive / chunked at T = {row['T']}: {row['naive_over_chunked']:.1f} times")
    for row in result["growth"]:
        print(f"{row['recurrence']}: time grows as T^{row['exponent']:.2f} from T = 2048 to 16384")
    for row in result["liger_against_softmax"]:
        print(f"softmax / (recurrence + window) at T = {row['T']}: {row['softmax_over_liger']:.2f} times")
    print(
        f"decode, seconds per token at {last['context']} over {first['context']}: {result['decode_seconds_ratio']:.2f}"
    )
    print(f"decode, state bytes at {last['context']} over {first['context']}: {result['decode_state_ratio']:.2f}")
    print(f"decode against prefill, largest logit difference: {result['decode_against_prefill']:.1e}")
    write_atomically(Path(output), json.dumps(result, indent=1))
    return result
