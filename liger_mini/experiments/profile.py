"""Where the time goes (book/where-the-time-goes): the operators of a run, sorted into a few groups, as shares of its time."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from liger_mini import window
from liger_mini.convert import linearize
from liger_mini.experiments.benchmark import WINDOW, causal_softmax, in_turns, random_inputs, trainer
from liger_mini.experiments.embedded import load_smollm2
from liger_mini.recurrences import compiled, gated_recurrence, loops
from liger_mini.window import sliding_window_attention

LOOP = "the compiled loop"
GROUPS = {  # words in an operator's name -> the group it belongs to; the first that fits
    "matrix products": ("mm", "linear", "matmul", "einsum", "triangular"),
    "softmax attention": ("attention",),
    "copies and layout": ("copy", "cat", "clone", "index", "gather", "constant_pad", "slice_backward", "fill", "zero"),
    LOOP: (LOOP,),
}
OTHER, OUTSIDE = "other operators", "Python, and everything else"


@contextmanager
def loop_named() -> Iterator[None]:
    """Inside the `with`, a profiler sees the compiled loop, which is no operator of PyTorch's."""
    plain = compiled.over_heads

    def named(loop: Callable, tensors: Sequence[Tensor], *rest: int) -> None:
        with record_function(LOOP):
            plain(loop, tensors, *rest)

    compiled.over_heads = named
    try:
        yield
    finally:
        compiled.over_heads = plain


def group(operator: str) -> str:
    """The group of an operator's name, such as "aten::addmm"."""
    return next((name for name, words in GROUPS.items() if any(word in operator for word in words)), OTHER)


def shares(run: Callable[[], Any], repeats: int = 3) -> dict[str, Any]:
    """Share of each group in the time of `run`, and its seconds without the profiler, which slows small operators down."""
    run()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    seconds = (time.perf_counter() - start) / repeats
    with loop_named(), profile(activities=[ProfilerActivity.CPU]) as seen:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        whole = time.perf_counter() - start
    found: defaultdict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        found[group(event.key)] += event.self_cpu_time_total / 1e6
    found[OUTSIDE] = max(0.0, whole - sum(found.values()))
    most_first = sorted(found.items(), key=lambda item: -item[1])
    return {"seconds": seconds, "shares": {name: x / sum(found.values()) for name, x in most_first}}


class _Operators(TorchDispatchMode):
    """Counts the operators that run inside the `with`, but for those that only look at memory in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def launches(run: Callable[[], Any], device: torch.device, compiled: int = 0) -> int:
    """What a call of `run` begins: kernels on a GPU; on a CPU operators of PyTorch (the compiled loop is none of them).

    Args:
        compiled: kernels of a compiled graph, which no profiler sees on a CPU; what it calls besides is counted.
    """
    if device.type == "cpu" and not compiled:
        with _Operators() as seen:
            run()
        return seen.count
    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    ) as seen:
        run()
    if device.type == "cuda":
        return sum(event.device_type == DeviceType.CUDA for event in seen.events())
    operators = [event for event in seen.events() if event.name.startswith("aten::")]
    called = [event for event in operators if event.cpu_parent in operators]  # by one of them
    return compiled + len(operators) - len(called)


def rows(T: int = 2048, training: int = 1024) -> list[dict[str, Any]]:
    """Attention of a layer, forward; and a step of training SmolLM2, forward and backward, with its parts of the time.

    Args:
        T: tokens the layer reads. training: tokens of the training step.
    """
    found = []
    q, k, v, log_gate = random_inputs(T)

    def layer(backend: str) -> None:
        gated_recurrence(q.softmax(-1), k.softmax(-1), v, log_gate, backend=backend)
        sliding_window_attention(q, k, v, WINDOW)

    runs = {f"recurrence + window, {backend}": functools.partial(layer, backend) for backend in ("auto", "chunked")}
    runs["causal SDPA"] = functools.partial(causal_softmax, *(x.transpose(1, 2) for x in (q, k, v)))
    for name, run in runs.items():
        found.append({"what": "attention of a layer", "model": name, "T": T} | shares(torch.no_grad()(run)))
    for linear in (True, False):
        try:
            step = _step(linear, training)
        except FileNotFoundError as error:
            return [*found, {"what": "a training step", "model": "SmolLM2", "T": training, "reason": str(error)}]
        for kind in ("float32", "bfloat16"):
            name = f"{'linearized' if linear else 'unconverted'}, {kind}"
            run = functools.partial(step, bf16=kind == "bfloat16")
            found.append({"what": "a training step", "model": name, "T": training} | shares(run, repeats=1))
    return found


def _step(linear: bool, T: int) -> Callable[..., None]:
    """A step of training SmolLM2 on a row of T tokens, linearized or not."""
    model, _ = load_smollm2()
    if linear:
        linearize(model, "hedgehog_deltanet", window=64, sinks=1, mix=(0.1, 1.0))
    return trainer(model, T, rank=32)


# another choice -> (the run that it is part of, the module, what is set there, to what)
CHOICES: dict[str, tuple[str, Any, str, Any]] = {
    **{f"chunks of {C} tokens": ("recurrence, chunked", loops, "CHUNK", C) for C in (16, 64, 128)},
    **{f"windows in spans of {S:,} queries": ("window", window, "SPAN", S) for S in (256, 4096)},
    **{
        f"a state kept every {n} tokens": ("recurrence, compiled, with backward", compiled, "EVERY", n) for n in (4, 64)
    },
    "threads of Python, not PyTorch's": ("recurrence, compiled", compiled, "_gnu_openmp", lambda: None),
}


def tried(T: int = 2048) -> list[dict[str, Any]]:
    """What another choice costs: time beside the one that is in the code, taken in turns, as a ratio of medians."""
    q, k, v, _ = leaves = random_inputs(T, requires_grad=True)

    def compiled_with_backward() -> None:
        torch.autograd.grad(gated_recurrence(*leaves, backend="compiled")[0].sum(), leaves)

    runs = {
        "recurrence, chunked": torch.no_grad()(functools.partial(gated_recurrence, *leaves, backend="chunked")),
        "recurrence, compiled": torch.no_grad()(functools.partial(gated_recurrence, *leaves, backend="compiled")),
        "window": torch.no_grad()(functools.partial(sliding_window_attention, q, k, v, WINDOW)),
        "recurrence, compiled, with backward": compiled_with_backward,
    }
    found = []
    for name, (of, module, constant, value) in CHOICES.items():
        here = getattr(module, constant)
        if module is compiled and compiled.numba_is_missing():
            continue
        times = in_turns(
            {"as it is": runs[of], "tried": functools.partial(_with, module, constant, value, runs[of])}, repeats=9
        )
        ratio = times["tried"]["median_s"] / times["as it is"]["median_s"]
        instead = here if isinstance(here, int) else "as it is"
        found.append({"tried": name, "of": of, "instead of": instead, "T": T, "ratio": ratio})
    return found


def _with(module: Any, constant: str, value: int, run: Callable[[], Any]) -> None:
    """Run with another value of a module's constant."""
    before = getattr(module, constant)
    setattr(module, constant, value)
    try:
        run()
    finally:
        setattr(module, constant, before)
