"""A Sphinx extension for the book: one plotly.js for all pages, a line about each chapter, a page about the build."""

from __future__ import annotations

import functools
import html
import importlib
import inspect
import json
import re
import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from plotly.offline import get_plotlyjs
from sphinx.errors import ExtensionError

import liger_mini
from liger_mini.evaluation import Report
from liger_mini.support.provenance import provenance
from liger_mini.support.records import recorded, where
from liger_mini.support.tables import Table
from liger_mini.teaching.figures import alt_text, as_html, recall_by_distance
from liger_mini.teaching.figures.display import FIGURE_JS, without_plotlyjs
from liger_mini.teaching.figures.theme import described
from liger_mini.teaching.glossary import link_first_uses
from liger_mini.teaching.matrix import equivalence_matrix

PLOTLY = "application/vnd.plotly.v1+json"
WORDS_A_MINUTE = 180  # of prose with formulas
MAP, GITHUB = "notebooks/00-quickstart", "https://github.com/"
ROOT = Path(liger_mini.__file__).parents[1]
PROGRESS = re.compile(r"^.*\d+%\|.*\[.*<.*\].*\n?", re.MULTILINE)  # a line of tqdm
NEEDED_FOR_FIGURES = ("plotly.min.js", "figure.js")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_config_value("course_repository", "", "html")
    app.add_directive("course-status", Status)
    app.add_directive("equivalence-matrix", Matrix)
    app.add_directive("headline-figure", Headline)
    app.connect("builder-inited", prepare)
    app.setup_extension("sphinx.ext.linkcode")
    app.connect("config-inited", link_code)
    if "sphinx.ext.autodoc" in app.extensions:
        app.connect("autodoc-process-docstring", as_written, priority=1)
        app.connect("autodoc-process-docstring", names_as_written, priority=900)
    app.connect("doctree-read", drop_copies)
    app.connect("doctree-read", link_first_uses)
    app.connect("html-page-context", finish_page, priority=900)
    for script in NEEDED_FOR_FIGURES:
        app.add_js_file(script, defer="defer")
    app.add_js_file("site.js", defer="defer")
    app.add_css_file("site.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def prepare(app: Any) -> None:
    """Put the scripts of the figures among the site's files, and refuse notebooks that are not fit to be shown."""
    static = Path(app.srcdir, "book", "_static")
    static.mkdir(parents=True, exist_ok=True)
    (static / "plotly.min.js").write_text(get_plotlyjs(), "utf-8")
    shutil.copy(FIGURE_JS, static)
    found = [fault for path in executed(app.srcdir) for fault in faults(path)]
    if found:
        raise ExtensionError("\n".join(["notebooks that the book cannot show:", *found]))


def link_code(app: Any, config: Any) -> None:
    """In the reference each name links to its code in the repository, where the book has the address of one."""
    config.linkcode_resolve = lambda domain, about: source_of(
        config.course_repository, about["module"], about["fullname"]
    )


def source_of(repository: str, module: str, name: str) -> str | None:
    """The address of a name's first line; None without a repository or a module, or for what is no class and no function."""
    if not repository or not module:
        return None
    thing: Any = importlib.import_module(module)
    for part in name.split("."):
        thing = getattr(thing, part, None)
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return None
    path = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "")
    if not path.is_relative_to(ROOT):
        return None
    line = inspect.getsourcelines(thing)[1]
    return f"{repository.rstrip('/')}/blob/main/{path.relative_to(ROOT).as_posix()}#L{line}"


def executed(source: str | Path) -> list[Path]:
    """The book's notebooks that are run: all but the students' exercises."""
    return sorted([*Path(source).glob("notebooks/*.ipynb"), *Path(source).glob("book/*.ipynb")])


def faults(path: Path) -> list[str]:
    """What keeps a notebook out of the book, by file and cell: cells that did not run, errors, pictures without words."""
    found = []
    for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"], 1):
        if cell["cell_type"] == "code" and "".join(cell["source"]).strip():
            found += [f"{path}, cell {number}: {words}" for words in _faults_of_cell(cell)]
    return found


def _faults_of_cell(cell: dict[str, Any]) -> list[str]:
    found = ["was not executed; `make book` does that"] if cell["execution_count"] is None else []
    for output in cell["outputs"]:
        data = output.get("data", {})
        if output["output_type"] == "error":
            found.append(f"raised {output['ename']}: {output['evalue']}")
        if PLOTLY in data and not data[PLOTLY]["layout"].get("meta", {}).get("alt"):
            found.append("shows a figure without alt text; call `described(figure, words)`")
        if any(mime.startswith("image/") for mime in data):
            found.append("shows a picture without alt text; show it as HTML with an alt")
        if re.search(r"<img(?![^>]*\balt=)", "".join(data.get("text/html", ""))):
            found.append("shows an <img> without alt")
    return found


def drop_copies(app: Any, document: nodes.document) -> None:
    """Take plotly.js out of the outputs on a page, and progress bars, which stand still there."""
    for output in document.findall(nodes.raw):
        output[:] = [nodes.Text(without_plotlyjs(output.astext()))]
    for printed in list(document.findall(nodes.literal_block)):
        if "output" in printed.get("classes", []) and PROGRESS.search(printed.astext()):
            left = PROGRESS.sub("", printed.astext()).strip("\n")
            if left:
                printed.parent.replace(printed, nodes.literal_block(left, left, **printed.attributes))
            else:
                printed.parent.remove(printed)


def as_written(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are prose: what reStructuredText would take for markup (S_t, *, |) stays as it is, `code` is code."""
    parts = re.split(r"`+([^`]+)`+", "\n".join(lines))
    escaped = (f"``{part}``" if i % 2 else re.sub(r"([\\*_|])", r"\\\1", part) for i, part in enumerate(parts))
    lines[:] = "".join(escaped).split("\n")


def names_as_written(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon has made directives of attributes, whose names are no prose: what `as_written` escaped comes back."""
    lines[:] = [line.replace("\\", "") if line.startswith(".. attribute::") else line for line in lines]


def finish_page(app: Any, name: str, template: str, context: dict[str, Any], document: nodes.document | None) -> None:
    """Leave out scripts that a page has no use for, and write the line under a chapter's title."""
    body = context.get("body", "")
    unused: tuple[str, ...] = () if "plotly-graph-div" in body else NEEDED_FOR_FIGURES
    unused += () if 'class="math' in body else ("tex-chtml",)
    context["without_icon_script"] = lambda head: re.sub(r"<script [^>]*fontawesome\.js[^>]*></script>", "", head)
    kept = {}
    for script in context.get("script_files", []):
        words = f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', {}).get('body', '')}"
        # Thebe would load its code from a server: the theme declares it, twice
        if not any(skipped in words for skipped in ("thebe", "THEBE", *unused)):
            kept.setdefault(words, script)
    context["script_files"] = list(kept.values())
    # a list whose items have a deprecated role of their own is no list to a screen reader
    body = re.sub(r' role="(list|doc-biblioentry)"', "", body) if "doc-biblioentry" in body else body
    context["body"] = body
    if document is not None:
        above = about(app, name, document) if name.startswith("notebooks/") else ""
        chapter = "" if name == MAP else context["pathto"](MAP)
        where_we_are = f'<a href="{chapter}#a-map-of-the-course">Map of the course</a>'
        context["body"] = body.replace("</h1>", f'</h1><div class="about-page">{where_we_are}{above}</div>', 1)


def about(app: Any, name: str, document: nodes.document) -> str:
    """How long a chapter reads, where it stands in the course, and how a reader runs it."""
    prose = " ".join(p.astext() for p in document.findall(nodes.paragraph))
    place = f"{max(1, round(len(prose.split()) / WORDS_A_MINUTE))} minutes to read"  # a chapter says that itself
    chapters = [path.stem for path in executed(app.srcdir) if path.parent.name == "notebooks"]
    if (chapter := name.rpartition("/")[2]) in chapters:
        at, last = chapters.index(chapter), len(chapters) - 1
        bar = f'<progress value="{at}" max="{last}" aria-label="progress through the course"></progress>'
        place = f"chapter {at} of {last} {bar}"
    repository = app.config.course_repository.rstrip("/")
    address = html.escape(repository) or "&lt;the repository's address&gt;"
    return (
        f" · {place}<details><summary>Run it yourself</summary>"
        f"<p>Clone the repository, <code>git clone {address}</code>. In its folder <code>make lab</code> opens JupyterLab; "
        f"this page is <code>{name}.ipynb</code> there, with live sliders.{launch(repository, name)}</p></details>"
    )


def launch(repository: str, name: str) -> str:
    """Links to a notebook on the web, and to a machine that can run it; empty without the address of a repository."""
    places = {"Open the notebook in the repository": f"{repository}/blob/main/{name}.ipynb"} if repository else {}
    if repository.startswith(GITHUB):
        places["Open a machine in the browser"] = repository.replace(GITHUB, "https://codespaces.new/")
    return "".join(f' <a class="launch" href="{html.escape(at)}">{words}</a>' for words, at in places.items())


class Status(Directive):
    """The table of the run that made the site."""

    def run(self) -> list[nodes.Node]:
        """Read off the executed notebooks and this machine."""
        source = Path(self.state.document.settings.env.srcdir)
        begun, rows = [], []
        for path in executed(source):
            times = run_times(path)
            begun.append(times[0])
            rows.append([f"{path.parent.name}/{path.stem}", f"{(times[1] - times[0]).total_seconds():.0f}"])
        here = {name: str(value) for name, value in provenance().items() if value is not None and name != "date"}
        facts = {"commit": commit(), "notebooks executed": f"{min(begun):%Y-%m-%d %H:%M} UTC", **here}
        machine = Table(["", "this site"], [list(pair) for pair in facts.items()], "What made this site.")
        seconds = Table(
            ["notebook", "seconds"], rows, "How long each notebook ran, two side by side, in the quick tier."
        )
        return [nodes.raw("", table._repr_html_(), format="html") for table in (machine, seconds)]


class Matrix(Directive):
    """The equivalence matrix of a record: its name is the directive's argument."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """From data/results."""
        name = self.arguments[0]
        return [nodes.raw("", equivalence_matrix(recorded(name), f"{name}.json"), format="html")]


class Headline(Directive):
    """The result that matters, in one figure: who still knows what, and how long ago it was told."""

    def run(self) -> list[nodes.Node]:
        """From the demo's record."""
        demo = recorded("demo-cpu")
        after = demo["delta"]["branch_ablation"]["after"]
        models = {
            "the Transformer": demo["teacher"],
            "linearized, not trained": demo["delta"]["linearized"],
            "linearized and recovered": after["both"],
            "the same, recurrence switched off": after["window only"],
        }
        figure = recall_by_distance({name: Report.from_dict(measured) for name, measured in models.items()})
        return [
            nodes.raw(
                "", as_html(described(figure, f"{alt_text(figure)} demo-cpu.json, {where(demo)}.")), format="html"
            )
        ]


def run_times(path: Path) -> tuple[datetime, datetime]:
    """When a notebook's first cell began and its last one ended, as its execution wrote it down."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    stamps = [stamp for cell in cells for stamp in cell["metadata"].get("execution", {}).values()]
    if not stamps:
        raise ExtensionError(f"{path} does not say when it was executed; run `make book` with its copies removed")
    return datetime.fromisoformat(min(stamps)), datetime.fromisoformat(max(stamps))


@functools.cache
def commit() -> str:
    """The commit of the clone, or that there is none."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    asked = subprocess.run(git, capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else "not a clone"
