"""The loops that `compiled` runs, in the part of Python that numba compiles. Importing this needs numba.

A unit is a row and a key head; u counts them. Arrays are [B, T, heads, ·] and are written in place; `a` is α, and dg the gradient
of log α. G query heads read the state of one key head.

The loop over v is always the innermost: its numbers lie side by side, and the processor takes 8 or 16 at a time. It is short, so
it goes over two channels of the state at once, i and m = i + 1: half as many loops to begin, and what is added to is fetched half
as often. K is even; `compiled` sees to that.
"""

from __future__ import annotations

import numba
import numpy as np

NEAR = 32  # tokens of a head that are gathered at once
# sums may be reordered and a product and a sum fused, which a vector processor needs; NaN and infinity stay what they are
compile_loop = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
written_out = numba.njit(
    inline="always"
)  # where it is called: a call for every two channels would cost more than its loop


@compile_loop
def additive_forward(first, last, q, k, v, a, state, starts, o, every):
    """S = α S + kᵀ v, o = q S; a [B, T, heads, K or 1]. Keeps the state before every so many tokens, where asked."""
    T, heads, K, V, G = q.shape[1], k.shape[2], k.shape[3], v.shape[3], q.shape[2] // k.shape[2]
    apart = 1 if a.shape[3] > 1 else 0
    queries, keys, values = np.empty((G, NEAR, K), q.dtype), np.empty((NEAR, K), q.dtype), np.empty((NEAR, V), q.dtype)
    gates = np.empty((NEAR, a.shape[3]), q.dtype)
    for u in range(first, last):
        b, h = u // heads, u % heads
        S = state[b, h]
        for t in range(T):
            if t % NEAR == 0:
                gather(k, b, t, h, keys)
                gather(v, b, t, h, values)
                gather(a, b, t, h, gates)
                for n in range(G):
                    gather(q, b, t, h * G + n, queries[n])
            if starts.shape[2] and t % every == 0:
                starts[b, h, t // every] = S
            o[b, t, h * G : (h + 1) * G] = 0
            gate, key, value = gates[t % NEAR], keys[t % NEAR], values[t % NEAR]
            query, out = queries[0, t % NEAR], o[b, t, h * G]
            for i in range(0, K, 2):
                gate_i, gate_m, key_i, key_m = gate[i * apart], gate[(i + 1) * apart], key[i], key[i + 1]
                row_i, row_m, query_i, query_m = S[i], S[i + 1], query[i], query[i + 1]
                for j in range(V):
                    new_i, new_m = gate_i * row_i[j] + key_i * value[j], gate_m * row_m[j] + key_m * value[j]
                    row_i[j], row_m[j] = new_i, new_m
                    out[j] += query_i * new_i + query_m * new_m
                for n in range(1, G):  # the group's other queries
                    read(queries[n, t % NEAR], row_i, row_m, o[b, t, h * G + n], i)


@written_out
def gather(x, b, begin, h, near):
    """One head's rows of x from token `begin` on, side by side. They lie heads apart: too far for a processor to fetch ahead."""
    for t in range(begin, min(begin + len(near), x.shape[1])):
        for i in range(x.shape[3]):
            near[t - begin, i] = x[b, t, h, i]


@written_out
def read(q, row_i, row_m, o, i):
    """o += q S, the part of two channels."""
    query_i, query_m = q[i], q[i + 1]
    for j in range(len(o)):
        o[j] += query_i * row_i[j] + query_m * row_m[j]


@written_out
def read_backward(q, dq, do, row_i, row_m, d_row_i, d_row_m, i):
    """What `read` gives back: dq = do Sᵀ, and to dS qᵀ do."""
    query_i, query_m = q[i], q[i + 1]
    dq_i, dq_m = q[i] * 0, q[i] * 0
    for j in range(len(do)):
        dq_i += row_i[j] * do[j]
        dq_m += row_m[j] * do[j]
    for j in range(len(do)):
        new_i, new_m = d_row_i[j] + query_i * do[j], d_row_m[j] + query_m * do[j]
        d_row_i[j], d_row_m[j] = new_i, new_m
    dq[i], dq[i + 1] = dq_i, dq_m


@compile_loop
def additive_backward(first, last, q, k, v, a, starts, do, dS_all, dq, dk, dv, dg, every):
    """From the end to the beginning; dS_all is the gradient of the last state, and becomes that of the first."""
    T, heads, K, V, G = q.shape[1], k.shape[2], k.shape[3], v.shape[3], q.shape[2] // k.shape[2]
    apart, states = min(1, a.shape[3] - 1), np.empty((every + 1, K, V), q.dtype)
    for u in range(first, last):
        b, h = u // heads, u % heads
        dS = dS_all[b, h]
        for block in range(starts.shape[2] - 1, -1, -1):
            begin, end = block * every, min(T, (block + 1) * every)
            states[0] = starts[b, h, block]
            for t in range(begin, end):
                before, after, gates, value = states[t - begin], states[t - begin + 1], a[b, t, h], v[b, t, h]
                for i in range(K):
                    gate, key, row, new = gates[i * apart], k[b, t, h, i], before[i], after[i]
                    for j in range(V):
                        new[j] = gate * row[j] + key * value[j]
            for t in range(end - 1, begin - 1, -1):
                before, after, gates = states[t - begin], states[t - begin + 1], a[b, t, h]
                for i in range(0, K, 2):
                    for n in range(h * G, (h + 1) * G):
                        read_backward(q[b, t, n], dq[b, t, n], do[b, t, n], after[i], after[i + 1], dS[i], dS[i + 1], i)
                value, d_value = v[b, t, h], dv[b, t, h]
                for i in range(K):
                    gate, key, row, d_row = gates[i * apart], k[b, t, h, i], before[i], dS[i]
                    d_key, d_gate = key * 0, key * 0
                    for j in range(V):
                        d_key += value[j] * d_row[j]
                        d_gate += row[j] * d_row[j]
                        d_value[j] += key * d_row[j]
                        d_row[j] *= gate
                    dk[b, t, h, i] = d_key
                    dg[b, t, h, i * apart] += gate * d_gate
