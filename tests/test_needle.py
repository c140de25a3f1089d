"""The needle test: the prompt is as long as asked, the needle where asked, and the teacher finds it."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from liger_mini import corpora
from liger_mini.evaluation import haystacks as needle
from tests.test_corpus import FOREIGN, foreign


class PerfectReader:
    """Looks the end of what it has read up in what it has read, and goes on as the text went on there."""

    training, device = False, "cpu"

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def eval(self):
        return self

    train = lambda self, mode: self  # noqa: E731

    def __call__(self, ids, *, logits_to_keep, **_):
        ids = ids[0].tolist()
        after = [self.next(ids[:end]) for end in range(len(ids) - logits_to_keep + 1, len(ids) + 1)]
        return SimpleNamespace(logits=F.one_hot(torch.tensor([after]), self.vocabulary).float())

    def next(self, ids: list[int]) -> int:
        """What followed the longest earlier occurrence of the end of `ids`."""

        def shared(i: int) -> int:
            return next((n for n in range(i + 1) if ids[i - n] != ids[-1 - n]), i + 1)

        return ids[max(range(len(ids) - 1), key=shared) + 1]


@pytest.fixture(scope="module")
def hay():
    return "\n\n".join(corpora.pydocs("heldout"))


@pytest.mark.parametrize("name", FOREIGN)
def test_a_perfect_reader_finds_every_needle(name):
    """Whatever the tokenizer does with spaces, and whatever it puts before a text."""
    tokenizer = foreign(name)
    rows = needle.needle(
        PerfectReader(len(tokenizer)), tokenizer, lengths=[150, 401], depths=[0.0, 0.5, 1.0], samples=4
    )
    assert [row["found"] for row in rows] == [1.0] * 6


@pytest.mark.parametrize("name", FOREIGN)
def test_a_prompt_is_one_text_that_ends_where_its_answer_goes(hay, name):
    tokenizer = foreign(name)
    for length, depth in ((150, 0.0), (151, 0.3), (1000, 1.0)):
        ids, answer, distance = needle.haystack(tokenizer, hay, length, depth, "b")
        assert len(ids) == length
        assert ids[: len(corpora.begin(tokenizer))] == corpora.begin(tokenizer)
        text = tokenizer.decode(ids[len(corpora.begin(tokenizer)) :] + answer)
        again = tokenizer(text + ("" if text.endswith(".") else "."))["input_ids"]
        assert again[: length + len(answer)] == ids + answer
        end = length - distance  # of the fact, its full stop included
        assert any(ids[end - len(answer) - more : end - more] == answer for more in (0, 1))


def test_the_prompt_is_as_long_as_asked_and_holds_the_fact_once(teacher, hay):
    _, tokenizer = teacher
    for depth in (0.0, 0.5, 1.0):
        ids, answer, distance = needle.haystack(tokenizer, hay, 200, depth, "a")
        assert len(ids) == 200
        where = [i for i in range(len(ids)) if ids[i : i + len(answer)] == answer]
        assert len(where) == 1
        assert distance == pytest.approx(200 - where[0] - len(answer), abs=2)  # and the full stop of the fact
        assert where[0] == pytest.approx(depth * 185, abs=25)


def test_the_teacher_finds_needles_it_can_see(teacher):
    model, tokenizer = teacher
    rows = needle.needle(model, tokenizer, lengths=[128], depths=[0.9], samples=10)
    assert rows[0]["found"] >= 0.5  # chance is 1/24


def test_too_short_a_haystack_is_refused(teacher):
    model, tokenizer = teacher
    with pytest.raises(ValueError, match="needle and question alone take"):
        needle.needle(model, tokenizer, lengths=[4])
    with pytest.raises(ValueError, match="depth = 2"):
        needle.needle(model, tokenizer, lengths=[100], depths=[2])
