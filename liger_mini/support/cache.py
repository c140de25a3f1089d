"""The cache of a linearized model at decode (chapter 06): states and the last W - 1 keys and values, in one layer; and sinks."""

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
    DynamicLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionAndStaticSlidingWindowAttentionLayer,
    StaticLayer,
)


class LigerCacheLayer(CacheLayerMixin):
    """What one Liger Attention keeps between two calls: its states, and keys and values: S sinks, and the last W - 1.

    transformers' own layer for `layer_types` "hybrid_sliding" comes close, but moves only keys and values when rows are
    chosen or repeated, returns a static buffer with room *behind* what was seen, and keeps everything where W = 1.

    Attributes:
        settings: structure, W, S of the layer it was filled by.
        keys, values: [B, H_kv, S + n, ·], n ≤ W - 1: the sinks, then the last of the other tokens, newest last; or fewer, while
            there were fewer. A static layer has n = W - 1 from the start, with room in front, and is written in place, so
            that a compiled step finds it where it was.
        real: [B, S + n], False for padding, for room, and for places of sinks that are not filled yet; a sink that is also
            one of the last tokens counts in its own place alone. None while all are tokens.
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
        self.cumulative_length: Any = torch.tensor(0) if static else 0

    @property
    def room(self) -> int:
        """W - 1: how many keys and values the next token needs."""
        return self.settings[1] - 1

    @property
    def sinks(self) -> int:
        """S: how many of a text's first tokens stay."""
        return self.settings[2]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        B, heads, _, _ = key_states.shape
        n = self.sinks + self.room if self.is_compileable else 0
        self.keys, self.values = (x.new_zeros(B, heads, n, x.shape[-1]) for x in (key_states, value_states))
        if self.is_compileable:
            self.real = torch.zeros(B, n, dtype=torch.bool, device=key_states.device)
        if self.is_compileable:
            self.cumulative_length = self.cumulative_length.to(key_states.device)
        self.device, self.dtype, self.is_initialized = key_states.device, key_states.dtype, True
        self._stay(self.keys, self.values, self.real, self.cumulative_length)

    def update(
        self, k: Tensor, v: Tensor, real: Tensor | None = None, documents: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and which of them are tokens, of what was kept and of T new ones; keeps sinks and the last W - 1.

        Args:
            k, v: [B, H_kv, T, ·]. real: [B, T], None if all are tokens.
            documents: [B, T]; of several in a row, the last is the one that can go on.
        """
        if not self.is_initialized:
            self.lazy_initialization(k, v)
        keys, values = torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)
        self.fresh, before, kept = False, self.keys.shape[2], max(self.sinks, keys.shape[2] - self.room)
        self.cumulative_length += k.shape[2]  # in place where it is a tensor
        if real is None and self.real is None and documents is None:
            self._keep_all(*(self._first_and_last(x) for x in (keys, values)), None)
            return keys, values, None
        ones = functools.partial(torch.ones, dtype=torch.bool, device=k.device)
        real = torch.cat(
            [x if x is not None else ones(len(k), n) for x, n in ((self.real, before), (real, k.shape[2]))], 1
        )
        going_on = real
        if documents is not None:
            going_on = real & F.pad(documents == documents[:, -1:], (before, 0))
        last = keys[:, :, kept:], values[:, :, kept:], going_on[:, kept:]
        self._keep_all(*self._with_sinks(keys, values, going_on, last) if self.sinks else last)
        return keys, values, real

    def _first_and_last(self, x: Tensor) -> Tensor:
        """Of keys or values that are all tokens' [B, H_kv, n, ·]: the first S, and the last W - 1 of the others."""
        after = max(self.sinks, x.shape[2] - self.room)
        if self.sinks == 0:
            return x[:, :, after:]
        return x if after == self.sinks else torch.cat([x[:, :, : self.sinks], x[:, :, after:]], dim=2)

    def _with_sinks(self, keys: Tensor, values: Tensor, real: Tensor, last: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The first S tokens of keys, values and real, in front of the last ones, among which they no longer count."""
        upto, n = real.cumsum(1), real.shape[1]
        numbers = torch.arange(self.sinks, device=real.device).expand(len(real), -1).contiguous()
        places = torch.searchsorted(upto, numbers, right=True)  # [B, S], n where there are not so many
        index = places.clamp(max=n - 1)[:, None, :, None]
        k, v, still = last
        k, v = (
            torch.cat([x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])), tail], dim=2)
            for x, tail in ((keys, k), (values, v))
        )
        still = still & (upto[:, n - still.shape[1] :] > self.sinks)
        return k, v, torch.cat([places < n, still], dim=1)

    def _keep_all(self, keys: Tensor, values: Tensor, real: Tensor | None) -> None:
        self.keys, self.values = self._keep(self.keys, keys), self._keep(self.values, values)
        self.real = None if real is None else self._keep(self.real, real)

    def states(self) -> tuple[Tensor, ...] | None:
        return tuple(self.recurrent_states.values()) or None

    def update_states(self, states: tuple[Tensor, ...]) -> None:
        for i, state in enumerate(states):
            if i not in self.recurrent_states and self.is_compileable:
                self.recurrent_states[i] = torch.zeros_like(state)
                self._stay(self.recurrent_states[i])
            self.recurrent_states[i] = self._keep(self.recurrent_states.get(i), state.detach())

    def _keep(self, old: Tensor | None, new: Tensor) -> Tensor:
        return old.copy_(new) if self.is_compileable and old is not None else new

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
            LigerCacheLayer.__init__(self, self.settings, static=False)

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


def fit(cache: Cache, decoder: nn.Module, rows: int) -> int | Tensor:
    """Put our layers into a cache that was made for this model and is still empty; how many tokens it has seen.

    Raises:
        ValueError: a cache of another model, another class, one that this model cannot use, or with other rows.
    """
    config: Any = decoder.config
    layers: Any = getattr(cache, "layers", ())
    fresh = (LinearAttentionAndSlidingWindowAttentionLayer, LinearAttentionAndStaticSlidingWindowAttentionLayer)
    settings = [getattr(layer.self_attn, "cached_for", None) for layer in decoder.layers]  # None: softmax attention
    for i, (kept, ours) in enumerate(zip(layers, settings)):
        if isinstance(kept, fresh) and ours is not None and _is_empty(kept, config):
            layers[i] = LigerCacheLayer(ours, static=isinstance(kept, StaticLayer))
    wrong = _misfit(layers, settings)
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


def _misfit(layers: Any, settings: list[tuple | None]) -> str | None:
    """What is wrong with a cache, if anything."""
    if len(layers) != len(settings):
        return f"the cache has {len(layers)} layers, the model {len(settings)}"
    for i, (kept, ours) in enumerate(zip(layers, settings)):
        if ours is None:
            if isinstance(kept, StaticLayer):
                return "a model with softmax_every cannot decode with a StaticCache"
            if type(kept) is not DynamicLayer:
                return f"layer {i} of the cache is a {type(kept).__name__}, and the model's is softmax attention"
        elif not isinstance(kept, LigerCacheLayer):
            return f"layer {i} of the cache is a {type(kept).__name__} that was not made, or not filled, by this model"
        elif kept.settings != ours:
            there, here = ("{} with window {} and {} sinks".format(*settings) for settings in (kept.settings, ours))
            return f"layer {i} of the cache was filled by {there}; the model has {here}"
    return None
