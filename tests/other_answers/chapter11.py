"""Right answers to chapter 11's tasks that are not the reference: two for each."""

import torch

import liger_mini as lm
from liger_mini.structures import two_sided_features


def delta_step_by_the_package(q, k, v, beta, log_gate, state):
    o, state = lm.delta_recurrence(*(x[:, None] for x in (q, k, v, beta, log_gate)), initial_state=state)
    return o[:, 0], state


def delta_step_loops(q, k, v, beta, log_gate, state):
    """As a product with I - β kᵀk, head by head, in float64."""
    o, new = torch.zeros(v.shape), state.clone()
    for b in range(len(q)):
        for h in range(q.shape[1]):
            key = k[b, h].double()
            forget = torch.eye(len(key), dtype=torch.float64) - beta[b, h] * torch.outer(key, key)
            S = forget @ (log_gate[b, h].double().exp() * state[b, h].double())
            new[b, h] = S + beta[b, h] * torch.outer(key, v[b, h].double())
            o[b, h] = q[b, h] @ new[b, h]
    return o, new


def store_by_the_package(k, v, rounds):
    k, v = (x.repeat(rounds, 1)[None, :, None] for x in (k, v))
    _, state = lm.delta_recurrence(k, k, v, torch.ones(k.shape[:3]), None, backend="naive")
    return state[0, 0]


def store_in_place(k, v, rounds):
    state = torch.zeros(k.shape[1], v.shape[1], dtype=torch.float64)
    for step in range(rounds * len(k)):
        key, value = k[step % len(k)].double(), v[step % len(k)].double()
        state -= torch.einsum("k,v->kv", key, torch.einsum("k,kv->v", key, state))
        state += torch.einsum("k,v->kv", key, value)
    return state


def features_by_hand(x):
    sides = []
    for y in (x, -x):
        e = torch.exp(y - y.max(dim=-1, keepdim=True).values)
        sides.append(e / e.sum(dim=-1, keepdim=True))
    both = torch.cat(sides, dim=-1)
    return both * both.square().sum(-1, keepdim=True).rsqrt()


def corrections_loop(k, v, beta, state):
    u = torch.zeros(v.shape)
    for i in range(len(k)):
        u[i] = beta[i] * (v[i] - k[i] @ state)
        state = state + torch.outer(k[i], u[i].double())
    return u


def corrections_inverse(k, v, beta, state):
    A = torch.tril(beta.unsqueeze(1) * torch.einsum("ik,jk->ij", k, k), diagonal=-1)
    inverse = torch.linalg.inv(torch.eye(len(k), dtype=k.dtype) + A)
    return inverse @ (beta.unsqueeze(1) * v) - inverse @ (beta.unsqueeze(1) * k) @ state


def prepare_loop(k, v, beta, log_gate):
    """Corrections from an empty state; and of nothing, from the states that have one 1."""

    def corrected(values, S):
        rows = []
        for i in range(len(k)):
            S = log_gate[i].exp() * S
            rows.append(beta[i] * (values[i] - k[i] @ S))
            S = S + torch.outer(k[i], rows[-1])
        return torch.stack(rows)

    K, V = k.shape[1], v.shape[1]
    U = corrected(v, torch.zeros(K, V, dtype=k.dtype))
    return U, -corrected(torch.zeros(len(k), K, dtype=k.dtype), torch.eye(K, dtype=k.dtype))


def prepare_substitution(k, v, beta, log_gate):
    U, W = v.clone(), k.clone()
    for i in range(len(k)):
        U[i], W[i] = beta[i] * v[i], beta[i] * log_gate[: i + 1].sum().exp() * k[i]
        for j in range(i):
            a = beta[i] * log_gate[j + 1 : i + 1].sum().exp() * k[i].dot(k[j])
            U[i], W[i] = U[i] - a * U[j], W[i] - a * W[j]
    return U, W


def look_back_loops(weights, kv_heads):
    H, T, _ = weights.shape
    total = [0.0] * kv_heads
    for h in range(H):
        for i in range(T):
            total[h // (H // kv_heads)] += float(weights[h, i] @ (i - torch.arange(T).float()))
    return torch.tensor(total) / (T * H / kv_heads)


def look_back_from_positions(weights, kv_heads):
    """The mean position of queries minus the mean position of what they look at."""
    T = weights.shape[-1]
    looked = torch.einsum("hij,j->h", weights.double(), torch.arange(T).double()) / T
    return ((T - 1) / 2 - looked).unflatten(0, (kv_heads, -1)).mean(-1)


ANSWERS = {
    "11.1": (delta_step_by_the_package, delta_step_loops),
    "11.2": (store_by_the_package, store_in_place),
    "11.3": (two_sided_features, features_by_hand),
    "11.4": (corrections_loop, corrections_inverse),
    "11.5": (prepare_loop, prepare_substitution),
    "11.6": (look_back_loops, look_back_from_positions),
}
