"""train the embedded teacher from a seed (about 70 minutes on 2 cores); resumes"""

from argparse import ArgumentParser, Namespace

from liger_mini.commands import options as shared
from liger_mini.experiments.teacher import train_teacher


def describe(parser: ArgumentParser) -> None:
    shared.output_dir(parser, "runs/teacher")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")


def run(options: Namespace) -> None:
    train_teacher(options.output_dir, seed=options.seed)
