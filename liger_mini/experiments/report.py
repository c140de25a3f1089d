"""Reports of `demo` and `real`: one HTML file that needs no network, with plotly.js, figures, tables and where they come from."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

from liger_mini.evaluation import Report
from liger_mini.experiments import real
from liger_mini.experiments.demo import Line, lines
from liger_mini.experiments.journey import Journey
from liger_mini.support.tables import Table
from liger_mini.teaching import figures
from liger_mini.teaching.figures import language

WHERE = ("inside", "between", "outside")


def measurements(teacher: Report, journeys: dict[str, Journey]) -> Table:
    """Everything measured on each model, and what guessing would score."""
    parameters = next(iter(journeys.values())).recovery.parameters
    models = Table.of(
        lines(teacher, journeys),
        {
            "model": lambda line: line.name,
            "loss": lambda line: f"{line.report.loss:.3f}",
            "perplexity": lambda line: f"{line.report.perplexity:.2f}",
            **{where: functools.partial(_recall, where) for where in WHERE},
            "gap closed": lambda line: line.journey and f"{100 * line.journey.gap_closed(teacher):.0f} %",
            "seconds": lambda line: line.journey and f"{line.journey.recovery.seconds:.0f}",
            "parameters": lambda line: f"{parameters:,}",
            "trained": lambda line: line.journey and f"{line.journey.recovery.parameters_trained:,}",
        },
    )
    guessing = [f"{teacher.recall[where].chance:.2f}" for where in WHERE]
    return Table(
        models.head,
        [*models.rows, ["guessing a value of the story", "", "", *guessing, "", "", "", ""]],
        f"Held-out loss (nats per token, mean of tinyworld and Python docs) and recall: the answer inside the window "
        f"({teacher.window} tokens), between, and outside the reach of stacked windows ({teacher.reach} tokens).",
    )


def _recall(where: str, line: Line) -> str:
    return f"{line.report.recall[where].recall:.2f}"


def ablations(teacher: Report, journeys: dict[str, Journey]) -> Table:
    """Loss and recall of each branch, before and after recovery."""
    records = [
        (f"{line.name.removeprefix('recovered, ')}, {branch}", line.journey.before[branch], line.journey.after[branch])
        for line in lines(teacher, journeys)
        if line.journey
        for branch in line.journey.before
    ]
    columns: dict[str, Callable] = {"branches": lambda record: record[0]}
    for i, when in ((1, "before"), (2, "after")):
        for head, show in {
            "loss": "{.loss:.3f}",
            "inside": "{.recall_inside:.2f}",
            "outside": "{.recall_outside:.2f}",
        }.items():
            columns[f"{head} {when}"] = functools.partial(lambda i, show, record: show.format(record[i]), i, show)
    words = "Both branches, each branch alone at full weight, and neither; loss and recall before and after recovery."
    return Table.of(records, columns, words)


def page(teacher: Report, journeys: dict[str, Journey], result: dict[str, Any]) -> str:
    """The HTML."""
    models = {line.name: line.report for line in lines(teacher, journeys)}
    recovered = {line.name: line.journey for line in lines(teacher, journeys) if line.journey}
    charts = [
        figures.losses(models),
        figures.loss_curves({name: j.recovery.losses for name, j in recovered.items()}, teacher_loss=teacher.loss),
        figures.recall_by_distance({"teacher": teacher} | {name: models[name] for name in recovered}),
        figures.branch_bars({name: journey.after for name, journey in recovered.items()}),
    ]
    drawn = [figures.as_html(chart, include_plotlyjs=i == 0) for i, chart in enumerate(charts)]
    tables = [table._repr_html_() for table in (measurements(teacher, journeys), ablations(teacher, journeys))]
    return PAGE.format(
        title="A Transformer linearized, and recovered",
        summary=html.escape(_summary(teacher, recovered)),
        shown="\n".join([tables[0], *drawn, tables[1]]),
        machine=html.escape(f"{_machine(result)}. The whole demo took {result['seconds']:.0f} s."),
    )


def real_page(result: dict[str, Any], against: str) -> str:
    """The HTML of a table on a real model: what `experiments.real.run` returns, each way compared with `against`."""
    tables = [real.table(result, against, text)._repr_html_() for text in result["untouched"]]
    return PAGE.format(
        title="A language model you know, linearized",
        summary=html.escape(real.summary(result, against)),
        shown="\n".join([figures.as_html(language.above_teacher(result), include_plotlyjs=True), *tables]),
        machine=html.escape(_machine(result)),
    )


def _machine(result: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in result["provenance"].items() if value)


def _summary(teacher: Report, recovered: dict[str, Journey]) -> str:
    sentences = [f"The teacher recalls {teacher.recall_outside:.0%} of the answers told beyond the windows' reach."]
    for name, journey in recovered.items():
        after, alone, recovery = journey.after["both"], journey.after["window only"], journey.recovery
        sentences.append(
            f"With the {name.removeprefix('recovered, ')}, recovery trained "
            f"{recovery.parameters_trained / recovery.parameters:.1%} as many numbers as the model has and won back "
            f"{journey.gap_closed(teacher):.0%} of the lost loss. Recall beyond the reach is {after.recall_outside:.0%} "
            f"({alone.recall_outside:.0%} with the window alone; guessing among the values that the story holds would give "
            f"{after.recall['outside'].chance:.0%})."
        )
    return " ".join(sentences)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>liger_mini: {title}</title>
<style>
  body {{ font: 17px/1.55 system-ui, sans-serif; color: #1a1a1a; margin: 0 auto; padding: 1rem; max-width: 62rem; }}
  h1 {{ line-height: 1.2; }} figure {{ margin: 2.5rem 0; }} figcaption, footer {{ color: #555; font-size: .9rem; }}
  .wide {{ overflow-x: auto; margin: 2rem 0; }} table {{ border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }}
  caption {{ text-align: left; padding-bottom: .5rem; color: #555; position: sticky; left: 0; max-width: min(60rem, 90vw); }}
  th, td {{ padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }}
  th:first-child {{ text-align: left; }} th[scope=row] {{ font-weight: normal; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{summary}</p>
{shown}
</main>
<footer><p>Measured on this machine: {machine}</p></footer>
</body>
</html>
"""
