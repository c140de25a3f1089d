"""Pick a form of a recurrence, bring everything to one float type, and run it."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from liger_mini.recurrences import delta, diagonal, scalar, slots
from liger_mini.recurrences.checks import check_state, require_triton
from liger_mini.recurrences.compiled import FORMS, compiled, numba_is_missing, seen_by_pytorch_alone
from liger_mini.recurrences.documents import check_documents, over_documents
from liger_mini.recurrences.trust import check_gradients

BACKENDS = ("auto", "naive", "chunked", "compiled", "triton")
ASKED = os.environ.get("LIGER_MINI_BACKEND", "auto")  # in place of "auto", for every call of this process
ALIGNED = 16  # values: 32 bytes of bfloat16
TWINS = {
    diagonal: "liger_mini.kernels.diagonal",
    scalar: "liger_mini.kernels.scalar",
    slots: "liger_mini.kernels.slots",
    delta: "liger_mini.kernels.delta",
}


def check_backend(backend: str, T: int) -> str:
    """What is asked for under this name: "auto" is what LIGER_MINI_BACKEND says, except for a single token.

    Raises:
        ValueError: an unknown name. RuntimeError: "triton" where that is not installed.
    """
    said = "backend"
    if backend == "auto" and T > 1:
        said, backend = "LIGER_MINI_BACKEND", ASKED
    if backend not in BACKENDS:
        raise ValueError(f"{said} = {backend!r}: allowed are {', '.join(map(repr, BACKENDS))}")
    if backend == "triton":
        require_triton()
    return backend


def of_model(backend: str, T: int) -> str:
    """What a model asks for whose config names `backend`: the environment is above it, and a single token is one step."""
    return "auto" if ASKED != "auto" or T == 1 else backend


def run(
    recurrence: ModuleType,
    q: Tensor,
    inputs: Sequence[Tensor],  # k, v, what else is written, log_gate
    states: dict[str, tuple[Tensor | None, tuple[int, ...]]],  # name -> (the state, None for zeros; its shape, less N)
    cu_seqlens: Tensor | None,
    backend: str,
) -> tuple[Tensor, ...]:
    """(o in v's dtype, and every state after the last token of each row or document)."""
    B, T = q.shape[:2]
    if cu_seqlens is not None:
        check_documents(cu_seqlens, B, T)
    N = B if cu_seqlens is None else len(cu_seqlens) - 1
    compute = functools.reduce(torch.promote_types, (x.dtype for x in (q, *inputs)), torch.float32)
    starts = [_start(name, S, (N, *shape), q, compute) for name, (S, shape) in states.items()]
    if backend == "triton":
        given = *_one_dtype(q, *inputs[:-1]), inputs[-1].to(compute)
        return _run_triton(recurrence, given, starts, cu_seqlens, inputs[1].dtype)
    exact = [x.to(compute) for x in (q, *inputs)]
    form = _form(recurrence, backend, exact)
    if cu_seqlens is None:
        o, *finals = form(*exact, *starts)
    else:
        o, *finals = over_documents(form, cu_seqlens, exact, starts)
    return o.to(inputs[1].dtype), *finals


def _form(recurrence: ModuleType, backend: str, inputs: Sequence[Tensor]) -> Callable:
    """What runs under this name; "auto" runs the compiled loop on a CPU where it can.

    Raises:
        ValueError: "compiled" for slots, or elsewhere than on a CPU. RuntimeError: "compiled" without numba.
    """
    if backend in ("naive", "chunked"):
        return getattr(recurrence, backend)
    device = inputs[0].device.type
    if backend == "auto":
        if device == "cpu" and not seen_by_pytorch_alone(inputs) and recurrence in FORMS and not numba_is_missing():
            return compiled(recurrence)
        return recurrence.naive if inputs[0].shape[1] == 1 else recurrence.chunked  # of one token: exactly one step
    if device != "cpu" or recurrence not in FORMS:
        raise ValueError(
            "backend = 'compiled' runs a gate per channel or per head and the delta rule, on a CPU; here are "
            f"{device} tensors for {recurrence.__name__.rpartition('.')[2]!r}. Use 'chunked'"
        )
    if numba_is_missing():
        raise RuntimeError(
            "backend = 'compiled' needs the package numba, which is not installed: pip install 'liger_mini[fast]'"
        )
    return compiled(recurrence)


def _start(name: str, state: Tensor | None, shape: tuple[int, ...], q: Tensor, compute: torch.dtype) -> Tensor:
    if state is None:
        return q.new_zeros(shape, dtype=compute)
    check_state(name, state, shape, q)
    return state.to(compute)


def _one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast in its type: a kernel multiplies two types without tensor cores, and autocast does not see a kernel."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in tensors)


@torch.compiler.disable(reason="kernels are tuned by running them")
def _run_triton(
    recurrence: ModuleType,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor],
    cu_seqlens: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """The kernels know documents and groups; nothing is repeated for them.

    With one gate per head values come with a column for a normaliser (mLSTM); they are filled up to a multiple of `ALIGNED`,
    since rows that begin anywhere cannot be read in one go.
    """
    form: Callable = importlib.import_module(TWINS[recurrence]).triton_recurrence
    q, *inputs = inputs
    width = inputs[1].shape[-1]
    if recurrence is scalar and width % ALIGNED:
        inputs[1], *states = (F.pad(x, (0, -width % ALIGNED)) for x in (inputs[1], *states))
    check_gradients(recurrence, form, (q, *inputs), states)
    o, *finals = form(q, *inputs, *states, cu_seqlens)
    if recurrence is scalar:
        o, *finals = (x[..., :width] for x in (o, *finals))
    return o.to(dtype), *finals
