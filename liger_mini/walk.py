"""The whole journey on a model of any size (chapter 08): measure, linearize, recover, measure again, decode.

`walk` runs the same steps on the embedded teacher, on a 1B model from disk, and on `pretrain`'s stand-in for one: a
model with Llama-3.2-1B's layer sizes and our tokenizer, trained here for so many minutes on tinyworld, Python's
documentation and the Python sources of this machine. It is called what it is, and it is not Llama-3.2.
"""

from __future__ import annotations

import json
import random
import sysconfig
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from liger_mini import corpus
from liger_mini.benchmark import decode
from liger_mini.convert import linearize, load
from liger_mini.evaluate import HeldOut, branch_ablation, evaluate
from liger_mini.paths import write_atomically
from liger_mini.provenance import provenance
from liger_mini.recover import Recipe, recover
from liger_mini.teacher import repeats

LLAMA_1B = {  # Llama-3.2-1B's layers: 973 M parameters; with its own vocabulary of 128,256 it would be 1,236 M
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}


def one_billion(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> LlamaForCausalLM:
    """A Llama with Llama-3.2-1B's layer sizes, our vocabulary and random weights."""
    config = LlamaConfig(
        **{**LLAMA_1B, **changes},
        vocab_size=len(tokenizer),
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Mixture(Dataset):
    """Row i of the pretraining stream, from (seed, i) alone: a tenth repeats, a third stories, the rest documents and code.

    Each begins with what the tokenizer puts before a text (`corpus.begin`).
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, rows: int, length: int, seed: int = 0, sources: int = 4_000_000
    ):
        self.tokenizer, self.rows, self.length, self.seed = tokenizer, rows, length, seed
        self.front, self.docs = corpus.begin(tokenizer), corpus.pydocs_tokens("train", tokenizer)
        self.code = tokenizer(python_sources(sources), add_special_tokens=False)["input_ids"]  # cut into rows below

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        dice = random.Random(f"mixture/{self.seed}/{i}")
        kind = dice.random()
        if kind < 0.1:
            words = range(2, len(self.tokenizer))
            return repeats(dice, words, self.front, length=self.length, longest_period=self.length // 2)
        if kind < 0.45:
            story = corpus.story(self.seed, "train", i, sentences=max(40, self.length // 6))
            row = corpus.encode_story(story, self.tokenizer, self.length)
            return {"input_ids": row["input_ids"], "labels": row["labels"]}
        return corpus.document_row(self.docs if kind < 0.7 else self.code, dice, self.length, self.tokenizer)


def python_sources(characters: int) -> str:
    """The standard library's sources in a fixed order, up to so many characters; their docstrings are partly in pydocs."""
    parts, total = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if total < characters and "site-packages" not in path.parts and "test" not in path.parts:
            parts.append(path.read_text("utf-8", errors="replace"))
            total += len(parts[-1])
    return "\n".join(parts)[:characters]


class _Clock(TrainerCallback):
    """Stops training when its minutes are over; the learning rate follows the clock: warm-up, plateau, decay."""

    def __init__(self, minutes: float):
        self.seconds, self.start = 60 * minutes, None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.start = time.perf_counter()

    def share(self) -> float:
        return 0.0 if self.start is None else (time.perf_counter() - self.start) / self.seconds

    def learning_rate(self, step: int) -> float:
        warmed_up = min(1.0, (step + 1) / 50)
        return warmed_up * max(0.02, min(1.0, (1 - self.share()) / 0.25))

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_training_stop = self.share() >= 1


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    minutes: float,
    length: int = 512,
    batch_size: int = 64,
    micro_batch_size: int = 16,
    learning_rate: float = 6e-4,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a model from scratch for so many minutes, save it, and say what was done (tokens, seconds, loss curve).

    A finished training is not repeated: its weights are loaded. An interrupted one starts again.

    Args:
        batch_size: rows a step; `micro_batch_size` of them at a time. At 1B a row of 512 tokens keeps about 1.3 GB of
            activations in bfloat16, counted as chapter 08 does and not measured on a GPU.
    """
    output_dir, clock, micro = Path(output_dir), _Clock(minutes), min(micro_batch_size, batch_size)
    if batch_size % micro:
        raise ValueError(f"batch_size = {batch_size} is not a multiple of micro_batch_size = {micro}")
    asked = {
        "minutes": minutes,
        "length": length,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    report = output_dir / "pretraining.json"
    if report.is_file():
        done = json.loads(report.read_text("utf-8"))
        if (there := {name: done.get(name) for name in asked}) != asked:
            raise FileExistsError(f"{output_dir} holds another pretraining ({there}, now {asked}); use another folder")
        model.load_state_dict(load(output_dir).state_dict())
        return done
    set_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, clock.learning_rate)
    gpu = torch.cuda.is_available()
    args = TrainingArguments(
        output_dir=str(output_dir / "checkpoints"),
        max_steps=10**6,  # the clock ends it
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch_size // micro,
        train_sampling_strategy="sequential",
        bf16=gpu,
        use_cpu=not gpu,
        dataloader_num_workers=8 if gpu else 0,
        logging_steps=20,
        save_strategy="no",
        seed=seed,
        include_num_input_tokens_seen="all",
        report_to=[],
    )
    args._n_gpu = min(args.n_gpu, 1)  # one GPU, as in `recover`
    rows = Mixture(tokenizer, args.max_steps * batch_size, length, seed)
    collator = corpus.Collator(tokenizer.pad_token_id)
    trainer = Trainer(
        model, args, train_dataset=rows, data_collator=collator, callbacks=[clock], optimizers=(optimizer, schedule)
    )
    trainer.train()
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    history = [(row["step"], float(row["loss"])) for row in trainer.state.log_history if "loss" in row]
    tokens = int(trainer.state.num_input_tokens_seen)
    done = {
        **asked,
        "tokens": tokens,
        "tokens_per_second": tokens / (60 * minutes),
        "losses": history,
        "parameters": model.num_parameters(),
    }
    write_atomically(report, json.dumps(done, indent=1))
    return done


def walk(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    output_dir: str | Path,
    *,
    recipe: Recipe,
    held_out: HeldOut,
    contexts: Sequence[int] = (1024, 2048, 4096, 8192, 16384, 32768),
    about: dict[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Teacher, linearized, recovered: loss, recall by distance, branch ablation, tokens a second, peak memory, decoding.

    Args:
        dataset: rows to recover on. settings: the arguments of `linearize`. about: how the teacher came to be.
        contexts: lengths at which the teacher and the linearized model decode.
    Writes:
        ``walk.json`` into `output_dir`, and the recovered model into ``model/``.
    """
    output_dir = Path(output_dir)
    window = settings.get("window", 64)
    result: dict[str, Any] = {"about": about or {}, "parameters": teacher.num_parameters()}
    report = evaluate(teacher, held_out, window=window)
    if not report.recall["outside"].questions:
        warnings.warn(
            f"no question lies outside: windows of {window} in {teacher.config.num_hidden_layers} layers reach {report.reach} "
            f"tokens, and rows have {held_out.length}. Longer rows or a smaller window would show what the recurrence does",
            stacklevel=2,
        )
    result["teacher"] = report.to_dict()
    result["decode_teacher"] = decode(teacher, contexts, tokens=32)
    model = linearize(teacher, **settings)
    result["liger"] = model.config.liger
    result["decode_linearized"] = decode(model, contexts, tokens=32)
    result["linearized"] = {name: report.to_dict() for name, report in branch_ablation(model, held_out).items()}
    recovery = recover(model, dataset, output_dir=output_dir / "recovery", recipe=recipe)
    result["recovery"] = recovery.to_dict() | {"tokens_per_second": recovery.tokens / max(recovery.seconds, 1e-9)}
    result["recovered"] = {name: report.to_dict() for name, report in branch_ablation(model, held_out).items()}
    result["provenance"] = provenance()
    model.save_pretrained(output_dir / "model")
    tokenizer.save_pretrained(output_dir / "model")
    write_atomically(output_dir / "walk.json", json.dumps(result, indent=1))
    return result
