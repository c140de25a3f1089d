"""What a recovery leaves on disk (chapter 08): whose folder it is, its checkpoints, its log.

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

from liger_mini.paths import write_atomically

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


def identity(model: PreTrainedModel, dataset: Dataset, recipe: Any, train_in_full: Sequence[str]) -> dict[str, Any]:
    """What makes a run this run. Weights and data are known by a hash of some of them: every W_k, and 16 rows."""
    rows = [dataset[i] for i in sorted({len(dataset) * i // 16 for i in range(16)})]
    rows = [[int(x) for name in ("input_ids", "labels") for x in row[name]] for row in rows]
    keys = (p for name, p in model.named_parameters() if name.endswith("k_proj.weight"))
    return {
        "recipe": dataclasses.asdict(recipe),
        "liger": model.config.liger,
        "train_in_full": list(train_in_full),
        "rows": len(dataset),
        "data": _digest([json.dumps(rows).encode()]),
        "weights": _digest(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for p in keys),
    }


def _digest(parts: Iterable[bytes]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:16]


def claim(folder: Path, run: dict[str, Any]) -> None:
    """Make `folder` this run's, or make sure that it is.

    Raises:
        FileExistsError: it holds another run (or something else).
    """
    path = folder / "run.json"
    if path.is_file():
        there = json.loads(path.read_text())
        changed = [name for name in run if there.get(name) != run[name]]
        if changed:
            hashes = {"data": "other data", "weights": "a model with other weights"}
            details = "; ".join(
                hashes.get(name, f"{name}: there {there.get(name)}, now {run[name]}") for name in changed
            )
            raise FileExistsError(
                f"{folder} holds another run ({details}). Use another folder, or delete this one; to go on with it, start "
                "from the model it started from"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and is not a recovery run (no run.json). Use another folder")
    else:
        write_atomically(path, json.dumps(run, indent=1))


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
    """Inside the `with`, a disk that is full or a folder that cannot be written ends in a sentence.

    Raises:
        OSError: instead of what Python, torch and safetensors raise, each in its own words.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, OSError):
            about_writing = error.errno in WRITING
        else:  # safetensors, and torch.save in two ways
            about_writing = any(w in str(error) for w in ("Error while serializing", "inline_container", "iostream"))
        if not about_writing:
            raise
        last = last_complete_checkpoint(folder / "checkpoints") or "none yet"
        raise OSError(
            f"the run in {folder} stopped, because it could not write ({error}); last complete checkpoint: {last}. "
            "Make room, or the folder writable, and run the same again: it goes on there"
        ) from error


class MetricsLog(TrainerCallback):
    """One JSON line a log: step, loss, learning rate, tokens and seconds, sound across interruptions."""

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
