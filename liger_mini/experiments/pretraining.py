"""A stand-in for a 1B model (chapter 08): Llama-3.2-1B's layer sizes and our tokenizer, trained here for some minutes.

It learns tinyworld, Python's documentation and the Python sources of this machine. It is called what it is, and it is
not Llama-3.2.
"""

from __future__ import annotations

import json
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from liger_mini import corpora
from liger_mini.experiments.teacher import repeats
from liger_mini.support.hub import load
from liger_mini.support.paths import claim, write_atomically

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


class Mixture(corpora.SeededRows):
    """The pretraining stream: a tenth repeats, a third stories, the rest documents and code.

    Each row begins with what the tokenizer puts before a text (`corpora.begin`).
    """

    name = "mixture"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, rows: int, *, length: int, seed: int = 0, sources: int = 4_000_000
    ):
        super().__init__(tokenizer, rows, length=length, seed=seed)
        self.front = corpora.begin(tokenizer)
        self.code = tokenizer(python_sources(sources), add_special_tokens=False)["input_ids"]  # cut into rows below

    def make(self, dice, i):
        kind = dice.random()
        if kind < 0.1:
            words = range(2, len(self.tokenizer))
            return repeats(dice, words, self.front, length=self.length, longest_period=self.length // 2)
        if kind < 0.45:
            return self.story(i, sentences=max(40, self.length // 6))
        return corpora.document_row(self.docs if kind < 0.7 else self.code, dice, self.length, self.tokenizer)


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
        self.seconds = 60 * minutes
        self.start: float | None = None

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
        batch_size: rows per step; `micro_batch_size` of them at a time. At 1B a row of 512 tokens keeps about 1.3 GB of
            activations in bfloat16, counted as chapter 08 does and not measured on a GPU.
    """
    output_dir, micro = Path(output_dir), min(micro_batch_size, batch_size)
    if batch_size % micro:
        raise ValueError(f"batch_size = {batch_size} is not a multiple of micro_batch_size = {micro}")
    asked: dict[str, Any] = {
        "minutes": minutes,
        "length": length,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    claim(output_dir / "run.json", asked)
    report = output_dir / "pretraining.json"
    if report.is_file():
        model.load_state_dict(load(output_dir).state_dict())
        return json.loads(report.read_text("utf-8"))
    set_seed(seed)
    state = _train(model, tokenizer, output_dir / "checkpoints", micro_batch_size=micro, **asked)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    tokens = int(state.num_input_tokens_seen)
    done = {
        **asked,
        "tokens": tokens,
        "tokens_per_second": tokens / (60 * minutes),
        "losses": [(row["step"], float(row["loss"])) for row in state.log_history if "loss" in row],
        "parameters": model.num_parameters(),
    }
    write_atomically(report, json.dumps(done, indent=1))
    return done


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    checkpoints: Path,
    *,
    minutes: float,
    length: int,
    batch_size: int,
    micro_batch_size: int,
    learning_rate: float,
    seed: int,
) -> TrainerState:
    """The Trainer, ended by the clock; what it did."""
    clock, gpu = _Clock(minutes), torch.cuda.is_available()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, clock.learning_rate)
    args = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=10**6,  # the clock ends it
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=batch_size // micro_batch_size,
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
    rows = Mixture(tokenizer, args.max_steps * batch_size, length=length, seed=seed)
    collator = corpora.Collator(tokenizer.pad_token_id)
    trainer = Trainer(
        model, args, train_dataset=rows, data_collator=collator, callbacks=[clock], optimizers=(optimizer, schedule)
    )
    trainer.train()
    return trainer.state
