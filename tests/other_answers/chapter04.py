"""Right answers to chapter 04's tasks that are not the reference: two for each, and more where forms differ in rounding."""

import math

import torch
import torch.nn.functional as F

import liger_mini as lm


def within_loop(q, k, v, log_gate):
    """The recurrence itself, from an empty state."""
    state, rows = torch.zeros(k.shape[1], v.shape[1]), []
    for t in range(len(q)):
        state = log_gate[t].exp() * state + torch.outer(k[t], v[t])
        rows.append(q[t] @ state)
    return torch.stack(rows)


def within_differences(q, k, v, log_gate):
    b = log_gate.cumsum(0)
    later = torch.ones(len(b), len(b), dtype=torch.bool).triu(1)
    D = (b[:, None] - b[None, :]).masked_fill(later, -torch.inf).exp()
    return torch.einsum("ik,jk,ij,jv->iv", q, k, D, v)


def within_clamped_in_float64(q, k, v, log_gate):
    b = log_gate.double().cumsum(0)
    return ((q @ k.T).double() * (b[:, None] - b).clamp(max=0).exp()).tril() @ v.double()


def within_products(q, k, v, log_gate):
    """Row by row: one more gate for every earlier token."""
    o, decay, alpha = torch.zeros_like(v), torch.zeros(len(q)), torch.exp(log_gate)
    for i in range(len(q)):
        decay = decay * alpha[i]
        decay[i] = 1.0
        o[i] = (decay * (k @ q[i])) @ v
    return o


def within_mapped(q, k, v, log_gate):
    """Each row by itself, through vmap."""
    b, tokens = log_gate.cumsum(0), torch.arange(len(q))

    def row(q_i, b_i, i):
        exponents = torch.where(tokens <= i, b_i - b, torch.full_like(b, -torch.inf))
        return (k @ q_i * exponents.exp()) @ v

    return torch.vmap(row)(q, b, tokens)


def within_powers(q, k, v, log_gate):
    """A power of e, and rows and columns of an einsum."""
    b = log_gate.double().cumsum(0)
    return torch.einsum(
        "ik,jk,ij,jv->iv", q.double(), k.double(), (math.e ** (b[:, None] - b).clamp(max=0)).tril(), v.double()
    )


def next_loop(state, k, v, log_gate):
    for t in range(len(k)):
        state = log_gate[t].exp()[:, None] * state + torch.outer(k[t], v[t])
    return state


def next_differences(state, k, v, log_gate):
    b = torch.cumsum(log_gate, dim=0)
    return torch.einsum("k,kv->kv", b[-1].exp(), state) + torch.einsum("ck,cv->kv", (b[-1] - b).exp() * k, v)


def next_products(state, k, v, log_gate):
    alpha = log_gate.exp()
    shifted = torch.cat([alpha[1:], torch.ones_like(alpha[:1])])
    until = shifted.flip(0).cumprod(0).flip(0)
    return alpha.prod(0).unsqueeze(-1) * state + (k * until).mT @ v


def breaking_by_search(C, anchor):
    """The exponents themselves, for gates of one nat."""
    b = -torch.arange(C + 1.0)
    exponents = torch.cat([b[1:] - b[anchor], b[anchor] - b[1:]])
    return 88.7 / exponents.max()


def breaking_by_cases(C, anchor):
    if anchor == 0:
        return 128 * math.log(2) / C
    return min(128 * math.log(2) / n for n in (anchor - 1, C - anchor) if n > 0)


def chunks_by_tokens(q, k, v, log_gate, state, C):
    rows = []
    for t in range(len(q)):
        state = log_gate[t].exp()[:, None] * state + torch.outer(k[t], v[t])
        rows.append(q[t] @ state)
    return torch.stack(rows), state


def chunks_by_the_package(q, k, v, log_gate, state, C):
    o, state = lm.gated_recurrence(*(x[None, :, None] for x in (q, k, v, log_gate)), initial_state=state[None, None])
    return o[0, :, 0], state[0, 0]


def chunks_padded(q, k, v, log_gate, state, C):
    """All chunks of one length, and the textbook form inside."""
    T = len(q)
    q, k, v, g = (F.pad(x, (0, 0, 0, -T % C)).unflatten(0, (-1, C)) for x in (q, k, v, log_gate))
    b, o = g.cumsum(1), torch.zeros_like(v)
    for n in range(len(q)):
        A = ((q[n] * b[n].exp()) @ (k[n] * (-b[n]).exp()).T).tril()
        o[n] = (q[n] * b[n].exp()) @ state + A @ v[n]
        state = b[n, -1].exp()[:, None] * state + (k[n] * (b[n, -1:] - b[n]).exp()).T @ v[n]
    return o.flatten(0, 1)[:T], state


def triangle_halved(q, k, log_gate):
    """By halving, as the package does it, for any C."""
    C = len(q)
    if C == 1:
        return (q * k).sum(-1, keepdim=True)
    m = C // 2
    since = log_gate[m:].exp().cumprod(0)
    until = torch.cat([log_gate[1:m], torch.zeros_like(log_gate[:1])]).exp().flip(0).cumprod(0).flip(0)
    upper, lower = triangle_halved(q[:m], k[:m], log_gate[:m]), triangle_halved(q[m:], k[m:], log_gate[m:])
    rectangle = (q[m:] * since) @ (k[:m] * until).T
    return torch.cat([F.pad(upper, (0, C - m)), torch.cat([rectangle, lower], dim=1)])


def triangle_in_float64(q, k, log_gate):
    b = log_gate.double().cumsum(0)
    decay = (b[:, None] - b).clamp(max=0).exp().float()
    return (q[:, None] * decay * k).sum(-1).tril()


def triangle_row_by_row(q, k, log_gate):
    alpha, keys, A = log_gate.exp(), torch.zeros_like(k), torch.zeros(len(q), len(q))
    for i in range(len(q)):
        keys = alpha[i] * keys
        keys[i] = k[i]
        A[i] = keys @ q[i]
    return A


ANSWERS = {
    "04.1": (
        within_loop,
        within_differences,
        within_clamped_in_float64,
        within_products,
        within_mapped,
        within_powers,
    ),
    "04.2": (next_loop, next_differences, next_products),
    "04.3": (breaking_by_search, breaking_by_cases),
    "04.4": (chunks_by_tokens, chunks_by_the_package, chunks_padded),
    "04.5": (triangle_halved, triangle_in_float64, triangle_row_by_row),
}
