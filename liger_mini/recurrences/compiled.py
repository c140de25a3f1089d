"""The naive loop itself, compiled (chapter 10): one token after the other, one head after the other, for a CPU.

    diagonal, scalar    S_t = α_t ⊙ S_{t-1} + k_tᵀ v_t,    o_t = q_t S_t
    delta               S = α_t ⊙ S_{t-1},  S_t = S + k_tᵀ β_t (v_t - k_t S),    o_t = q_t S_t

O(T K V) time and no products of matrices, as the definition has it; but a compiler makes the loops, and a head's state (K V
numbers) stays in the processor's fastest cache from the first token to the last. Heads are shared out over PyTorch's threads,
and no thread waits for another before the end.

The backward pass goes the other way with the gradient of the state,

    dS_t = α_{t+1} ⊙ dS_{t+1} + q_tᵀ do_t,    dq_t = do_t S_tᵀ,  dk_t = v_t dS_tᵀ,  dv_t = k_t dS_t,  d log α_t = rows of (α_t S_{t-1}) ⊙ dS_t

and needs every state again. One in `EVERY` was kept; from there `EVERY` states are computed once more. That takes memory for
T / EVERY states per head, and no decay is ever divided by.

Shapes: as in `diagonal`, `scalar` and `delta`. numba is optional: pip install "liger_mini[fast]".
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from liger_mini.recurrences import delta, diagonal, scalar

PROCESS = os.getpid()  # a process that forks off has PyTorch's memory, and none of its threads
GRAIN = 2**15  # numbers of work that are worth a thread, as PyTorch's own operations have it
EVERY = 16  # tokens between two states that are kept for the backward pass
FORMS: dict[ModuleType, str] = {diagonal: "additive", scalar: "additive", delta: "delta"}


def compiled(recurrence: ModuleType) -> Callable[..., tuple[Tensor, Tensor]]:
    """The form of this recurrence that `dispatch` runs: (q, k, v, (beta,) log_gate, state) -> (o, state)."""
    return functools.partial(_beside_the_graph if torch.compiler.is_compiling() else _run, FORMS[recurrence])


def _run(name: str, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    *given, log_gate, state = inputs
    gate = log_gate.unsqueeze(-1) if log_gate.ndim == 3 else log_gate
    if (K := given[0].shape[-1]) % 2:  # the loops take two channels at a time: one more, which nothing writes or reads
        q, k, *rest = given
        gate = gate if gate.shape[-1] == 1 else F.pad(gate, (0, 1))
        o, last = _run(name, F.pad(q, (0, 1)), F.pad(k, (0, 1)), *rest, gate, F.pad(state, (0, 0, 0, 1)))
        return o, last[..., :K, :]
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return Loop.apply(name, *given, gate, state)
    o, last, _ = _forward(name, (*given, gate, state), keep=False)
    return o, last


_beside_the_graph = torch.compiler.disable(_run, reason="the loop is compiled already, by numba")


@functools.cache
def numba_is_missing() -> bool:
    return importlib.util.find_spec("numba") is None


def seen_by_pytorch_alone(inputs: Sequence[Tensor]) -> bool:
    """Whether the caller needs operations that PyTorch sees: it traces, transforms or counts them, or has tensors of its own."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or _get_current_dispatch_mode() is not None
        or any(type(x) not in (Tensor, nn.Parameter) for x in inputs)
    )


class Loop(torch.autograd.Function):
    """A loop of `loops_of_numba` with its gradient. Inputs are of one float type; grouped as everywhere."""

    @staticmethod
    def forward(ctx, name: str, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        o, last, starts = _forward(name, inputs, keep=True)
        ctx.name = name
        ctx.save_for_backward(*inputs[:-1], starts)
        return o, last

    @staticmethod
    @once_differentiable
    def backward(ctx, do: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        *given, log_gate, starts = (x.detach().contiguous() for x in ctx.saved_tensors)
        given.append(log_gate.exp())
        gradients, d_state = [torch.zeros_like(x) for x in given], d_last.clone(memory_format=torch.contiguous_format)
        over_heads(_loop(ctx.name, "backward"), (*given, starts, do.contiguous(), d_state, *gradients), EVERY)
        return None, *gradients, d_state


def _forward(name: str, inputs: Sequence[Tensor], keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(o, the last state, one state in `EVERY` if they are to be kept)."""
    *given, log_gate, state = (x.detach().contiguous() for x in inputs)
    q, _, v, *_ = given = [*given, log_gate.exp()]
    (B, T, H, K), (heads, V) = q.shape, v.shape[2:]
    starts, last = q.new_empty(B, heads, -(-T // EVERY) if keep else 0, K, V), state.clone()
    o = q.new_empty(B, T, H, V)
    over_heads(_loop(name, "forward"), (*given, last, starts, o), EVERY)
    return o, last, starts


@functools.cache
def _loop(name: str, direction: str) -> Callable:
    """The compiled function; importing it needs numba."""
    module = {"additive": "loops_of_numba", "delta": "loops_of_numba_delta"}[name]
    return getattr(importlib.import_module(f"liger_mini.recurrences.{module}"), f"{name}_{direction}")


def over_heads(loop: Callable, tensors: Sequence[Tensor], *rest: int) -> None:
    """loop(first unit, last unit, *arrays, *rest) for all B H_kv pairs of a row and a key head, shared out over threads."""
    arrays = [x.numpy() for x in tensors]
    units = tensors[1].shape[0] * tensors[1].shape[2]
    work = tensors[0].shape[1] * tensors[0].shape[3] * tensors[2].shape[3]  # T K V of a unit
    threads = max(1, min(torch.get_num_threads(), units, units * work // GRAIN))
    bounds = [units * i // threads for i in range(threads + 1)]
    side_by_side([functools.partial(loop, *pair, *arrays, *rest) for pair in itertools.pairwise(bounds)])


def side_by_side(tasks: Sequence[Callable[[], None]]) -> None:
    """Each task in a thread, the first in this one; with PyTorch's threads where they are GNU OpenMP's.

    Between two operations those wait for the next one without sleeping, for milliseconds. A thread of Python's would have to
    share a processor with one of them: beside an operation on a long text it is slower by half.
    """
    if len(tasks) == 1:
        tasks[0]()
        return
    tasks_left, errors = iter(tuple(tasks)), []  # a list's iterator gives each task to one thread alone

    def work(_: object = None) -> None:
        try:
            while task := next(tasks_left, None):
                task()
        except BaseException as error:  # C has no exceptions
            errors.append(error)

    if os.getpid() == PROCESS and (parallel := _gnu_openmp()) is not None:
        call, kind = parallel
        call(kind(work), None, len(tasks), 0)
    else:
        others = [threading.Thread(target=work) for _ in tasks[1:]]
        for thread in others:
            thread.start()
        work()
        for thread in others:
            thread.join()
    if errors:
        raise errors[0]


@functools.cache
def _gnu_openmp() -> tuple[Callable, Callable] | None:
    """GOMP_parallel(task, argument, threads, flags) of the library that PyTorch runs on, and what makes a task of a function."""
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        try:
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD)  # the one that is loaded, or none
        except OSError:
            continue
        task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        library.GOMP_parallel.argtypes = [task, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.GOMP_parallel.restype = None
        return library.GOMP_parallel, task
    return None
