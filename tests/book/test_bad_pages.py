"""What is wrong with a page stops the build or the run, with file and cell: nothing broken is published.

Notebooks that did not run, that raised, or that show figures without words are refused in `test_teaching_export`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from liger_mini.support import records
from liger_mini.teaching.matrix import equivalence_matrix, runs

ROOT = Path(__file__).parents[2]
MISTAKES = """# Mistakes

A [link](nowhere.md) to nothing, a [place](#no-such-place) that is not there, and a paper {cite}`nobody2099`.
"""


def run(command: str, *arguments: str | Path, cwd: Path) -> tuple[int, str]:
    """A command of this environment: how it ended, and all it said."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        [Path(sys.executable).with_name(command), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_broken_links_and_missing_papers_stop_the_build(tmp_path):
    book = tmp_path / "book"
    shutil.copytree(ROOT / "book", book, ignore=shutil.ignore_patterns("*.ipynb", "*.md", "figures"))
    (book / "intro.md").write_text("# Start\n\n```{bibliography}\n:all:\n```\n", "utf-8")
    (book / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nchapters: [{file: book/page}, {file: book/cells}]\n"
    )
    (book / "page.md").write_text(MISTAKES, "utf-8")
    cells = [nbformat.v4.new_markdown_cell(words) for words in ("# Fine", MISTAKES.partition("\n\n")[2])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), book / "cells.ipynb")
    build = ("jupyter-book", "build", tmp_path, "--config", book / "_config.yml", "--toc", book / "_toc.yml")
    ended, said = run(*build, "--all", "--warningiserror", "--keep-going", cwd=tmp_path)
    assert ended != 0
    for place in ("book/page.md:3:", "book/cells.ipynb:2000"):  # cell 2, as MyST-NB counts: 10,000 lines a cell
        told = "\n".join(line for line in said.splitlines() if place in line)
        for mistake in ("nowhere.md", "no-such-place", "nobody2099"):
            assert mistake in told, (place, mistake, said)


@pytest.mark.slow
def test_a_cell_that_raises_is_named(tmp_path):
    code = ["x = 1", "1 / 0"], ["from liger_mini.teaching import recorded", "recorded('demo-cpu')['not measured']"]
    for name, cells in zip(("11-raises", "12-asks"), code):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    ended, said = run("pytest", "--nbmake", "-p", "no:cacheprovider", tmp_path, cwd=tmp_path)
    assert ended == 1
    assert "11-raises.ipynb" in said
    assert "1 / 0" in said
    assert "12-asks.ipynb" in said
    assert "data/results/demo-cpu.json has no field 'not measured'" in said


def test_a_record_without_a_field_is_named(tmp_path, monkeypatch):
    """A number, what it was measured on, and a row of the matrix."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(records, "data_dir", lambda: tmp_path)

    def without(record: str, *path: str | int) -> None:
        told = json.loads((ROOT / "data" / "results" / f"{record}.json").read_text("utf-8"))
        *above, last = path
        inside = told
        for step in above:
            inside = inside[step]
        del inside[last]
        (tmp_path / "results" / f"{record}.json").write_text(json.dumps(told), "utf-8")

    without("memory-cpu", "variants", "kda", "summary")
    with pytest.raises(KeyError, match=r"memory-cpu\.json has no field 'summary' in \{linearize, runs\}"):
        list(runs())
    without("memory-cpu", "provenance", "date")
    with pytest.raises(KeyError, match=r"memory-cpu\.json has no field 'date' in"):
        records.where(records.recorded("memory-cpu"))
    without("equivalence-cpu", "rows", 7, "error")
    with pytest.raises(ValueError, match=r"equivalence-cpu\.json, row 7 has no error"):
        equivalence_matrix(records.recorded("equivalence-cpu"), "equivalence-cpu.json")
