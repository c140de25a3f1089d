"""`check_exercise`: instant feedback on an answer, in any notebook, whatever the answer does."""

from __future__ import annotations

import functools
import html
import importlib
import importlib.util
import os
import pkgutil
from dataclasses import dataclass
from typing import Any

import torch

from liger_mini.teaching import exercises
from liger_mini.teaching.exercises.grade import Verdict, grade
from liger_mini.teaching.exercises.isolated import SHOWN, isolated
from liger_mini.teaching.exercises.task import Task

INTERPRETER = (
    "This task runs a Triton kernel, and without a GPU that takes Triton's interpreter. Restart the kernel and run the notebook from "
    'its first cell, which sets os.environ["TRITON_INTERPRET"] = "1" before anything imports triton.'
)


@dataclass(frozen=True)
class Report:
    """The result of a check. It shows itself as a cell's last line, and with `print`.

    Attributes:
        passed: whether the answer is right.
        message: what is wrong, or a word of confirmation.
        points: earned, out of `possible`.
        printed: the beginning of what the answer printed.
    """

    task: str
    passed: bool
    message: str
    points: int
    possible: int
    printed: str = ""

    def __str__(self) -> str:
        head = f"{'✓' if self.passed else '✗'} {self.task}: {self.points} of {self.possible} points"
        return "\n".join([head, self.message, *([f"Your code printed:\n{self.printed}"] if self.printed else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        colour, word = ("#1a7f37", "✓") if self.passed else ("#b35900", "✗")
        printed = f"<p>Your code printed:</p><pre>{html.escape(self.printed)}</pre>" if self.printed else ""
        return (
            f'<div style="border-left:4px solid {colour};padding:.1em 1em" role="status">'
            f"<p><strong>{word} {html.escape(self.task)}</strong>: {self.points} of {self.possible} points</p>"
            f'<p style="white-space:pre-wrap">{html.escape(self.message)}</p>{printed}</div>'
        )


@functools.cache
def tasks() -> dict[str, Task]:
    """Every graded task of the course by its number, in order: those in the `TASKS` of the `chapterNN.py` beside this file."""
    names = sorted(
        module.name for module in pkgutil.iter_modules(exercises.__path__) if module.name.startswith("chapter")
    )
    modules = [importlib.import_module(f"{exercises.__name__}.{name}") for name in names]
    return {task.number: task for module in modules for task in module.TASKS}


def check_exercise(task: str, answer: Any, *, seed: int = 0) -> Report:
    """Check an answer to a task of the course. Never raises for an answer that is wrong, crashes or hangs.

    The answer runs in a process of its own, with a time limit, without input, and what it prints is caught.

    Args:
        task: its number, "03.1".
        answer: the function that the task asks for, or, where that function has no parameters, its value.
        seed: of the inputs. A class that has its own sees other numbers than the published ones.
    Returns:
        a report, which shows itself as the last line of a cell.
    """
    known = tasks()
    if str(task) not in known:
        listed = "\n".join(f"{number}  {one.title}" for number, one in known.items())
        return Report(str(task), False, f"There is no task {task!r}. There are:\n{listed}", 0, 0)
    wanted = known[str(task)]
    verdict, printed = _verdict(wanted, answer, seed)
    points = wanted.points if verdict.passed else 0
    return Report(f"{task} {wanted.title}", verdict.passed, verdict.message, points, wanted.points, printed)


def _verdict(task: Task, answer: Any, seed: int) -> tuple[Verdict, str]:
    """The verdict, and what the answer printed."""
    if lacking := [name for name in task.needs if importlib.util.find_spec(name) is None]:
        return Verdict(False, f"This task needs {' and '.join(lacking)}, which is not installed here."), ""
    if "triton" in task.needs and not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return Verdict(False, INTERPRETER), ""
    if task.parameters and not callable(answer):
        return Verdict(False, _not_callable(task, answer)), ""
    ended = isolated(lambda: grade(task, answer, seed), task.seconds)
    printed = ended.printed + (" …" if len(ended.printed) >= SHOWN else "")
    return ended.value or Verdict(False, ended.why), printed


def _not_callable(task: Task, answer: Any) -> str:
    return (
        f"The answer is the function itself, {task.signature}; a {type(answer).__name__} was given. "
        f"Pass its name without brackets: check_exercise({task.number!r}, {task.name})."
    )
