"""LoRA recovery (chapter 08): win the quality back by training a low-rank change of W_q, W_k and W_v.

PEFT makes the adapters, transformers' Trainer runs the loop; what is ours is the recipe, a run folder that
can be resumed after a kill, and the numbers that come back.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
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

from liger_mini.attention import LigerAttention
from liger_mini.convert import refuse_adapters
from liger_mini.corpora.batches import Collator
from liger_mini.evaluation.measure import branches
from liger_mini.recovery.adapters import LORA_TARGETS, LigerLoraConfig, name_base, quiet_peft
from liger_mini.recovery.objectives import DistillationTrainer, NextTokenTrainer, TransferTrainer, WindowDropout
from liger_mini.recovery.recipes import Recipe, Recovery
from liger_mini.recovery.rows import CheckedRows, check_rows
from liger_mini.recovery.run_folder import (
    MetricsLog,
    claim_run,
    explained,
    identity,
    is_finished,
    last_complete_checkpoint,
)
from liger_mini.support.paths import write_atomically

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


# transformers renames this argument within its version 5
CHECKPOINTING = (
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
)


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
    Whatever is raised, the model is as it was before.

    What needs less memory for the same losses (`micro_batch_size`, `gradient_checkpointing`) may change in between. Rows in
    memory (a list, a `datasets.Dataset`) are all looked at before the first step; of others the 16 by which the run knows
    its data, and each of the rest when its turn comes. A row that cannot be learned from may be replaced by another one; the
    number of rows stays.

    Args:
        dataset: rows of `input_ids` and `labels` (-100 = not scored) of equal length, at least one of them scored.
        output_dir: gets ``run.json`` (what this run is), ``metrics.jsonl`` (one line per log), ``checkpoints/``,
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
    """
    output_dir = Path(output_dir)
    _check(model, dataset, recipe, train_in_full)
    if log_every < 1 or save_every < 1 or save_every % log_every:
        raise ValueError(f"save_every = {save_every} is not a multiple of log_every = {log_every} ≥ 1")
    processes = PartialState(cpu=not torch.cuda.is_available())
    rows_at_a_time = _micro_batch_size(recipe) * processes.num_processes
    if processes.is_main_process:
        claim_run(output_dir, identity(model, dataset, recipe, train_in_full, rows_at_a_time))
    processes.wait_for_everyone()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    before = model.num_parameters()
    with _adapted(model, recipe, train_in_full) as peft_model:
        if (output_dir / "result.json").is_file():
            return _finished(peft_model, model, output_dir, before)
        after, (trained, _) = _parameters_after_merging(peft_model), peft_model.get_nb_trainable_parameters()
        rows = CheckedRows(dataset, model.config)
        for stage in _stages(model, output_dir, recipe):
            done = stage.run(peft_model, rows, recipe, save_every, log_every)
        last: dict[str, Any] = done.log[-1] if done.log else {"seconds": 0.0, "tokens": 0}
        result = Recovery(
            recipe=recipe,
            losses=[(row["step"], row["loss"]) for row in done.log],
            seconds=last["seconds"],
            tokens=last["tokens"],
            parameters=after,
            parameters_added=after - before,
            parameters_trained=trained,
            merged=not done.sharded,
            peak_bytes=_peak_bytes(),
        )
        _finish(peft_model, model, output_dir, done, result)
    return result


@dataclass(frozen=True)
class Done:
    """A stage that is over.

    Attributes:
        log: one row per log, earlier runs included. sharded: whether FSDP has the weights in pieces.
        save: writes the adapter into a folder.
    """

    log: list[dict[str, Any]]
    sharded: bool
    save: Callable[[Path], None]


@dataclass(frozen=True)
class Stage:
    """One stretch of training with a folder of its own: it goes on from its last complete checkpoint, or is over at once.

    Attributes:
        folder: of its checkpoints and its log. steps: None: the recipe's epochs. trainer: what it trains for.
    """

    folder: Path
    steps: int | None
    trainer: Callable[..., Trainer]
    callbacks: Sequence[TrainerCallback] = ()

    def run(self, model: PeftModel, rows: CheckedRows, recipe: Recipe, save_every: int, log_every: int) -> Done:
        """Train what is left to train."""
        log, last = MetricsLog(self.folder / "metrics.jsonl"), last_complete_checkpoint(self.folder / "checkpoints")
        if is_finished(last):  # the Trainer would train a step more
            model.load_adapter(str(last), "default", is_trainable=True)
            return Done(log.rows, sharded=False, save=_saver(model))
        if last is not None and (last / "pytorch_model_fsdp.bin").exists() and not _under_fsdp():
            raise ValueError(
                f"the run in {self.folder} was started under FSDP and is not finished; go on with the same launch"
            )
        collator = Collator(max(model.config.pad_token_id or 0, 0))
        if recipe.packing:
            collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
        trainer = self.trainer(
            model,
            _training_arguments(self.folder, recipe, self.steps, save_every, log_every),
            train_dataset=rows,
            data_collator=collator,
            callbacks=[log, *self.callbacks],
        )
        if trainer.is_fsdp_enabled and recipe.bf16:  # else the loss and the logits would be rounded as well
            fsdp = trainer.accelerator.state.fsdp_plugin
            fsdp.mixed_precision_policy = dataclasses.replace(fsdp.mixed_precision_policy, output_dtype=torch.float32)
        trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)  # another one in a notebook than in a terminal
        trainer.add_callback(_ProgressBar)
        with explained(self.folder):
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        sharded = trainer.is_fsdp_enabled
        return Done(log.rows, sharded, save=(lambda to: trainer.save_model(str(to))) if sharded else _saver(model))


def _saver(model: PeftModel) -> Callable[[Path], None]:
    return model.save_pretrained if PartialState().is_main_process else lambda to: None


def _stages(model: PreTrainedModel, output_dir: Path, recipe: Recipe) -> Iterator[Stage]:
    """Attention transfer if there is any, then the rest."""
    if recipe.transfer_steps:
        yield Stage(output_dir / "transfer", recipe.transfer_steps, TransferTrainer)
    trainer: Callable[..., Trainer] = NextTokenTrainer
    if recipe.distillation:
        trainer = functools.partial(DistillationTrainer, weight=recipe.distillation)
    dropout = [WindowDropout(model, recipe.window_dropout, recipe.seed)] if recipe.window_dropout else []
    yield Stage(output_dir, recipe.steps, trainer, dropout)


def _finish(peft_model: PeftModel, model: PreTrainedModel, output_dir: Path, done: Done, result: Recovery) -> None:
    """Save the adapter and what was measured, and merge; weights in pieces are left to a single process."""
    with explained(output_dir):
        done.save(output_dir / "adapter")
        if PartialState().is_main_process:
            name_base(output_dir / "adapter", model)
            write_atomically(output_dir / "result.json", json.dumps(result.to_dict(), indent=1))
    if not done.sharded:
        _merge(peft_model, model)


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
    check_rows(dataset, model.config)


def _check_model(model: PreTrainedModel, train_in_full: Sequence[str]) -> None:
    if isinstance(model, PeftModel):
        raise TypeError("the model is inside PEFT already; merge its adapters first, model.merge_and_unload()")
    refuse_adapters(model, "a recovery would throw away")
    if not any(isinstance(module, LigerAttention) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} has no Liger Attention: linearize it first")
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
