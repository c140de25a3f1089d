"""The diagonal recurrence on a GPU: the Triton twin of `liger_mini/recurrences/diagonal.py`.

    S_t = diag(α_t) S_{t-1} + k_tᵀ v_t        S in R^{K x V}, α_t = exp(log_gate_t) in (0, 1]^K
    o_t = q_t S_t                             no scaling, no denominator

In chunks of C tokens, with G_ij = Σ_{j<l≤i} log α_l and S_n the state before chunk n, like PyTorch's `chunked`,

    S_n+1 = exp(Σ g_n) S_n + (k_n · exp suffix_sum)ᵀ v_n        `_chunk_states`     chunk after chunk
    o_n   = (q_n · exp prefix_sum) S_n + A v_n                  `_chunk_outputs`    all chunks at once
    A_ij  = Σ_K q_i · exp G_ij · k_j  for j ≤ i                 `within_chunk`

and backward, with dS_n the gradient of the state after chunk n and D_ij = do_i · v_j,

    dS_n-1 = exp(Σ g_n) dS_n + (q_n · exp prefix_sum)ᵀ do_n     `_chunk_states` from the end to the start
    dv_n   = (k_n · exp suffix_sum) dS_n + Aᵀ do_n              `_chunk_outputs` with Aᵀ
    dq_n, dk_n, dg_n from S_n, dS_n and D                       `_chunk_gradients`  all chunks at once

Time: O(T (C K log C + K V)), in T/C sequential steps; backward about three times that, in twice the steps.
Memory beyond inputs and outputs: forward T/C states S_n of K x V float32 a head, backward those again and as many
dS_n. Stored from forward to backward: the inputs q, k, v, log_gate and the initial state, nothing else.

Where `chunked` multiplies gates, the kernels add log-gates. Every exponent is a sum that starts at the token which
uses it: it is ≤ 0, and a strong gate nearby costs the weak ones no precision; so too in `_chunk_gradients`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

C = tl.constexpr(64)  # tokens in a chunk
LEVELS = tl.constexpr(6)  # log₂ C: how often a chunk can be halved
WIDEST = 256  # K and V
# How a product reads its operands; sums are always float32. tf32 holds a float16 or bfloat16 number exactly, has the
# range of float32 (a state may outgrow float16), and rounds what is computed in between no more than they would.
PRECISION_OF = {torch.float32: "ieee", torch.bfloat16: "tf32", torch.float16: "tf32"}
INTERPRETED = triton.knobs.runtime.interpret


def triton_recurrence(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`diagonal.chunked` in Triton, differentiable once in every argument.

    Args: q, k, log_gate [B, T, H, K] and v [B, T, H, V] in float32, bfloat16 or float16, T ≥ 1, log_gate ≤ 0 and
        finite (`gated_recurrence` checks that); state [B, H, K, V] float32.
    Returns: o [B, T, H, V] in v's dtype, and the state after the last token, float32.
    Raises: RuntimeError without a GPU or the interpreter, ValueError for K or V above 256, TypeError for other dtypes.
    """
    for name, x in {"q": q, "k": k, "v": v, "log_gate": log_gate, "state": state}.items():
        allowed = [torch.float32] if name == "state" else list(PRECISION_OF)
        if x.dtype not in allowed:
            raise TypeError(f"{name} has dtype {x.dtype}; the Triton kernels take {', '.join(map(str, allowed))}")
    for name, width in {"K": q.shape[-1], "V": v.shape[-1]}.items():
        if width > WIDEST:
            raise ValueError(f"{name} = {width}; the Triton kernels take K and V up to {WIDEST}")
    if not (q.is_cuda or INTERPRETED):
        raise RuntimeError(
            f"q is on {q.device}, where Triton cannot run. Move the inputs to a CUDA device, or set the environment "
            "variable TRITON_INTERPRET=1 before Python starts: the kernels then run, slowly, in Triton's interpreter"
        )
    with torch.cuda.device_of(q):  # Triton launches on the current device; autograd sets it for the backward pass
        return _Recurrence.apply(q, k, v, log_gate, state)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, log_gate, state):
        q, k, v, g, state = (x.contiguous() for x in (q, k, v, log_gate, state))
        ctx.save_for_backward(q, k, v, g, state)
        ctx.precision = PRECISION_OF[q.dtype] if q.dtype == k.dtype == v.dtype else "ieee"
        states, last = _states(k, v, g, state, ctx.precision)
        return _outputs(q, k, v, g, states, ctx.precision), last

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dlast):
        q, k, v, g, state = ctx.saved_tensors
        do, dlast = do.contiguous(), dlast.contiguous()
        states, _ = _states(k, v, g, state, ctx.precision)
        dstates, dstate = _states(q, do, g, dlast, ctx.precision, REVERSE=True)
        dv = _outputs(q, k, do, g, dstates, ctx.precision, REVERSE=True)
        dq, dk, dg = torch.empty_like(q), torch.empty_like(k), torch.empty_like(g)
        (B, T, H, K), V, N = q.shape, v.shape[-1], states.shape[2]
        _chunk_gradients[lambda meta: (B * H * triton.cdiv(K, meta["BK"]), N)](
            q, k, v, g, do, states, dstates, dq, dk, dg, T, H, K, V, ctx.precision
        )
        return dq, dk, dv, dg, dstate


def _states(x, y, g, first, precision, REVERSE=False):
    """The state before each chunk, [B, H, N, K, V], and after the last; REVERSE: from the end to the start."""
    (B, T, H, K), V, last = x.shape, y.shape[-1], torch.empty_like(first)
    states = first.new_empty(B, H, triton.cdiv(T, C.value), K, V)
    _chunk_states[lambda meta: (B * H * triton.cdiv(K, meta["BK"]) * triton.cdiv(V, meta["BV"]),)](
        x, y, g, first, states, last, T, H, K, V, REVERSE, precision
    )
    return states, last


def _outputs(q, k, y, g, states, precision, REVERSE=False):
    """o from y = v and the states; REVERSE: dv from y = do and the gradients of the states."""
    (B, T, H, K), V, N, out = q.shape, y.shape[-1], states.shape[2], torch.empty_like(y)
    _chunk_outputs[lambda meta: (B * H * triton.cdiv(V, meta["BV"]), N)](
        q, k, y, g, states, out, T, H, K, V, REVERSE, precision
    )
    return out


@triton.jit
def sum_over(mask, x):
    """Row t: the sum of x's rows l with mask[t, l]. A sum over a range of tokens is a product with zeros and ones.

    That is work for tensor cores, but log-gates deserve float32. So x is cut into its leading bits, which tf32 holds
    exactly, and the rest; the cut rounds towards zero, so for x ≤ 0 both parts, and with them the sum, are ≤ 0.
    """
    ones = mask.to(tl.float32)
    leading = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # without the last 13 bits
    return tl.dot(ones, leading, tl.dot(ones, x - leading, input_precision="tf32"), input_precision="tf32")


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


@triton.jit
def halves(level):
    """Cut the chunk into blocks of 2h tokens, h = C/2, C/4, … 1, and every block into a left and a right half.

    right [C, 1]: is t in a right half?  reads [C, C]: is i in the right and j in the left half of the same block?
    between [C, C]: is gate l between token t and the boundary inside its block? A token on the right has decayed
    by the gates from the boundary up to its own; one on the left will decay by those after its own.
    """
    t = tl.arange(0, C)
    half = t // (C >> (level + 1))
    right = (half % 2 == 1)[:, None]
    reads = right & (half[:, None] == half[None, :] + 1)
    between = (half[:, None] == half[None, :]) & ((t[None, :] <= t[:, None]) == right)
    return right, reads, between


@triton.jit
def within_chunk(q_n, k_n, g_n, PRECISION: tl.constexpr):
    """A_ij = Σ q_i · exp G_ij · k_j for j ≤ i, over the channels at hand, by halving.

    Every pair j < i is parted once: at the level where i is in the right half and j in the left half of one block.
    There G_ij is the sum `between` for i plus the one for j. What is left is j = i, where nothing has decayed. (PyTorch
    stops at a leaf of pairs; here one more masked C x C product is cheaper.)
    """
    t = tl.arange(0, C)
    A = tl.where(t[:, None] == t[None, :], tl.sum(q_n * k_n, 1)[:, None], 0.0)
    for level in range(LEVELS):
        right, reads, between = halves(level)
        x = tl.where(right, q_n, k_n) * tl.exp(sum_over(between, g_n))  # q_right and k_left in one tile
        A += tl.where(reads, tl.dot(x, tl.trans(x), input_precision=PRECISION), 0.0)
    return A


@triton.jit
def load(ptr, rows, columns, n_rows, n_columns, stride):
    """A float32 tile, 0 outside the tensor: a padded token reads nothing, writes nothing, forgets nothing."""
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return tl.load(ptr + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store(ptr, x, rows, columns, n_rows, n_columns, stride):
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    tl.store(ptr + rows[:, None] * stride + columns[None, :], x.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def first_row(bh, n, T, H):
    """Where chunk n of a head begins in [B, T, H, ·], in rows (bh is 64 bit: long inputs pass 2³¹ numbers)."""
    return (bh // H * T + n * C) * H + bh % H


# Wide blocks read q, k and g less often; narrow ones keep a tile in registers and cut the state into more programs.
# Two stages: the next tiles are on their way while these are used. The interpreter takes the first line alone: timing
# means nothing there, and small blocks let small tests see several of them.
BLOCKS = [(32, 32, 4), (32, 64, 4), (32, 32, 8), (64, 64, 8)][: 1 if INTERPRETED else None]  # BK, BV, warps
CONFIGS = [triton.Config({"BK": BK, "BV": BV}, num_warps=warps, num_stages=2) for BK, BV, warps in BLOCKS]
tuned = triton.autotune(CONFIGS, key=["K", "V", "PRECISION"])


@tuned
@triton.jit
def _chunk_states(
    x_ptr, y_ptr, g_ptr, first_ptr, states_ptr, last_ptr, T, H, K: tl.constexpr, V: tl.constexpr,
    REVERSE: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """S_n for one head and one BK x BV block of the state. x, y = k, v; REVERSE: q, do, and S is a gradient."""
    blocks_v = tl.cdiv(V, BV)
    blocks = tl.cdiv(K, BK) * blocks_v
    bh, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    channels, values = block // blocks_v * BK + tl.arange(0, BK), block % blocks_v * BV + tl.arange(0, BV)
    t, N = tl.arange(0, C), tl.cdiv(T, C)
    S = load(first_ptr + bh * K * V, channels, values, K, V, V)
    for step in range(N):
        n = N - 1 - step if REVERSE else step
        store(states_ptr + (bh * N + n) * K * V, S, channels, values, K, V, V)
        row, left = first_row(bh, n, T, H), T - n * C
        x_n = load(x_ptr + row * K, t, channels, left, K, H * K)
        y_n = load(y_ptr + row * V, t, values, left, V, H * V)
        g_n = load(g_ptr + row * K, t, channels, left, K, H * K)
        x_n *= tl.exp(prefix_sum(g_n) if REVERSE else suffix_sum(g_n))
        S = tl.exp(tl.sum(g_n, 0))[:, None] * S + tl.dot(tl.trans(x_n), y_n, input_precision=PRECISION)
    store(last_ptr + bh * K * V, S, channels, values, K, V, V)


@tuned
@triton.jit
def _chunk_outputs(
    q_ptr, k_ptr, y_ptr, g_ptr, states_ptr, out_ptr, T, H, K: tl.constexpr, V: tl.constexpr,
    REVERSE: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """o_n for one chunk and BV values. y = v; REVERSE: y = do, the states are gradients, and the output is dv_n."""
    bh, n = (tl.program_id(0) // tl.cdiv(V, BV)).to(tl.int64), tl.program_id(1)
    values = tl.program_id(0) % tl.cdiv(V, BV) * BV + tl.arange(0, BV)
    t = tl.arange(0, C)
    row, left, state = first_row(bh, n, T, H), T - n * C, (bh * tl.cdiv(T, C) + n) * K * V
    A, out_n = tl.zeros((C, C), tl.float32), tl.zeros((C, BV), tl.float32)
    for start in range(0, K, BK):
        channels = start + tl.arange(0, BK)
        q_n = load(q_ptr + row * K, t, channels, left, K, H * K)
        k_n = load(k_ptr + row * K, t, channels, left, K, H * K)
        g_n = load(g_ptr + row * K, t, channels, left, K, H * K)
        S_n = load(states_ptr + state, channels, values, K, V, V)
        x_n = k_n * tl.exp(suffix_sum(g_n)) if REVERSE else q_n * tl.exp(prefix_sum(g_n))
        out_n += tl.dot(x_n, S_n, input_precision=PRECISION)
        A += within_chunk(q_n, k_n, g_n, PRECISION)
    y_n = load(y_ptr + row * V, t, values, left, V, H * V)
    out_n += tl.dot(tl.trans(A) if REVERSE else A, y_n, input_precision=PRECISION)
    store(out_ptr + row * V, out_n, t, values, left, V, H * V)


@tuned
@triton.jit
def _chunk_gradients(
    q_ptr, k_ptr, v_ptr, g_ptr, do_ptr, states_ptr, dstates_ptr, dq_ptr, dk_ptr, dg_ptr, T, H,
    K: tl.constexpr, V: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """dq_n, dk_n and dg_n for one chunk and BK channels.

    o and the last state are sums of terms that each decayed by exp Σ g over some range of tokens, so ∂/∂g_l adds up
    the terms whose range holds l. Forward that range was a row of `sum_over(mask, g)`; backward it is a column:
    `sum_over(maskᵀ, term)`. (The shorter dg_l = Σ_{t≥l} q_t dq_t − k_t dk_t adds all terms after l and takes back those
    that never crossed it; from bfloat16 dq and dk, T = 2048, it is 2 % off with mild gates and 54 % with strong ones.)
    """
    bh, n = (tl.program_id(0) // tl.cdiv(K, BK)).to(tl.int64), tl.program_id(1)
    channels = tl.program_id(0) % tl.cdiv(K, BK) * BK + tl.arange(0, BK)
    t = tl.arange(0, C)
    row, left, state = first_row(bh, n, T, H), T - n * C, (bh * tl.cdiv(T, C) + n) * K * V
    D, passed = tl.zeros((C, C), tl.float32), tl.zeros((BK,), tl.float32)
    dq_n, dk_n = tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32)
    for start in range(0, V, BV):
        values = start + tl.arange(0, BV)
        v_n = load(v_ptr + row * V, t, values, left, V, H * V)
        do_n = load(do_ptr + row * V, t, values, left, V, H * V)
        S_n = load(states_ptr + state, channels, values, K, V, V)
        dS_n = load(dstates_ptr + state, channels, values, K, V, V)
        D += tl.dot(do_n, tl.trans(v_n), input_precision=PRECISION)
        dq_n += tl.dot(do_n, tl.trans(S_n), input_precision=PRECISION)
        dk_n += tl.dot(v_n, tl.trans(dS_n), input_precision=PRECISION)
        passed += tl.sum(S_n * dS_n, 1)
    q_n = load(q_ptr + row * K, t, channels, left, K, H * K)
    k_n = load(k_ptr + row * K, t, channels, left, K, H * K)
    g_n = load(g_ptr + row * K, t, channels, left, K, H * K)
    # through the states: what i reads from before the chunk, what j writes for after it, what only passes by
    dq_n *= tl.exp(prefix_sum(g_n))
    dk_n *= tl.exp(suffix_sum(g_n))
    dg_n = sum_over(t[None, :] >= t[:, None], q_n * dq_n)  # gate l holds for the reads i ≥ l
    dg_n += sum_over(t[None, :] < t[:, None], k_n * dk_n)  # and for the writes j < l
    dg_n += (tl.exp(tl.sum(g_n, 0)) * passed)[None, :]
    # within the chunk: j = i, then the levels of `within_chunk`
    D_tt = tl.sum(tl.where(t[:, None] == t[None, :], D, 0.0), 1)[:, None]
    dq_n, dk_n = dq_n + D_tt * k_n, dk_n + D_tt * q_n
    for level in range(LEVELS):
        right, reads, between = halves(level)
        decay = tl.exp(sum_over(between, g_n))
        x = tl.where(right, q_n, k_n) * decay
        dA = tl.where(reads, D, 0.0)
        dx = tl.dot(dA + tl.trans(dA), x, input_precision=PRECISION)  # q_right reads k_left, and back
        dq_n += tl.where(right, dx * decay, 0.0)
        dk_n += tl.where(right, 0.0, dx * decay)
        dg_n += sum_over(tl.trans(between), x * dx)
    store(dq_ptr + row * K, dq_n, t, channels, left, K, H * K)
    store(dk_ptr + row * K, dk_n, t, channels, left, K, H * K)
    store(dg_ptr + row * K, dg_n, t, channels, left, K, H * K)
