"""Rows of token ids as data sets, and as batches."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from liger_mini.corpora.documentation import pydocs_tokens
from liger_mini.corpora.stories import encode_story, story
from liger_mini.corpora.tokens import IGNORE, document_row


class Rows(torch.utils.data.Dataset):
    """Rows of unequal length in four bytes per token and label; row i is a dictionary of two lists."""

    def __init__(self):
        self.ids, self.labels, self.ends = array("i"), array("i"), array("q", [0])

    def append(self, ids: list[int], labels: list[int]) -> None:
        """Add a row, unless there is nothing to learn from it: the first token is never predicted."""
        if any(label != IGNORE for label in labels[1:]):
            self.ids.extend(ids)
            self.labels.extend(labels)
            self.ends.append(len(self.ids))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        i = range(len(self))[i]  # from the end if negative; an IndexError if there is none
        part = slice(self.ends[i], self.ends[i + 1])
        return {"input_ids": self.ids[part].tolist(), "labels": self.labels[part].tolist()}


class SeededRows(torch.utils.data.Dataset):
    """Rows that are made when asked for; row i depends on (name, seed, i) alone, so a resumed run sees the same.

    Args:
        rows: how many. length: tokens per row.
    """

    name: str  # of the stream of random numbers

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: int, *, length: int = 256, seed: int = 0):
        self.tokenizer, self.rows, self.length, self.seed = tokenizer, rows, length, seed
        self.docs = pydocs_tokens("train", tokenizer)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        if not 0 <= i < self.rows:
            raise IndexError(f"row {i} of {self.rows}")
        return self.make(random.Random(f"{self.name}/{self.seed}/{i}"), i)

    def make(self, dice: random.Random, i: int) -> dict[str, list[int]]:
        """Row i, from its own dice."""
        raise NotImplementedError

    def story(self, i: int, sentences: int = 40) -> dict[str, list[int]]:
        """Training story number i, without its questions."""
        row = encode_story(story(self.seed, "train", i, sentences=sentences), self.tokenizer, self.length)
        return {"input_ids": row["input_ids"], "labels": row["labels"]}


class World(SeededRows):
    """What the embedded teacher is recovered on: stories and pydocs in turn.

    Args:
        stories: how many stories come before each row of pydocs.
    """

    name = "world"

    def __init__(self, *args: Any, stories: int = 1, **kwargs: Any):
        if not isinstance(stories, int) or stories < 1:
            raise ValueError(
                f"stories = {stories!r}: allowed are whole numbers ≥ 1 (stories before each row of pydocs)"
            )
        super().__init__(*args, **kwargs)
        self.stories = stories

    def make(self, dice, i):
        if i % (self.stories + 1) == self.stories:
            return document_row(self.docs, dice, self.length, self.tokenizer)
        return self.story(i, sentences=max(40, 10 * self.length // 64))  # enough to fill the row


class Documentation(SeededRows):
    """Rows of pydocs alone, cut at random: ordinary text, for a model that knows no stories."""

    name = "documentation"

    def make(self, dice, i):
        return document_row(self.docs, dice, self.length, self.tokenizer)


class Interrupted(SeededRows):
    """Long rows: a story that documentation interrupts, so that questions are asked up to `length` tokens after what they ask for.

    Every other row; the rest are `World`'s of 256 tokens, three stories for one of documentation.
    """

    name = "interrupted"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.world = World(self.tokenizer, self.rows, seed=self.seed, stories=3)
        longest = max(len(self.world.story(i)["input_ids"]) for i in range(8))
        if self.length < 2 * longest:
            raise ValueError(
                f"length = {self.length}: a story has up to {longest} tokens; allowed is twice that or more"
            )

    def make(self, dice, i):
        if i % 2:
            return self.world[i // 2]
        ids = self.world.story(i)["input_ids"]
        ends = [
            at + 1 for at, token in enumerate(ids[: -len(ids) // 4]) if self.tokenizer.decode([token]).endswith(".")
        ]
        cut = dice.choice(ends or [len(ids) // 2])  # between two sentences
        hay = document_row(self.docs, dice, dice.randint(len(ids), self.length - len(ids)), self.tokenizer)["input_ids"]
        ids = [*ids[:cut], *hay, *ids[cut:]]
        return {"input_ids": ids, "labels": list(ids)}


@dataclass(frozen=True)
class Collator:
    """Rows of unequal length -> one right-padded batch: input_ids, attention_mask and labels, each [B, T]."""

    pad_token_id: int

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        def pad(values: list[list[int]], filler: int) -> Tensor:
            return pad_sequence([torch.tensor(v) for v in values], batch_first=True, padding_value=filler)

        return {
            "input_ids": pad([row["input_ids"] for row in rows], self.pad_token_id),
            "attention_mask": pad([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": pad([row["labels"] for row in rows], IGNORE),
        }
