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
from transformers.cache_utils import Cache, StaticCache
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from liger_mini.structures import get_structure
from liger_mini.window import sliding_window_attention

IMPLEMENTATION = "liger_mini"  # the name registered with transformers


class LigerAttention(nn.Module):
    """Takes the place of a softmax attention module and keeps that module's projections.

    Attributes:
        branches: the weights (a, b) of the recurrence and of the window.
        own_window: the window of the softmax attention it takes the place of; None if that saw everything.
    """

    def __init__(
        self,
        attention: nn.Module,
        *,
        structure: str,
        window: int,
        mix: float,
        temper: float | None,
        own_window: int | None = None,
    ):
        super().__init__()
        self.config, self.layer_idx = attention.config, attention.layer_idx
        self.head_dim = attention.head_dim
        for name, projection in attention.named_children():
            setattr(self, name, projection)
        self.structure = get_structure(structure, temper)
        self.window, self.own_window = window, own_window
        self.branches = (mix, 1 - mix)

    def forward(
        self,
        hidden_states: Tensor,  # [B, T, D]
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        padding_mask: Tensor | None = None,  # [B, T] or [B, cache + T], True for tokens; see `keep_padding_mask`
        cu_seq_lens_q: Tensor | None = None,  # transformers' name for the boundaries of documents packed into one row
        **kwargs,
    ) -> tuple[Tensor, None]:
        q, k, v = self.projections(hidden_states)  # [B, heads, T, K]
        cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        a, b = self.branches
        o = a * self.recurrence(q, k, v, padding_mask, cu_seq_lens_q, cache) + b * self.windowed(
            *apply_rotary_pos_emb(q, k, *position_embeddings), v, padding_mask, cu_seq_lens_q, cache
        )
        return self.o_proj(o.flatten(-2)), None

    def projections(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as the softmax attention used them, before rotary embedding, [B, heads, T, K].

        A family that normalises queries and keys (Qwen3) goes on doing so: recurrence, gate and window all read the
        normalised key, the one whose products the model was trained with.
        """
        q, k, v = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "k_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def recurrence(self, q, k, v, mask: Tensor | None, cu_seqlens: Tensor | None, cache) -> Tensor:
        """The branch that remembers everything a little; [B, T, H, V]."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, T, heads, ·]
        states = None
        if cache is not None and cache.is_recurrent_states_initialized[0]:
            states = tuple(cache.recurrent_states[i] for i in range(self.structure.states))
            states = states[0] if self.structure.states == 1 else states
        mask = None if mask is None else mask[:, -q.shape[1] :]
        o, states = self.structure(q, k, v, states, mask=mask, cu_seqlens=cu_seqlens)
        if cache is not None:
            for i, state in enumerate(states if isinstance(states, tuple) else (states,)):
                cache.update_recurrent_state(state.detach(), state_idx=i)
        return o

    def windowed(self, q, k, v, mask: Tensor | None, cu_seqlens: Tensor | None, cache) -> Tensor:
        """The branch that sees the last W tokens exactly; [B, T, H, V]."""
        if cache is not None:
            k, v = cache.update(k, v)  # [B, heads, ≤ W - 1 + T, ·]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = None if mask is None else mask[:, -k.shape[1] :].bool()
        return sliding_window_attention(q, k, v, self.window, key_mask=mask, cu_seqlens=cu_seqlens)


def liger_layers(model: nn.Module) -> list[LigerAttention]:
    """Every Liger Attention of a model.

    Raises:
        ValueError: there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, LigerAttention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no Liger Attention: linearize it first")
    return layers


def keep_padding_mask(model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A forward pre-hook of the decoder: hand every layer the 2D padding mask itself, as `padding_mask`.

    The families make their masks in different ways (one T x T mask, one per layer type, one cut to the window);
    Liger Attention needs none of them, only to know which tokens are padding.

    Raises:
        ValueError: a mask that is not [B, T], or a cache that cannot serve this model.
    """
    mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
    if isinstance(mask, dict):  # generate made one mask for each layer type; what holds padding is the 2D one
        masks = [x for x in mask.values() if x is not None]
        mask = min(masks, key=lambda x: x.ndim) if masks else None
    if mask is not None and mask.ndim != 2:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; a linearized model takes [B, T]: 1 for a token, 0 for padding"
        )
    if isinstance(cache, StaticCache) and "full_attention" in model.config.layer_types:
        raise ValueError(
            "a model with softmax_every cannot decode with a StaticCache; use DynamicCache(config=model.config)"
        )
    if cache is not None and len(cache.layers) != model.config.num_hidden_layers:
        raise ValueError(
            f"the cache has {len(cache.layers)} layers, the model {model.config.num_hidden_layers}: a linearized model's "
            "cache is made from its config, DynamicCache(config=model.config)"
        )
    if kwargs.get("cu_seq_lens_q") is None and mask is None and cache is None:
        kwargs = {**kwargs, "cu_seq_lens_q": documents_in(kwargs.get("position_ids"))}
    types = dict.fromkeys(model.config.layer_types) if hasattr(model, "has_sliding_layers") else None
    return args, {**kwargs, "attention_mask": types, "padding_mask": mask}


def documents_in(position_ids: Tensor | None) -> Tensor | None:
    """cu_seqlens of a row whose positions start again, as transformers reads packed rows; None if they do not.

    Raises:
        ValueError: several rows, one of which starts again.
    """
    if position_ids is None or torch.compiler.is_compiling():
        return None
    starts = (position_ids[:, 1:] <= position_ids[:, :-1]).nonzero()
    if not len(starts):
        return None
    if len(position_ids) > 1:
        raise ValueError(
            f"position_ids start again inside one of {len(position_ids)} rows; documents are packed into a single row"
        )
    ends = starts.new_tensor([0, position_ids.shape[1]])
    return torch.cat([ends[:1], starts[:, 1] + 1, ends[1:]])


def no_mask(*args, **kwargs) -> None:
    """The mask function of our attention: transformers would build a T x T mask, or lose the padding without a word."""
    return None


def softmax_block(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: None,
    scaling: float,
    padding_mask: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Ordinary causal softmax attention for the blocks that a layer hybrid (`softmax_every`) keeps."""
    Tq, Tk = q.shape[2], k.shape[2]
    visible = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).tril(Tk - Tq)
    if cu_seq_lens_q is not None:
        document = torch.bucketize(torch.arange(Tk, device=q.device), cu_seq_lens_q, right=True)
        visible &= document[:, None] == document
    if padding_mask is not None:
        itself = torch.eye(Tq, Tk, dtype=torch.bool, device=q.device).roll(Tk - Tq, dims=1)
        visible = visible & padding_mask[:, None, None, :].bool() | itself  # a padded query sees itself: no NaN
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scaling, enable_gqa=True)
    return o.transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, softmax_block)
AttentionMaskInterface.register(IMPLEMENTATION, no_mask)
