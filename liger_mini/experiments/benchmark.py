"""Time and memory against peers (chapter 10), as ratios within one run, written as JSON.

Absolute times belong to one machine on one day; a ratio of two medians taken in turns in one process
travels better. Nothing here is asserted in a test.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, PreTrainedModel

from liger_mini.recovery import quiet_peft
from liger_mini.recovery.adapters import LORA_TARGETS
from liger_mini.recurrences import delta_recurrence, gated_recurrence, slot_recurrence
from liger_mini.window import sliding_window_attention

HEADS, WIDTH, WINDOW = 8, 64, 64
KERNEL_LENGTHS = (1024, 4096, 16384, 65536)


def in_turns(variants: Mapping[str, Callable[[], Any]], *, repeats: int = 5) -> dict[str, dict[str, Any]]:
    """Seconds of each variant, taken in turns after one warm-up each: the median, the fastest, the slowest, all."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(repeats):
        for name, run in variants.items():
            start = _now()
            run()
            seconds[name].append(_now() - start)
    return {
        name: {
            "median_s": statistics.median(s),
            "fastest_s": min(s),
            "slowest_s": max(s),
            "repeats": repeats,
            "seconds": s,
        }
        for name, s in seconds.items()
    }


def random_inputs(
    T: int, dtype: torch.dtype = torch.float32, *, requires_grad: bool = False, device: str = "cpu"
) -> tuple[torch.Tensor, ...]:
    """q, k, v and a vector log-gate with half-lives around 16 tokens, each [1, T, HEADS, WIDTH], from a seed of T's.

    Of another dtype are q, k and v; a log-gate is float32.
    """
    generator = torch.Generator().manual_seed(T)
    q, k, v, logits = (torch.randn(1, T, HEADS, WIDTH, generator=generator) for _ in range(4))
    inputs = (*(x.to(dtype) for x in (q, k, v)), F.logsigmoid(logits) / 16)
    return tuple(x.to(device).requires_grad_(requires_grad) for x in inputs)


@torch.no_grad()
def chunked_against_naive(T: int = 2048) -> list[dict[str, Any]]:
    """Each recurrence in its two PyTorch forms, forward."""
    rows = []
    for recurrence, run in recurrences(*random_inputs(T)).items():
        times = in_turns({form: functools.partial(run, backend=form) for form in ("naive", "chunked")})
        ratio = times["naive"]["median_s"] / times["chunked"]["median_s"]
        rows.append({"recurrence": recurrence, "T": T, "times": times, "naive_over_chunked": ratio})
    return rows


def recurrences(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_gate: torch.Tensor
) -> dict[str, functools.partial]:
    """One call of each recurrence on the same tensors, or on what is derived from them; all are leaves if they are."""

    def leaf(x: torch.Tensor) -> torch.Tensor:
        return x.detach().requires_grad_(log_gate.requires_grad)

    gate, write, keys = leaf(log_gate.mean(-1)), leaf(-log_gate.expm1().to(q.dtype)), leaf(F.normalize(k, dim=-1))
    beta = leaf(v[..., 0].sigmoid())
    return {
        "diagonal": functools.partial(gated_recurrence, q, k, v, log_gate),
        "scalar": functools.partial(gated_recurrence, q, k, v, gate),
        "slots": functools.partial(slot_recurrence, q, k, v, write, log_gate),
        "delta": functools.partial(delta_recurrence, q, keys, v, beta, gate),
    }


@torch.no_grad()
def growth(lengths: tuple[int, ...] = (4096, 8192, 16384, 32768, 65536)) -> list[dict[str, Any]]:
    """How the chunked forms' time grows with T: the exponent p of time ~ T^p between the shortest and the longest."""
    inputs = {T: random_inputs(T) for T in lengths}
    rows = []
    for recurrence in recurrences(*inputs[lengths[0]]):
        runs = {str(T): functools.partial(recurrences(*inputs[T])[recurrence], backend="chunked") for T in lengths}
        times = in_turns(runs)
        first, last = times[str(lengths[0])]["median_s"], times[str(lengths[-1])]["median_s"]
        exponent = math.log(last / first) / math.log(lengths[-1] / lengths[0])
        rows.append({"recurrence": recurrence, "times": times, "exponent": exponent})
    return rows


def causal_softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@torch.no_grad()
def liger_against_softmax(lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)) -> list[dict[str, Any]]:
    """Recurrence + window against causal scaled_dot_product_attention, forward, one row of 8 heads of 64."""
    rows = []
    for T in lengths:
        q, k, v, log_gate = random_inputs(T)

        def liger() -> None:
            gated_recurrence(q.softmax(-1), k.softmax(-1), v, log_gate, backend="chunked")  # noqa: B023
            sliding_window_attention(q, k, v, WINDOW)  # noqa: B023

        heads_first = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        softmax = functools.partial(causal_softmax, *heads_first)
        times = in_turns({"liger": liger, "softmax": softmax}, repeats=3)
        rows.append(
            {"T": T, "times": times, "softmax_over_liger": times["softmax"]["median_s"] / times["liger"]["median_s"]}
        )
    return rows


def random_ids(model: PreTrainedModel, T: int) -> torch.Tensor:
    """[1, T] token ids, always the same, where the model is."""
    ids = torch.randint(2, model.config.vocab_size, (1, T), generator=torch.Generator().manual_seed(0))
    return ids.to(model.device)


def trainer(model: PreTrainedModel, T: int, rank: int = 8) -> Callable[..., None]:
    """A step of training LoRA on a row of T tokens, forward and backward; step(bf16=True) runs it under autocast."""
    ids = random_ids(model, T)
    with quiet_peft():
        adapted = get_peft_model(model, LoraConfig(r=rank, target_modules=LORA_TARGETS)).train()

    def step(bf16: bool = False) -> None:
        adapted.zero_grad()
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
            loss = adapted(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    return step


@torch.no_grad()
def decode(model: PreTrainedModel, contexts: Sequence[int] = (512, 16384), tokens: int = 64) -> list[dict[str, Any]]:
    """Seconds a token and bytes of state after contexts of different lengths, token by token in turns."""
    caches = {}
    for context in contexts:
        ids = random_ids(model, context)
        caches[context] = DynamicCache(config=model.config)
        model(ids, past_key_values=caches[context], use_cache=True, logits_to_keep=1)
    token = torch.tensor([[2]], device=model.device)
    seconds: dict[int, list[float]] = {context: [] for context in contexts}
    for _ in range(tokens):
        for context, cache in caches.items():
            start = _now()
            model(token, past_key_values=cache, use_cache=True)
            seconds[context].append(_now() - start)
    return [
        {"context": c, "seconds_per_token": statistics.median(seconds[c]), "state_bytes": state_bytes(caches[c])}
        for c in contexts
    ]


def _now() -> float:
    """The clock, once a GPU that is in use has done what it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def state_bytes(cache: DynamicCache) -> int:
    """Bytes of everything a cache keeps between tokens: keys, values and recurrent states."""
    total = 0
    for layer in cache.layers:
        kept = [layer.keys, layer.values, *getattr(layer, "recurrent_states", {}).values()]
        total += sum(x.numel() * x.element_size() for x in kept if x is not None)
    return total


@torch.no_grad()
def stream(model: PreTrainedModel, tokens: int = 2**20, piece: int = 4096) -> dict[str, Any]:
    """Read a text of so many tokens in pieces, with one cache: what is kept, and how long a piece takes, from start to end.

    state_bytes, process_bytes: after the second piece, when everything has been allocated once, and after the last.
    seconds_per_token: the medians over the first eighth of the pieces and over the last.
    """
    dice, cache, process = torch.Generator().manual_seed(0), DynamicCache(config=model.config), psutil.Process()
    seconds: list[float] = []
    kept: list[tuple[int, int]] = []
    for _ in range(tokens // piece):
        ids = torch.randint(2, model.config.vocab_size, (1, piece), generator=dice).to(model.device)
        start = _now()
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        seconds.append((_now() - start) / piece)
        kept.append((state_bytes(cache), process.memory_info().rss))
    (states, rss), (last_states, last_rss) = kept[1], kept[-1]
    part = max(1, len(seconds) // 8)
    return {
        "tokens": len(seconds) * piece,
        "piece": piece,
        "state_bytes": [states, last_states],
        "process_bytes": [rss, last_rss],
        "seconds_per_token": [statistics.median(seconds[:part]), statistics.median(seconds[-part:])],
    }


@torch.no_grad()
def decode_against_prefill(model: PreTrainedModel, T: int = 300) -> float:
    """Largest difference of a logit between T single-token steps and one parallel forward."""
    ids = torch.randint(2, model.config.vocab_size, (2, T), generator=torch.Generator().manual_seed(1))
    cache = DynamicCache(config=model.config)
    stepped = torch.cat(
        [model(ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits for t in range(T)], dim=1
    )
    return (stepped - model(ids, use_cache=False).logits).abs().max().item()


def reason(error: Exception) -> str:
    """An error in one line, for a row that has nothing else."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def kernels(
    lengths: Sequence[int] = KERNEL_LENGTHS,
    *,
    tokens: int = 32768,
    heads: int = 16,
    width: int = 128,
    device: str = "cuda",
    milliseconds: Callable[[Callable], list[float]] | None = None,
    once: Callable[[str, Callable[[], list[dict[str, Any]]]], list[dict[str, Any]]] = lambda name, measure: measure(),
) -> list[dict[str, Any]]:
    """The Triton kernels beside their peers on a GPU, bfloat16: forward, and forward with backward.

    Args:
        tokens: B T; a row longer than that is alone in its batch.
        milliseconds: times a function: [median, 20th, 80th percentile]. Default: `triton.testing.do_bench`, which warms
            up, empties the L2 cache between runs and reads the GPU's own clock.
        once: given the name of a row and what measures it, returns it in a list: where interrupted rows are kept.
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
            measure = functools.partial(_kernel, row, call, leaves, milliseconds)
            rows += once(f"kernels-{T}-{recurrence}-{name}", measure)
    return rows


def _kernel(row: dict[str, Any], call: Callable, leaves: tuple, milliseconds: Callable) -> list[dict[str, Any]]:
    try:
        return [row | _forward_and_backward(call, leaves, milliseconds)]
    except Exception as error:  # a kernel may raise anything: that is its result
        return [row | {"reason": reason(error)}]


def _kernels(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_gate: torch.Tensor) -> dict[tuple, Callable]:
    ours: dict[tuple, Callable] = {
        (recurrence, "liger_mini"): functools.partial(call, backend="triton")
        for recurrence, call in recurrences(q, k, v, log_gate).items()
    }
    ours["window", "liger_mini"] = functools.partial(sliding_window_attention, q, k, v, WINDOW, backend="triton")
    return ours


def _peers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_gate: torch.Tensor) -> dict[tuple, Callable]:
    """flash-linear-attention's kernels for the same shapes where it is installed, and causal softmax attention."""
    softmax = functools.partial(causal_softmax, *(x.transpose(1, 2) for x in (q, k, v)))
    peers: dict[tuple, Callable] = {("window", "softmax over everything (SDPA)"): softmax}
    if q.is_cuda and importlib.util.find_spec("fla"):
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.gla import chunk_gla
        from fla.ops.gsa import chunk_gsa
        from fla.ops.simple_gla import chunk_simple_gla

        how = {"scale": 1.0, "output_final_state": True}
        diagonal, scalar, slots, delta = (call.args for call in recurrences(q, k, v, log_gate).values())
        peers["diagonal", "fla"] = functools.partial(chunk_gla, *diagonal, **how)
        peers["scalar", "fla"] = functools.partial(chunk_simple_gla, *scalar, **how)
        peers["slots", "fla"] = functools.partial(chunk_gsa, *slots, **how)
        *qkv, beta, gate = delta
        peers["delta", "fla"] = functools.partial(chunk_gated_delta_rule, *qkv, g=gate, beta=beta, **how)
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
