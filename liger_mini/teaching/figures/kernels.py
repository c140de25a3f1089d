"""Kernels on a page: their source without importing Triton, which program computes what, rooflines (chapter 05)."""

from __future__ import annotations

import ast
import html
import importlib.util
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from IPython.display import Code
from jaxtyping import Int
from torch import Tensor

from liger_mini.teaching.counting import (
    FORMATS,
    FORMS,
    KERNEL_CHUNK,
    WIDTH,
    crossover,
    estimated_seconds,
    kernel_cost,
    peaks_of,
)
from liger_mini.teaching.figures.theme import COLOURS, POSITIVE, described, line, marker, new_figure


def kernel_source(name: str, start: str | None = None, end: str | None = None) -> Code:
    """The source of "file.function" in kernels/, without its docstring; read as text, so that Triton need not be there.

    Args:
        name: such as "diagonal._chunk_states" or "slots._Scores.forward".
        start, end: words of the first and of the last line to show; the whole function without them.
    Raises:
        ValueError: no such file or function, or words that are not in it.
    """
    lines = _kernel_lines(name)
    first = _find(lines, start, name) if start else 0
    last = first + _find(lines[first:], end, name) if end else len(lines) - 1
    return Code(textwrap.dedent("\n".join(lines[first : last + 1])), language="python")


def _kernel_lines(name: str) -> list[str]:
    file, *path = name.split(".")
    spec = importlib.util.find_spec(f"liger_mini.kernels.{file}") if path else None
    if spec is None or spec.origin is None:
        raise ValueError(
            f"{name!r}: there is no such file in kernels/; allowed is for example 'diagonal._chunk_states'"
        )
    text = Path(spec.origin).read_text("utf-8")
    node: Any = ast.parse(text)
    for part in path:
        inner = {x.name: x for x in node.body if isinstance(x, (ast.FunctionDef, ast.ClassDef))}
        if part not in inner:
            raise ValueError(f"{name!r}: there is no {part!r}; allowed are {', '.join(map(repr, inner)) or 'none'}")
        node = inner[part]
    first = min([node.lineno, *(x.lineno for x in node.decorator_list)])
    numbers = list(range(first, node.end_lineno + 1))
    if ast.get_docstring(node):
        numbers = [n for n in numbers if not node.body[0].lineno <= n <= node.body[0].end_lineno]
    lines = text.splitlines()
    return textwrap.dedent("\n".join(lines[n - 1] for n in numbers)).rstrip().splitlines()


def _find(lines: Sequence[str], words: str, name: str) -> int:
    for i, text in enumerate(lines):
        if words in text:
            return i
    raise ValueError(f"no line of {name} has {words!r}")


@dataclass(frozen=True)
class Beside:
    """Lines of code in two columns: rows of (what it does, left, right); leave it as a cell's last line."""

    head: tuple[str, str]
    rows: Sequence[tuple[str, str, str]]

    def __str__(self) -> str:
        return "\n".join(f"{what}\n  {self.head[0]}: {a}\n  {self.head[1]}: {b}" for what, a, b in self.rows)

    def _repr_html_(self) -> str:
        left = 'style="text-align:left;padding:.3em .7em;vertical-align:top"'
        head = "".join(f'<th scope="col" {left}>{html.escape(x)}</th>' for x in self.head)
        code = lambda x: f"<td {left}><code>{html.escape(x)}</code></td>"  # noqa: E731
        body = "".join(
            f'<tr><th scope="row" {left}>{html.escape(what)}</th>{code(a)}{code(b)}</tr>' for what, a, b in self.rows
        )
        return (
            '<div class="wide" tabindex="0" style="overflow-x:auto">'
            f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )


def beside(rows: Mapping[str, tuple[Callable, str, str, str]]) -> Beside:
    """Lines of the PyTorch form beside the kernel's lines that do the same, both looked up in the code that runs.

    Args:
        rows: what it does -> (PyTorch function, words in its line, kernel such as "diagonal.within_chunk", words).
    Raises:
        ValueError: words that no line has.
    """
    found = []
    for what, (function, words, kernel, kernel_words) in rows.items():
        lines, kernel_lines = inspect.getsource(function).splitlines(), _kernel_lines(kernel)
        one = lines[_find(lines, words, function.__qualname__)]
        other = kernel_lines[_find(kernel_lines, kernel_words, kernel)]
        found.append((what, one.strip(), other.strip()))
    return Beside(("PyTorch", "Triton"), found)


def program_map(owner: Int[Tensor, "T columns"], starts: Sequence[int] = ()) -> go.Figure:
    """Which program writes which part of an output.

    Args:
        owner: the number of the program that wrote each entry. starts: where documents begin, in tokens.
    Raises:
        ValueError: owner that is no matrix, or entries nobody wrote (negative).
    """
    if owner.ndim != 2 or not owner.numel():
        raise ValueError(f"owner has shape {tuple(owner.shape)}; it must be [T, columns], not empty")
    if (owner < 0).any():
        raise ValueError(f"{int((owner < 0).sum())} entries have a negative number: no program wrote them")
    programs = owner.unique().tolist()
    figure = new_figure("Who writes what", "column of o (head by head)", "token t", height=460)
    figure.add_heatmap(z=owner.tolist(), colorscale=POSITIVE, colorbar={"title": "program", "thickness": 12})
    for p in programs:
        t, column = ((owner == p).nonzero().double().mean(0)).tolist()
        light = owner.max() and p / owner.max() > 0.5
        figure.add_annotation(
            x=column, y=t, text=str(p), showarrow=False, font={"color": "black" if light else "white", "size": 13}
        )
    for t in starts:
        figure.add_hline(y=t - 0.5, line_width=3, line_color=COLOURS[2])
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    each = [int((owner == p).sum()) for p in programs]
    return described(
        figure,
        f"Map of {owner.shape[0]} tokens by {owner.shape[1]} columns, written by {len(programs)} programs: "
        f"each writes one block of {min(each)} to {max(each)} numbers. Documents begin at {list(starts)}.",
    )


def roofline(gpu: str = "A100", chunk: int = KERNEL_CHUNK, T: int = 4096) -> go.Figure:
    """What a GPU can reach against arithmetic intensity, and where the forms of attention stand. An estimate.

    Args:
        gpu: "A100" or "H100". chunk: C of the recurrences. T: tokens.
    Raises:
        ValueError: another GPU, sizes that `kernel_cost` refuses.
    """
    peaks = peaks_of(gpu)
    figure = new_figure(f"{gpu}, C = {chunk}, T = {T:,}", "intensity (FLOP/byte)", "attainable (TFLOP/s)", height=500)
    intensities = sorted([0.5, 32768, *(peaks[name] / peaks["memory"] for name in FORMATS)])
    for i, name in enumerate(FORMATS):
        roof = [min(peaks[name], x * peaks["memory"]) / 1e12 for x in intensities]
        figure.add_scatter(x=intensities, y=roof, name=name, mode="lines", line={**line(i), "simplify": False})
    told = []
    for i, form in enumerate(FORMS):
        flops, moved = kernel_cost(form, T, chunk=chunk)
        arithmetic, memory = estimated_seconds(form, gpu, T, chunk=chunk)
        x, reached = flops / moved, flops / max(arithmetic, memory) / 1e12
        figure.add_scatter(
            x=[x], y=[reached], name=form, mode="markers", marker={**marker(i, 14), "color": COLOURS[i + 3]}
        )
        limit = "memory" if memory > arithmetic else "arithmetic"
        told.append(f"{form}: {x:.0f} FLOP/byte, {reached:.0f} TFLOP/s, limited by {limit}")
    figure.update_xaxes(type="log", range=[math.log10(0.5), math.log10(32768)], dtick=1)
    figure.update_yaxes(type="log", range=[-0.6, 3.3], dtick=1)
    inside = {"orientation": "v", "x": 0.99, "xanchor": "right", "y": 0.01, "yanchor": "bottom"}
    figure.update_layout(legend={**inside, "bgcolor": "rgba(255,255,255,0.7)"})
    return described(
        figure,
        f"Roofline of an {gpu}, an estimate: peaks of {', '.join(f'{peaks[n] / 1e12:g} ({n})' for n in FORMATS)} TFLOP/s, "
        f"{peaks['memory'] / 1e12:g} TB/s. C = {chunk}, T = {T:,}, K = V = {WIDTH}. {'; '.join(told)}.",
    )


def estimated_times(gpu: str, lengths: Sequence[int], *, chunk: int = KERNEL_CHUNK) -> go.Figure:
    """The roofline's estimates of time per token and head against length, and where recurrences cross softmax.

    Raises:
        ValueError: another GPU, lengths that do not rise.
    """
    if list(lengths) != sorted(set(lengths)) or not lengths:
        raise ValueError(f"lengths = {list(lengths)}: allowed are rising whole numbers ≥ 1")
    figure = new_figure(
        f"Estimated on an {gpu}, forward", "length T (tokens)", "time (ns per token and head)", height=460
    )
    times = {form: [1e9 * max(estimated_seconds(form, gpu, T, chunk=chunk)) for T in lengths] for form in FORMS}
    told = []
    for i, (form, values) in enumerate(times.items()):
        figure.add_scatter(x=list(lengths), y=values, name=form, mode="lines+markers", line=line(i), marker=marker(i))
        at = crossover(lengths, [s / x for s, x in zip(times["softmax"], values)]) if form != "softmax" else None
        told.append(f"{form} {values[-1]:.2g} at {lengths[-1]:,}" + (f", crossing near {at:,.0f}" if at else ""))
    ticks = list(lengths)[:: math.ceil(len(lengths) / 6)]
    figure.update_xaxes(
        type="log", tickvals=ticks, ticktext=[f"{T // 1024}K" if T % 1024 == 0 else str(T) for T in ticks]
    )
    figure.update_yaxes(type="log", dtick=1)
    return described(figure, f"Estimated nanoseconds per token and head on an {gpu}, not measured: {'; '.join(told)}.")
