"""trainings that differ only in the form their recurrence runs in, loss beside loss; writes JSON, and resumes"""

from argparse import ArgumentParser, Namespace

from liger_mini.commands import options as shared
from liger_mini.experiments import twins
from liger_mini.recovery import Recipe


def describe(parser: ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--length", type=int, default=128, help="tokens per row")
    parser.add_argument("--structures", nargs="+", help="by default one for each recurrence")
    shared.fields(parser, Recipe, "bf16")
    shared.output(parser, "runs/twins.json")


def run(options: Namespace) -> None:
    changes = shared.given(options, Recipe)
    asked = {"steps": options.steps, "length": options.length, "structures": options.structures}
    twins.run(options.output, **(changes | asked))
