"""What the Triton kernels share: checks, documents cut into chunks, tiles, and sums of log-gates.

To a kernel every input is a pack of documents. A batch [B, T, H, ·] is B documents of T rows, one after another in
memory; `cu_seqlens` says where the documents of one packed row begin. Each is cut into chunks of C tokens of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

C = tl.constexpr(64)  # tokens in a chunk
LEVELS = tl.constexpr(6)  # log₂ C: how often a chunk can be halved
WIDEST = 256  # K, V and M
LEAST = tl.constexpr(-1e30)  # of a log-gate: sums of so many are finite
# How a product reads its operands; sums are always float32. tf32 holds a float16 or bfloat16 number exactly, has the
# range of float32 (a state may outgrow float16), and rounds what is computed in between no more than they would.
PRECISION_OF = {torch.float32: "ieee", torch.bfloat16: "tf32", torch.float16: "tf32"}
INTERPRETED = triton.knobs.runtime.interpret and not isinstance(tl.cdiv, triton.JITFunction)  # triton itself, too
PART = tl.constexpr(tl.float32 if INTERPRETED else tl.bfloat16)  # the interpreter cannot multiply bfloat16


def precision_of(*inputs: Tensor) -> str:
    """The precision of products of these inputs; of mixed dtypes, the full one."""
    dtypes = {x.dtype for x in inputs}
    return PRECISION_OF[dtypes.pop()] if len(dtypes) == 1 else "ieee"


def queries_per_key(queries: Tensor, states: Tensor) -> int:
    """G, how many heads of `queries` [B, T, H G, ·] read the same state of `states` [·, H, ·, ·]."""
    return queries.shape[2] // states.shape[1]


def over_group(x: Tensor, G: int) -> Tensor:
    """What every query's head says of its key's head, [B, T, H G, …], added up: [B, T, H, …]."""
    return x if G == 1 else x.unflatten(2, (-1, G)).sum(3)


def kept_as(*inputs: Tensor) -> torch.dtype:
    """What states between chunks, and products within them, are kept as: bfloat16 of bfloat16 inputs, else float32.

    Each is rounded once, from a sum in float32, and no rounded state is added to. float16 has not the range.
    """
    return torch.bfloat16 if all(x.dtype == torch.bfloat16 for x in inputs) else torch.float32


def check(widths: dict[str, int], states: dict[str, Tensor], **inputs: Tensor) -> None:
    """Say what the kernels cannot take.

    Raises: RuntimeError without a GPU or the interpreter, ValueError for a width above 256, TypeError for other dtypes.
    """
    for name, x in {**inputs, **states}.items():
        allowed = [torch.float32] if name in states else list(PRECISION_OF)
        if x.dtype not in allowed:
            raise TypeError(f"{name} has dtype {x.dtype}; the Triton kernels take {', '.join(map(str, allowed))}")
        if not (x.is_cuda or INTERPRETED):
            raise RuntimeError(
                f"{name} is on {x.device}, where Triton cannot run. Move the inputs to a CUDA device, or set the "
                "environment variable TRITON_INTERPRET=1 before Python starts (or before anything imports triton, as "
                "transformers does): the kernels then run, slowly, in Triton's interpreter"
            )
    for name, width in widths.items():
        if width > WIDEST:
            raise ValueError(f"{name} = {width}; the Triton kernels take widths up to {WIDEST}")


class Chunks(NamedTuple):
    """Documents, cut into chunks.

    rows [NC, 2]: where each chunk begins, in rows of B·T, and how many rows its document has left from there (none, for a
        chunk to spare).
    of_document [N+1]: document n has the chunks of_document[n] … of_document[n+1] - 1; none if it is empty.
    """

    rows: Tensor
    of_document: Tensor


def chunks(B: int, T: int, cu_seqlens: Tensor | None, device: torch.device) -> Chunks:
    """The chunks of a batch of B rows of T tokens, or of the documents that `cu_seqlens` packs into one row.

    All of it is computed on the device, and no value is waited for. How many chunks packed documents make is not known
    without looking, so there are as many as there can be; those to spare come last and have no rows.
    """
    if cu_seqlens is None:
        ends, most = torch.arange(B + 1, device=device) * T, B * -(-T // C.value)
    else:
        ends, N = cu_seqlens.to(device, torch.int64), len(cu_seqlens) - 1
        most = (T + N * (C.value - 1)) // C.value  # a document of l tokens has at most (l + C - 1) / C
    counts = (ends.diff() + C.value - 1) // C.value
    of_document = F.pad(counts.cumsum(0), (1, 0))
    chunk = torch.arange(most, device=device)
    document = torch.searchsorted(of_document[1:], chunk, right=True).clamp(max=len(counts) - 1)
    start = ends[document] + (chunk - of_document[document]) * C.value
    return Chunks(torch.stack([start, ends[document + 1] - start], dim=1), of_document)


@triton.jit
def place(rows_ptr, blocks, H):
    """The chunk and head of this program and its block of columns; the chunk's first row in [B·T·H, ·], and its rows.

    Where G heads of queries share a head of keys, and H counts the former, both numbers divided by G are the keys'.
    One axis of programs, since others end at 65535; 64 bit, since long inputs have more than 2³¹ numbers.
    """
    chunk_head, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    chunk = rows_ptr + chunk_head // H * 2
    return chunk_head, block, tl.load(chunk) * H + chunk_head % H, tl.load(chunk + 1)


@triton.jit
def load_as_kept(ptr, rows, columns, n_rows, n_columns, stride):
    """A tile of its own dtype, 0 outside the tensor: a padded token reads nothing, writes nothing, forgets nothing."""
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return tl.load(ptr + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def load(ptr, rows, columns, n_rows, n_columns, stride):
    """`load_as_kept` in float32."""
    return load_as_kept(ptr, rows, columns, n_rows, n_columns, stride).to(tl.float32)


@triton.jit
def load_beside(ptr, other_ptr, rows, columns, n_rows, n_columns, stride):
    """`load_as_kept` where `other_ptr` has the same dtype, else in float32.

    A tile that is multiplied twice, once as it lies and once converted, has one place in shared memory on Hopper, which the
    compiler (triton 3.7.1) lets the next tile overwrite while the first product still reads it.
    """
    x = load_as_kept(ptr, rows, columns, n_rows, n_columns, stride)
    return x if ptr.dtype.element_ty == other_ptr.dtype.element_ty else x.to(tl.float32)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """a b, summed in float32. Two tiles in bfloat16 are multiplied as they lie; of others PRECISION says how they are read."""
    if a.dtype != PART or b.dtype != PART:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def beside(x, y, PRECISION: tl.constexpr):
    """A float32 tile x that is to be multiplied with y: rounded to bfloat16 where all inputs are."""
    return x.to(tl.bfloat16) if y.dtype == tl.bfloat16 and PRECISION == "tf32" else x


@triton.jit
def load_gates(ptr, rows, columns, n_rows, n_columns, stride):
    """A tile of log-gates. They are added, by products with zeros and ones, so -inf becomes -1e30: exp of it is 0, too."""
    g = load(ptr, rows, columns, n_rows, n_columns, stride)
    return tl.where(g < LEAST, LEAST, g)


@triton.jit
def store(ptr, x, rows, columns, n_rows, n_columns, stride):
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    tl.store(ptr + rows[:, None] * stride + columns[None, :], x.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def leading(x):
    """The leading 8 bits of x, towards zero: bfloat16 holds them exactly."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def sum_over(mask, x):
    """Row t: the sum of x's rows l with mask[t, l]. A sum over a range of tokens is a product with zeros and ones.

    That is work for tensor cores, but log-gates deserve float32. So x is cut into three parts of 8 bits each, exact in
    bfloat16; cut towards zero, for x ≤ 0 the parts, and with them the sum, are ≤ 0.
    """
    ones, first = mask.to(PART), leading(x)
    second = leading(x - first)
    third = x - first - second
    return tl.dot(ones, first.to(PART), tl.dot(ones, second.to(PART), tl.dot(ones, third.to(PART))))
