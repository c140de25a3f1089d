"""Sliding-window softmax attention: each token attends to the last W keys, itself included (chapter 06).

    o_t = Σ_{t-W < s ≤ t} softmax_s(q_t · k_s / √K) v_s

| form    | time          | memory beyond inputs and outputs |
|---------|---------------|----------------------------------|
| naive   | O(T² K)       | O(T²) a head                     |
| blocked | O(T W K)      | O(T (W + K)) a head              |
| step    | O(W K) a token| O(W) a head                      |

The queries are the *last* Tq of the Tk keys' positions, so the same three functions serve a whole
sequence (Tq = Tk), one token at decode (Tq = 1) and anything between.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from liger_mini.recurrences.checks import require_triton
from liger_mini.recurrences.documents import check_documents, document_numbers

BACKENDS = ("auto", "naive", "blocked", "chunked", "triton")
SPAN = 1024  # queries whose blocks are worked on side by side: as many as the processor's cache holds


def sliding_window_attention(
    q: Float[Tensor, "B Tq H K"],
    k: Float[Tensor, "B Tk Hkv K"],
    v: Float[Tensor, "B Tk Hkv V"],
    window: int,
    *,
    key_mask: Bool[Tensor, "B Tk"] | None = None,
    cu_seqlens: Int[Tensor, "N+1"] | None = None,
    documents: Int[Tensor, "B T"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "B Tq H V"]:
    """Softmax attention over the last `window` keys, the current one included.

    Args:
        k, v: may have fewer heads than q (grouped keys/values: Hkv divides H), and may begin earlier
            (Tk ≥ Tq: a cache in front).
        key_mask: True where a key may be seen; False hides padding. A query that sees no key gives 0.
        cu_seqlens: [N+1] boundaries of documents packed into one row (B = 1, Tq = Tk); they do not see each other.
        documents: the same, said of each token (Tk = T, or T with a cache in front): tokens with different numbers do
            not see each other, and what is in front belongs to the first. Not for "triton".
        backend: "naive" | "blocked" ("chunked" means the same here) | "triton" | "auto" ("blocked"; for one query,
            one step).
    Raises:
        ValueError: window < 1, shapes that do not fit, an empty sequence, an unknown backend, cu_seqlens that do not
            cover T. RuntimeError: "triton" on a machine that cannot run it.
    """
    _check(q, k, v, window, key_mask, backend)
    if cu_seqlens is not None:
        check_documents(cu_seqlens, *k.shape[:2])
        if q.shape[1] != k.shape[1]:
            raise ValueError(
                f"cu_seqlens needs as many queries as keys; given are Tq = {q.shape[1]}, Tk = {k.shape[1]}"
            )
    if documents is not None and (cu_seqlens is not None or backend == "triton"):
        raise ValueError(
            "documents: allowed without cu_seqlens, and not with backend = 'triton', which takes cu_seqlens"
        )
    if backend == "triton":
        require_triton()
        from liger_mini.kernels.window import triton_window

        return triton_window(q, k, v, window, key_mask, cu_seqlens)
    if cu_seqlens is not None:
        documents = document_numbers(cu_seqlens, k.shape[1])
    elif documents is not None:
        before = k.shape[1] - documents.shape[1]
        documents = torch.cat([documents[:, :1].expand(-1, before), documents], dim=1)  # [B, Tk]
    if key_mask is None:
        key_mask = torch.ones(k.shape[:2], dtype=torch.bool, device=k.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, T, ·]
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    if backend == "naive":
        o = naive(q, k, v, window, key_mask, documents)
    elif q.shape[2] == 1:  # and what is in front belongs to its document
        o = step(q, k, v, window, key_mask)
    else:
        o = blocked(q, k, v, window, key_mask, documents)
    return o.transpose(1, 2)


def naive(q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor, documents: Tensor | None = None) -> Tensor:
    """All T x T scores, with a band kept. q [B, H, Tq, K]; k, v [B, H, Tk, ·]; key_mask, documents [B, Tk]."""
    compute = torch.promote_types(torch.float32, q.dtype)
    Tq, Tk = q.shape[2], k.shape[2]
    i = torch.arange(Tk - Tq, Tk, device=q.device).unsqueeze(1)
    j = torch.arange(Tk, device=q.device)
    band = (j <= i) & (j > i - window)  # [Tq, Tk]
    visible = band & key_mask[:, None, None, :]
    if documents is not None:
        visible = visible & (documents[:, None, -Tq:, None] == documents[:, None, None, :])
    scores = q.to(compute) @ k.to(compute).mT / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~visible, torch.finfo(compute).min).softmax(-1)
    return (weights.masked_fill(~visible, 0) @ v.to(compute)).to(v.dtype)


def step(q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor) -> Tensor:
    """One query, the last W keys. What decoding runs."""
    return softmax_attention(q, k[:, :, -window:], v[:, :, -window:], key_mask[:, None, None, -window:])


def blocked(q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor, documents: Tensor | None = None) -> Tensor:
    """Blocks of W queries: each sees its own block of keys and the one before, so scores are W x 2W."""
    Tq, before = q.shape[2], k.shape[2] - q.shape[2]
    outputs = []
    for start in range(0, Tq, SPAN):
        end = min(start + SPAN, Tq)
        keys = slice(max(0, before + start - window + 1), before + end)  # that any of these queries can see
        labels = None if documents is None else documents[:, keys]
        outputs.append(blocks(q[:, :, start:end], k[:, :, keys], v[:, :, keys], window, key_mask[:, keys], labels))
    return torch.cat(outputs, dim=2)


def blocks(q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor, documents: Tensor | None = None) -> Tensor:
    """One span of `blocked`, all its blocks at once."""
    B, _, Tq, _ = q.shape
    W = min(window, k.shape[2])
    before, after = Tq + W - k.shape[2], -Tq % W  # zeros in front, so that keys start W before the queries
    q = F.pad(q, (0, 0, 0, after)).unflatten(2, (-1, W))  # [B, H, N, W, K]
    k, v = (F.pad(x, (0, 0, before, after)).unfold(2, 2 * W, W).mT for x in (k, v))  # [B, H, N, 2W, ·]
    seen = F.pad(key_mask, (before, after)).unfold(1, 2 * W, W)  # [B, N, 2W]
    i = torch.arange(W, device=q.device).unsqueeze(1) + W
    j = torch.arange(2 * W, device=q.device)
    visible = ((j <= i) & (j > i - W)) & seen[:, :, None, :]  # [B, N, W, 2W]
    if documents is not None:
        numbers = F.pad(documents, (before, after)).unfold(1, 2 * W, W)  # [B, N, 2W]
        visible = visible & (numbers[:, :, W:, None] == numbers[:, :, None, :])
    rows = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # every block is a row of a batch: [B N, H, ·, ·]
    o = softmax_attention(*rows, visible.flatten(0, 1).unsqueeze(1))
    return o.unflatten(0, (B, -1)).transpose(1, 2).flatten(2, 3)[:, :, :Tq]


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q kᵀ / √K) v over the visible pairs; 0 for a query that sees nothing. PyTorch's fused kernel."""
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    return o.masked_fill(~visible.any(-1, keepdim=True), 0)


def _check(q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor | None, backend: str) -> None:
    if not isinstance(window, int) or window < 1:
        raise ValueError(f"window = {window}: allowed are whole numbers ≥ 1 (the current key counts)")
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r}: allowed are {', '.join(map(repr, BACKENDS))}")
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have four axes [B, T, heads, channels]")
    if q.shape[1] == 0:
        raise ValueError("empty sequence: T = 0, but attention needs at least one token")
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"shapes do not fit: {shapes}; needed are q [B, Tq, H, K], k [B, Tk, Hkv, K], v [B, Tk, Hkv, V]"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"the {k.shape[2]} key/value heads do not divide the {q.shape[2]} query heads: {shapes}")
    if q.shape[1] > k.shape[1]:
        raise ValueError(f"more queries than keys: {shapes}; the queries are the last Tq of the Tk positions")
    if key_mask is not None and key_mask.shape != k.shape[:2]:
        raise ValueError(f"key_mask has shape {tuple(key_mask.shape)}; with these keys it must be {tuple(k.shape[:2])}")
