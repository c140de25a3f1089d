"""Gated recurrences: check the input, pick a form, run it.

The forms are one file a recurrence (`diagonal`, `scalar`, `slots`), each with its naive, step and chunked version on
one page; their Triton twins have the same names in `kernels/`.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from liger_mini.recurrences import diagonal, scalar, slots
from liger_mini.recurrences.checks import (
    check_gate,
    check_inputs,
    check_state,
    check_width,
    document_ends,
    require_triton,
)
from liger_mini.recurrences.loops import CHUNK

BACKENDS = ("auto", "naive", "chunked", "triton")


def gated_recurrence(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T Hkv K"],
    v: Float[Tensor, "B T Hkv V"],
    log_gate: Float[Tensor, "B T Hkv K"] | Float[Tensor, "B T Hkv"],
    *,
    initial_state: Float32[Tensor, "N Hkv K V"] | None = None,
    cu_seqlens: Int[Tensor, "N+1"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], Float32[Tensor, "N Hkv K V"]]:
    """S_t = α_t ⊙ S_{t-1} + k_tᵀ v_t and o_t = q_t S_t, with α_t = exp(log_gate_t).

    No scaling is hidden in here. The arithmetic runs in float32 (float64 if an input is float64) and o comes back in
    v's dtype.

    Args:
        k, v, log_gate: may have fewer heads than q (grouped keys/values: H_kv divides H); the state has theirs.
        log_gate: log α ≤ 0: one value for each key channel, or one for each head (the `diagonal` or the `scalar`
            recurrence).
        initial_state: S_0, float32, one a row (N = B) or a document; zeros if None.
        cu_seqlens: [N+1] boundaries 0 = c_0 ≤ … ≤ c_N = T of documents packed into one row (B = 1).
            They do not see each other; a document of length zero hands its state through.
        backend: "naive" | "chunked" | "triton" | "auto" (`explain_backend` says what auto means). Triton needs a
            GPU or TRITON_INTERPRET=1, takes q, k, v in their own dtype and has no float64.
    Returns:
        o and the state after the last token.
    Raises:
        ValueError: shapes or states that do not fit, an empty sequence, a gate above 0 or NaN, an unknown backend,
            cu_seqlens that do not cover T, a width above 256 for Triton. TypeError: dtypes that are not allowed.
        RuntimeError: "triton" on a machine that cannot run it.
    """
    form = _form(diagonal if log_gate.ndim == 4 else scalar, backend, q.shape[1])
    check_inputs(q, {"k": k, "v": v, "log_gate": log_gate}, {"log_gate": log_gate.ndim if log_gate.ndim == 3 else 4})
    check_width("k", k, "q", q)
    if log_gate.ndim == 4:
        check_width("log_gate", log_gate, "k", k)
    check_gate(log_gate, backend)
    shapes = {"initial_state": (*k.shape[2:], v.shape[-1])}
    o, (state,) = _run(form, q, (k, v), log_gate, (initial_state,), shapes, cu_seqlens, backend)
    return o, state


def slot_recurrence(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T Hkv K"],
    v: Float[Tensor, "B T Hkv V"],
    slot_write: Float[Tensor, "B T Hkv M"],
    log_gate: Float[Tensor, "B T Hkv M"],
    *,
    initial_state: tuple[Float32[Tensor, "N Hkv K M"], Float32[Tensor, "N Hkv M V"]] | None = None,
    cu_seqlens: Int[Tensor, "N+1"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], tuple[Float32[Tensor, "N Hkv K M"], Float32[Tensor, "N Hkv M V"]]]:
    """K̃_t = α_t ⊙ K̃_{t-1} + write_tᵀ k_t, Ṽ_t likewise with v_t, and o_t = softmax(q_t K̃_tᵀ) Ṽ_t.

    M slots remember keys K̃ and values Ṽ; a query attends to the slots. No scaling is hidden in here.

    Args:
        slot_write: how strongly each slot takes the token in (GSA: 1 - α).
        log_gate: log α ≤ 0, one value for each slot.
        initial_state: (K̃ᵀ, Ṽ), float32; zeros if None.
        The rest, and what is raised, as in `gated_recurrence`.
    Returns:
        o, and (K̃ᵀ, Ṽ) after the last token.
    """
    form = _form(slots, backend, q.shape[1])
    check_inputs(q, {"k": k, "v": v, "slot_write": slot_write, "log_gate": log_gate})
    check_width("k", k, "q", q)
    check_width("log_gate", log_gate, "slot_write", slot_write)
    check_gate(log_gate, backend)
    M = slot_write.shape[-1]
    shapes = {"initial_state[0]": (*k.shape[2:], M), "initial_state[1]": (k.shape[2], M, v.shape[-1])}
    if initial_state is not None and (not isinstance(initial_state, tuple) or len(initial_state) != 2):
        raise ValueError(f"initial_state is a {type(initial_state).__name__}; it must be a pair (K̃ᵀ, Ṽ)")
    return _run(form, q, (k, v, slot_write), log_gate, initial_state or (None, None), shapes, cu_seqlens, backend)


def explain_backend(device: torch.device | str = "cpu") -> str:
    """What `backend="auto"` chooses on this device, and why."""
    return (
        f"on {torch.device(device).type}: 'chunked' (matrix products over {CHUNK} tokens at a time), "
        "and one 'step' where the sequence is a single token. 'naive' is the readable loop and is never chosen; "
        "'triton' is chosen only by name, until its kernels have been run on a GPU"
    )


def _form(recurrence: ModuleType, backend: str, T: int) -> Callable:
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r}: allowed are {', '.join(map(repr, BACKENDS))}")
    if backend == "triton":
        require_triton()
        return importlib.import_module(recurrence.__name__.replace("recurrences", "kernels")).triton_recurrence
    one_token = backend == "auto" and T == 1  # naive at T = 1 is exactly one step
    return recurrence.naive if backend == "naive" or one_token else recurrence.chunked


def _run(
    form: Callable,
    q: Tensor,
    inputs: Sequence[Tensor],  # k, v and what else is written
    log_gate: Tensor,
    states: Sequence[Tensor | None],
    shapes: dict[str, tuple[int, ...]],
    cu_seqlens: Tensor | None,
    backend: str,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Bring everything to one float type, fill in zero states, run the form, document by document if packed."""
    B, T = q.shape[:2]
    ends = None if cu_seqlens is None else document_ends(cu_seqlens, B, T)
    N, dtype = B if ends is None else len(ends) - 1, inputs[1].dtype
    compute = functools.reduce(torch.promote_types, (x.dtype for x in (q, *inputs, log_gate)), torch.float32)
    for (name, shape), state in zip(shapes.items(), states):
        if state is not None:
            check_state(name, state, (N, *shape), q)
    states = tuple(
        q.new_zeros(N, *shape, dtype=compute) if state is None else state.to(compute)
        for shape, state in zip(shapes.values(), states)
    )
    log_gate = log_gate.to(compute)
    if backend == "triton":
        return _run_triton(form, q, (*inputs, log_gate), states, cu_seqlens)
    inputs = [x.to(compute) for x in (q, *inputs, log_gate)]
    if ends is None:
        o, states = _call(form, inputs, states)
        return o.to(dtype), states
    outputs, finals = [], []
    for n, (start, end) in enumerate(itertools.pairwise(ends)):
        final = tuple(S[n : n + 1] for S in states)
        if end > start:
            o, final = _call(form, [x[:, start:end] for x in inputs], final)
            outputs.append(o)
        finals.append(final)
    return torch.cat(outputs, dim=1).to(dtype), tuple(torch.cat(S) for S in zip(*finals))


def _run_triton(form, q, inputs, states, cu_seqlens) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The kernels know documents, but no groups: keys, values, gates and states are repeated for each query head."""
    groups = q.shape[2] // inputs[0].shape[2]
    if groups > 1:
        inputs = [x.repeat_interleave(groups, dim=2) for x in inputs]
        states = [S.repeat_interleave(groups, dim=1) for S in states]
    o, states = _call(form, (q, *inputs), states, cu_seqlens)
    return o, tuple(S[:, ::groups] for S in states)


def _call(form: Callable, inputs: Sequence[Tensor], states: Sequence[Tensor], *args: Any):
    """One state goes in and comes out bare, several as a tuple."""
    o, states = form(*inputs, tuple(states) if len(states) > 1 else states[0], *args)
    return o, states if isinstance(states, tuple) else (states,)
