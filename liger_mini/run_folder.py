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
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, LoraConfig, LoraModel
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
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


SAME_LOSSES = {"micro_batch_size", "gradient_checkpointing"}  # fields of Recipe that may change between resumes
ABOUT_THE_BASE = {"base", "parameters", "own_windows"}  # follow from the model that was linearized


def known_by(rows: int) -> list[int]:
    """The numbers of the rows by which a run knows its data: 16, evenly spread."""
    return sorted({rows * i // 16 for i in range(16)})


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


def claim(folder: Path, run: dict[str, Any]) -> None:
    """Make `folder` this run's, or make sure that it is; what may change is noted in it.

    Raises:
        FileExistsError: it holds another run (or something else), or one that has to finish its attention transfer first.
    """
    path = folder / "run.json"
    if path.is_file():
        there = json.loads(path.read_text("utf-8"))
        changed = _differences(there, run)
        if changed:
            raise FileExistsError(
                f"{folder} holds another run ({'; '.join(changed)}). Use another folder, or delete this one; to go on with "
                "it, start from the model it started from"
            )
        _check_transfer(folder, there, run)
        if there != {**there, **run}:
            write_atomically(path, json.dumps({**there, **run}, indent=1))
    elif folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and is not a recovery run (no run.json). Use another folder")
    else:
        write_atomically(path, json.dumps(run, indent=1))


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
        told.append("a model with other weights")
    if (there["rows"], there["data"]) != (run["rows"], run["data"]):
        numbers = ", ".join(map(str, known_by(there["rows"])))
        told.append(
            f"other data, there {there['rows']} rows, now {run['rows']}: their number must stay, and rows {numbers}, by "
            "which a run knows its data; any other may be replaced by another row"
        )
    return told


def changes(there: dict[str, Any], here: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, there, here) of the settings that differ; what an older version did not know yet was off (None, 0, False)."""
    for name in sorted((there.keys() | here.keys()) - ABOUT_THE_BASE):
        before, now = there.get(name), here.get(name)
        if (before or None) != (now or None):
            yield name, before, now


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


class AdapterType(StrEnum):
    """The kind of adapter that PEFT reads in adapter_config.json; its own kinds are in an Enum that cannot grow."""

    LIGER_LORA = "LIGER_LORA"


@dataclass
class LigerLoraConfig(LoraConfig):
    """LoRA that was trained on a linearized model.

    PEFT puts an adapter on any model whose layers have the right names, and a softmax model has the names of its linearized
    self. In a LoraConfig nothing is compared with the model: a field that PEFT does not know is dropped with a warning about
    versions, `auto_mapping` is read by AutoPeftModel alone, and a module of `modules_to_save` may be missing. A kind of
    adapter is what PEFT lets a package define, and it calls that kind's model class first. So this is LoRA in all but its
    name: on a softmax model it is refused, and where liger_mini was not imported PEFT does not know the name. Adapters
    that older versions saved are plain LoRA, and are loaded as such.

    Attributes:
        liger: how the model was linearized (`model.config.liger`).
    """

    liger: dict[str, Any] | None = None

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = AdapterType.LIGER_LORA


class LigerLoraModel(LoraModel):
    """PEFT's LoraModel, for linearized models alone."""

    def _pre_injection_hook(self, model: nn.Module, config: LigerLoraConfig, adapter_name: str) -> None:
        here, there = getattr(model.config, "liger", None), config.liger or {}
        if here is None:
            raise TypeError(
                f"{type(model).__name__} is not linearized, and this adapter was trained on a linearized model; make it that "
                f"first: liger_mini.linearize(model, {_arguments(there)})"
            )
        told = [f"{name}: there {before}, here {now}" for name, before, now in changes(there, here)]
        if told:
            warnings.warn(
                f"this adapter was trained on a model that was linearized in another way ({'; '.join(told)}): expect other "
                "numbers than its recovery had",
                stacklevel=2,
            )
        super()._pre_injection_hook(model, config, adapter_name)


PEFT_TYPE_TO_CONFIG_MAPPING[AdapterType.LIGER_LORA] = LigerLoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[AdapterType.LIGER_LORA] = LigerLoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[AdapterType.LIGER_LORA] = LoraModel.prefix


def _arguments(liger: dict[str, Any]) -> str:
    """The settings of a linearized model as arguments of `linearize`."""
    settings = {name: x for name, x in liger.items() if name not in ABOUT_THE_BASE | {"recovered"} and x is not None}
    return ", ".join(f"{name}={x!r}" for name, x in settings.items())


def name_base(adapter: Path, model: PreTrainedModel) -> None:
    """Write into an adapter's folder which model it belongs to, and in README.md how to load it there.

    Afterwards, as PEFT asks the hub about a base that it knows whenever it saves.
    """
    liger, base = model.config.liger, model.name_or_path or None  # the folder of a linearized model, or unknown
    how = f'model = lm.load("{base}")'
    if base is None:
        base = None if liger.get("recovered") else liger.get("base") or None
        how = f'model = lm.linearize(AutoModelForCausalLM.from_pretrained("{base or "its base"}"), {_arguments(liger)})'
    config = LigerLoraConfig.from_pretrained(adapter)
    config.base_model_name_or_path = base
    config.save_pretrained(adapter)
    earlier = " (after an earlier recovery, which has to be merged first)" if liger.get("recovered") else ""
    write_atomically(
        adapter / "README.md",
        f"""---
library_name: peft
tags: [liger_mini, lora]
---
# A LoRA adapter for a linearized model

This adapter was trained by liger_mini on {f"`{base}`" if base else "a model"} with its attention linearized{earlier}, and belongs on that model
alone: on softmax attention it is refused. Load the model, linearized, and put the adapter on it:

```python
import liger_mini as lm
from peft import PeftModel
from transformers import AutoModelForCausalLM

{how}
model = PeftModel.from_pretrained(model, "this folder").eval()
```
""",
    )
