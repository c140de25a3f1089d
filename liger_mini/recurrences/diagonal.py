"""The diagonal recurrence: one gate per key channel (GLA, HGRN2, RWKV6, LightNet).

    S_t = diag(α_t) S_{t-1} + k_tᵀ v_t        S in R^{K x V}, α_t = exp(log_gate_t) in (0, 1]^K
    o_t = q_t S_t                             no scaling, no denominator

Three ways to compute the same numbers, each checked against the one before (chapter 04):

| form    | time              | memory beyond inputs and outputs  | sequential steps |
|---------|-------------------|-----------------------------------|------------------|
| naive   | O(T K V)          | O(K V) a head                     | T                |
| step    | O(K V) a token    | O(K V) a head                     | 1                |
| chunked | O(T (C K + K V))  | O(C² + C K + K V) a head          | T / C            |

(autograd keeps each step's intermediates as well, so training memory is linear in T.)

Shapes: q, k, log_gate [B, T, H, K]; v [B, T, H, V]; state [B, H, K, V]. `gated_recurrence` checks the
input and brings everything to one float type before it calls these.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # C: tokens that are handled by matrix products between two states
LEAF = 8  # blocks of this length or shorter are computed pair by pair


def naive(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written: a loop over time."""
    outputs = []
    for t in range(q.shape[1]):
        o, state = step(q[:, t], k[:, t], v[:, t], log_gate[:, t], state)
        outputs.append(o)
    return torch.stack(outputs, dim=1), state


def step(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: q, k, log_gate [B, H, K], v [B, H, V]. What decoding runs."""
    write = k.unsqueeze(-1) * v.unsqueeze(-2)  # [B, H, K, V]
    state = log_gate.exp().unsqueeze(-1) * state + write
    return (q.unsqueeze(-2) @ state).squeeze(-2), state


def chunked(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence in chunks of C tokens, every one a handful of matrix products.

    With G_ij = Σ_{j<l≤i} log α_l, the decay that a write at j has suffered when token i reads it,

        o_i = (q_i · exp G_i0) S_0  +  Σ_{j≤i} (q_i · exp G_ij · k_j) v_j
              the state before         `within_chunk`

    Every exponent that is formed is a sum of log-gates, so it is ≤ 0 and nothing overflows; and every
    sum starts at the token that uses it, so a strong gate nearby costs the weak ones no precision.
    """
    T = q.shape[1]
    pad = -T % min(CHUNK, _power_of_two(T))
    # a padded token reads nothing, writes nothing and forgets nothing
    q, k, v, g = (F.pad(x.transpose(1, 2), (0, 0, 0, pad)) for x in (q, k, v, log_gate))  # [B, H, T+pad, ·]
    outputs = []
    for q_n, k_n, v_n, g_n in zip(*(x.split(CHUNK, dim=2) for x in (q, k, v, g))):
        o_n = (q_n * prefix_sum(g_n).exp()) @ state + within_chunk(q_n, k_n, v_n, g_n)
        state = g_n.sum(2).exp().unsqueeze(-1) * state + (k_n * suffix_sum(g_n).exp()).mT @ v_n
        outputs.append(o_n)
    return torch.cat(outputs, dim=2)[:, :, :T].transpose(1, 2), state


def within_chunk(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """Σ_{j≤i} (q_i · exp G_ij · k_j) v_j inside blocks [..., C, ·], by halving.

    The right half reads the left half through the boundary between them: G_ij splits there into what
    i has decayed since the boundary and what j still decayed until it. Each half is a smaller copy of
    the same problem, and both halves are solved in one call.
    """
    C = q.shape[-2]
    if C <= LEAF:
        return pair_by_pair(q, k, v, g)
    q, k, v, g = (x.unflatten(-2, (2, C // 2)) for x in (q, k, v, g))  # [..., 2, C/2, ·]
    o_left, o_right = within_chunk(q, k, v, g).unbind(-3)
    q_right = q[..., 1, :, :] * prefix_sum(g[..., 1, :, :]).exp()
    k_left = k[..., 0, :, :] * suffix_sum(g[..., 0, :, :]).exp()
    o_right = o_right + (q_right @ k_left.mT) @ v[..., 0, :, :]
    return torch.cat([o_left, o_right], dim=-2)


def pair_by_pair(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """The same sum for a short block, with the decay of every pair (i, j) written out."""
    C = q.shape[-2]
    later = torch.ones(C, C, dtype=torch.bool, device=q.device).tril(-1).unsqueeze(-1)  # i > j
    G = torch.where(later, g.unsqueeze(-2), 0).cumsum(-3)  # [..., i, j, K]: Σ_{j<l≤i} log α_l
    A = torch.einsum("...ik,...ijk,...jk->...ij", q, G.exp(), k).tril()
    return A @ v


def prefix_sum(g: Tensor) -> Tensor:
    """Σ_{l≤i} g_l over the second last axis: the decay since just before the block."""
    return g.cumsum(-2)


def suffix_sum(g: Tensor) -> Tensor:
    """Σ_{l>j} g_l over the second last axis: the decay from j to the end of the block."""
    return F.pad(g[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def _power_of_two(n: int) -> int:
    """The smallest power of two ≥ n, so that a short sequence is one block that halves evenly."""
    return 1 << (n - 1).bit_length()
