"""The slot recurrence on a GPU: the Triton twin of `liger_mini/recurrences/slots.py`, without a kernel of its own.

    K̃_t = diag(α_t) K̃_{t-1} + write_tᵀ k_t    K̃ in R^{M x K}, α_t = exp(log_gate_t) in (0, 1]^M
    Ṽ_t = diag(α_t) Ṽ_{t-1} + write_tᵀ v_t    Ṽ in R^{M x V}
    o_t = p_t Ṽ_t,  p_t = softmax(s_t),  s_t = q_t K̃_tᵀ        no scaling

The second pass, from p to o, is the diagonal recurrence with p as queries and `write` as keys. The first, from q to s,
is the *backward pass* of the diagonal recurrence. Take one number, linear in each of a, b, c and d,

    Φ(a, b, c, d; g) = Σ_{j≤i} (a_i · exp G_ij · b_j) (c_i · d_j)        G_ij = Σ_{j<l≤i} log α_l

(the states, left out here, belong to it). In the diagonal recurrence o_i = ∂Φ/∂c_i with a, b, d = q, k, v, and with
c = do, Φ is Σ do_i · o_i: its other derivatives are the gradients. Here s_i = Σ_{j≤i} (q_i · k_j) exp G_ij · write_j
is ∂Φ/∂a_i with b, c, d = write, q, k, and with a = ds, Φ is Σ ds_i · s_i:

    a, b, c, d              ∂Φ/∂a   ∂Φ/∂b    ∂Φ/∂c   ∂Φ/∂d   ∂Φ/∂g
    q, k, do, v             dq      dk       o       dv      dg         diagonal recurrence
    ds, write, q, k         s       dwrite   dq      dk      dg         first pass of the slots

So the forward pass of the slots launches the kernel that computes dq there, and their backward pass the one that
computes o.

Time: O(T (M C log C + (C + M) (K + V))), in 2 T/C sequential steps; backward about three times that. Memory beyond
inputs and outputs: what the diagonal recurrence takes for states of M x K and then of M x V, and s, p and their
gradients, [B, T, H, M] in float32. Stored from forward to backward: the inputs, the initial states and p.
"""

from __future__ import annotations

import torch
from liger_mini.kernels import diagonal
from liger_mini.kernels.products import chunk_products
from liger_mini.kernels.tiles import check, chunks, precision_of
from torch import Tensor
from torch.autograd.function import once_differentiable


def triton_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    write: Tensor,
    log_gate: Tensor,
    keys: Tensor,
    values: Tensor,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`slots.chunked` in Triton, differentiable once in every argument but cu_seqlens.

    Args: q [B, T, H G, K], k [B, T, H, K], v [B, T, H, V], write and log_gate [B, T, H, M] in float32, bfloat16 or
        float16, T ≥ 1, log_gate ≤ 0; states keys = K̃ᵀ [B, H, K, M] and values = Ṽ [B, H, M, V] float32; cu_seqlens [N+1] for N documents
        packed into one row (B = 1), with N in place of B in the states.
    Returns: o [B, T, H G, V] in v's dtype, and the states after the last token of each, float32.
    Raises: RuntimeError without a GPU or the interpreter, ValueError for K, V, M above 256, TypeError for other dtypes.
    """
    inputs = {"q": q, "k": k, "v": v, "write": write, "log_gate": log_gate}
    widths = {"K": q.shape[-1], "V": v.shape[-1], "M": write.shape[-1]}
    check(widths, {"keys": keys, "values": values}, **inputs)
    how = chunks(*q.shape[:2], cu_seqlens, q.device), precision_of(q, k, v, write)
    with torch.cuda.device_of(q):
        s, keys = _Scores.apply(q, k, write, log_gate, keys.mT, *how)
        o, values = diagonal.Recurrence.apply(s.softmax(-1), write, v, log_gate, values, *how)
    return o, keys.mT, values


class _Scores(torch.autograd.Function):
    """The first pass; behind each line, what its kernel computes in the diagonal recurrence."""

    @staticmethod
    def forward(ctx, q, k, write, log_gate, state, pieces, precision):
        q, k, write, g, state = (x.contiguous() for x in (q, k, write, log_gate, state))
        ctx.save_for_backward(q, k, write, g, state)
        ctx.pieces, ctx.precision = pieces, precision
        made = chunk_products(None, write, g, pieces, precision)
        states, last = diagonal.chunk_states(made, k, state, pieces, precision)  # S
        s, _, _ = diagonal.chunk_gradients(None, write, k, g, q, states, None, pieces, precision)  # dq
        return s, last

    @staticmethod
    @once_differentiable
    def backward(ctx, ds, dlast):
        (q, k, write, g, state), how = ctx.saved_tensors, (ctx.pieces, ctx.precision)
        ds, dlast = ds.contiguous(), dlast.contiguous()
        made = chunk_products(ds, write, g, *how)
        states, _ = diagonal.chunk_states(made, k, state, *how)  # S
        dstates, dstate = diagonal.chunk_states(made, q, dlast, *how, REVERSE=True)  # dS
        dq = diagonal.chunk_outputs(made, k, states, *how, q.dtype)  # o
        dk = diagonal.chunk_outputs(made, q, dstates, *how, k.dtype, REVERSE=True)  # dv
        _, dwrite, dg = diagonal.chunk_gradients(ds, write, k, g, q, states, dstates, *how)  # dk, dg
        return dq, dk, dwrite, dg, dstate, None, None
