"""Variants of Liger Attention for the paper's Table 6 that add parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from liger_mini.attention import LigerAttention, liger_layers
from liger_mini.structures import GLA


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
