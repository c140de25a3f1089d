"""what does a recurrence add to a window with a sink? SmolLM2 linearized in many ways, trained or not; resumes"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from liger_mini.commands import options as shared
from liger_mini.experiments import real
from liger_mini.recovery import Recipe
from liger_mini.support.paths import write_atomically


def describe(parser: ArgumentParser) -> None:
    shared.output_dir(parser, "runs/real")
    plans = (
        "journey: what comes along beside its opponents; untrained: every way as it is; screen: 100 rows of training "
    )
    plans += (
        "each; answers: the same, every other row of the model's own answers (`answers` writes them); recall: 600 rows "
    )
    plans += "of phone books, which ask for what they told; long: 1,000 of documentation"
    parser.add_argument("--plan", choices=real.PLANS, default="journey", help=plans)
    parser.add_argument("--ways", nargs="+", default=None, help="some of the plan's, by name; all by default")
    parser.add_argument(
        "--measures",
        nargs="+",
        choices=real.MEASURES,
        default=["text"],
        help="text: loss, KL and agreement on two texts; recall: what it writes when asked; far: loss by position to 8,192; "
        "repeats: loss of what is new in a row, and of what was there before; chat: whether it still answers simple questions",
    )
    parser.add_argument("--rows", type=int, default=None, help="held-out rows of each text, for a first look")
    parser.add_argument("--against", default="window 64 + sink", help="the way that all are compared with")
    parser.add_argument("--keep", type=Path, help="folder for the adapter of the only way, in bfloat16")
    shared.fields(parser, Recipe, "steps", "seed", "bf16")


def run(options: Namespace) -> None:
    how = {"plan": options.plan, "ways": options.ways, "rows": options.rows, "measures": options.measures}
    if options.against not in (ways := options.ways or real.PLANS[options.plan].ways):
        raise ValueError(f"--against {options.against!r} is not among the ways: {', '.join(map(repr, ways))}")
    if options.keep is not None and len(ways) != 1:
        raise ValueError(f"--keep takes the adapter of one way, and these are {len(ways)}; name it with --ways")
    result = real.run(options.output_dir, **how, **shared.given(options, Recipe))
    if options.keep is not None:
        (name,) = result["ways"]
        real.keep(result, name, options.output_dir, options.keep)
    for measure, table in real.TABLES.items():
        if measure in options.measures:
            print(f"\n{table(result)}")
    if "text" not in options.measures:
        return
    for text in result["untouched"]:
        print(f"\n{real.table(result, options.against, text)}")
    from liger_mini.experiments.report import real_page  # draws with Plotly

    report = Path(options.output_dir) / "report.html"
    write_atomically(report, real_page(result, options.against))
    print(f"\nThe same with a figure: {report}")
