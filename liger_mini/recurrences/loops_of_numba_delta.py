"""The loops of the delta rule that `compiled` runs; arrays, heads and pairs of channels are as in `loops_of_numba`."""

from __future__ import annotations

import numpy as np

from liger_mini.recurrences.loops_of_numba import compile_loop, read, read_backward, written_out


@compile_loop
def delta_forward(first, last, q, k, v, beta, a, state, starts, o, every):
    """S = α S, S = S + kᵀ β (v - k S), o = q S; beta [B, T, heads]."""
    T, heads, K, V, G = q.shape[1], k.shape[2], k.shape[3], v.shape[3], q.shape[2] // k.shape[2]
    missing = np.empty(V, q.dtype)
    for unit in range(first, last):
        b, h = unit // heads, unit % heads
        S = state[b, h]
        for t in range(T):
            if starts.shape[2] and t % every == 0:
                starts[b, h, t // every] = S
            decay(S, a[b, t, h], k[b, t, h], v[b, t, h], missing)
            o[b, t, h * G : (h + 1) * G] = 0
            for i in range(0, K, 2):
                row_i, row_m = S[i], S[i + 1]
                write(row_i, row_m, k[b, t, h], missing, beta[b, t, h], i)
                for n in range(h * G, (h + 1) * G):
                    read(q[b, t, n], row_i, row_m, o[b, t, n], i)


@written_out
def decay(S, gates, keys, values, missing):
    """S = α S in place, and what it does not say about this key, v - k S, into `missing`."""
    missing[:] = values
    apart = min(1, len(gates) - 1)
    for i in range(0, len(keys), 2):
        gate_i, gate_m = gates[i * apart], gates[(i + 1) * apart]
        row_i, row_m, key_i, key_m = S[i], S[i + 1], keys[i], keys[i + 1]
        for j in range(len(missing)):
            new_i, new_m = gate_i * row_i[j], gate_m * row_m[j]
            row_i[j], row_m[j] = new_i, new_m
            missing[j] -= key_i * new_i + key_m * new_m


@written_out
def write(row_i, row_m, keys, missing, beta, i):
    """S = S + kᵀ β missing, two channels of it."""
    key_i, key_m = beta * keys[i], beta * keys[i + 1]
    for j in range(len(missing)):
        new_i, new_m = row_i[j] + key_i * missing[j], row_m[j] + key_m * missing[j]
        row_i[j], row_m[j] = new_i, new_m


@compile_loop
def delta_backward(first, last, q, k, v, beta, a, starts, do, dS_all, dq, dk, dv, dbeta, dg, every):
    """As `additive_backward`; a token's state is kept decayed and before its correction, and what it was missing."""
    T, heads, K, V, G = q.shape[1], k.shape[2], k.shape[3], v.shape[3], q.shape[2] // k.shape[2]
    decayed, missing, S = np.empty((every, K, V), q.dtype), np.empty((every, V), q.dtype), np.empty((K, V), q.dtype)
    for unit in range(first, last):
        b, h = unit // heads, unit % heads
        dS = dS_all[b, h]
        for block in range(starts.shape[2] - 1, -1, -1):
            begin, end = block * every, min(T, (block + 1) * every)
            S[:] = starts[b, h, block]
            for t in range(begin, end):
                decay(S, a[b, t, h], k[b, t, h], v[b, t, h], missing[t - begin])
                decayed[t - begin] = S
                for i in range(0, K, 2):
                    write(S[i], S[i + 1], k[b, t, h], missing[t - begin], beta[b, t, h], i)
            for t in range(end - 1, begin - 1, -1):
                of_group = slice(h * G, (h + 1) * G)
                given = (q[b, t, of_group], do[b, t, of_group], k[b, t, h], beta[b, t, h], a[b, t, h])
                taken = (dq[b, t, of_group], dk[b, t, h], dv[b, t, h], dg[b, t, h])
                dbeta[b, t, h] = delta_token_backward(decayed[t - begin], missing[t - begin], dS, *given, *taken)


@compile_loop
def delta_token_backward(S, missing, dS, q, do, k, beta, gates, dq, dk, dv, dg):
    """One token; S is decayed and before the correction. dS goes from after the token to before it; returns dβ."""
    (K, V), apart = S.shape, min(1, len(gates) - 1)
    du = dv  # at the end β du is left in it
    for i in range(0, K, 2):
        row_i, row_m, d_row_i, d_row_m = S[i], S[i + 1], dS[i], dS[i + 1]
        for n in range(len(q)):
            read_backward(q[n], dq[n], do[n], row_i, row_m, d_row_i, d_row_m, i)
        key_i, key_m = k[i], k[i + 1]
        dk_i, dk_m = k[i] * 0, k[i] * 0
        for j in range(V):
            dk_i += d_row_i[j] * missing[j]
            dk_m += d_row_m[j] * missing[j]
            du[j] += key_i * d_row_i[j] + key_m * d_row_m[j]
        dk[i], dk[i + 1] = beta * dk_i, beta * dk_m
    for n in range(len(q)):  # what q reads of kᵀ β missing, which is not in S yet
        dq[n] += beta * (do[n] * missing).sum() * k
    d_beta = (du * missing).sum()
    dv *= beta
    for i in range(K):
        gate, row, d_row, d_key, d_gate = gates[i * apart], S[i], dS[i], k[i] * 0, k[i] * 0
        for j in range(V):
            d_key += dv[j] * row[j]
            d_row[j] -= k[i] * dv[j]
            d_gate += d_row[j] * row[j]
            d_row[j] *= gate
        dk[i] -= d_key
        dg[i * apart] += d_gate
    return d_beta
