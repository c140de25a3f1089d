"""Documents packed into one row (chapter 03): where they begin and end, and a recurrence over each of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def over_documents(
    run: Callable, cu_seqlens: Tensor, inputs: Sequence[Tensor], states: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """run(*inputs, *states) -> (output, *states) for each document; outputs go side by side, states below each other.

    Args:
        inputs: [1, T, ...]. states: [N, ...], one per document; an empty document hands its own through.
    """
    outputs, finals = [], []
    for n, (start, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        final = tuple(S[n : n + 1] for S in states)
        if end > start:
            o, *final = run(*(x[:, start:end] for x in inputs), *final)
            outputs.append(o)
        finals.append(final)
    return torch.cat(outputs, dim=1), *(torch.cat(S) for S in zip(*finals))


def check_documents(cu_seqlens: Tensor, B: int, T: int) -> None:
    """cu_seqlens [N+1] rises from 0 to T, in a single row; a document may be empty.

    Raises:
        TypeError: no tensor. ValueError: other boundaries, or more rows than one.
    """
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"cu_seqlens is a {type(cu_seqlens).__name__}; it must be a tensor of whole numbers [N+1]")
    if cu_seqlens.ndim != 1 or cu_seqlens.is_floating_point():
        raise ValueError(
            f"cu_seqlens has shape {tuple(cu_seqlens.shape)} and dtype {cu_seqlens.dtype}; allowed are whole numbers [N+1]"
        )
    if B != 1:
        raise ValueError(f"cu_seqlens describes documents packed into one row, but the batch has B = {B} rows")
    if torch.compiler.is_compiling():  # reading a value would break the graph
        return
    ends = cu_seqlens.tolist()
    if len(ends) < 2 or ends[0] != 0 or ends[-1] != T or sorted(ends) != ends:
        raise ValueError(f"cu_seqlens = {ends} must rise from 0 to T = {T}")


def document_numbers(cu_seqlens: Tensor, T: int) -> Tensor:
    """Which document each token of a packed row belongs to, [1, T], made without reading a value."""
    return torch.bucketize(torch.arange(T, device=cu_seqlens.device), cu_seqlens, right=True).unsqueeze(0)


def nth_real(
    numbers: Sequence[int], key_mask: Tensor, documents: Tensor | None = None, at: Tensor | slice = slice(None)
) -> Tensor:
    """Where the first, second, … token of a document lies that is no padding; behind it, if it has not so many.

    Args:
        numbers: which of them, counted from 0, N in all. key_mask: [B, T], False for padding.
        documents: [B, T] as `document_numbers` gives them; None if every row is one.
        at: of the documents that have the tokens at these P positions of the row.
    Returns:
        positions, [B, P, N] int64. A real token of the document is one of its first S if it lies before number S.
    """
    upto = key_mask.cumsum(1)  # real tokens of the row, this one included
    before = torch.zeros_like(upto)  # and those in front of its document
    if documents is not None:
        begins = documents[:, 1:] != documents[:, :-1]
        before = F.pad(upto[:, :-1] * begins, (1, 0)).cummax(1).values
    wanted = before[:, at, None] + torch.tensor(numbers, device=upto.device)
    return torch.searchsorted(upto, wanted.flatten(1), right=True).view(wanted.shape)
