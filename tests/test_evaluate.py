"""Evaluation: recall is counted right, distances are sorted right, the ablation is what it says."""

import json

import pytest
import torch

import liger_mini as lm
from liger_mini.evaluation import HeldOut, branches, evaluate, text_loss
from liger_mini.experiments import WINDOW, load_teacher


@pytest.fixture(scope="module")
def held_out(teacher):
    return HeldOut(teacher[1], stories=48, documents=16)


def test_the_teacher_is_worth_losing(teacher, held_out):
    report = evaluate(teacher[0], held_out, window=WINDOW)
    outside = report.recall["outside"]
    assert outside.questions > 50
    assert outside.recall - 2 * outside.standard_error > 0.90
    assert report.recall_inside > 0.95


def test_loss_is_the_models_own(teacher, held_out):
    """Our loss of the documents is what transformers computes from labels (equal lengths, so means agree)."""
    model, _ = teacher
    ids = torch.tensor([row["input_ids"] for row in held_out.document_rows])
    with torch.no_grad():
        expected = model(ids, labels=ids).loss.item()
    assert evaluate(model, held_out, window=WINDOW).loss_pydocs == pytest.approx(expected, rel=1e-4)


def test_bins_partition_the_questions(teacher, held_out):
    report = evaluate(teacher[0], held_out, window=WINDOW)
    assert report.reach == 4 * (WINDOW - 1)
    asked = sum(len(row["questions"]) for row in held_out.story_rows)
    assert sum(recall.questions for recall in report.recall.values()) == asked
    assert sum(recall.questions for _, recall in report.recall_by_distance) == asked
    inside = sum(distance <= WINDOW for row in held_out.story_rows for _, _, distance, _ in row["questions"])
    assert report.recall["inside"].questions == inside
    assert sum(recall.questions for _, recall in report.recall_by_rivals) == report.recall["outside"].questions
    for rivals, recall in report.recall_by_rivals:
        assert recall.chance == pytest.approx(1 / rivals)


def test_what_a_sink_told_is_not_outside(teacher):
    """A question far behind its answer is between if the answer is among the sinks: they see it, and all see them."""
    held_out = HeldOut(teacher[1], stories=8, documents=1, length=128)
    plain = evaluate(teacher[0], held_out, window=4)  # reaches 12 tokens
    sinks, asked = 24, [question for row in held_out.story_rows for question in row["questions"]]
    through = [
        (first, distance, candidates)
        for first, _, distance, candidates in asked
        if distance > 13 and first - distance < sinks
    ]
    assert len(through) > 2
    report = evaluate(teacher[0], held_out, window=4, sinks=sinks)
    counts = {name: report.recall[name].questions - plain.recall[name].questions for name in report.recall}
    assert counts == {"inside": 0, "between": len(through), "outside": -len(through)}
    assert sum(recall.questions for _, recall in report.recall_by_rivals) == report.recall["outside"].questions
    assert report.recall_by_distance == plain.recall_by_distance
    model, _ = load_teacher()
    lm.linearize(model, window=4, sinks=sinks)
    assert evaluate(model, held_out).recall["outside"].questions == report.recall["outside"].questions
    with pytest.raises(ValueError, match="sinks = -1"):
        evaluate(teacher[0], held_out, window=4, sinks=-1)


@torch.no_grad()
def test_the_window_alone_cannot_look_past_its_reach():
    """Change a token further back than the reach: with the window alone no logit moves; with the recurrence it does."""
    model, _ = load_teacher()
    lm.linearize(model, window=WINDOW)
    ids = torch.randint(2, 2048, (1, 100))
    changed = ids.clone()
    changed[0, 5] = 7
    reach = 4 * (WINDOW - 1)
    with branches(model, (0.0, 1.0)):
        moved = (model(ids).logits - model(changed).logits).abs().amax((0, 2))
    assert moved[5 + reach] > 0
    assert (moved[5 + reach + 1 :] == 0).all()
    assert (model(ids).logits - model(changed).logits)[0, 5 + reach + 1 :].abs().max() > 0
    for layer in model.model.layers:
        layer.self_attn.sinks = 5  # the token is the first behind them
    with branches(model, (0.0, 1.0)):
        assert torch.equal(model(ids).logits[0, 5 + reach + 1 :], model(changed).logits[0, 5 + reach + 1 :])
        for layer in model.model.layers:
            layer.self_attn.sinks = 6  # and the last of them
        assert (model(ids).logits - model(changed).logits)[0, 5:].abs().amax(-1).min() > 0


def test_branches_come_back_even_after_an_error():
    model, _ = load_teacher()
    with pytest.raises(ValueError, match="linearize it first"), branches(model, (1.0, 0.0)):
        pass
    lm.linearize(model, window=WINDOW)

    def fail():
        with branches(model, (0.0, 0.0)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert all(layer.self_attn.branches == (0.5, 0.5) for layer in model.model.layers)


def test_a_teacher_must_be_told_the_window(teacher, held_out):
    with pytest.raises(ValueError, match="pass window="):
        evaluate(teacher[0], held_out)


def test_a_layer_hybrid_has_no_outside(held_out):
    """Its softmax blocks see everything, so nothing is left that only a recurrence can know."""
    model, _ = load_teacher()
    report = evaluate(lm.linearize(model, window=WINDOW, softmax_every=2), held_out)
    assert report.recall["outside"].questions == 0
    written = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert written["reach"] is None
    assert written["recall_outside"] is None


def test_a_text_counts_the_tokens_it_scores(teacher):
    model, tokenizer = teacher
    text = "Anna lives in Paris. Where does Anna live?"
    n = len(tokenizer(text)["input_ids"])
    for length in (n - 1, n):  # the last row of the first has a single token, which nothing predicts
        loss, count = text_loss(model, text, tokenizer, length=length)
        assert count == length - 1
        assert loss > 0
    with pytest.raises(ValueError, match="length = 1"):
        text_loss(model, text, tokenizer, length=1)
