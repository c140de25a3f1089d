"""`python -m liger_mini demo | teacher | equivalence | benchmark`: thin commands over the functions of the same names."""

from __future__ import annotations

import argparse
import os
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="liger_mini", description="Linearize a Transformer, and win its quality back."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="linearize and recover the embedded teacher; writes a report")
    demo.add_argument(
        "--output-dir", default="runs/demo", help="folder for report.html and result.json (default: %(default)s)"
    )
    teacher = commands.add_parser(
        "teacher", help="train the embedded teacher from a seed (about 70 minutes on 2 cores)"
    )
    teacher.add_argument(
        "--output-dir", default="runs/teacher", help="resumed if it holds checkpoints (default: %(default)s)"
    )
    teacher.add_argument("--seed", type=int, default=0)
    benchmark = commands.add_parser("benchmark", help="time and memory, as ratios within this run; writes JSON")
    benchmark.add_argument("--output", default="runs/benchmark.json", help="(default: %(default)s)")
    equivalence = commands.add_parser("equivalence", help="every structure in every form against float64; writes JSON")
    equivalence.add_argument("--output", default="runs/equivalence.json", help="(default: %(default)s)")
    options = parser.parse_args(arguments)

    # imported here, so that --help answers at once
    if options.command == "demo":
        from liger_mini.demo import run

        run(options.output_dir)
    elif options.command == "teacher":
        from liger_mini.teacher import train_teacher

        train_teacher(options.output_dir, seed=options.seed)
    elif options.command == "equivalence":
        import torch

        if not torch.cuda.is_available():
            os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
        from liger_mini.equivalence import run

        return 0 if all(row["ok"] for row in run(options.output)["rows"]) else 1
    else:
        from liger_mini.benchmark import run

        run(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
