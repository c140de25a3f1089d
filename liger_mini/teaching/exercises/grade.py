"""Grade an answer: the reference beside it on every case, then the mistakes that are known by name."""

from __future__ import annotations

import copy
import functools
import linecache
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liger_mini.teaching.exercises.compare import alike, difference
from liger_mini.teaching.exercises.isolated import Stopped
from liger_mini.teaching.exercises.task import Case, Draw, Task

GRADIENTS = 10  # a gradient goes the way of its output and back, and adds up more terms
OURS = (str(Path(__file__).parents[2]), sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, what to tell its author, and the name of the mistake if it is known."""

    passed: bool
    message: str
    mistake: str = ""


@dataclass(frozen=True)
class Trial:
    """One case, tried: what came out, what was raised, which arguments were changed, and the gradients asked for."""

    value: Any = None
    error: BaseException | None = None
    changed: tuple[str, ...] = ()
    gradients: dict[str, Tensor | None] = field(default_factory=dict)


def grade(task: Task, answer: Any, seed: int = 0) -> Verdict:
    """The verdict on an answer. Runs it in this process, and does not catch what stops it (`Stopped`)."""
    expected = _expected(task, seed)
    try:
        trials = [attempt(task, answer, case) for case, _ in expected]
    except Stopped as error:
        where = _line(error, answer)
        return Verdict(False, f"Your code was still running after {task.seconds:g} seconds and was stopped{where}.")
    complaints = [complaint(task, answer, trial, wanted) for trial, (_, wanted) in zip(trials, expected)]
    failed = [i for i, said in enumerate(complaints) if said]
    if not failed:
        return Verdict(True, "Right.")
    for mistake in task.mistakes:
        if all(_same(task, trial, attempt(task, mistake.answer, case)) for trial, (case, _) in zip(trials, expected)):
            return Verdict(False, f"{mistake.message} Read again: {mistake.section}.", mistake.name)
    first = failed[0]
    if _unwritten(trials[first].error):
        return Verdict(False, complaints[first] or "")
    which = f"Case {first + 1} of {len(expected)} ({expected[first][0]}): " if len(expected) > 1 else ""
    return Verdict(False, f"{which}{complaints[first]} Explained in {task.section}.")


@functools.lru_cache(maxsize=8)
def _expected(task: Task, seed: int) -> list[tuple[Case, Trial]]:
    """The cases of a seed, and what the reference does with them."""
    return [(case, attempt(task, task.reference, case)) for case in task.inputs(Draw(seed))]


def attempt(task: Task, answer: Any, case: Case) -> Trial:
    """Run the answer on a copy of the case's arguments."""
    function = answer if callable(answer) else lambda: answer
    args = _copies(case)
    try:
        value = task.run(function, *args.values())
        changed = tuple(name for name, x in args.items() if not _identical(x, case.args[name]))
        return Trial(value, None, changed, _gradients(task, function, case))
    except Stopped:
        raise
    except BaseException as error:  # also exit(), and what else is meant for the interpreter
        return Trial(error=error)


def _copies(case: Case) -> dict[str, Any]:
    return {name: x.clone() if isinstance(x, Tensor) else copy.deepcopy(x) for name, x in case.args.items()}


def _identical(x: Any, before: Any) -> bool:
    if isinstance(before, Tensor):
        return x.shape == before.shape and bool(torch.equal(x.nan_to_num(), before.nan_to_num()))
    return not isinstance(before, (int, float, str, list)) or x == before


def _gradients(task: Task, function: Any, case: Case) -> dict[str, Tensor | None]:
    """Of a fixed weighting of all outputs, with respect to the arguments the task names; None where none arrives."""
    if not task.gradients:
        return {}
    args = _copies(case)
    for name in task.gradients:
        args[name].requires_grad_()
    outputs = [x for x in tensors(task.run(function, *args.values())) if x.requires_grad]
    if not outputs:
        return dict.fromkeys(task.gradients)
    loss = sum((x * torch.cos(torch.arange(x.numel()) + 1.0).reshape(x.shape).to(x.dtype)).sum() for x in outputs)
    wanted = [args[name] for name in task.gradients]
    return dict(zip(task.gradients, torch.autograd.grad(loss, wanted, allow_unused=True)))


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a result, however deep."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for x in value.values() if isinstance(value, dict) else value:
            yield from tensors(x)


def complaint(task: Task, answer: Any, trial: Trial, wanted: Trial) -> str | None:
    """What is wrong with a trial, where the reference gave `wanted`; None if nothing is."""
    if wanted.error is not None:
        raise RuntimeError(f"the reference of task {task.number} raises {wanted.error!r}") from wanted.error
    if trial.error is not None:
        return _raised(task, answer, trial.error)
    name = f"what {task.name} returns" if callable(answer) else "your answer"
    said = difference(trial.value, wanted.value, name, task.tolerance, task.returns)
    if said:
        return said[0].upper() + said[1:] if said.startswith(name) else said
    if trial.changed:
        return (
            f"{task.name} changes its argument {' and '.join(trial.changed)} in place, which the caller still needs. "
            "Write x = x + y in place of x += y, and clone what you assign into."
        )
    for name, gradient in wanted.gradients.items():
        got = trial.gradients.get(name)
        if got is None and gradient is not None:
            return f"The output is right, but no gradient reaches {name}. Avoid .item(), .detach(), .data and NumPy."
        if gradient is not None and (
            said := difference(got, gradient, f"the gradient of {name}", _looser(task, gradient))
        ):
            return f"The output is right, but {said}"
    return None


def _looser(task: Task, gradient: Tensor) -> float:
    """The tolerance of a gradient."""
    return GRADIENTS * (100 * torch.finfo(gradient.dtype).eps if task.tolerance is None else task.tolerance)


def _same(task: Task, trial: Trial, wrong: Trial) -> bool:
    """Whether an answer does what a mistake does."""
    if trial.error is not None or wrong.error is not None:
        return type(trial.error) is type(wrong.error)
    if trial.changed != wrong.changed or not alike(trial.value, wrong.value, task.tolerance):
        return False
    return all(alike(trial.gradients.get(name), gradient, 1e-3) for name, gradient in wrong.gradients.items())


def _raised(task: Task, answer: Any, error: BaseException) -> str:
    """An exception of the student's code, with the student's line."""
    if _unwritten(error):
        return f"Nothing is here yet: write the body of {task.signature}."
    if isinstance(error, SystemExit):
        return f"Your code leaves the interpreter (exit){_line(error, answer)}."
    text = " ".join("".join(traceback.format_exception_only(error)).partition(": ")[2].split())
    text = text if len(text) <= 300 else text[:300] + " …"
    where = _line(error, answer)
    called = "" if where else f". It is called as {task.signature}"
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"Your code raises {said}{where}{called}."


def _unwritten(error: BaseException | None) -> bool:
    """Whether it is the stub's. torch's own NotImplementedError ("not implemented for 'Long'") says what is missing."""
    return isinstance(error, NotImplementedError) and not error.args


def _line(error: BaseException, answer: Any) -> str:
    """ ", in line 3: `o = q @ k`": the innermost line of the student's own code; empty if none was reached."""
    own = getattr(getattr(answer, "__code__", None), "co_filename", None)
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    mine = [(code, n) for code, n in frames if code.co_filename == own or not code.co_filename.startswith(OURS)]
    if not mine:
        return ""
    code, number = mine[-1]
    text = linecache.getline(code.co_filename, number).strip()
    return f", in line {number}: `{text}`" if text else f", in line {number}"
