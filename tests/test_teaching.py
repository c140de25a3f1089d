"""What every notebook leans on: checks that can fail, tables, tiers, recorded results, figures with words, widgets with twins."""

import html
import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
import plotly.io as pio
import pytest
import torch

from liger_mini import gates, teaching
from liger_mini.recurrences import loops
from liger_mini.support import records
from liger_mini.teaching import figures, record, widgets
from liger_mini.teaching.figures import alt_text, attention, chunks, collapse, conversion, speed, structures, window
from liger_mini.teaching.figures.course import CHAPTERS
from liger_mini.teaching.figures.gates import remembering
from liger_mini.teaching.figures.kernels import beside, kernel_source, roofline
from liger_mini.teaching.figures.theme import described, new_figure

from .test_teaching_figures import ADDING, NAMES, STATES, VALUES, facts, look, maps, staircase, visible

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_check_passes_within_and_fails_beyond_its_tolerance():
    reference = torch.randn(50, generator=torch.Generator().manual_seed(0))
    table = teaching.check({"output": (reference * (1 + 1e-6), reference)}, tolerance=1e-5)
    assert table.rows[0][0] == "output"
    assert table.rows[0][-1] == "ok"
    assert float(table.rows[0][2]) == pytest.approx(1e-6, rel=0.1)
    with pytest.raises(AssertionError, match=r"not the same: state\n"):
        teaching.check({"output": (reference, reference), "state": (reference * 1.001, reference)})


def test_check_notices_what_is_not_finite_and_what_does_not_fit():
    reference = torch.ones(3)
    with pytest.raises(AssertionError, match="NOT FINITE"):
        teaching.check({"output": (torch.tensor([1.0, float("nan"), 1.0]), reference)})
    with pytest.raises(ValueError, match=r"computed has shape \(3, 1\), its reference \(3,\)"):
        teaching.check({"output": (reference[:, None], reference)})
    with pytest.raises(ValueError, match="nothing to check"):
        teaching.check({})


def test_table_escapes_and_aligns():
    table = teaching.Table(["", "loss"], [["a < b", "1.0"], ["c", "10.0"]], "by <model>")
    assert str(table).splitlines()[2:] == ["a < b   1.0", "c      10.0", "by <model>"]
    assert "a &lt; b" in table._repr_html_()
    assert "by &lt;model&gt;" in table._repr_html_()
    with pytest.raises(ValueError, match="has 1 cells, the head 2"):
        teaching.Table(["", "loss"], [["only a name"]])


def test_a_column_of_prose_is_read_from_the_left_and_no_number_is_broken():
    said = "this says what a student did wrong, and which section to read again"
    page = teaching.Table(["task", "points", "what it says"], [["03.1", "+0.002 ± 0.001", said]])._repr_html_()
    assert re.search(r'<td style="text-align:right[^"]*;white-space:nowrap">\+0.002 ± 0.001<', page)
    assert re.search(rf'<td style="text-align:left[^"]*min-width:14em">{said}<', page)


def test_tier_is_what_the_variable_says(monkeypatch):
    monkeypatch.setenv("LIGER_MINI_TIER", "quick")
    assert teaching.by_tier(quick=1, full=2) == 1
    monkeypatch.setenv("LIGER_MINI_TIER", "full")
    assert teaching.by_tier(quick=1, full=2) == 2
    monkeypatch.setenv("LIGER_MINI_TIER", "fast")
    with pytest.raises(ValueError, match="allowed are 'quick', 'full', 'gpu'"):
        teaching.tier()
    monkeypatch.setenv("LIGER_MINI_TIER", "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no CUDA GPU here; set it to 'full'"):
        teaching.tier()
    monkeypatch.delenv("LIGER_MINI_TIER")
    assert teaching.tier() == "full"


def test_a_reader_sees_what_was_recorded(monkeypatch, tmp_path):
    for module in (record, records):
        monkeypatch.setattr(module, "data_dir", lambda: tmp_path)
    monkeypatch.setenv("LIGER_MINI_TIER", "quick")
    assert "Nothing was recorded" in teaching.compare("77", {"loss (nats)": 1.5}).caption
    monkeypatch.setenv("LIGER_MINI_RECORD", "1")
    teaching.compare("77", {"loss (nats)": 1.5, "tokens": 1200})
    monkeypatch.delenv("LIGER_MINI_RECORD")
    table = teaching.compare("77", {"loss (nats)": 1.625, "tokens": 1200, "new": 2})
    assert table.rows == [["loss (nats)", "1.62", "1.5"], ["tokens", "1,200", "1,200"], ["new", "2", ""]]
    assert teaching.available() == ["chapter-77"]
    assert teaching.where(teaching.recorded("chapter-77")["quick"]) in table.caption
    with pytest.raises(ValueError, match=r"take \.item\(\)"):
        teaching.compare("77", {"loss": torch.tensor(1.0)})
    with pytest.raises(FileNotFoundError, match="there are chapter-77"):
        teaching.recorded("chapter-78")


def test_source_is_the_source():
    text = teaching.source(gates.head_decay).data
    assert text.startswith("def head_decay(heads: int")
    assert text.endswith("return -torch.exp2(-8 * h / heads)")
    assert '"""' not in text
    assert '"""log α_h' in teaching.source(gates.head_decay, docstring=True).data
    with pytest.raises(TypeError, match="no Python source"):
        teaching.source(int)


def decay(temper, gain):
    if temper == 0:
        raise ValueError("temper = 0: allowed are numbers > 0")
    figure = new_figure("Decay", "age (tokens)", "share left")
    figure.add_scatter(x=[0, 1, 2], y=[gain * 0.5 ** (t / temper) for t in range(3)])
    return described(figure, f"Decay with half-life {temper} tokens, gain {gain}.")


KEYS = torch.randn(2, 40, 2, 8, generator=torch.Generator().manual_seed(0))


def real_gate(temper, lower_bound):
    """What keys keep from one token to the next, in the mean."""
    alpha = (lower_bound + (1 - lower_bound) * KEYS[:, 1:].double().sigmoid()) ** (1 / temper)
    return pytest.approx(alpha.mean().item(), rel=1e-5)


def norms(structure):
    return STATES[structure].flatten(1).norm(dim=1).tolist()


def blocks(structure, t):
    """16 x 16 root mean squares of a state of 32 x 64."""
    squares = STATES[structure][t - 1].square().unflatten(1, (16, 4)).unflatten(0, (16, 2))
    return pytest.approx(squares.mean((1, 3)).sqrt().numpy(), abs=1e-3)


def two_tokens(structure, mix):
    p = {"gla": 0.1, "rwkv6": 0.6}[structure]
    return conversion.next_token(
        ["Rome", "others"], [1.0, 0.0], [p - mix / 10, 1 - p], name=f"{structure} {mix}", loss=1.0
    )


class Widget(NamedTuple):
    """A function, its controls, how its words begin, and what else is seen where: formats or functions of the setting."""

    draw: Callable
    controls: dict
    words: str | Callable
    seen: dict = {}  # noqa: RUF012


WIDGETS = {
    "decay": Widget(
        decay,
        {"temper": [1, 4, 16], "gain": [1, 2]},
        "Decay with half-life {temper} tokens, gain {gain}.",
        {"data[0].y": lambda temper, gain: [gain * 0.5 ** (age / temper) for age in range(3)]},
    ),
    "state_stream": Widget(
        lambda shift, t: attention.state_stream(*facts(t=t, shift=shift), NAMES, VALUES),
        {"shift": [0.0, 0.5], "t": [1, 2, 3, 4]},
        "Two heat maps. Above, the 3 x 4 state after {t} facts",
    ),
    "remembering": Widget(
        lambda temper, lower_bound: remembering(KEYS, temper=temper, lower_bound=lower_bound, window=8, oldest=32),
        {"temper": [1, 16, 256], "lower_bound": [0.0, 0.5]},
        "Temper {temper}, lower bound {lower_bound}: ",
        {"data[0].y[32]": lambda temper, lower_bound: pytest.approx(((1 + lower_bound) / 2) ** (32 / temper))}
        | {"data[1].y[1]": real_gate},
    ),
    "attention_maps": Widget(
        lambda structure: structures.attention_maps({structure: maps()[structure]}),
        {"structure": ADDING},
        "Heat maps of who takes from whom over 12 tokens. {structure}: ",
        {"layout.annotations[0].text": "{structure}"},
    ),
    "state_at": Widget(
        lambda structure, t: structures.state_at(STATES, structure, t),
        {"structure": list(STATES), "t": [1, 7, 20]},
        lambda structure, t: f"The state of {structure}: its norm is {norms(structure)[t - 1]:.2f} at t = {t}",
        {"data[0].z": blocks, "data[1].y": lambda structure, t: pytest.approx(norms(structure))}
        | {"data[2].x": lambda structure, t: [t], "layout.yaxis2.title.text": "norm"}
        | {"data[2].y": lambda structure, t: pytest.approx(norms(structure)[t - 1 : t])},
    ),
    "chunk_map": Widget(
        lambda C, t: chunks.chunk_map(torch.arange(1.0, 37.0).view(6, 6).tril() / 36, C, t),
        {"C": [1, 2, 3, 6], "t": [6, 5, 4, 3, 2, 1]},
        "The 6 x 6 lower triangle in chunks of {C}: ",
    ),
    "anchored_exponents": Widget(
        lambda anchor: chunks.anchored_exponents(torch.full((32,), -5.0).cumsum(0), anchor),
        {"anchor": [0, 4, 16, 28, 32]},
        "Exponents of queries and keys with the anchor ",
    ),
    "roofline": Widget(
        roofline,
        {"gpu": ["A100", "H100"], "chunk": [64, 16], "T": [4096, 512]},
        "Roofline of an {gpu}",
        {"layout.title.text": "{gpu}, C = {chunk}, T = {T:,}"},
    ),
    "band": Widget(
        lambda W: window.band(visible(8, W), W), {"W": [1, 2, 4, 8]}, "A 8 x 8 map of scores for a window of {W} tokens"
    ),
    "reach_map": Widget(
        lambda W: window.reach_map(staircase(3, 12, W), W),
        {"W": [4, 3, 2]},
        "Heat map of the change against distance and layer, W = {W}.",
    ),
    "next_token": Widget(
        two_tokens,
        {"structure": ["gla", "rwkv6"], "mix": [0.5, 0.25, 0.0]},
        "Probability of the next token, {structure} {mix}.",
        {"layout.title.text": "{structure} {mix}: 1.00 nats"},
    ),
    "half_life_and_window": Widget(
        collapse.half_life_and_window,
        {"temper": [16, 1024], "window": [64, 16]},
        lambda temper, window: f"With half-life {temper}, {0.5 ** (window / temper):.0%} of a fact is left",
        {"data[0].x": lambda temper, window: [0, window, window, 0]}
        | {"data[1].x": lambda temper, window: list(range(257))}
        | {"data[1].y": lambda temper, window: pytest.approx([0.5 ** (age / temper) for age in range(257)])},
    ),
    "cost_model": Widget(
        speed.cost_model,
        {"cost": ["prefill FLOPs", "decode bytes"], "width": [64, 128], "window": [64, 16]},
        "{cost} a token and head for K = V = {width} and a window of {window}",
        {"layout.title.text": "{cost}, K = {width}, W = {window}"},
    ),
}


def as_json(figure):
    """Traces and layout; a live figure also names its traces."""
    content = json.loads(pio.to_json(figure))
    return [{**trace, "uid": None} for trace in content["data"]], content["layout"]


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widget_follows_its_controls(name):
    """Slider by slider through every setting: figure and words are what the function draws, and what the setting asks."""
    draw, controls, begin, seen = WIDGETS[name]
    box = widgets.explore(draw, **controls)
    *sliders, view, words = box.children
    for values in [*itertools.product(*controls.values())][::-1]:
        for slider, value in zip(sliders, values, strict=True):
            slider.value = value
        setting = dict(zip(controls, values))
        assert as_json(view) == as_json(draw(**setting))
        assert words.value == html.escape(alt_text(draw(**setting)))
        for place, told in {"words": begin, **seen}.items():
            expected = told(**setting) if callable(told) else told.format(**setting)
            assert words.value.startswith(expected) if place == "words" else look(view, place) == expected, place
    assert ", ".join(f"{name.replace('_', ' ')} {offered[-1]}" for name, offered in controls.items()) in box.twin


def test_the_twin_has_every_setting_and_needs_no_kernel():
    figure = figures.with_slider(decay, temper=[1, 4], gain=[1, 2])
    assert [frame.name for frame in figure.frames] == [f"temper {t}, gain {g}" for t in (1, 4) for g in (1, 2)]
    assert list(figure.frames[-1].data[0].y) == list(decay(4, 2).data[0].y)
    assert "half-life 4 tokens, gain 2" in alt_text(figure)
    assert figure.layout.meta["controls"] == {"temper": ["1", "4"], "gain": ["1", "2"]}
    box = widgets.explore(decay, temper=[1, 4], gain=[1, 2])
    bundle = box._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "temper 4, gain 2" in bundle["text/html"]
    assert "http" not in bundle["text/html"].split("<script")[0]
    with pytest.raises(ValueError, match="temper = 0"):
        widgets.explore(decay, temper=[1, 0], gain=[1])


def test_a_displayed_figure_has_words_and_loads_nothing(monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")  # what Plotly chooses in a Jupyter kernel
    bundle = decay(4, 1)._repr_mimebundle_()
    assert bundle["application/vnd.plotly.v1+json"]["data"]
    assert ">Decay with half-life 4 tokens, gain 1.</figcaption>" in bundle["text/html"]
    assert 'role="img"' in bundle["text/html"]
    assert "src=" not in bundle["text/html"]
    assert bundle["text/plain"] == "Decay with half-life 4 tokens, gain 1."
    json.dumps(bundle["application/vnd.plotly.v1+json"]["layout"]["meta"])


def test_where_nobody_is_there_a_widget_is_its_twin(monkeypatch):
    monkeypatch.setattr(widgets, "request", lambda: {"content": {"allow_stdin": False}})
    twin = widgets.explore(decay, temper=[1, 4], gain=[1, 2])
    assert len(twin.frames) == 4
    assert "A slider shows 4 settings, of which this is temper 1, gain 1." in alt_text(twin)


def test_the_map_of_the_course_says_what_the_chapters_say():
    """Each notebook's first cell links the chapters it needs; the map draws those."""
    titles = {path.name[:2]: path for path in NOTEBOOKS}
    assert set(titles) == set(CHAPTERS)
    for number, path in titles.items():
        opening = nbformat.read(path, as_version=4).cells[0].source
        (line,) = [line for line in opening.splitlines() if line.startswith("| Prerequisites")]
        assert set(re.findall(r"\]\((\d\d)-", line)) >= set(CHAPTERS[number].needs), number
    arrows = figures.course_map().layout.annotations
    assert len(arrows) == sum(len(chapter.needs) for chapter in CHAPTERS.values())


def test_every_paper_a_chapter_cites_is_in_the_bibliography():
    bibliography = (NOTEBOOKS[0].parent.parent / "book" / "references.bib").read_text()
    cited = {number for path in NOTEBOOKS for number in re.findall(r"\b\d{4}\.\d{5}\b", path.read_text())}
    assert len(cited) > 10
    assert {number for number in cited if f"arXiv:{number}" not in bibliography} == set()


def test_source_of_a_tuned_kernel_is_the_kernel():
    pytest.importorskip("triton")
    from liger_mini.kernels import diagonal

    assert "def _chunk_states(" in teaching.source(diagonal._chunk_states).data


def test_kernel_source_shows_functions_methods_and_pieces():
    whole = kernel_source("scalar.within_chunk").data
    assert whole.startswith("@triton.jit\ndef within_chunk")
    assert '"""' not in whole
    piece = kernel_source("diagonal._chunk_states", "S = load", "store(last").data.splitlines()
    assert piece[0].startswith("S = load")
    assert piece[-1].startswith("store(last")
    assert piece[1].startswith("for step")
    assert kernel_source("slots._Scores.forward").data.startswith("@staticmethod")


def test_kernels_are_shown_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # as on a machine that has none
    monkeypatch.delitem(sys.modules, "liger_mini.kernels.tiles", raising=False)
    assert "def load" in kernel_source("tiles.load").data
    assert "liger_mini.kernels.tiles" not in sys.modules


def test_beside_looks_both_lines_up():
    table = beside({"keep": (loops.carry, "before.append", "diagonal._chunk_states", "store(states_ptr")})
    ((what, ours, kernels),) = table.rows
    assert (what, ours) == ("keep", "before.append(state)")
    assert kernels.startswith("store(states_ptr")
    assert "<code>before.append(state)</code>" in table._repr_html_()
    assert "PyTorch: before.append(state)" in str(table)
