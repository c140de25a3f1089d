"""Questions lie as far back as asked, no answer is told among the sinks, and what counts is what a model writes."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig

import liger_mini as lm
from liger_mini.evaluation import (
    TASKS,
    choices,
    multiple_choice,
    paired,
    questions,
    recall_by_generation,
    short_answers,
)
from liger_mini.evaluation.choices import LETTERS
from liger_mini.evaluation.language_tasks import SINKS, begins, written
from liger_mini.experiments import load_teacher
from tests.test_corpus import foreign
from tests.test_needle import PerfectReader


class Fake:
    """As much of a model as the tasks use. It writes what `answer` says, ids to ids, and finds all tokens equally likely."""

    training, device = False, "cpu"
    config = LlamaConfig(num_hidden_layers=1, pad_token_id=0)
    eval = lambda self: self  # noqa: E731
    train = lambda self, mode: self  # noqa: E731

    def __init__(self, tokenizer, answer):
        self.vocabulary, self.answer = len(tokenizer), answer

    def get_decoder(self):
        return lambda input_ids, **_: SimpleNamespace(last_hidden_state=input_ids[..., None])

    def get_output_embeddings(self):
        return lambda states: torch.zeros(*states.shape[:2], self.vocabulary)

    def generate(self, ids, *, max_new_tokens, **_):
        new = self.answer(ids[0].tolist())[:max_new_tokens]
        logits = F.one_hot(torch.tensor([new[0]]), self.vocabulary).float()
        return SimpleNamespace(sequences=torch.tensor([ids[0].tolist() + new]), logits=(logits,))


def copies(tokenizer):
    """Goes on as the text went on where its end last stood."""
    reader = PerfectReader(len(tokenizer))

    def answer(ids):
        start = len(ids)
        for _ in range(8):
            ids = [*ids, reader.next(ids)]
        return ids[start:]

    return Fake(tokenizer, answer)


def writes(tokenizer, say):
    """Writes `say(text)` after a text."""
    return Fake(tokenizer, lambda ids: tokenizer(say(tokenizer.decode(ids)), add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="module", params=["embedded", "byte level", "metaspace always"])
def tokenizer(request, teacher):
    return teacher[1] if request.param == "embedded" else foreign(request.param)


@pytest.mark.parametrize("name", TASKS)
def test_an_answer_lies_as_far_back_as_is_said(tokenizer, name):
    """Counted in the prompt's own tokens: the told answer, that many tokens before the end, begins there."""
    for distance in (100, 150):
        asked = questions(TASKS[name], tokenizer, distance, count=6, seed=1)
        assert len(asked) >= 6
        for text in {question.text for question in asked}:
            nearest = min(question.distance for question in asked if question.text == text)
            assert (
                distance <= nearest < distance + 40
            )  # a word of documentation more; in these tokenizers up to 30 tokens
        for question in asked:
            told = len(question.prompt) - question.distance
            assert told >= SINKS
            assert tokenizer.decode(question.prompt[told:]).strip().startswith(question.says)
            assert question.says not in tokenizer.decode(question.prompt[told + 1 :])
            assert tokenizer.decode(question.answer).strip().startswith(question.says)
            assert tokenizer.decode(question.prompt).count(question.says) == 1


def test_questions_come_from_their_seed_alone(teacher):
    first, again, other = (questions(TASKS["phone_book"], teacher[1], 100, count=9, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert [question.says for question in first] != [question.says for question in other]
    assert questions(TASKS["phone_book"], teacher[1], 100, count=3) == first[:3]


def test_a_place_is_told_by_window_and_layers(teacher):
    """Window 16 and 4 layers reach 60; the token that predicts lies one before the answer."""
    question = questions(TASKS["passkey"], teacher[1], 60, count=1)[0]
    places = {d: type(question)(0, [], [], "", d, 0.0).where(16, 4) for d in (16, 17, 61, 62)}
    assert places == {16: "inside", 17: "between", 61: "between", 62: "outside"}


def test_what_cannot_be_asked_is_refused(teacher):
    with pytest.raises(ValueError, match="distance = 3: without filler"):
        questions(TASKS["phone_book"], teacher[1], 3)
    with pytest.raises(ValueError, match=f"no answer may stand in the first {SINKS}"):
        questions(TASKS["passkey"], teacher[1], 100, before=0)


@pytest.mark.parametrize("name", ["phone_book", "passkey"])
def test_a_perfect_reader_recalls_all_and_one_who_reads_nothing_none(tokenizer, name):
    asked = questions(TASKS[name], tokenizer, 100, count=8)
    right = recall_by_generation(copies(tokenizer), tokenizer, asked)
    assert right.recall == 1
    assert right.standard_error == 0
    nothing = recall_by_generation(writes(tokenizer, lambda text: " ?"), tokenizer, asked)
    assert nothing.recall == 0
    assert paired(right.right, nothing.right, right.groups).mean == 1
    parts = right.by_place(64, 2)
    assert sum(len(part.questions) for part in parts.values()) == len(asked)
    assert parts["inside"].questions == []


def test_two_hops_need_two(teacher):
    """Who looks up the sister and then her town is right; who copies what followed " lives in" is not."""
    _, tokenizer = teacher
    asked = questions(TASKS["two_hop"], tokenizer, 100, count=16)

    def hop(text):
        person = re.search(r"Answer: (\w+)'s sister lives in$", text)[1]
        sister = re.search(rf"{person}'s sister is (\w+)\.", text)[1]
        return " " + re.search(rf"{sister} lives in (\w+)\.", text)[1] + "."

    assert recall_by_generation(writes(tokenizer, hop), tokenizer, asked).recall == 1
    copied = recall_by_generation(copies(tokenizer), tokenizer, asked)
    assert copied.recall <= 0.5
    assert copied.chance == 0.25


def test_an_answer_must_be_whole():
    assert begins(" 4821.", "4821")
    assert begins("4821", "4821")
    assert not begins(" 48215", "4821")
    assert not begins(" 482", "4821")
    assert not begins(" The number is 4821", "4821")


@pytest.mark.parametrize("structure", [None, "gla", "gated_deltanet"])
def test_what_is_written_is_what_the_whole_prompt_gives(teacher, structure):
    """Texts read once and copied caches write what greedy decoding without any cache writes, also after linearizing."""
    model, tokenizer = load_teacher()
    if structure:
        lm.linearize(model, structure=structure, window=16)
    asked = questions(TASKS["phone_book"], tokenizer, 90, count=3)
    assert len({question.text for question in asked}) == 1
    for question, (ids, logits) in zip(asked, written(model, [question.prompt for question in asked], 5)):
        with torch.no_grad():
            for i, token in enumerate(ids):
                expected = model(torch.tensor([question.prompt + ids[:i]]), use_cache=False).logits[0, -1]
                assert token == expected.argmax()
                if i == 0:
                    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)  # another order of sums


def test_a_real_model_is_asked(teacher):
    """The embedded teacher knows tinyworld alone, and no number: it answers something, and its mode is left as it was."""
    model, tokenizer = load_teacher()
    model.train()
    answers = recall_by_generation(model, tokenizer, questions(TASKS["two_hop"], tokenizer, 100, count=4))
    assert model.training
    assert len(answers.wrote) == 4
    assert all(answers.wrote)


def test_every_right_answer_stands_at_every_letter_once():
    asked = choices()
    assert len({choice.question for choice in asked}) == len(asked) >= 36
    for choice in asked:
        assert len(set(choice.options)) == 4
        for by, letter in enumerate(LETTERS):
            assert f"\n{letter}. {choice.options[0]}\n" in choice.rotated(by)
            assert sorted(re.findall(r"^[A-D]\. (.*)$", choice.rotated(by), re.M)) == sorted(choice.options)


def test_a_habit_for_a_letter_is_found_out(teacher):
    _, tokenizer = teacher
    asked = choices()[:6]
    habit = multiple_choice(writes(tokenizer, lambda text: " A"), tokenizer, asked)
    assert habit.letters == {"A": 1.0, "B": 0.0, "C": 0.0, "D": 0.0, "none": 0.0}
    assert habit.accuracy == (0.25, 0.0)
    assert habit.consistent == (0.0, 0.0)
    assert habit.likelihood_accuracy == (0.25, 0.0)
    assert habit.text_accuracy == (0.0, 0.0)  # all are equally likely to this one, so none is the likeliest

    def knows(text):
        question = text.split("Question: ")[-1]
        choice = next(choice for choice in asked if choice.question in question)
        return " " + re.search(rf"([A-D])\. {choice.options[0]}\n", question)[1]

    knower = multiple_choice(writes(tokenizer, knows), tokenizer, asked)
    assert knower.accuracy == knower.consistent == knower.likelihood_accuracy == (1.0, 0.0)
    assert set(knower.letters.values()) == {0.25, 0.0}
    mute = multiple_choice(writes(tokenizer, lambda text: " Alas"), tokenizer, asked)
    assert mute.letters["none"] == 1.0
    assert mute.accuracy == (0.0, 0.0)


@torch.no_grad()
def test_the_likeliest_text_by_hand(teacher):
    """Mean log-probability of each option's tokens after the bare question, from whole logits."""
    model, tokenizer = teacher
    asked = choices()[:8]
    expected = []
    for choice in asked:
        start, losses = f"Question: {choice.question}\nAnswer:", []
        for option in choice.options:
            ids = torch.tensor([tokenizer(f"{start} {option}")["input_ids"]])
            n = ids.shape[1] - len(tokenizer(start)["input_ids"])
            losses.append(F.cross_entropy(model(ids).logits[0, -n - 1 : -1], ids[0, -n:]).item())
        expected.append(float(losses[0] == min(losses)))
    assert multiple_choice(model, tokenizer, asked).by_text.tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_a_short_answer_names_the_right_option_and_no_other(teacher):
    tokenizer = copy.deepcopy(teacher[1])
    with pytest.raises(ValueError, match="no chat template"):
        short_answers(None, tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }} {% if add_generation_prompt %}Answer:{% endif %}"
    asked = [choice for choice in choices() if choice.options[0] in ("Paris", "Rome", "our eyes", "a dog")]
    says = {"France": " It is paris, they say.", "Italy": " Rome or Athens", "see": " Eyes.", "barks": " A dogma"}

    def say(text):
        assert text.endswith("Answer:")
        return next(words for key, words in says.items() if key in text)

    found = short_answers(writes(tokenizer, say), tokenizer, asked)
    assert dict(zip([choice.options[0] for choice in asked], found.right.tolist())) == {
        "Paris": 1.0,
        "Rome": 0.0,
        "a dog": 0.0,
        "our eyes": 1.0,
    }
    assert found.accuracy[0] == 0.5
    assert found.wrote[1].strip() == "Rome or Athens"
