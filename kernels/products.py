"""All that `diagonal` and `delta` need of queries, keys and their gates: made once, all chunks at once.

    A_ij = Σ_K q_i · exp G_ij · k_j  for j ≤ i,  G_ij = Σ_{j<l≤i} log α_l      what each token reads of the others
    q_i · exp prefix_sum,  k_j · exp suffix_sum,  exp Σ g                      what it reads of the state, adds to it, keeps of it

With a gate per channel the decay differs from channel to channel and stays inside the sum, and every exponent has to be ≤ 0. So two tokens need a
boundary between them, from which both sums of log-gates start. The chunk is cut into rows of N tokens: tokens of different rows
share boundaries, and within a row there is halving.

Time a chunk: O(C² K R) for the R = C / N rows, O(C N K log N) within them. Memory: C² + 2 C K + K numbers a chunk and head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from liger_mini.kernels import scalar
from liger_mini.kernels.tiles import C, Chunks, kept_as, load, load_gates, place, store, sum_over
from torch import Tensor

N, LEVELS_IN_ROW = tl.constexpr(16), tl.constexpr(4)  # tokens of a row: the least a tensor core multiplies; and log₂


class Products(NamedTuple):
    """What the chunks are multiplied with; bfloat16 where what it is made of is, else float32.

    A [NC, H, C, C]: what each token reads of each earlier one of its chunk, and of itself; 0 elsewhere.
    since, until [B, T, H, K]: q decayed since its chunk began, and k until its chunk ends.
    whole [NC, H, K], float32: what a state keeps over a chunk.

    H are the heads of q in A and `since`, those of k in `until` and `whole`: G heads of queries may share one of keys.
    """

    A: Tensor | None
    since: Tensor | None
    until: Tensor
    whole: Tensor


def chunk_products(q: Tensor | None, k: Tensor, g: Tensor, pieces: Chunks, precision: str) -> Products:
    """`Products` of float32 or bfloat16 queries [B, T, H G, K], keys and log-gates [B, T, H, K]. Without queries, of keys alone."""
    (H, K), NC, A, since, G = k.shape[2:], len(pieces.rows), None, None, 1
    if q is not None:
        G = q.shape[2] // H
        A = k.new_zeros(NC, H * G, C.value, C.value, dtype=kept_as(q, k))
        since = torch.empty_like(q, dtype=kept_as(q))
    until, whole = torch.empty_like(k, dtype=kept_as(k)), k.new_empty(NC, H, K, dtype=torch.float32)
    _chunk_products[(NC * H * G,)](q, k, g, A, since, until, whole, pieces.rows, H, G, K, precision, BK=32, num_warps=8)
    return Products(A, since, until, whole)


def decayed(x: Tensor, g: Tensor, pieces: Chunks) -> Products:
    """For one gate a head what `chunk_products` makes with one a channel, but for A: from x [B, T, H, K], in float32."""
    (H, K), NC, G = x.shape[2:], len(pieces.rows), x.shape[2] // g.shape[2]
    since, until = (torch.empty_like(x, dtype=torch.float32) for _ in range(2))
    whole = since.new_empty(NC, H, K)
    _decayed[(NC * H * triton.cdiv(K, 32),)](x, g, since, until, whole, pieces.rows, H, G, K, BK=32, num_warps=4)
    return Products(None, since, until, whole)


@triton.jit
def halves(level, SIZE: tl.constexpr, LEVELS: tl.constexpr):
    """Cut SIZE = 2^LEVELS tokens into blocks of 2h, h = SIZE/2, SIZE/4, … 1, and every block into a left and a right half.

    right [SIZE, 1]: is t in a right half?  apart [SIZE, SIZE]: are i and j in different halves of the same block?
    between [SIZE, SIZE]: is gate l between token t and the boundary inside its block? A token on the right has decayed
    by the gates from the boundary up to its own; one on the left will decay by those after its own.
    """
    t = tl.arange(0, SIZE)
    half = t >> (LEVELS - 1 - level)
    right = ((half & 1) == 1)[:, None]
    apart = (half[:, None] ^ half[None, :]) == 1
    between = (half[:, None] == half[None, :]) & ((t[None, :] <= t[:, None]) == right)
    return right, apart, between


@triton.jit
def by_halving(q_r, k_r, g_r, PRECISION: tl.constexpr):
    """A_ij = Σ q_i · exp G_ij · k_j for j ≤ i of the same row, over the channels at hand: [R, N, ·] to [R, N, N].

    Every pair j < i is parted once: at the level where i is in the right half and j in the left half of one block.
    There G_ij is the sum `between` for i plus the one for j. What is left is j = i, where nothing has decayed.
    """
    R: tl.constexpr = q_r.shape[0]
    t = tl.arange(0, N)
    A = tl.where((t[:, None] == t[None, :])[None], tl.sum(q_r * k_r, 2)[:, :, None], 0.0)
    for level in tl.range(LEVELS_IN_ROW, disable_licm=True):
        right, apart, between = halves(level, N, LEVELS_IN_ROW)
        decay = tl.exp(sum_over(tl.broadcast_to(between[None], (R, N, N)), g_r))
        x = tl.where(right[None], q_r, k_r) * decay  # q_right and k_left in one tile
        pairs = tl.dot(x, tl.permute(x, (0, 2, 1)), input_precision=PRECISION)
        A += tl.where((right & apart)[None], pairs, 0.0)
    return A


@triton.jit
def _chunk_products(
    q_ptr, k_ptr, g_ptr, A_ptr, since_ptr, until_ptr, whole_ptr, rows_ptr, H, G: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A_n and the decays, once for all values. The chunk is cut into R rows of N tokens; without q_ptr there is no A_n.

    Two tokens of different rows: q has decayed since its row began, and k until its own row's end and through the rows
    between. Two tokens of one row have a boundary of their own, by halving. What is above A's diagonal is 0 already.
    One program for each head of queries; of those that share a head of keys the first writes what is made of keys.
    """
    PAIRS: tl.constexpr = q_ptr is not None
    chunk_head, _, row, left = place(rows_ptr, 1, H * G)
    if left <= 0:  # a chunk to spare
        return
    k_row, first = row // G, chunk_head % G == 0
    R: tl.constexpr = C // N
    t, u, r, of = tl.arange(0, C), tl.arange(0, N), tl.arange(0, R), tl.arange(0, C) // N
    apart, among = tl.zeros((C, C), tl.float32), tl.zeros((R, N, N), tl.float32)
    for start in tl.range(0, K, BK, disable_licm=True):
        channels = start + tl.arange(0, BK)
        k_n = load(k_ptr + k_row * K, t, channels, left, K, H * K)
        q_n = load(q_ptr + row * K, t, channels, left, K, H * G * K) if PAIRS else k_n
        g_n = load_gates(g_ptr + k_row * K, t, channels, left, K, H * K)
        g_r = tl.reshape(g_n, (R, N, BK))
        until = sum_over(tl.broadcast_to((u[None, :] > u[:, None])[None], (R, N, N)), g_r)
        until_n = tl.reshape(until, (C, BK))
        if PAIRS:
            since = sum_over(tl.broadcast_to((u[None, :] <= u[:, None])[None], (R, N, N)), g_r)
            since_n = tl.reshape(since, (C, BK))
            x_n = q_n * tl.exp(since_n)
            through = tl.sum(tl.where(of[:, None] == 0, g_n, 0.0), 0)
            since_n += tl.where(of[:, None] > 0, through[None, :], 0.0)
        for later in tl.range(1, R, disable_licm=True):  # the row of q
            through = tl.sum(tl.where(of[:, None] == later, g_n, 0.0), 0)  # what passes that row
            if PAIRS:
                pairs = tl.dot(x_n, tl.trans(k_n * tl.exp(until_n)), input_precision=PRECISION)
                apart += tl.where((of[:, None] == later) & (of[None, :] < later), pairs, 0.0)
                since_n += tl.where(of[:, None] > later, through[None, :], 0.0)
            until_n += tl.where(of[:, None] < later, through[None, :], 0.0)
        store(until_ptr + k_row * K, k_n * tl.exp(until_n), t, channels, tl.where(first, left, 0), K, H * K)
        tl.store(whole_ptr + chunk_head // G * K + channels, tl.exp(tl.sum(g_n, 0)), mask=(channels < K) & first)
        if PAIRS:
            store(since_ptr + row * K, q_n * tl.exp(since_n), t, channels, left, K, H * G * K)
            among += by_halving(tl.reshape(q_n, (R, N, BK)), tl.reshape(k_n, (R, N, BK)), g_r, PRECISION)
    if PAIRS:
        A_ptr += chunk_head * C * C
        kind = A_ptr.dtype.element_ty
        tl.store(A_ptr + t[:, None] * C + t[None, :], apart.to(kind), mask=of[None, :] < of[:, None])
        own = r[:, None, None] * N * (C + 1) + u[None, :, None] * C + u[None, None, :]
        tl.store(A_ptr + own, among.to(kind))


@triton.jit
def _decayed(
    x_ptr, g_ptr, since_ptr, until_ptr, whole_ptr, rows_ptr, H, G: tl.constexpr, K: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """BK channels of one chunk and head, decayed since the chunk's beginning and until its end."""
    chunk_head, block, row, left = place(rows_ptr, tl.cdiv(K, BK), H)
    t, channels = tl.arange(0, C), block * BK + tl.arange(0, BK)
    g_n = scalar.load_gates(g_ptr + row // G, left, H // G)
    x_n = load(x_ptr + row * K, t, channels, left, K, H * K)
    store(since_ptr + row * K, x_n * tl.exp(scalar.prefix_sum(g_n))[:, None], t, channels, left, K, H * K)
    store(until_ptr + row * K, x_n * tl.exp(scalar.suffix_sum(g_n))[:, None], t, channels, left, K, H * K)
    whole = tl.zeros((BK,), tl.float32) + tl.exp(tl.sum(g_n, 0))
    tl.store(whole_ptr + chunk_head * K + channels, whole, mask=channels < K)
