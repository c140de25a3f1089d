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

import functools
import importlib.util
import itertools
import threading
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from liger_mini.recurrences import delta, diagonal, scalar

EVERY = 16  # tokens between two states that are kept for the backward pass
FORMS: dict[ModuleType, str] = {diagonal: "additive", scalar: "additive", delta: "delta"}


def compiled(recurrence: ModuleType) -> Callable[..., tuple[Tensor, Tensor]]:
    """The form of this recurrence that `dispatch` runs: (q, k, v, (beta,) log_gate, state) -> (o, state)."""
    return functools.partial(_run, FORMS[recurrence])


@torch.compiler.disable(reason="the loop is compiled already, by numba")
def _run(name: str, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    *given, log_gate, state = inputs
    gate = log_gate.unsqueeze(-1) if log_gate.ndim == 3 else log_gate
    differentiate = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return Loop.apply(name, differentiate, *given, gate, state)


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
    def forward(ctx, name: str, differentiate: bool, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        from liger_mini.recurrences import loops_of_numba as loops

        *given, state = (x.detach().contiguous() for x in inputs)
        q, _, v, *_ = given
        (B, T, H, K), (heads, V) = q.shape, v.shape[2:]
        kept = -(-T // EVERY) if differentiate else 0
        starts, last = q.new_empty(B, heads, kept, K, V), state.clone()
        o = q.new_empty(B, T, H, V)
        over_heads(getattr(loops, f"{name}_forward"), (*given, last, starts, o), EVERY)
        ctx.name = name
        ctx.save_for_backward(*given, starts)
        return o, last

    @staticmethod
    @once_differentiable
    def backward(ctx, do: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        from liger_mini.recurrences import loops_of_numba as loops

        *given, starts = ctx.saved_tensors
        gradients, d_state = [torch.zeros_like(x) for x in given], d_last.clone(memory_format=torch.contiguous_format)
        backward = getattr(loops, f"{ctx.name}_backward")
        over_heads(backward, (*given, starts, do.contiguous(), d_state, *gradients), EVERY)
        return None, None, *gradients, d_state


def over_heads(loop: Callable, tensors: Sequence[Tensor], *rest: int) -> None:
    """loop(first unit, last unit, *arrays, *rest) for all B H_kv pairs of a row and a key head, shared out over threads."""
    arrays = [x.numpy() for x in tensors]
    units = tensors[1].shape[0] * tensors[1].shape[2]
    threads = max(1, min(torch.get_num_threads(), units))
    bounds = [units * i // threads for i in range(threads + 1)]
    mine, *theirs = itertools.pairwise(bounds)
    others = [threading.Thread(target=loop, args=(*pair, *arrays, *rest)) for pair in theirs]
    for thread in others:
        thread.start()
    loop(*mine, *arrays, *rest)
    for thread in others:
        thread.join()
