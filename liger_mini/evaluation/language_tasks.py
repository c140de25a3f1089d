"""Recall in plain English, scored by what a model *writes*, with the answer at a known distance (chapter 12).

    …Call Anna at 4821. …documentation… Question: How do I reach Anna? Answer: Call Anna at ▢

A likelihood would hide damage: a model may prefer the right number to a wrong one and still write neither. So the model
continues greedily, from its cache, and every token of the answer has to be its own.

Distances are in tokens, from where the answer was told to where it goes. As in `measure`, with window W and L layers:
inside is at most W, between at most the reach L (W - 1) and the token that is predicted, outside what only a recurrence
or a sink could have kept. Sinks keep the first tokens, so no answer is told among the first `SINKS`.
"""

from __future__ import annotations

import bisect
import copy
import functools
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from liger_mini.corpora import encode, overlap, pydocs
from liger_mini.corpora.phone_books import PEOPLE, asked, told
from liger_mini.evaluation.language import evaluating, mean

SINKS = 8  # tokens at the beginning of a text in which no answer is told
MORE = 2  # tokens written beyond the answer's own: is it whole, or does "482" go on as "4821"?


@dataclass(frozen=True)
class Telling:
    """A text's facts, and what is asked about them.

    facts: paragraphs in the order of the text; one that is asked about ends with the answer and a full stop.
    asked: (number of the fact that tells the answer, question up to where the answer goes, answer).
    chance: share of right answers from guessing among all values of the text.
    examples: questions about other facts with their answers, which show how to answer; they come right before the question.
    """

    facts: list[str]
    asked: list[tuple[int, str, str]]
    chance: float
    examples: list[str] = field(default_factory=list)


Task = Callable[[random.Random], Telling]

CITIES = "Paris London Berlin Madrid Rome Vienna Athens Dublin Boston Chicago Tokyo Moscow Cairo Sydney Toronto Lisbon".split()


def phone_book(dice: random.Random) -> Telling:
    """Three numbers among four people's; the question about the fourth is answered first, as an example.

    What SmolLM2-135M can do decided how many there are, and the wording: where the name stands further from the number
    ("Anna's number is 4821"), or the example before the facts, it answered about half of the questions.
    """
    people, numbers = dice.sample(PEOPLE, 4), dice.sample(range(1000, 10_000), 4)
    facts, questions = list(map(told, people, numbers)), list(map(asked, people))
    order = dice.sample(range(4), 4)  # so that the example's fact is anywhere among the others
    rest = [(order.index(i), questions[i], str(numbers[i])) for i in range(1, 4)]
    return Telling([facts[i] for i in order], rest, 1 / 4, [f"{questions[0]} {numbers[0]}."])


def passkey(dice: random.Random) -> Telling:
    """One number, and nothing like it around."""
    key = str(dice.randrange(10_000, 100_000))
    return Telling([f"The pass key is {key}."], [(0, "What is the pass key? The pass key is", key)], 1 / 90_000)


def two_hop(dice: random.Random) -> Telling:
    """Where somebody's sister lives: no sentence says it, two together do."""
    people, cities = dice.sample(PEOPLE, 8), dice.sample(CITIES, 4)
    pairs = list(zip(people[:4], people[4:], cities))
    sisters = [f"{person}'s sister is {sister}." for person, sister, _ in pairs]
    dice.shuffle(sisters)
    asked = [
        f"Question: Where does {person}'s sister live?\nAnswer: {person}'s sister lives in" for person, _, _ in pairs
    ]
    homes = [f"{sister} lives in {city}." for _, sister, city in pairs]
    return Telling(sisters + homes, [(4 + i, asked[i], city) for i, (_, _, city) in enumerate(pairs)], 1 / 4)


TASKS: dict[str, Task] = {"phone_book": phone_book, "passkey": passkey, "two_hop": two_hop}


@dataclass(frozen=True)
class Question:
    """A prompt that ends where the answer goes.

    text: number of the text it is asked about; questions about one text begin with the same tokens.
    prompt, answer: token ids, as the tokenizer writes both in one text. says: the answer in words.
    distance: tokens from the first of the told answer to the first of the answer. chance: of guessing it.
    """

    text: int
    prompt: list[int]
    answer: list[int]
    says: str
    distance: int
    chance: float

    def where(self, window: int, layers: int) -> str:
        """ "inside", "between" or "outside" the reach of `layers` windows."""
        if self.distance <= window:
            return "inside"
        return "between" if self.distance <= layers * (window - 1) + 1 else "outside"


def questions(
    task: Task, tokenizer: PreTrainedTokenizerBase, distance: int, *, count: int = 104, before: int = 24, seed: int = 0
) -> list[Question]:
    """At least `count` questions whose nearest answer lies `distance` tokens back, or a word more.

    A text is documentation, the facts, more documentation (the filler), examples, and one of the questions. The facts stand close
    together, so that of several questions about one text only the last one's answer is that near; the others are
    further away by a sentence or more. Which is where, `Question.distance` says.

    Args:
        task: one of `TASKS`.
        distance: tokens, at least, from a told answer to where it goes.
        before: words of documentation before the facts.
    Raises:
        ValueError: a distance shorter than the question itself; or an answer told among the first `SINKS` tokens.
    """
    made: list[Question] = []
    text = 0
    while len(made) < count:
        dice = random.Random(f"{task.__name__}/{seed}/{text}")
        made += _about_one_text(task(dice), tokenizer, distance, before, dice, text)
        text += 1
    return made


def _about_one_text(
    telling: Telling, tokenizer: PreTrainedTokenizerBase, distance: int, before: int, dice: random.Random, text: int
) -> Iterator[Question]:
    words = documentation()
    start = dice.randrange(len(words) - before - 2 * distance)
    hay, front = words[start + before :], "".join(words[start : start + before]).strip()

    def make(n: int, which: tuple[int, str, str]) -> Question:
        """Question `which` after `n` words of filler."""
        number, question, says = which
        told = "\n".join([f"{front}\n", *telling.facts[: number + 1]]).removesuffix(".")
        facts, ending = "\n".join([f"{front}\n", *telling.facts]), "\n".join([*telling.examples, question])
        whole = "\n\n".join(part for part in (facts, "".join(hay[:n]).strip(), ending) if part)
        ids, offsets = encode(f"{whole} {says}.", tokenizer)
        source = overlap(offsets, len(told) - len(says), len(told))
        answer = overlap(offsets, len(whole) + 1, len(whole) + 1 + len(says))
        if source.start < SINKS:
            raise ValueError(f"an answer is told in token {source.start}; no answer may stand in the first {SINKS}")
        at = answer.start
        return Question(text, ids[:at], ids[at : answer.stop], says, at - source.start, telling.chance)

    def nearest(n: int) -> int:
        return min(make(n, which).distance for which in telling.asked)

    if nearest(0) > distance:
        raise ValueError(
            f"distance = {distance}: without filler the nearest answer already lies {nearest(0)} tokens back"
        )
    n = bisect.bisect_left(range(2 * distance), distance, key=nearest)
    return (make(n, which) for which in telling.asked)


@functools.cache
def documentation() -> list[str]:
    """The words of the held-out documentation, each with the white space behind it: it knows no people and no towns."""
    return re.findall(r"\S+\s*", "\n\n".join(pydocs("heldout")))


@dataclass(frozen=True)
class Answers:
    """What a model wrote to each question, and whether it was right, [N] float64 of 0 and 1.

    standard_error: of `recall`, with texts as the independent unit. chance: mean share of guessing.
    """

    questions: list[Question]
    wrote: list[str]
    right: Tensor

    @property
    def groups(self) -> list[int]:
        """For `paired`: which text each question is about."""
        return [question.text for question in self.questions]

    @property
    def recall(self) -> float:
        return mean(self.right)[0] if self.questions else math.nan

    @property
    def standard_error(self) -> float:
        return mean(self.right, self.groups)[1] if self.questions else math.nan

    @property
    def chance(self) -> float:
        return sum(question.chance for question in self.questions) / len(self.questions) if self.questions else math.nan

    def by_place(self, window: int, layers: int) -> dict[str, Answers]:
        """The same answers, sorted into "inside", "between" and "outside" (`Question.where`)."""
        places = [question.where(window, layers) for question in self.questions]
        return {name: self._only([place == name for place in places]) for name in ("inside", "between", "outside")}

    def _only(self, these: list[bool]) -> Answers:
        keep = list(itertools.compress(range(len(these)), these))
        return Answers([self.questions[i] for i in keep], [self.wrote[i] for i in keep], self.right[keep])


def recall_by_generation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question]
) -> Answers:
    """Ask every question and read what the model writes, greedily and from its cache.

    An answer is right if what is written begins with it, whole: no letter or digit follows. Each text is read once, and
    its questions go on from copies of the cache, one at a time: exact for every model, and quicker than a padded batch.
    """
    wrote = []
    with evaluating(model), tqdm(total=len(asked), desc="questions", unit="question") as bar:
        for _, group in itertools.groupby(asked, key=lambda question: question.text):
            those = list(group)
            for ids, _ in written(model, [q.prompt for q in those], max(len(q.answer) for q in those) + MORE):
                wrote.append(tokenizer.decode(ids, skip_special_tokens=True))
                bar.update()
    right = [float(begins(text, question.says)) for text, question in zip(wrote, asked)]
    return Answers(list(asked), wrote, torch.tensor(right, dtype=torch.float64))


def begins(text: str, answer: str) -> bool:
    """Whether a text begins with a whole answer, white space aside."""
    text = text.strip()
    return text.startswith(answer) and not text[len(answer) : len(answer) + 1].isalnum()


@torch.no_grad()
def written(model: PreTrainedModel, prompts: list[list[int]], tokens: int) -> Iterator[tuple[list[int], Tensor]]:
    """What the model writes after each prompt, greedily, and the logits [vocabulary] of its first token.

    What all prompts begin with is read once; each goes on from a copy of that cache.

    Args:
        tokens: at most so many are written; fewer where the model ends its text.
    """
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*(prompt[:-1] for prompt in prompts)))
    shared = [column[0] for column in same]
    read = DynamicCache(config=model.config)
    if shared:
        model.get_decoder()(torch.tensor([shared], device=model.device), past_key_values=read, use_cache=True)
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=copy.deepcopy(read),
            max_new_tokens=tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        yield out.sequences[0, len(prompt) :].tolist(), out.logits[0][0]
