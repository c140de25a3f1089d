"""time and memory, as ratios within this run; writes JSON"""

from argparse import ArgumentParser, Namespace

from liger_mini.commands import options as shared
from liger_mini.experiments import benchmark


def describe(parser: ArgumentParser) -> None:
    shared.output(parser, "runs/benchmark.json")


def run(options: Namespace) -> None:
    benchmark.run(options.output)
