"""Sliding-window softmax attention on a GPU: the Triton twin of `liger_mini/window.py`, in the FlashAttention manner.

    a_ts = q_t · k_s / √K,   lse_t = log Σ_s exp a_ts,   p_ts = exp(a_ts - lse_t),   o_t = Σ_s p_ts v_s

over the keys s that t sees: t-W < s ≤ t, in the document of t, not hidden by the mask. If there is none, o_t = 0. With
sinks, also the first S of its document's keys that are not hidden, where s ≤ t: those before `sink_end`.

A block of queries meets the blocks of keys that its windows touch, one after another. The softmax is *online*: m_t is
the largest score so far, and when it grows, what was summed with the old one is scaled down by exp(m_old - m_new). So
no score leaves the chip, and backward makes p again, from lse. With do_t the gradient of o_t,

    dv_s  = Σ_t p_ts do_t
    da_ts = p_ts (do_t · v_s - δ_t),   δ_t = Σ_s p_ts (do_t · v_s) = do_t · o_t
    dq_t  = Σ_s da_ts k_s / √K         `_query_gradients`   a block of queries meets the keys that they see
    dk_s  = Σ_t da_ts q_t / √K         `_key_gradients`     a block of keys meets the queries that see them

Query heads may share heads of keys and values (grouped heads): each reads the one of its group where it lies, and
`_key_gradients` sums over the group.

The tiles between a block's sinks and its first window are jumped over: x counts tiles, and s0 is where they lie. A block of
keys with a sink meets all later queries of the document.

Time: O(T (W + S + block) (K + V)) a head, all blocks at once; backward about three and a half times that.
Memory beyond inputs and outputs: O(T), two float32 numbers a query and head (lse, δ) and four integers a position.
Stored from forward to backward: q, k, v, o, the mask, these integers and lse.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from liger_mini.kernels.tiles import INTERPRETED, check, load, store
from torch import Tensor
from torch.autograd.function import once_differentiable

from liger_mini.recurrences.documents import document_numbers, nth_real


def triton_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    sinks: int = 0,
) -> Tensor:
    """`window.naive` in Triton, differentiable once in q, k and v.

    Args:
        q [B, Tq, H, K], k [B, Tk, Hkv, K], v [B, Tk, Hkv, V]: float32, bfloat16 or float16; Hkv divides H; the queries
            are the last Tq of the Tk positions (`sliding_window_attention` checks shapes and window).
        key_mask [B, Tk]: False hides a key.
        cu_seqlens [N+1]: where each document of one packed row (B = 1, Tq = Tk) begins, and where the last one ends.
        sinks: how many of a document's first keys that are not hidden every later query sees.
    Returns: o [B, Tq, H, V] in v's dtype.
    Raises: RuntimeError without a GPU or the interpreter, ValueError for K or V above 256, TypeError for other dtypes.
    """
    check({"K": q.shape[-1], "V": v.shape[-1]}, {}, q=q, k=k, v=v)
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    with torch.cuda.device_of(q):  # Triton launches on the current device; autograd sets it for the backward pass
        if key_mask is None:
            key_mask = k.new_ones(k.shape[:2], dtype=torch.bool)
        bounds = _bounds(key_mask, cu_seqlens, sinks)
        return _Window.apply(q.to(dtype), k.to(dtype), v.to(dtype), key_mask, bounds, window).to(v.dtype)


def _bounds(key_mask, cu_seqlens, sinks):
    """[B, 4, T] integers: where the document of each position begins, where it ends, and where its sinks do both."""
    B, T = key_mask.shape
    ends = torch.arange(2, device=key_mask.device) * T if cu_seqlens is None else cu_seqlens.to(key_mask.device)
    pairs = torch.stack([ends[:-1], ends[1:]]).repeat_interleave(ends.diff(), dim=1, output_size=T)
    numbers = None if cu_seqlens is None else document_numbers(ends, T)
    return torch.cat([pairs.expand(B, 2, T), nth_real([0, sinks], key_mask, numbers).mT], dim=1).int()


class _Window(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, key_mask, bounds, window):
        inputs = q, k, v, *_ = [x.contiguous() for x in (q, k, v, key_mask, bounds)]
        (B, Tq, H, K), (Tk, Hkv, V) = q.shape, v.shape[1:]
        # No window needs to be wider than all keys; by powers of two, a growing T seldom tunes the kernels anew.
        W = min(window, triton.next_power_of_2(Tk))
        ctx.sizes = Tq, Tk, W, H, Hkv, K, V
        o, lse = q.new_empty(B, Tq, H, V), q.new_empty(B, H, Tq, dtype=torch.float32)
        _outputs[lambda meta: (B * H * triton.cdiv(Tq, meta["BLOCK"]),)](*inputs, o, lse, *ctx.sizes)
        ctx.save_for_backward(*inputs, o, lse)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx, do):
        *inputs, o, lse = ctx.saved_tensors
        (q, k, v, *_), do = inputs, do.contiguous()
        (B, Tq, H, _), (_, Tk, Hkv, _) = q.shape, k.shape
        dq, dk, dv, delta = (torch.empty_like(x) for x in (q, k, v, lse))
        _query_gradients[lambda meta: (B * H * triton.cdiv(Tq, meta["BLOCK"]),)](
            *inputs, o, do, lse, delta, dq, *ctx.sizes
        )
        _key_gradients[lambda meta: (B * Hkv * triton.cdiv(Tk, meta["BLOCK"]),)](
            *inputs, do, lse, delta, dk, dv, *ctx.sizes
        )
        return dq, dk, dv, None, None, None


NUMPY = tl.constexpr(INTERPRETED)


@triton.constexpr_function
def padded(width):
    return max(16, triton.next_power_of_2(width))


@triton.jit
def tile(ptr, rows, columns, n_rows, n_columns, stride):
    """A tile in the dtype of the inputs: half the bytes in bfloat16, and tensor cores multiply it as it is."""
    return load(ptr, rows, columns, n_rows, n_columns, stride).to(ptr.dtype.element_ty)


@triton.jit
def dot(x, y):
    """A product of tiles, summed in float32. Tiles have the inputs' dtype; p and da, made in float32, are rounded to
    it first: p ≤ 1, and da is about as large as the gradients it goes into, which are rounded to it anyway.
    """
    if NUMPY:  # it runs the interpreter, and has no bfloat16
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, input_precision="ieee")


@triton.jit
def first_row(b, t, h, T, H):
    """Where token t of a head lies in [B, T, H, ·], in rows (b is 64 bit: long inputs pass 2³¹ numbers)."""
    return (b * T + t) * H + h


@triton.jit
def tiles_of_keys(bounds_ptr, t0, W, Tk, STEP):
    """For the block of queries from t0 on: where its windows begin; where its document's sinks do, and how many keys of
    them lie in front of its windows, in whole tiles.
    """
    low = tl.maximum(t0 - W + 1, tl.load(bounds_ptr + t0))
    sink, end = tl.load(bounds_ptr + 2 * Tk + t0), tl.load(bounds_ptr + 3 * Tk + t0)
    return low, sink, tl.cdiv(tl.maximum(tl.minimum(end, low) - sink, 0), STEP) * STEP


@triton.jit
def bounds_of_queries(bounds_ptr, t, W, Tk):
    """Where the window of each begins, where its document does, and where that one's sinks end."""
    begin = tl.load(bounds_ptr + t, mask=t < Tk, other=0)
    return tl.maximum(t - W + 1, begin), begin, tl.load(bounds_ptr + 3 * Tk + t, mask=t < Tk, other=0)


@triton.jit
def visible_keys(s, t, is_window, low, first, begin, sink_end):
    """Which keys s each query t may see. A tile of sinks that ends behind `low` leaves the rest to the windows' tiles."""
    window = (first[:, None] <= s[None, :]) & is_window
    sinks = (begin[:, None] <= s[None, :]) & (s[None, :] < sink_end[:, None]) & ((s < low)[None, :] | is_window)
    return (window | sinks) & (s[None, :] <= t[:, None])


# BLOCK: the queries, or keys, of one program; STEP: how many keys, or queries, they meet at a time. Large blocks read
# what they meet less often; small ones waste less on pairs outside a narrow window. Two stages: the next tiles are on
# their way while these are used. The interpreter takes the first line alone: timing means nothing there.
BLOCKS = [(32, 16, 4), (16, 16, 4), (32, 32, 4), (64, 32, 4), (64, 32, 8), (128, 32, 8)][: 1 if INTERPRETED else None]
CONFIGS = [triton.Config({"BLOCK": BT, "STEP": BS}, num_warps=warps, num_stages=2) for BT, BS, warps in BLOCKS]


def fitting(configs, arguments, **_):
    """What fits into registers: tiles of a BLOCK with at most 4 KiB a warp. (16, 16, 4) does at every width."""
    size = padded(max(arguments["K"], arguments["V"])) * arguments["q_ptr"].element_size()
    return [config for config in configs if config.kwargs["BLOCK"] * size <= 4096 * config.num_warps]


tuned = triton.autotune(
    CONFIGS, key=["W", "K", "V"], prune_configs_by={"early_config_prune": fitting}, cache_results=True
)


@tuned
@triton.jit
def _outputs(
    q_ptr, k_ptr, v_ptr, seen_ptr, bounds_ptr, o_ptr, lse_ptr, Tq, Tk, W, H, Hkv, K: tl.constexpr, V: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """o and lse for a block of queries. Query i is at position t = i + Tk - Tq."""
    bh, i0 = (tl.program_id(0) // tl.cdiv(Tq, BLOCK)).to(tl.int64), tl.program_id(0) % tl.cdiv(Tq, BLOCK) * BLOCK
    b, h, t0 = bh // H, bh % H, i0 + Tk - Tq
    i, j, channels, values = tl.arange(0, BLOCK), tl.arange(0, STEP), tl.arange(0, padded(K)), tl.arange(0, padded(V))
    t, row = t0 + i, first_row(b, i0, h, Tq, H)
    q = tile(q_ptr + row * K, i, channels, Tq - i0, K, H * K)
    bounds_ptr += b * 4 * Tk
    first, begin, sink_end = bounds_of_queries(bounds_ptr, t, W, Tk)
    low, sink, early = tiles_of_keys(bounds_ptr, t0, W, Tk, STEP)
    m, total = tl.full((BLOCK,), float("-inf"), tl.float32), tl.zeros((BLOCK,), tl.float32)
    o = tl.zeros((BLOCK, padded(V)), tl.float32)
    for x in range(low - early, tl.minimum(t0 + BLOCK, Tk), STEP):
        s0 = tl.where(x < low, sink + x - (low - early), x)
        s, row_s = s0 + j, first_row(b, s0, h // (H // Hkv), Tk, Hkv)
        k = tile(k_ptr + row_s * K, j, channels, Tk - s0, K, Hkv * K)
        v = tile(v_ptr + row_s * V, j, values, Tk - s0, V, Hkv * V)
        seen = tl.load(seen_ptr + b * Tk + s, mask=s < Tk, other=0)
        visible = visible_keys(s, t, x >= low, low, first, begin, sink_end) & seen[None, :]
        a = tl.where(visible, dot(q, tl.trans(k)) * K**-0.5, float("-inf"))
        m_new = tl.maximum(m, tl.max(a, 1))
        base = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing seen yet: -inf - -inf would be no number
        p, shrink = tl.exp(a - base[:, None]), tl.exp(m - base)
        o = o * shrink[:, None] + dot(p.to(v.dtype), v)
        total = total * shrink + tl.sum(p, 1)
        m = m_new
    total = tl.where(total == 0, 1.0, total)  # nothing seen at all: o = 0, lse = -inf
    store(o_ptr + row * V, o / total[:, None], i, values, Tq - i0, V, H * V)
    tl.store(lse_ptr + bh * Tq + i0 + i, m + tl.log(total), mask=t < Tk)


@tuned
@triton.jit
def _query_gradients(
    q_ptr, k_ptr, v_ptr, seen_ptr, bounds_ptr, o_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, Tq, Tk, W, H, Hkv,
    K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """dq and δ for a block of queries."""
    bh, i0 = (tl.program_id(0) // tl.cdiv(Tq, BLOCK)).to(tl.int64), tl.program_id(0) % tl.cdiv(Tq, BLOCK) * BLOCK
    b, h, t0 = bh // H, bh % H, i0 + Tk - Tq
    i, j, channels, values = tl.arange(0, BLOCK), tl.arange(0, STEP), tl.arange(0, padded(K)), tl.arange(0, padded(V))
    t, row = t0 + i, first_row(b, i0, h, Tq, H)
    q = tile(q_ptr + row * K, i, channels, Tq - i0, K, H * K)
    o = tile(o_ptr + row * V, i, values, Tq - i0, V, H * V)
    do = tile(do_ptr + row * V, i, values, Tq - i0, V, H * V)
    lse = tl.load(lse_ptr + bh * Tq + i0 + i, mask=t < Tk, other=0)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta_ptr + bh * Tq + i0 + i, delta, mask=t < Tk)
    bounds_ptr += b * 4 * Tk
    first, begin, sink_end = bounds_of_queries(bounds_ptr, t, W, Tk)
    low, sink, early = tiles_of_keys(bounds_ptr, t0, W, Tk, STEP)
    dq = tl.zeros((BLOCK, padded(K)), tl.float32)
    for x in range(low - early, tl.minimum(t0 + BLOCK, Tk), STEP):
        s0 = tl.where(x < low, sink + x - (low - early), x)
        s, row_s = s0 + j, first_row(b, s0, h // (H // Hkv), Tk, Hkv)
        k = tile(k_ptr + row_s * K, j, channels, Tk - s0, K, Hkv * K)
        v = tile(v_ptr + row_s * V, j, values, Tk - s0, V, Hkv * V)
        seen = tl.load(seen_ptr + b * Tk + s, mask=s < Tk, other=0)
        visible = visible_keys(s, t, x >= low, low, first, begin, sink_end) & seen[None, :]
        p = tl.exp(tl.where(visible, dot(q, tl.trans(k)) * K**-0.5 - lse[:, None], float("-inf")))
        da = p * (dot(do, tl.trans(v)) - delta[:, None])
        dq += dot(da.to(k.dtype), k)
    store(dq_ptr + row * K, dq * K**-0.5, i, channels, Tq - i0, K, H * K)


@tuned
@triton.jit
def _key_gradients(
    q_ptr, k_ptr, v_ptr, seen_ptr, bounds_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, Tq, Tk, W, H, Hkv,
    K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """dk and dv for a block of keys. Its tiles are pᵀ and daᵀ: a row is a key, a column a query."""
    bh, s0 = (tl.program_id(0) // tl.cdiv(Tk, BLOCK)).to(tl.int64), tl.program_id(0) % tl.cdiv(Tk, BLOCK) * BLOCK
    b, h_kv, G = bh // Hkv, bh % Hkv, H // Hkv
    i, j, channels, values = tl.arange(0, STEP), tl.arange(0, BLOCK), tl.arange(0, padded(K)), tl.arange(0, padded(V))
    s, row_s = s0 + j, first_row(b, s0, h_kv, Tk, Hkv)
    k = tile(k_ptr + row_s * K, j, channels, Tk - s0, K, Hkv * K)
    v = tile(v_ptr + row_s * V, j, values, Tk - s0, V, Hkv * V)
    bounds_ptr += b * 4 * Tk
    end = tl.load(bounds_ptr + Tk + s, mask=s < Tk, other=0)
    sink_end = tl.load(bounds_ptr + 3 * Tk + s, mask=s < Tk, other=0)
    end = tl.where(s < sink_end, end, tl.minimum(s + W, end))  # a sink is seen to the end
    end = tl.where(tl.load(seen_ptr + b * Tk + s, mask=s < Tk, other=0), end, 0)
    dk, dv = tl.zeros((BLOCK, padded(K)), tl.float32), tl.zeros((BLOCK, padded(V)), tl.float32)
    for h in range(h_kv * G, h_kv * G + G):
        for t0 in range(tl.maximum(s0, Tk - Tq), tl.max(end, 0), STEP):
            t, i0 = t0 + i, t0 - (Tk - Tq)
            row, row_of_lse = first_row(b, i0, h, Tq, H), (b * H + h) * Tq + i0
            q = tile(q_ptr + row * K, i, channels, Tq - i0, K, H * K)
            do = tile(do_ptr + row * V, i, values, Tq - i0, V, H * V)
            lse = tl.load(lse_ptr + row_of_lse + i, mask=t < Tk, other=0)
            delta = tl.load(delta_ptr + row_of_lse + i, mask=t < Tk, other=0)
            visible = (s[:, None] <= t[None, :]) & (t[None, :] < end[:, None])
            p = tl.exp(tl.where(visible, dot(k, tl.trans(q)) * K**-0.5 - lse[None, :], float("-inf")))
            da = p * (dot(v, tl.trans(do)) - delta[None, :])
            dk += dot(da.to(q.dtype), q)
            dv += dot(p.to(do.dtype), do)
    store(dk_ptr + row_s * K, dk * K**-0.5, j, channels, Tk - s0, K, Hkv * K)
    store(dv_ptr + row_s * V, dv, j, values, Tk - s0, V, Hkv * V)
