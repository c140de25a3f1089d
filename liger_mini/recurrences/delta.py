"""The delta recurrence: a state that corrects itself (DeltaNet, Gated DeltaNet, KDA).

    S ← diag(α_t) S_{t-1}                     forget: α_t = exp(log_gate_t) in (0, 1], one per head or per key channel
    u_t = β_t (v_t - k_t S)                   what the state says for this key is taken off the value: the correction
    S_t = S + k_tᵀ u_t,  o_t = q_t S_t        S in R^{K x V}; no scaling, no denominator

Where the other recurrences add, this one replaces: with a key of length one and β = 1 the state says exactly v_t for
k_t afterwards. It is a step of gradient descent on ‖v_t - k_t S‖² / 2 with step size β_t, stable while β_t ‖k_t‖² ≤ 2.

| form    | time                        | memory beyond inputs and outputs      | sequential steps |
|---------|-----------------------------|---------------------------------------|------------------|
| naive   | O(T K V)                    | O(K V) per head                       | T                |
| step    | O(K V) per token            | O(K V) per head                       | 1                |
| chunked | O(T (C + K) (K + V))        | O(N (C² + C (K + V) + K V)) per head  | T / C            |

Shapes: q [B, T, H, K]; k [B, T, H_kv, K]; v [B, T, H_kv, V]; beta [B, T, H_kv]; log_gate [B, T, H_kv] or
[B, T, H_kv, K]; state [B, H_kv, K, V]. `delta_recurrence` checks the input and brings everything to one float type.
"""

from __future__ import annotations

import torch
from torch import Tensor

from liger_mini.recurrences.loops import over_chunks, over_tokens, read


def naive(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    """The definition: one `step` after the other."""
    return over_tokens(step, (q, k, v, beta, log_gate), state)


def step(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: q [B, H, K], k [B, H_kv, K], v [B, H_kv, V], beta [B, H_kv], log_gate [B, H_kv] or [B, H_kv, K]."""
    alpha = log_gate.exp().reshape(*log_gate.shape[:2], -1, 1)  # [B, H_kv, 1 or K, 1]
    state = alpha * state
    u = beta[..., None] * (v - (k[..., None, :] @ state).squeeze(-2))  # [B, H_kv, V]
    state = state + k[..., :, None] * u[..., None, :]  # [B, H_kv, K, V]
    return read(q, state), state


def chunked(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence in chunks of C tokens. A token's correction depends on those before it in its chunk:

        u_i = β_i v_i - β_i (k_i ⊙ α_1…α_i) S_0 - Σ_{j<i} A_ij u_j,    A_ij = β_i (k_i ⊙ α_{j+1}…α_i · k_j)

    which is one unit-triangular system, (I + A) u = β v - (β k ⊙ α_1…α_i) S_0. It is solved once for both terms,
    (I + A) [U | W] = [β v | β k ⊙ α_1…α_i], so that u = U - W S_0 when the state before the chunk is known. Then

        o_i = (q_i ⊙ α_1…α_i) S_0 + Σ_{j≤i} (q_i ⊙ α_{j+1}…α_i · k_j) u_j

    The system is solved by substitution. Its inverse by powers of A would be exact too, and useless: with equal keys and
    β = 1 the powers reach 1e17, where the inverse has entries of 1 and -1.
    """
    if log_gate.ndim == 3:
        log_gate = log_gate.unsqueeze(-1)
    return over_chunks(span, (q, k, v, beta.unsqueeze(-1), log_gate), state)


def span(q_n: Tensor, k_n: Tensor, v_n: Tensor, b_n: Tensor, g_n: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """N chunks of C tokens, [B, H_kv, G, N, C, ·], from the state before the first to the state after the last."""
    within = within_chunk if g_n.shape[-1] > 1 else within_chunk_scalar
    P, since_start, until_end = within(q_n, k_n, g_n)
    right = torch.cat([b_n * v_n, b_n * k_n * since_start], dim=-1)
    # ‖k‖² rounded to float32 is off alike in every step; where the same key comes again and again that adds up
    exact = torch.float64 if k_n.device.type == "cpu" else k_n.dtype
    A, _, _ = within((b_n * k_n).to(exact), k_n.to(exact), g_n.to(exact))
    solved = torch.linalg.solve_triangular(A.tril(-1), right.to(exact), upper=False, unitriangular=True).to(right.dtype)
    U, W = solved.split([v_n.shape[-1], k_n.shape[-1]], dim=-1)
    before, u, state = correct(U, W, k_n * until_end, since_start[..., -1, :, None], state)
    return (q_n * since_start) @ before + P @ u, state


def correct(U: Tensor, W: Tensor, k: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The state before each chunk, the corrections in it, and the state after the last: the only sequential part.

    Args:
        U, W: the solved system, [B, H_kv, 1, N, C, V or K]. k: keys, decayed until the chunk's end.
        decay: of a whole chunk, [B, H_kv, 1, N, K or 1, 1].
    """
    U, W, k, decay = (x.squeeze(2) for x in (U, W, k.mT, decay))
    before, corrections = [], []
    for n in range(U.shape[2]):
        before.append(state)
        corrections.append(U[:, :, n] - W[:, :, n] @ state)
        state = decay[:, :, n] * state + k[:, :, n] @ corrections[-1]
    return torch.stack(before, dim=2).unsqueeze(2), torch.stack(corrections, dim=2).unsqueeze(2), state


def within_chunk_scalar(x: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x_i · k_j) α_{j+1}…α_i for j ≤ i, else 0, and the decays as in `within_chunk`; g [..., C, 1].

    Every exponent is a sum of log-gates that starts after j: none is positive, and no two sums are subtracted.
    """
    C = g.shape[-2]
    i, j = torch.arange(C, device=g.device).unsqueeze(1), torch.arange(C, device=g.device)
    D = g.expand(*g.shape[:-1], C).masked_fill(i <= j, 0).cumsum(-2).exp().tril()  # [..., C, C]
    return (x @ k.mT) * D, g.cumsum(-2).exp(), D[..., -1, :, None]


def within_chunk(x: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x_i ⊙ α_{j+1}…α_i · k_j for j ≤ i, else 0, inside blocks [..., C, K], by halving; C a power of two.

    The right half meets the left half through the boundary between them, as in `diagonal.within_chunk`.

    Returns:
        those [..., C, C], and the decays [..., C, K] from the block's start through i and from after j until its end.
    """
    C = x.shape[-2]
    if C == 1:
        return (x * k).sum(-1, keepdim=True), g.exp(), torch.ones_like(g)
    x, k, g = (y.unflatten(-2, (2, C // 2)) for y in (x, k, g))  # [..., 2, C/2, K]
    (P_l, P_r), (since_l, since_r), (until_l, until_r) = (y.unbind(-3) for y in within_chunk(x, k, g))
    across = (x[..., 1, :, :] * since_r) @ (k[..., 0, :, :] * until_l).mT
    P = torch.cat([torch.cat([P_l, torch.zeros_like(across)], dim=-1), torch.cat([across, P_r], dim=-1)], dim=-2)
    since = torch.cat([since_l, since_l[..., -1:, :] * since_r], dim=-2)
    until = torch.cat([until_l * since_r[..., -1:, :], until_r], dim=-2)
    return P, since, until
