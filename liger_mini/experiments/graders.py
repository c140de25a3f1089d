"""How well the course's graders tell right from wrong: mutants of every reference solution, and how many are noticed.

And what a class costs: the processor time that nbgrader takes for one student's notebook.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liger_mini.support.paths import write_atomically
from liger_mini.support.provenance import provenance
from liger_mini.teaching.exercises.check import tasks
from liger_mini.teaching.exercises.grade import grade
from liger_mini.teaching.exercises.mutants import judge
from liger_mini.teaching.exercises.task import Task

SEEDS = 20
AUTOGRADED = ("03", "05")  # chapters: an ordinary one, and the one whose kernels are interpreted where there is no GPU


def run(output: str) -> dict[str, Any]:
    """Measure every task's grader and write it as JSON: `rows`, one a task, `autograde` (with nbgrader) and `provenance`."""
    result = {"provenance": provenance(), "seeds": SEEDS, "rows": list(rows())}
    if importlib.util.find_spec("nbgrader"):
        result["autograde"] = {chapter: autograde(chapter) for chapter in AUTOGRADED}
    write_atomically(Path(output), json.dumps(result, indent=1, ensure_ascii=False))
    return result


def rows() -> Iterator[dict[str, Any]]:
    """Task by task; printed as it comes."""
    for task in tasks().values():
        row = measure(task)
        print(f"{row['task']}: {row['killed']} of {row['mutants']} mutants killed, {row['mistakes']} mistakes by name")
        yield row


def measure(task: Task) -> dict[str, Any]:
    """One task: mutants made, killed, and equal to the reference (with the reason); a mutant that `differs` is a hole.

    `false_reds` counts the seeds at which the reference itself fails, `named` the mistakes that are told by their name.
    """
    judged = judge(task, SEEDS)
    return {
        "task": task.number,
        "title": task.title,
        "mistakes": len(task.mistakes),
        "named": sum(grade(task, mistake.answer).mistake == mistake.name for mistake in task.mistakes),
        "mutants": len(judged),
        "killed": sum(one.killed for one in judged),
        "holes": [one.change for one in judged if one.differs],
        "equal": {
            one.change: task.survivors.get(one.change, "") for one in judged if not one.killed and not one.differs
        },
        "false_reds": sum(not grade(task, task.reference, seed).passed for seed in range(SEEDS)),
    }


def autograde(chapter: str) -> float:
    """Seconds of processor time in which nbgrader grades one student's notebook, solutions handed in; no load changes it much."""
    from liger_mini.teaching.exercises import notebooks  # needs nbgrader

    name = f"{chapter}-exercises"
    with tempfile.TemporaryDirectory() as course:
        notebooks.write(Path(course))
        _nbgrader(course, "generate_assignment", name)
        shutil.copytree(Path(course, "source", name), Path(course, "submitted", "student", name))
        before = os.times()
        _nbgrader(course, "autograde", name)
        after = os.times()
    return round(sum(after[2:4]) - sum(before[2:4]), 2)  # user and system time of the processes that were waited for


def _nbgrader(course: str, *arguments: str) -> None:
    """Run it in the folder of a course; it calls alembic by its name."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "nbgrader", *arguments]
    subprocess.run(command, cwd=course, env=os.environ | {"PATH": path}, capture_output=True, check=True)
