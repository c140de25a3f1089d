"""recall by distance of the embedded models, as the README's SVG; --measure measures it again (some minutes)"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from liger_mini.commands import options as shared
from liger_mini.experiments.picture import RECORD, measure, picture
from liger_mini.support.paths import write_atomically
from liger_mini.support.records import recorded


def describe(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--measure", action="store_true", help="evaluate the models first, and record it in data/results"
    )
    shared.output(parser, "book/figures/recall-by-distance.svg")


def run(options: Namespace) -> None:
    result = measure() if options.measure else recorded(RECORD)
    write_atomically(Path(options.output), picture(result))
    for name, report in result["models"].items():
        recall = report["recall"]["outside"]
        print(
            f"{name:8} loss {report['loss']:.3f}  recall outside {recall['recall']:.3f} of {recall['questions']} questions"
        )
