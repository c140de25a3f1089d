"""trains a gate or write rule of your own on the capstone's budget, or prints the leaderboard"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from liger_mini.commands import options as shared
from liger_mini.experiments import capstone


def describe(parser: ArgumentParser) -> None:
    parser.add_argument("submission", nargs="?", help="a Python file that defines `structure`; none: the leaderboard")
    parser.add_argument("--name", help="on the leaderboard; by default the file's")
    parser.add_argument(
        "--baselines", action="store_true", help="train the course's own entries, and record them in --output"
    )
    shared.output(parser, "runs/capstone-cpu.json")
    shared.output_dir(parser, "runs/capstone")


def run(options: Namespace) -> None:
    if options.baselines:
        capstone.train_baselines(options.output_dir, options.output)
    if options.submission:
        name = options.name or Path(options.submission).stem
        capstone.judge(capstone.read(options.submission), name, options.output_dir)
    print(capstone.leaderboard(options.output_dir))
