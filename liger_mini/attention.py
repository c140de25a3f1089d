"""Liger Attention (chapter 06): a · recurrence + b · window, from a layer's own projections.

    S_t = α_t ⊙ S_{t-1} + φ(k_t)ᵀ v_t       α_t read off k_t        (before rotary embedding)
    o_t = a · φ(q_t) S_t  +  b · softmax attention over the last W keys (after rotary embedding)

With sinks the window branch sees the first few tokens of the document as well, at their own rotary positions.

Costs O(T (W K + K²)) time per head; decoding keeps S (K x V numbers per head) and W - 1 keys and values, and the sinks',
whatever the context, of every key/value head: `LigerCacheLayer`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from liger_mini.recurrences.dispatch import of_model
from liger_mini.recurrences.documents import check_documents, document_numbers
from liger_mini.structures import get_structure
from liger_mini.support.cache import LigerCacheLayer, fit
from liger_mini.window import sliding_window_attention

if TYPE_CHECKING:
    from liger_mini.convert import Settings
    from liger_mini.structures import Structure

IMPLEMENTATION = "liger_mini"  # the name registered with transformers
# of every family's decoder, in this order
PARAMETERS = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache")


class LigerAttention(nn.Module):
    """Takes the place of a softmax attention module and keeps that module's projections.

    Attributes:
        branches: the weights (a, b) of the recurrence and of the window.
        window, sinks: how many of the last tokens the window branch sees, and how many of the first.
        backend: the form in which the recurrence runs, unless the environment names one.
        own_window: the window of the softmax attention it takes the place of; None if that saw everything.
    """

    def __init__(self, attention: nn.Module, settings: Settings, own_window: int | None = None):
        super().__init__()
        self.config, self.layer_idx = attention.config, attention.layer_idx
        self.head_dim = attention.head_dim
        for name, projection in attention.named_children():
            setattr(self, name, projection)
        self.structure = get_structure(settings.structure, settings.temper_of(self.layer_idx))
        self.window, self.sinks, self.own_window = settings.window, settings.sinks, own_window
        self.branches, self.backend = settings.branches, settings.backend

    def forward(
        self,
        hidden_states: Tensor,  # [B, T, D]
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        padding_mask: Tensor | None = None,  # [B, T], True for tokens
        documents: Tensor | None = None,  # [B, T], which of the documents packed into its row a token belongs to
        **kwargs,
    ) -> tuple[Tensor, None]:
        """What the layer hands on, [B, T, D]; and None, where softmax attention may return its weights."""
        q, k, v = self.projections(hidden_states)  # [B, heads, T, K]
        cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        o = self.mixed(q, k, v, position_embeddings, padding_mask, documents, cache)
        return self.o_proj(o.flatten(-2)), None

    def mixed(self, q, k, v, position_embeddings, mask, documents, cache: LigerCacheLayer | None) -> Tensor:
        """a · recurrence + b · window, [B, T, H, V]. A branch of weight 0 runs for what its cache keeps, or not at all."""
        a, b = self.branches
        parts = []
        if a or cache is not None:
            parts.append(a * self.recurrence(q, k, v, mask, documents, cache))
        if b or cache is not None or not parts:
            parts.append(
                b * self.windowed(*apply_rotary_pos_emb(q, k, *position_embeddings), v, mask, documents, cache)
            )
        return functools.reduce(torch.add, parts)

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

    def recurrence(self, q, k, v, mask: Tensor | None, documents: Tensor | None, cache: LigerCacheLayer | None):
        """The branch that remembers everything a little; [B, T, H, V]."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, T, heads, ·]
        structure, states = self.structure, None if cache is None else cache.states()
        if k.shape[2] < self.config.num_key_value_heads:  # tensor parallelism: the other heads are elsewhere
            structure = structure.of_heads(self.first_head(), k.shape[2], self.config.num_key_value_heads)
        backend = of_model(self.backend, q.shape[1])
        o, states = structure.run(q, k, v, states, mask=mask, documents=documents, backend=backend)
        if cache is not None:
            cache.update_states(states)
        return o

    def first_head(self) -> int:
        """Which key head of the layer is this process's first, where tensor parallelism has spread them."""
        weight = self.k_proj.weight
        (dim,) = (i for i, placement in enumerate(weight.placements) if placement.is_shard(0))
        return weight.device_mesh.get_local_rank(dim) * (weight.to_local().shape[0] // self.head_dim)

    def windowed(self, q, k, v, mask: Tensor | None, documents: Tensor | None, cache: LigerCacheLayer | None):
        """The branch that sees the last W tokens exactly, and the sinks; [B, T, H, V]."""
        if cache is not None:
            k, v, mask = cache.update(k, v, mask, documents)  # [B, heads, sinks + ≤ W - 1 + T, ·]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return sliding_window_attention(q, k, v, self.window, sinks=self.sinks, key_mask=mask, documents=documents)

    @property
    def cached_for(self) -> tuple[Structure, int, int]:
        """What a cache layer was filled with, and another model would read wrongly."""
        return self.structure, self.window, self.sinks


def liger_layers(model: nn.Module) -> list[LigerAttention]:
    """Every Liger Attention of a model.

    Raises:
        ValueError: there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, LigerAttention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no Liger Attention: linearize it first")
    return layers


def prepare_layers(decoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A forward pre-hook of the decoder: what its layers need to know, as tensors of tokens.

    The families make their masks in different ways (one T x T mask, one per layer type, one cut to the window). Ours need
    none of them: only which of the tokens are padding (`padding_mask`), which documents they belong to (`documents`), and,
    in the blocks a layer hybrid keeps, which of all keys are padding (`key_mask`).

    Raises:
        ValueError: a mask that is not [B, T], attention weights or a look ahead asked for, or a cache that cannot serve
            this model.
    """
    kwargs = {**dict(zip(PARAMETERS, args)), **kwargs}
    mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
    inputs = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
    asked = kwargs.get("output_attentions")
    if decoder.config.output_attentions if asked is None else asked:
        raise ValueError("output_attentions: a linearized model has no T x T attention weights to return")
    if kwargs.get("is_causal") is False:
        raise ValueError("is_causal = False: a recurrence runs from left to right, so a linearized model is causal")
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        given = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"type {type(mask).__name__}"
        raise ValueError(f"attention_mask has {given}; a linearized model takes [B, T]: 1 for a token, 0 for padding")
    if cache is None and _wants_cache(decoder, kwargs.get("use_cache")):
        cache = kwargs["past_key_values"] = DynamicCache(config=decoder.config)
    seen = 0 if cache is None else fit(cache, decoder, len(inputs))
    first, boundaries = isinstance(seen, int) and seen == 0, kwargs.get("cu_seq_lens_q")
    if boundaries is not None and not first:
        raise ValueError(
            "cu_seq_lens_q: packed documents begin a text; a cache that has seen tokens cannot go on with them"
        )
    positions = kwargs.get("position_ids") if mask is None and first else None
    documents = documents_of(boundaries, positions, *inputs.shape[:2])
    types = dict.fromkeys(decoder.config.layer_types) if hasattr(decoder, "has_sliding_layers") else None
    more = {"padding_mask": _of_these(mask, inputs.shape[1], seen), "key_mask": mask, "documents": documents}
    return (), {**kwargs, "attention_mask": types, **more}


def _wants_cache(decoder: nn.Module, use_cache: bool | None) -> bool:
    """Whether the decoder is about to make a cache, which has to have our layers."""
    checkpointing = decoder.training and decoder.gradient_checkpointing
    return not checkpointing and (decoder.config.use_cache if use_cache is None else use_cache)


def _of_these(mask: Tensor | None, T: int, seen: int | Tensor) -> Tensor | None:
    """The part [B, T] of a mask [B, seen + T or more] that is about the T tokens given now; or it is that already.

    None where none of them is padding, as in most calls of `generate`: then no layer has to look.
    """
    if mask is None:
        return None
    if mask.shape[1] == T:
        these = mask.bool()
    elif isinstance(seen, Tensor):
        these = mask.index_select(1, seen + torch.arange(T, device=mask.device)).bool()
    elif mask.shape[1] < seen + T:
        allowed = f"{seen + T} ({seen} in the cache, {T} given now), or {T}" if seen else T
        raise ValueError(f"attention_mask has {mask.shape[1]} tokens; allowed are {allowed}")
    else:
        these = mask[:, seen : seen + T].bool()
    for_any_mask = torch.compiler.is_compiling() or torch.jit.is_tracing()  # a graph has no branch on values
    return these if for_any_mask or not these.all() else None


def documents_of(cu_seqlens: Tensor | None, position_ids: Tensor | None, B: int, T: int) -> Tensor | None:
    """Which document of its row each token belongs to, [B, T]; None if every row is one document.

    Documents are told by their boundaries (`cu_seq_lens_q`, a single row) or, as transformers reads packed rows, by
    positions that start again. While a graph is traced no value can be looked at, so positions that might start again are
    taken as if they did.
    """
    if cu_seqlens is not None:
        check_documents(cu_seqlens, B, T)
        return document_numbers(cu_seqlens, T)
    if position_ids is None or T == 1:
        return None
    starts = position_ids[:, 1:] <= position_ids[:, :-1]
    if not torch.compiler.is_compiling() and not starts.any():
        return None
    return F.pad(starts.cumsum(1), (1, 0)).expand(B, T)


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
    key_mask: Tensor | None = None,
    documents: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Ordinary causal softmax attention for the blocks that a layer hybrid (`softmax_every`) keeps."""
    Tq, Tk = q.shape[2], k.shape[2]
    visible = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).tril(Tk - Tq)
    if documents is not None:
        visible = visible & (documents[:, None, :, None] == documents[:, None, None, :])
    if key_mask is not None:
        itself = torch.eye(Tq, Tk, dtype=torch.bool, device=q.device).roll(Tk - Tq, dims=1)
        visible = visible & key_mask[:, None, None, :].bool() | itself  # a padded query sees itself: no NaN
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scaling, enable_gqa=True)
    return o.transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, softmax_block)


AttentionMaskInterface.register(IMPLEMENTATION, no_mask)
