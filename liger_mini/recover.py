"""LoRA recovery (chapter 08): win the quality back by training a low-rank change of W_q, W_k and W_v.

PEFT makes the adapters, transformers' Trainer runs the loop; what is ours is the recipe, a run folder that
can be resumed after a kill, and the numbers that come back.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Dataset
from transformers import (
    DataCollatorWithFlattening,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import ProgressCallback

from liger_mini.corpus import IGNORE, Collator
from liger_mini.objectives import DistillationTrainer, TransferTrainer, WindowDropout
from liger_mini.paths import write_atomically

try:
    import resource
except ImportError:  # Windows
    resource = None

# transformers renames this argument within its version 5
CHECKPOINTING = (
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
)
LORA_TARGETS = ["q_proj", "k_proj", "v_proj"]  # PEFT's default for Llama leaves out k_proj, which here is the gate


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of one recovery; the defaults are the paper's.

    Attributes:
        rank, alpha: of LoRA on W_q, W_k, W_v. The change of a weight is (alpha / rank) · B A.
        learning_rate: the peak of AdamW's; warmed up over 2 % of the steps, then a cosine to zero.
        epochs: passes over the data; `steps`, if given, counts optimizer steps instead.
        batch_size: rows a step, in all; `micro_batch_size` of them at a time (None: all at once).
        packing: put the rows of a batch one after another into one row, with boundaries that both branches keep; padding
            (the paper's way) if False. The same losses, without the padding's cost.
        transfer_steps: steps of attention transfer before the rest, at the same batch size and peak learning rate.
        distillation: λ, the weight of KL(teacher ‖ student) against the next-token loss; the teacher is the model itself
            without its adapters and with softmax attention.
        window_dropout: the probability with which a layer goes without its window in the first step; it falls
            linearly to zero.
        gradient_checkpointing: keep only what enters each block, and compute the rest of its activations again on the way
            back: less memory, more time, the same losses.
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


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(),
    "quick": Recipe(steps=200),  # the paper's on the embedded teacher
    "long": Recipe(rank=32, alpha=32, learning_rate=5e-3, steps=250),  # for a gate with a long half-life
    # the best recall outside the window that was found on the embedded teacher, with structure "lightnet"
    "recall": Recipe(rank=64, alpha=128, learning_rate=5e-3, transfer_steps=600, steps=2400),
}


@dataclass(frozen=True)
class Recovery:
    """What `recover` measured.

    Attributes:
        losses: (step, mean training loss since the last entry).
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

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def recover(
    model: PreTrainedModel,
    dataset: Dataset,
    *,
    output_dir: str | Path,
    recipe: Recipe = Recipe(),
    train_in_full: Sequence[str] = (),
    save_every: int = 100,
    log_every: int = 10,
) -> Recovery:
    """Train LoRA adapters on a linearized model and merge them into it, in place.

    Under `torchrun` or `accelerate launch` the batch is spread over the processes (the Trainer's DDP): same global batch,
    same losses. Running the same call again after an interruption goes on from the last complete checkpoint, to the
    same losses. A finished run is not repeated: its adapter is loaded and merged.

    Args:
        dataset: rows of `input_ids` and `labels` (-100 = not scored), lists of equal length.
        output_dir: gets ``run.json`` (what this run is), ``metrics.jsonl`` (one line a log), ``checkpoints/``,
            ``adapter/`` (the PEFT adapter) and ``result.json``; ``transfer/`` the same of attention transfer.
        train_in_full: names of modules that are trained besides LoRA; a linearized model has none that need it.
    Raises:
        FileExistsError: `output_dir` holds another run (or something else).
        ValueError: an empty dataset, or one without the needed columns.
        OSError: a checkpoint could not be written; the last complete one is kept.
        FloatingPointError: the loss became NaN or infinite; the last checkpoint is kept.
    """
    output_dir = Path(output_dir)
    _check_dataset(dataset, model)
    processes = PartialState(cpu=not torch.cuda.is_available())
    if processes.is_main_process:
        _claim(output_dir, model, dataset, recipe)
    processes.wait_for_everyone()
    if (output_dir / "result.json").is_file():
        return _finished(model, output_dir)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    set_seed(recipe.seed)  # LoRA's A is drawn at random
    use_cache, model.config.use_cache = model.config.use_cache, False
    lora = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=LORA_TARGETS,
        modules_to_save=list(train_in_full) or None,
        task_type="CAUSAL_LM",
    )
    with quiet_peft():
        peft_model = get_peft_model(model, lora)
    trained, total = peft_model.get_nb_trainable_parameters()
    if recipe.transfer_steps:
        _train(
            TransferTrainer,
            peft_model,
            dataset,
            output_dir / "transfer",
            recipe,
            recipe.transfer_steps,
            save_every,
            log_every,
        )
    callbacks = [WindowDropout(model, recipe.window_dropout, recipe.seed)] if recipe.window_dropout else []
    trainer_class = (
        functools.partial(DistillationTrainer, weight=recipe.distillation) if recipe.distillation else Trainer
    )
    trainer, log = _train(
        trainer_class, peft_model, dataset, output_dir, recipe, recipe.steps, save_every, log_every, callbacks
    )
    if trainer.is_fsdp_enabled:  # weights in pieces: gather the adapter, and leave merging to a single process
        trainer.save_model(str(output_dir / "adapter"))
    else:
        if processes.is_main_process:
            peft_model.save_pretrained(output_dir / "adapter")
        peft_model.merge_and_unload()
    if recipe.gradient_checkpointing:
        for module in model.modules():  # what transformers' own method does, whose name changes within its version 5
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
    model.config.use_cache = use_cache
    result = Recovery(
        recipe=recipe,
        losses=[(row["step"], row["loss"]) for row in log.rows],
        seconds=log.rows[-1]["seconds"] if log.rows else 0.0,
        tokens=log.rows[-1]["tokens"] if log.rows else 0,
        parameters=total - trained,
        parameters_trained=trained,
        merged=not trainer.is_fsdp_enabled,
        peak_bytes=_peak_bytes(),
    )
    if processes.is_main_process:
        write_atomically(output_dir / "result.json", json.dumps(result.to_dict(), indent=1))
    return result


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT still asks transformers for a property under its old name, and every reader would see that warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _train(
    trainer_class: Callable[..., Trainer],
    model: PeftModel,
    dataset: Dataset,
    output_dir: Path,
    recipe: Recipe,
    steps: int | None,
    save_every: int,
    log_every: int,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[Trainer, _MetricsLog]:
    """One stage, from its last complete checkpoint if it has one."""
    log = _MetricsLog(output_dir / "metrics.jsonl")
    trainer = trainer_class(
        model,
        _training_arguments(output_dir, recipe, steps, save_every, log_every),
        train_dataset=dataset,
        data_collator=DataCollatorWithFlattening(return_flash_attn_kwargs=True)
        if recipe.packing
        else Collator(model.config.pad_token_id or 0),
        callbacks=[log, *callbacks],
    )
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)  # another one in a notebook than in a terminal
    trainer.add_callback(_ProgressBar)
    try:
        trainer.train(resume_from_checkpoint=_last_complete_checkpoint(output_dir / "checkpoints"))
    except OSError as error:  # disk full, folder gone or read-only
        last = _last_complete_checkpoint(output_dir / "checkpoints") or "none yet"
        raise OSError(
            f"the run in {output_dir} stopped at step {trainer.state.global_step}, because it could not write ({error}); "
            f"last complete checkpoint: {last}. Make room, or the folder writable, and run the same again: it goes on there"
        ) from error
    return trainer, log


def _training_arguments(
    output_dir: Path, recipe: Recipe, steps: int | None, save_every: int, log_every: int
) -> TrainingArguments:
    processes = PartialState().num_processes
    micro = recipe.micro_batch_size or max(1, recipe.batch_size // processes)
    if recipe.batch_size % (micro * processes):
        raise ValueError(
            f"batch_size = {recipe.batch_size} is not a multiple of micro_batch_size x processes = {micro} x {processes}"
        )
    return TrainingArguments(
        output_dir=str(output_dir / "checkpoints"),
        max_steps=steps or -1,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=recipe.batch_size // (micro * processes),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.02,
        weight_decay=recipe.weight_decay,
        bf16=recipe.bf16,
        **{
            CHECKPOINTING: recipe.gradient_checkpointing,
            f"{CHECKPOINTING}_kwargs": {
                "use_reentrant": False
            },  # the other kind loses gradients where inputs have none
        },
        logging_steps=log_every,
        logging_nan_inf_filter=False,  # the Trainer would log the mean of the finite losses instead
        save_steps=save_every,
        save_total_limit=2,
        seed=recipe.seed,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,  # the collator makes the batch; nothing else is passed on
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=False,  # whatever transformers' verbosity is: the bar is ours, with the loss in it
        report_to=[],
    )


class _MetricsLog(TrainerCallback):
    """One JSON line a log: step, loss, learning rate, tokens and seconds, sound across interruptions."""

    def __init__(self, path: Path):
        self.path, self.rows, self.before = path, [], 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Keep what the checkpoint we start from has seen, drop what will be run again."""
        if self.path.is_file():
            self.rows = [
                row for row in map(json.loads, self.path.read_text().splitlines()) if row["step"] <= state.global_step
            ]
            if state.is_world_process_zero:
                write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.before = self.rows[-1]["seconds"] if self.rows else 0.0
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_log |= state.global_step >= state.max_steps  # the last steps, too

    def on_log(self, args, state, control, logs, **kwargs) -> None:
        if "loss" not in logs:  # the closing summary
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {state.global_step}; the checkpoints before it are in {args.output_dir}. "
                "Lower the learning rate and start in another folder"
            )
        row = {
            "step": state.global_step,
            "loss": loss,
            "learning_rate": float(logs["learning_rate"]),
            "tokens": int(state.num_input_tokens_seen),
            "seconds": round(self.before + time.perf_counter() - self.start, 3),
        }
        self.rows.append(row)
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


class _ProgressBar(ProgressCallback):
    """The Trainer's bar, with the loss in it instead of a printed dictionary a log."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def _claim(output_dir: Path, model: PreTrainedModel, dataset: Dataset, recipe: Recipe) -> None:
    """Make `output_dir` this run's, or make sure that it is."""
    liger = getattr(model.config, "liger", None)
    run = {
        "recipe": dataclasses.asdict(recipe),
        "liger": liger,
        "rows": len(dataset),
        "first_row": list(dataset[0]["input_ids"]),
    }
    path = output_dir / "run.json"
    if path.is_file():
        there = json.loads(path.read_text())
        changed = [name for name in run if there.get(name) != run[name]]
        if changed:
            details = "; ".join(
                f"{name}: there {there.get(name)}, now {run[name]}" for name in changed if name != "first_row"
            )
            raise FileExistsError(
                f"{output_dir} holds another run ({details or 'trained on other data'}). Use another folder, or delete this one"
            )
    elif output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"{output_dir} is not empty and is not a recovery run (no run.json). Use another folder")
    else:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(run, indent=1))


def _peak_bytes() -> int | None:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _finished(model: PreTrainedModel, output_dir: Path) -> Recovery:
    """What a finished run measured; its adapter, merged into the model."""
    with quiet_peft():
        PeftModel.from_pretrained(model, output_dir / "adapter").merge_and_unload()
    result = json.loads((output_dir / "result.json").read_text("utf-8"))
    losses = [(step, loss) for step, loss in result["losses"]]
    return Recovery(**{**result, "recipe": Recipe(**result["recipe"]), "losses": losses, "merged": True})


def _last_complete_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint the Trainer had finished writing; trainer_state.json is what it writes last."""

    def complete(checkpoint: Path) -> bool:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):  # the run was killed while it wrote this one
            return False
        return True

    checkpoints = [path for path in folder.glob("checkpoint-*") if complete(path)]
    return str(max(checkpoints, key=lambda path: int(path.name.split("-")[1]))) if checkpoints else None


def _check_dataset(dataset: Dataset, model: PreTrainedModel) -> None:
    if len(dataset) == 0:
        raise ValueError("the dataset is empty; recovery needs rows of input_ids and labels")
    row = dataset[0]
    missing = {"input_ids", "labels"} - set(row)
    if missing:
        raise ValueError(
            f"the dataset lacks {sorted(missing)}; its rows have {sorted(row)}. Needed are input_ids and labels"
        )
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest and len(row["input_ids"]) > longest:
        raise ValueError(
            f"the first row has {len(row['input_ids'])} tokens, and the model's positions end at {longest}; cut the rows"
        )
    if all(label == IGNORE for label in row["labels"]):
        raise ValueError("the first row has no label to learn from (all are -100)")
