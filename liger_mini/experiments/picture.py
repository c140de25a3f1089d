"""The README's picture: recall by distance of the embedded models, measured once, and drawn as SVG without a browser."""

from __future__ import annotations

import html
import json
import math
from typing import Any

from liger_mini.evaluation import HeldOut, evaluate
from liger_mini.experiments.embedded import WINDOW, load_recovered, load_teacher
from liger_mini.support.paths import data_dir, write_atomically
from liger_mini.support.provenance import provenance

RECORD = "recall-by-distance-cpu"
MODELS = {
    "teacher": "the Transformer",
    "paper": "the paper's recipe",
    "recall": "our best recipe",
}
MARKS = {"teacher": ("#0072B2", "circle"), "paper": ("#D55E00", "square"), "recall": ("#009E73", "diamond")}
LEAST = 20  # questions of a point
LEFT, RIGHT, TOP, BOTTOM = 48, 610, 72, 330
LAST = 256  # tokens, where the axis ends


def measure(stories: int = 400, documents: int = 32) -> dict[str, Any]:
    """Evaluate the three embedded models on the same questions; written to ``data/results``."""
    models = {name: load_teacher() if name == "teacher" else load_recovered(name) for name in MODELS}
    held_out = HeldOut(models["teacher"][1], stories=stories, documents=documents)
    reports = {name: evaluate(model, held_out, window=WINDOW).to_dict() for name, (model, _) in models.items()}
    held = {"stories": stories, "documents": documents}
    result = {"held_out": held, "models": reports, "provenance": provenance()}
    write_atomically(data_dir() / "results" / f"{RECORD}.json", json.dumps(result, indent=1))
    return result


def x_of(tokens: float) -> float:
    return LEFT + (RIGHT - LEFT) * tokens / LAST


def y_of(recall: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * recall


def picture(result: dict[str, Any]) -> str:
    """The SVG: share of answers right against distance, with standard errors; dark where the reader's page is."""
    reports = result["models"]
    teacher = reports["teacher"]
    parts = [
        *_axes(),
        *_upright(teacher["window"], "window", 0),
        *_upright(teacher["reach"], "reach of stacked windows", 18),
    ]
    told = []
    for name, words in MODELS.items():
        points = [(high, bin) for high, bin in reports[name]["recall_by_distance"] if bin["questions"] >= LEAST]
        parts += _line(name, words, points)
        told.append(f"{words} {reports[name]['recall_outside']:.2f}")
    alt = f"Share of answers right against how far back the answer was told. Beyond the reach of the windows: {'; '.join(told)}."
    return FRAME.format(alt=html.escape(alt), parts="\n".join(parts))


def _axes() -> list[str]:
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>']
    for recall in (0, 0.5, 1):
        parts.append(f'<text x="{LEFT - 8}" y="{y_of(recall) + 5:.0f}" text-anchor="end">{recall:g}</text>')
    for tokens in (0, 64, 128, 192, 256):
        parts.append(f'<text x="{x_of(tokens):.0f}" y="{BOTTOM + 20}" text-anchor="middle">{tokens}</text>')
    middle = (LEFT + RIGHT) // 2
    parts.append(f'<text x="{middle}" y="{BOTTOM + 42}" text-anchor="middle">tokens since the answer was told</text>')
    return parts


def _upright(tokens: float, words: str, down: int) -> list[str]:
    x = x_of(tokens)
    label = f'<text x="{x + 4:.1f}" y="{TOP - 26 + down}" class="quiet">{words}: {tokens:g} tokens</text>'
    return [f'<path class="mark" d="M{x:.1f} {TOP - 36 + down}V{BOTTOM}"/>', label]


def _line(name: str, words: str, points: list[tuple[float, dict[str, Any]]]) -> list[str]:
    colour, shape = MARKS[name]
    at = [(x_of(high), y_of(bin["recall"])) for high, bin in points]
    parts = [f'<path class="line" stroke="{colour}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in at)}"/>']
    for (x, y), (_, bin) in zip(at, points):
        error = (BOTTOM - TOP) * math.sqrt(bin["recall"] * (1 - bin["recall"]) / bin["questions"])
        parts.append(f'<path class="error" stroke="{colour}" d="M{x:.1f} {y - error:.1f}V{y + error:.1f}"/>')
        parts.append(_mark(shape, x, y, colour))
    (x, y) = at[-1]
    parts.append(
        f'<text x="{x + 12:.1f}" y="{y + 5:.1f}" style="fill:{colour}" class="name">{html.escape(words)}</text>'
    )
    return parts


def _mark(shape: str, x: float, y: float, colour: str) -> str:
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if shape == "diamond" else ""
    return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{colour}"{turn}/>'


FRAME = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 385" role="img" aria-label="{alt}">
<title>{alt}</title>
<style>
  text {{ font: 14px system-ui, sans-serif; fill: #1f2328; }} .quiet {{ font-size: 12px; }} text.name {{ font-weight: 600; }}
  .axis {{ stroke: #59636e; fill: none; }} .mark {{ stroke: #59636e; stroke-dasharray: 4 4; }}
  .line {{ fill: none; stroke-width: 2.5; }} .error {{ stroke-width: 1.5; }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #f0f6fc; }} .axis, .mark {{ stroke: #9198a1; }}
  }}
</style>
<text x="12" y="20" class="name">Share of questions answered right</text>
{parts}
</svg>
"""
