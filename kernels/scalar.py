"""The scalar recurrence on a GPU: the Triton twin of `liger_mini/recurrences/scalar.py`.

    S_t = α_t S_{t-1} + k_tᵀ v_t              S in R^{K x V}, α_t = exp(log_gate_t) in (0, 1], one number a head
    o_t = q_t S_t                             no scaling, no denominator

In chunks of C tokens, with D_ij = exp Σ_{j<l≤i} log α_l for j ≤ i, else 0, and S_n the state before chunk n,

    S_n+1 = exp(Σ g_n) S_n + (k_n · exp suffix_sum)ᵀ v_n        `_chunk_states`     chunk after chunk
    o_n   = (q_n · exp prefix_sum) S_n + A v_n                  `_chunk_outputs`    all chunks at once
    A     = (q_n k_nᵀ) ⊙ D                                      one product, and `within_chunk` for D

and backward, with dS_n the gradient of the state after chunk n and dA = (do_n v_nᵀ) ⊙ D,

    dS_n-1 = exp(Σ g_n) dS_n + (q_n · exp prefix_sum)ᵀ do_n     `_chunk_states` from the end to the start
    dv_n   = (k_n · exp suffix_sum) dS_n + Aᵀ do_n              `_chunk_outputs` with Aᵀ
    dq_n, dk_n, dg_n from S_n, dS_n and dA                      `_chunk_gradients`  all chunks at once

Time: O(T (C K + C V + K V)), in T/C sequential steps; backward about three times that, in twice the steps.
`diagonal.py` needs log C products with C x C masks for A, and as many sums of log-gates, since there the decay differs
from channel to channel and stays inside the sum over K. One gate for all channels is a factor in front of that sum.
Memory beyond inputs and outputs: forward T/C states S_n of K x V a head (bfloat16 for bfloat16 inputs, else float32),
backward those again and as many dS_n. Stored from forward to backward: the inputs q, k, v, log_gate and the initial state, nothing else.

Nothing is subtracted: every exponent is a sum of log-gates that starts at the token which uses it. It is ≤ 0, and a
strong gate nearby costs the weak ones no precision; so too in `_chunk_gradients`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from liger_mini.kernels.tiles import (
    INTERPRETED,
    LEAST,
    WIDEST,
    C,
    Chunks,
    beside,
    check,
    chunks,
    kept_as,
    load,
    load_as_kept,
    load_beside,
    over_group,
    place,
    precision_of,
    product,
    queries_per_key,
    store,
)
from torch import Tensor
from torch.autograd.function import once_differentiable


def triton_recurrence(
    q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scalar.chunked` in Triton, differentiable once in every argument but cu_seqlens.

    Args: q [B, T, H G, K], k [B, T, H, K], v [B, T, H, V] and log_gate [B, T, H] in float32, bfloat16 or float16,
        log_gate ≤ 0; state [B, H, K, V] float32; cu_seqlens [N+1] for N documents packed into one row (B = 1), with state
        [N, H, K, V]. An empty document hands its state through. G heads of queries in a row share a head of keys.
    Returns: o [B, T, H G, V] in v's dtype, and the state after the last token of each, float32.
    Raises: RuntimeError without a GPU or the interpreter, ValueError for K above 256 or V above 272, TypeError for
        other dtypes.
    """
    check({"K": q.shape[-1]}, {"state": state}, q=q, k=k, v=v, log_gate=log_gate)
    if v.shape[-1] > WIDEST + 16:
        raise ValueError(
            f"V = {v.shape[-1]}; with one gate per head the Triton kernels take V up to {WIDEST + 16}: {WIDEST} values, "
            "a column for the normaliser, and what fills its row up"
        )
    pieces = chunks(*q.shape[:2], cu_seqlens, q.device)
    with torch.cuda.device_of(q):  # Triton launches on the current device; autograd sets it for the backward pass
        return Recurrence.apply(q, k, v, log_gate.float(), state, pieces, precision_of(q, k, v))


class Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, log_gate, state, pieces, precision):
        q, k, v, g, state = (x.contiguous() for x in (q, k, v, log_gate, state))
        ctx.save_for_backward(q, k, v, g, state)
        ctx.pieces, ctx.precision = pieces, precision
        states, last = chunk_states(k, v, g, state, pieces, precision)
        return chunk_outputs(q, k, v, g, states, pieces, precision), last

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dlast):
        (q, k, v, g, state), how = ctx.saved_tensors, (ctx.pieces, ctx.precision)
        do, dlast = do.contiguous(), dlast.contiguous()
        states, _ = chunk_states(k, v, g, state, *how)
        dstates, dstate = chunk_states(q, do, g, dlast, *how, REVERSE=True)
        dv = chunk_outputs(q, k, do, g, dstates, *how, REVERSE=True)
        dq, dk, dg = chunk_gradients(q, k, v, g, do, states, dstates, *how)
        return dq, dk, dv, dg, dstate, None, None


def chunk_states(x, y, g, first, pieces: Chunks, precision, REVERSE=False):
    """The state before each chunk, [NC, H, K, V], and after each document; REVERSE: from the end to the start."""
    (N, H, K, V), last = first.shape, torch.empty_like(first)
    states = first.new_empty(len(pieces.rows), H, K, V, dtype=kept_as(x, y))
    _chunk_states[lambda meta: (N * H * triton.cdiv(K, meta["BK"]) * triton.cdiv(V, meta["BV"]),)](
        x, y, g, first, states, last, *pieces, H, queries_per_key(x, first), K, V, REVERSE, precision
    )
    return states, last


def chunk_outputs(q, k, y, g, states, pieces: Chunks, precision, REVERSE=False):
    """o from y = v and the states; REVERSE: dv from y = do and the gradients of the states."""
    (NC, H, K, V), G = states.shape, queries_per_key(q, states)
    out = y.new_empty(*(k if REVERSE else q).shape[:3], V)
    _chunk_outputs[lambda meta: (NC * out.shape[2] * triton.cdiv(V, meta["BV"]),)](
        q, k, y, g, states, out, pieces.rows, H, G, K, V, REVERSE, precision
    )
    return out


def chunk_gradients(q, k, v, g, do, states, dstates, pieces: Chunks, precision):
    """dq, dk and dg. A gate acts on all channels, so dg is a sum over the blocks of channels: each adds a part."""
    (NC, H, K, V), G = states.shape, queries_per_key(q, states)
    dq, dk = (torch.empty_like(q, dtype=x.dtype) for x in (q, k))
    parts = g.new_zeros(*q.shape[:3], triton.cdiv(K, min(BK for BK, _, _ in BLOCKS)))
    _chunk_gradients[lambda meta: (NC * H * G * triton.cdiv(K, meta["BK"]),)](
        q, k, v, g, do, states, dstates, dq, dk, parts, pieces.rows, H, G, K, V, parts.shape[-1], precision
    )
    return dq, over_group(dk, G), over_group(parts.sum(-1), G)


@triton.jit
def after(g):
    """g_l where l > j, else 0, in row l and column j: the gates that what token j wrote has still to pass."""
    t = tl.arange(0, C)
    return tl.where(t[:, None] > t[None, :], g[:, None], 0.0)


@triton.jit
def prefix_sum(g):
    """Σ_{l≤i} g_l: the decay since just before the chunk."""
    return tl.cumsum(g, 0)


@triton.jit
def suffix_sum(g):
    """Σ_{l>j} g_l: the decay from j to the end of the chunk."""
    return tl.sum(after(g), 0)


@triton.jit
def within_chunk(g):
    """D_ij = exp Σ_{j<l≤i} g_l for j ≤ i, else 0. Down a column the sum grows gate by gate, from 0 at i = j."""
    t = tl.arange(0, C)
    return tl.where(t[:, None] >= t[None, :], tl.exp(tl.cumsum(after(g), 0)), 0.0)


@triton.jit
def load_gates(g_ptr, left, H):
    """The log-gates of a chunk, at least `LEAST`; 0 after its document: a padded token forgets nothing."""
    t = tl.arange(0, C)
    g = tl.load(g_ptr + t * H, mask=t < left, other=0.0)
    return tl.where(g < LEAST, LEAST, g)


# The small block cuts the work into the most programs; a wide BV computes A for fewer blocks of values, a wide BK dA
# for fewer blocks of channels; wide both ways would overflow the registers. Two stages: the next tiles are on their
# way while these are used. The interpreter takes the first line alone: timing means nothing there, and small blocks
# let small tests see several of them.
BLOCKS = [(32, 32, 4), (32, 64, 8), (64, 32, 8)][: 1 if INTERPRETED else None]  # BK, BV, warps
CONFIGS = [triton.Config({"BK": BK, "BV": BV}, num_warps=warps, num_stages=2) for BK, BV, warps in BLOCKS]
KEY = ["K", "V", "PRECISION"]


@triton.autotune(CONFIGS, KEY, cache_results=True)
@triton.jit
def _chunk_states(
    x_ptr, y_ptr, g_ptr, first_ptr, states_ptr, last_ptr, rows_ptr, of_document_ptr, H, G: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """S_n for one document, head and BK x BV block of the state. x, y = k, v; REVERSE: q, do, and S is a gradient.

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
        store(states_ptr + ((begin + n) * H + h) * K * V, S, channels, values, K, V, V)
        row, left = (start + n * C) * H + h, length - n * C
        g_n = load_gates(g_ptr + row, left, H)
        decay = tl.exp(prefix_sum(g_n) if REVERSE else suffix_sum(g_n))[:, None]
        S *= tl.exp(tl.sum(g_n, 0))
        for one in range(G):
            x_n = load(x_ptr + (row * G + one) * K, t, channels, left, K, H * G * K) * decay
            y_n = load_as_kept(y_ptr + (row * G + one) * V, t, values, left, V, H * G * V)
            S += product(tl.trans(beside(x_n, y_n, PRECISION)), y_n, PRECISION)
    store(last_ptr + document_head * K * V, S, channels, values, K, V, V)


@triton.autotune(CONFIGS, KEY, cache_results=True)
@triton.jit
def _chunk_outputs(
    q_ptr, k_ptr, y_ptr, g_ptr, states_ptr, out_ptr, rows_ptr, H, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    REVERSE: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """o_n for one chunk and BV values. y = v; REVERSE: y = do, the states are gradients, and the output is dv_n.

    A state is read by SHARED heads of queries, each in a program of its own; REVERSE, one adds up what ADDED heads say.
    """
    SHARED: tl.constexpr = 1 if REVERSE else G
    ADDED: tl.constexpr = G if REVERSE else 1
    chunk_head, block, row, left = place(rows_ptr, tl.cdiv(V, BV), H * SHARED)
    if left <= 0:  # a chunk to spare
        return
    t, values = tl.arange(0, C), block * BV + tl.arange(0, BV)
    k_row, state = row // SHARED, chunk_head // SHARED * K * V
    out_n = tl.zeros((C, BV), tl.float32)
    for one in range(ADDED):
        A, read = tl.zeros((C, C), tl.float32), tl.zeros((C, BV), tl.float32)
        for start in range(0, K, BK):
            channels = start + tl.arange(0, BK)
            q_n = load_beside(q_ptr + (row * ADDED + one) * K, states_ptr, t, channels, left, K, H * G * K)
            k_n = load_beside(k_ptr + k_row * K, states_ptr, t, channels, left, K, H * K)
            S_n = load_as_kept(states_ptr + state, channels, values, tl.where(one == 0, K, 0), V, V)  # once
            read += product(k_n if REVERSE else q_n, S_n, PRECISION)
            A += product(q_n, tl.trans(k_n), PRECISION)
        y_n = load_as_kept(y_ptr + (k_row * ADDED + one) * V, t, values, left, V, H * ADDED * V)
        g_n = load_gates(g_ptr + k_row, left, H)  # not before the loop, which would carry it in registers
        A = beside(A * within_chunk(g_n), y_n, PRECISION)
        read *= tl.exp(suffix_sum(g_n) if REVERSE else prefix_sum(g_n))[:, None]
        out_n += read + product(tl.trans(A) if REVERSE else A, y_n, PRECISION)
    store(out_ptr + row * V, out_n, t, values, left, V, H * SHARED * V)


# trying wide blocks after narrow ones leaves parts behind
@triton.autotune(CONFIGS, KEY, reset_to_zero=["dg_ptr"], cache_results=True)
@triton.jit
def _chunk_gradients(
    q_ptr, k_ptr, v_ptr, g_ptr, do_ptr, states_ptr, dstates_ptr, dq_ptr, dk_ptr, dg_ptr, rows_ptr, H, G: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """dq_n, and a head of queries' part of dk_n and of dg_n, for one chunk and BK channels.

    o and the last state are sums of terms that each decayed by exp Σ g over some range of tokens, so ∂/∂g_l adds up
    the terms whose range holds l: to every sum of gates in the forward pass belongs a sum of terms with the roles of
    gate and token exchanged. (Why not dg_l = Σ_{t≥l} q_t dq_t − k_t dk_t, which is shorter: see `diagonal.py`.)
    """
    chunk_head, block, row, left = place(rows_ptr, tl.cdiv(K, BK), H * G)
    if left <= 0:  # a chunk to spare
        return
    t, channels, state = tl.arange(0, C), block * BK + tl.arange(0, BK), chunk_head // G * K * V
    k_row, once = row // G, tl.where(chunk_head % G == 0, K, 0)  # dS is the group's: its first head passes it on
    dA, passed = tl.zeros((C, C), tl.float32), tl.zeros((BK,), tl.float32)
    dq_n, dk_n = tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32)
    for start in tl.range(0, V, BV, num_stages=1):  # S and dS feed products and a sum; see tests/test_kernels_compile
        values = start + tl.arange(0, BV)
        v_n = load(v_ptr + k_row * V, t, values, left, V, H * V)
        do_n = load(do_ptr + row * V, t, values, left, V, H * G * V)
        S_n = load(states_ptr + state, channels, values, K, V, V)
        dS_n = load(dstates_ptr + state, channels, values, once, V, V)
        dA += tl.dot(do_n, tl.trans(v_n), input_precision=PRECISION)
        dq_n += tl.dot(do_n, tl.trans(S_n), input_precision=PRECISION)
        dk_n += tl.dot(v_n, tl.trans(dS_n), input_precision=PRECISION)
        passed += tl.sum(S_n * dS_n, 1)
    q_n = load(q_ptr + row * K, t, channels, left, K, H * G * K)
    k_n = load(k_ptr + k_row * K, t, channels, left, K, H * K)
    g_n = load_gates(g_ptr + k_row, left, H)
    past = t[None, :] < t[:, None]
    # through the states: what i reads from before the chunk, what j writes for after it, what only passes by
    dq_n *= tl.exp(prefix_sum(g_n))[:, None]
    dk_n *= tl.exp(suffix_sum(g_n))[:, None]
    dg_n = tl.cumsum(tl.sum(q_n * dq_n, 1), 0, reverse=True)  # gate l holds for the reads i ≥ l
    dg_n += tl.sum(tl.where(past, tl.sum(k_n * dk_n, 1)[None, :], 0.0), 1)  # and for the writes j < l
    dg_n += tl.exp(tl.sum(g_n, 0)) * tl.sum(passed, 0)
    # within the chunk: dA, decayed, is the gradient of q_i · k_j; gate l holds for the pairs j < l ≤ i
    dA *= within_chunk(g_n)
    pairs = dA * tl.dot(q_n, tl.trans(k_n), input_precision=PRECISION)
    dg_n += tl.sum(tl.where(past, tl.cumsum(pairs, 0, reverse=True), 0.0), 1)
    dq_n += tl.dot(dA, k_n, input_precision=PRECISION)
    dk_n += tl.dot(tl.trans(dA), q_n, input_precision=PRECISION)
    store(dq_ptr + row * K, dq_n, t, channels, left, K, H * G * K)
    store(dk_ptr + row * K, dk_n, t, channels, left, K, H * G * K)
    tl.store(dg_ptr + (row + t * H * G) * PARTS + block, dg_n, mask=t < left)
