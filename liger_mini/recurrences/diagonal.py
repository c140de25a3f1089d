"""The diagonal recurrence: one gate per key channel (GLA, HGRN2, RWKV6, LightNet).

    S_t = diag(α_t) S_{t-1} + k_tᵀ v_t        S in R^{K x V}, α_t = exp(log_gate_t) in (0, 1]^K
    o_t = q_t S_t                             no scaling, no denominator

Three ways to compute the same numbers, each checked against the one before (chapter 04):

| form    | time                    | memory beyond inputs and outputs  | sequential steps |
|---------|-------------------------|-----------------------------------|------------------|
| naive   | O(T K V)                | O(K V) a head                     | T                |
| step    | O(K V) a token          | O(K V) a head                     | 1                |
| chunked | O(T (C K + C V + K V))  | O(N (C² + C K + K V)) a head      | T / C            |

(N = SPAN chunks are worked on side by side; autograd keeps each step's intermediates as well, so training memory is
linear in T.)

Shapes: q [B, T, H, K]; k, log_gate [B, T, H_kv, K]; v [B, T, H_kv, V]; state [B, H_kv, K, V]. `gated_recurrence`
checks the input and brings everything to one float type before it calls these.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from liger_mini.recurrences.loops import carry, over_chunks, over_tokens, read


def naive(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: one `step` after the other."""
    return over_tokens(step, (q, k, v, log_gate), state)


def step(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: q [B, H, K], k and log_gate [B, H_kv, K], v [B, H_kv, V]. What decoding runs."""
    alpha = log_gate.exp()
    state = alpha[..., :, None] * state + k[..., :, None] * v[..., None, :]  # [B, H_kv, K, V]
    return read(q, state), state


def chunked(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence in chunks of C tokens, each a handful of matrix products.

    Token i of a chunk reads the state before the chunk, decayed since the chunk's start, and what the
    chunk itself wrote up to i:

        o_i = (q_i ⊙ α_1…α_i) S_0  +  Σ_{j≤i} (q_i ⊙ α_{j+1}…α_i · k_j) v_j
              state before            `within_chunk`

    Decays are only ever *products* of gates in (0, 1]. Nothing is divided by a decay, so nothing overflows,
    and a strong gate beside a weak one costs it no precision.
    """
    return over_chunks(span, (q, k, v, log_gate), state)


def span(q_n: Tensor, k_n: Tensor, v_n: Tensor, g_n: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """N chunks of C tokens, [B, H_kv, G, N, C, ·], from the state before the first to the state after the last."""
    o_n, since_start, until_end = within_chunk(q_n, k_n, v_n, g_n.exp(), across)
    before, state = carry(k_n * until_end, v_n, since_start[..., -1, :, None], state)
    return (q_n * since_start) @ before + o_n, state


def across(q: Tensor, k: Tensor, v: Tensor, since: Tensor, until: Tensor) -> Tensor:
    """What queries read across a boundary: keys decay `until` it, and again `since` it, channel by channel."""
    return ((q * since) @ (k * until).mT) @ v


def within_chunk(q: Tensor, k: Tensor, v: Tensor, a: Tensor, across: Callable) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_{j≤i} (q_i ⊙ α_{j+1}…α_i · k_j) v_j inside blocks [..., C, ·], by halving; C a power of two.

    The right half reads the left half through the boundary between them, where the decay α_{j+1}…α_i
    splits into what j suffers until the boundary and what follows until i. Each half is a smaller copy
    of the same problem, and both are solved in one call.

    Args:
        across: how a right half reads a left half (`slots` gates the other side of the state).
    Returns:
        that sum [..., C, V], and the decays [..., C, K] from the block's start through i (α_1…α_i) and from
        after j until its end (α_{j+1}…α_C).
    """
    C = q.shape[-2]
    if C == 1:
        return (q * k).sum(-1, keepdim=True) * v, a, torch.ones_like(a)
    q, k, v, a = (x.unflatten(-2, (2, C // 2)) for x in (q, k, v, a))  # [..., 2, C/2, ·]
    (o_l, o_r), (since_l, since_r), (until_l, until_r) = (x.unbind(-3) for x in within_chunk(q, k, v, a, across))
    o_r = o_r + across(q[..., 1, :, :], k[..., 0, :, :], v[..., 0, :, :], since_r, until_l)
    since = torch.cat([since_l, since_l[..., -1:, :] * since_r], dim=-2)
    until = torch.cat([until_l * since_r[..., -1:, :], until_r], dim=-2)
    return torch.cat([o_l, o_r], dim=-2), since, until
