"""What a graded task is made of: its text, a reference solution, inputs from a seed, and the mistakes it knows by name."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

POINTS = {"easy": 1, "medium": 2, "hard": 3}


class Draw:
    """Random inputs on the CPU, all from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal numbers of the standard deviation `scale`."""
        return scale * torch.randn(shape, generator=self.generator, dtype=dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers from `low` to `high`."""
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=dtype)

    def integer(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))


class Case:
    """One call of the answer: `Case("strong gates", q=q, k=k)`. The arguments are passed in this order, by position."""

    def __init__(self, name: str, /, **args: Any) -> None:
        self.name, self.args = name, args

    def __str__(self) -> str:
        """What is special about it, and what it is called with."""
        shown = lambda x: list(x.shape) if isinstance(x, Tensor) else x  # noqa: E731
        called = ", ".join(f"{name} {shown(value)}" for name, value in self.args.items())
        return ": ".join(part for part in (self.name, textwrap.shorten(called, 160)) if part)


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that students give, and what to tell them.

    Attributes:
        name: a few words, unique within the task.
        answer: the wrong function, with the parameters of the reference (or the wrong value, where it has none). It may
            raise, or return something that is not finite.
        message: what is wrong and why, addressed to the student; unique among all tasks.
        section: what to read again, "chapter 03, section 3".
    """

    name: str
    answer: Any
    message: str
    section: str


def call(answer: Callable, *args: Any) -> Any:
    """What is compared, unless a task says otherwise: what the answer returns."""
    return answer(*args)


def nothing(draw: Draw) -> Iterable[Case]:
    """The one case of a function without parameters."""
    return [Case("")]


@dataclass(frozen=True, eq=False, repr=False)  # compared by identity, so that it can be a key
class Task:
    """One graded task. Its notebook, its grader, the mutants of its reference and the teacher's tables are made from it.

    Attributes:
        number: "03.1", the chapter and the task.
        statement: Markdown, for the student: what to write, with shapes and the equation.
        hints: three, each telling more than the one before.
        reference: a short, readable function that uses nothing but its parameters and modules imported at the top of its
            file. Its name, parameters and docstring are the student's stub, its source the solution. Without parameters, the
            answer may be a value in place of a function.
        inputs: the cases of a seed. Numbers of very different sizes belong into different cases: errors are judged
            against the largest number of an output.
        section: where the chapter explains it, "chapter 03, section 3".
        returns: names of the results, where the reference returns a tuple.
        gradients: names of the parameters whose gradients must be the reference's as well.
        tolerance: the largest error allowed, as a share of the largest number of the expected output; None is a
            hundred rounding errors of the float type.
        run: (answer, *args) -> what is compared. A harness, where many answers are right, or where the answer is not simply
            called: it returns properties that every right answer has, or launches a kernel.
        survivors: mutant ("before → after") -> why it is equal to the reference on the specification.
        needs: packages that the task cannot do without ("triton").
        picture: in the manner of Triton-Puzzles: the notebook draws what should come out of the first case.
        seconds: how long an answer may take for all its cases.
    """

    number: str
    title: str
    minutes: int
    difficulty: Literal["easy", "medium", "hard"]
    statement: str
    hints: tuple[str, str, str]
    reference: Callable[..., Any]
    section: str
    mistakes: tuple[Mistake, ...]
    inputs: Callable[[Draw], Iterable[Case]] = nothing
    returns: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()
    tolerance: float | None = None
    run: Callable[..., Any] = call
    survivors: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    picture: bool = False
    seconds: float = 5.0

    def __repr__(self) -> str:
        return f"<task {self.number} {self.title}>"

    @property
    def name(self) -> str:
        """The function that the student writes: "gated_step"."""
        return self.reference.__name__

    @property
    def parameters(self) -> tuple[str, ...]:
        """Of that function, in order."""
        return tuple(inspect.signature(self.reference).parameters)

    @property
    def signature(self) -> str:
        """As it is called: "gated_step(q, k, v, log_gate, state)"."""
        return f"{self.name}({', '.join(self.parameters)})"

    @property
    def points(self) -> int:
        """For a right answer: 1 for an easy task, 2, or 3 for a hard one."""
        return POINTS[self.difficulty]

    @property
    def solution(self) -> str:
        """The reference's source."""
        return textwrap.dedent(inspect.getsource(self.reference))
