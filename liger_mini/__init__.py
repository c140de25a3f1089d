"""liger_mini: turn a pretrained Transformer into a gated linear recurrent model and win its quality back.

The package reads in the order of the course: gates, structures, recurrences, window, attention,
convert, recover, evaluate. Importing it registers the linearized model types with transformers.
"""

from liger_mini.convert import linearize, load
from liger_mini.evaluate import branch_ablation, evaluate
from liger_mini.recover import recover
from liger_mini.recurrences import explain_backend, gated_recurrence
from liger_mini.structures import structures
from liger_mini.version import __version__
from liger_mini.window import sliding_window_attention

__all__ = [
    "__version__",
    "branch_ablation",
    "evaluate",
    "explain_backend",
    "gated_recurrence",
    "linearize",
    "load",
    "recover",
    "sliding_window_attention",
    "structures",
]
