"""One look for every figure of the course: theme, axis titles with units, and words for whoever cannot see it.

Colours are Okabe and Ito's, told apart by colour-blind readers; lines also differ in dash and marker and
bars in pattern, so a figure survives greyscale. Each figure carries its alt text in ``layout.meta["alt"]``.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

from liger_mini.teaching.figures.display import Figure, alt_text

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
PATTERNS = ("", "/", "x", ".", "+", "\\", "-")
POSITIVE = "Cividis"  # a colour scale for what is ≥ 0, readable without colour vision and in greyscale
SIGNED = "RdBu"  # for what has a sign: give zmid=0

pio.templates["liger_mini"] = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 14, "color": "#1a1a1a"},
        "colorway": COLOURS,
        "title": {"x": 0.02, "font": {"size": 16}},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "xaxis": {"showgrid": True, "gridcolor": "#e5e5e5", "zeroline": False, "linecolor": "#666", "ticks": "outside"},
        "yaxis": {"showgrid": True, "gridcolor": "#e5e5e5", "zeroline": False, "linecolor": "#666", "ticks": "outside"},
        "shapedefaults": {"line": {"color": "#1a1a1a"}},  # figure.js turns it light at night
        "legend": {"orientation": "h", "y": -0.3, "yanchor": "top", "x": 0},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 60},
    }
)


def new_figure(title: str, x: str | None, y: str | None, *, height: int = 420) -> Figure:
    """An empty figure in the theme; axis titles carry the unit in brackets."""
    figure = Figure(layout={"template": "liger_mini", "title": title, "height": height})
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return figure


def described(figure: go.Figure, alt: str) -> Figure:
    """The figure with its alt text: what a reader who cannot see it has to know, numbers included."""
    figure = figure if isinstance(figure, Figure) else Figure(figure)
    return figure.update_layout(meta={**(figure.layout.meta or {}), "alt": alt})


def line(i: int) -> dict:
    """Colour and dash of the i-th line."""
    return {"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i % len(DASHES)], "width": 2}


def marker(i: int, size: int = 8) -> dict:
    """Shape of the i-th line's markers."""
    return {"symbol": MARKERS[i % len(MARKERS)], "size": size}


def bar(i: int) -> dict:
    """Colour and pattern of the i-th kind of bar."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "pattern": {"shape": PATTERNS[i % len(PATTERNS)], "fillmode": "overlay"},
    }


def add_bars(
    figure: go.Figure, i: int, name: str, x: Sequence[str], y: Sequence[float], digits: int, **more: Any
) -> None:
    """The i-th kind of bar, one at each of x, with its number above it."""
    text = [f"{value:.{digits}f}" for value in y]
    figure.add_bar(x=x, y=y, name=name, marker=bar(i), text=text, textposition="outside", **more)


def wrapped(name: str, width: int = 20) -> str:
    """A name in lines of at most so many characters: on a phone long ones would leave no room for the plot."""
    return "<br>".join(textwrap.wrap(name, width, break_on_hyphens=False)) or name


def add_dots(figure: go.Figure, series: Mapping[str, Mapping[str, tuple[float, float]]], digits: int = 2) -> list[str]:
    """Many models, a row each, and a kind of mark for each series; returns the series in words.

    Args:
        series: name -> {model: (value, its spread)}. Models come in the order of the first series, the first on top.
    """
    models = list(next(iter(series.values())))
    told = []
    for i, (name, points) in enumerate(series.items()):
        values, spreads = zip(*points.values())
        dots = {"mode": "markers", "marker": {**marker(i + 1, 9), "color": line(i + 1)["color"]}}
        bars = {"array": spreads, "thickness": 1.5, "color": line(i + 1)["color"]}
        figure.add_scatter(x=values, y=list(map(wrapped, points)), name=name, error_x=bars, **dots)
        words = (f"{model} {x:.{digits}f} ± {e:.{digits}f}" for model, (x, e) in points.items())
        told.append(f"{name}: {', '.join(words)}")
    figure.update_xaxes(title_font={"size": 13})
    rows = list(map(wrapped, models))
    figure.update_yaxes(categoryorder="array", categoryarray=rows, autorange="reversed", automargin=True)
    lines = 1 + max(row.count("<br>") for row in rows)
    tall = max((10 + 16 * lines) * len(rows), 132)  # of the rows together: few rows still need room for axis and legend
    figure.update_layout(height=200 + tall, showlegend=len(series) > 1, legend_y=-70 / tall)
    return told


def log_ticks(figure: go.Figure) -> None:
    """A logarithmic y axis with ticks that can be read: powers of ten, and within few of them 2 and 5 as well."""
    values = [y for trace in figure.data for y in trace.y if y is not None and y > 0 and math.isfinite(y)]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if max(values) / min(values) < 300 else (1,)
    ticks = [step * 10.0**n for n in range(low, high + 1) for step in steps]
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:,.10g}" for tick in ticks], automargin=True)


def with_slider(draw: Callable[..., go.Figure], **controls: Sequence[Any]) -> Figure:
    """`draw` over all values of its controls, as one figure with a slider that needs no kernel.

    Where Plotly's own front ends draw it, the slider walks through every combination, the last one fastest. In HTML
    figure.js gives each control a slider of its own, by ``layout.meta["controls"]``.

    Args:
        draw: keyword arguments -> a figure; every figure has the same traces. controls: name -> the values to show.
    """
    settings = [dict(zip(controls, values)) for values in itertools.product(*controls.values())]
    drawn = [draw(**setting) for setting in settings]
    figure = Figure(drawn[0])
    names = [", ".join(f"{name.replace('_', ' ')} {value}" for name, value in setting.items()) for setting in settings]
    for f in drawn:
        f.layout.height = None  # the slider needs room that a frame's own height would take back
    figure.frames = [go.Frame(name=n, data=f.data, layout=f.layout) for n, f in zip(names, drawn)]
    how = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    steps = [{"label": n, "method": "animate", "args": [[n], how]} for n in names]
    below = {"steps": steps, "active": 0, "y": -0.3, "len": 0.9, "x": 0.05, "pad": {"t": 40}, "ticklen": 4}
    height, labels = figure.layout.height or 420, {name: [str(v) for v in values] for name, values in controls.items()}
    figure.update_layout(sliders=[below], height=height + 110, meta={"controls": labels, "height": height})
    told = f"A slider shows {len(names)} settings, of which this is {names[0]}. At the last, {names[-1]}:"
    return described(figure, f"{alt_text(drawn[0])} {told} {alt_text(drawn[-1])}")
