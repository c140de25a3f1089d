"""What the structures share and where they part (chapter 03): attention maps, states over time, resets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from liger_mini.teaching.figures.theme import POSITIVE, described, line, marker, new_figure

BLOCKS = 16  # a state is shown in at most 16 x 16 blocks


def attention_maps(maps: Mapping[str, Float[Tensor, "T T"]]) -> go.Figure:
    """Heat maps side by side: how much token t (down) takes from token s (across), each row divided by its sum.

    Args:
        maps: name -> weights ≥ 0, zero above the diagonal. All have one T.
    """
    shapes = {name: tuple(weights.shape) for name, weights in maps.items()}
    T = next(iter(shapes.values()))[0]
    for name, shape in shapes.items():
        if shape != (T, T):
            raise ValueError(f"the map {name!r} has shape {shape}; all must be [T, T] = ({T}, {T})")
        if (maps[name] < 0).any() or maps[name].triu(1).any():
            raise ValueError(f"the map {name!r} has negative weights, or looks ahead; weights must be ≥ 0 and causal")
    figure = new_figure("Who takes from whom", None, None, height=400)
    make_subplots(rows=1, cols=len(maps), subplot_titles=list(maps), figure=figure, shared_yaxes=True)
    told = []
    for i, (name, weights) in enumerate(maps.items()):
        rows = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
        z = [[round(value, 3) for value in row] for row in rows.tolist()]
        figure.add_heatmap(
            z=z, zmin=0, zmax=0.5, colorscale=POSITIVE, showscale=i == 0, colorbar_thickness=10, row=1, col=i + 1
        )
        recent = rows[-1, -8:].sum().item()
        told.append(
            f"{name}: the last token takes {recent:.2f} from the last 8 tokens, its row sums to {weights[-1].sum():.3g}"
        )
    figure.update_xaxes(title="token s", showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_yaxes(title="token t", col=1)
    figure.update_layout(margin_t=80)
    return described(figure, f"Heat maps of who takes from whom over {T} tokens. {'; '.join(told)}.")


def state_at(states: Mapping[str, Float[Tensor, "T K V"]], structure: str, t: int) -> go.Figure:
    """A state after t tokens: its blocks on the left, its norm so far on the right, on one scale for all structures.

    Args:
        states: name -> the state of one head after each token. t: 1 to T.
    """
    if structure not in states:
        raise ValueError(f"no states of {structure!r}: allowed are {', '.join(map(repr, states))}")
    S = states[structure]
    if not 1 <= t <= len(S):
        raise ValueError(f"t = {t}: allowed are 1 to T = {len(S)}")
    norms = S.flatten(1).norm(dim=1).tolist()
    figure = new_figure(f"The state of {structure} at t = {t}", None, None, height=400)
    make_subplots(
        rows=1, cols=2, subplot_titles=["size of S, in blocks", "norm of S"], figure=figure, horizontal_spacing=0.2
    )
    z = [[round(value, 3) for value in row] for row in _blocks(S[t - 1]).tolist()]
    largest = max(_blocks(other[-1]).max().item() for other in states.values())
    figure.add_heatmap(z=z, zmin=0, zmax=largest, colorscale=POSITIVE, showscale=False, row=1, col=1)
    figure.add_scatter(x=list(range(1, len(S) + 1)), y=norms, mode="lines", line=line(1), row=1, col=2)
    figure.add_scatter(
        x=[t], y=[norms[t - 1]], mode="markers", marker=marker(2, 12) | {"color": "#D55E00"}, row=1, col=2
    )
    figure.update_xaxes(title="value channels (blocks)", row=1, col=1)
    figure.update_yaxes(title="key channels (blocks)", row=1, col=1)
    figure.update_xaxes(title="token t", row=1, col=2)
    top = 1.05 * max(other.flatten(1).norm(dim=1).max().item() for other in states.values())
    figure.update_yaxes(title="norm", range=[0, top], row=1, col=2)
    figure.update_layout(showlegend=False, margin_t=80)
    return described(
        figure,
        f"The state of {structure}: its norm is {norms[t - 1]:.2f} at t = {t}, and {norms[-1]:.2f} at t = {len(S)}.",
    )


def reset_curves(left: Mapping[str, Sequence[float]], strengths: Sequence[float]) -> go.Figure:
    """Share of an old fact that is left after one reset key, against the key's strength, one line per structure."""
    figure = new_figure("One reset key", "strength of the reset key", "share of the old fact left", height=480)
    for i, (name, shares) in enumerate(left.items()):
        if len(shares) != len(strengths):
            raise ValueError(f"{name!r} has {len(shares)} shares for {len(strengths)} strengths; they must be as many")
        figure.add_scatter(x=list(strengths), y=list(shares), name=name, line=line(i), marker=marker(i))
    figure.update_yaxes(range=[0, 1.05])
    figure.update_layout(legend_y=-0.22)
    told = "; ".join(f"{name} {shares[-1]:.2f}" for name, shares in left.items())
    return described(figure, f"Lines of the share left against strength. At strength {strengths[-1]:g}: {told}.")


def _blocks(S: Tensor) -> Tensor:
    """|S| [K, V] as root mean squares over at most BLOCKS x BLOCKS blocks."""
    size = [min(BLOCKS, n) for n in S.shape]
    pooled = S.detach().float().square()
    for axis, n in enumerate(size):
        pooled = pooled.transpose(axis, -1)
        pooled = pooled[..., : pooled.shape[-1] // n * n].unflatten(-1, (n, -1)).mean(-1).transpose(axis, -1)
    return pooled.sqrt()
