"""The journey of every experiment: linearize a model, measure it, recover it, measure it again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedModel

from liger_mini.convert import linearize
from liger_mini.evaluation import HeldOut, Report, branch_ablation
from liger_mini.recovery import Recipe, Recovery, recover


@dataclass(frozen=True)
class Journey:
    """What was measured on the way.

    Attributes:
        before, after: branch ablations of the linearized and of the recovered model.
    """

    before: dict[str, Report]
    recovery: Recovery
    after: dict[str, Report]
    seconds: float

    def gap_closed(self, teacher: Report) -> float:
        """Share of the loss that linearizing cost and recovery won back: 1 is all of it."""
        before, after = self.before["both"].loss, self.after["both"].loss
        return (before - after) / (before - teacher.loss)


def travel(
    model: PreTrainedModel,
    dataset: Dataset,
    held_out: HeldOut,
    output_dir: str | Path,
    *,
    recipe: Recipe,
    change: Callable[[PreTrainedModel], None] | None = None,
    train_in_full: Sequence[str] = (),
    **settings: Any,
) -> Journey:
    """Take a softmax model to its linearized, recovered self, in place.

    Args:
        change: applied to the linearized model before anything is measured.
        settings: the arguments of `linearize`. The rest as in `recover`.
    """
    start = time.perf_counter()
    linearize(model, **settings)
    if change is not None:
        change(model)
    before = branch_ablation(model, held_out)
    recovery = recover(model, dataset, output_dir=output_dir, recipe=recipe, train_in_full=train_in_full)
    return Journey(before, recovery, branch_ablation(model, held_out), time.perf_counter() - start)
