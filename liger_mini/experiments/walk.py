"""The whole journey on a model of any size (chapter 08): measure, linearize, recover, measure again, decode.

The same steps on the embedded teacher, on a 1B model from disk, and on `pretraining`'s stand-in for one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from liger_mini.evaluation import HeldOut, evaluate
from liger_mini.evaluation.measure import warn_if_nothing_is_outside
from liger_mini.experiments.benchmark import decode
from liger_mini.experiments.journey import travel
from liger_mini.recovery import Recipe
from liger_mini.support.paths import write_atomically
from liger_mini.support.provenance import provenance

CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)


def walk(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    output_dir: str | Path,
    *,
    recipe: Recipe,
    held_out: HeldOut,
    contexts: Sequence[int] = CONTEXTS,
    about: dict[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Teacher, linearized, recovered: loss, recall by distance, branch ablation, tokens per second, peak memory, decoding.

    Args:
        dataset: rows to recover on. settings: the arguments of `linearize`. about: how the teacher came to be.
        contexts: lengths at which the teacher and the linearized model decode.
    Writes:
        ``walk.json`` into `output_dir`, and the recovered model into ``model/``.
    """
    output_dir, result = Path(output_dir), {"about": about or {}, "parameters": teacher.num_parameters()}
    report = evaluate(teacher, held_out, window=settings.get("window", 64), sinks=settings.get("sinks", 0))
    warn_if_nothing_is_outside(report, held_out.length)
    result["teacher"] = report.to_dict()
    result["decode_teacher"] = decode(teacher, contexts, tokens=32)
    model, journey = teacher, travel(teacher, dataset, held_out, output_dir / "recovery", recipe=recipe, **settings)
    recovery = journey.recovery
    result["liger"] = model.config.liger
    result["decode_linearized"] = decode(model, contexts, tokens=32)
    result["linearized"] = {name: report.to_dict() for name, report in journey.before.items()}
    result["recovery"] = recovery.to_dict() | {"tokens_per_second": recovery.tokens / max(recovery.seconds, 1e-9)}
    result["recovered"] = {name: report.to_dict() for name, report in journey.after.items()}
    result["provenance"] = provenance()
    model.save_pretrained(output_dir / "model")
    tokenizer.save_pretrained(output_dir / "model")
    write_atomically(output_dir / "walk.json", json.dumps(result, indent=1))
    return result
