"""How far back a model's own softmax attention looks: a half-life that the teacher tells (chapter 11)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SHORTEST = 1e-3  # tokens: a head that looks at itself alone still has a half-life


@torch.no_grad()
def look_back(model: PreTrainedModel, sample: Sequence[Sequence[int]] | Tensor) -> tuple[tuple[float, ...], ...]:
    """The mean distance, in tokens, at which each key head of a softmax model is looked at.

    Σ_j w_ij (i - j) of every query i, averaged over the queries of the sample and over the query heads that share the key
    head. It cannot pass the length of the rows, so they should be as long as the texts the model is for.

    Args:
        model: with softmax attention; its own windows, if it has some, count.
        sample: rows of token ids, [N, T] or a list of rows of unequal length; each is run alone, and its weights
            (heads x T x T numbers per layer) are in memory one layer at a time.
    Returns:
        One tuple per layer, with one distance per key head, at least `SHORTEST`, to four digits: the sums differ by
        rounding from machine to machine, and a run that is resumed has to be the same.
    Raises:
        ValueError: no row, or one with fewer than two tokens, more than the model has positions, or ids that are none.
    """
    rows = [_row(row, number, model) for number, row in enumerate(sample)]
    if not rows:
        raise ValueError("the sample has no rows; a few rows of text are enough, as lists of token ids")
    heads, queries = model.config.num_key_value_heads, sum(len(row) for row in rows)
    attentions = [layer.self_attn for layer in model.base_model.layers]
    sums = {attention: torch.zeros(heads, dtype=torch.float64) for attention in attentions}

    def note(attention: nn.Module, args: tuple, output: tuple[Tensor, Tensor]) -> tuple[Tensor, None]:
        o, weights = output  # [1, H, T, T]
        positions = torch.arange(weights.shape[-1], device=weights.device)
        distances = (positions.unsqueeze(1) - positions).to(torch.float32)
        looked = (weights.float() * distances).sum((0, 2, 3)).double()  # [H]
        sums[attention] += looked.unflatten(0, (heads, -1)).mean(1).cpu()
        return o, None  # the model must not collect them

    with _weights_shown(model):
        hooks = [attention.register_forward_hook(note) for attention in attentions]
        try:
            for row in rows:
                model.base_model(row.unsqueeze(0), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
    distances = [(sums[attention] / queries).clamp(min=SHORTEST).tolist() for attention in attentions]
    return tuple(tuple(float(f"{distance:.4g}") for distance in layer) for layer in distances)


@contextmanager
def _weights_shown(model: PreTrainedModel) -> Iterator[None]:
    """Inside the `with`, attention computes its weights, without dropout."""
    before, training = model.config._attn_implementation, model.training
    try:
        model.eval().set_attn_implementation("eager")
        yield
    finally:
        model.train(training).set_attn_implementation(before)


def _row(row: Sequence[int] | Tensor, number: int, model: PreTrainedModel) -> Tensor:
    """A row of the sample as a tensor, [T] int64."""
    what = f"row {number} of the sample"
    try:
        ids = torch.as_tensor(row)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{what} is a {type(row).__name__} and not a list of token ids ({error}); of a data set's rows take "
            'row["input_ids"]'
        ) from error
    if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(
            f"{what} is of {ids.dtype} and of shape {list(ids.shape)}; needed is one list of whole numbers"
        )
    positions, words = model.config.max_position_embeddings, model.config.vocab_size
    if not 2 <= len(ids) <= positions:
        raise ValueError(f"{what} has {len(ids)} tokens; allowed are 2 to {positions}, the model's positions")
    if ids.min() < 0 or ids.max() >= words:
        raise ValueError(f"{what} holds the token {int(ids.min())} or {int(ids.max())}; allowed are 0 to {words - 1}")
    return ids.to(model.device, torch.int64)
