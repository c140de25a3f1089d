"""Sliding-window softmax attention: each token attends to the last W keys, itself included (chapter 06).

    o_t = Σ_{t-W < s ≤ t} softmax_s(q_t · k_s / √K) v_s

| form    | time          | memory beyond inputs and outputs |
|---------|---------------|----------------------------------|
| naive   | O(T² K)       | O(T²) a head                     |
| blocked | O(T W K)      | O(T (W + K)) a head              |
| step    | O(W K) a token| O(W) a head                      |

The queries are the *last* Tq of the Tk keys' positions, so the same three functions serve a whole
sequence (Tq = Tk), one token at decode (Tq = 1) and anything between.

With *sinks* the first S real tokens of the document are seen as well, by every query from themselves on. The sum then goes
over s ≤ t with t-W < s or s among those S, each once. Blocked: O(T (W + S) K) time, and O(T (W + S) (1 + K/W)) memory.
A step: O(Tk K), of which the decode cache keeps Tk = W + S. S = 0 is the paper's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from liger_mini.recurrences.checks import check_packing, check_window, require_triton
from liger_mini.recurrences.documents import document_numbers, nth_real

SPAN = 1024  # queries whose blocks are worked on side by side: as many as the processor's cache holds


def sliding_window_attention(
    q: Float[Tensor, "B Tq H K"],
    k: Float[Tensor, "B Tk Hkv K"],
    v: Float[Tensor, "B Tk Hkv V"],
    window: int,
    *,
    sinks: int = 0,
    key_mask: Bool[Tensor, "B Tk"] | None = None,
    cu_seqlens: Int[Tensor, "N+1"] | None = None,
    documents: Int[Tensor, "B T"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "B Tq H V"]:
    """Softmax attention over the last `window` keys, the current one included, and over the document's first `sinks`.

    Args:
        k, v: may have fewer heads than q (grouped keys/values: Hkv divides H), and may begin earlier
            (Tk ≥ Tq: a cache in front).
        sinks: how many of a document's first real keys every later query of it sees, wherever its window is. More than
            there are is allowed: then everything is seen.
        key_mask: True where a key may be seen; False hides padding. A query that sees no key gives 0.
        cu_seqlens: [N+1] boundaries of documents packed into one row (B = 1, Tq = Tk); they do not see each other.
        documents: the same, said of each token (Tk = T, or T with a cache in front): tokens with different numbers do
            not see each other, and what is in front belongs to the first. Not for "triton".
        backend: "naive" | "blocked" ("chunked" means the same here) | "triton" | "auto" ("blocked"; for one query,
            one step).
    Raises:
        ValueError: window < 1, sinks < 0, shapes that do not fit, an empty sequence, an unknown backend, cu_seqlens that do not
            cover T. RuntimeError: "triton" on a machine that cannot run it.
    """
    check_window(q, k, v, window, sinks, key_mask, backend)
    check_packing(q, k, cu_seqlens, documents, backend)
    if backend == "triton":
        require_triton()
        from liger_mini.kernels.window import triton_window

        return triton_window(q, k, v, window, key_mask, cu_seqlens, sinks)
    if cu_seqlens is not None:
        documents = document_numbers(cu_seqlens, k.shape[1])
    elif documents is not None:
        before = k.shape[1] - documents.shape[1]
        documents = torch.cat([documents[:, :1].expand(-1, before), documents], dim=1)  # [B, Tk]
    everything = key_mask is None and documents is None and window >= k.shape[1] == q.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, T, ·]
    if q.shape[2] == 1 and backend != "naive":  # and what is in front belongs to its document
        return step(q, k, v, window, key_mask, sinks).transpose(1, 2)
    if key_mask is None:
        key_mask = torch.ones(len(k), k.shape[2], dtype=torch.bool, device=k.device)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    if backend == "naive":
        o = naive(q, k, v, window, key_mask, documents, sinks)
    elif everything:  # a window that no token leaves
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        o = blocked(q, k, v, window, key_mask, documents, sinks)
    return o.transpose(1, 2)


def naive(
    q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor, documents: Tensor | None = None, sinks: int = 0
) -> Tensor:
    """All T x T scores, with a band and the sinks kept. q [B, H, Tq, K]; k, v [B, H, Tk, ·]; key_mask, documents [B, Tk]."""
    compute = torch.promote_types(torch.float32, q.dtype)
    Tq, Tk = q.shape[2], k.shape[2]
    i = torch.arange(Tk - Tq, Tk, device=q.device).unsqueeze(1)
    j = torch.arange(Tk, device=q.device)
    near = j > i - window  # [Tq, Tk]
    if sinks:
        near = near | (j < nth_real([sinks], key_mask, documents)[:, None, -Tq:])  # [B, 1, Tq, Tk]
    visible = (j <= i) & near & key_mask[:, None, None, :]
    if documents is not None:
        visible = visible & (documents[:, None, -Tq:, None] == documents[:, None, None, :])
    scores = q.to(compute) @ k.to(compute).mT / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~visible, torch.finfo(compute).min).softmax(-1)
    return (weights.masked_fill(~visible, 0) @ v.to(compute)).to(v.dtype)


def step(q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor | None, sinks: int = 0) -> Tensor:
    """One query, the sinks and the last W keys: q [B, H, 1, K]; k, v [B, H_kv, Tk, ·]. What decoding runs.

    A group's queries all see the same keys, so they are the rows of one small product, and no key is repeated for them.
    """
    Tk = k.shape[2]
    q = q.unflatten(1, (k.shape[1], -1)).squeeze(3)  # [B, H_kv, G, K]
    if key_mask is None:
        if sinks + window < Tk:
            k, v = (torch.cat([x[:, :, :sinks], x[:, :, Tk - window :]], dim=2) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v).flatten(1, 2).unsqueeze(2)
    visible = torch.arange(Tk, device=q.device) >= Tk - window
    if sinks:
        visible = visible | (key_mask.cumsum(1) <= sinks)
    visible = (key_mask & visible)[:, None, None]  # [B, 1, 1, Tk]
    return softmax_attention(q, k, v, visible.expand(-1, -1, q.shape[2], -1)).flatten(1, 2).unsqueeze(2)


def blocked(
    q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor, documents: Tensor | None = None, sinks: int = 0
) -> Tensor:
    """Blocks of W queries: each sees its own block of keys and the one before, so scores are W x 2W.

    A document that begins in these 2W keys has its sinks among them. Only of the one that was there before they have to be
    fetched: S keys more for a block, whatever is packed into the row.
    """
    Tq, before = q.shape[2], k.shape[2] - q.shape[2]
    outputs, early = [], None
    if sinks:
        always = torch.arange(k.shape[2], device=k.device) < nth_real([sinks], key_mask, documents)[..., 0]  # [B, Tk]
    for start in range(0, Tq, SPAN):
        end = min(start + SPAN, Tq)
        keys = slice(max(0, before + start - window + 1), before + end)  # that any of these queries can see
        labels = None if documents is None else documents[:, keys]
        if sinks:
            W = min(window, keys.stop - keys.start)
            first = torch.arange(before + start, before + end, W, device=k.device) - W + 1  # that a block's window sees
            early = (always[:, keys], *sinks_before(first, k, v, key_mask, documents, sinks))
        spans = q[:, :, start:end], k[:, :, keys], v[:, :, keys]
        outputs.append(blocks(*spans, window, key_mask[:, keys], labels, early))
    return torch.cat(outputs, dim=2)


def sinks_before(
    first: Tensor, k: Tensor, v: Tensor, key_mask: Tensor, documents: Tensor | None, sinks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the document that has key number `first` [N], the sinks in front of it: k, v [B, H, N, S, ·]; are they [B, N, S]."""
    numbers = range(min(sinks, k.shape[2]))
    places = nth_real(numbers, key_mask, documents, at=first.clamp(min=0))
    there = places < first.unsqueeze(-1)
    index = places.clamp(max=k.shape[2] - 1).flatten(1)[:, None, :, None]
    k, v = (x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])).unflatten(2, there.shape[1:]) for x in (k, v))
    return k, v, there


def blocks(q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor, documents=None, early=None) -> Tensor:
    """One span of `blocked`, all its blocks at once. early: which keys are sinks [B, Tk], and what `sinks_before` gives."""
    B, _, Tq, _ = q.shape
    W = min(window, k.shape[2])
    before, after = Tq + W - k.shape[2], -Tq % W  # zeros in front, so that keys start W before the queries
    q = F.pad(q, (0, 0, 0, after)).unflatten(2, (-1, W))  # [B, H, N, W, K]
    k, v = (F.pad(x, (0, 0, before, after)).unfold(2, 2 * W, W).mT for x in (k, v))  # [B, H, N, 2W, ·]
    i = torch.arange(W, device=q.device).unsqueeze(1) + W
    j = torch.arange(2 * W, device=q.device)

    def of_blocks(x: Tensor) -> Tensor:
        return F.pad(x, (before, after)).unfold(1, 2 * W, W).unsqueeze(2)  # [B, N, 1, 2W]

    near = j > i - W
    if early is not None:
        near = near | of_blocks(early[0]) & (j > 0)  # key 0 is in no window, so its sink is among those in front
    visible = (j <= i) & near & of_blocks(key_mask)  # [B, N, W, 2W]
    if documents is not None:
        numbers = of_blocks(documents)
        visible = visible & (numbers[..., W:].mT == numbers)
    if early is not None:
        _, k_early, v_early, there = early
        k, v = torch.cat([k_early, k], dim=3), torch.cat([v_early, v], dim=3)  # [B, H, N, S + 2W, ·]
        there = there.unsqueeze(2).expand(-1, -1, W, -1)
        if documents is not None:
            there = there & (numbers[..., W:].mT == numbers[..., 1:2])
        visible = torch.cat([there, visible], dim=-1)
    rows = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # every block is a row of a batch: [B N, H, ·, ·]
    o = softmax_attention(*rows, visible.flatten(0, 1).unsqueeze(1))
    return o.unflatten(0, (B, -1)).transpose(1, 2).flatten(2, 3)[:, :, :Tq]


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q kᵀ / √K) v over the visible pairs; 0 for a query that sees nothing. PyTorch's fused kernel."""
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    return o.masked_fill(~visible.any(-1, keepdim=True), 0)
