"""Liger Attention (chapter 06): a · recurrence + b · window, from a layer's own projections.

    S_t = α_t ⊙ S_{t-1} + φ(k_t)ᵀ v_t       α_t read off k_t        (before rotary embedding)
    o_t = a · φ(q_t) S_t  +  b · softmax attention over the last W keys (after rotary embedding)

Costs O(T (W K + K²)) time a head; decoding keeps S (K x V numbers a head) and W - 1 keys and values,
whatever the context, of every key/value head. Both live in transformers' own cache layer for `layer_types`
"hybrid_sliding", which holds as many recurrent states as `number_of_conv_states` in the config says.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from liger_mini.structures import get_structure
from liger_mini.window import sliding_window_attention

IMPLEMENTATION = "liger_mini"  # the name registered with transformers; see `padding_mask`


class LigerAttention(nn.Module):
    """Takes the place of a softmax attention module and keeps that module's projections.

    Attributes:
        branches: the weights (a, b) of the recurrence and of the window.
    """

    def __init__(self, attention: nn.Module, *, structure: str, window: int, mix: float, temper: float | None):
        super().__init__()
        self.config, self.layer_idx = attention.config, attention.layer_idx
        self.head_dim = attention.head_dim
        for name, projection in attention.named_children():
            setattr(self, name, projection)
        self.structure = get_structure(structure, temper)
        self.window = window
        self.branches = (mix, 1 - mix)

    def forward(
        self,
        hidden_states: Tensor,  # [B, T, D]
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,  # [B, T] or [B, cache + T], True for tokens; see `padding_mask`
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[Tensor, None]:
        q, k, v = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, heads, T, K]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        a, b = self.branches
        o = a * self.recurrence(q, k, v, attention_mask, cache) + b * self.windowed(
            *apply_rotary_pos_emb(q, k, *position_embeddings), v, attention_mask, cache
        )
        return self.o_proj(o.flatten(-2)), None

    def recurrence(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cache) -> Tensor:
        """The branch that remembers everything a little; [B, T, H, V]."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, T, heads, ·]
        states = None
        if cache is not None and cache.is_recurrent_states_initialized[0]:
            states = tuple(cache.recurrent_states[i] for i in range(self.structure.states))
            states = states[0] if self.structure.states == 1 else states
        mask = None if mask is None else mask[:, -q.shape[1] :]
        o, states = self.structure(q, k, v, states, mask=mask)
        if cache is not None:
            for i, state in enumerate(states if isinstance(states, tuple) else (states,)):
                cache.update_recurrent_state(state.detach(), state_idx=i)
        return o

    def windowed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cache) -> Tensor:
        """The branch that sees the last W tokens exactly; [B, T, H, V]."""
        if cache is not None:
            k, v = cache.update(k, v)  # [B, heads, ≤ W - 1 + T, ·]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = None if mask is None else mask[:, -k.shape[1] :].bool()
        return sliding_window_attention(q, k, v, self.window, key_mask=mask)


def padding_mask(
    batch_size: int, q_length: int, kv_length: int, *args, attention_mask: Tensor | None = None, **kwargs
) -> Tensor | None:
    """The mask function of our attention: hand the 2D padding mask on, never build a T x T one.

    transformers calls it once a forward pass. A name registered without a mask function would lose
    the padding without a word.
    """
    return None if attention_mask is None else attention_mask[:, -kv_length:].bool()


def softmax_block(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs
) -> tuple[Tensor, None]:
    """Ordinary causal softmax attention for the blocks that a layer hybrid (`softmax_every`) keeps."""
    Tq, Tk = q.shape[2], k.shape[2]
    visible = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).tril(Tk - Tq)
    if attention_mask is not None:
        itself = torch.eye(Tq, Tk, dtype=torch.bool, device=q.device).roll(Tk - Tq, dims=1)
        visible = visible & attention_mask[:, None, None, :] | itself  # a padded query sees itself: no NaN
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scaling, enable_gqa=True)
    return o.transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, softmax_block)
AttentionMaskInterface.register(IMPLEMENTATION, padding_mask)
