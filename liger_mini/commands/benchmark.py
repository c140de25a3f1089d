"""time and memory beside peers, as ratios within this run; writes JSON, and resumes"""

from argparse import ArgumentParser, Namespace

from liger_mini.commands import options as shared
from liger_mini.experiments import races


def describe(parser: ArgumentParser) -> None:
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(races.PARTS)}, kernels; all but graph if none is named"
    )
    parser.add_argument("--lengths", nargs="+", type=int, metavar="T", help="tokens, instead of each part's own")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the parts run")
    shared.output(parser, "runs/benchmark.json")


def run(options: Namespace) -> None:
    races.run(options.output, options.parts, options.lengths, options.device)
