"""Multiple choice with rotated options: what is known, and what is only a habit for a letter (chapter 12).

A model that always answers "A" is right once in four rotations. So every question is asked four times, its options moved
on by one each time, and a question counts as known only if it is answered rightly in all of them. The letter is read off
what the model writes. Beside it stand the two scores that benchmarks usually report, which need no writing: the most
likely of the four letters, and the most likely of the four answers themselves. And the same questions can simply be asked, in the
model's chat template: then nothing is offered, and what it writes is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liger_mini.corpora import IGNORE, encode, overlap
from liger_mini.evaluation.language import evaluating, losses_of, mean
from liger_mini.evaluation.language_tasks import begins, written

LETTERS = "ABCD"

# question | right | wrong | wrong | wrong, written for this course
FACTS = """
What is the capital of France? | Paris | Rome | Madrid | Berlin
What is the capital of Italy? | Rome | Athens | Vienna | Lisbon
What is the capital of Japan? | Tokyo | Beijing | Seoul | Bangkok
What is the capital of Russia? | Moscow | Warsaw | Prague | Kyiv
What is the capital of Egypt? | Cairo | Nairobi | Tunis | Lagos
What is the capital of England? | London | Dublin | Oslo | Brussels
What is the capital of Germany? | Berlin | Munich | Zurich | Paris
What is the capital of Spain? | Madrid | Lisbon | Paris | Rome
What is the capital of Greece? | Athens | Rome | Sofia | Cairo
What is the capital of China? | Beijing | Tokyo | Hanoi | Delhi
What color is the sky on a clear day? | blue | green | red | brown
What color is fresh snow? | white | black | orange | purple
What color is grass? | green | blue | pink | white
What color is a ripe banana? | yellow | blue | purple | black
What is the opposite of hot? | cold | tall | fast | loud
What is the opposite of up? | down | left | over | near
What is the opposite of day? | night | summer | week | light
What is the opposite of big? | small | long | old | wide
Which animal barks? | a dog | a fish | a snake | a rabbit
Which animal says meow? | a cat | a cow | a horse | a duck
Which animal gives us wool? | a sheep | a frog | a shark | a parrot
Which animal has a trunk? | an elephant | a tiger | a monkey | an eagle
How many legs does a spider have? | eight | two | five | ten
How many days are in a week? | seven | four | nine | twelve
How many months are in a year? | twelve | seven | thirty | five
How many wheels does a bicycle have? | two | five | seven | nine
What do bees make? | honey | milk | bread | silk
What do cows give us? | milk | honey | tea | salt
What is frozen water called? | ice | steam | sand | smoke
Which planet do we live on? | Earth | Mars | Venus | Saturn
Which star gives us light during the day? | the Sun | the Moon | Mars | Jupiter
Which season is the coldest? | winter | summer | spring | autumn
What do we use to see? | our eyes | our ears | our hands | our feet
Which month comes after January? | February | June | October | December
Who wrote Romeo and Juliet? | William Shakespeare | Albert Einstein | Isaac Newton | Mozart
What do plants need to grow? | water | plastic | smoke | paint
"""


@dataclass(frozen=True)
class Choice:
    """A question and its four options, the right one first."""

    question: str
    options: tuple[str, ...]

    def rotated(self, by: int) -> str:
        """The question with its options moved on by so many places: the right one stands at letter `by`."""
        order = [self.options[(i - by) % 4] for i in range(4)]
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, order))
        return f"Question: {self.question}\n{listed}\nAnswer:"


def choices() -> list[Choice]:
    """36 questions of our own."""
    parts = [[part.strip() for part in line.split("|")] for line in FACTS.strip().splitlines()]
    return [Choice(question, tuple(options)) for question, *options in parts]


EXAMPLES = (  # one of each letter, so that the examples favour none
    Choice("How many fingers are on one hand?", ("five", "two", "nine", "eleven")),
    Choice("What color is coal?", ("black", "yellow", "white", "green")),
    Choice("Which animal can fly?", ("a bird", "a horse", "a whale", "a mouse")),
    Choice("What is the opposite of wet?", ("dry", "soft", "new", "high")),
)


@dataclass(frozen=True)
class Choices:
    """What was chosen. Tensors are [questions, 4 rotations]; the right letter of rotation r is ``LETTERS[r]``.

    chosen: number of the letter written, -1 where none was. likeliest: of the letter with the highest probability.
    by_text: [questions], 1.0 where the right answer itself is more likely, per token, than the three others.
    """

    chosen: Tensor
    likeliest: Tensor
    by_text: Tensor

    @property
    def right(self) -> Tensor:
        """[questions, 4] float64 of 0 and 1, by generation."""
        return _right(self.chosen)

    @property
    def accuracy(self) -> tuple[float, float]:
        """Share of right letters over all rotations, by generation, and its standard error over questions; chance 0.25."""
        return mean(self.right.mean(1))

    @property
    def consistent(self) -> tuple[float, float]:
        """Share of questions answered rightly in every rotation, and its standard error; chance 0.004."""
        return mean(self.right.prod(1))

    @property
    def likelihood_accuracy(self) -> tuple[float, float]:
        """As `accuracy`, by the likelihood of the letters."""
        return mean(_right(self.likeliest).mean(1))

    @property
    def text_accuracy(self) -> tuple[float, float]:
        """Share of questions whose right answer is the likeliest as a text, and its standard error; chance 0.25."""
        return mean(self.by_text)

    @property
    def letters(self) -> dict[str, float]:
        """Share of each letter among what was written; "none" for anything else. Without a habit each has 0.25."""
        names = zip((*LETTERS, "none"), (0, 1, 2, 3, -1))
        return {name: (self.chosen == i).double().mean().item() for name, i in names}


def _right(chosen: Tensor) -> Tensor:
    return (chosen == torch.arange(4)).double()


def multiple_choice(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Choice] | None = None
) -> Choices:
    """Ask each question in four rotations, after four examples, one for each letter.

    Args:
        asked: None for `choices()`.
    """
    asked = choices() if asked is None else asked
    examples = "".join(f"{example.rotated(i)} {LETTERS[i]}\n\n" for i, example in enumerate(EXAMPLES))
    texts = [examples + choice.rotated(by) for choice in asked for by in range(4)]
    prompts, letters = zip(*(_ending(text, LETTERS, tokenizer) for text in texts))
    chosen, likeliest = [], []
    with evaluating(model):
        answers = tqdm(written(model, list(prompts), 2), total=len(prompts), desc="choices", unit="question")
        for (ids, logits), of_letters in zip(answers, letters):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            chosen.append(next((i for i, letter in enumerate(LETTERS) if begins(text, letter)), -1))
            likeliest.append(logits[of_letters].argmax().item())
        losses = [_losses_of_options(model, tokenizer, choice) for choice in asked]
    by_text, shape = [float(right < min(wrong)) for right, *wrong in losses], (len(asked), 4)
    return Choices(
        torch.tensor(chosen).view(shape),
        torch.tensor(likeliest).view(shape),
        torch.tensor(by_text, dtype=torch.float64),
    )


@dataclass(frozen=True)
class ShortAnswers:
    """What was written to each question of `choices`, and whether it names the right option and no other: [questions] of 0 and 1."""

    right: Tensor
    wrote: list[str]

    @property
    def accuracy(self) -> tuple[float, float]:
        """Share of right answers, and its standard error over questions."""
        return mean(self.right)


def short_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Choice] | None = None, tokens: int = 24
) -> ShortAnswers:
    """Ask each question by itself, in the chat template, and offer nothing.

    Args:
        asked: None for `choices()`. tokens: at most so many are written, greedily.
    Raises:
        ValueError: a tokenizer without a chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError("this tokenizer has no chat template, so nothing can be asked in it; use multiple_choice")
    asked = choices() if asked is None else asked
    said = [[{"role": "user", "content": choice.question}] for choice in asked]
    prompts = [
        tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=True)["input_ids"] for one in said
    ]
    with evaluating(model):
        answers = tqdm(written(model, prompts, tokens), total=len(prompts), desc="short answers", unit="question")
        wrote = [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in answers]
    named = [[_names(text, option) for option in choice.options] for text, choice in zip(wrote, asked)]
    right = [float(first and not any(others)) for first, *others in named]
    return ShortAnswers(torch.tensor(right, dtype=torch.float64), wrote)


def _names(text: str, option: str) -> bool:
    """Whether a text has the last word of an option ("dog" of "a dog"), as a word."""
    return re.search(rf"\b{re.escape(option.split()[-1])}\b", text, re.IGNORECASE) is not None


def _ending(text: str, ends: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """(the tokens of a text up to where one of its ends goes, the first token of each end)."""
    firsts = []
    for end in ends:
        ids, offsets = encode(f"{text} {end}", tokenizer)
        at = overlap(offsets, len(text) + 1, len(text) + 2).start
        firsts.append(ids[at])
    return ids[:at], firsts


def _losses_of_options(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choice: Choice) -> list[float]:
    """Loss of each option in nats per token, after the bare question."""
    start, rows = f"Question: {choice.question}\nAnswer:", []
    for option in choice.options:
        ids, offsets = encode(f"{start} {option}", tokenizer)
        answer = overlap(offsets, len(start) + 1, len(start) + 1 + len(option))
        scored = [token if i in answer else IGNORE for i, token in enumerate(ids)]
        rows.append({"input_ids": ids[: answer.stop], "labels": scored[: answer.stop]})
    return losses_of(model, rows).tolist()
