"""Right answers to chapter 06's tasks that are not the reference: two for each."""

import math

import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import liger_mini as lm


def mask_by_triangles(T, window):
    return torch.ones(T, T).tril().triu(1 - window).bool()


def mask_by_loops(T, window):
    return torch.tensor([[max(0, t - window + 1) <= s <= t for s in range(T)] for t in range(T)])


def mask_by_difference(T, window):
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    return causal ^ causal.tril(-window)


def sinks_by_assignment(T, window, sinks):
    mask = mask_by_triangles(T, window)
    for t in range(T):
        mask[t, : min(sinks, t + 1)] = True
    return mask


def sinks_by_columns(T, window, sinks):
    causal = torch.tril(torch.ones((T, T), dtype=torch.bool))
    columns = F.pad(torch.ones(T, sinks, dtype=torch.bool), (0, T - sinks))
    return causal & (columns | ~causal.tril(-window))


def rotate_complex(x, positions, theta):
    pairs = torch.complex(*x.double().chunk(2, dim=-1))
    angle = torch.outer(positions.double(), theta ** -torch.linspace(0, 1, pairs.shape[1] + 1)[:-1].double())
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1).float()


def rotate_as_transformers(x, positions, theta):
    inverse = 1.0 / (theta ** (torch.arange(0, x.shape[-1], 2).float() / x.shape[-1]))
    angle = torch.outer(positions.float(), inverse).repeat(1, 2)[None]
    return apply_rotary_pos_emb(x[None, None], x[None, None], angle.cos(), angle.sin())[0][0, 0]


def ring_masked(q, k, v, keys, values, t):
    W = keys.shape[0]
    slot = torch.arange(W) == t % W
    keys, values = torch.where(slot[:, None], k, keys), torch.where(slot[:, None], v, values)
    scores = torch.einsum("k,wk->w", q, keys) / math.sqrt(q.shape[0])
    scores = scores.masked_fill(torch.arange(W) > t, float("-inf"))
    return torch.softmax(scores, dim=0) @ values, keys, values


def ring_by_the_package(q, k, v, keys, values, t):
    W, slot = len(keys), torch.tensor([t % len(keys)])
    keys, values = keys.index_copy(0, slot, k[None]), values.index_copy(0, slot, v[None])
    n = min(t + 1, W)
    o = lm.sliding_window_attention(q[None, None, None], keys[None, :n, None], values[None, :n, None], W)
    return o[0, 0, 0], keys, values


def window_by_change(attend, T):
    """The first value changes; outputs move as long as a query sees it."""
    torch.manual_seed(0)
    q, k, v = torch.randn(T, 8), torch.randn(T, 8), torch.randn(T, 3)
    changed = v.clone()
    changed[0] += 100.0
    return int((attend(q, k, v) != attend(q, k, changed)).any(-1).sum())


def window_by_weight(attend, T):
    """Equal weights are 1 / W."""
    v = torch.zeros(T, 2)
    v[-1] = 1.0
    return round(1 / attend(torch.ones(T, 3), torch.ones(T, 3), v)[-1, 0].item())


def positions_from_lengths(mask):
    T = mask.shape[1]
    return torch.clamp(torch.arange(T)[None] - (T - mask.sum(1, keepdim=True)), min=0)


def positions_by_loops(mask):
    rows = []
    for row in mask.tolist():
        rows.append([sum(row[:t]) if seen else 0 for t, seen in enumerate(row)])
    return torch.tensor(rows)


ANSWERS = {
    "06.1": (mask_by_triangles, mask_by_loops, mask_by_difference),
    "06.2": (sinks_by_assignment, sinks_by_columns),
    "06.3": (rotate_complex, rotate_as_transformers),
    "06.4": (ring_masked, ring_by_the_package),
    "06.5": (window_by_change, window_by_weight),
    "06.6": (positions_from_lengths, positions_by_loops),
}
