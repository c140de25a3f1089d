"""Variants of Liger Attention: the paper's Table 6, which add parameters, and other ways to mix the branches, which do not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from liger_mini.attention import LigerAttention, liger_layers
from liger_mini.recurrences import gated_recurrence
from liger_mini.structures import GLA, softmax_features


class RandomGate(LigerAttention):
    """Table 6, "random gate projection": the gate reads a projection of its own, drawn at random and trained in full."""

    def projections(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.alpha_proj(hidden_states).unflatten(-1, (-1, self.head_dim))  # [B, T, H_kv, K]
        self.structure = _GivenGate(self.structure.temper or GLA.temper, given=logits)
        return super().projections(hidden_states)


@dataclass(frozen=True)
class _GivenGate(GLA):
    """GLA whose gate reads what it is given, [B, T, H_kv, K], and not the key."""

    given: Tensor | None = None

    def log_gate(self, k: Tensor) -> Tensor:
        return super().log_gate(k if self.given is None else self.given)


class LearnedFeatures(LigerAttention):
    """Table 6, "learned feature map": φ(x) = softmax(W x), one W for queries and one for keys, trained in full."""

    def recurrence(self, q, k, v, *rest) -> Tensor:
        # the gate goes on reading the key, not its features
        self.structure = _GivenGate(self.structure.temper or GLA.temper, given=k.transpose(1, 2))
        return super().recurrence(self.q_features(q), self.k_features(k), v, *rest)


def random_gate(model: PreTrainedModel) -> None:
    for layer in liger_layers(model):
        layer.__class__ = RandomGate
        layer.alpha_proj = nn.Linear(layer.k_proj.in_features, layer.k_proj.out_features, bias=False)


def learned_features(model: PreTrainedModel) -> None:
    for layer in liger_layers(model):
        layer.__class__ = LearnedFeatures
        layer.q_features, layer.k_features = (nn.Linear(layer.head_dim, layer.head_dim, bias=False) for _ in "qk")


class Ramp(LigerAttention):
    """The recurrence speaks as loudly as there is something to say: a_t = a · max(0, 1 - W / t) for the t-th token.

    Where the window still sees everything, the layer is softmax attention. One document a row, without a cache.
    """

    def recurrence(self, q, *rest) -> Tensor:
        t = torch.arange(1, q.shape[2] + 1, device=q.device)
        share = (1 - self.window / t).clamp(min=0)  # [T]
        return (super().recurrence(q, *rest) * share[:, None, None]).to(q.dtype)


class OneNormaliser(LigerAttention):
    """One softmax-like average over everything, as in LoLCATs: exact weights inside the window, a state's outside.

        o_t = (Σ_inside e^(q_t · k_s / √K) v_s + K φ(q_t) S_t) / (Σ_inside e^(q_t · k_s / √K) + K φ(q_t) z_t)

    Inside are the window and the sinks. S_t and z_t sum φ(k_s)ᵀ v_s and φ(k_s) of what has left it, each token once and
    without a gate. K φ(q) · φ(k) is 1 for a query and a key that say nothing, as e^0 is. One document a row, without a
    cache; all T x T scores.
    """

    def mixed(self, q, k, v, position_embeddings, *rest) -> Tensor:
        outside, mass = self.outside(*(x.transpose(1, 2) for x in (q, k, v)))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        groups, T = q.shape[1] // k.shape[1], q.shape[2]
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        t, s = torch.arange(T, device=q.device)[:, None], torch.arange(T, device=q.device)
        visible = (s <= t) & ((s > t - self.window) | (s < self.sinks))
        scores = (q @ k.mT).float() / q.shape[-1] ** 0.5
        top = scores.masked_fill(~visible, 0).amax(-1, keepdim=True).clamp(min=0)  # [B, H, T, 1]
        weights = torch.exp(scores - top).masked_fill(~visible, 0)
        e = torch.exp(-top)  # both sums are relative to e^top, so that nothing overflows
        numerator = weights @ v.float() + e * outside.transpose(1, 2)
        return (numerator / (weights.sum(-1, keepdim=True) + e * mass.transpose(1, 2))).to(v.dtype).transpose(1, 2)

    def outside(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The state's part of both sums, [B, T, H, V] and [B, T, H, 1], from q, k, v before rotary embedding."""
        T, W = q.shape[1], self.window
        late = torch.arange(T, device=k.device)[:, None, None] >= self.sinks  # a sink is always inside
        phi, ones = softmax_features(k).float() * late, torch.ones_like(v[..., :1])
        k_left, v_left = (F.pad(x.float(), (0, 0, 0, 0, W, 0))[:, :T] for x in (phi, torch.cat([v, ones], -1)))
        read, _ = gated_recurrence(
            q.shape[-1] * softmax_features(q).float(), k_left, v_left, torch.zeros_like(k_left[..., 0])
        )
        return read[..., :-1], read[..., -1:]


def ramp(model: PreTrainedModel) -> None:
    for layer in liger_layers(model):
        layer.__class__ = Ramp


def one_normaliser(model: PreTrainedModel) -> None:
    for layer in liger_layers(model):
        layer.__class__ = OneNormaliser
