"""Right answers to chapter 03's tasks that are not the reference: two for each."""

import math

import torch
import torch.nn.functional as F

import liger_mini as lm
from liger_mini.structures import get_structure


def gated_step_by_the_package(q, k, v, log_gate, state):
    o, state = lm.gated_recurrence(*(x[:, None] for x in (q, k, v, log_gate)), initial_state=state)
    return o[:, 0], state


def gated_step_matrices(q, k, v, log_gate, state):
    state = torch.diag_embed(log_gate.exp()) @ state + k.unsqueeze(-1) @ v.unsqueeze(-2)
    return (q.unsqueeze(-2) @ state).squeeze(-2), state


def map_of_states(q, k, log_gate):
    """The map by the chapter's trick: values that are one-hot."""
    T, K = q.shape
    state, rows = torch.zeros(K, T, dtype=q.dtype), []
    for t in range(T):
        state = log_gate[t].exp()[:, None] * state + torch.outer(k[t], torch.eye(T, dtype=q.dtype)[t])
        rows.append(q[t] @ state)
    return torch.stack(rows)


def map_by_products(q, k, log_gate):
    T, alpha = len(q), log_gate.exp()
    rows = [[(q[t] * alpha[s + 1 : t + 1].prod(0) * k[s]).sum() for s in range(t + 1)] for t in range(T)]
    return torch.stack([F.pad(torch.stack(row), (0, T - len(row))) for row in rows])


def hgrn2_by_the_gate(q, k, v, state):
    alpha = torch.exp(F.logsigmoid(k))
    state = state * alpha.unsqueeze(-1) + torch.einsum("hk,hv->hkv", torch.sigmoid(-k), v)
    return torch.einsum("hk,hkv->hv", q, state), state


def hgrn2_as_average(q, k, v, state):
    state = torch.lerp(v.unsqueeze(-2).expand_as(state), state, k.sigmoid().unsqueeze(-1).expand_as(state))
    return (q.unsqueeze(-2) @ state).squeeze(-2), state


ANSWERS = {
    "03.1": (gated_step_by_the_package, gated_step_matrices),
    "03.2": (
        lambda k, temper: -F.softplus(-k.sum(-1) / k.shape[-1]) / temper,
        lambda k, temper: get_structure("gated_retention", temper).log_gate(k),
    ),
    "03.3": (map_of_states, map_by_products),
    "03.4": (hgrn2_by_the_gate, hgrn2_as_average),
    "03.5": (
        lambda strength, temper: math.exp((math.log(2) - math.log1p(math.exp(strength))) / temper),
        lambda strength, temper: float((torch.sigmoid(torch.tensor(-strength).double()) / 0.5) ** (1 / temper)),
    ),
}
