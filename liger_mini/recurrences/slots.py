"""The slot recurrence: M memory slots, one gate and one write strength each (GSA).

    K̃_t = diag(α_t) K̃_{t-1} + write_tᵀ k_t     K̃ in R^{M x K}: what each slot is about
    Ṽ_t = diag(α_t) Ṽ_{t-1} + write_tᵀ v_t     Ṽ in R^{M x V}: what each slot says
    o_t = softmax(q_t K̃_tᵀ) Ṽ_t                attention over M slots instead of T tokens; no scaling

Two recurrences with a softmax between. The second is the diagonal recurrence with the probabilities as queries and
`write` as keys. The first carries K̃ᵀ in R^{K x M} and gates its *columns*: the other side of the state.

| form    | time                       | memory beyond inputs and outputs      | sequential steps |
|---------|----------------------------|---------------------------------------|------------------|
| naive   | O(T M (K + V))             | O(M (K + V)) a head                   | T                |
| step    | O(M (K + V)) a token       | O(M (K + V)) a head                   | 1                |
| chunked | O(T (C + M) (K + V))       | O(T M) for the scores, O(N M (K + V)) | T / C, twice     |

Shapes: q [B, T, H, K]; k [B, T, H_kv, K]; v [B, T, H_kv, V]; write, log_gate [B, T, H_kv, M]; states keys = K̃ᵀ
[B, H_kv, K, M] and values = Ṽ [B, H_kv, M, V].
"""

from __future__ import annotations

from torch import Tensor

from liger_mini.recurrences import diagonal
from liger_mini.recurrences.loops import carry, over_chunks, over_tokens, read


def naive(
    q: Tensor, k: Tensor, v: Tensor, write: Tensor, log_gate: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition: one `step` after the other."""
    return over_tokens(step, (q, k, v, write, log_gate), keys, values)


def step(
    q: Tensor, k: Tensor, v: Tensor, write: Tensor, log_gate: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One token: q [B, H, K], k [B, H_kv, K], v [B, H_kv, V], write and log_gate [B, H_kv, M]."""
    alpha = log_gate.exp()
    keys = alpha[..., None, :] * keys + k[..., :, None] * write[..., None, :]  # K̃ᵀ [B, H_kv, K, M]
    values = alpha[..., :, None] * values + write[..., :, None] * v[..., None, :]  # Ṽ [B, H_kv, M, V]
    return read(read(q, keys).softmax(-1), values), keys, values


def chunked(
    q: Tensor, k: Tensor, v: Tensor, write: Tensor, log_gate: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Both passes in chunks: scores q_t K̃_tᵀ, softmax over the slots, then the diagonal recurrence."""
    scores, keys = over_chunks(span, (q, k, write, log_gate), keys)  # scores [B, T, H, M]
    o, values = diagonal.chunked(scores.softmax(-1), write, v, log_gate, values)
    return o, keys, values


def span(q_n: Tensor, k_n: Tensor, w_n: Tensor, g_n: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`diagonal.span` with the gate on the values' side: w decays and q, k do not."""
    scores_n, since_start, until_end = diagonal.within_chunk(q_n, k_n, w_n, g_n.exp(), across)
    before, state = carry(k_n, w_n * until_end, since_start[..., -1:, :], state)
    return (q_n @ before) * since_start + scores_n, state


def across(q: Tensor, k: Tensor, w: Tensor, since: Tensor, until: Tensor) -> Tensor:
    """What queries read across a boundary: what was written decays `until` it, and again `since` it, slot by slot."""
    return ((q @ k.mT) @ (w * until)) * since
