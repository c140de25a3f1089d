"""Gates from keys (chapter 02): Table 1 of the paper, key in, log-gate out, no parameter added.

A gate α in (0, 1] is the share of the state that survives a token. It is carried as log α ≤ 0, in float32
(in float64 for a float64 key).

Every gate that is computed from the key takes a **temper** τ: the half-life of a neutral gate in tokens. For a neutral
key (P = 0) α = 0.5^(1/τ), so after τ such tokens half of the state is left. A temper is one number, or a tensor that
broadcasts to P, such as one per head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

NOTHING = -1e30  # a finite log of zero: sums of it stay finite, its exp is 0


def wide(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x in float32, or in float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pool(k: Float[Tensor, "*batch K"], width: int) -> Float[Tensor, "*batch width"]:
    """P = Pool(k): average pooling over the head dimension to the width the gate needs; no parameter.

    Raises:
        ValueError: more than K outputs, of which some would be copies of each other, or fewer than one.
    """
    K = k.shape[-1]
    if not 1 <= width <= K:
        raise ValueError(f"cannot pool a key of {K} channels to {width}: allowed are 1 to {K}")
    if width == K:
        return k
    return F.adaptive_avg_pool1d(k.reshape(-1, K), width).unflatten(0, k.shape[:-1])


def sigmoid_gate(
    P: Float[Tensor, "*shape"], temper: float | Tensor, lower_bound: float = 0.0
) -> Float32[Tensor, "*shape"]:
    """α = (γ + (1 - γ) σ(P))^(1/τ): GLA, GSA, Gated Retention, mLSTM, and with a lower bound γ HGRN2.

    Table 1 of the paper has τ = 1, γ = 0. With γ > 0 a neutral gate lives longer than τ.
    """
    P = wide(P)
    if lower_bound == 0:
        return F.logsigmoid(P) / temper
    floor = P.new_tensor(math.log(lower_bound))
    log_alpha = torch.logaddexp(floor, math.log1p(-lower_bound) + F.logsigmoid(P))
    return log_alpha.clamp(max=0) / temper  # rounding may pass 0 by a hair


def exp_gate(P: Float[Tensor, "*shape"], temper: float | Tensor) -> Float32[Tensor, "*shape"]:
    """α = exp(-exp(P) ln 2 / τ): RWKV6. Table 1 of the paper, exp(-exp(P)), is τ = ln 2."""
    return -math.log(2) / temper * wide(P).clamp(max=60).exp()  # exp(60) forgets everything and is finite


def softplus_gate(P: Float[Tensor, "*shape"], temper: float | Tensor) -> Float32[Tensor, "*shape"]:
    """α = exp(-softplus(P) / τ): Mamba2. Table 1 of the paper has τ = 1. It equals σ(-P)^(1/τ)."""
    return -F.softplus(wide(P)) / temper


def head_decay(heads: int, device: torch.device | None = None) -> Float32[Tensor, "heads"]:
    """log α_h = -2^(-8h/H) for head h = 1 … H: Lightning Attention's decays, from a half-life of a token to one of 177.

    The same slopes as ALiBi's, for any H. TransNormerLLM also scales them by 1 - l/L in layer l of L; this does not.
    """
    h = torch.arange(1, heads + 1, device=device, dtype=torch.float32)
    return -torch.exp2(-8 * h / heads)
