"""`python -m liger_mini COMMAND`: one module a command, whose docstring is its help.

Each has `describe(parser)`, which adds its arguments, and `run(options)`, whose number, if any, is the exit status.
"""

from __future__ import annotations

import argparse
import sys

from liger_mini.commands import (
    ablation,
    answers,
    assignments,
    benchmark,
    capstone,
    convert,
    demo,
    equivalence,
    evaluate,
    graders,
    harness,
    needle,
    picture,
    real,
    recover,
    smollm2,
    teacher,
    twins,
    walk,
)

COMMANDS = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        demo,
        teacher,
        convert,
        recover,
        evaluate,
        ablation,
        harness,
        walk,
        needle,
        equivalence,
        twins,
        benchmark,
        graders,
        capstone,
        assignments,
        picture,
        smollm2,
        answers,
        real,
    )
}
_Help = argparse.ArgumentDefaultsHelpFormatter
TOLD = (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError)  # about bad input, in a sentence


def parser() -> argparse.ArgumentParser:
    """Of all commands."""
    parser = argparse.ArgumentParser(
        prog="liger_mini", description="Linearize a Transformer, and win its quality back."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.__doc__, description=module.__doc__, formatter_class=_Help)
        module.describe(command)
        command.add_argument("--debug", action="store_true", help="show where an error was raised")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status."""
    options = parser().parse_args(arguments)
    try:
        return COMMANDS[options.command].run(options) or 0
    except TOLD as error:
        if options.debug:
            raise
        way_out = ""
        if isinstance(error, ModuleNotFoundError):  # an extra's, where only the library is installed
            way_out = (
                ". What the course needs comes with pip install 'liger_mini[course]', what grades it with [classroom]"
            )
        print(f"liger_mini {options.command}: {error}{way_out}", file=sys.stderr)
        return 2
