"""The diagonal recurrence on a GPU: the Triton twin of `liger_mini/recurrences/diagonal.py`.

    S_t = diag(α_t) S_{t-1} + k_tᵀ v_t        S in R^{K x V}, α_t = exp(log_gate_t) in (0, 1]^K
    o_t = q_t S_t                             no scaling, no denominator

In chunks of C tokens, with G_ij = Σ_{j<l≤i} log α_l and S_n the state before chunk n, like PyTorch's `chunked`,

    A_ij  = Σ_K q_i · exp G_ij · k_j  for j ≤ i                 `_chunk_products`   all chunks at once, as are
    q'_n, k'_n = q_n · exp prefix_sum, k_n · exp suffix_sum     `_chunk_products`   exp(Σ g_n): see `products.py`
    S_n+1 = exp(Σ g_n) S_n + k'_nᵀ v_n                          `_chunk_states`     chunk after chunk
    o_n   = q'_n S_n + A v_n                                    `_chunk_outputs`    all chunks at once

and backward, with dS_n the gradient of the state after chunk n and D_ij = do_i · v_j,

    dS_n-1 = exp(Σ g_n) dS_n + q'_nᵀ do_n                       `_chunk_states` from the end to the start
    dv_n   = k'_n dS_n + Aᵀ do_n                                `_chunk_outputs` with Aᵀ
    dq_n, dk_n, dg_n from S_n, dS_n and D                       `_chunk_gradients`  all chunks at once

A pack of documents is cut into chunks document by document (`tiles.chunks`), each with an initial and a last state of
its own. The functions `chunk_…` launch one kernel each; `slots.py` puts them together in another order.

Time: O(T (C K log C + K V)), in T/C sequential steps for the longest document; backward about three times that, in
twice the steps. Memory beyond inputs and outputs: forward T/C states S_n of K x V and triangles A of C x C a head, q' and k',
bfloat16 for bfloat16 inputs and else float32, and a float32 state a document; backward those again and as many dS_n. Stored
from forward to backward: the inputs q, k, v, log_gate and the initial state, nothing else.

Where `chunked` multiplies gates, the kernels add log-gates. Every exponent is a sum that starts at the token which
uses it: it is ≤ 0, and a strong gate nearby costs the weak ones no precision; so too in `_chunk_gradients`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from liger_mini.kernels.products import Products, chunk_products, halves
from liger_mini.kernels.tiles import (
    INTERPRETED,
    LEVELS,
    C,
    Chunks,
    check,
    chunks,
    kept_as,
    load,
    load_as_kept,
    load_gates,
    over_group,
    place,
    precision_of,
    product,
    queries_per_key,
    store,
    sum_over,
)
from torch import Tensor
from torch.autograd.function import once_differentiable


def triton_recurrence(
    q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`diagonal.chunked` in Triton, differentiable once in every argument but cu_seqlens.

    Args: q [B, T, H G, K], k, log_gate [B, T, H, K] and v [B, T, H, V] in float32, bfloat16 or float16, T ≥ 1,
        log_gate ≤ 0 (`gated_recurrence` checks that); state [B, H, K, V] float32; cu_seqlens [N+1] for N documents packed
        into one row (B = 1), with state [N, H, K, V]. G heads of queries in a row share a head of keys.
    Returns: o [B, T, H G, V] in v's dtype, and the state after the last token of each, float32.
    Raises: RuntimeError without a GPU or the interpreter, ValueError for K or V above 256, TypeError for other dtypes.
    """
    check({"K": q.shape[-1], "V": v.shape[-1]}, {"state": state}, q=q, k=k, v=v, log_gate=log_gate)
    pieces = chunks(*q.shape[:2], cu_seqlens, q.device)
    with torch.cuda.device_of(q):  # Triton launches on the current device; autograd sets it for the backward pass
        return Recurrence.apply(q, k, v, log_gate, state, pieces, precision_of(q, k, v))


class Recurrence(torch.autograd.Function):
    """`triton_recurrence` for inputs that are checked and cut into chunks; returns o and the last states."""

    @staticmethod
    def forward(ctx, q, k, v, log_gate, state, pieces, precision):
        q, k, v, g, state = (x.contiguous() for x in (q, k, v, log_gate, state))
        ctx.save_for_backward(q, k, v, g, state)
        ctx.pieces, ctx.precision = pieces, precision
        made = chunk_products(q, k, g, pieces, precision)
        states, last = chunk_states(made, v, state, pieces, precision)
        return chunk_outputs(made, v, states, pieces, precision, v.dtype), last

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dlast):
        (q, k, v, g, state), how = ctx.saved_tensors, (ctx.pieces, ctx.precision)
        do, dlast = do.contiguous(), dlast.contiguous()
        made = chunk_products(q, k, g, *how)
        states, _ = chunk_states(made, v, state, *how)
        dstates, dstate = chunk_states(made, do, dlast, *how, REVERSE=True)
        dv = chunk_outputs(made, do, dstates, *how, v.dtype, REVERSE=True)
        dq, dk, dg = chunk_gradients(q, k, v, g, do, states, dstates, *how)
        return dq, dk, dv, dg, dstate, None, None


def chunk_states(made: Products, y, first, pieces: Chunks, precision, REVERSE=False):
    """The state before each chunk, [NC, H, K, V], and after each document, from y = v; REVERSE: y = do, from the end."""
    (N, H, K, V), last = first.shape, torch.empty_like(first)
    x, G = made.since if REVERSE else made.until, queries_per_key(y, first)
    states = first.new_empty(len(pieces.rows), H, K, V, dtype=kept_as(x, y))
    _chunk_states[lambda meta: (N * H * triton.cdiv(K, meta["BK"]) * triton.cdiv(V, meta["BV"]),)](
        x, y, made.whole, first, states, last, *pieces, H, G, K, V, REVERSE, precision
    )
    return states, last


def chunk_outputs(made: Products, y, states, pieces: Chunks, precision, dtype, REVERSE=False):
    """o from y = v and the states; REVERSE: dv from y = do and the gradients of the states."""
    (NC, H, K, V), x, G = states.shape, made.until if REVERSE else made.since, queries_per_key(made.since, states)
    out = y.new_empty(*x.shape[:3], V, dtype=dtype)
    _chunk_outputs[lambda meta: (NC * x.shape[2] * triton.cdiv(V, meta["BV"]),)](
        x, y, states, made.A, out, pieces.rows, H, G, K, V, REVERSE, precision
    )
    return out


def chunk_gradients(q, k, v, g, do, states, dstates, pieces: Chunks, precision):
    """dq, dk and dg. dq alone needs neither q nor dstates: None for both leaves dk and dg None, and dq is float32."""
    (NC, H, K, V), G, alone = states.shape, queries_per_key(do, states), q is None
    kinds = (torch.float32, None, None) if alone else (q.dtype, k.dtype, g.dtype)
    dq, dk, dg = (kind and k.new_empty(*do.shape[:3], K, dtype=kind) for kind in kinds)
    _chunk_gradients[lambda meta: (NC * H * G * triton.cdiv(K, meta["BK"]),)](
        q, k, v, g, do, states, dstates, dq, dk, dg, pieces.rows, H, G, K, V, precision
    )
    return dq, *(None if x is None else over_group(x, G) for x in (dk, dg))


@triton.jit
def prefix_sum(g):
    """Σ_{l≤i} g_l: the decay since just before the chunk."""
    t = tl.arange(0, C)
    return sum_over(t[None, :] <= t[:, None], g)


@triton.jit
def suffix_sum(g):
    """Σ_{l>j} g_l: the decay from j to the end of the chunk."""
    t = tl.arange(0, C)
    return sum_over(t[None, :] > t[:, None], g)


# Wide blocks read q, k and g less often; narrow ones keep a tile in registers and cut the state into more programs.
# Two stages: the next tiles are on their way while these are used. The interpreter takes the first line alone: timing
# means nothing there, and small blocks let small tests see several of them. Loops with `disable_licm` build their masks
# anew each time: hoisted out, all masks of all levels at once would push everything else out of the registers.
BLOCKS = [(32, 32, 8), (32, 64, 8), (16, 64, 4), (16, 64, 8)][: 1 if INTERPRETED else None]  # BK, BV, warps
CONFIGS = [triton.Config({"BK": BK, "BV": BV}, num_warps=warps, num_stages=2) for BK, BV, warps in BLOCKS]
tuned = triton.autotune(CONFIGS, ["K", "V", "PRECISION"], cache_results=True)  # on disk, for the next process


@tuned
@triton.jit
def _chunk_states(
    x_ptr, y_ptr, whole_ptr, first_ptr, states_ptr, last_ptr, rows_ptr, of_document_ptr, H, G: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """S_n for one document, head and BK x BV block of the state. x, y = k', v; REVERSE: q', do, and S is a gradient.

    x and y have G heads for one of the state: one, or, REVERSE, all whose queries read it.
    """
    blocks_v = tl.cdiv(V, BV)
    blocks = tl.cdiv(K, BK) * blocks_v
    document_head, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    document, h = document_head // H, document_head % H
    channels, values = block // blocks_v * BK + tl.arange(0, BK), block % blocks_v * BV + tl.arange(0, BV)
    begin, end = tl.load(of_document_ptr + document), tl.load(of_document_ptr + document + 1)
    start = tl.load(rows_ptr + 2 * begin, mask=begin < end, other=0)  # of the document; an empty one has no chunk
    length = tl.load(rows_ptr + 2 * begin + 1, mask=begin < end, other=0)
    t = tl.arange(0, C)
    S = load(first_ptr + document_head * K * V, channels, values, K, V, V)
    for step in range(end - begin):
        n = end - begin - 1 - step if REVERSE else step
        chunk_head, row, left = (begin + n) * H + h, (start + n * C) * H + h, length - n * C
        store(states_ptr + chunk_head * K * V, S, channels, values, K, V, V)
        S *= tl.load(whole_ptr + chunk_head * K + channels, mask=channels < K, other=0.0)[:, None]
        for one in range(G):
            x_n = load_as_kept(x_ptr + (row * G + one) * K, t, channels, left, K, H * G * K)
            y_n = load_as_kept(y_ptr + (row * G + one) * V, t, values, left, V, H * G * V)
            S += product(tl.trans(x_n), y_n, PRECISION)
    store(last_ptr + document_head * K * V, S, channels, values, K, V, V)


@tuned
@triton.jit
def _chunk_outputs(
    x_ptr, y_ptr, states_ptr, A_ptr, out_ptr, rows_ptr, H, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    REVERSE: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """o_n for one chunk and BV values. x, y = q', v; REVERSE: k', do, the states are gradients, and the output is dv_n.

    A state is read by SHARED heads of queries, each in a program of its own; REVERSE, one adds up what ADDED heads say.
    """
    SHARED: tl.constexpr = 1 if REVERSE else G
    ADDED: tl.constexpr = G if REVERSE else 1
    chunk_head, block, row, left = place(rows_ptr, tl.cdiv(V, BV), H * SHARED)
    if left <= 0:  # a chunk to spare
        return
    state = chunk_head // SHARED * K * V
    t, values = tl.arange(0, C), block * BV + tl.arange(0, BV)
    out_n = tl.zeros((C, BV), tl.float32)
    for start in range(0, K, BK):
        channels = start + tl.arange(0, BK)
        x_n = load_as_kept(x_ptr + row * K, t, channels, left, K, H * SHARED * K)
        S_n = load_as_kept(states_ptr + state, channels, values, K, V, V)
        out_n += product(x_n, S_n, PRECISION)
    for one in range(ADDED):
        y_n = load_as_kept(y_ptr + (row // SHARED * ADDED + one) * V, t, values, left, V, H * ADDED * V)
        A = load_as_kept(A_ptr + (chunk_head * ADDED + one) * C * C, t, t, C, C, C)
        out_n += product(tl.trans(A) if REVERSE else A, y_n, PRECISION)
    store(out_ptr + row * V, out_n, t, values, left, V, H * SHARED * V)


@tuned
@triton.jit
def _chunk_gradients(
    q_ptr, k_ptr, v_ptr, g_ptr, do_ptr, states_ptr, dstates_ptr, dq_ptr, dk_ptr, dg_ptr, rows_ptr, H, G: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """dq_n, and a head of queries' part of dk_n and dg_n, for one chunk and BK channels; dq_n alone if q_ptr is None.

    o and the last state are sums of terms that each decayed by exp Σ g over some range of tokens, so ∂/∂g_l adds up
    the terms whose range holds l. Forward that range was a row of `sum_over(mask, g)`; backward it is a column:
    `sum_over(maskᵀ, term)`. (The shorter dg_l = Σ_{t≥l} q_t dq_t − k_t dk_t adds all terms after l and takes back those
    that never crossed it; from bfloat16 dq and dk, T = 2048, it is 2 % off with mild gates and 54 % with strong ones.)
    """
    ALL: tl.constexpr = q_ptr is not None
    chunk_head, block, row, left = place(rows_ptr, tl.cdiv(K, BK), H * G)
    if left <= 0:  # a chunk to spare
        return
    t, channels, state = tl.arange(0, C), block * BK + tl.arange(0, BK), chunk_head // G * K * V
    k_row, once = row // G, tl.where(chunk_head % G == 0, K, 0)  # dS is the group's: its first head passes it on
    D, passed = tl.zeros((C, C), tl.float32), tl.zeros((BK,), tl.float32)
    dq_n, dk_n = tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32)
    for start in tl.range(0, V, BV, num_stages=1):  # S and dS feed products and a sum; see tests/test_kernels_compile
        values = start + tl.arange(0, BV)
        v_n = load(v_ptr + k_row * V, t, values, left, V, H * V)
        do_n = load(do_ptr + row * V, t, values, left, V, H * G * V)
        S_n = load(states_ptr + state, channels, values, K, V, V)
        D += tl.dot(do_n, tl.trans(v_n), input_precision=PRECISION)
        dq_n += tl.dot(do_n, tl.trans(S_n), input_precision=PRECISION)
        if ALL:
            dS_n = load(dstates_ptr + state, channels, values, once, V, V)
            dk_n += tl.dot(v_n, tl.trans(dS_n), input_precision=PRECISION)
            passed += tl.sum(S_n * dS_n, 1)
    k_n = load(k_ptr + k_row * K, t, channels, left, K, H * K)
    q_n = load(q_ptr + row * K, t, channels, left, K, H * G * K) if ALL else k_n  # dq_n does not depend on q_n
    g_n = load_gates(g_ptr + k_row * K, t, channels, left, K, H * K)
    # through the states: what i reads from before the chunk, what j writes for after it, what only passes by
    dq_n *= tl.exp(prefix_sum(g_n))
    if ALL:
        dk_n *= tl.exp(suffix_sum(g_n))
        dg_n = sum_over(t[None, :] >= t[:, None], q_n * dq_n)  # gate l holds for the reads i ≥ l
        dg_n += sum_over(t[None, :] < t[:, None], k_n * dk_n)  # and for the writes j < l
        dg_n += (tl.exp(tl.sum(g_n, 0)) * passed)[None, :]
    # within the chunk: j = i, then all levels of halving
    D_tt = tl.sum(tl.where(t[:, None] == t[None, :], D, 0.0), 1)[:, None]
    dq_n, dk_n = dq_n + D_tt * k_n, dk_n + D_tt * q_n
    D = tl.where(t[:, None] > t[None, :], D, tl.trans(D))  # q_right reads k_left, and back
    for level in tl.range(LEVELS, disable_licm=True):
        right, apart, between = halves(level, C, LEVELS)
        decay = tl.exp(sum_over(between, g_n))
        x = tl.where(right, q_n, k_n) * decay
        dx = tl.dot(tl.where(apart, D, 0.0), x, input_precision=PRECISION)
        dq_n += tl.where(right, dx * decay, 0.0)
        if ALL:
            dk_n += tl.where(right, 0.0, dx * decay)
            dg_n += sum_over(tl.trans(between), x * dx)
    store(dq_ptr + row * K, dq_n, t, channels, left, K, H * G * K)
    if ALL:
        store(dk_ptr + row * K, dk_n, t, channels, left, K, H * G * K)
        store(dg_ptr + row * K, dg_n, t, channels, left, K, H * G * K)
