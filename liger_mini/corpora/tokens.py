"""From text to tokens. Two rules hold for every corpus:

* A text is tokenized whole, and what is looked for in it is found by character offsets. Pieces tokenized apart and
  joined are other tokens than the text's: a Llama-2 tokenizer puts a space before each.
* A row that a model reads on its own begins with what its tokenizer puts before a text (`begin`).
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

IGNORE = -100  # the label that torch's cross entropy skips


def begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text: [bos] for Llama and Mistral, [] for Qwen and the embedded teacher.

    Every row that a model reads on its own begins with it, as everything does that `generate` and pipelines are given:

    * a whole text (story, instruction, needle): as the tokenizer itself does it;
    * a row cut out of a longer text: in front of the cut, and counted in the row's length;
    * documents packed into one stream: [begin] document [eos] [begin] document [eos] …, so that a row cut out of the
      stream may hold it in its middle as well. Documents in a row see each other, as is usual in pretraining.

    It is given and never predicted, so it is not scored anywhere.

    Raises:
        ValueError: a tokenizer that writes a text otherwise when special tokens are around it.
    """
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    for i in range(len(whole)):
        if bare and whole[i : i + len(bare)] == bare:
            return whole[:i]
    raise ValueError(
        f"the tokenizer writes 'a' as {bare} without special tokens and as {whole} with them: no beginning"
    )


def encode(
    text: str, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool = True
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a whole text, and the characters [start, end) that each stands for: none for special ones around it.

    Raises:
        ValueError: a tokenizer that does not tell offsets.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell which characters a token stands for, and answers are found by "
            "that; use a fast tokenizer (one with a tokenizer.json, as AutoTokenizer loads it)"
        )
    encoding = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    for i in reversed(range(len(ids))):  # special tokens are at (0, 0) wherever they stand; keep the offsets in order
        if offsets[i] != (0, 0):
            break
        offsets[i] = (len(text), len(text))
    return ids, offsets


def overlap(offsets: list[tuple[int, int]], start: int, end: int) -> range:
    """The positions of the tokens that stand for one of the characters [start, end), whatever else they stand for."""
    first = bisect.bisect_right(offsets, start, key=lambda token: token[1])
    return range(first, bisect.bisect_left(offsets, end, key=lambda token: token[0]))


def documents(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Texts as one stream of token ids: each with what the tokenizer puts before it, and an end-of-text token after it."""
    eos, stream = end_of_text(tokenizer), []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        stream += ids if ids[-1] == eos else [*ids, eos]
    return stream


def cut(
    stream: list[int], start: int, length: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, list[int]], int]:
    """(row of `length` tokens of a stream from `start` on, what begins a text included; where in the stream it ends).

    At the end of the stream the row is shorter.
    """
    front = begin(tokenizer)
    if stream[start : start + len(front)] == front:  # a document begins here
        start += len(front)
    end = start + length - len(front)
    ids = [*front, *stream[start:end]]
    return {"input_ids": ids, "labels": labels_of(ids, front, tokenizer.eos_token_id)}, min(end, len(stream))


def spread(
    stream: list[int], length: int, tokenizer: PreTrainedTokenizerBase, rows: int | None = None
) -> list[dict[str, list[int]]]:
    """`rows` rows of `length` tokens (`cut`), spread evenly over a stream; None for as many as there are.

    Raises:
        ValueError: more rows than there are.
    """
    available = len(stream) // length
    rows = available if rows is None else rows
    if not 1 <= rows <= available:
        raise ValueError(f"rows = {rows}: the text has {available} rows of {length} tokens")
    stride = available // rows
    return [cut(stream, start, length, tokenizer)[0] for start in range(0, rows * stride * length, stride * length)]


def document_row(
    stream: list[int], rng: random.Random, length: int, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[int]]:
    """`length` tokens from a random place of a token stream, all scored but what begins a text (`cut`)."""
    row, _ = cut(stream, rng.randrange(len(stream) - length), length, tokenizer)
    return row


def labels_of(ids: list[int], front: list[int], eos: int | None) -> list[int]:
    """The ids, but for what begins the row and each document in it."""
    labels = list(ids)
    for i in range(len(ids) if front else 0):
        if (i == 0 or ids[i - 1] == eos) and ids[i : i + len(front)] == front:
            labels[i : i + len(front)] = [IGNORE] * len(front)
    return labels


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token, which ends every document; set tokenizer.eos_token")
    return tokenizer.eos_token_id
