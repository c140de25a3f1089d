"""``own_answers``: what a chat model answers to plain requests, as text to recover it on in its own voice (chapter 12).

Documentation teaches LoRA documentation. A model that is to go on talking as it did can be given its own answers, too: they
are generated once, on this machine, and no text is brought from anywhere.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liger_mini.corpora.batches import SeededRows
from liger_mini.corpora.records import instructions
from liger_mini.corpora.tokens import IGNORE, document_row
from liger_mini.support.paths import write_atomically
from liger_mini.support.smollm2 import cache_dir

TOPICS = (
    "bread rain rivers trees bees music chess bicycles sleep friendship winter trains paper glass salt fire bridges maps "
    "clocks gardens horses painting dancing cooking swimming the_moon the_wind volcanoes islands libraries markets "
    "schools doctors farmers sailors teachers engineers poets memory dreams courage patience money numbers circles "
    "language alphabets mirrors lamps shoes soap wool coffee cheese apples potatoes honey coal copper steam"
).split()
REQUESTS = (
    "What should everyone know about {}?",
    "Explain {} to a child.",
    "Tell me three facts about {}.",
    "Write a short story about {}.",
    "Why do people care about {}?",
    "Write a poem of four lines about {}.",
    "Compare {} with something else.",
    "Write a friendly letter to a neighbour about {}.",
)
BATCH, LONGEST = 64, 256  # answers that are written side by side, and tokens of one at most
LIKELIEST = 50  # tokens that one is drawn from
HELD_OUT = 10  # every tenth answer is not trained on


def answers_file() -> Path:
    """Where SmolLM2's own answers are kept, beside the model."""
    return cache_dir() / "smollm2-answers.jsonl"


def requests(seed: int = 0) -> list[str]:
    """All requests, in an order of the seed's."""
    asked = [how.format(what.replace("_", " ")) for what, how in itertools.product(TOPICS, REQUESTS)]
    random.Random(f"requests/{seed}").shuffle(asked)
    return asked


def own_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    *,
    tokens: int = 100_000,
    temperature: float = 0.7,
    seed: int = 0,
) -> int:
    """Write a file of chats, one JSON object per line, for `instructions`: requests, and what the model answers to them.

    It is written after every batch, and each batch has a seed of its own: an interrupted file goes on where it was.

    Args:
        tokens: of answers; the batch that reaches them is the last. Or all `requests`, if those are fewer.
        temperature: of sampling; every token is one of the `LIKELIEST`.
    Returns:
        how many tokens of answers the file has.
    Raises:
        ValueError: a tokenizer without a chat template, or a file that holds something else.
    """
    if tokenizer.chat_template is None:
        raise ValueError("this tokenizer has no chat template, so nothing can be asked in it")
    path, asked = Path(path), requests(seed)
    chats = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
    if [chat["messages"][0]["content"] for chat in chats] != asked[: len(chats)]:
        raise ValueError(f"{path} holds other requests than those of seed {seed}; give another file, or that seed")
    written = sum(_length(chat, tokenizer) for chat in chats)
    with tqdm(total=tokens, initial=written, desc="own answers", unit="token") as bar:
        while written < tokens and len(chats) < len(asked):
            batch = asked[len(chats) : len(chats) + BATCH]
            answers = _answered(model, tokenizer, batch, temperature, seed=len(chats) + 1_000_003 * seed)
            new = [_chat(request, answer) for request, answer in zip(batch, answers)]
            chats += new
            write_atomically(path, "".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats))
            more = sum(_length(chat, tokenizer) for chat in new)
            written += more
            bar.update(more)
    return written


def _chat(request: str, answer: str) -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]}


def _length(chat: dict[str, list[dict[str, str]]], tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer(chat["messages"][1]["content"], add_special_tokens=False)["input_ids"])


@torch.no_grad()
def _answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: list[str], temperature: float, seed: int
) -> list[str]:
    said = [[{"role": "user", "content": request}] for request in batch]
    prompts = [tokenizer.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in said]
    given = tokenizer(prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ids = model.generate(
            **given.to(model.device),
            do_sample=True,
            temperature=temperature,
            top_k=LIKELIEST,
            max_new_tokens=LONGEST,
            pad_token_id=tokenizer.pad_token_id,
        )
    answers = tokenizer.batch_decode(ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


class OwnAnswers(SeededRows):
    """Rows of `answers_file` and of documentation in turn; of the answers, what was asked is read and not learned.

    Raises:
        FileNotFoundError: the answers were not written yet; the message names the command.
    """

    name = "own answers"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        chats = _chats(self.tokenizer)
        self.chats = [chat for number, chat in enumerate(chats) if number % HELD_OUT != HELD_OUT - 1]

    def make(self, dice, i):
        if i % 2:
            return document_row(self.docs, dice, self.length, self.tokenizer)
        return _row(self.chats, dice.randrange(len(self.chats)), self.length)[0]


def held_out_answers(
    tokenizer: PreTrainedTokenizerBase, *, length: int = 1024, rows: int | None = None
) -> list[list[int]]:
    """Rows of the answers that `OwnAnswers` is not trained on, each but the last full; `rows` of them, None for all."""
    chats, made, start = _chats(tokenizer)[HELD_OUT - 1 :: HELD_OUT], [], 0
    while start < len(chats) and (rows is None or len(made) < rows):
        row, start = _row(chats, start, length, around=False)
        made.append(row["input_ids"])
    return made


def _chats(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    if not answers_file().is_file():
        raise FileNotFoundError(f"no {answers_file()}; `python -m liger_mini answers` writes it, once")
    rows = instructions(answers_file(), tokenizer)
    return [rows[i] for i in range(len(rows))]


def _row(
    chats: list[dict[str, list[int]]], start: int, length: int, around: bool = True
) -> tuple[dict[str, list[int]], int]:
    """(one chat after another from `start`, cut to `length` tokens; the number of the first that is not in it)."""
    row: dict[str, list[int]] = {"input_ids": [], "labels": []}
    while len(row["input_ids"]) < length and (around or start < len(chats)):
        chat = chats[start % len(chats)]
        for name, values in row.items():
            values.extend(chat[name])
        start += 1
    if set(row["labels"][:length]) == {IGNORE}:
        raise ValueError(f"length = {length}: no answer fits into a row")
    return {name: values[:length] for name, values in row.items()}, start
