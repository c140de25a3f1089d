"""The two loops that every recurrence shares: token by token, and chunk by chunk.

Keys and values may come in groups: H query heads over H_kv key/value heads (H_kv divides H; query head h reads the
state of key head h // (H / H_kv)). The state belongs to the keys, so it has H_kv heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32  # C: tokens that are handled by matrix products between two states
SPAN = 8  # chunks worked on side by side: as many as the processor's cache holds


def over_tokens(step: Callable, inputs: Sequence[Tensor], *states: Tensor) -> tuple[Tensor, ...]:
    """The recurrence as it is written: a loop over time. inputs [B, T, ...]; step(*tokens, *states) -> (o, *states)."""
    outputs = []
    for t in range(inputs[0].shape[1]):
        o, *states = step(*(x[:, t] for x in inputs), *states)
        outputs.append(o)
    return torch.stack(outputs, dim=1), *states


def over_chunks(span: Callable, inputs: Sequence[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    """A loop over spans of N chunks of C tokens; span(*chunks, state) -> (o, state).

    inputs: [B, T, heads, ·], the first with H heads, the last with H_kv. Chunks are [B, H_kv, G, N, C, ·] with G query
    heads in a group, and G = 1 for what has H_kv heads: a group broadcasts. State [B, H_kv, ·, ·].
    """
    T, kv_heads = inputs[0].shape[1], inputs[-1].shape[2]
    C = min(CHUNK, 1 << (T - 1).bit_length())  # a short sequence is one block, a power of two that halves evenly
    outputs = []
    for start in range(0, T, SPAN * C):
        o, state = span(*(_as_chunks(x[:, start : start + SPAN * C], kv_heads, C) for x in inputs), state)
        outputs.append(o.flatten(3, 4))  # [B, H_kv, G, N C, ·]
    return torch.cat(outputs, dim=3).flatten(1, 2)[:, :, :T].transpose(1, 2), state


def carry(k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk, [B, H_kv, 1, N, K, V], and after the last: the only sequential part.

    Args:
        k, v: what the chunks write, decayed until the chunk's end, [B, H_kv, 1, N, C, ·].
        decay: of a whole chunk, [B, H_kv, 1, N, K or 1, V or 1].
    """
    writes, decay, before = (k.mT @ v).squeeze(2), decay.squeeze(2), []
    for n in range(k.shape[3]):
        before.append(state)
        state = decay[:, :, n] * state + writes[:, :, n]
    return torch.stack(before, dim=2).unsqueeze(2), state


def read(q: Tensor, state: Tensor) -> Tensor:
    """o = q S for one token: q [B, H, K], state [B, H_kv, K, V] -> [B, H, V]."""
    return (q.unflatten(1, (state.shape[1], -1)) @ state).flatten(1, 2)


def _as_chunks(x: Tensor, kv_heads: int, C: int) -> Tensor:
    """[B, t, heads, ·] -> [B, H_kv, heads / H_kv, N, C, ·]. A padded token reads, writes and forgets nothing."""
    x = x.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
    return F.pad(x, (0, 0, 0, -x.shape[3] % C)).contiguous().unflatten(3, (-1, C))
