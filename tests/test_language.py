"""Evaluation of a language model: losses and agreement by hand, questions at the distance asked for, answers by generation."""

import math

import pytest
import torch
import torch.nn.functional as F

import liger_mini as lm
from liger_mini import corpora
from liger_mini.evaluation import agreement, language, loss_by_position, loss_by_repeat, paired, remember, row_losses
from tests.conftest import TINY


def random_rows(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, TINY["vocab_size"], (n,), generator=generator).tolist() for n in lengths]


@pytest.fixture
def small_slices(monkeypatch):
    """A slice that no length here divides, so that the seams are in the middle."""
    monkeypatch.setattr(language, "SLICE", 7)


def test_a_paired_difference_by_hand():
    difference = paired([1.0, 2.0, 6.0], torch.tensor([0.0, 0.0, 0.0]))
    assert (difference.mean, difference.n) == (3.0, 3)
    assert difference.standard_error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert difference.sigmas == pytest.approx(3 / math.sqrt(7 / 3))
    assert paired([2.0, 2.0], [1.0, 1.0]).sigmas == math.inf
    assert paired([1.0, 1.0], [1.0, 1.0]).sigmas == 0
    assert math.isnan(paired([2.0], [1.0]).standard_error)
    with pytest.raises(ValueError, match="a has 2 numbers and b 1"):
        paired([1.0, 2.0], [1.0])


def test_pairs_that_belong_together_count_as_one():
    """Every pair told twice: the same mean, and with groups the same error, where without them it shrinks."""
    once, twice = [1.0, 2.0, 6.0], [1.0, 1.0, 2.0, 2.0, 6.0, 6.0]
    alone, grouped = paired(once, [0.0] * 3), paired(twice, [0.0] * 6, "aabbcc")
    assert grouped.mean == alone.mean
    assert grouped.standard_error == pytest.approx(alone.standard_error)
    assert paired(twice, [0.0] * 6).standard_error < 0.75 * alone.standard_error


@pytest.mark.parametrize("linear", [False, True])
def test_a_rows_loss_is_the_models_own(tiny, small_slices, linear):
    """In a padded batch and in slices as transformers computes it from a row's labels; 1e-5 for another order of sums."""
    model = tiny()
    if linear:
        lm.linearize(model, window=4)
    rows = random_rows([20, 9, 20, 2, 31])
    expected = [model(torch.tensor([row]), labels=torch.tensor([row])).loss.item() for row in rows]
    for batch_size in (1, 3, 8):
        losses = row_losses(model.train(), rows, batch_size=batch_size)
        assert losses.dtype == torch.float64
        assert losses.tolist() == pytest.approx(expected, rel=1e-5)
        assert model.training
    with pytest.raises(ValueError, match=r"row 1 has 1 token"):
        row_losses(model, [[1, 2], [3]])


@torch.no_grad()
def test_agreement_by_hand(tiny, small_slices):
    """KL and first choices from whole logits in float64; KL is not symmetric, so the order is seen."""
    teacher, model, rows = tiny(), tiny(), random_rows([20, 33])
    measured = agreement(model, teacher, rows)
    for i, row in enumerate(rows):
        said, told = (m(torch.tensor([row])).logits[0, :-1].double() for m in (model, teacher))
        p, q = told.softmax(-1), said.softmax(-1)
        kl = (p * (p.log() - q.log())).sum(-1).mean()
        assert measured.per_row_kl[i].item() == pytest.approx(kl.item(), rel=1e-4)
        assert measured.per_row_top1[i] == (p.argmax(-1) == q.argmax(-1)).double().mean()
        assert measured.per_row_loss[i].item() == pytest.approx(
            F.cross_entropy(said, torch.tensor(row[1:])).item(), rel=1e-5
        )
        less_sure = ((p * p.log()).sum(-1) - (q * q.log()).sum(-1)).mean()
        assert measured.per_row_entropy[i].item() == pytest.approx(less_sure.item(), rel=1e-3, abs=1e-6)
    assert measured.kl == pytest.approx(measured.per_row_kl.mean().item())
    assert measured.kl_standard_error == pytest.approx(abs(measured.per_row_kl[0] - measured.per_row_kl[1]).item() / 2)
    assert measured.per_row_kl.tolist() != pytest.approx(agreement(teacher, model, rows).per_row_kl.tolist(), rel=1e-2)
    assert torch.equal(agreement(model, remember(teacher, rows), rows).per_row_kl, measured.per_row_kl)
    assert torch.equal(remember(teacher, rows).losses, row_losses(teacher, rows, batch_size=1))
    with pytest.raises(ValueError, match="not the rows"):
        agreement(model, remember(teacher, rows), rows[:1])


def test_a_model_agrees_with_itself_and_a_linearized_one_less(teacher):
    model, tokenizer = teacher
    rows = corpora.pydocs_rows(tokenizer, length=128, rows=4)
    itself = agreement(model, model, rows)
    assert (itself.top1, itself.kl) == (1.0, 0.0)
    from liger_mini.experiments import load_teacher

    other = agreement(lm.linearize(load_teacher()[0], window=16), model, rows)
    assert other.top1 < 1
    assert other.kl > 3 * other.kl_standard_error > 0
    assert other.per_row_loss.mean() > row_losses(model, rows).mean()


def test_loss_by_position_by_hand(tiny, small_slices):
    model, rows = tiny(), random_rows([40, 45])
    bins = loss_by_position(model, rows, (5, 16, 40))
    with torch.no_grad():
        logits = [model(torch.tensor([row[:40]])).logits[0] for row in rows]
    for (edge, mean, error), (low, high) in zip(bins, [(1, 5), (5, 16), (16, 40)]):
        expected = [
            F.cross_entropy(said[low - 1 : high - 1], torch.tensor(row[low:high])).item()
            for said, row in zip(logits, rows)
        ]
        assert edge == high
        assert mean == pytest.approx(sum(expected) / 2, rel=1e-5)
        assert error == pytest.approx(abs(expected[0] - expected[1]) / 2, rel=1e-4)
    with pytest.raises(ValueError, match="row 0 has 40 token"):
        loss_by_position(model, rows, (5, 41))
    with pytest.raises(ValueError, match="rising positions"):
        loss_by_position(model, rows, (5, 5))


def test_rows_of_both_kinds_are_whole_begun_and_not_trained_on(teacher):
    _, tokenizer = teacher
    docs, source = corpora.pydocs_rows(tokenizer), corpora.source_rows(tokenizer)
    assert len(docs) >= 40
    assert len(source) == 48
    for row in docs + source:
        assert len(row) == 1024
        assert row[: len(corpora.begin(tokenizer))] == corpora.begin(tokenizer)
    assert len({tuple(row) for row in docs + source}) == len(docs) + len(source)
    trained, code = "\n".join(corpora.pydocs("train")), "\n".join(corpora.pysource())
    assert "def " in code
    shared = [line for line in set(trained.splitlines()) & set(code.splitlines()) if len(line) > 60]
    assert len(shared) < 0.01 * len(set(code.splitlines()))  # signatures and phrases that modules repeat
    with pytest.raises(ValueError, match="rows of 1024 tokens"):
        corpora.source_rows(tokenizer, rows=10**6)


def test_what_was_there_before_by_hand(tiny, small_slices):
    row = [5, 6, 7, 5, 6, 5, 6, 8, 9, 10, 11, 7, 5]
    kinds = language.repeats(row, window=4)
    #                 6      7      5      6       5      6       8   9   10  11  7  5
    assert kinds == ["new", "new", "new", "near", "new", "near", *5 * ["new"], "far"]
    model = tiny()
    rows = [row, row[::-1]]
    found = loss_by_repeat(model, rows, 4)
    means = row_losses(model, rows)
    for i, mean in enumerate(means.tolist()):
        assert sum(counts[i] for _, counts in found.values()) == len(row) - 1
        assert sum(sums[i] for sums, _ in found.values()) == pytest.approx(mean * (len(row) - 1))
    with torch.no_grad():
        logits = model(torch.tensor([row])).logits[0]
    by_hand = [F.cross_entropy(logits[t - 1], torch.tensor(row[t])).item() for t in (4, 6)]
    assert found["near"][0][0] == pytest.approx(sum(by_hand), rel=1e-5)
