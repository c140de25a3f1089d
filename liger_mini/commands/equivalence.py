"""every structure in every form against float64; writes JSON; 1 if a cell is over its tolerance"""

import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace

import torch

from liger_mini.commands import options as shared
from liger_mini.experiments import equivalence


def describe(parser: ArgumentParser) -> None:
    shared.output(parser, "runs/equivalence.json")


def run(options: Namespace) -> int:
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        # triton reads it when it is first imported, which has happened by now: once more, with it
        command = [sys.executable, "-m", "liger_mini", "equivalence", "--output", options.output]
        return subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, check=False).returncode
    return 0 if all(row["ok"] for row in equivalence.run(options.output)["rows"]) else 1
