"""The diagonal recurrence: one gate per key channel (GLA, HGRN2, RWKV6, LightNet).

    S_t = diag(α_t) S_{t-1} + k_tᵀ v_t        S in R^{K x V}, α_t = exp(log_gate_t) in (0, 1]^K
    o_t = q_t S_t                             no scaling, no denominator

Three ways to compute the same numbers, each checked against the one before (chapter 04):

| form    | time              | memory beyond inputs and outputs  | sequential steps |
|---------|-------------------|-----------------------------------|------------------|
| naive   | O(T K V)          | O(K V) a head                     | T                |
| step    | O(K V) a token    | O(K V) a head                     | 1                |
| chunked | O(T (C K + K V))  | O(N (C² + C K + K V)) a head      | T / C            |

(N chunks are worked on side by side; autograd keeps each step's intermediates as well, so training memory is linear in T.)

Shapes: q, k, log_gate [B, T, H, K]; v [B, T, H, V]; state [B, H, K, V]. `gated_recurrence` checks the
input and brings everything to one float type before it calls these.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32  # C: tokens that are handled by matrix products between two states
SPAN = 16  # chunks worked on side by side: as many as the processor's cache holds


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
    """The recurrence in chunks of C tokens, each a handful of matrix products.

    Token i of a chunk reads the state before the chunk, decayed since the chunk's start, and what the
    chunk itself wrote up to i:

        o_i = (q_i ⊙ α_1…α_i) S_0  +  Σ_{j≤i} (q_i ⊙ α_{j+1}…α_i · k_j) v_j
              state before            `within_chunk`

    Decays are only ever *products* of gates in (0, 1]. Nothing is divided by a decay, so nothing overflows,
    and a strong gate beside a weak one costs it no precision.
    """
    T = q.shape[1]
    C = min(CHUNK, _power_of_two(T))
    # a padded token reads nothing, writes nothing and forgets nothing
    q, k, v, g = (F.pad(x.transpose(1, 2), (0, 0, 0, -T % C)) for x in (q, k, v, log_gate))  # [B, H, T+pad, ·]
    outputs = []
    for span in zip(*(x.split(SPAN * C, dim=2) for x in (q, k, v, g.exp()))):
        q_n, k_n, v_n, a_n = (x.unflatten(2, (-1, C)) for x in span)  # [B, H, N, C, ·]
        o_n, since_start, until_end = within_chunk(q_n, k_n, v_n, a_n)
        writes = (k_n * until_end).mT @ v_n  # [B, H, N, K, V]
        before = []
        for n in range(q_n.shape[2]):  # the only sequential part: one state a chunk
            before.append(state)
            state = since_start[:, :, n, -1].unsqueeze(-1) * state + writes[:, :, n]
        outputs.append(((q_n * since_start) @ torch.stack(before, dim=2) + o_n).flatten(2, 3))
    return torch.cat(outputs, dim=2)[:, :, :T].transpose(1, 2), state


def within_chunk(q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_{j≤i} (q_i ⊙ α_{j+1}…α_i · k_j) v_j inside blocks [..., C, ·], by halving; C a power of two.

    The right half reads the left half through the boundary between them, where the decay α_{j+1}…α_i
    splits into what j suffers until the boundary and what follows until i. Each half is a smaller copy
    of the same problem, and both are solved in one call.

    Returns:
        that sum [..., C, V], and the decays [..., C, K] from the block's start through i (α_1…α_i) and from
        after j until its end (α_{j+1}…α_C).
    """
    C = q.shape[-2]
    if C == 1:
        return (q * k).sum(-1, keepdim=True) * v, a, torch.ones_like(a)
    q, k, v, a = (x.unflatten(-2, (2, C // 2)) for x in (q, k, v, a))  # [..., 2, C/2, ·]
    (o_l, o_r), (since_l, since_r), (until_l, until_r) = (x.unbind(-3) for x in within_chunk(q, k, v, a))
    q_r, k_l, v_l = q[..., 1, :, :], k[..., 0, :, :], v[..., 0, :, :]
    o_r = o_r + ((q_r * since_r) @ (k_l * until_l).mT) @ v_l
    since = torch.cat([since_l, since_l[..., -1:, :] * since_r], dim=-2)
    until = torch.cat([until_l * since_r[..., -1:, :], until_r], dim=-2)
    return torch.cat([o_l, o_r], dim=-2), since, until


def _power_of_two(n: int) -> int:
    """The smallest power of two ≥ n: a short sequence is one block that halves evenly."""
    return 1 << (n - 1).bit_length()
