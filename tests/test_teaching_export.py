"""The reader's Plotly stays the reader's, and an exported notebook shows every figure without a network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExecutePreprocessor
from plotly.offline import get_plotlyjs
from sphinx.errors import ExtensionError

from liger_mini.teaching import book, glossary
from liger_mini.teaching.figures import as_html, course_map, display

PLOTLY = "application/vnd.plotly.v1+json"
IMPORTS = """
import importlib, pkgutil
from liger_mini import teaching
for module in pkgutil.walk_packages(teaching.__path__, "liger_mini.teaching."):
    importlib.import_module(module.name)
"""
DRAW = """
from liger_mini.teaching import figures, widgets
from liger_mini.teaching.figures.theme import described, new_figure

def line(slope):
    figure = new_figure(f"Slope {slope}", "x", "y")
    figure.add_scatter(x=[0, 1], y=[0, slope])
    return described(figure, f"A line of slope {slope}.")
"""
FIGURES = ("figures.course_map()", "line(2).show()", "widgets.explore(line, slope=[1, 2, 3])")


def executed(*cells: str) -> nbformat.NotebookNode:
    """A notebook of these cells, run as nbmake and nbconvert run one."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    ExecutePreprocessor(kernel_name="python3", timeout=300).preprocess(notebook, {})
    return notebook


def bundles(notebook: nbformat.NotebookNode) -> list[dict]:
    """What the outputs carry: MIME type -> content."""
    return [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]


def exported(notebook: nbformat.NotebookNode) -> str:
    """The page that `jupyter nbconvert --to html` writes."""
    return HTMLExporter().from_notebook_node(notebook)[0]


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PLOTLY_RENDERER", raising=False)
        return executed(DRAW, *FIGURES)


@pytest.mark.parametrize("chosen", [None, "json", "notebook_connected+svg"])
def test_importing_the_course_changes_nothing_of_plotly(chosen):
    environment = {name: value for name, value in os.environ.items() if name != "PLOTLY_RENDERER"}
    environment |= {"PLOTLY_RENDERER": chosen} if chosen else {}
    state = "(pio.renderers.default, list(pio.renderers), pio.renderers.render_on_display, pio.templates.default)"
    check = f"import plotly.io as pio\nbefore = {state}\n{IMPORTS}\nassert {state} == before, ({state}, before)"
    subprocess.run([sys.executable, "-c", check], env=environment, check=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["variable", "assignment"])
def test_the_readers_renderer_draws_the_figures(how, monkeypatch):
    choice = "" if how == "variable" else "import plotly.io as pio; pio.renderers.default = 'json'"
    if how == "variable":
        monkeypatch.setenv("PLOTLY_RENDERER", "json")
    outputs = bundles(executed(DRAW + choice, *FIGURES))
    assert [list(output) for output in outputs] == [["application/json"]] * len(FIGURES)


@pytest.mark.slow
def test_an_output_carries_the_figure_twice_and_its_words(notebook):
    outputs = bundles(notebook)
    assert [set(output) for output in outputs] == [{PLOTLY, "text/html", "text/plain"}] * len(FIGURES)
    assert [output["text/plain"] for output in outputs[:2]] == [course_map().layout.meta["alt"], "A line of slope 2."]
    assert ">A line of slope 2.</figcaption>" in outputs[1]["text/html"]
    assert "widgets" not in notebook.metadata


@pytest.mark.slow
def test_an_exported_notebook_has_plotlyjs_once_and_loads_nothing_for_it(notebook):
    page, empty = exported(notebook), exported(nbformat.v4.new_notebook())
    assert page.count(get_plotlyjs()) == page.count("* plotly.js v") == 1

    def loaded(page: str) -> list[str]:
        return re.findall(r"<script[^>]* src=[\"']?(https?://[^\"' >]+)", page)

    assert loaded(page) == loaded(empty)  # require.js and MathJax, which are nbconvert's own


def test_the_cell_that_brings_plotlyjs_brings_it_each_time_it_runs(monkeypatch):
    class Shell:
        def __init__(self, cell, run):
            self.execution_count, self.cell = run, cell

        def get_parent(self):
            return {"metadata": {"cellId": self.cell} if self.cell else {}}

    def brought(*runs):
        monkeypatch.setattr(display, "_carrier", None)
        answers = []
        for cell, run in runs:
            with monkeypatch.context() as patch:
                patch.setattr(display, "get_ipython", lambda shell=Shell(cell, run): shell)
                answers.append("data-plotlyjs" in display.for_notebook(course_map()))
        return answers

    assert brought(("a", 1), ("a", 1), ("b", 2), ("a", 3), ("b", 4)) == [True, False, False, True, False]
    assert brought((None, 1), (None, 2), (None, 2)) == [True, False, False]  # a front end that does not name its cells
    monkeypatch.setattr(display, "_carrier", None)
    assert "data-plotlyjs" not in display.for_notebook(course_map())  # outside a notebook


def test_the_book_drops_the_copy_in_the_outputs():
    nodes, utils = pytest.importorskip("docutils.nodes"), pytest.importorskip("docutils.utils")
    document = utils.new_document("chapter")
    document += nodes.raw("", as_html(course_map(), include_plotlyjs=True), format="html")
    book.drop_copies(None, document)
    (left,) = [node.astext() for node in document.findall(nodes.raw)]
    assert "plotly.js v" not in left
    assert left.startswith("<figure")
    assert "drawFigure(" in left


def test_a_figure_without_words_or_a_name_is_refused():
    figure = course_map()
    with pytest.raises(ValueError, match=r"without a title: `new_figure` takes one"):
        as_html(figure.update_layout(title=None))
    with pytest.raises(ValueError, match=r"without alt text: call `described"):
        as_html(course_map().update_layout(meta={"alt": ""}))


def cell(outputs=(), count=1):
    """A code cell that ran."""
    return {"cell_type": "code", "source": ["x"], "execution_count": count, "outputs": list(outputs), "metadata": {}}


def shows(**data):
    return {"output_type": "display_data", "data": data}


BAD = {
    "was not executed": cell(count=None),
    "raised ValueError: no": cell([{"output_type": "error", "ename": "ValueError", "evalue": "no"}]),
    "a figure without alt text": cell([shows(**{PLOTLY: {"layout": {}}})]),
    "a picture without alt text": cell([shows(**{"image/png": "…"})]),
    "an <img> without alt": cell([shows(**{"text/html": ["<img src='x.svg'>"]})]),
}


@pytest.mark.parametrize("words", BAD)
def test_the_book_refuses_a_notebook_and_names_file_and_cell(words, tmp_path):
    notebook = tmp_path / "notebooks" / "03-bad.ipynb"
    notebook.parent.mkdir()
    notebook.write_text(json.dumps({"cells": [cell(), BAD[words]]}), "utf-8")
    (found,) = book.faults(notebook)
    assert found.startswith(f"{notebook}, cell 2: ")
    assert words in found
    with pytest.raises(ExtensionError, match=r"03-bad\.ipynb, cell 2"):
        book.prepare(SimpleNamespace(srcdir=tmp_path))


@pytest.fixture
def offline_page(browser):
    """A page that reaches no network."""
    context = browser.new_context(offline=True, viewport={"width": 1000, "height": 900})
    yield context.new_page()
    context.close()


@pytest.mark.slow
def test_a_browser_without_a_network_draws_every_figure(notebook, tmp_path, offline_page):
    path = Path(tmp_path, "notebook.html")
    path.write_text(exported(notebook), encoding="utf-8")
    page = offline_page
    page.route(re.compile("^https?:"), lambda route: route.fulfill(body=""))  # nbconvert's own scripts: nothing
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri(), wait_until="load")
    page.wait_for_selector(f":nth-match(figure:has(.main-svg), {len(FIGURES)})", timeout=20_000)
    drawn = page.eval_on_selector_all("figure", "all => all.map(f => f.querySelectorAll('.main-svg').length > 0)")
    heights = page.eval_on_selector_all("figure .main-svg", "all => all.map(svg => svg.clientHeight)")
    assert drawn == [True] * len(FIGURES)
    assert min(heights) > 200
    assert page.locator("figure input[type=range]").count() == 1  # the widget's twin
    assert complaints == []


@pytest.mark.parametrize(
    ("repository", "links"),
    [
        ("", []),
        ("https://git.example/me/fork", ["https://git.example/me/fork/blob/main/notebooks/03.ipynb"]),
        (
            "https://github.com/me/fork",
            ["https://github.com/me/fork/blob/main/notebooks/03.ipynb", "https://codespaces.new/me/fork"],
        ),
    ],
)
def test_one_setting_makes_the_buttons_that_open_a_chapter_elsewhere(repository, links):
    assert re.findall(r'href="([^"]*)"', book.launch(repository, "notebooks/03")) == links


GLOSSARY = """# Glossary

:::{glossary}
gate
  The share that survives.

half-life
  In tokens.

inside, between
  Where an answer was told.

linearize
  Replace softmax.
:::
"""


def test_a_chapter_leads_to_the_glossary_where_it_first_uses_a_word(tmp_path):
    nodes, utils = pytest.importorskip("docutils.nodes"), pytest.importorskip("docutils.utils")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "glossary.md").write_text(GLOSSARY, "utf-8")

    def linked(name):
        said = "Gated Retention is between names. Linearizing needs gates, a log-gate, one gate: a half life."
        document = utils.new_document(name)
        document += nodes.title("", "The gate")
        document += nodes.paragraph("", "", nodes.literal("", "gate"), nodes.Text(said), nodes.emphasis("", "inside"))
        app = SimpleNamespace(env=SimpleNamespace(docname=name), srcdir=tmp_path)
        glossary.link_first_uses(app, document)
        assert document.astext().replace("\n", "") == f"The gategate{said}inside"
        return [(link.astext(), link["reftarget"]) for link in document.findall(glossary.pending_xref)]

    told = [("Linearizing", "linearize"), ("gates", "gate"), ("half life", "half-life"), ("inside", "inside, between")]
    assert linked("notebooks/03-chapter") == told
    assert linked("book/notation") == linked("notebooks/exercises/03-exercises") == []


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("linearize", "liger_mini/convert.py"),
        ("recovery.Recipe", "liger_mini/recovery/recipes.py"),
        ("structures", None),
    ],
)
def test_a_name_of_the_reference_links_to_its_first_line(name, file):
    """Where the book has the address of a repository; a mapping has no line of its own."""
    address = book.source_of("https://git.example/course/", "liger_mini", name)
    assert book.source_of("", "liger_mini", name) is None
    assert book.source_of("https://git.example/course/", "", name) is None  # a field of a class has no module
    if file is None:
        assert address is None
        return
    place, line = address.split("#L")
    assert place == f"https://git.example/course/blob/main/{file}"
    first = (book.ROOT / file).read_text("utf-8").splitlines()[int(line) - 1]
    assert first.startswith(("def linearize", "@dataclass"))


def test_a_name_or_a_verb_is_no_headword(tmp_path):
    nodes, utils = pytest.importorskip("docutils.nodes"), pytest.importorskip("docutils.utils")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "glossary.md").write_text(GLOSSARY, "utf-8")
    document = utils.new_document("notebooks/03-chapter")
    document += nodes.paragraph("", "They can gate it, and Mr Gates does not gate it. Gates do.")
    app = SimpleNamespace(env=SimpleNamespace(docname="notebooks/03-chapter"), srcdir=tmp_path)
    glossary.link_first_uses(app, document)
    (link,) = document.findall(glossary.pending_xref)
    assert link.astext() == "Gates"
    assert link.parent.children[-1].astext() == " do."  # the last one


def test_a_progress_bar_that_stands_still_is_left_out():
    nodes, utils = pytest.importorskip("docutils.nodes"), pytest.importorskip("docutils.utils")
    document = utils.new_document("notebooks/08")
    bar = "  0%|          | 0/60 [00:00<?, ?it/s]"
    document += nodes.literal_block("", f"{bar}\nloss 2.1", classes=["output", "stream"])
    document += nodes.literal_block("", bar, classes=["output", "stderr"])
    document += nodes.literal_block("", f"print('{bar}')", classes=["code"])
    book.drop_copies(None, document)
    assert [block.astext() for block in document.findall(nodes.literal_block)] == ["loss 2.1", f"print('{bar}')"]
