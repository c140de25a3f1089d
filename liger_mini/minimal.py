"""One Liger layer by its definition (chapter 06). Read this first: no cache, no padding, no grouped heads, no dispatch.

After arXiv 2503.01496. A layer of a pretrained Transformer has W_q, W_k, W_v and W_o. Liger keeps them as they are, adds
nothing, and computes

    α_t = σ(k_t)^(1/τ)                       the gate, read off the key (Table 1, GLA; the authors' code has τ = 16)
    S_t = diag(α_t) S_{t-1} + φ(k_t)ᵀ v_t     a state of K x V numbers, φ = softmax
    o_t = a φ(q_t) S_t + b Σ_s p_ts v_s       and softmax attention over the last W tokens (a = b = 1/2)

The recurrence reads queries and keys before rotary embedding, the window reads them after it. Everything else in this
package computes the same numbers faster, for other gates, or inside a Hugging Face model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def liger_layer(
    x: Float[Tensor, "T D"],
    W_q: Float[Tensor, "HK D"],
    W_k: Float[Tensor, "HK D"],
    W_v: Float[Tensor, "HK D"],
    W_o: Float[Tensor, "D HK"],
    *,
    heads: int,
    window: int = 64,
    mix: tuple[float, float] = (0.5, 0.5),
    temper: float = 16.0,
    theta: float = 10000.0,
) -> Float[Tensor, "T D"]:
    """x and the weights of one attention layer in, its linearized output out.

    Args:
        window: W. mix: (a, b). temper: τ, the half-life of a neutral gate in tokens. theta: the rotary base.
    """
    q, k, v = (F.linear(x, W).unflatten(-1, (heads, -1)).transpose(0, 1) for W in (W_q, W_k, W_v))  # [H, T, K]
    a, b = mix
    o = a * recurrence(q, k, v, temper) + b * windowed(rotate(q, theta), rotate(k, theta), v, window)
    return F.linear(o.transpose(0, 1).flatten(1), W_o)


def recurrence(q: Tensor, k: Tensor, v: Tensor, temper: float) -> Tensor:
    """What a state remembers of all tokens: q, k, v [H, T, K] -> [H, T, K], token by token."""
    H, T, K = k.shape
    gate = torch.sigmoid(k) ** (1 / temper)
    S, outputs = q.new_zeros(H, K, v.shape[-1]), []
    for t in range(T):
        S = gate[:, t, :, None] * S + k[:, t, :, None].softmax(1) * v[:, t, None, :]
        outputs.append((q[:, t, None, :].softmax(-1) @ S).squeeze(1))
    return torch.stack(outputs, dim=1)


def windowed(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Softmax attention over the last W tokens, the current one included: [H, T, K] -> [H, T, K]."""
    t, s = torch.arange(q.shape[1]).unsqueeze(1), torch.arange(q.shape[1])
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return scores.masked_fill((s > t) | (s <= t - window), -torch.inf).softmax(-1) @ v


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary embedding as Llama has it: channel i and i + K/2 turn together, by t θ^(-2i/K)."""
    half = x.shape[-1] // 2
    angle = torch.outer(torch.arange(x.shape[1]), theta ** (-torch.arange(half) / half))  # [T, K/2]
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], dim=-1)
