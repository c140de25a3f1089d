"""the paper's Table 6, or every structure's recall, on the embedded teacher, over seeds; resumes"""

from argparse import ArgumentParser, Namespace

from liger_mini.commands import options as shared
from liger_mini.experiments import ablation
from liger_mini.recovery import Recipe


def describe(parser: ArgumentParser) -> None:
    shared.output_dir(parser, "runs/ablation")
    tables = "paper: Table 6; memory: recall, chapter 09"
    parser.add_argument("--table", choices=ablation.TABLES, default="paper", help=tables)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="each variant once per seed")
    parser.add_argument("--variants", nargs="+", default=None, help="some of them; all by default")
    shared.fields(parser, Recipe, "steps", "transfer_steps")


def run(options: Namespace) -> None:
    how = {"table": options.table, "seeds": options.seeds, "variants": options.variants}
    ablation.run(options.output_dir, **how, **shared.given(options, Recipe))
