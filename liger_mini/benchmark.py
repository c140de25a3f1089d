"""Time and memory against peers (chapter 10), as ratios within one run, written as JSON.

Absolute times belong to one machine on one day; a ratio of two medians taken in turns in one process
travels better. Nothing here is asserted in a test.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel

from liger_mini.convert import linearize
from liger_mini.paths import write_atomically
from liger_mini.provenance import provenance
from liger_mini.recurrences import gated_recurrence
from liger_mini.window import sliding_window_attention

HEADS, WIDTH, WINDOW = 8, 64, 64


def compare(variants: dict[str, Callable[[], Any]], *, repeats: int = 5) -> dict[str, dict[str, float]]:
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


def _inputs(T: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(T)
    q, k, v, logits = (torch.randn(1, T, HEADS, WIDTH, generator=generator) for _ in range(4))
    return q, k, v, F.logsigmoid(logits) / 16


@torch.no_grad()
def chunked_against_naive(T: int = 2048) -> dict[str, Any]:
    inputs = _inputs(T)
    times = compare({form: functools.partial(gated_recurrence, *inputs, backend=form) for form in ("naive", "chunked")})
    return {"T": T, "times": times, "naive_over_chunked": times["naive"]["median_s"] / times["chunked"]["median_s"]}


@torch.no_grad()
def liger_against_softmax(lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)) -> list[dict[str, Any]]:
    """Recurrence + window against causal scaled_dot_product_attention, forward, one row of 8 heads of 64."""
    rows = []
    for T in lengths:
        q, k, v, log_gate = _inputs(T)

        def liger() -> None:
            gated_recurrence(q.softmax(-1), k.softmax(-1), v, log_gate)  # noqa: B023
            sliding_window_attention(q, k, v, WINDOW)  # noqa: B023

        heads_first = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        softmax = functools.partial(F.scaled_dot_product_attention, *heads_first, is_causal=True)
        times = compare({"liger": liger, "softmax": softmax}, repeats=3)
        rows.append(
            {"T": T, "times": times, "softmax_over_liger": times["softmax"]["median_s"] / times["liger"]["median_s"]}
        )
    return rows


@torch.no_grad()
def decode(model: PreTrainedModel, contexts: tuple[int, ...] = (512, 16384), tokens: int = 64) -> list[dict[str, Any]]:
    """Seconds a token and bytes of state after contexts of different lengths, token by token in turns."""
    caches = {}
    for context in contexts:
        ids = torch.randint(2, model.config.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
        caches[context] = DynamicCache(config=model.config)
        model(ids, past_key_values=caches[context], use_cache=True, logits_to_keep=1)
    token = torch.tensor([[2]])
    seconds: dict[int, list[float]] = {context: [] for context in contexts}
    for _ in range(tokens):
        for context, cache in caches.items():
            start = time.perf_counter()
            model(token, past_key_values=cache, use_cache=True)
            seconds[context].append(time.perf_counter() - start)
    return [
        {"context": c, "seconds_per_token": statistics.median(seconds[c]), "state_bytes": state_bytes(caches[c])}
        for c in contexts
    ]


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


def run(output: str | Path = "runs/benchmark.json") -> dict[str, Any]:
    """Everything above on this machine; prints a table and writes JSON."""
    from liger_mini.demo import WINDOW as DEMO_WINDOW
    from liger_mini.demo import load_teacher

    teacher, _ = load_teacher()
    model = linearize(teacher, window=DEMO_WINDOW)
    decoded = decode(model)
    first, last = decoded[0], decoded[-1]
    result = {
        "chunked_against_naive": chunked_against_naive(),
        "liger_against_softmax": liger_against_softmax(),
        "decode": decoded,
        "decode_seconds_ratio": last["seconds_per_token"] / first["seconds_per_token"],
        "decode_state_ratio": last["state_bytes"] / first["state_bytes"],
        "decode_against_prefill": decode_against_prefill(model),
        "provenance": provenance(),
    }
    print(f"naive / chunked at T = 2048: {result['chunked_against_naive']['naive_over_chunked']:.1f} times")
    for row in result["liger_against_softmax"]:
        print(f"softmax / (recurrence + window) at T = {row['T']}: {row['softmax_over_liger']:.2f} times")
    print(f"decode, seconds a token at {last['context']} over {first['context']}: {result['decode_seconds_ratio']:.2f}")
    print(f"decode, state bytes at {last['context']} over {first['context']}: {result['decode_state_ratio']:.2f}")
    print(f"decode against prefill, largest logit difference: {result['decode_against_prefill']:.1e}")
    write_atomically(Path(output), json.dumps(result, indent=1))
    return result
