"""The tasks as notebooks: nbgrader's source with solutions and hidden tests, and from it the student's.

A folder that `write` has filled is an nbgrader course: `nbgrader generate_assignment`, `autograde`, `generate_feedback` and
`export` work in it.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from liger_mini.support.paths import write_atomically
from liger_mini.teaching.exercises.check import tasks
from liger_mini.teaching.exercises.picture import picture
from liger_mini.teaching.exercises.task import Task
from liger_mini.teaching.figures.course import CHAPTERS

SEED = 1  # of the hidden tests; check_exercise takes 0
STUB = "raise NotImplementedError  # your code here"
SECONDS = 20  # a cell of a student's may take, and a check beyond the limit of the slowest task
IMPORTS = 120  # seconds for torch on a busy machine
CONFIG = '''\
"""nbgrader's settings for this course; written by `python -m liger_mini assignments`."""

c = get_config()
c.CourseDirectory.course_id = "liger_mini"
c.ClearSolutions.code_stub = {{"python": "{stub}"}}
c.ExecutePreprocessor.interrupt_on_timeout = True
c.ExecutePreprocessor.raise_on_iopub_timeout = False  # a cell that cannot be interrupted costs its own points alone


def seconds(cell):
    """A cell's time limit: the first cell imports torch, an answer defines a function, a check waits for it."""
    name = cell.metadata.get("nbgrader", {{}}).get("grade_id", "")
    return {imports} if name.endswith("setup") else {answer} if name.endswith("answer") else {check}


c.ExecutePreprocessor.timeout_func = seconds
'''
HOW = """\
Write the body of each function, run its cell, then run the check below it. The check calls your function with random numbers in \
several shapes. It knows the likely mistakes by name and says what to read again. An error or an endless loop in your \
function is only a message. Each task has three hints, folded away."""
TESTS = """\
# Worth {points}. Leave this cell as it is. When it is graded, it draws other numbers.
seed = 0
### BEGIN HIDDEN TESTS
import sys

for module in [name for name in sys.modules if name.startswith("liger_mini.teaching.exercises")]:
    del sys.modules[module]  # the grader as it is installed, whatever was put in its place
from liger_mini.teaching.exercises.check import check_exercise

seed = {seed}
### END HIDDEN TESTS
check_exercise("{number}", {name}, seed=seed).points"""

INTERPRETER = """\
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the imports below; too late after them"""


def chapters() -> dict[str, list[Task]]:
    """The tasks of each chapter that has some, "03" -> …"""
    return {chapter: list(group) for chapter, group in groupby(tasks().values(), lambda task: task.number[:2])}


def write(folder: Path, seed: int = SEED) -> list[Path]:
    """Write all exercises: for nbgrader `source/NN-exercises/NN-exercises.ipynb` and its settings, for students `NN-exercises.ipynb`.

    Args:
        folder: is made. Other files in it stay.
        seed: of the hidden tests.
    Returns:
        the files written.
    Raises:
        ImportError: nbgrader is not installed.
    """
    check = round(max(task.seconds for task in tasks().values())) + SECONDS
    config = CONFIG.format(stub=STUB, imports=IMPORTS, answer=SECONDS, check=check)
    written = {folder / "nbgrader_config.py": config}
    for chapter in chapters():
        name = f"{chapter}-exercises"
        notebook = source(chapter, seed)
        written[folder / "source" / name / f"{name}.ipynb"] = _text(notebook)
        written[folder / f"{name}.ipynb"] = _text(student(notebook, _chapter_link(folder, chapter)))
    for path, text in written.items():
        write_atomically(path, text)
    return list(written)


def _text(notebook: NotebookNode) -> str:
    """As it is saved: indented by one, letters as they are."""
    return nbformat.writes(notebook, nbformat.NO_CONVERT).rstrip() + "\n"


def chapter_file(chapter: str) -> str:
    """Its notebook, "03-gated-recurrences.ipynb"."""
    words = CHAPTERS[chapter].title.lower().replace("?", "").split()
    return f"{chapter}-{'-'.join(words)}.ipynb"


def _chapter_link(folder: Path, chapter: str) -> str:
    """A link from a notebook in the folder to its chapter, where that lies beside the folder; else the chapter's name."""
    name = chapter_file(chapter)
    beside = (folder.resolve().parent / name).is_file()
    return f"[Chapter {chapter}](../{name})" if beside else _chapter_name(chapter)


def _chapter_name(chapter: str) -> str:
    return f"Chapter {chapter} (`{chapter_file(chapter)}`)"


def source(chapter: str, seed: int = SEED) -> NotebookNode:
    """A chapter's exercises as nbgrader wants them from a teacher, with solutions and hidden tests."""
    members = chapters()[chapter]
    cells = [_introduction(chapter, _chapter_name(chapter)), _setup(members)]
    cells += [cell for task in members for cell in _cells(task, seed)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.from_dict({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells})


def student(notebook: NotebookNode, chapter: str) -> NotebookNode:
    """What a student gets of a source: nbgrader's own steps, without its database.

    Args:
        chapter: what the first line calls the chapter, for example a link.
    """
    from nbgrader import preprocessors as steps

    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    first = notebook.cells[0]
    first.source = first.source.replace(_chapter_name(first.source[2:4]), chapter)
    clear = steps.ClearSolutions(code_stub={"python": STUB})
    for step in (steps.LockCells(), clear, steps.ClearHiddenTests(), steps.ComputeChecksums()):
        notebook, _ = step.preprocess(notebook, {})
    return notebook


def _markdown(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


def _code(name: str, text: str, **nbgrader: Any) -> dict[str, Any]:
    """A code cell; with `solution`, `locked` or `points` it is one of nbgrader's."""
    metadata = {}
    if nbgrader:
        usual = {"grade": "points" in nbgrader, "grade_id": name, "locked": False, "schema_version": 3}
        metadata["nbgrader"] = usual | {"solution": False, "task": False} | nbgrader
    cell = {"cell_type": "code", "id": name, "metadata": metadata, "source": text}
    return cell | {"execution_count": None, "outputs": []}


def _introduction(chapter: str, link: str) -> dict[str, Any]:
    members = chapters()[chapter]
    minutes, points = sum(task.minutes for task in members), sum(task.points for task in members)
    told = f"{link} · {len(members)} tasks · about {minutes} minutes · {points} points"
    return _markdown(f"{chapter}-exercises", f"# {chapter} · Exercises: {CHAPTERS[chapter].title}\n\n{told}\n\n{HOW}")


def _setup(members: list[Task]) -> dict[str, Any]:
    """The imports that the solutions need, and Triton's interpreter where tasks are kernels and there is no GPU."""
    wanted = {"import torch", *(line for task in members for line in _imports(task))}
    kernels = any("triton" in task.needs for task in members)
    wanted |= {"import os"} if kernels else set()
    plain = wanted & {f"import {name}" for name in sys.stdlib_module_names}
    interpreter = INTERPRETER.splitlines() if kernels else []
    groups = sorted(plain), sorted(wanted - plain), interpreter, ["from liger_mini.teaching import check_exercise"]
    text = "\n\n".join("\n".join(group) for group in groups if group)
    return _code(f"{members[0].number[:2]}-setup", text, locked=True)


def _imports(task: Task, optional: bool = False) -> Iterator[str]:
    """Statements that import what the reference uses; `optional` are those that its file makes only where they work."""
    tree = ast.parse(inspect.getsource(sys.modules[task.reference.__module__]))
    used = {node.id for node in ast.walk(ast.parse(task.solution)) if isinstance(node, ast.Name)}
    nodes = [node for block in tree.body if isinstance(block, ast.If) for node in block.body] if optional else tree.body
    for node in nodes:
        if isinstance(node, ast.Import) and any((name.asname or name.name) in used for name in node.names):
            yield ast.unparse(node)


def _cells(task: Task, seed: int) -> Iterator[dict[str, Any]]:
    """Statement, answer, check and tests."""
    name = task.number.replace(".", "-")
    yield _markdown(f"{name}-statement", _statement(task))
    yield _code(f"{name}-answer", _answer(task), solution=True)
    yield _code(f"{name}-check", f'check_exercise("{task.number}", {task.name})')
    tests = TESTS.format(points=_points(task), number=task.number, name=task.name, seed=seed)
    yield _code(f"{name}-tests", tests, locked=True, points=task.points)


def _points(task: Task) -> str:
    return f"{task.points} point{'s' * (task.points > 1)}"


def _statement(task: Task) -> str:
    about = f"*{task.minutes} minutes · {task.difficulty} · {_points(task)} · explained in {task.section}*"
    hints = [
        f"<details><summary>Hint {i}</summary>\n\n{hint}\n\n</details>" for i, hint in enumerate(task.hints, start=1)
    ]
    drawn = [picture(task)] if task.picture else []
    return "\n\n".join([f"## {task.number} · {task.title}", about, task.statement, *drawn, *hints])


def _answer(task: Task) -> str:
    """The reference, its body marked as the solution."""
    lines = task.solution.rstrip().splitlines()
    (function,) = ast.parse(task.solution).body
    assert isinstance(function, ast.FunctionDef)
    start = function.body[0].end_lineno or 0  # the docstring stays
    marked = textwrap.indent("### BEGIN SOLUTION", "    "), textwrap.indent("### END SOLUTION", "    ")
    before = [*_imports(task, optional=True), "", ""]
    return "\n".join([*before, *lines[:start], marked[0], *lines[start:], marked[1]]).strip()
