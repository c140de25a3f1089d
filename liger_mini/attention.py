"""Liger Attention (chapter 06): a · recurrence + b · window, from a layer's own projections.

    S_t = α_t ⊙ S_{t-1} + φ(k_t)ᵀ v_t       α_t read off k_t        (before rotary embedding)
    o_t = a · φ(q_t) S_t  +  b · softmax attention over the last W keys (after rotary embedding)

Costs O(T (W K + K²)) time per head; decoding keeps S (K x V numbers per head) and W - 1 keys and values,
whatever the context, of every key/value head: `LigerCacheLayer`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionAndStaticSlidingWindowAttentionLayer,
    StaticLayer,
)
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from liger_mini.recurrences.checks import document_ends, document_numbers
from liger_mini.structures import get_structure
from liger_mini.window import sliding_window_attention

IMPLEMENTATION = "liger_mini"  # the name registered with transformers
# of every family's decoder, in this order
PARAMETERS = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache")


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
        padding_mask: Tensor | None = None,  # [B, T], True for tokens
        documents: Tensor | None = None,  # [B, T], which of the documents packed into its row a token belongs to
        **kwargs,
    ) -> tuple[Tensor, None]:
        q, k, v = self.projections(hidden_states)  # [B, heads, T, K]
        cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        a, b = self.branches
        o = a * self.recurrence(q, k, v, padding_mask, documents, cache) + b * self.windowed(
            *apply_rotary_pos_emb(q, k, *position_embeddings), v, padding_mask, documents, cache
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

    def recurrence(self, q, k, v, mask: Tensor | None, documents: Tensor | None, cache: LigerCacheLayer | None):
        """The branch that remembers everything a little; [B, T, H, V]."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, T, heads, ·]
        structure, states = self.structure, None if cache is None else cache.states()
        if k.shape[2] < self.config.num_key_value_heads:  # tensor parallelism: the other heads are elsewhere
            structure = structure.of_heads(self.first_head(), self.config.num_key_value_heads)
        if states is not None and structure.states == 1:
            states = states[0]
        o, states = structure(q, k, v, states, mask=mask, documents=documents)
        if cache is not None:
            cache.update_states(states if isinstance(states, tuple) else (states,))
        return o

    def first_head(self) -> int:
        """Which key head of the layer is this process's first, where tensor parallelism has spread them."""
        weight = self.k_proj.weight
        (dim,) = (i for i, placement in enumerate(weight.placements) if placement.is_shard(0))
        return weight.device_mesh.get_local_rank(dim) * (weight.to_local().shape[0] // self.head_dim)

    def windowed(self, q, k, v, mask: Tensor | None, documents: Tensor | None, cache: LigerCacheLayer | None):
        """The branch that sees the last W tokens exactly; [B, T, H, V]."""
        if cache is not None:
            k, v, mask = cache.update(k, v, mask, documents)  # [B, heads, ≤ W - 1 + T, ·]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return sliding_window_attention(q, k, v, self.window, key_mask=mask, documents=documents)

    @property
    def settings(self) -> tuple:
        """What a cache layer was filled with, and another model would read wrongly."""
        return self.structure, self.window


class LigerCacheLayer(CacheLayerMixin):
    """What one Liger Attention keeps between two calls: its states, and the last W - 1 keys and values, newest last.

    transformers' own layer for `layer_types` "hybrid_sliding" comes close, but moves only keys and values when rows are
    chosen or repeated, returns a static buffer with room *behind* what was seen, and keeps everything where W = 1.

    Attributes:
        keys, values: [B, H_kv, n, ·], n ≤ W - 1. A static layer has n = W - 1 from the start, with room in front, and is
            written in place, so that a compiled step finds it where it was.
        real: [B, n], False for padding and for room; None while all are tokens.
        recurrent_states: the structure's states by number, float32, [B, ...].
        fresh: nothing was seen yet, or everything was forgotten again.
    """

    is_sliding, is_croppable, supports_early_init = True, False, False

    def __init__(self, settings: tuple, static: bool):
        super().__init__()
        self.settings, self.is_compileable = settings, static
        self.real: Tensor | None = None
        self.fresh = True
        self.recurrent_states: dict[int, Tensor] = {}
        self.cumulative_length = torch.tensor(0) if static else 0

    @property
    def room(self) -> int:
        """W - 1: how many keys and values the next token needs."""
        return self.settings[1] - 1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        B, heads, _, _ = key_states.shape
        n = self.room if self.is_compileable else 0
        self.keys, self.values = (x.new_zeros(B, heads, n, x.shape[-1]) for x in (key_states, value_states))
        if self.is_compileable:
            self.real = torch.zeros(B, n, dtype=torch.bool, device=key_states.device)
            self.cumulative_length = self.cumulative_length.to(key_states.device)
        self.device, self.dtype, self.is_initialized = key_states.device, key_states.dtype, True
        self._stay(self.keys, self.values, self.real, self.cumulative_length)

    def update(
        self, k: Tensor, v: Tensor, real: Tensor | None = None, documents: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and which of them are tokens, of what was kept and of T new ones; keeps the last W - 1.

        Args:
            k, v: [B, H_kv, T, ·]. real: [B, T], None if all are tokens.
            documents: [B, T]; of several in a row, the last is the one that can go on.
        """
        if not self.is_initialized:
            self.lazy_initialization(k, v)
        keys, values = torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)
        self.fresh, before, kept = False, self.keys.shape[2], slice(max(0, keys.shape[2] - self.room), None)
        self.keys, self.values = self._keep(self.keys, keys[:, :, kept]), self._keep(self.values, values[:, :, kept])
        self.cumulative_length += k.shape[2]  # in place where it is a tensor
        if real is None and self.real is None and documents is None:
            return keys, values, None
        ones = functools.partial(torch.ones, dtype=torch.bool, device=k.device)
        real = torch.cat(
            [x if x is not None else ones(len(k), n) for x, n in ((self.real, before), (real, k.shape[2]))], 1
        )
        going_on = real
        if documents is not None:
            going_on = real & F.pad(documents == documents[:, -1:], (before, 0))
        self.real = self._keep(self.real, going_on[:, kept])
        return keys, values, real

    def states(self) -> tuple[Tensor, ...] | None:
        return tuple(self.recurrent_states.values()) or None

    def update_states(self, states: tuple[Tensor, ...]) -> None:
        for i, state in enumerate(states):
            if i not in self.recurrent_states and self.is_compileable:
                self.recurrent_states[i] = torch.zeros_like(state)
                self._stay(self.recurrent_states[i])
            self.recurrent_states[i] = self._keep(self.recurrent_states.get(i), state.detach())

    def _keep(self, old: Tensor | None, new: Tensor) -> Tensor:
        return old.copy_(new) if self.is_compileable else new

    @staticmethod
    def _stay(*tensors: Tensor | int | None) -> None:
        """CUDA graphs want to know which tensors stay where they are (a trace cannot be told)."""
        for x in tensors:
            if isinstance(x, Tensor) and not torch.compiler.is_compiling():
                torch._dynamo.mark_static_address(x)

    def _of_rows(self, choose: Callable[[Tensor], Tensor]) -> None:
        """Apply a choice of rows to everything kept."""
        if self.is_initialized:
            self.keys, self.values = choose(self.keys), choose(self.values)
            self.real = None if self.real is None else choose(self.real)
        self.recurrent_states = {i: choose(state) for i, state in self.recurrent_states.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._of_rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._of_rows(lambda x: x[indices.to(x.device) if isinstance(indices, Tensor) else indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._of_rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def offload(self) -> None:
        self._of_rows(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        if self.is_initialized:
            self._of_rows(lambda x: x.to(self.device, non_blocking=True))

    def reset(self) -> None:
        if self.is_compileable:  # every structure's zero state is a fresh start
            for x in (self.keys, self.values, self.real, self.cumulative_length, *self.recurrent_states.values()):
                if x is not None:
                    x.zero_()
            self.fresh = True
        else:
            self.__init__(self.settings, static=False)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove and self.is_initialized:
            raise ValueError(
                f"crop({tokens_to_remove}): a recurrent state cannot forget its last tokens, so a linearized model's cache is "
                "not rolled back; copy the cache (copy.deepcopy) before the tokens that may be taken back"
            )

    @property
    def batch_size(self) -> int:
        return len(self.keys) if self.is_initialized else -1

    def get_seq_length(self) -> int | Tensor:
        return 0 if self.fresh else self.cumulative_length

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        kept = self.keys.shape[2] if self.is_initialized else 0
        return kept + query_length, self.get_seq_length() - kept


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
    seen = 0 if cache is None else _fit(cache, decoder, len(inputs))
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
    """The part [B, T] of a mask [B, seen + T or more] that is about the T tokens given now; or it is that already."""
    if mask is None or mask.shape[1] == T:
        return None if mask is None else mask.bool()
    if isinstance(seen, Tensor):
        return mask.index_select(1, seen + torch.arange(T, device=mask.device)).bool()
    if mask.shape[1] < seen + T:
        allowed = f"{seen + T} ({seen} in the cache, {T} given now), or {T}" if seen else T
        raise ValueError(f"attention_mask has {mask.shape[1]} tokens; allowed are {allowed}")
    return mask[:, seen : seen + T].bool()


def _fit(cache: Cache, decoder: nn.Module, rows: int) -> int | Tensor:
    """Put our layers into a cache that was made for this model and is still empty; how many tokens it has seen.

    Raises:
        ValueError: a cache of another model, another class, one that this model cannot use, or with other rows.
    """
    config, layers = decoder.config, getattr(cache, "layers", ())
    fresh = (LinearAttentionAndSlidingWindowAttentionLayer, LinearAttentionAndStaticSlidingWindowAttentionLayer)
    attentions = [layer.self_attn for layer in decoder.layers]
    for i, (kept, attention) in enumerate(zip(layers, attentions)):
        if isinstance(kept, fresh) and isinstance(attention, LigerAttention) and _is_empty(kept, config):
            layers[i] = LigerCacheLayer(attention.settings, static=isinstance(kept, StaticLayer))
    wrong = _misfit(layers, attentions)
    if wrong:
        raise ValueError(
            f"{wrong}: a linearized model's cache is made from its config, DynamicCache(config=model.config), and filled by "
            "that model"
        )
    held = next((kept.batch_size for kept in layers if isinstance(kept, LigerCacheLayer)), -1)
    if held not in (-1, rows):
        raise ValueError(
            f"the cache holds {held} rows, and {rows} were given; cache.batch_repeat_interleave and "
            "cache.batch_select_indices make them agree"
        )
    return cache.get_seq_length()


def _is_empty(kept: CacheLayerMixin, config: Any) -> bool:
    """Whether a layer that transformers made is empty, and made for this window and this number of states."""
    window = kept.max_cache_len if isinstance(kept, StaticLayer) else kept.sliding_window
    smaller = isinstance(kept, StaticLayer) and window < config.sliding_window  # a static cache shorter than the window
    fits = kept.number_of_states == config.number_of_conv_states and (window == config.sliding_window or smaller)
    return fits and not kept.is_initialized and not any(kept.is_recurrent_states_initialized.values())


def _misfit(layers: Any, attentions: list[nn.Module]) -> str | None:
    """What is wrong with a cache, if anything."""
    if len(layers) != len(attentions):
        return f"the cache has {len(layers)} layers, the model {len(attentions)}"
    for i, (kept, attention) in enumerate(zip(layers, attentions)):
        if isinstance(attention, LigerAttention):
            if not isinstance(kept, LigerCacheLayer):
                return (
                    f"layer {i} of the cache is a {type(kept).__name__} that was not made, or not filled, by this model"
                )
            if kept.settings != attention.settings:
                (theirs, window), (ours, own) = kept.settings, attention.settings
                return f"layer {i} of the cache was filled by {theirs} with window {window}; the model has {ours} and {own}"
        elif isinstance(kept, StaticLayer):
            return "a model with softmax_every cannot decode with a StaticCache"
        elif type(kept) is not DynamicLayer:
            return f"layer {i} of the cache is a {type(kept).__name__}, and the model's is softmax attention"
    return None


def documents_of(cu_seqlens: Tensor | None, position_ids: Tensor | None, B: int, T: int) -> Tensor | None:
    """Which document of its row each token belongs to, [B, T]; None if every row is one document.

    Documents are told by their boundaries (`cu_seq_lens_q`, a single row) or, as transformers reads packed rows, by
    positions that start again. While a graph is traced no value can be looked at, so positions that might start again are
    taken as if they did.
    """
    if cu_seqlens is not None:
        if not torch.compiler.is_compiling():
            document_ends(cu_seqlens, B, T)  # or it says what is wrong
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
