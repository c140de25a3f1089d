"""The seven structures of Table 1, three cousins (chapter 03) and four delta rules (11), without a parameter.

Raw projections in, a recurrence run.

`structures` maps a name to a `Structure`. Read from the top, each is one change to one before. With P = Pool(k_t) and
φ = softmax over the head dimension:

| structure       | gate                  | α_t              | written             | read                        |
|-----------------|-----------------------|------------------|---------------------|-----------------------------|
| linear          | none                  | 1                | φ(k)ᵀ v             | φ(q) S                      |
| lightning       | one per head, fixed   | exp(-2^(-8h/H))  | φ(k)ᵀ v             | φ(q) S                      |
| gated_retention | one per head          | σ(P)             | φ(k)ᵀ v             | φ(q) S                      |
| mamba2          | one per head          | exp(-softplus P) | φ(k)ᵀ v             | φ(q) S                      |
| mlstm           | one per head          | σ(P)             | φ(k)ᵀ v, φ(k)       | φ(q) S / max(abs(φ(q) n), 1)|
| gla             | one per key channel   | σ(P)             | φ(k)ᵀ v             | φ(q) S                      |
| rwkv6           | one per key channel   | exp(-exp P)      | φ(k)ᵀ v             | φ(q) S                      |
| hgrn2           | one per key channel   | γ + (1 - γ) σ(P) | (1 - α)ᵀ v          | φ(q) S                      |
| lightnet        | one per key channel   | z_{t-1} / z_t    | (1 - α)ᵀ v          | φ(q) S                      |
| gsa             | one per slot          | σ(P)             | (1 - α)ᵀ k, (1 - α)ᵀ v | softmax(q K̃ᵀ) Ṽ         |
| deltanet        | none                  | 1                | β k̂ᵀ (v - k̂ S)      | q̂ S                         |
| gated_deltanet  | one per head          | σ(P₂)            | β k̂ᵀ (v - k̂ S)      | q̂ S                         |
| kda             | one per key channel   | σ(P)             | β k̂ᵀ (v - k̂ S)      | q̂ S                         |
| hedgehog_deltanet | one per head        | σ(P₂)            | β k̂ᵀ (v - k̂ S)      | q̂ S                         |

In the last four x̂ = φ(x) / ‖φ(x)‖, S is what is left after forgetting, and β = σ(P₁): P₁ and P₂ are the means of the
key's first and second half. The last one's φ is softmax of x and of -x, side by side.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor

from liger_mini import gates
from liger_mini.recurrences import delta_recurrence, gated_recurrence, slot_recurrence
from liger_mini.recurrences.checks import check_state
from liger_mini.recurrences.documents import check_documents, over_documents

LN_2 = math.log(2)
States = tuple[Tensor | None, ...]
Temper = float | tuple[float, ...]  # one half-life in tokens, or one per key head


def softmax_features(x: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch K"]:
    """φ(x) = softmax over the head dimension: positive, sums to one, and has no parameter."""
    return gates.wide(x).softmax(-1).to(x.dtype)


@dataclass(frozen=True)
class Structure:
    """How raw (pre-rotary) projections become a recurrence. A structure overrides what it does differently.

    Attributes:
        temper: half-life of a neutral gate in tokens, one number or one per key head; None where the gate is not computed
            from one key.
        states: how many tensors its state has.
        carries: whether the last of them is the gate's own.
    """

    temper: Temper | None = None
    states: ClassVar[int] = 1
    carries: ClassVar[bool] = False

    def half_life(self, P: Float[Tensor, "B T H *pooled"]) -> float | Float[Tensor, "H *ones"]:
        """The temper, as it divides the log-gates of P.

        Raises:
            ValueError: another number of heads.
        """
        if not isinstance(self.temper, tuple):
            return self.temper
        heads = P.shape[2]
        if len(self.temper) != heads:
            raise ValueError(f"temper has {len(self.temper)} half-lives, and the layer {heads} key heads: one for each")
        dtype = torch.promote_types(P.dtype, torch.float32)
        return P.new_tensor(self.temper, dtype=dtype).reshape(heads, *[1] * (P.ndim - 3))

    def log_gate(self, k: Float[Tensor, "B T H K"]) -> Float32[Tensor, "B T H K"] | Float32[Tensor, "B T H"]:
        """log α_t = f(Pool(k_t)), read off the key alone."""
        raise NotImplementedError

    def write(self, k: Float[Tensor, "B T H K"], log_gate: Tensor) -> Float[Tensor, "B T H K"]:
        """The key side of what a token writes."""
        return softmax_features(k)

    def gates(
        self, k: Float[Tensor, "B T H K"], carry: Tensor | None, documents: Int[Tensor, "B T"] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(log α, carry): the gates of all tokens, where a gate may depend on what its structure carries along.

        Args:
            k: wide; NOTHING where a token is padding.
            carry: what the call before returned; None unless `carries`.
        """
        return self.log_gate(k), carry

    def inputs(
        self,
        q: Float[Tensor, "B T H K"],
        k: Float[Tensor, "B T Hkv K"],
        v: Float[Tensor, "B T Hkv V"],
        log_gate: Tensor | None = None,
        mask: Float[Tensor, "B T"] | None = None,
    ) -> dict[str, Tensor]:
        """What the recurrence is given, by name; log_gate None is `self.log_gate(k)`."""
        log_gate = self.log_gate(k) if log_gate is None else log_gate
        write = self.write(k, log_gate)
        return {"q": softmax_features(q), "k": write, "v": hide(mask, v), "log_gate": hide(mask, log_gate)}

    def recurrence(self, inputs: dict[str, Tensor], states: States, **how: Any) -> tuple[Tensor, States]:
        """(o, states) from `inputs`; how: `cu_seqlens`, `backend`, `trusted`."""
        o, S = gated_recurrence(**inputs, initial_state=states[0], **how)
        return o, (S,)

    def run(
        self,
        q: Float[Tensor, "B T H K"],
        k: Float[Tensor, "B T Hkv K"],
        v: Float[Tensor, "B T Hkv V"],
        states: States | None = None,
        *,
        mask: Float[Tensor, "B T"] | None = None,
        documents: Int[Tensor, "B T"] | None = None,
        cu_seqlens: Int[Tensor, "N+1"] | None = None,
        backend: str = "auto",
    ) -> tuple[Float[Tensor, "B T H V"], States]:
        """`__call__`, whose states are always a tuple."""
        states = (None,) * self.states if states is None else states
        states, carry = (states[:-1], states[-1]) if self.carries else (states, None)
        log_gate, carry = self._gates(hide(mask, gates.wide(k), gates.NOTHING), carry, documents, cu_seqlens)
        inputs = self.inputs(q, k, v, log_gate, mask)
        inputs["log_gate"] = forget_before(documents, inputs["log_gate"])
        # gates of these formulas are in range; whether keys were finite is asked where asking costs little
        trusted = k.shape[1] == 1 or k.device.type != "cpu"
        o, states = self.recurrence(inputs, states, cu_seqlens=cu_seqlens, backend=backend, trusted=trusted)
        return o, (*states, carry) if self.carries else states

    def _gates(
        self, k: Tensor, carry: Tensor | None, documents: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """`gates`, document by document if packed, from a carry that is there."""
        if not self.carries:
            return self.gates(k, None, documents)
        if cu_seqlens is not None:
            check_documents(cu_seqlens, *k.shape[:2])
        shape = (len(k) if cu_seqlens is None else len(cu_seqlens) - 1, *k.shape[2:])
        if carry is None:
            carry = k.new_zeros(shape)
        check_state("state[-1], the gate's,", carry, shape, k)
        if cu_seqlens is None:
            return self.gates(k, carry, documents)
        return over_documents(self.gates, cu_seqlens, (k,), (carry,))

    def __call__(
        self,
        q: Float[Tensor, "B T H K"],
        k: Float[Tensor, "B T Hkv K"],
        v: Float[Tensor, "B T Hkv V"],
        state: Any = None,
        backend: str = "auto",
        **how: Any,
    ) -> tuple[Float[Tensor, "B T H V"], Any]:
        """Run the structure on raw projections.

        Args:
            state: what the call before returned, float32; None is a fresh start.
            mask: 1 for a token, 0 for padding. A padded token writes nothing and forgets nothing.
            documents: which of the documents packed into its row a token belongs to. Where the number changes, everything
                before is forgotten: the gate is 0. The state is the last document's.
            cu_seqlens, backend: as in `gated_recurrence`.
        Returns:
            o in v's dtype, and the state after the last token (a tuple where `states` is 2).
        """
        if state is not None and self.states == 1:
            state = (state,)
        if state is not None and (not isinstance(state, tuple) or len(state) != self.states):
            raise ValueError(
                f"state is a {type(state).__name__}; {type(self).__name__} goes on from a tuple of {self.states} tensors, "
                "as it returned them"
            )
        o, states = self.run(q, k, v, state, backend=backend, **how)
        return o, states if self.states > 1 else states[0]

    def of_heads(self, first: int, here: int, heads: int) -> Structure:
        """The structure for a process that has only `here` of a layer's `heads` key heads, from number `first` on."""
        if not isinstance(self.temper, tuple):
            return self
        return dataclasses.replace(self, temper=self.temper[first : first + here])


def forget_before(documents: Tensor | None, log_gate: Tensor) -> Tensor:
    """log_gate [B, T, ...] with a gate of 0 where a new document begins."""
    if documents is None:
        return log_gate
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
    return log_gate.masked_fill(begins.reshape(*begins.shape, *[1] * (log_gate.ndim - 2)), gates.NOTHING)


def hide(mask: Tensor | None, x: Tensor, value: float = 0.0) -> Tensor:
    """x [B, T, ...] with `value` where the mask [B, T] is 0."""
    if mask is None:
        return x
    if mask.shape != x.shape[:2]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; with these inputs it must be {tuple(x.shape[:2])}")
    return x.masked_fill(~mask.bool().reshape(*mask.shape, *[1] * (x.ndim - 2)), value)


@dataclass(frozen=True)
class Linear(Structure):
    """Ungated linear attention ("Pure LA"): α = 1, nothing is ever forgotten."""

    def log_gate(self, k):
        return k.new_zeros(k.shape[:-1], dtype=torch.float32)


@dataclass(frozen=True)
class Lightning(Structure):
    """Lightning Attention: every head has its own fixed half-life, whatever the tokens are (`gates.head_decay`).

    Attributes:
        first, heads: which of a layer's heads the keys are; None: all of them.
    """

    first: int = 0
    heads: int | None = None

    def log_gate(self, k):
        n = k.shape[2]
        return gates.head_decay(self.heads or n, k.device)[self.first : self.first + n].expand(k.shape[:-1])

    def of_heads(self, first, here, heads):
        return dataclasses.replace(self, first=first, heads=heads)


@dataclass(frozen=True)
class GatedRetention(Structure):
    """One gate per head, read off the key. temper 1 is Table 1's."""

    temper: Temper = 1.0

    def log_gate(self, k):
        P = gates.pool(gates.wide(k), 1).squeeze(-1)
        return gates.sigmoid_gate(P, self.half_life(P))


@dataclass(frozen=True)
class Mamba2(Structure):
    """Gated Retention with exp(-softplus(P)) = σ(-P): a large key forgets, where there it keeps. temper 1 is Table 1's."""

    temper: Temper = 1.0

    def log_gate(self, k):
        P = gates.pool(gates.wide(k), 1).squeeze(-1)
        return gates.softplus_gate(P, self.half_life(P))


@dataclass(frozen=True)
class MLSTM(GatedRetention):
    """Gated Retention with a normaliser n_t = α_t n_{t-1} + φ(k_t), carried as one more value column of S."""

    def inputs(self, q, k, v, log_gate=None, mask=None):
        return super().inputs(q, k, torch.cat([v, v.new_ones(*v.shape[:-1], 1)], dim=-1), log_gate, mask)

    def recurrence(self, inputs, states, **how):
        o, states = super().recurrence(inputs, states, **how)
        return o[..., :-1] / o[..., -1:].abs().clamp(min=1), states


@dataclass(frozen=True)
class GLA(Structure):
    """Gated Linear Attention: one gate per key channel. temper 16 is the authors' code's; Table 1 has 1."""

    temper: Temper = 16.0

    def log_gate(self, k):
        return gates.sigmoid_gate(k, self.half_life(k))


@dataclass(frozen=True)
class RWKV6(Structure):
    """GLA with exp(-exp(P)) for σ(P), as in the paper's Eq. 7 (no bonus term). temper ln 2 is Table 1's."""

    temper: Temper = LN_2

    def log_gate(self, k):
        return gates.exp_gate(k, self.half_life(k))


@dataclass(frozen=True)
class HGRN2(Structure):
    """GLA with a tied write: what a channel forgets, 1 - α, it takes in. temper 1 and γ = 0 are the authors' code's.

    Attributes:
        lower_bound: γ in [0, 1), the least share that survives a token (with temper 1).
    """

    temper: Temper = 1.0
    lower_bound: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.lower_bound < 1:
            raise ValueError(f"lower_bound = {self.lower_bound}: allowed are numbers from 0 up to, not including, 1")

    def log_gate(self, k):
        return gates.sigmoid_gate(k, self.half_life(k), self.lower_bound)

    def write(self, k, log_gate):
        return -log_gate.expm1().to(k.dtype)


@dataclass(frozen=True)
class LightNet(Structure):
    """A tied write like HGRN2's, with the gate of a running softmax: z_t = z_{t-1} + exp(k_t), α_t = z_{t-1} / z_t.

    S_t is then the average of all values so far, weighted by exp(k). It is a σ gate of one key against all before it,
    α_t = σ(log z_{t-1} - k_t), so it has no temper. The state is (S, log(1 + z)), where zero is "nothing yet".
    """

    states: ClassVar[int] = 2
    carries: ClassVar[bool] = True

    def gates(self, k, carry, documents=None):
        log_z = log_running_sum(k, carry, documents)  # [B, 1 + T, H, K]: before the first token, and after each
        log_gate = forget_before(documents, F.logsigmoid(log_z[:, :-1] - k))
        return log_gate, F.softplus(log_z[:, -1])  # exact for keys down to -90

    def log_gate(self, k):
        return self._gates(gates.wide(k), None, None, None)[0]

    def write(self, k, log_gate):
        return -log_gate.expm1().to(k.dtype)


def log_running_sum(
    k: Float[Tensor, "B T H K"], log1p_z: Float[Tensor, "B H K"], documents: Int[Tensor, "B T"] | None
) -> Float[Tensor, "B 1+T H K"]:
    """log z before the first token and after each, z_t = z_{t-1} + exp(k_t), which begins anew with each document."""
    some = log1p_z > 0
    log_z = log1p_z + (-torch.expm1(-log1p_z.where(some, 1))).log()
    log_z = torch.cat([log_z.where(some, gates.NOTHING).unsqueeze(1), k], dim=1)
    return log_z.logcumsumexp(1) if documents is None else logcumsumexp_within(documents, log_z)


def logcumsumexp_within(documents: Tensor, x: Tensor) -> Tensor:
    """log Σ exp x_s over s ≤ t of the same document: x [B, 1 + T, ...], whose first row belongs to the first document.

    In log2(T) rounds, each of which doubles how far back a sum reaches (Hillis and Steele, 1986): nothing is subtracted,
    so one document's numbers cost another's no precision.
    """
    documents, distance = torch.cat([documents[:, :1], documents], dim=1), 1
    while distance < x.shape[1]:
        same = (documents[:, distance:] == documents[:, :-distance]).reshape(*x[:, distance:].shape[:2], 1, 1)
        earlier = x[:, :-distance].masked_fill(~same, gates.NOTHING)
        x = torch.cat([x[:, :distance], torch.logaddexp(x[:, distance:], earlier)], dim=1)
        distance *= 2
    return x


@dataclass(frozen=True)
class GSA(Structure):
    """Gated Slot Attention: M slots remember keys and values, and a query attends to the slots.

    Raw q and k without φ, scores without scale, write 1 - α and temper 16 are the authors' code's; Table 1 has temper 1.

    Attributes:
        slots: M, at most K; None makes it K, so that Pool changes nothing.
    """

    temper: Temper = 16.0
    slots: int | None = None
    states: ClassVar[int] = 2

    def log_gate(self, k):
        P = gates.pool(gates.wide(k), k.shape[-1] if self.slots is None else self.slots)
        return gates.sigmoid_gate(P, self.half_life(P))

    def inputs(self, q, k, v, log_gate=None, mask=None):
        log_gate = self.log_gate(k) if log_gate is None else log_gate
        write = hide(mask, -log_gate.expm1().to(k.dtype))
        return {"q": q, "k": k, "v": v, "slot_write": write, "log_gate": hide(mask, log_gate)}

    def recurrence(self, inputs, states, **how):
        return slot_recurrence(**inputs, initial_state=None if states[0] is None else states, **how)


def unit_features(x: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch K"]:
    """φ(x) = softmax(x) / ‖softmax(x)‖: of length one, as the delta rule needs it, and without a parameter."""
    return F.normalize(gates.wide(x).softmax(-1), dim=-1).to(x.dtype)


def two_sided_features(x: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch 2K"]:
    """φ(x) = [softmax(x), softmax(-x)], of length one: what is low in x is told as well as what is high.

    The two sides are those of Hedgehog (Zhang et al., 2024), without its learned projection.
    """
    x_wide = gates.wide(x)
    return F.normalize(torch.cat([x_wide.softmax(-1), (-x_wide).softmax(-1)], dim=-1), dim=-1).to(x.dtype)


@dataclass(frozen=True)
class DeltaNet(Structure):
    """The delta rule: a token writes the difference between its value and what the state says for its key.

    β = σ(mean of the key's first half) says how much of the difference; nothing is forgotten otherwise.
    """

    features: ClassVar[Callable[[Tensor], Tensor]] = staticmethod(unit_features)

    def log_gate(self, k):
        return k.new_zeros(k.shape[:-1], dtype=torch.float32)

    def beta(self, k: Float[Tensor, "B T H K"]) -> Float32[Tensor, "B T H"]:
        """How much of the difference is written, in (0, 1)."""
        return gates.pool(gates.wide(k), 2)[..., 0].sigmoid()

    def inputs(self, q, k, v, log_gate=None, mask=None):
        log_gate = self.log_gate(k) if log_gate is None else log_gate
        features = {"q": self.features(q), "k": self.features(k), "v": v}
        return {**features, "beta": hide(mask, self.beta(k)), "log_gate": hide(mask, log_gate)}

    def recurrence(self, inputs, states, **how):
        o, S = delta_recurrence(**inputs, initial_state=states[0], **how)
        return o, (S,)


@dataclass(frozen=True)
class GatedDeltaNet(DeltaNet):
    """The delta rule with one gate per head, σ(mean of the key's second half)^(1/τ): β and gate share no channel."""

    temper: Temper = 1024.0

    def log_gate(self, k):
        P = gates.pool(gates.wide(k), 2)[..., 1]
        return gates.sigmoid_gate(P, self.half_life(P))


@dataclass(frozen=True)
class HedgehogDeltaNet(GatedDeltaNet):
    """Gated DeltaNet with two-sided features: keys have 2K channels and collide less, and the state is twice as large."""

    features: ClassVar[Callable[[Tensor], Tensor]] = staticmethod(two_sided_features)


@dataclass(frozen=True)
class KDA(DeltaNet):
    """The delta rule with one gate per key channel, GLA's (Kimi Delta Attention)."""

    temper: Temper = 1024.0

    def log_gate(self, k):
        return gates.sigmoid_gate(k, self.half_life(k))


structures = MappingProxyType(
    {
        "gla": GLA(),
        "hgrn2": HGRN2(),
        "rwkv6": RWKV6(),
        "mamba2": Mamba2(),
        "gated_retention": GatedRetention(),
        "mlstm": MLSTM(),
        "gsa": GSA(),
        "lightning": Lightning(),
        "lightnet": LightNet(),
        "linear": Linear(),
        "deltanet": DeltaNet(),
        "gated_deltanet": GatedDeltaNet(),
        "kda": KDA(),
        "hedgehog_deltanet": HedgehogDeltaNet(),
    }
)


def get_structure(name: str, temper: Temper | None = None) -> Structure:
    """`structures[name]`, with another temper if one is given.

    Raises:
        ValueError: no structure of that name, a temper that is not positive, or one for a gate that has none.
    """
    if name not in structures:
        raise ValueError(f"unknown structure {name!r}: allowed are {', '.join(map(repr, structures))}")
    structure = structures[name]
    if temper is None:
        return structure
    for number in temper if isinstance(temper, tuple) and temper else (temper,):
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 < number < float("inf"):
            raise ValueError(
                f"temper = {temper!r}: allowed are numbers > 0 (half-life in tokens), or None for the default"
            )
    if structure.temper is None:
        tempered = ", ".join(repr(other) for other, s in structures.items() if s.temper is not None)
        raise ValueError(f"structure {name!r} has no temper: leave temper out, or choose one of {tempered}")
    return dataclasses.replace(structure, temper=temper)
