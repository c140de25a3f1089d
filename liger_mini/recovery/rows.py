"""Rows that can be learned from, or a sentence on why not (chapter 08)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset

from liger_mini.corpora.tokens import IGNORE


class CheckedRows(Dataset):
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


def check_rows(dataset: Any, config: Any) -> None:
    """Before the first step: every row that is in memory, or those by which the run knows its data."""
    rows = enumerate(dataset) if _in_memory(dataset) else ((i, dataset[i]) for i in known_by(len(dataset)))
    for number, row in rows:
        _checked(row, number, config)


def known_by(rows: int) -> list[int]:
    """The numbers of the rows by which a run knows its data: 16, evenly spread."""
    return sorted({rows * i // 16 for i in range(16)})
