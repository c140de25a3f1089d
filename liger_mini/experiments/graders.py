"""How well the course's graders tell right from wrong: mutants of every reference solution, and how many are noticed."""

from __future__ import annotations

import json
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


def run(output: str) -> dict[str, Any]:
    """Measure every task's grader and write it as JSON: `rows`, one a task, and `provenance`."""
    result = {"provenance": provenance(), "seeds": SEEDS, "rows": list(rows())}
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
