"""The book's pages of results and commands: nothing recorded is forgotten, nothing is typed by hand, no command is missing."""

import ast
import json
import re
from pathlib import Path

import pytest

from liger_mini import teaching
from liger_mini.commands import COMMANDS
from liger_mini.experiments import benchmark

ROOT = Path(__file__).parent.parent
CELLS = json.loads((ROOT / "book" / "results.ipynb").read_text("utf-8"))["cells"]
PAGE = (ROOT / "book" / "commands.md").read_text("utf-8")


def run_cells(monkeypatch):
    """Run the notebook's cells; what they show, in order."""
    shown, names = [], {}
    monkeypatch.setattr("IPython.display.display", lambda *values: shown.extend(values))
    for cell in CELLS:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, cell["id"], "exec"), names)
            if last:
                shown.append(eval(compile(last, cell["id"], "eval"), names))
    return shown


@pytest.fixture
def read(monkeypatch):
    """The names of the records that are read while a test runs."""
    names, recorded = set(), teaching.recorded
    monkeypatch.setattr(teaching, "recorded", lambda name: names.add(name) or recorded(name))
    return names


def origins(shown):
    """What stands below each table and figure."""
    words = [x.caption if isinstance(x, teaching.Table) else x.layout.meta["alt"] for x in shown if is_exhibit(x)]
    assert len(words) > 20
    return words


def is_exhibit(x):
    return isinstance(x, teaching.Table) or hasattr(x, "layout")


def test_results_show_every_record_with_its_origin(monkeypatch, read):
    """Its cells also assert what its text says, so this fails where a new record contradicts the text."""
    shown = run_cells(monkeypatch)
    assert read == {name for name in teaching.available() if not name.startswith("chapter-")}
    for words in origins(shown):
        assert re.search(r"\w+\.json, recorded 20\d\d-\d\d-\d\d \d\d:\d\d UTC.* on .*, torch \d", words), words


def test_results_show_what_a_gpu_would_record(monkeypatch):
    on_gpu = {f"{name}-gpu" for name in ("equivalence", "benchmark", "races", "graph", "twins", "walk")}
    rows = benchmark.kernels((64, 128), tokens=128, heads=1, width=16, device="cpu", milliseconds=lambda run: [1.0] * 3)
    recorded, there = teaching.recorded, teaching.available() + list(on_gpu)

    def pretend(name):
        if name not in on_gpu:
            return recorded(name)
        record = recorded(name.replace("-gpu", "-cpu").replace("races", "graph"))
        return {**record, "kernels": rows, "provenance": {**record["provenance"], "gpu": "a GPU of the future"}}

    monkeypatch.setattr(teaching, "recorded", pretend)
    monkeypatch.setattr(teaching, "available", lambda: there)
    shown = run_cells(monkeypatch)
    future = [words for words in origins(shown) if "a GPU of the future" in words]
    assert {name for name in on_gpu if any(name in words for words in future)} == on_gpu
    assert any(hasattr(x, "layout") and "our kernel" in str(x) for x in shown)


def test_no_measured_number_is_typed_into_the_results():
    for cell in CELLS:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            assert not re.search(r"\d\.\d|\d ?%|± ?\d", text.replace("Llama-3.2-1B", "")), text
        else:
            assert {"hide-input", "remove-cell"} & set(cell["metadata"]["tags"]), cell["id"]


def rows(head):
    """What the first column names in a table of the page of commands."""
    table = PAGE.split(f"| {head} |")[1].split("\n\n")[0]
    return set(re.findall(r"^\| `([\w-]+)` \| .+ \|$", table, re.M))


def test_commands_page_has_every_target_and_every_command():
    targets = set(re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert len(targets) > 8
    assert rows("`make` …") == targets
    assert rows("`python -m liger_mini` …") == set(COMMANDS)
