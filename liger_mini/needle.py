"""A needle in a haystack (chapter 09): one fact, told once, asked for after up to 32 K tokens of something else.

    …Python's documentation… Anna lives in Paris. …more documentation… Where does Anna live? Anna lives in ▢

The haystack says nothing about people, so the answer can come from the needle alone. What a window of W and L layers
can pass on ends L (W - 1) tokens behind the question.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liger_mini.corpus import PEOPLE, RELATIONS, pydocs_tokens
from liger_mini.demo import load_recovered, load_teacher
from liger_mini.paths import write_atomically
from liger_mini.provenance import provenance

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
        ValueError: a length that does not hold needle and question, or a depth outside 0 … 1.
    """
    stream = pydocs_tokens("heldout", tokenizer)
    was_training = model.training
    model.eval()
    rows = []
    for length in tqdm(lengths, desc="needle", unit="length"):
        for depth in depths:
            hits, distances = [], []
            for sample in range(samples):
                ids, answer, distance = haystack(tokenizer, stream, length, depth, f"{seed}/{length}/{depth}/{sample}")
                prompt = torch.tensor([ids + answer], device=model.device)
                logits = model(prompt, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
                hits.append(logits.argmax(-1).tolist() == answer)
                distances.append(distance)
            found, distance = sum(hits) / samples, round(sum(distances) / samples)
            rows.append({"length": length, "depth": depth, "distance": distance, "found": found, "samples": samples})
    model.train(was_training)
    return rows


def run(
    output: str | Path = "runs/needle.json", *, lengths: Sequence[int] = LENGTHS, teacher_up_to: int = 8192, **how: Any
) -> dict[str, Any]:
    """The needle test on the embedded teacher and on its two recoveries, written as JSON.

    Args:
        teacher_up_to: tokens; the teacher's time is quadratic, and beyond this it would be most of the whole.
        how: `depths`, `samples`, `seed` of `needle`.
    """
    models: dict[str, list[dict[str, Any]]] = {}
    for name in ("teacher", "paper", "recall"):
        model, tokenizer = load_teacher() if name == "teacher" else load_recovered(name)
        reached = [length for length in lengths if name != "teacher" or length <= teacher_up_to]
        models[name] = needle(model, tokenizer, lengths=reached, **how)
        for row in models[name]:
            print(f"{name:8} {row['length']:6} tokens, depth {row['depth']:.1f}: found {row['found']:.2f}")
    result = {"models": models, "provenance": provenance()}
    write_atomically(Path(output), json.dumps(result, indent=1))
    return result


def haystack(
    tokenizer: PreTrainedTokenizerBase, stream: list[int], length: int, depth: float, seed: str
) -> tuple[list[int], list[int], int]:
    """(prompt of `length` tokens that ends where the answer goes, answer, tokens from needle to answer)."""
    if not 0 <= depth <= 1:
        raise ValueError(f"depth = {depth}: allowed are numbers from 0 (start) to 1 (right before the question)")
    dice = random.Random(f"needle/{seed}")
    person, relation = dice.choice(PEOPLE), dice.choice(list(RELATIONS))
    statement, _, question, values = RELATIONS[relation]
    value = dice.choice(values)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    fact = encode(f" {statement.format(person)} {value}.")
    asked = encode(f" {question.format(person, person)}")
    room = length - len(fact) - len(asked)
    if room < 0:
        raise ValueError(f"length = {length}: needle and question alone take {len(fact) + len(asked)} tokens")
    start = dice.randrange(len(stream))
    hay = [stream[(start + i) % len(stream)] for i in range(room)]  # long prompts go round the corpus
    cut = round(depth * room)
    return hay[:cut] + fact + hay[cut:] + asked, encode(f" {value}"), room - cut + len(asked)
