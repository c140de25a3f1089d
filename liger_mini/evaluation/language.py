"""How far a language model is from its teacher, on any text: loss, agreement, loss by position (chapter 12).

Everything is measured row by row, because rows are what two models share: the standard error that counts is that of
their difference on the same rows (`paired`), far smaller than that of either mean.

A vocabulary of 49,152 makes 0.2 GB of float32 logits from a row of 1,024 tokens. So the decoder reads a row once, and the
head makes logits from `SLICE` of its states at a time: memory grows with the states, not with the logits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from liger_mini.corpora import IGNORE, Collator

SLICE = 256  # states that become logits at once: 50 MB of float32 at a vocabulary of 49,152

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Difference:
    """The mean of a - b over rows or questions that both models were given, and its standard error.

    standard_error: sample deviation of the differences / √n; nan for a single pair.
    sigmas: mean / standard error; infinite where every pair differs by the same, 0 where none differs.
    """

    mean: float
    standard_error: float
    n: int

    @property
    def sigmas(self) -> float:
        if self.standard_error == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.standard_error


def paired(
    a: Tensor | Sequence[float], b: Tensor | Sequence[float], groups: Sequence[Hashable] | None = None
) -> Difference:
    """Mean and standard error of a - b, pair by pair.

    Args:
        a, b: one number per row or question, [N], in the same order.
        groups: what each pair belongs to, for questions that share a text (`Answers.groups`): they are not independent.
    Raises:
        ValueError: unequal lengths, or nothing.
    """
    a, b = (torch.as_tensor(x, dtype=torch.float64).flatten() for x in (a, b))
    if len(a) != len(b) or not len(a):
        raise ValueError(f"a has {len(a)} numbers and b {len(b)}; pairs need equally many, and at least one")
    return Difference(*mean(a - b, groups), len(a))


def mean(x: Tensor, groups: Sequence[Hashable] | None = None) -> tuple[float, float]:
    """(mean, its standard error) of [N] numbers; the error of a single one, or of a single group, is unknown: nan.

    √(G / (G - 1) Σ_g (Σ_{i in g} x_i - mean)²) / N over G groups, which with a number per group is deviation / √N.
    """
    centre, sums = x.mean(), {}
    for group, value in zip(range(len(x)) if groups is None else groups, (x - centre).tolist(), strict=True):
        sums[group] = sums.get(group, 0.0) + value
    G = len(sums)
    error = math.sqrt(G / (G - 1) * sum(s * s for s in sums.values())) / len(x) if G > 1 else math.nan
    return centre.item(), error


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Inside the `with`, no dropout and no gradient."""
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def row_losses(model: PreTrainedModel, rows: Rows, *, batch_size: int = 4) -> Float[Tensor, "N"]:
    """Mean next-token loss of each row in nats per token, [N] float64; a row's first token is given and not scored.

    Args:
        rows: lists of token ids, at least two each; unequal lengths are padded on the right.
    """
    _check(rows)
    means = []
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            chunk = [{"input_ids": list(row), "labels": list(row)} for row in rows[start : start + batch_size]]
            means.append(losses_of(model, chunk))
    return torch.cat(means)


def losses_of(model: PreTrainedModel, rows: list[dict[str, list[int]]]) -> Float[Tensor, "N"]:
    """Mean loss of each row's scored labels, [N] float64, in one batch of rows as `corpora` makes them."""
    batch = {name: x.to(model.device) for name, x in Collator(max(model.config.pad_token_id or 0, 0))(rows).items()}
    labels = batch.pop("labels")[:, 1:]
    if batch["attention_mask"].all():
        del batch["attention_mask"]  # rows of equal length need none
    states = model.get_decoder()(**batch, use_cache=False).last_hidden_state[:, :-1]
    losses = _token_losses(model.get_output_embeddings(), states, labels)
    return losses.sum(1) / (labels != IGNORE).sum(1).cpu()


def _token_losses(head: nn.Module, states: Tensor, labels: Tensor) -> Float[Tensor, "B T"]:
    """The loss of each label given the state before it, [B, T] float64 on the CPU; 0 where it is not scored."""
    B, step = len(states), max(1, SLICE // len(states))
    parts = [
        F.cross_entropy(
            head(states[:, i : i + step]).float().flatten(0, 1), labels[:, i : i + step].flatten(), reduction="none"
        )
        for i in range(0, states.shape[1], step)
    ]
    return torch.cat([part.double().cpu().unflatten(0, (B, -1)) for part in parts], 1)


def _check(rows: Rows, least: int = 2) -> None:
    short = next((i for i, row in enumerate(rows) if len(row) < least), None)
    if not len(rows) or short is not None:
        given = "no rows" if short is None else f"row {short} has {len(rows[short])} token(s)"
        raise ValueError(f"{given}; needed are lists of token ids, at least {least} in each")


@dataclass(frozen=True)
class Remembered:
    """What a teacher's decoder said to each row, so that several models are compared with it for one reading.

    states: [T - 1, D] per row, in the teacher's type: 1.2 MB for 1,024 tokens of SmolLM2 in bfloat16.
    """

    rows: list[list[int]]
    states: list[Tensor]
    head: nn.Module

    @property
    def losses(self) -> Float[Tensor, "N"]:
        """The teacher's own loss on each row, [N] float64, as `row_losses` has it."""
        pairs = ((states, torch.tensor(row[1:], device=states.device)) for row, states in zip(self.rows, self.states))
        with torch.no_grad():
            return torch.cat([_token_losses(self.head, states[None], labels[None]).mean(1) for states, labels in pairs])


def remember(teacher: PreTrainedModel, rows: Rows) -> Remembered:
    """Read the rows once; `agreement` takes what is returned in the teacher's place."""
    _check(rows)
    with evaluating(teacher):
        return Remembered(
            [list(row) for row in rows], [_states(teacher, row) for row in rows], teacher.get_output_embeddings()
        )


def _states(model: PreTrainedModel, row: Sequence[int]) -> Tensor:
    """The last hidden states of a row, [T - 1, D]: each predicts the next token."""
    ids = torch.tensor([list(row)], device=model.device)
    return model.get_decoder()(ids, use_cache=False).last_hidden_state[0, :-1]


@dataclass(frozen=True)
class Agreement:
    """How nearly a model says what its teacher says, over the positions of a text that predict a token of it.

    per_row_top1: share of positions where both have the same first choice, [N] float64.
    per_row_kl: KL(teacher ‖ model) in nats per token, [N] float64.
    per_row_loss: the model's own loss, [N] float64, as `row_losses` has it: the logits are there anyway.
    per_row_entropy: entropy of its next token less that of the teacher's, in nats, [N] float64. Above 0 it is less sure.
    Means are over rows, and so are the standard errors: tokens of one row are not independent.
    """

    per_row_top1: Tensor
    per_row_kl: Tensor
    per_row_loss: Tensor
    per_row_entropy: Tensor

    @property
    def top1(self) -> float:
        return mean(self.per_row_top1)[0]

    @property
    def top1_standard_error(self) -> float:
        return mean(self.per_row_top1)[1]

    @property
    def kl(self) -> float:
        return mean(self.per_row_kl)[0]

    @property
    def kl_standard_error(self) -> float:
        return mean(self.per_row_kl)[1]


def agreement(model: PreTrainedModel, teacher: PreTrainedModel | Remembered, rows: Rows) -> Agreement:
    """Top-1 agreement with the teacher and KL(teacher ‖ model) = Σ p_teacher (log p_teacher - log p_model).

    One row at a time, in float32.

    Args:
        teacher: a model of the same vocabulary, or what `remember` kept of it, on the same rows.
    Raises:
        ValueError: other rows than the remembered ones, or another vocabulary.
    """
    _check(rows)
    if not isinstance(teacher, Remembered):
        teacher = remember(teacher, rows)
    elif [list(row) for row in rows] != teacher.rows:
        raise ValueError("these are not the rows the teacher was asked to remember; call remember(teacher, rows) again")
    head = model.get_output_embeddings()
    if len(head.weight) != len(teacher.head.weight):
        raise ValueError(f"the model knows {len(head.weight)} tokens and the teacher {len(teacher.head.weight)}")
    measured = []
    with evaluating(model):
        for row, told in zip(rows, teacher.states):
            labels, states = torch.tensor(list(row[1:]), device=model.device), _states(model, row)
            parts = [
                _compare(head(states[part]), teacher.head(told[part]), labels[part]) for part in _parts(len(labels))
            ]
            measured.append(torch.cat(parts, 1).mean(1))
    return Agreement(*torch.stack(measured, 1))


def _parts(n: int) -> Iterator[slice]:
    return (slice(i, i + SLICE) for i in range(0, n, SLICE))


def _compare(logits: Tensor, told: Tensor, labels: Tensor) -> Float[Tensor, "4 T"]:
    """Same first choice (1 or 0), KL, loss and entropy above the teacher's, of each position, float64."""
    says, should = (x.float().log_softmax(-1) for x in (logits, told.to(logits.device)))
    kl = F.kl_div(says, should, log_target=True, reduction="none").sum(-1)
    same = (says.argmax(-1) == should.argmax(-1)).double()
    loss = F.nll_loss(says, labels, reduction="none")
    less_sure = (should.exp() * should).sum(-1) - (says.exp() * says).sum(-1)
    return torch.stack([same, kl.double(), loss.double(), less_sure.double()]).cpu()


def loss_by_position(model: PreTrainedModel, rows: Rows, edges: Sequence[int]) -> list[tuple[int, float, float]]:
    """Loss of the tokens between two edges of a row: does a model go on predicting well where it was never trained?

    Args:
        rows: lists of token ids, each of at least ``edges[-1]`` tokens; one is read at a time.
        edges: rising. The first bin holds the tokens 1 … edges[0] - 1 (token 0 is given), the next those from there on.
    Returns:
        (edge, mean loss in nats per token, its standard error over rows) per edge; with one row the error is nan.
    Raises:
        ValueError: edges that do not rise from 2 on, or a row that ends before the last.
    """
    if not edges or list(edges) != sorted(set(edges)) or edges[0] < 2:
        raise ValueError(f"edges = {list(edges)}: needed are rising positions from 2 on, as (1024, 2048, 4096, 8192)")
    _check(rows, edges[-1])
    head, bins = model.get_output_embeddings(), list(zip((1, *edges), edges))
    means = []
    with evaluating(model):
        for row in rows:
            labels = torch.tensor([list(row[1 : edges[-1]])], device=model.device)
            losses = _token_losses(head, _states(model, row[: edges[-1]])[None], labels)[0]  # of token 1, 2, …
            means.append(torch.stack([losses[low - 1 : high - 1].mean() for low, high in bins]))
    return [(edge, *mean(of_bin)) for edge, of_bin in zip(edges, torch.stack(means, 1))]


REPEATS = ("new", "near", "far")


def repeats(row: Sequence[int], window: int) -> list[str]:
    """Of each token but the first: did the pair of it and the token before it come earlier in the row, and where?

    "new": nowhere. "near": last within the `window` tokens before it, so that a window sees how it went on then. "far": last
    before those: whoever predicts it from the row has to look up more than a window holds (Arora et al., 2023, call the
    repeated ones associative recall hits).
    """
    last: dict[tuple[int, int], int] = {}
    kinds = []
    for t, pair in enumerate(itertools.pairwise(row), start=1):
        seen = last.get(pair)
        kinds.append("new" if seen is None else "near" if t - seen < window else "far")
        last[pair] = t
    return kinds


def loss_by_repeat(model: PreTrainedModel, rows: Rows, window: int) -> dict[str, tuple[list[float], list[int]]]:
    """For each kind of `repeats`: the sum of the losses of its tokens in each row, in nats, and how many there are."""
    _check(rows)
    found: dict[str, tuple[list[float], list[int]]] = {kind: ([], []) for kind in REPEATS}
    with evaluating(model):
        for row in rows:
            labels = torch.tensor([list(row[1:])], device=model.device)
            losses = _token_losses(model.get_output_embeddings(), _states(model, row)[None], labels)[0]
            kinds = repeats(row, window)
            for kind, (sums, counts) in found.items():
                these = torch.tensor([k == kind for k in kinds])
                sums.append(losses[these].sum().item())
                counts.append(int(these.sum()))
    return found
