"""liger_mini: turn a pretrained Transformer into a gated linear recurrent model and win its quality back.

Read `minimal` first: one layer by its definition. The package follows the course: gates, structures, recurrences, window,
attention, convert, recovery, evaluation. Importing it registers the linearized model types with transformers.
"""

from pathlib import Path as _Path

from liger_mini.convert import linearize
from liger_mini.evaluation import branch_ablation, evaluate
from liger_mini.recovery import recover
from liger_mini.recurrences import delta_recurrence, explain_backend, gated_recurrence, slot_recurrence
from liger_mini.structures import structures
from liger_mini.support.hub import load
from liger_mini.support.version import __version__
from liger_mini.window import sliding_window_attention

__all__ = [
    "__version__",
    "branch_ablation",
    "delta_recurrence",
    "evaluate",
    "explain_backend",
    "gated_recurrence",
    "linearize",
    "load",
    "recover",
    "sliding_window_attention",
    "slot_recurrence",
    "structures",
]

# kernels/ stands at the top of a clone, beside this package; a plain install has it inside. It cannot have an
# __init__.py (a package of that name would shadow Hugging Face's `kernels`), so an editable install needs the hint.
if not (_Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(_Path(__file__).parent.parent))
