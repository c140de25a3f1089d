"""The embedded teacher: a small Llama that is worth linearizing, trained from a seed.

Two stages in one stream of rows (`Curriculum`):

1. *repeats*: random tokens with a random period. Every token after the first period is predictable by
   induction, so the circuit that copies from context forms before anything else competes with it. A
   fixed period would teach positions instead; a small alphabet keeps the first steps cheap.
2. *the world*: tinyworld stories and Python documentation in equal parts, and some longer repeats.

The log kept beside the weights has the loss curve, what the teacher can do, a trigram model's loss on the same
tokens, the seconds, the machine and the versions.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from liger_mini import corpora
from liger_mini.evaluation import HeldOut, evaluate
from liger_mini.support.paths import write_atomically
from liger_mini.support.provenance import provenance

LENGTH = 256  # the teacher's context in tokens


def train_tokenizer(vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the training halves of tinyworld and pydocs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stories = [corpora.story(0, "train", i).text for i in range(1500)]
    tokenizer.train_from_iterator(stories + corpora.pydocs("train"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        padding_side="left",
    )


def teacher_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Four layers, four query heads of 64 on two key/value heads, tied embeddings: 2.2 M parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class Curriculum(corpora.SeededRows):
    """The teacher's training stream: `repeat_rows` rows of stage 1, then stage 2."""

    name = "curriculum"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: int, *, repeat_rows: int, seed: int = 0):
        super().__init__(tokenizer, rows, length=LENGTH, seed=seed)
        self.repeat_rows, self.front = repeat_rows, corpora.begin(tokenizer)
        self.alphabet = random.Random(seed).sample(range(2, len(tokenizer)), 64)

    def make(self, dice, i):
        if i < self.repeat_rows:
            return repeats(dice, self.alphabet, self.front, length=64, longest_period=32)
        kind = dice.random()
        if kind < 0.1:
            return repeats(dice, range(2, len(self.tokenizer)), self.front, length=LENGTH, longest_period=LENGTH // 2)
        if kind < 0.55:
            return self.story(i)
        return corpora.document_row(self.docs, dice, LENGTH, self.tokenizer)


def repeats(
    rng: random.Random, alphabet: Sequence[int], front: list[int], *, length: int, longest_period: int
) -> dict[str, list[int]]:
    """Random tokens repeated with a random period; only what a repeat makes predictable is scored.

    Args:
        front: what begins the row (`corpora.begin`).
    """
    period = rng.randint(4, longest_period)
    ids = front + rng.choices(alphabet, k=period) * (length // period + 1)
    unscored = len(front) + period
    labels = [corpora.IGNORE] * unscored + ids[unscored:]
    return {"input_ids": ids[:length], "labels": labels[:length]}


def train_teacher(
    output_dir: str | Path, *, seed: int = 0, repeat_steps: int = 3600, steps: int = 5800, batch_size: int = 32
) -> LlamaForCausalLM:
    """Train the teacher from a seed, or go on from the last checkpoint in `output_dir`.

    Args:
        repeat_steps: steps of stage 1; the rest of `steps` is stage 2.
    Writes:
        config, weights (safetensors), tokenizer and ``training_log.json`` into `output_dir`.
    """
    output_dir = Path(output_dir)
    set_seed(seed)
    tokenizer = train_tokenizer()
    model = LlamaForCausalLM(teacher_config(tokenizer))
    args = TrainingArguments(
        output_dir=str(output_dir / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        train_sampling_strategy="sequential",
        learning_rate=3e-3,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": steps // 4, "min_lr_ratio": 0.02},
        warmup_steps=50,
        adam_beta2=0.95,
        weight_decay=0.1,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=25,
        save_steps=200,
        save_total_limit=2,
        seed=seed,
        report_to=[],
    )
    data = Curriculum(tokenizer, rows=steps * batch_size, repeat_rows=repeat_steps * batch_size, seed=seed)
    trainer = Trainer(model, args, train_dataset=data, data_collator=corpora.Collator(tokenizer.pad_token_id))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir))
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    write_log(
        output_dir, trainer.state.log_history, {"seed": seed, "repeat_steps": repeat_steps, "batch_size": batch_size}
    )
    return model


def write_log(output_dir: Path, history: list[dict], settings: dict) -> None:
    """``training_log.json``: the loss curve, what the saved teacher can do, a trigram's loss, and where it ran."""
    model = LlamaForCausalLM.from_pretrained(output_dir).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(output_dir)
    held_out = HeldOut(tokenizer, stories=256, documents=128, length=LENGTH)
    docs = corpora.pydocs_tokens("train", tokenizer)
    log = {
        "settings": settings,
        "parameters": model.num_parameters(),
        "loss_curve": [(row["step"], float(row["loss"])) for row in history if "loss" in row],
        "seconds": [float(row["train_runtime"]) for row in history if "train_runtime" in row],  # one a sitting
        "teacher": evaluate(model, held_out, window=16).to_dict(),
        "trigram_loss_pydocs": trigram_loss(docs, [row["input_ids"] for row in held_out.document_rows]),
        "provenance": provenance(),
    }
    write_atomically(output_dir / "training_log.json", json.dumps(log, indent=1))


def trigram_loss(train: list[int], rows: list[list[int]]) -> float:
    """Mean loss (nats per token) of a Witten-Bell smoothed trigram model on the second and later tokens of each row.

    P(w | h) = (count(h w) + N(h) P(w | shorter h)) / (count(h) + N(h)), N(h) the number of different
    words seen after h; the shortest is uniform smoothing of the unigram.
    """
    grams = {n: Counter(zip(*(train[i:] for i in range(n)))) for n in (1, 2, 3)}
    totals = {n: Counter() for n in (0, 1, 2)}
    kinds = {n: Counter() for n in (0, 1, 2)}
    for n, counts in grams.items():
        for gram, count in counts.items():
            totals[n - 1][gram[:-1]] += count
            kinds[n - 1][gram[:-1]] += 1
    vocabulary = max(train) + 1

    def probability(history: tuple[int, ...], word: int) -> float:
        shorter = probability(history[1:], word) if history else 1 / vocabulary
        seen, different = totals[len(history)][history], kinds[len(history)][history]
        if not seen:
            return shorter
        return (grams[len(history) + 1][(*history, word)] + different * shorter) / (seen + different)

    losses = [-math.log(probability(tuple(row[max(0, i - 2) : i]), row[i])) for row in rows for i in range(1, len(row))]
    return sum(losses) / len(losses)
