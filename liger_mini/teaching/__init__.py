"""What the notebooks and reports show: equivalence checks, tables, recorded results, figures, widgets."""

from liger_mini.support.records import available, recorded, where
from liger_mini.support.tables import Table
from liger_mini.teaching.check import check
from liger_mini.teaching.exercises.check import check_exercise
from liger_mini.teaching.prologue import prologue
from liger_mini.teaching.record import compare
from liger_mini.teaching.source import source
from liger_mini.teaching.tier import by_tier, tier

__all__ = [
    "Table",
    "available",
    "by_tier",
    "check",
    "check_exercise",
    "compare",
    "prologue",
    "recorded",
    "source",
    "tier",
    "where",
]
