"""The registry of gated linear structures (chapter 03): name -> gate, feature maps, recurrence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from jaxtyping import Float, Float32
from torch import Tensor

from liger_mini import gates
from liger_mini.recurrences import gated_recurrence


def softmax_features(x: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch K"]:
    """φ(x) = softmax over the head dimension: positive, sums to one, and has no parameter."""
    return x.float().softmax(-1).to(x.dtype)


@dataclass(frozen=True)
class Structure:
    """One line of Table 1: how raw projections become a recurrence.

    Attributes:
        gate: (pooled key, temper) -> log-gate.
        feature_map: φ, applied to queries and keys.
        temper: half-life of a neutral gate in tokens; the default is the authors' code's.
    """

    name: str
    gate: Callable[[Tensor, float], Tensor]
    feature_map: Callable[[Tensor], Tensor]
    temper: float

    def log_gate(self, k: Float[Tensor, "B T H K"]) -> Float32[Tensor, "B T H K"]:
        """log α_t = gate(Pool(k_t)); a vector gate is as wide as the key, so Pool changes nothing."""
        return self.gate(k, self.temper)

    def __call__(
        self,
        q: Float[Tensor, "B T H K"],
        k: Float[Tensor, "B T H K"],
        v: Float[Tensor, "B T H V"],
        state: Float32[Tensor, "B H K V"] | None = None,
        backend: str = "auto",
        *,
        mask: Float[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T H V"], Float32[Tensor, "B H K V"]]:
        """Run the structure on raw (pre-rotary) projections.

        Args:
            mask: 1 for a token, 0 for padding. A padded token writes nothing and forgets nothing.
        """
        log_gate = self.log_gate(k)
        if mask is not None:
            seen = mask[:, :, None, None]
            log_gate, v = log_gate * seen, v * seen.to(v.dtype)
        q, k = self.feature_map(q), self.feature_map(k)
        return gated_recurrence(q, k, v, log_gate, initial_state=state, backend=backend)


structures = MappingProxyType({"gla": Structure("gla", gates.sigmoid_gate, softmax_features, temper=16.0)})


def get_structure(name: str) -> Structure:
    """`structures[name]`, or a ValueError that lists what there is."""
    if name not in structures:
        raise ValueError(f"unknown structure {name!r}: allowed are {', '.join(map(repr, structures))}")
    return structures[name]
