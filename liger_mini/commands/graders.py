"""the exercises' graders against mutants of their solutions; writes JSON; 1 if one lets a wrong answer pass"""

from argparse import ArgumentParser, Namespace

from liger_mini.commands import options as shared


def describe(parser: ArgumentParser) -> None:
    shared.output(parser, "runs/graders.json")


def run(options: Namespace) -> int:
    from liger_mini.experiments import graders  # needs IPython, which [course] brings

    rows = graders.run(options.output)["rows"]
    return int(any(row["holes"] or row["false_reds"] or row["named"] < row["mistakes"] for row in rows))
