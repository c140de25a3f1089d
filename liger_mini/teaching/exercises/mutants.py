"""Are the graders any good? Small changes to a reference solution, made by machine, and whether its grader notices them.

A mutant that the grader lets pass is either equal to the reference on the specification (its task lists it, with the reason), or a
hole in the grader. Libraries for mutation testing rewrite files and run a test suite for each mutant; here hundreds of
mutants of one function are graded in one process.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import inspect
import linecache
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from liger_mini.teaching.exercises.grade import attempt, complaint, grade, tensors
from liger_mini.teaching.exercises.isolated import Stopped, isolated
from liger_mini.teaching.exercises.task import Draw, Task

SECONDS = 6.0  # for one mutant; Triton's interpreter needs some of them on a busy machine
SAME = 8  # rounding errors: two results that are nearer than this do not differ

SWAPS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult,),
    ast.MatMult: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
NAMES = {
    "min": "max",
    "tril": "triu",
    "sum": "mean",
    "mean": "sum",
    "minimum": "maximum",
    "amin": "amax",
    "zeros": "ones",
}
NAMES |= {new: old for old, new in NAMES.items() if old != "mean" and old != "sum"} | {
    "cumsum": "cumprod",
    "cumprod": "cumsum",
}
TRANSPOSES = {"T", "mT", "H", "mH"}


def of_operator(node: ast.AST) -> Iterator[ast.AST]:
    """+ for -, < for <=; one side dropped; the sides exchanged where that matters; a sign dropped."""
    if isinstance(node, ast.BinOp):
        yield from (_with(node, op=new()) for new in SWAPS.get(type(node.op), ()))
        yield from (node.left, node.right)
        if isinstance(node.op, (ast.Sub, ast.Div, ast.MatMult, ast.Pow, ast.FloorDiv)):
            yield _with(node, left=node.right, right=node.left)
    elif isinstance(node, ast.BoolOp):
        yield from (_with(node, op=new()) for new in SWAPS[type(node.op)])
        yield from node.values
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield from (_with(node, ops=[new()]) for new in SWAPS.get(type(node.ops[0]), ()))
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield node.operand


def of_constant(node: ast.AST) -> Iterator[ast.AST]:
    """Off by one; a truth value turned round; the outputs of an einsum transposed."""
    if not isinstance(node, ast.Constant):
        return
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, (int, float)):
        yield from (ast.Constant(node.value + 1), ast.Constant(node.value - 1))
    elif isinstance(node.value, str) and "->" in node.value and len(node.value.split("->")[1].strip()) > 1:
        yield ast.Constant(node.value[:-2] + node.value[-1] + node.value[-2])


def of_call(node: ast.AST) -> Iterator[ast.AST]:
    """Neighbouring arguments exchanged; min for max; a running sum without its own term; a method left out."""
    if isinstance(node, ast.Attribute) and node.attr in TRANSPOSES:
        yield node.value
    if not isinstance(node, ast.Call):
        return
    for i in range(len(node.args) - 1):
        yield _with(node, args=[*node.args[:i], node.args[i + 1], node.args[i], *node.args[i + 2 :]])
    for i in range(len(node.keywords)):
        yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
    if isinstance(node.func, ast.Attribute):
        if node.func.attr in NAMES:
            yield _with(node, func=_with(node.func, attr=NAMES[node.func.attr]))
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id in {"torch", "math", "F", "lm", "tl"}):
            yield node.func.value
            if node.func.attr == "cumsum":
                yield ast.BinOp(node, ast.Sub(), node.func.value)
    elif isinstance(node.func, ast.Name) and node.func.id in NAMES:
        yield _with(node, func=ast.Name(NAMES[node.func.id], ast.Load()))


def of_index(node: ast.AST) -> Iterator[ast.AST]:
    """Neighbouring indices exchanged ([:, None] for [None, :]); a bound of a slice left out."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        parts = node.slice.elts
        for i in range(len(parts) - 1):
            if not {"...", ":"} >= {ast.unparse(parts[i]), ast.unparse(parts[i + 1])}:  # [..., :] is [:, ...]
                swapped = [*parts[:i], parts[i + 1], parts[i], *parts[i + 2 :]]
                yield _with(node, slice=_with(node.slice, elts=swapped))
    if isinstance(node, ast.Slice):
        yield from (_with(node, **{bound: None}) for bound in ("lower", "upper", "step") if getattr(node, bound))


def of_statement(node: ast.AST) -> Iterator[ast.AST]:
    """Results exchanged; a condition turned round; an assignment in place made a plain one."""
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        results = node.value.elts
        for i in range(len(results) - 1):
            swapped = [*results[:i], results[i + 1], results[i], *results[i + 2 :]]
            yield _with(node, value=_with(node.value, elts=swapped))
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.AugAssign):
        yield from (_with(node, op=new()) for new in SWAPS.get(type(node.op), ()))
        yield ast.Pass()
    if isinstance(node, ast.Assign) and _again(node):
        yield ast.Pass()


def _again(node: ast.Assign) -> bool:
    """Whether an assignment computes a variable from itself, so that leaving it out leaves something to compute with."""
    targets = {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    used = {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
    return bool(targets & used)


def _with(node: Any, **fields: Any) -> Any:
    """The node with other fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


OPERATORS = (of_operator, of_constant, of_call, of_index, of_statement)


@dataclass(frozen=True)
class Mutant:
    """A changed reference: what was changed, "before → after" of the statement, and the whole source."""

    change: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """All small changes to a function's source that compile to something else."""
    tree = ast.parse(source)
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)]:
        del function.body[0]
    original, found = ast.unparse(tree), {}
    for number, node in enumerate(ast.walk(tree)):
        for operator in OPERATORS:
            for new in operator(node):
                changed = copy.deepcopy(tree)
                target = next(x for i, x in enumerate(ast.walk(changed)) if i == number)
                changed = ast.fix_missing_locations(_Replace(target, copy.deepcopy(new)).visit(changed))
                with contextlib.suppress(SyntaxError), warnings.catch_warnings(action="ignore"):
                    compile(changed, "", "exec")
                    text = ast.unparse(changed)
                    if text != original:
                        found.setdefault(text, _change(original, text))
    return [Mutant(change, text) for text, change in found.items()]


class _Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, new: ast.AST) -> None:
        self.target, self.new = target, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.target else self.generic_visit(node)


def _change(before: str, after: str) -> str:
    """The lines that differ, "before → after"."""
    old, new = before.splitlines(), after.splitlines()
    start = next(i for i, (a, b) in enumerate(zip(old, new)) if a != b)
    stop = next(i for i, (a, b) in enumerate(zip(old[::-1], new[::-1])) if a != b)
    stop = min(stop, len(old) - start - 1, len(new) - start - 1)
    return " → ".join("; ".join(line.strip() for line in lines[start : len(lines) - stop]) for lines in (old, new))


def compiled(task: Task, source: str) -> Callable:
    """The function of a source, as if it stood in the task's file."""
    name = f"<{task.number} {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # Triton reads the source again
    namespace = dict(inspect.unwrap(getattr(task.reference, "fn", task.reference)).__globals__)
    with warnings.catch_warnings(action="ignore"):
        exec(compile(source, name, "exec"), namespace)
    return namespace[task.name]


@dataclass(frozen=True)
class Judged:
    """A mutant's fate. A survivor `differs` if its results are not the reference's on the grader's inputs of some seed."""

    change: str
    killed: bool
    differs: bool = False


def judge(task: Task, seeds: int = 20) -> list[Judged]:
    """Grade all mutants of a task's reference, in one process of their own.

    Raises:
        RuntimeError: a mutant ended that process.
    """
    waiting = mutants(task.solution)
    ended = isolated(lambda: [_judge(task, mutant, seeds) for mutant in waiting], SECONDS * len(waiting) + 60)
    if ended.value is None:
        raise RuntimeError(f"task {task.number}: {ended.why}")
    return ended.value


def _judge(task: Task, mutant: Mutant, seeds: int) -> Judged:
    try:
        answer = compiled(task, mutant.source)
        with _at_most(SECONDS):
            if not grade(task, answer).passed:
                return Judged(mutant.change, True)
    except (Exception, Stopped, SystemExit):
        return Judged(mutant.change, True)
    return Judged(mutant.change, False, any(_differs(task, answer, seed) for seed in range(seeds)))


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises Stopped after that time, and gives the timer around it back what is left of its own."""
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        spent = seconds - signal.setitimer(signal.ITIMER_REAL, 0)[0]
        signal.setitimer(signal.ITIMER_REAL, max(left - spent, 1e-3))


def _differs(task: Task, answer: Callable, seed: int) -> bool:
    """Whether a mutant's results are not the reference's, by more than the last digits."""
    for case in task.inputs(Draw(seed)):
        wanted = attempt(task, task.reference, case)
        types = [x.dtype for x in tensors(wanted.value) if x.is_floating_point()]
        last_digits = SAME * max((torch.finfo(dtype).eps for dtype in types), default=1e-14)
        if complaint(dataclasses.replace(task, tolerance=last_digits), answer, attempt(task, answer, case), wanted):
            return True
    return False
