"""linearize and recover the embedded teacher; writes a report"""

from argparse import ArgumentParser, Namespace

from liger_mini.commands import options as shared
from liger_mini.experiments import demo


def describe(parser: ArgumentParser) -> None:
    shared.output_dir(parser, "runs/demo")


def run(options: Namespace) -> None:
    demo.run(options.output_dir)
