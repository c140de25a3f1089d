"""A model's own answers as text to recover it on: written once, resumed, held out, and learned without what was asked."""

import json

import pytest

from liger_mini import corpora
from liger_mini.corpora import answers as module
from liger_mini.experiments import load_teacher, real
from tests.test_own_data import TEMPLATES


@pytest.fixture
def talking(teacher, tmp_path, monkeypatch):
    """A model that can be asked, if not understood: the embedded teacher with a chat template, and few short answers."""
    model, tokenizer = teacher
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES["with generation marks"])
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "LONGEST", 12)
    monkeypatch.setenv("LIGER_MINI_CACHE", str(tmp_path / "cache"))
    return model, tokenizer


def test_requests_are_all_different_and_in_the_seeds_order():
    asked = module.requests
    assert len(set(asked())) == len(module.TOPICS) * len(module.REQUESTS) == 480
    assert asked() == asked(0) != asked(1)
    assert sorted(asked()) == sorted(asked(1))


def test_an_interrupted_file_goes_on_where_it_was(talking, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    told = corpora.own_answers(*talking, whole, tokens=60)
    chats = [json.loads(line)["messages"] for line in whole.read_text("utf-8").splitlines()]
    assert 60 <= told <= len(chats) * 12
    assert len(chats) % 4 == 0
    assert [chat[0]["content"] for chat in chats] == module.requests()[: len(chats)]
    corpora.own_answers(*talking, parts, tokens=20)
    assert len(parts.read_text("utf-8").splitlines()) < len(chats)
    assert corpora.own_answers(*talking, parts, tokens=60) == told
    assert parts.read_text("utf-8") == whole.read_text("utf-8")
    monkeypatch.setattr(module, "_answered", None)  # it is whole: nothing is generated
    assert corpora.own_answers(*talking, parts, tokens=60) == told
    with pytest.raises(ValueError, match="other requests than those of seed 1"):
        corpora.own_answers(*talking, whole, tokens=1000, seed=1)


def test_a_model_that_cannot_be_asked_is_refused(teacher, tmp_path):
    with pytest.raises(ValueError, match="no chat template"):
        corpora.own_answers(*teacher, tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


def test_rows_learn_answers_alone_and_never_those_held_out(talking):
    model, tokenizer = talking
    with pytest.raises(FileNotFoundError, match="python -m liger_mini answers"):
        corpora.OwnAnswers(tokenizer, 2)
    corpora.own_answers(model, tokenizer, module.answers_file(), tokens=400)
    chats = [json.loads(line)["messages"] for line in module.answers_file().read_text("utf-8").splitlines()]
    rows = corpora.OwnAnswers(tokenizer, 40, length=200)
    learned = {name: [rows[i][name] for i in range(40)] for name in ("input_ids", "labels")}
    assert rows[7] == corpora.OwnAnswers(tokenizer, 40, length=200)[7]
    assert all(len(row) == 200 for row in learned["input_ids"])
    said = "\n".join(map(tokenizer.decode, learned["input_ids"][::2]))
    scored = "\n".join(
        tokenizer.decode([token for token in row if token != corpora.IGNORE]) for row in learned["labels"][::2]
    )
    held = "\n".join(map(tokenizer.decode, corpora.held_out_answers(tokenizer, length=200)))
    for number, (request, _) in enumerate(chats):
        assert (request["content"] in held) is (number % module.HELD_OUT == module.HELD_OUT - 1)
        assert request["content"] not in scored
        assert not (request["content"] in held and request["content"] in said)
    assert any(request["content"] in said for request, _ in chats)


def test_a_recovery_on_them_is_also_measured_on_those_held_out(talking, tmp_path):
    model, tokenizer = talking
    corpora.own_answers(model, tokenizer, module.answers_file(), tokens=400)

    def load():
        fresh, _ = load_teacher()
        return fresh, tokenizer

    ways, small = ["window 64 + sink"], {"length": 96, "rows": 2, "load": load, "steps": 1, "rank": 2}
    result = real.run(tmp_path / "real", plan="answers", ways=ways, transfer_steps=1, **small)
    assert set(result["untouched"]) == {"pydocs", "pysource", "answers"}
    assert len(result["ways"]["window 64 + sink"]["answers"]["kl"]) == len(result["untouched"]["answers"]) == 2
