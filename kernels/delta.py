"""The delta recurrence on a GPU: the Triton twin of `liger_mini/recurrences/delta.py`.

    S ← diag(α_t) S_{t-1},  u_t = β_t (v_t - k_t S),  S_t = S + k_tᵀ u_t,  o_t = q_t S_t

Once the corrections u are known, this is the additive recurrence with u for v: `scalar.py` where a gate is one number
per head, `diagonal.py` where it is one per channel. What is new here finds u, chunk after chunk, and its gradient.
With A_ij = β_i k_i · exp G_ij · k_j for j < i (G_ij as in `diagonal.py`), M = (I + A)⁻¹, and S_n the state before chunk n,

    u_n   = M (β v_n) - M (β k_n · exp prefix_sum) S_n          `_system`, `_invert`, `_merge`, `_apply`, `_correct`
    S_n+1 = exp(Σ g_n) S_n + (k_n · exp suffix_sum)ᵀ u_n        `_correct`

and backward, with dS_n the gradient of the state after chunk n and P the additive recurrence's A,

    δ_n   = Mᵀ (Pᵀ do_n) + Mᵀ (k_n · exp suffix_sum) dS_n       the gradient of u_n, with all that later tokens read of it
    dS_n-1 = exp(Σ g_n) dS_n + (q_n · exp prefix_sum)ᵀ do_n - (k_n · exp prefix_sum)ᵀ (β δ_n)       `_correct`, REVERSE

What a key read, r_t = k_t S, is an output of the additive recurrence with k for q, less what the token itself wrote,
‖k_t‖² u_t; its gradient is -β δ. So dv = β δ, dβ = δ · (v - r), and dq, dk, dg are the additive gradients of o and of r.

M is found by substitution in blocks of 16 tokens, which are merged by products, all in float32: by powers of A it
would be lost in rounding. Time: O(T (C² + C (K + V) + K V)), in T/C sequential steps; backward about three
times that. Stored from forward to backward: the inputs and the initial state, nothing else.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from liger_mini.kernels import diagonal, scalar
from liger_mini.kernels.products import Products, chunk_products, decayed
from liger_mini.kernels.tiles import (
    INTERPRETED,
    C,
    Chunks,
    check,
    chunks,
    load,
    place,
    precision_of,
    queries_per_key,
    store,
)
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAF = tl.constexpr(16)  # tokens of a block that is inverted row by row


def triton_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_gate: Tensor,
    state: Tensor,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`delta.chunked` in Triton, differentiable once in every argument but cu_seqlens.

    Args: q [B, T, H G, K], k [B, T, H, K], v [B, T, H, V], beta [B, T, H] and log_gate [B, T, H] or [B, T, H, K] in
        float32, bfloat16 or float16, log_gate ≤ 0; state [B, H, K, V] float32; cu_seqlens [N+1] for N documents packed
        into one row (B = 1), with state [N, H, K, V]. G heads of queries in a row share a head of keys.
    Returns: o [B, T, H G, V] in v's dtype, and the state after the last token of each, float32.
    Raises: RuntimeError without a GPU or the interpreter, ValueError for K or V above 256, TypeError for other dtypes.
    """
    widths = {"K": q.shape[-1], "V": v.shape[-1]}
    check(widths, {"state": state}, q=q, k=k, v=v, beta=beta, log_gate=log_gate)
    pieces = chunks(*q.shape[:2], cu_seqlens, q.device)
    with torch.cuda.device_of(q):  # Triton launches on the current device; autograd sets it for the backward pass
        return Recurrence.apply(q, k, v, beta.float(), log_gate.float(), state, pieces, precision_of(q, k, v))


class Recurrence(torch.autograd.Function):
    """`triton_recurrence` for inputs that are checked and cut into chunks."""

    @staticmethod
    def forward(ctx, q, k, v, beta, log_gate, state, pieces, precision):
        q, k, v, beta, g, state = (x.contiguous() for x in (q, k, v, beta, log_gate, state))
        ctx.save_for_backward(q, k, v, beta, g, state)
        ctx.how = pieces, precision
        _, _, u, states, last = corrections(k, v, beta, g, state, *ctx.how)
        return Additive(q, k, g, *ctx.how).outputs(u, states).to(v.dtype), last

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dlast):
        (q, k, v, beta, g, state), how = ctx.saved_tensors, ctx.how
        do, dlast = do.contiguous().float(), dlast.contiguous()
        M, keys, u, states, _ = corrections(k, v, beta, g, state, *how)
        read, nothing = Additive(q, k, g, *how), torch.zeros_like(states)
        delta, dstates, dstate = correct(
            apply(M, read.outputs(do, nothing, REVERSE=True), how[0], REVERSE=True),  # Mᵀ Pᵀ do
            apply(M, keys.until, how[0], REVERSE=True),
            keys.since,
            keys.whole,
            dlast,
            *how,
            beta,
            read.since(),
            do,
        )
        dr, reading = -beta[..., None] * delta, Additive(k, k, g, *how, keys)
        dq, dk, dg = read.gradients(u, do, states, dstates)
        dk_reading, dk_written, dg_reading = reading.gradients(u, dr, states, nothing)
        own = (dr * u).sum(-1, keepdim=True) * k.float()  # a key does not read what its own token writes
        dk = dk.float() + dk_reading.float() + dk_written.float() - 2 * own
        r = reading.outputs(u, states) - k.float().square().sum(-1, keepdim=True) * u
        dbeta = (delta * (v.float() - r)).sum(-1)
        dv = (beta[..., None] * delta).to(v.dtype)
        return dq, dk.to(k.dtype), dv, dbeta, dg + dg_reading, dstate, None, None


class Additive:
    """The recurrence that adds, for gates per head [B, T, H] or per channel [B, T, H, K]; outputs are float32.

    Args: made: what the chunks are multiplied with, where that is known already; only gates per channel need it.
    """

    def __init__(self, q, k, g, pieces, precision, made: Products | None = None):
        self.given, self.how, self.per_head = (q, k, g), (pieces, precision), g.ndim == 3
        self.made = made if self.per_head or made else chunk_products(q, k, g, pieces, precision)

    def outputs(self, y, states, REVERSE=False) -> Tensor:
        if self.per_head:
            q, k, g = self.given
            return scalar.chunk_outputs(q, k, y, g, states, *self.how, REVERSE=REVERSE)
        return diagonal.chunk_outputs(self.made, y, states, *self.how, torch.float32, REVERSE=REVERSE)

    def gradients(self, v, do, states, dstates) -> tuple[Tensor, Tensor, Tensor]:
        q, k, g = self.given
        return (scalar if self.per_head else diagonal).chunk_gradients(q, k, v, g, do, states, dstates, *self.how)

    def since(self) -> Tensor:
        """q, decayed since its chunk began."""
        q, _, g = self.given
        return decayed(q, g, self.how[0]).since if self.per_head else self.made.since


def corrections(k, v, beta, g, state, pieces: Chunks, precision):
    """(M, the keys' products, u, the states before the chunks, the last states)."""
    keys = chunk_products(k.float(), k.float(), g, pieces, "ieee") if g.ndim == 4 else decayed(k, g, pieces)
    M = inverse(k, beta, g, keys.A, pieces)
    U = apply(M, beta[..., None] * v.float(), pieces)
    W = apply(M, beta[..., None] * keys.since, pieces)
    u, states, last = correct(U, W, keys.until, keys.whole, state, pieces, precision)
    return M, keys, u, states, last


def inverse(k, beta, g, products, pieces: Chunks):
    """M [NC, H, C, C], float32. products: those of keys with keys, where gates are per channel."""
    (H, K), NC = k.shape[2:], len(pieces.rows)
    M, A = (k.new_empty(NC, H, C.value, C.value, dtype=torch.float32) for _ in range(2))
    _system[(NC * H,)](k, beta, g, products, A, pieces.rows, H, K, BK, num_warps=8)
    _invert[(NC * H,)](A, M, num_warps=4)
    size = LEAF.value
    while size < C.value:
        _merge[(NC * H * C.value // (2 * size),)](A, M, size, num_warps=4)
        size *= 2
    return M


def apply(M, x, pieces: Chunks, REVERSE=False):
    """M x, or Mᵀ x, chunk by chunk; x [B, T, H, ·]."""
    (NC, H, _, _), X, out = M.shape, x.shape[-1], torch.empty_like(x)
    _apply[(NC * H * triton.cdiv(X, BX),)](M, x, out, pieces.rows, H, X, REVERSE, BX, num_warps=4)
    return out


def correct(y, x, z, whole, first, pieces: Chunks, precision, beta=None, q=None, do=None):
    """u = y - x S chunk after chunk, the states before the chunks, and the last; with beta, q and do from the end.

    Args: z: the keys decayed until their chunk's end; from the end, since its beginning, and q too.
    """
    (N, H, K, V), last, u = first.shape, torch.empty_like(first), torch.empty_like(y)
    states, G = first.new_empty(len(pieces.rows), H, K, V), 1 if q is None else queries_per_key(q, first)
    wide = max(16, triton.next_power_of_2(K))
    BV = 16 if INTERPRETED or wide > 128 else 32
    _correct[(N * H * triton.cdiv(V, BV),)](
        y, x, z, whole, first, u, states, last, *pieces, beta, q, do, H, G, K, V, precision, wide, BV,
        num_warps=4 if wide <= 64 else 8, num_stages=1,
    )  # fmt: skip
    return u, states, last


BK, BX = 32, 32  # channels, and columns, at a time


@triton.jit
def _system(
    k_ptr, beta_ptr, g_ptr, products_ptr, A_ptr, rows_ptr, H, K: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """A of one chunk and head, strictly lower; with a gate per channel the products of keys are given."""
    chunk_head, _, row, left = place(rows_ptr, 1, H)
    t = tl.arange(0, C)
    at = chunk_head * C * C + t[:, None] * C + t[None, :]
    if products_ptr is not None:
        A = tl.load(products_ptr + at)
    else:
        A = tl.zeros((C, C), tl.float32)
        for start in range(0, K, BK):
            k_n = load(k_ptr + row * K, t, start + tl.arange(0, BK), left, K, H * K)
            A += tl.dot(k_n, tl.trans(k_n), input_precision="ieee")
        A *= scalar.within_chunk(scalar.load_gates(g_ptr + row, left, H))
    A *= scalar.load_gates(beta_ptr + row, left, H)[:, None]  # β, and 0 after the document
    tl.store(A_ptr + at, tl.where(t[:, None] > t[None, :], A, 0.0))


@triton.jit
def _invert(A_ptr, M_ptr):
    """The blocks of LEAF tokens on the diagonal of M = (I + A)⁻¹, row by row; zeros elsewhere."""
    chunk_head, t = tl.program_id(0).to(tl.int64), tl.arange(0, C)
    at = chunk_head * C * C + t[:, None] * C + t[None, :]
    A = tl.load(A_ptr + at)
    A = tl.where((t[:, None] // LEAF) == (t[None, :] // LEAF), A, 0.0)
    M = tl.where(t[:, None] == t[None, :], 1.0, 0.0)
    for i in range(1, LEAF):  # row i of every block at once: M_i = e_i - Σ_{j<i} A_ij M_j
        row = tl.sum(tl.where((t % LEAF)[:, None] == i, A, 0.0), 0)  # A_ij of j's own block
        block = tl.where((t[:, None] // LEAF) == (t[None, :] // LEAF), 1.0, 0.0)
        known = row[:, None] * M  # A_ij M_j, in row j
        new = tl.dot(block, known, input_precision="ieee")  # the sum over j of a block, in each of its rows
        M = tl.where((t % LEAF)[:, None] == i, M - new, M)
    tl.store(M_ptr + at, M)


@triton.jit
def _merge(A_ptr, M_ptr, SIZE: tl.constexpr):
    """Two neighbours on the diagonal become one block: its lower left part is -M₂ A₂₁ M₁."""
    pairs: tl.constexpr = C // (2 * SIZE)
    chunk_head, pair = (tl.program_id(0) // pairs).to(tl.int64), tl.program_id(0) % pairs
    t = tl.arange(0, SIZE)
    at = chunk_head * C * C + pair * 2 * SIZE * (C + 1) + t[:, None] * C + t[None, :]
    M_1, M_2, A_21 = tl.load(M_ptr + at), tl.load(M_ptr + at + SIZE * (C + 1)), tl.load(A_ptr + at + SIZE * C)
    M_21 = tl.dot(M_2, tl.dot(A_21, M_1, input_precision="ieee"), input_precision="ieee")
    tl.store(M_ptr + at + SIZE * C, -M_21)


@triton.jit
def _apply(M_ptr, x_ptr, out_ptr, rows_ptr, H, X: tl.constexpr, REVERSE: tl.constexpr, BX: tl.constexpr):
    """M x for one chunk, head and BX columns; REVERSE: Mᵀ x."""
    chunk_head, block, row, left = place(rows_ptr, tl.cdiv(X, BX), H)
    if left <= 0:  # a chunk to spare
        return
    t, columns = tl.arange(0, C), block * BX + tl.arange(0, BX)
    M = tl.load(M_ptr + chunk_head * C * C + t[:, None] * C + t[None, :])
    x = load(x_ptr + row * X, t, columns, left, X, H * X)
    out = tl.dot(tl.trans(M) if REVERSE else M, x, input_precision="ieee")
    store(out_ptr + row * X, out, t, columns, left, X, H * X)


@triton.jit
def _correct(
    y_ptr, x_ptr, z_ptr, whole_ptr, first_ptr, u_ptr, states_ptr, last_ptr, rows_ptr, of_document_ptr, beta_ptr,
    q_ptr, do_ptr, H, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr,
):  # fmt: skip
    """One document, head and BV values: u_n = y_n - x_n S_n, S_n+1 = exp(Σ g_n) S_n + z_nᵀ u_n.

    With q it is the way back: from the end, u_n is δ_n = y_n + x_n dS_n, q_n and z_n are queries and keys decayed since
    the chunk's start, and dS_n-1 = exp(Σ g_n) dS_n + q_nᵀ do_n - z_nᵀ (β δ_n).
    """
    REVERSE: tl.constexpr = q_ptr is not None
    blocks = tl.cdiv(V, BV)
    document_head, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    document, h = document_head // H, document_head % H
    t, channels, values = tl.arange(0, C), tl.arange(0, BK), block * BV + tl.arange(0, BV)
    begin, end = tl.load(of_document_ptr + document), tl.load(of_document_ptr + document + 1)
    start = tl.load(rows_ptr + 2 * begin, mask=begin < end, other=0)  # of the document; an empty one has no chunk
    length = tl.load(rows_ptr + 2 * begin + 1, mask=begin < end, other=0)
    S = load(first_ptr + document_head * K * V, channels, values, K, V, V)
    for step in range(end - begin):
        n = end - begin - 1 - step if REVERSE else step
        chunk_head, row, left = (begin + n) * H + h, (start + n * C) * H + h, length - n * C
        store(states_ptr + chunk_head * K * V, S, channels, values, K, V, V)
        x_n = load(x_ptr + row * K, t, channels, left, K, H * K)
        u_n = load(y_ptr + row * V, t, values, left, V, H * V)
        xS = tl.dot(x_n, S, input_precision=PRECISION)
        u_n = u_n + xS if REVERSE else u_n - xS
        store(u_ptr + row * V, u_n, t, values, left, V, H * V)
        S *= tl.load(whole_ptr + chunk_head * K + channels, mask=channels < K, other=0.0)[:, None]
        if REVERSE:
            for one in range(G):  # the queries that read this state
                q_n = load(q_ptr + (row * G + one) * K, t, channels, left, K, H * G * K)
                do_n = load(do_ptr + (row * G + one) * V, t, values, left, V, H * G * V)
                S += tl.dot(tl.trans(q_n), do_n, input_precision=PRECISION)
            u_n *= -scalar.load_gates(beta_ptr + row, left, H)[:, None]
        z_n = load(z_ptr + row * K, t, channels, left, K, H * K)
        S += tl.dot(tl.trans(z_n), u_n, input_precision=PRECISION)
    store(last_ptr + document_head * K * V, S, channels, values, K, V, V)
