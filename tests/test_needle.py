"""The needle test: the prompt is as long as asked, the needle where asked, and the teacher finds it."""

import pytest

from liger_mini import needle
from liger_mini.corpus import pydocs_tokens


def test_the_prompt_is_as_long_as_asked_and_holds_the_fact_once(teacher):
    _, tokenizer = teacher
    stream = pydocs_tokens("heldout", tokenizer)
    for depth in (0.0, 0.5, 1.0):
        ids, answer, distance = needle.haystack(tokenizer, stream, 200, depth, "a")
        assert len(ids) == 200
        where = [i for i in range(len(ids)) if ids[i : i + len(answer)] == answer]
        assert len(where) == 1
        assert distance == pytest.approx(200 - where[0] - len(answer), abs=2)  # and the full stop of the fact


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
