"""What every notebook leans on: checks that can fail, tables, tiers, recorded results, figures with words, widgets with twins."""

import json
import re
from pathlib import Path

import nbformat
import plotly.io as pio
import pytest
import torch

from liger_mini import gates, teaching
from liger_mini.teaching import figures, record, widgets
from liger_mini.teaching.figures.course import CHAPTERS
from liger_mini.teaching.figures.theme import described, new_figure

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
    monkeypatch.setattr(record, "data_dir", lambda: tmp_path)
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


def test_explore_redraws_with_its_own_function():
    box = widgets.explore(decay, temper=[1, 4, 16], gain=[1, 2])
    temper, gain, view, words = box.children
    for t, g in ((4, 1), (16, 2), (1, 2), (1, 1)):
        temper.value, gain.value = t, g
        assert list(view.data[0].y) == list(decay(t, g).data[0].y)
        assert words.value == f"Decay with half-life {t} tokens, gain {g}."
    with pytest.raises(ValueError, match="temper = 0"):
        widgets.explore(decay, temper=[1, 0], gain=[1])


def test_the_twin_has_every_setting_and_needs_no_kernel():
    figure = figures.with_slider(decay, temper=[1, 4], gain=[1, 2])
    assert [frame.name for frame in figure.frames] == [
        "temper 1, gain 1",
        "temper 1, gain 2",
        "temper 4, gain 1",
        "temper 4, gain 2",
    ]
    assert list(figure.frames[-1].data[0].y) == list(decay(4, 2).data[0].y)
    assert "half-life 4 tokens, gain 2" in figures.alt_text(figure)
    box = widgets.explore(decay, temper=[1, 4], gain=[1, 2])
    bundle = box._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "temper 4, gain 2" in bundle["text/html"]
    assert "http" not in bundle["text/html"].split("<script")[0]


def test_a_displayed_figure_has_words_and_loads_nothing(monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")  # what Plotly chooses in a Jupyter kernel
    bundle = decay(4, 1)._repr_mimebundle_()
    assert bundle["application/vnd.plotly.v1+json"]["data"]
    assert 'aria-label="Decay with half-life 4 tokens, gain 1."' in bundle["text/html"]
    assert "src=" not in bundle["text/html"]
    assert bundle["text/plain"] == "Decay with half-life 4 tokens, gain 1."
    json.dumps(bundle["application/vnd.plotly.v1+json"]["layout"]["meta"])


def test_where_nobody_is_there_a_widget_is_its_twin(monkeypatch):
    monkeypatch.setattr(widgets, "request", lambda: {"content": {"allow_stdin": False}})
    twin = widgets.explore(decay, temper=[1, 4], gain=[1, 2])
    assert len(twin.frames) == 4
    assert "A slider shows 4 settings." in figures.alt_text(twin)


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
