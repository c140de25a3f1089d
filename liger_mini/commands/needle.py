"""the needle test at 1 K … 32 K on the embedded teacher and its recoveries; writes JSON"""

from argparse import ArgumentParser, Namespace

from liger_mini.commands import options as shared
from liger_mini.experiments import needles


def describe(parser: ArgumentParser) -> None:
    shared.output(parser, "runs/needle.json")


def run(options: Namespace) -> None:
    needles.run(options.output)
