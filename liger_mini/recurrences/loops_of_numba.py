"""The loops that `compiled` runs, in the part of Python that numba compiles. Importing this needs numba.

A unit is a row and a key head; u counts them. Arrays are [B, T, heads, ·] and are written in place. G query heads read the
state of one key head. The loop over v is always the innermost: its numbers lie side by side, and the processor takes 8 or 16 at
a time.
"""

from __future__ import annotations

import numba
import numpy as np

# sums may be reordered and a product and a sum fused, which a vector processor needs; NaN and infinity stay what they are
compile_loop = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


@compile_loop
def additive_forward(first, last, q, k, v, g, state, starts, o, every):
    """S = α S + kᵀ v, o = q S; g [B, T, heads, K or 1]. Keeps the state before every so many tokens, where asked."""
    T, heads, K, V, G = q.shape[1], k.shape[2], k.shape[3], v.shape[3], q.shape[2] // k.shape[2]
    per_channel = g.shape[3] > 1
    for u in range(first, last):
        b, h = u // heads, u % heads
        S = state[b, h]
        for t in range(T):
            if starts.shape[2] and t % every == 0:
                starts[b, h, t // every] = S
            o[b, t, h * G : (h + 1) * G] = 0
            for i in range(K):
                a, key = np.exp(g[b, t, h, i if per_channel else 0]), k[b, t, h, i]
                query, row, value, out = q[b, t, h * G, i], S[i], v[b, t, h], o[b, t, h * G]
                for j in range(V):
                    new = a * row[j] + key * value[j]
                    row[j] = new
                    out[j] += query * new
                for n in range(h * G + 1, (h + 1) * G):  # the group's other queries
                    query, out = q[b, t, n, i], o[b, t, n]
                    for j in range(V):
                        out[j] += query * row[j]


@compile_loop
def additive_backward(first, last, q, k, v, g, starts, do, dS_all, dq, dk, dv, dg, every):
    """From the end to the beginning; dS_all is the gradient of the last state, and becomes that of the first."""
    T, heads, K, V, G = q.shape[1], k.shape[2], k.shape[3], v.shape[3], q.shape[2] // k.shape[2]
    per_channel = g.shape[3] > 1
    states = np.empty((every + 1, K, V), q.dtype)
    for u in range(first, last):
        b, h = u // heads, u % heads
        dS = dS_all[b, h]
        for block in range(starts.shape[2] - 1, -1, -1):
            begin, end = block * every, min(T, (block + 1) * every)
            states[0] = starts[b, h, block]
            for t in range(begin, end):
                before, after, value = states[t - begin], states[t - begin + 1], v[b, t, h]
                for i in range(K):
                    a, key = np.exp(g[b, t, h, i if per_channel else 0]), k[b, t, h, i]
                    for j in range(V):
                        after[i, j] = a * before[i, j] + key * value[j]
            for t in range(end - 1, begin - 1, -1):
                before, after, value, d_value = states[t - begin], states[t - begin + 1], v[b, t, h], dv[b, t, h]
                for i in range(K):
                    row, d_row = after[i], dS[i]
                    for n in range(h * G, (h + 1) * G):
                        query, d_out, d_query = q[b, t, n, i], do[b, t, n], row[0] * 0
                        for j in range(V):
                            d_query += row[j] * d_out[j]
                            d_row[j] += query * d_out[j]
                        dq[b, t, n, i] = d_query
                    a, key, start = np.exp(g[b, t, h, i if per_channel else 0]), k[b, t, h, i], before[i]
                    d_key, d_gate = key * 0, key * 0
                    for j in range(V):
                        d_key += value[j] * d_row[j]
                        d_gate += start[j] * d_row[j]
                        d_value[j] += key * d_row[j]
                        d_row[j] *= a
                    dk[b, t, h, i] = d_key
                    dg[b, t, h, i if per_channel else 0] += a * d_gate


@compile_loop
def delta_forward(first, last, q, k, v, beta, g, state, starts, o, every):
    """S = α S, u = β (v - k S), S = S + kᵀ u, o = q S; beta [B, T, heads]."""
    T, heads, K, V, G = q.shape[1], k.shape[2], k.shape[3], v.shape[3], q.shape[2] // k.shape[2]
    correction = np.empty(V, q.dtype)
    for unit in range(first, last):
        b, h = unit // heads, unit % heads
        S = state[b, h]
        for t in range(T):
            if starts.shape[2] and t % every == 0:
                starts[b, h, t // every] = S
            correct(S, k[b, t, h], v[b, t, h], beta[b, t, h], g[b, t, h], correction)
            o[b, t, h * G : (h + 1) * G] = 0
            for i in range(K):
                row, key = S[i], k[b, t, h, i]
                for j in range(V):
                    row[j] += key * correction[j]
                for n in range(h * G, (h + 1) * G):
                    query, out = q[b, t, n, i], o[b, t, n]
                    for j in range(V):
                        out[j] += query * row[j]


@compile_loop
def correct(S, k, v, beta, g, correction):
    """Decays S in place and puts what is to be written, u = β (v - k S), into `correction`."""
    for j in range(len(v)):
        correction[j] = v[j]
    for i in range(len(k)):
        a, row, key = np.exp(g[i if len(g) > 1 else 0]), S[i], k[i]
        for j in range(len(v)):
            row[j] *= a
            correction[j] -= key * row[j]
    for j in range(len(v)):
        correction[j] *= beta


@compile_loop
def delta_backward(first, last, q, k, v, beta, g, starts, do, dS_all, dq, dk, dv, dbeta, dg, every):
    """As `additive_backward`; a token's state is kept decayed and before its correction."""
    T, heads, K, V, G = q.shape[1], k.shape[2], k.shape[3], v.shape[3], q.shape[2] // k.shape[2]
    decayed, written, S = np.empty((every, K, V), q.dtype), np.empty((every, V), q.dtype), np.empty((K, V), q.dtype)
    for unit in range(first, last):
        b, h = unit // heads, unit % heads
        dS = dS_all[b, h]
        for block in range(starts.shape[2] - 1, -1, -1):
            begin, end = block * every, min(T, (block + 1) * every)
            S[:] = starts[b, h, block]
            for t in range(begin, end):
                u = written[t - begin]
                correct(S, k[b, t, h], v[b, t, h], beta[b, t, h], g[b, t, h], u)
                decayed[t - begin] = S
                for i in range(K):
                    row, key = S[i], k[b, t, h, i]
                    for j in range(V):
                        row[j] += key * u[j]
            for t in range(end - 1, begin - 1, -1):
                heads_of = slice(h * G, (h + 1) * G)
                given = (q[b, t, heads_of], do[b, t, heads_of], k[b, t, h], v[b, t, h], beta[b, t, h], g[b, t, h])
                taken = (dq[b, t, heads_of], dk[b, t, h], dv[b, t, h], dg[b, t, h])
                dbeta[b, t, h] = delta_token_backward(decayed[t - begin], written[t - begin], dS, *given, *taken)


@compile_loop
def delta_token_backward(S, u, dS, q, do, k, v, beta, g, dq, dk, dv, dg):
    """One token; S is decayed and before the correction u. dS goes from after the token to before it; returns dβ."""
    K, V = S.shape
    du = dv  # what is left in it at the end is β du
    for i in range(K):
        row, d_row, d_key = S[i], dS[i], k[i] * 0
        for n in range(len(q)):
            d_query = k[i] * 0
            for j in range(V):
                d_query += (row[j] + k[i] * u[j]) * do[n, j]
                d_row[j] += q[n, i] * do[n, j]
            dq[n, i] = d_query
        for j in range(V):
            d_key += d_row[j] * u[j]
            du[j] += k[i] * d_row[j]
        dk[i] = d_key
    d_beta = beta * 0
    for j in range(V):
        said = v[j]
        for i in range(K):
            said -= k[i] * S[i, j]
        d_beta += du[j] * said
        dv[j] = beta * du[j]
    for i in range(K):
        a, row, d_row, d_key, d_gate = np.exp(g[i if len(g) > 1 else 0]), S[i], dS[i], k[i] * 0, k[i] * 0
        for j in range(V):
            d_key += dv[j] * row[j]
            d_row[j] -= k[i] * dv[j]
            d_gate += d_row[j] * row[j]
            d_row[j] *= a
        dk[i] -= d_key
        dg[i if len(g) > 1 else 0] += d_gate
    return d_beta
