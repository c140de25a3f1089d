"""LoRA recovery (chapter 08): win the quality back by training a low-rank change of W_q, W_k and W_v.

PEFT makes the adapters, transformers' Trainer runs the loop; what is ours is the recipe, a run folder that
can be resumed after a kill, and the numbers that come back.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_model
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from peft.utils.other import ModulesToSaveWrapper
from torch.utils.data import Dataset, IterableDataset
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

from liger_mini.attention import liger_layers
from liger_mini.convert import refuse_adapters
from liger_mini.corpus import IGNORE, Collator
from liger_mini.evaluate import branches
from liger_mini.objectives import DistillationTrainer, NextTokenTrainer, TransferTrainer, WindowDropout
from liger_mini.paths import write_atomically
from liger_mini.run_folder import (
    LigerLoraConfig,
    MetricsLog,
    claim,
    explained,
    identity,
    is_finished,
    known_by,
    last_complete_checkpoint,
    name_base,
)

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
        batch_size: rows a step, in all; `micro_batch_size` of them at a time (None: all at once). The same losses, so it may
            change when a run goes on; but for attention transfer, whose loss is a ratio: there it is the mean over the
            micro-batches, which stay as they are until the transfer is done.
        packing: put the rows of a batch one after another into one row, with boundaries that both branches keep; padding
            (the paper's way) if False. The same losses, without the padding's cost.
        transfer_steps: steps of attention transfer before the rest, at the same batch size and peak learning rate.
        distillation: λ, the weight of KL(teacher ‖ student) against the next-token loss; the teacher is the model itself
            without its adapters and with softmax attention.
        window_dropout: the probability with which a layer goes without its window in the first step; it falls
            linearly to zero.
        gradient_checkpointing: keep only what enters each block, and compute the rest of its activations again on the way
            back: less memory, more time, the same losses. It may change when a run goes on.
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
    "long": Recipe(rank=32, alpha=32, learning_rate=5e-3, steps=250),  # for a gate with a long half-life
    # the best recall outside the window that was found on the embedded teacher, with structure "lightnet"
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
    same losses. A last batch that is not full is left out. Running the same call again after an interruption goes on from
    the last complete checkpoint, to the same losses. A finished run is not repeated: its adapter is loaded and merged.

    What needs less memory for the same losses (`micro_batch_size`, `gradient_checkpointing`) may change in between. Rows in
    memory (a list, a `datasets.Dataset`) are all looked at before the first step; of others the 16 by which the run knows
    its data, and each of the rest when its turn comes. A row that cannot be learned from may be replaced by another one; the
    number of rows stays.

    Args:
        dataset: rows of `input_ids` and `labels` (-100 = not scored) of equal length, at least one of them scored.
        output_dir: gets ``run.json`` (what this run is), ``metrics.jsonl`` (one line a log), ``checkpoints/``,
            ``adapter/`` (the PEFT adapter) and ``result.json``; ``transfer/`` the same of attention transfer.
        train_in_full: names of modules that are trained besides LoRA; a linearized model has none that need it. Tied
            embeddings are trained as one and stay tied.
        save_every, log_every: steps between checkpoints and between log lines; the first a multiple of the second.
    Raises:
        FileExistsError: `output_dir` holds another run (or something else).
        ValueError: a model that is not linearized, a dataset or a row that cannot be learned from, or a recovered model
            whose teacher is asked for again.
        TypeError: a model that carries adapters or is no causal language model, or something that is not one split of a
            dataset.
        OSError: a checkpoint could not be written; the last complete one is kept. Or the adapter of a finished run could
            not be read.
        MemoryError: of the GPU or the machine; the last checkpoint is kept.
        FloatingPointError: a gradient became NaN or infinite; the last checkpoint is kept.
        Whatever is raised, the model is as it was before.
    """
    output_dir = Path(output_dir)
    _check(model, dataset, recipe, train_in_full)
    if log_every < 1 or save_every < 1 or save_every % log_every:
        raise ValueError(f"save_every = {save_every} is not a multiple of log_every = {log_every} ≥ 1")
    processes = PartialState(cpu=not torch.cuda.is_available())
    rows_at_a_time = _micro_batch_size(recipe) * processes.num_processes
    if processes.is_main_process:
        claim(output_dir, identity(model, dataset, recipe, train_in_full, rows_at_a_time))
    processes.wait_for_everyone()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    before = model.num_parameters()
    with _adapted(model, recipe, train_in_full) as peft_model:
        if (output_dir / "result.json").is_file():
            return _finished(peft_model, model, output_dir, before)
        after, (trained, _) = _parameters_after_merging(peft_model), peft_model.get_nb_trainable_parameters()
        rows, sharded = _train_stages(peft_model, model, output_dir, dataset, recipe, save_every, log_every)
        last = rows[-1] if rows else {"seconds": 0.0, "tokens": 0}
        result = Recovery(
            recipe=recipe,
            losses=[(row["step"], row["loss"]) for row in rows],
            seconds=last["seconds"],
            tokens=last["tokens"],
            parameters=after,
            parameters_added=after - before,
            parameters_trained=trained,
            merged=not sharded,
            peak_bytes=_peak_bytes(),
        )
        with explained(output_dir):
            if processes.is_main_process:
                name_base(output_dir / "adapter", model)
                write_atomically(output_dir / "result.json", json.dumps(result.to_dict(), indent=1))
        if not sharded:
            _merge(peft_model, model)
    return result


def _train_stages(
    peft_model: PeftModel,
    model: PreTrainedModel,
    output_dir: Path,
    dataset: Dataset,
    recipe: Recipe,
    save_every: int,
    log_every: int,
) -> tuple[list[dict[str, Any]], bool]:
    """Attention transfer if there is any, then the rest, whose adapter is saved: its log, and whether FSDP split the model."""
    how = {
        "dataset": _Rows(dataset, model.config),
        "recipe": recipe,
        "save_every": save_every,
        "log_every": log_every,
    }
    if recipe.transfer_steps:
        _train(TransferTrainer, peft_model, output_dir / "transfer", recipe.transfer_steps, **how)
    callbacks = [WindowDropout(model, recipe.window_dropout, recipe.seed)] if recipe.window_dropout else []
    trainer_class = NextTokenTrainer
    if recipe.distillation:
        trainer_class = functools.partial(DistillationTrainer, weight=recipe.distillation)
    trainer, rows = _train(trainer_class, peft_model, output_dir, recipe.steps, callbacks=callbacks, **how)
    sharded = trainer is not None and trainer.is_fsdp_enabled
    with explained(output_dir):
        if sharded:  # weights in pieces: gather the adapter, and leave merging to a single process
            trainer.save_model(str(output_dir / "adapter"))
        elif PartialState().is_main_process:
            peft_model.save_pretrained(output_dir / "adapter")
    return rows, sharded


@contextmanager
def _adapted(model: PreTrainedModel, recipe: Recipe, train_in_full: Sequence[str]) -> Iterator[PeftModel]:
    """Inside the `with`, fresh adapters on the model; an error takes them out again, and all settings come back."""
    set_seed(recipe.seed)  # LoRA's A is drawn at random
    training, trainable = model.training, [p for p in model.parameters() if p.requires_grad]
    flags = {m: m.gradient_checkpointing for m in model.modules() if hasattr(m, "gradient_checkpointing")}
    use_cache = model.config.use_cache
    embeddings = any(name.rpartition(".")[2] in EMBEDDING_LAYER_NAMES for name in train_in_full)
    lora = LigerLoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=LORA_TARGETS,
        modules_to_save=list(train_in_full) or None,
        ensure_weight_tying=embeddings and model.config.tie_word_embeddings,
        task_type="CAUSAL_LM",
        liger=model.config.liger,
    )
    with quiet_peft():
        peft_model = get_peft_model(model, lora)
    try:
        model.config.use_cache = False
        with branches(model, None):
            yield peft_model
    except BaseException:
        for module in peft_model.modules():  # else `unload` would leave what was trained in full
            if isinstance(module, ModulesToSaveWrapper):
                module.set_adapter([])
        peft_model.unload()
        raise
    finally:
        for module, flag in flags.items():
            module.gradient_checkpointing = flag
        for p in trainable:
            p.requires_grad_()
        model.train(training)
        model.config.use_cache = use_cache


def _merge(peft_model: PeftModel, model: PreTrainedModel) -> None:
    peft_model.merge_and_unload()
    head = model.get_output_embeddings()
    head.out_features, head.in_features = head.weight.shape  # PEFT has made a tied one anew, with the two exchanged
    model.config.liger = {**model.config.liger, "recovered": True}  # its teacher is no longer inside
    model.config._name_or_path = model.name_or_path = ""  # the folder it came from holds the model before


def _parameters_after_merging(model: PeftModel) -> int:
    """What will be left: nothing of LoRA, and of what is trained in full the trained one; tied parameters count once."""
    left = {
        parameter: parameter.numel()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if "lora_" not in name and ".original_module." not in name
    }
    return sum(left.values())


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT still asks transformers for a property under its old name, and every reader would see that warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _train(
    trainer_class: Callable[..., Trainer],
    model: PeftModel,
    output_dir: Path,
    steps: int | None,
    *,
    dataset: Dataset,
    recipe: Recipe,
    save_every: int,
    log_every: int,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[Trainer | None, list[dict[str, Any]]]:
    """One stage, from its last complete checkpoint if it has one: the trainer (None if nothing was left to do), the log."""
    log, last = MetricsLog(output_dir / "metrics.jsonl"), last_complete_checkpoint(output_dir / "checkpoints")
    if is_finished(last):  # the Trainer would train a step more
        model.load_adapter(str(last), "default", is_trainable=True)
        return None, log.rows
    if last is not None and (last / "pytorch_model_fsdp.bin").exists() and not _under_fsdp():
        raise ValueError(
            f"the run in {output_dir} was started under FSDP and is not finished; go on with the same launch"
        )
    collator = Collator(max(model.config.pad_token_id or 0, 0))
    if recipe.packing:
        collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    trainer = trainer_class(
        model,
        _training_arguments(output_dir, recipe, steps, save_every, log_every),
        train_dataset=dataset,
        data_collator=collator,
        callbacks=[log, *callbacks],
    )
    if trainer.is_fsdp_enabled and recipe.bf16:  # else the loss and the logits would be rounded as well
        fsdp = trainer.accelerator.state.fsdp_plugin
        fsdp.mixed_precision_policy = dataclasses.replace(fsdp.mixed_precision_policy, output_dtype=torch.float32)
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)  # another one in a notebook than in a terminal
    trainer.add_callback(_ProgressBar)
    with explained(output_dir):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return trainer, log.rows


class _Rows(Dataset):
    """The rows of a dataset, each looked at when its turn comes; what is said about a bad one includes the way on."""

    def __init__(self, dataset: Dataset, config: Any):
        self.dataset, self.config = dataset, config

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        row = self.dataset[number]
        try:
            return _checked(row, number, self.config)
        except ValueError as error:
            raise ValueError(
                f"{error}. Put another row in its place (their number must stay) and run the same again: it goes on from "
                "the last checkpoint"
            ) from error


def _checked(row: Any, number: int, config: Any) -> dict[str, list[int]]:
    """A row as lists, if it can be learned from."""
    if not isinstance(row, Mapping):
        raise ValueError(f"row {number} is a {type(row).__name__}; needed is a mapping with input_ids and labels")
    missing = {"input_ids", "labels"} - set(row)
    if missing:
        raise ValueError(f"row {number} lacks {sorted(missing)}; it has {sorted(row)}. Needed are input_ids and labels")
    ids, labels = (_whole_numbers(row[name], f"row {number}: {name}") for name in ("input_ids", "labels"))
    longest = getattr(config, "max_position_embeddings", None) or math.inf
    if len(ids) != len(labels):
        raise ValueError(f"row {number} has {len(ids)} input_ids and {len(labels)} labels; they must be equally many")
    if len(ids) > longest:
        raise ValueError(
            f"row {number} has {len(ids)} tokens, and the model's positions end at {longest}; cut the rows"
        )
    if all(label == IGNORE for label in labels[1:]):  # the first is never predicted
        raise ValueError(
            f"row {number}, of {len(ids)} tokens, has no label to learn from (after the first, all are {IGNORE}); leave it "
            "out"
        )
    last = config.vocab_size - 1
    for token in (min(ids), max(ids)):
        if not 0 <= token <= last:
            raise ValueError(
                f"row {number} holds the token {token}; allowed are 0 to {last}, the model's vocabulary. Is the tokenizer "
                "another model's?"
            )
    for label in (min(x for x in labels if x != IGNORE), max(labels)):
        if not 0 <= label <= last:
            raise ValueError(f"row {number} has the label {label}; allowed are 0 to {last}, and {IGNORE} (not scored)")
    return {"input_ids": ids, "labels": labels}


def _whole_numbers(values: Any, what: str) -> list[int]:
    try:
        x = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{what} cannot be read as whole numbers ({error})") from error
    if x.dim() != 1 or (len(x) and (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)):
        kind = str(x.dtype).removeprefix("torch.")
        raise ValueError(f"{what} is of {kind} and of shape {list(x.shape)}; allowed is one list of whole numbers")
    return x.tolist()


def _in_memory(dataset: Any) -> bool:
    """Whether all rows can be looked at without making each: a list, or a `datasets.Dataset` without a transform."""
    how = getattr(dataset, "format", None)  # of a datasets.Dataset
    return isinstance(dataset, (list, tuple)) or (isinstance(how, dict) and how.get("type") != "custom")


def _check_rows(dataset: Any, config: Any) -> None:
    """Before the first step: every row that is in memory, or those by which the run knows its data."""
    rows = enumerate(dataset) if _in_memory(dataset) else ((i, dataset[i]) for i in known_by(len(dataset)))
    for number, row in rows:
        _checked(row, number, config)


def _micro_batch_size(recipe: Recipe) -> int:
    """Rows a process takes at a time."""
    processes = PartialState().num_processes
    micro = recipe.micro_batch_size or max(1, recipe.batch_size // processes)
    if recipe.batch_size % (micro * processes):
        raise ValueError(
            f"batch_size = {recipe.batch_size} is not a multiple of micro_batch_size x processes = {micro} x {processes}"
        )
    return micro


def _under_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"  # what accelerate reads


def _training_arguments(
    output_dir: Path, recipe: Recipe, steps: int | None, save_every: int, log_every: int
) -> TrainingArguments:
    processes, micro = PartialState().num_processes, _micro_batch_size(recipe)
    arguments = TrainingArguments(
        output_dir=str(output_dir / "checkpoints"),
        max_steps=-1 if steps is None else steps,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=recipe.batch_size // (micro * processes),
        learning_rate=recipe.learning_rate,
        dataloader_drop_last=True,  # several processes would fill it up with rows from the start
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
    arguments._n_gpu = min(arguments.n_gpu, 1)  # without torchrun: one GPU, as a batch over several would be larger
    return arguments


class _ProgressBar(ProgressCallback):
    """The Trainer's bar, with the loss in it instead of a printed dictionary a log."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def _peak_bytes() -> int | None:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _finished(peft_model: PeftModel, model: PreTrainedModel, output_dir: Path, before: int) -> Recovery:
    """What a finished run measured; its adapter, merged into the model of `before` parameters."""
    result = json.loads((output_dir / "result.json").read_text("utf-8"))
    losses = [(step, loss) for step, loss in result["losses"]]
    try:
        peft_model.load_adapter(str(output_dir / "adapter"), "default")
    except Exception as error:  # PEFT, safetensors and the hub, each in its own words
        raise OSError(
            f"the adapter in {output_dir / 'adapter'} cannot be read ({error}); delete {output_dir / 'result.json'} and run "
            "the same again: it is made anew from the last checkpoint"
        ) from error
    _merge(peft_model, model)
    counted = {"parameters": model.num_parameters(), "parameters_added": model.num_parameters() - before}
    return Recovery(**{**result, "recipe": Recipe(**result["recipe"]), "losses": losses, "merged": True, **counted})


def _check(model: PreTrainedModel, dataset: Any, recipe: Recipe, train_in_full: Sequence[str]) -> None:
    """Whatever can be refused before anything is written."""
    _check_model(model, train_in_full)
    if model.config.liger.get("recovered") and (recipe.distillation or recipe.transfer_steps):
        raise ValueError(
            "distillation and attention transfer need the teacher, and this model's recovery was merged into its weights: "
            "set both to 0, or linearize the original again"
        )
    if recipe.transfer_steps and _under_fsdp():
        raise ValueError("attention transfer does not run under FSDP; use torchrun (DDP), or transfer_steps=0")
    if isinstance(dataset, dict):
        raise TypeError(f"the dataset has several splits, {sorted(dataset)}; give one of them")
    if not hasattr(dataset, "__len__") or isinstance(dataset, IterableDataset):
        raise TypeError(
            f"a {type(dataset).__name__} has no length, by which a run is planned, or no numbered rows; give a map-style "
            "dataset"
        )
    if len(dataset) < recipe.batch_size:
        raise ValueError(f"the dataset has {len(dataset)} rows, which is less than a batch of {recipe.batch_size}")
    _check_rows(dataset, model.config)


def _check_model(model: PreTrainedModel, train_in_full: Sequence[str]) -> None:
    if isinstance(model, PeftModel):
        raise TypeError("the model is inside PEFT already; merge its adapters first, model.merge_and_unload()")
    refuse_adapters(model, "a recovery would throw away")
    liger_layers(model)
    if not getattr(model, "can_generate", bool)():
        raise TypeError(
            f"{type(model).__name__} is no causal language model, and recovery trains the next token's probability; load it "
            "with AutoModelForCausalLM"
        )
    if isinstance(train_in_full, str):
        raise TypeError(f"train_in_full = {train_in_full!r}: needed is a list of names, [{train_in_full!r}]")
    modules = [name for name, _ in model.named_modules()]
    unknown = [name for name in train_in_full if not any(module.endswith(name) for module in modules)]
    if unknown:
        raise ValueError(
            f"train_in_full names {unknown}, and the model has no such modules (see model.named_modules())"
        )
