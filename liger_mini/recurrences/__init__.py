"""Gated recurrences: what a caller gives is checked here, and `dispatch` runs a form of it.

The forms are one file per recurrence (`diagonal`, `scalar`, `slots`, `delta`), each with its naive, step and chunked version on
one page; their Triton twins have the same names in `kernels/`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from liger_mini.recurrences import delta, diagonal, dispatch, scalar, slots
from liger_mini.recurrences.checks import check_delta, check_gate, check_inputs, check_width
from liger_mini.recurrences.compiled import numba_is_missing
from liger_mini.recurrences.dispatch import check_backend, run
from liger_mini.recurrences.loops import CHUNK


def gated_recurrence(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T Hkv K"],
    v: Float[Tensor, "B T Hkv V"],
    log_gate: Float[Tensor, "B T Hkv K"] | Float[Tensor, "B T Hkv"],
    *,
    initial_state: Float32[Tensor, "N Hkv K V"] | None = None,
    cu_seqlens: Int[Tensor, "N+1"] | None = None,
    backend: str = "auto",
    trusted: bool = False,
) -> tuple[Float[Tensor, "B T H V"], Float32[Tensor, "N Hkv K V"]]:
    """S_t = α_t ⊙ S_{t-1} + k_tᵀ v_t and o_t = q_t S_t, with α_t = exp(log_gate_t).

    No scaling is hidden in here. The arithmetic runs in float32 (float64 if an input is float64) and o comes back in
    v's dtype.

    Args:
        k, v, log_gate: may have fewer heads than q (grouped keys/values: H_kv divides H); the state has theirs.
        log_gate: log α ≤ 0: one value for each key channel, or one for each head (the `diagonal` or the `scalar`
            recurrence).
        initial_state: S_0, float32, one per row (N = B) or document; zeros if None.
        cu_seqlens: [N+1] boundaries 0 = c_0 ≤ … ≤ c_N = T of documents packed into one row (B = 1).
            They do not see each other; a document of length zero hands its state through.
        backend: "naive" | "chunked" | "compiled" | "triton" | "auto" (`explain_backend` says what auto means). Compiled is the
            naive loop, for a CPU; it needs numba, and is differentiable once. Triton needs a GPU or TRITON_INTERPRET=1,
            takes q, k, v in their own dtype and has no float64.
        trusted: the gates are known to be ≤ 0 and numbers, so no value is looked at: on a GPU that would wait for it.
    Returns:
        o and the state after the last token.
    Raises:
        ValueError: shapes or states that do not fit, an empty sequence, a gate above 0 or NaN, an unknown backend,
            cu_seqlens that do not cover T, a width above 256 for Triton. TypeError: dtypes that are not allowed.
        RuntimeError: "triton" or "compiled" on a machine that cannot run it.
    """
    check_inputs(q, {"k": k, "v": v, "log_gate": log_gate}, {"log_gate": log_gate.ndim if log_gate.ndim == 3 else 4})
    backend = check_backend(backend, q.shape[1])
    check_width("k", k, "q", q)
    if log_gate.ndim == 4:
        check_width("log_gate", log_gate, "k", k)
    if not trusted:
        check_gate(log_gate)
    states = {"initial_state": (initial_state, (*k.shape[2:], v.shape[-1]))}
    return run(diagonal if log_gate.ndim == 4 else scalar, q, (k, v, log_gate), states, cu_seqlens, backend)


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
    trusted: bool = False,
) -> tuple[Float[Tensor, "B T H V"], tuple[Float32[Tensor, "N Hkv K M"], Float32[Tensor, "N Hkv M V"]]]:
    """K̃_t = α_t ⊙ K̃_{t-1} + write_tᵀ k_t, Ṽ_t likewise with v_t, and o_t = softmax(q_t K̃_tᵀ) Ṽ_t.

    M slots remember keys K̃ and values Ṽ; a query attends to the slots. No scaling is hidden in here.

    Args:
        slot_write: how strongly each slot takes the token in (GSA: 1 - α).
        log_gate: log α ≤ 0, one value for each slot.
        initial_state: (K̃ᵀ, Ṽ), float32; zeros if None.
        cu_seqlens, backend, trusted: as in `gated_recurrence`.
    Returns:
        o, and (K̃ᵀ, Ṽ) after the last token.
    Raises:
        ValueError, RuntimeError: as in `gated_recurrence`.
    """
    check_inputs(q, {"k": k, "v": v, "slot_write": slot_write, "log_gate": log_gate})
    backend = check_backend(backend, q.shape[1])
    check_width("k", k, "q", q)
    check_width("log_gate", log_gate, "slot_write", slot_write)
    if not trusted:
        check_gate(log_gate)
    if initial_state is not None and (not isinstance(initial_state, tuple) or len(initial_state) != 2):
        raise ValueError(f"initial_state is a {type(initial_state).__name__}; it must be a pair (K̃ᵀ, Ṽ)")
    (keys, values), (heads, M) = initial_state or (None, None), slot_write.shape[2:]
    states = {"initial_state[0]": (keys, (*k.shape[2:], M)), "initial_state[1]": (values, (heads, M, v.shape[-1]))}
    o, keys, values = run(slots, q, (k, v, slot_write, log_gate), states, cu_seqlens, backend)
    return o, (keys, values)


def delta_recurrence(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T Hkv K"],
    v: Float[Tensor, "B T Hkv V"],
    beta: Float[Tensor, "B T Hkv"],
    log_gate: Float[Tensor, "B T Hkv K"] | Float[Tensor, "B T Hkv"] | None = None,
    *,
    initial_state: Float32[Tensor, "N Hkv K V"] | None = None,
    cu_seqlens: Int[Tensor, "N+1"] | None = None,
    backend: str = "auto",
    trusted: bool = False,
) -> tuple[Float[Tensor, "B T H V"], Float32[Tensor, "N Hkv K V"]]:
    """S = α_t ⊙ S_{t-1}, S_t = S + k_tᵀ β_t (v_t - k_t S) and o_t = q_t S_t, with α_t = exp(log_gate_t).

    A token writes the difference between its value and what the state says for its key. No scaling is hidden in here.

    Args:
        k: of length one, or at least so short that β ‖k‖² ≤ 2.
        beta: how much of the difference is written, in [0, 2]: 0 writes nothing, 1 replaces, 2 reflects.
        log_gate: log α ≤ 0: one value for each head, or for each key channel; None forgets nothing.
        initial_state, cu_seqlens, backend: as in `gated_recurrence`.
        trusted: as there; and β and keys are known to be in range.
    Raises:
        ValueError: beta outside [0, 2] or NaN, keys that are too long; and what `gated_recurrence` raises.
    """
    if log_gate is None:
        log_gate = q.new_zeros(beta.shape, dtype=torch.float32)
    axes = {"beta": 3, "log_gate": log_gate.ndim if log_gate.ndim == 3 else 4}
    check_inputs(q, {"k": k, "v": v, "beta": beta, "log_gate": log_gate}, axes)
    backend = check_backend(backend, q.shape[1])
    check_width("k", k, "q", q)
    if log_gate.ndim == 4:
        check_width("log_gate", log_gate, "k", k)
    if not trusted:
        check_gate(log_gate)
        check_delta(beta, k)
    states = {"initial_state": (initial_state, (*k.shape[2:], v.shape[-1]))}
    return run(delta, q, (k, v, beta, log_gate), states, cu_seqlens, backend)


def explain_backend(device: torch.device | str = "cpu") -> str:
    """What `backend="auto"` chooses on this device, and why."""
    kind = torch.device(device).type
    if dispatch.ASKED != "auto":
        return f"on {kind}: {dispatch.ASKED!r}, because the environment has LIGER_MINI_BACKEND. A single token is one step of the loop"
    chunked = f"'chunked' (matrix products over {CHUNK} tokens at a time)"
    if kind != "cpu":
        choice = chunked
    elif numba_is_missing():
        choice = f"{chunked}; with numba it would be 'compiled', which is faster here: pip install 'liger_mini[fast]'"
    else:
        choice = (
            "'compiled' (the naive loop, compiled by numba, a head after the other; faster here, forward and backward), and "
            f"{chunked} for slots and wherever PyTorch has to see the operations, as in torch.compile"
        )
    return (
        f"on {kind}: {choice}. A single token is one step of the loop. 'naive' is the readable loop and is never chosen; "
        "'triton' is chosen only by name, until its kernels have been run on a GPU; where its gradients are known to be "
        "wrong at times (Hopper, triton 3.4.0 to 3.7.0) it shows them before a training uses them"
    )
