"""What a recovery leaves on disk (chapter 08): whose folder it is, its checkpoints, its log, its adapter.

A run can be killed at any moment, so whatever is read here may be missing or half written.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback

from liger_mini.recovery.adapters import changes
from liger_mini.recovery.rows import known_by
from liger_mini.support.paths import claim, write_atomically

WRITING = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
    errno.EEXIST,
}
SAME_LOSSES = {"micro_batch_size", "gradient_checkpointing"}  # fields of Recipe that may change between resumes


def identity(
    model: PreTrainedModel, dataset: Dataset, recipe: Any, train_in_full: Sequence[str], rows_at_a_time: int
) -> dict[str, Any]:
    """What makes a run this run. Weights and data are known by a hash of some of them: every W_k, and 16 rows.

    Args:
        rows_at_a_time: of a batch, in all processes together.
    """
    rows = [dataset[i] for i in known_by(len(dataset))]
    rows = [[int(x) for name in ("input_ids", "labels") for x in row[name]] for row in rows]
    keys = (p for name, p in model.named_parameters() if name.endswith("k_proj.weight"))
    run = {
        "recipe": dataclasses.asdict(recipe),
        "rows_at_a_time": rows_at_a_time,
        "liger": model.config.liger,
        "train_in_full": list(train_in_full),
        "rows": len(dataset),
        "data": _digest([json.dumps(rows).encode()]),
        "weights": _digest(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for p in keys),
    }
    return json.loads(json.dumps(run))  # as it will be read: lists for tuples


def _digest(parts: Iterable[bytes]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:16]


def claim_run(folder: Path, run: dict[str, Any]) -> None:
    """Make `folder` this recovery's, or make sure that it is; what may change is noted in it.

    Raises:
        FileExistsError: it holds another run (or something else), or one that has to finish its attention transfer first.
    """
    there = claim(folder / "run.json", run, _differences)
    if there is not None:
        _check_transfer(folder, there, run)
        if there != {**there, **run}:
            write_atomically(folder / "run.json", json.dumps({**there, **run}, indent=1))


def _differences(there: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """What of the run in a folder is not as it is now, in words, but for what may change."""
    told = [
        f"{kind}'s {name}: there {before}, now {now}"
        for kind in ("recipe", "liger")
        for name, before, now in changes(there[kind], run[kind])
        if name not in SAME_LOSSES
    ]
    if there["train_in_full"] != run["train_in_full"]:
        told.append(f"train_in_full: there {there['train_in_full']}, now {run['train_in_full']}")
    if there["weights"] != run["weights"]:
        told.append("a model with other weights; to go on, start from the one it started from")
    if (there["rows"], there["data"]) != (run["rows"], run["data"]):
        numbers = ", ".join(map(str, known_by(there["rows"])))
        told.append(
            f"other data, there {there['rows']} rows, now {run['rows']}: their number must stay, and rows {numbers}, by "
            "which a run knows its data; any other may be replaced by another row"
        )
    return told


def _check_transfer(folder: Path, there: dict[str, Any], run: dict[str, Any]) -> None:
    """The loss of attention transfer is a mean of ratios, one for the rows taken at a time: another with other rows."""
    last, before = (
        last_complete_checkpoint(folder / "transfer" / "checkpoints"),
        there["recipe"].get("micro_batch_size"),
    )
    if last is None or is_finished(last):
        return
    if "rows_at_a_time" in there:
        same = there["rows_at_a_time"] == run["rows_at_a_time"]
    else:  # an older version
        same = before == run["recipe"]["micro_batch_size"]
    if not same:
        raise FileExistsError(
            f"the attention transfer in {folder} is not finished, and its loss depends on how many rows are taken at a time: "
            f"there {there.get('rows_at_a_time') or before} rows at a time, now {run['rows_at_a_time']}. Go on with "
            f"micro_batch_size={before} and as many processes until it is; gradient_checkpointing may change"
        )


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint the Trainer had finished writing; trainer_state.json is what it writes last."""
    complete = [path for path in folder.glob("checkpoint-*") if _state(path) is not None]
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)


def is_finished(checkpoint: Path | None) -> bool:
    """Whether nothing is left to train after it."""
    state = None if checkpoint is None else _state(checkpoint)
    return state is not None and state["global_step"] >= state["max_steps"]


def _state(checkpoint: Path) -> dict[str, Any] | None:
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # the run was killed while it wrote this one
        return None


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Inside the `with`, a full disk, a folder that cannot be written or too little memory ends in a sentence.

    Raises:
        OSError, MemoryError: instead of what Python, torch and safetensors raise, each in its own words.
    """
    try:
        yield
    except (OSError, MemoryError, SafetensorError, RuntimeError) as error:
        last = last_complete_checkpoint(folder / "checkpoints") or "none yet"
        if _is_about_memory(error):
            raise MemoryError(
                f"the run in {folder} stopped, because the memory was not enough ({error or type(error).__name__}); last "
                f"complete checkpoint: {last}. Run the same again with a smaller micro_batch_size (attention transfer keeps "
                "its own until it is done) or gradient_checkpointing=True: it goes on there, to the same losses"
            ) from error
        if not _is_about_writing(error):
            raise
        raise OSError(
            f"the run in {folder} stopped, because it could not write ({error}); last complete checkpoint: {last}. "
            "Make room, or the folder writable, and run the same again: it goes on there"
        ) from error


def _is_about_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(
        error
    )  # the last: a CPU's


def _is_about_writing(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in WRITING
    return any(  # safetensors, and torch.save in two ways
        words in str(error) for words in ("Error while serializing", "inline_container", "iostream")
    )


class MetricsLog(TrainerCallback):
    """One JSON line per log: step, loss, learning rate, tokens and seconds, sound across interruptions."""

    def __init__(self, path: Path):
        self.path, self.before = path, 0.0
        self.rows = list(_lines(path)) if path.is_file() else []

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Keep what the checkpoint we start from has seen, drop what will be run again."""
        self.rows = [row for row in self.rows if row["step"] <= state.global_step]
        if state.is_world_process_zero and self.path.is_file():
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.before = self.rows[-1]["seconds"] if self.rows else 0.0
        self.start = time.perf_counter()

    def on_pre_optimizer_step(self, args, state, control, model: nn.Module, **kwargs) -> None:
        """Before a gradient that is not finite reaches the weights, and a checkpoint."""
        gradients = [_local(p.grad) for p in model.parameters() if p.grad is not None]
        if not nn.utils.get_total_norm(gradients).isfinite():
            raise FloatingPointError(
                f"a gradient is NaN or infinite at step {state.global_step + 1}; the checkpoints before it are in "
                f"{args.output_dir}. Lower the learning rate and start in another folder"
            )

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_log |= state.global_step >= state.max_steps  # the last steps, too

    def on_log(self, args, state, control, logs, **kwargs) -> None:
        if "loss" not in logs:  # the closing summary
            return
        if not math.isfinite(float(logs["loss"])):
            raise FloatingPointError(f"the loss is {logs['loss']} at step {state.global_step}: nothing to learn from?")
        row = {
            "step": state.global_step,
            "loss": float(logs["loss"]),
            "learning_rate": float(logs["learning_rate"]),
            "tokens": int(state.num_input_tokens_seen),
            "seconds": round(self.before + time.perf_counter() - self.start, 3),
        }
        self.rows.append(row)
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def _local(gradient: Tensor) -> Tensor:
    """This process's part of a gradient that FSDP has split."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the last line, when the run was killed while it wrote
            return
