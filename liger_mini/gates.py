"""Gates from keys (chapter 02): Table 1 of the paper, key in, log-gate out, no parameter added.

A gate α in (0, 1] is the share of the state that survives a token. It is carried as log α ≤ 0, in float32.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor


def sigmoid_gate(P: Float[Tensor, "*shape"], temper: float) -> Float32[Tensor, "*shape"]:
    """log α = log σ(P) / τ, the gate of GLA with temper τ.

    A neutral key (P = 0) gives α = 0.5^(1/τ): the temper is the gate's half-life in tokens. Table 1 of the
    paper has τ = 1; the authors' code has τ = 16.
    """
    return F.logsigmoid(P.float()) / temper
