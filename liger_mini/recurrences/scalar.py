"""The scalar recurrence: one gate per head (Mamba2, Gated Retention, mLSTM, Lightning, ungated linear).

    S_t = α_t S_{t-1} + k_tᵀ v_t              S in R^{K x V}, α_t = exp(log_gate_t) in (0, 1]
    o_t = q_t S_t                             no scaling, no denominator

| form    | time                    | memory beyond inputs and outputs  | sequential steps |
|---------|-------------------------|-----------------------------------|------------------|
| naive   | O(T K V)                | O(K V) a head                     | T                |
| step    | O(K V) a token          | O(K V) a head                     | 1                |
| chunked | O(T (C K + C V + K V))  | O(N (C² + C K + K V)) a head      | T / C            |

The same costs as the diagonal recurrence, with a smaller constant: all channels decay alike, so the decay leaves the
sum over channels, q_i · k_j is one plain matrix product, and nothing has to be halved.

Shapes: q [B, T, H, K]; k [B, T, H_kv, K]; v [B, T, H_kv, V]; log_gate [B, T, H_kv]; state [B, H_kv, K, V].
"""

from __future__ import annotations

import torch
from torch import Tensor

from liger_mini.recurrences.loops import carry, over_chunks, over_tokens, read


def naive(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: one `step` after the other."""
    return over_tokens(step, (q, k, v, log_gate), state)


def step(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: q [B, H, K], k [B, H_kv, K], v [B, H_kv, V], log_gate [B, H_kv]. What decoding runs."""
    alpha = log_gate.exp()
    state = alpha[..., None, None] * state + k[..., :, None] * v[..., None, :]  # [B, H_kv, K, V]
    return read(q, state), state


def chunked(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence in chunks of C tokens:

    o_i = α_1…α_i (q_i S_0)  +  Σ_{j≤i} (q_i · k_j) α_{j+1}…α_i v_j
          state before          `within_chunk`
    """
    return over_chunks(span, (q, k, v, log_gate.unsqueeze(-1)), state)


def span(q_n: Tensor, k_n: Tensor, v_n: Tensor, g_n: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """N chunks of C tokens, [B, H_kv, G, N, C, ·], from the state before the first to the state after the last."""
    o_n, since_start, until_end = within_chunk(q_n, k_n, v_n, g_n)
    before, state = carry(k_n * until_end, v_n, since_start[..., -1:, :], state)
    return (q_n * since_start) @ before + o_n, state


def within_chunk(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_{j≤i} (q_i · k_j) α_{j+1}…α_i v_j inside blocks [..., C, ·]; g [..., C, 1].

    D_ij = α_{j+1}…α_i is exp of a running sum down column j that starts after j: every exponent is a sum of
    log-gates ≤ 0, and no two sums are subtracted, so a strong gate costs its neighbours no precision.

    Returns:
        that sum, and the decays [..., C, 1] from the block's start through i and from after j until its end.
    """
    C = g.shape[-2]
    i, j = torch.arange(C, device=g.device).unsqueeze(1), torch.arange(C, device=g.device)
    D = g.expand(*g.shape[:-1], C).masked_fill(i <= j, 0).cumsum(-2).exp().tril()  # [..., C, C]
    return ((q @ k.mT) * D) @ v, g.cumsum(-2).exp(), D[..., -1, :, None]
