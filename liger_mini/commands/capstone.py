"""trains a gate or write rule of your own on the capstone's budget, or prints the leaderboard"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from liger_mini.commands import options as shared
from liger_mini.experiments import capstone


def describe(parser: ArgumentParser) -> None:
    parser.add_argument("submission", nargs="?", help="a Python file that defines `structure`; none: the leaderboard")
    parser.add_argument("--name", help="on the leaderboard; by default the file's")
    parser.add_argument("--baselines", action="store_true", help="train the course's own entries")
    shared.output_dir(parser, "runs/capstone")


def run(options: Namespace) -> None:
    entries = {name: capstone.Submission(name) for name in capstone.BASELINES} if options.baselines else {}
    if options.submission:
        entries[options.name or Path(options.submission).stem] = capstone.read(options.submission)
    for name, submission in entries.items():
        capstone.judge(submission, name, options.output_dir)
    print(capstone.leaderboard(options.output_dir))
