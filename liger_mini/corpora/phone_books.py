"""``phone_books``: numbers told in plain English and asked for again, between pieces of documentation.

A language model learns from them to look something up, which ordinary text seldom asks for. `evaluation.language_tasks` asks in
the same words for other numbers.
"""

from __future__ import annotations

import random
import re

from liger_mini.corpora.batches import SeededRows
from liger_mini.corpora.documentation import pydocs
from liger_mini.corpora.tokens import begin, encode, labels_of

PEOPLE = (
    "Anna Peter Maria Thomas Laura Daniel Julia Martin Sophie Robert Emily George Helen David Clara Simon Alice Victor "
    "Rachel Oscar"
).split()
TOLD = 16  # people in a row


def told(person: str, number: int) -> str:
    """The sentence that tells a number."""
    return f"Call {person} at {number}."


def asked(person: str) -> str:
    """The question for it, up to where the number goes."""
    return f"Question: How do I reach {person}?\nAnswer: Call {person} at"


class PhoneBooks(SeededRows):
    """Rows of a phone book of `TOLD` people, told a few at a time; in between some of those so far are asked for.

    A question comes a few tokens after its answer, or as far behind it as the row allows: whoever is asked for is drawn anew,
    so most numbers are told once and asked for several times.
    """

    name = "phone books"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.words = re.findall(r"\S+\s*", "\n\n".join(pydocs("train")))

    def make(self, dice, i):
        numbers = dict(zip(dice.sample(PEOPLE, TOLD), dice.sample(range(1000, 10_000), TOLD)))
        untold, known = list(numbers), []
        parts, tokens = [self.filler(dice, 20, 40)], 0
        while tokens < self.length:
            for _ in range(min(len(untold), dice.randint(2, 5))):
                known.append(untold.pop())
                parts.append(told(known[-1], numbers[known[-1]]))
            if dice.random() < 0.6:
                parts.append(f"\n{self.filler(dice, 5, 60)}\n")
            parts += [f"{asked(who)} {numbers[who]}." for who in dice.choices(known, k=dice.randint(2, 5))]
            ids, _ = encode("\n".join(parts), self.tokenizer)
            tokens = len(ids)
        ids = ids[: self.length]
        return {"input_ids": ids, "labels": labels_of(ids, begin(self.tokenizer), self.tokenizer.eos_token_id)}

    def filler(self, dice: random.Random, fewest: int, most: int) -> str:
        """So many words of documentation, from anywhere."""
        count = dice.randint(fewest, most)
        start = dice.randrange(len(self.words) - count)
        return "".join(self.words[start : start + count]).strip()
