"""Gated recurrences: `gated_recurrence` checks its input, picks a form, and runs it.

The forms themselves are one file a recurrence (`diagonal` now; a scalar gate and slots have their
places beside it), each with its naive, step and chunked version on one page.
"""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from liger_mini.recurrences import diagonal

BACKENDS = ("auto", "naive", "chunked", "triton")


def gated_recurrence(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    log_gate: Float[Tensor, "B T H K"],
    *,
    initial_state: Float32[Tensor, "B H K V"] | None = None,
    cu_seqlens: Int[Tensor, "N+1"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], Float32[Tensor, "B H K V"]]:
    """S_t = diag(α_t) S_{t-1} + k_tᵀ v_t and o_t = q_t S_t, with α_t = exp(log_gate_t).

    No scaling is hidden in here. The arithmetic runs in float32 (float64 if an input is float64) and o
    comes back in v's dtype.

    Args:
        log_gate: log α ≤ 0, one value for each key channel.
        initial_state: S_0, float32; zeros if None. With `cu_seqlens`, one state a document: [N, H, K, V].
        cu_seqlens: [N+1] boundaries 0 = c_0 ≤ … ≤ c_N = T of documents packed into one row (B = 1).
            They do not see each other; a document of length zero hands its state through.
        backend: "naive" | "chunked" | "triton" | "auto" (`explain_backend` says what auto means). Triton needs a
            GPU or TRITON_INTERPRET=1, takes q, k, v in their own dtype and has no float64.
    Returns:
        o [B, T, H, V] and the state after the last token, [B, H, K, V] ([N, H, K, V] if packed).
    Raises:
        ValueError: shapes that do not fit, an empty sequence, a gate above 0 or NaN, an unknown backend,
            cu_seqlens that do not cover T. TypeError: inputs that are not floating point.
    """
    _check_inputs(q, k, v, log_gate)
    B, T, H, K, V = *q.shape, v.shape[-1]
    N = B if cu_seqlens is None else _check_cu_seqlens(cu_seqlens, B, T)
    dtype = v.dtype
    compute = functools.reduce(torch.promote_types, (x.dtype for x in (q, k, v, log_gate)), torch.float32)
    if initial_state is None:
        initial_state = q.new_zeros(N, H, K, V, dtype=compute)
    elif initial_state.shape != (N, H, K, V):
        raise ValueError(f"initial_state has shape {tuple(initial_state.shape)}; here it must be {(N, H, K, V)}")
    form = _form(backend, T)
    log_gate, state = log_gate.to(compute), initial_state.to(compute)
    if backend != "triton":
        q, k, v = (x.to(compute) for x in (q, k, v))
    if cu_seqlens is None:
        o, state = form(q, k, v, log_gate, state)
        return o.to(dtype), state

    outputs, states = [], []
    for start, end, S in zip(cu_seqlens.tolist(), cu_seqlens[1:].tolist(), state.split(1)):
        if end > start:
            o, S = form(*(x[:, start:end] for x in (q, k, v, log_gate)), S)
            outputs.append(o)
        states.append(S)
    return torch.cat(outputs, dim=1).to(dtype), torch.cat(states)


def explain_backend(device: torch.device | str = "cpu") -> str:
    """What `backend="auto"` chooses on this device, and why."""
    return (
        f"on {torch.device(device).type}: 'chunked' (matrix products over {diagonal.CHUNK} tokens at a time), "
        "and one 'step' where the sequence is a single token. 'naive' is the readable loop and is never chosen; "
        "'triton' is chosen only by name, until its kernels have been run on a GPU"
    )


def _form(backend: str, T: int):
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r}: allowed are {', '.join(map(repr, BACKENDS))}")
    if backend == "triton":
        from liger_mini.kernels.diagonal import triton_recurrence  # imports triton, which not every machine has

        return triton_recurrence
    one_token = backend == "auto" and T == 1  # naive at T = 1 is exactly one step
    return diagonal.naive if backend == "naive" or one_token else diagonal.chunked


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor) -> None:
    for name, x in {"q": q, "k": k, "v": v, "log_gate": log_gate}.items():
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have four axes [B, T, H, channels]")
        if not x.is_floating_point():
            raise TypeError(f"{name} has dtype {x.dtype}; allowed are floating point types")
        if x.shape[:3] != q.shape[:3]:
            raise ValueError(f"{name} has [B, T, H] = {tuple(x.shape[:3])}, but q has {tuple(q.shape[:3])}")
        if name in ("k", "log_gate") and x.shape[-1] != q.shape[-1]:
            raise ValueError(f"{name} has {x.shape[-1]} channels, but q has K = {q.shape[-1]}")
    if q.shape[1] == 0:
        raise ValueError("empty sequence: T = 0, but a recurrence needs at least one token")
    _check_gate(log_gate)


def _check_gate(log_gate: Tensor) -> None:
    if torch.compiler.is_compiling():  # reading a value would break the graph
        return
    largest = log_gate.detach().amax()  # NaN wins over every number
    if not largest <= 0:
        raise ValueError(
            f"log_gate has the value {largest.item():.4g}; a log-gate must be ≤ 0, since a gate is a factor in (0, 1]. "
            "Pass log α (for example torch.nn.functional.logsigmoid of the logits), not α itself"
        )


def _check_cu_seqlens(cu_seqlens: Tensor, B: int, T: int) -> int:
    ends = cu_seqlens.tolist()
    if B != 1:
        raise ValueError(f"cu_seqlens describes documents packed into one row, but the batch has B = {B} rows")
    if len(ends) < 2 or ends[0] != 0 or ends[-1] != T or sorted(ends) != ends:
        raise ValueError(f"cu_seqlens = {ends} must rise from 0 to T = {T}")
    return len(ends) - 1
