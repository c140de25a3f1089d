"""the exercises as notebooks: nbgrader's sources with solutions and hidden tests, and the students'"""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def describe(parser: ArgumentParser) -> None:
    seed = "of the hidden tests: a class that has its own is graded on numbers that nobody has seen"
    parser.add_argument(
        "--output", default="notebooks/exercises", help="folder; any other becomes a course of nbgrader"
    )
    parser.add_argument("--seed", type=int, default=1, help=seed)


def run(options: Namespace) -> None:
    from liger_mini.teaching.exercises import notebooks  # needs nbformat and nbgrader, which [classroom] brings

    written = notebooks.write(Path(options.output), options.seed)
    print(f"{len(written)} files in {options.output}")
