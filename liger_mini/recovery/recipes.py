"""What a recovery is asked for and what it measured (chapter 08)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of one recovery; the defaults are the paper's.

    Attributes:
        rank: of LoRA on W_q, W_k and W_v.
        alpha: of LoRA; the change of a weight is (alpha / rank) · B A.
        learning_rate: the peak of AdamW's; warmed up over 2 % of the steps, then a cosine to zero.
        epochs: passes over the data, where `steps` does not count them.
        steps: optimizer steps; None: as many as `epochs` has.
        batch_size: rows per step, in all.
        micro_batch_size: rows at a time; None: the whole batch. The same losses, so it may change when a run goes on; but
            for attention transfer, whose loss is a ratio: there it is the mean over the micro-batches, which stay as they
            are until the transfer is done.
        weight_decay: of AdamW.
        packing: put the rows of a batch one after another into one row, with boundaries that both branches keep; if not,
            they are padded (the paper's way). The same losses, without the padding's cost.
        transfer_steps: steps of attention transfer before the rest, at the same batch size and peak learning rate.
        distillation: λ, the weight of KL(teacher ‖ student) against the next-token loss; the teacher is the model itself
            without its adapters and with softmax attention.
        window_dropout: the probability with which a layer goes without its window in the first step; it falls
            linearly to zero.
        gradient_checkpointing: keep only what enters each block, and compute the rest of its activations again on the way
            back: less memory, more time, the same losses. It may change when a run goes on.
        bf16: run in bfloat16 (autocast); the weights stay as they are.
        seed: of LoRA's start and of the order of the rows.
    """

    rank: int = 8
    alpha: float = 8
    learning_rate: float = 1e-3
    epochs: float = 2
    steps: int | None = None
    batch_size: int = 8
    micro_batch_size: int | None = None
    weight_decay: float = 0.0
    packing: bool = False
    transfer_steps: int = 0
    distillation: float = 0.0
    window_dropout: float = 0.0
    gradient_checkpointing: bool = False
    bf16: bool = False
    seed: int = 0

    @property
    def rows(self) -> int:
        """How many rows a stream without an end has to give: those of the longer stage.

        Raises:
            ValueError: `steps` is None, and epochs have no end there.
        """
        if self.steps is None:
            raise ValueError("these rows have no end, so a recipe has to count steps: give --steps, or Recipe(steps=…)")
        return max(self.steps, self.transfer_steps) * self.batch_size

    def __post_init__(self):
        for name, least in {"rank": 1, "steps": 1, "batch_size": 1, "micro_batch_size": 1, "transfer_steps": 0}.items():
            value, optional = getattr(self, name), name in ("steps", "micro_batch_size")
            if not (value is None and optional) and (type(value) is not int or value < least):
                raise ValueError(f"{name} = {value!r}: allowed are whole numbers ≥ {least}{', or None' * optional}")
        for name in ("alpha", "learning_rate", "epochs"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)!r}: allowed are numbers > 0")
        for name in ("weight_decay", "distillation", "window_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)!r}: allowed are numbers from 0 to 1")


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(),
    "quick": Recipe(steps=200),  # the paper's on the embedded teacher
    # the best recall outside the window that was found on the embedded teacher, with structure "hedgehog_deltanet"
    "recall": Recipe(rank=64, alpha=128, learning_rate=5e-3, transfer_steps=600, steps=2400),
}


@dataclass(frozen=True)
class Recovery:
    """What `recover` measured.

    Attributes:
        losses: (step, mean training loss since the last entry).
        parameters: of the model with the adapter merged, counted (tied ones once).
        parameters_added: by how many these are more than before the recovery, counted.
        parameters_trained: of the adapter, and of what `train_in_full` names.
        merged: whether the adapter is in the model's weights now. After FSDP it is not: the same call in one process
            finds the finished run and merges it.
        peak_bytes: the most memory this process had at once: of its GPU during the recovery, or, without one, of the
            process since it began. None where the system does not tell.
    """

    recipe: Recipe
    losses: list[tuple[int, float]]
    seconds: float
    tokens: int
    parameters: int
    parameters_trained: int
    merged: bool = True
    peak_bytes: int | None = None
    parameters_added: int = 0

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)
