"""A needle in a haystack (chapter 09): one fact, told once, asked for after up to 32 K tokens of something else.

    …Python's documentation… Anna lives in Paris. …more documentation… Where does Anna live? Anna lives in ▢

The haystack says nothing about people, so the answer can come from the needle alone. What a window of W and L layers
can pass on ends L (W - 1) tokens behind the question. Prompt and answer are one text, tokenized whole and begun as the
tokenizer begins a text: a model must not fail because its answer is spelled in other tokens than its needle. A needle among
a model's sinks is seen from everywhere and says nothing about its recurrence: hide it deeper than they reach.
"""

from __future__ import annotations

import bisect
import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liger_mini.corpora.documentation import pydocs
from liger_mini.corpora.stories import PEOPLE, RELATIONS
from liger_mini.corpora.tokens import encode, overlap

SHIFTS = 8  # beginnings of the hay that are tried for a prompt of exactly the length asked for
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)


@torch.no_grad()
def needle(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = (0.1, 0.5, 0.9),
    samples: int = 8,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Share of needles found, for each context length and depth.

    A needle is found when every token of the answer is the model's first choice.

    Args:
        lengths: tokens of the whole prompt. depths: where the needle lies, 0 at the start and 1 right before the question.
        samples: needles for each length and depth; another sample is another fact in another piece of documentation.
    Returns:
        rows of length, depth, distance (mean tokens from needle to answer), found (share), samples.
    Raises:
        ValueError: a length that does not hold needle and question, a depth outside 0 … 1, or a tokenizer that does not
            tell offsets.
    """
    documentation = "\n\n".join(pydocs("heldout"))
    was_training = model.training
    model.eval()
    rows = []
    for length in tqdm(lengths, desc="needle", unit="length"):
        for depth in depths:
            hits, distances = [], []
            for sample in range(samples):
                what = f"{seed}/{length}/{depth}/{sample}"
                ids, answer, distance = haystack(tokenizer, documentation, length, depth, what)
                prompt = torch.tensor([ids + answer], device=model.device)
                logits = model(prompt, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
                hits.append(logits.argmax(-1).tolist() == answer)
                distances.append(distance)
            found, distance = sum(hits) / samples, round(sum(distances) / samples)
            rows.append({"length": length, "depth": depth, "distance": distance, "found": found, "samples": samples})
    model.train(was_training)
    return rows


def haystack(
    tokenizer: PreTrainedTokenizerBase, documentation: str, length: int, depth: float, seed: str
) -> tuple[list[int], list[int], int]:
    """(prompt of `length` tokens that ends where the answer goes, answer, tokens from needle to answer).

    Where no number of characters of hay makes exactly `length` tokens, the prompt is the longest below it.

    Args:
        documentation: the hay; a long prompt goes round it. depth: the share of the hay, in characters, before the needle.
    Raises:
        ValueError: as `needle`.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth = {depth}: allowed are numbers from 0 (start) to 1 (right before the question)")
    dice = random.Random(f"needle/{seed}")
    person, relation = dice.choice(PEOPLE), dice.choice(list(RELATIONS))
    statement, _, question, values = RELATIONS[relation]
    value = dice.choice(values)
    fact, asked = f"{statement.format(person)} {value}.", question.format(person, person)
    start = dice.randrange(len(documentation))

    def prompt(characters: int, shift: int = 0) -> tuple[list[int], list[int], int]:
        first = start + shift
        rounds = 1 + (first + characters) // len(documentation)
        hay = (documentation * rounds)[first : first + characters]
        cut = round(depth * characters)
        told = _joined(hay[:cut], fact)
        before = _joined(told, hay[cut:], asked)
        ids, offsets = encode(f"{before} {value}.", tokenizer)
        end = len(before) + 1 + len(value)
        answer = overlap(offsets, end - len(value), end)
        needle_ends = overlap(offsets, len(told) - 1, len(told)).stop
        return ids[: answer.start], ids[answer.start : answer.stop], answer.start - needle_ends

    least = len(prompt(0)[0])
    if least > length:
        raise ValueError(f"length = {length}: needle and question alone take {least} tokens")
    for shift in range(SHIFTS):  # a text that jumps over the length does not where it begins a little later
        count = functools.partial(lambda shift, characters: len(prompt(characters, shift)[0]), shift)
        best = prompt(_fit(count, length), shift)
        if len(best[0]) == length:
            break
    return best


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _fit(count: Callable[[int], int], length: int) -> int:
    """How many characters make `length` tokens: bisection, then one by one, as a character more may be a token less."""
    most = 4 * length
    while count(most) < length:
        most *= 2
    near = bisect.bisect_left(range(most), length, key=count)
    around = sorted(range(max(0, near - 64), near + 64), key=lambda n: abs(n - near))
    counts: dict[int, int] = {}
    for n in around:
        counts[n] = count(n)
        if counts[n] == length:
            return n
    return max((n for n in counts if counts[n] < length), key=counts.__getitem__, default=0)
