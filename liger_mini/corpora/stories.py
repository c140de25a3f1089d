"""``tinyworld``: endless, seeded short stories whose questions have answers at a known distance.

They measure what a linearized model can still look up.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from liger_mini.corpora.tokens import begin, encode, labels_of, overlap

Split = Literal["train", "heldout"]


PEOPLE = (
    "Ada Amir Anna Ben Bela Carl Clara Dan Dora Eli Emma Finn Gina Hugo Ida Ivan Jack Jana Karl Kim "
    "Lena Leo Lucy Mara Max Mia Nina Noah Olga Omar Otto Paul Rita Rosa Sam Sara Tom Uma Vera Zoe"
).split()


# relation: (statement, update, question), each ending where the value goes, and the values
RELATIONS: dict[str, tuple[str, str, str, list[str]]] = {
    "home": (
        "{} lives in",
        "{} moved away and now lives in",
        "Where does {} live? {} lives in",
        "Athens Berlin Boston Cairo Delhi Dublin Geneva Kyoto Lima London Madrid Milan Moscow Oslo "
        "Paris Prague Rome Seoul Sydney Tokyo Vienna Warsaw York Zurich".split(),
    ),
    "pet": (
        "{} keeps a",
        "{} changed pets and now keeps a",
        "What does {} keep? {} keeps a",
        "bear bird camel cat cow crab deer dog duck fish fox frog goat hen horse lion mouse owl pig "
        "rabbit seal sheep snake wolf".split(),
    ),
    "job": (
        "{} works as a",
        "{} changed jobs and now works as a",
        "How does {} earn money? {} works as a",
        "baker barber builder clerk cook dancer doctor driver farmer fisher guard hunter judge lawyer "
        "miner nurse painter pilot poet sailor singer tailor teacher writer".split(),
    ),
}
FILLERS = (
    "It rained all day.|The sun came out again.|A train passed by.|Nobody said a word.|The wind was cold.|"
    "A bell rang in the tower.|The market was full of people.|Some children played outside.|"
    "The river was high that year.|Dinner was late again.|A long letter came in the mail.|"
    "The road to the hills was closed.|Everyone went to the fair.|The old clock stopped at noon.|"
    "Snow fell on the roofs.|There was music in the street.|The lamp on the table went out.|"
    "A boat came in from the sea.|The bread was still warm.|That night the moon was bright."
).split("|")


@dataclass(frozen=True)
class Question:
    """One answer in a story, as character offsets into ``Story.text``.

    ``answer`` is where the answer stands; ``source_end`` ends the last earlier place that tells it
    (a statement, or an earlier answer to the same question); ``candidates`` counts the values of
    this relation in force, so that 1/candidates is what guessing among them would score.
    """

    answer: tuple[int, int]
    source_end: int
    candidates: int


@dataclass(frozen=True)
class Story:
    text: str
    questions: tuple[Question, ...]


class _Teller:
    """Writes one story sentence by sentence and remembers who has what, and where that was said."""

    def __init__(self, rng: random.Random):
        self.rng, self.parts, self.length = rng, [], 0
        self.people = rng.sample(PEOPLE, rng.randint(2, 6))
        self.facts: dict[tuple[str, str], tuple[str, int]] = {}  # (person, relation) -> (value, where told)
        self.questions: list[Question] = []

    def say(self, sentence: str) -> None:
        text = (" " if self.parts else "") + sentence
        self.parts.append(text)
        self.length += len(text)

    def state(self, person: str, relation: str, *, update: bool = False) -> None:
        statement, change, _, values = RELATIONS[relation]
        in_force = {value for (_, r), (value, _) in self.facts.items() if r == relation}
        value = self.rng.choice([v for v in values if v not in in_force])
        self.say((change if update else statement).format(person) + f" {value}.")
        self.facts[person, relation] = (value, self.length - 1)

    def ask(self, person: str, relation: str) -> None:
        value, told = self.facts[person, relation]
        self.say(RELATIONS[relation][2].format(person, person) + f" {value}.")
        rivals = sum(other == relation for _, other in self.facts)
        self.questions.append(Question((self.length - 1 - len(value), self.length - 1), told, rivals))
        self.facts[person, relation] = (value, self.length - 1)

    def turn(self) -> None:
        """One sentence: a new fact, a filler, an update, or a question about any known fact.

        Questions are drawn with replacement, so some facts are asked twice and some never: were each
        asked exactly once, a reader could score by elimination instead of by recall.
        """
        untold = [(p, r) for p in self.people for r in RELATIONS if (p, r) not in self.facts]
        roll = self.rng.random()
        if not self.facts or (roll < 0.30 and untold):
            self.state(*self.rng.choice(untold))
        elif roll < 0.50:
            self.say(self.rng.choice(FILLERS))
        elif roll < 0.56:
            self.state(*self.rng.choice(list(self.facts)), update=True)
        else:
            recent = self.rng.random() < 0.3
            self.ask(*(list(self.facts)[-1] if recent else self.rng.choice(list(self.facts))))


def tinyworld(seed: int, split: Split = "train", *, sentences: int = 40) -> Iterator[Story]:
    """Endless deterministic stories; story i depends on (split, seed, i) alone.

    Args:
        seed: any integer; another seed is another stream.
        split: "train" or "heldout" name disjoint families of random streams.
        sentences: sentences a story; 40 are about 270 tokens of the embedded tokenizer.
    Raises:
        ValueError: an unknown split or fewer than one sentence.
    """
    check_split(split)
    if sentences < 1:
        raise ValueError(f"sentences = {sentences}: a story needs at least 1")
    index = 0
    while True:
        yield story(seed, split, index, sentences=sentences)
        index += 1


def story(seed: int, split: Split, index: int, *, sentences: int = 40) -> Story:
    """Story number `index` of the stream ``tinyworld(seed, split)``."""
    teller = _Teller(random.Random(f"tinyworld/{split}/{seed}/{index}"))
    for _ in range(sentences):
        teller.turn()
    return Story("".join(teller.parts), tuple(teller.questions))


def encode_story(story: Story, tokenizer: PreTrainedTokenizerBase, length: int) -> dict[str, list]:
    """Tokenize one story and move its questions from characters to tokens.

    Returns:
        ``input_ids`` and ``labels`` (both [T], T ≤ length) and ``questions``: rows
        (first answer token, end of answer, distance, candidates), where distance is the number of
        tokens from the last token that told the answer to the first token of the answer. Questions
        that the cut at `length` removes are dropped. An answer may share its tokens with the space before it and the
        full stop behind it.
    Raises:
        ValueError: a tokenizer that does not tell offsets.
    """
    ids, offsets = encode(story.text, tokenizer)
    ids, rows = ids[:length], []
    for question in story.questions:
        answer = overlap(offsets, *question.answer)
        told = overlap(offsets, question.source_end - 1, question.source_end)
        if answer.stop <= len(ids):
            rows.append((answer.start, answer.stop, answer.start - told.start, question.candidates))
    return {"input_ids": ids, "labels": labels_of(ids, begin(tokenizer), None), "questions": rows}


def check_split(split: str) -> None:
    if split not in ("train", "heldout"):
        raise ValueError(f"split = {split!r}: allowed are 'train' and 'heldout'")
