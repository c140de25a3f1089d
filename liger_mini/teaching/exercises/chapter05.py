"""Tasks of chapter 05: Triton kernels. Those that need Triton run in its interpreter, or on a GPU where there is one."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from liger_mini.teaching.exercises.task import Case, Draw, Mistake, Task

if importlib.util.find_spec("triton"):
    import triton.language as tl

UNWRITTEN = 99.0  # what stands in an output before the kernel runs
OUTSIDE = ("that nothing outside the tensors is read", "that nothing outside the tensors is written")


class Fence:
    """Keeps a kernel in Triton's interpreter within its tensors, and notes whether it tried to leave them.

    A masked load without `other` gives NaN here: what it gives elsewhere is undefined.

    Attributes:
        read, written: whether an address outside was read or written.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self.ranges = [(x.data_ptr(), x.data_ptr() + x.nbytes) for x in tensors]
        self.read = self.written = False

    def inside(self, addresses: Any) -> Any:
        found = [(addresses >= start) & (addresses < end) for start, end in self.ranges]
        return sum(found[1:], found[0])

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """While entered, for kernels in the interpreter."""
        from triton.runtime.interpreter import InterpreterBuilder as builder

        load, store = builder.create_masked_load, builder.create_masked_store

        def fenced_load(that: Any, ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
            inside = self.inside(ptrs.data)
            self.read |= bool((mask.data & ~inside).any())
            loaded = load(that, ptrs, dataclasses.replace(mask, data=mask.data & inside), other, *rest)
            if other is None and ptrs.get_element_ty().is_floating():
                loaded.data[~mask.data] = float("nan")
            return loaded

        def fenced_store(that: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
            inside = self.inside(ptrs.data)
            self.written |= bool((mask.data & ~inside).any())
            return store(that, ptrs, value, dataclasses.replace(mask, data=mask.data & inside), *rest)

        with mock.patch.multiple(builder, create_masked_load=fenced_load, create_masked_store=fenced_store):
            yield


def jitted(answer: Callable) -> Any:
    """The answer as a Triton function, whether it was decorated or not."""
    import triton

    function = getattr(answer, "fn", answer)
    if getattr(function, "__name__", "") == "<lambda>":
        raise TypeError("a Triton function is written with `def`; a lambda was given, whose source Triton cannot read")
    return triton.jit(function)


def launched(kernel: Callable, programs: int, output: int, *args: Any) -> tuple[Tensor, bool, bool]:
    """Run a kernel on copies; its output, and whether it read and wrote inside its tensors only."""
    from liger_mini.kernels import tiles

    device = "cuda" if torch.cuda.is_available() and not tiles.INTERPRETED else "cpu"
    args = tuple(x.to(device, copy=True) if isinstance(x, Tensor) else x for x in args)
    tensors = [x for x in args if isinstance(x, Tensor)]
    tiles.check({}, {}, **{f"tensor {i}": x for i, x in enumerate(tensors)})
    fence = Fence(tensors)
    try:
        with fence.around() if tiles.INTERPRETED else contextlib.nullcontext():
            jitted(kernel)[(programs,)](*args)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the interpreter wraps what the kernel raises
            cause = cause.__cause__
        raise cause from None
    return args[output].cpu(), not fence.read, not fence.written


def gla_gate(k_ptr, out_ptr, N, temper, BLOCK: tl.constexpr):
    """N keys at k_ptr, their log-gates to out_ptr; ceil(N / BLOCK) programs"""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.load(k_ptr + n, mask=n < N)
    tl.store(out_ptr + n, -tl.log(1 + tl.exp(-k)) / temper, mask=n < N)


def gate_inputs(draw: Draw) -> Iterator[Case]:
    for N, temper, BLOCK in ((20, 4.0, 8), (16, 16.0, 16), (5, 1.0, 8), (1, 2.0, 4)):
        out = torch.full((N,), UNWRITTEN)
        yield Case("", k_ptr=draw.normal(N, scale=2), out_ptr=out, N=N, temper=temper, BLOCK=BLOCK)


def run_gate(answer: Callable, k: Tensor, out: Tensor, N: int, temper: float, BLOCK: int) -> tuple[Tensor, bool, bool]:
    return launched(answer, -(-N // BLOCK), 1, k, out, N, temper, BLOCK)


def gate_first_block(k_ptr, out_ptr, N, temper, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    k = tl.load(k_ptr + n, mask=n < N)
    tl.store(out_ptr + n, -tl.log(1 + tl.exp(-k)) / temper, mask=n < N)


def gate_overlaps(k_ptr, out_ptr, N, temper, BLOCK: tl.constexpr):
    n = tl.program_id(0) + tl.arange(0, BLOCK)
    k = tl.load(k_ptr + n, mask=n < N)
    tl.store(out_ptr + n, -tl.log(1 + tl.exp(-k)) / temper, mask=n < N)


def gate_unmasked(k_ptr, out_ptr, N, temper, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.load(k_ptr + n)
    tl.store(out_ptr + n, -tl.log(1 + tl.exp(-k)) / temper)


def gate_unmasked_load(k_ptr, out_ptr, N, temper, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.load(k_ptr + n)
    tl.store(out_ptr + n, -tl.log(1 + tl.exp(-k)) / temper, mask=n < N)


def gate_unmasked_store(k_ptr, out_ptr, N, temper, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.load(k_ptr + n, mask=n < N)
    tl.store(out_ptr + n, -tl.log(1 + tl.exp(-k)) / temper)


def gate_of_mamba2(k_ptr, out_ptr, N, temper, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.load(k_ptr + n, mask=n < N)
    tl.store(out_ptr + n, -tl.log(1 + tl.exp(k)) / temper, mask=n < N)


def gate_untempered(k_ptr, out_ptr, N, temper, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.load(k_ptr + n, mask=n < N)
    tl.store(out_ptr + n, -tl.log(1 + tl.exp(-k)), mask=n < N)


GLA_GATE = Task(
    number="05.1",
    title="A first kernel: GLA's gate",
    minutes=15,
    difficulty="easy",
    statement="""\
Write a Triton kernel that turns N keys into log-gates, $\\log\\sigma(k) / \\tau = -\\log(1 + e^{-k}) / \\tau$:

`gla_gate(k_ptr, out_ptr, N, temper, BLOCK)`, where the last parameter is a `tl.constexpr`. The N float32 keys begin at `k_ptr`, the
results at `out_ptr`. ⌈N / BLOCK⌉ programs are started, and each is responsible for BLOCK numbers. N need not be a multiple of BLOCK:
what lies behind the N numbers belongs to others, and may be neither read nor written.

(`@triton.jit` in front of it is allowed and not needed. A kernel returns nothing.)""",
    hints=(
        "Which numbers are mine? `n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)`.",
        "`tl.load(k_ptr + n, mask=n < N)` reads only the numbers that exist.",
        "`tl.store(out_ptr + n, -tl.log(1 + tl.exp(-k)) / temper, mask=n < N)`.",
    ),
    reference=gla_gate,
    inputs=gate_inputs,
    run=run_gate,
    returns=("what stands at out_ptr", *OUTSIDE),
    needs=("triton",),
    seconds=20.0,
    section="chapter 05, section 1",
    mistakes=(
        Mistake(
            "every program takes the first block",
            gate_first_block,
            "All your programs do the same block, the first. Where does `tl.program_id(0)` come in?",
            "chapter 05, section 1",
        ),
        Mistake(
            "blocks that overlap",
            gate_overlaps,
            "Your program i begins at number i. It begins at i * BLOCK.",
            "chapter 05, section 1",
        ),
        Mistake(
            "no masks",
            gate_unmasked,
            "Your kernel reads and writes behind its tensors. Nobody complains, and somebody else's numbers are gone: mask both.",
            "chapter 05, section 1",
        ),
        Mistake(
            "the load is not masked",
            gate_unmasked_load,
            "Your results are right, but the last program reads behind the tensor. On a GPU that address may not exist: mask the load.",
            "chapter 05, section 1",
        ),
        Mistake(
            "the store is not masked",
            gate_unmasked_store,
            "Your results are right, and the last program writes behind the tensor as well, over what lies there. Mask the store.",
            "chapter 05, section 1",
        ),
        Mistake(
            "the sign of Mamba2",
            gate_of_mamba2,
            "You compute log σ(-k), Mamba2's gate. log σ(k) is -log(1 + e^(-k)).",
            "chapter 02, section 2",
        ),
        Mistake(
            "no temper",
            gate_untempered,
            "The temper is missing: divide the log-gate by it.",
            "chapter 02, section 1",
        ),
    ),
)


def after(g):
    """g [C], a block -> [C, C], a tile"""
    t = tl.arange(0, g.shape[0])
    return tl.where(t[:, None] > t[None, :], g[:, None], 0.0)


def after_inputs(draw: Draw) -> Iterator[Case]:
    yield Case("8 tokens", g=-draw.uniform(8, low=0.1))
    yield Case("2 tokens", g=-draw.uniform(2, low=0.1))
    yield Case("16 tokens, strong gates", g=-draw.uniform(16, low=0.1, high=50))
    yield Case("1 token", g=-draw.uniform(1, low=0.1))


def _store_tile(function: tl.constexpr, g_ptr, out_ptr, C: tl.constexpr):
    t = tl.arange(0, C)
    tile = function(tl.load(g_ptr + t))
    tl.store(out_ptr + t[:, None] * C + t[None, :], tile)


def run_after(answer: Callable, g: Tensor) -> Tensor:
    tile = g.new_full((len(g), len(g)), UNWRITTEN)
    return launched(_store_tile, 1, 2, jitted(answer), g, tile, len(g))[0]


def after_inclusive(g):
    t = tl.arange(0, g.shape[0])
    return tl.where(t[:, None] >= t[None, :], g[:, None], 0.0)


def after_transposed(g):
    t = tl.arange(0, g.shape[0])
    return tl.where(t[:, None] < t[None, :], g[None, :], 0.0)


def after_before(g):
    t = tl.arange(0, g.shape[0])
    return tl.where(t[:, None] < t[None, :], g[:, None], 0.0)


def after_of_the_column(g):
    t = tl.arange(0, g.shape[0])
    return tl.where(t[:, None] > t[None, :], g[None, :], 0.0)


def after_unmasked(g):
    t = tl.arange(0, g.shape[0])
    return tl.where(t[:, None] >= 0, g[:, None], 0.0) + tl.zeros_like(g)[None, :]


def after_summed(g):
    t = tl.arange(0, g.shape[0])
    return tl.cumsum(tl.where(t[:, None] > t[None, :], g[:, None], 0.0), 0)


AFTER = Task(
    number="05.2",
    title="The gates that are still to come",
    minutes=10,
    difficulty="medium",
    statement="""\
With one gate per head, the kernel's decay inside a chunk is `tl.exp(tl.cumsum(after(g), 0))`, below the diagonal. Column j of the tile
`after(g)` holds the log-gates that what token j wrote has still to pass:

$$\\texttt{after}(g)_{lj} = \\begin{cases} g_l & l > j \\\\ 0 & \\text{otherwise} \\end{cases}$$

Write the Triton function `after(g)`: `g` is a block of C numbers on the chip, already loaded, and the result is the tile, [C, C]. It is
called from a kernel, so use `tl` and no pointers. `g.shape[0]` is C, a power of two.""",
    hints=(
        "`t = tl.arange(0, g.shape[0])`; then `t[:, None]` is the row and `t[None, :]` the column.",
        "`tl.where(condition, x, y)` chooses for each entry. Which condition holds below the diagonal, without it?",
        "`tl.where(t[:, None] > t[None, :], g[:, None], 0.0)`.",
    ),
    reference=after,
    inputs=after_inputs,
    run=run_after,
    survivors={
        "t = tl.arange(0, g.shape[0]) → t = tl.arange(0, g.shape[-1])": "g has one axis, which is the first and the last",
    },
    needs=("triton",),
    picture=True,
    seconds=20.0,
    section="chapter 05, section 4",
    mistakes=(
        Mistake(
            "with its own gate",
            after_inclusive,
            "Your diagonal holds the token's own gate. It acted before the token wrote: l > j, without l = j.",
            "chapter 04, section 8",
        ),
        Mistake(
            "rows and columns swapped",
            after_transposed,
            "Your tile is transposed. Row l, column j: the gate is that of the row, and a column is summed downwards.",
            "chapter 04, section 8",
        ),
        Mistake(
            "the gates before",
            after_before,
            "Your column j holds the gates *before* token j. What it writes has to pass those after it.",
            "chapter 05, section 4",
        ),
        Mistake(
            "the column's gate",
            after_of_the_column,
            "Your mask is right, and the entry is g_j. In row l stands the gate of token l: `g[:, None]`.",
            "chapter 04, section 8",
        ),
        Mistake(
            "no mask",
            after_unmasked,
            "Every column of yours holds all the gates. Column j begins after token j; what is above is 0.",
            "chapter 04, section 8",
        ),
        Mistake(
            "summed already",
            after_summed,
            "You sum the columns. The kernel does that afterwards; `after` holds single log-gates.",
            "chapter 05, section 4",
        ),
    ),
)


def place(number, heads, blocks):
    """number of a program, H, blocks of columns -> (chunk, head, block)"""
    chunk_head = number // blocks
    return chunk_head // heads, chunk_head % heads, number % blocks


def place_inputs(draw: Draw) -> Iterator[Case]:
    heads, blocks = draw.integer(3, 8), draw.integer(9, 12)
    numbers = (
        (11, 2, 2),
        (1, 3, 2),
        (2, 3, 2),
        (17, 3, 4),
        (0, 4, 3),
        (5, 3, 1),
        (5, 1, 3),
        (7, 1, 1),
        (23, 3, 4),
        (heads * blocks * 7 + 3 * blocks - 1, heads, blocks),
    )
    for number, h, b in numbers:
        yield Case("", number=number, heads=h, blocks=b)


PLACE = Task(
    number="05.3",
    title="Who am I?",
    minutes=10,
    difficulty="easy",
    statement="""\
A grid has one axis, and the work has three: chunks, heads, and blocks of columns. Programs are numbered from 0 so that the block
changes fastest, then the head, then the chunk. (In the figure of section 3, programs 0 and 1 are the two blocks of chunk 0 and head 0.)

Write `place(number, heads, blocks)`, plain Python: which chunk, which head and which block of columns does program `number` own? Return
`(chunk, head, block)`, all three ints, counted from 0.""",
    hints=(
        "It is a number with mixed digits, as hours, minutes and seconds are.",
        "The last digit is `number % blocks`; take it off with `number // blocks`.",
        "Of what is left, the head is the remainder by `heads` and the chunk the quotient.",
    ),
    reference=place,
    inputs=place_inputs,
    returns=("chunk", "head", "block"),
    section="chapter 05, section 3",
    mistakes=(
        Mistake(
            "the head changes fastest",
            lambda number, heads, blocks: (number // (heads * blocks), number % heads, number // heads % blocks),
            "You let the head change fastest. It is the block, then the head: divide by `blocks` first.",
            "chapter 05, section 3",
        ),
        Mistake(
            "the chunk changes fastest",
            lambda number, heads, blocks: (number % blocks, number // blocks % heads, number // (heads * blocks)),
            "You return (block, head, chunk), or let the chunk change fastest. Its number is what is left after both divisions.",
            "chapter 05, section 3",
        ),
        Mistake(
            "the block is not taken off",
            lambda number, heads, blocks: (number // heads, number % heads, number % blocks),
            "You divide the program's number by `heads` at once. Take the block off first: `number // blocks`.",
            "chapter 05, section 3",
        ),
        Mistake(
            "quotient for remainder",
            lambda number, heads, blocks: (number // blocks // heads, number // blocks, number % blocks),
            "Your head counts on through all the chunks. Within a chunk it starts anew: take the remainder by `heads`.",
            "chapter 05, section 3",
        ),
        Mistake(
            "counted from 1",
            lambda number, heads, blocks: (
                number // blocks // heads + 1,
                number // blocks % heads + 1,
                number % blocks + 1,
            ),
            "Your counts begin with 1. Programs, chunks, heads and blocks count from 0.",
            "chapter 05, section 3",
        ),
    ),
)


def log_sum_exp(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    """Rows of N scores at x_ptr, one number for each row to out_ptr; one program a row"""
    row = tl.program_id(0)
    m = -float("inf")  # the largest score so far
    total = 0.0  # of exp(x - m) so far
    for start in range(0, N, BLOCK):
        s = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * N + s, mask=s < N, other=-float("inf"))
        larger = tl.maximum(m, tl.max(x))
        total = total * tl.exp(m - larger) + tl.sum(tl.exp(x - larger))
        m = larger
    tl.store(out_ptr + row, m + tl.log(total))


def sum_inputs(draw: Draw) -> Iterator[Case]:
    steps = 300.0 * torch.arange(1, 4).repeat_interleave(4)[:10]
    scores = {
        "two rows, the last block is shorter": (draw.normal(2, 10, scale=2), 4),
        "large scores, the largest last": (steps + draw.normal(1, 10), 4),
        "very negative scores, the largest first": (-steps + draw.normal(1, 10), 4),
        "one score": (draw.normal(1, 1), 2),
    }
    for name, (x, BLOCK) in scores.items():
        yield Case(name, x_ptr=x, out_ptr=torch.full((len(x),), UNWRITTEN), N=x.shape[1], BLOCK=BLOCK)


def run_sum(answer: Callable, x: Tensor, out: Tensor, N: int, BLOCK: int) -> tuple[Tensor, bool, bool]:
    return launched(answer, len(x), 1, x, out, N, BLOCK)


def sum_without_maximum(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    total = 0.0
    for start in range(0, N, BLOCK):
        s = start + tl.arange(0, BLOCK)
        total += tl.sum(tl.exp(tl.load(x_ptr + row * N + s, mask=s < N, other=-float("inf"))))
    tl.store(out_ptr + row, tl.log(total))


def sum_not_rescaled(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    m = -float("inf")
    total = 0.0
    for start in range(0, N, BLOCK):
        s = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * N + s, mask=s < N, other=-float("inf"))
        m = tl.maximum(m, tl.max(x))
        total = total + tl.sum(tl.exp(x - m))
    tl.store(out_ptr + row, m + tl.log(total))


def sum_of_padding(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    m = -float("inf")
    total = 0.0
    for start in range(0, N, BLOCK):
        s = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * N + s, mask=s < N, other=0.0)
        larger = tl.maximum(m, tl.max(x))
        total = total * tl.exp(m - larger) + tl.sum(tl.exp(x - larger))
        m = larger
    tl.store(out_ptr + row, m + tl.log(total))


def sum_of_the_first_row(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    m = -float("inf")
    total = 0.0
    for start in range(0, N, BLOCK):
        s = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + s, mask=s < N, other=-float("inf"))
        larger = tl.maximum(m, tl.max(x))
        total = total * tl.exp(m - larger) + tl.sum(tl.exp(x - larger))
        m = larger
    tl.store(out_ptr + row, m + tl.log(total))


def sum_of_the_last_block(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    m = 0.0
    total = 0.0
    for start in range(0, N, BLOCK):
        s = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * N + s, mask=s < N, other=-float("inf"))
        m = tl.max(x)
        total = tl.sum(tl.exp(x - m))
    tl.store(out_ptr + row, m + tl.log(total))


def sum_without_the_maximum_at_the_end(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    m = -float("inf")
    total = 0.0
    for start in range(0, N, BLOCK):
        s = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * N + s, mask=s < N, other=-float("inf"))
        larger = tl.maximum(m, tl.max(x))
        total = total * tl.exp(m - larger) + tl.sum(tl.exp(x - larger))
        m = larger
    tl.store(out_ptr + row, tl.log(total))


LOG_SUM_EXP = Task(
    number="05.4",
    title="A softmax that never sees its row",
    minutes=30,
    difficulty="hard",
    statement="""\
The window's kernel gets its keys block by block and never holds a whole row of scores. Its softmax is *online*: it keeps the largest score
so far, m, and the sum of $e^{x - m}$ so far. When m grows, the old sum shrinks by $e^{m_\\mathrm{old} - m}$.

Write a kernel that computes each row's $\\log \\sum_s e^{x_s}$ in this way: `log_sum_exp(x_ptr, out_ptr, N, BLOCK)`, BLOCK a
`tl.constexpr`. One program is started for each row. Rows of N float32 scores follow one another from `x_ptr`, and the result of row r goes
to `out_ptr + r`. Load BLOCK scores at a time. Scores may be as large as 1000, and N need not be a multiple of BLOCK.""",
    hints=(
        "Start with m = -inf and a sum of 0, and loop over `range(0, N, BLOCK)`.",
        "Scores that do not exist must not count: load them as -inf, `other=-float('inf')`. The new maximum is `tl.maximum(m, tl.max(x))`.",
        "`total = total * tl.exp(m - larger) + tl.sum(tl.exp(x - larger))`, then `m = larger`. In the end store `m + tl.log(total)`.",
    ),
    reference=log_sum_exp,
    inputs=sum_inputs,
    run=run_sum,
    survivors={
        "total = 0.0 → total = 1.0": "the first block multiplies it by exp(-inf - m), which is 0",
        "total = 0.0 → total = -1.0": "the same",
        "larger = tl.maximum(m, tl.max(x)) → larger = tl.maximum(tl.max(x), m)": "the larger of two, in either order",
    },
    returns=("what stands at out_ptr", *OUTSIDE),
    needs=("triton",),
    seconds=20.0,
    section="chapter 05, section 5",
    mistakes=(
        Mistake(
            "no maximum",
            sum_without_maximum,
            "You take exp of the scores themselves. It overflows from 88.7 on, and is 0 for all of a row of very negative ones.",
            "chapter 05, section 5",
        ),
        Mistake(
            "the old sum is not rescaled",
            sum_not_rescaled,
            "When the maximum grows, your old sum still refers to the old one. Multiply it by exp(m_old - m_new).",
            "chapter 05, section 5",
        ),
        Mistake(
            "padding counts",
            sum_of_padding,
            "Scores that do not exist are loaded as 0, and e^0 = 1 counts. Load them as -inf.",
            "chapter 05, section 1",
        ),
        Mistake(
            "every program reads the first row",
            sum_of_the_first_row,
            "All your programs read row 0. Row r begins at x_ptr + r * N.",
            "chapter 05, section 1",
        ),
        Mistake(
            "the last block alone",
            sum_of_the_last_block,
            "You start anew with each block, so the last one is all that counts. Maximum and sum are carried on.",
            "chapter 05, section 5",
        ),
        Mistake(
            "the maximum is left out in the end",
            sum_without_the_maximum_at_the_end,
            "Your sum is that of e^(x - m), and you store its logarithm. Add m again.",
            "chapter 05, section 5",
        ),
    ),
)


def least_seconds(flops, moved, peak, bandwidth):
    """FLOPs, bytes, FLOP/s, bytes/s -> seconds (float)"""
    return max(flops / peak, moved / bandwidth)


def roofline_inputs(draw: Draw) -> Iterator[Case]:
    share = float(draw.uniform(low=0.2, high=0.8))
    yield Case("", flops=49152.0, moved=2312.0, peak=156e12, bandwidth=2.0e12)
    yield Case("", flops=2.0e6, moved=1024.0, peak=312e12, bandwidth=2.0e12)
    yield Case("", flops=4.0e3, moved=4.0e3, peak=2e14, bandwidth=3e12)
    yield Case("", flops=share * 1e9, moved=1e6, peak=1e14, bandwidth=1e12)
    yield Case("", flops=1e9, moved=share * 1e6, peak=1e12, bandwidth=1e11)


LEAST_SECONDS = Task(
    number="05.5",
    title="The roofline, in seconds",
    minutes=5,
    difficulty="easy",
    statement="""\
A kernel does some FLOPs and moves some bytes, and a GPU does at most `peak` FLOP/s and moves at most `bandwidth` bytes/s, both at the same
time. Section 8 draws the rate that can be reached, $\\min(P, I \\cdot \\beta)$ with the intensity I in FLOP/byte.

Write `least_seconds(flops, moved, peak, bandwidth)`: the shortest time in which the kernel can be done, as a float. Left of the ridge
halving the FLOPs must not change it.""",
    hints=(
        "How long does the arithmetic take alone, and how long the memory?",
        "Both go on at the same time, so the slower one decides.",
        "`max(flops / peak, moved / bandwidth)`: FLOPs divided by the reachable rate is the same.",
    ),
    reference=least_seconds,
    inputs=roofline_inputs,
    survivors={
        "return max(flops / peak, moved / bandwidth) → return max(moved / bandwidth, flops / peak)": "max does not care for the order",
    },
    section="chapter 05, section 8",
    mistakes=(
        Mistake(
            "one after the other",
            lambda flops, moved, peak, bandwidth: flops / peak + moved / bandwidth,
            "You add the two times, as if the chip waited for its memory before it computes. A roofline lets them overlap.",
            "chapter 05, section 8",
        ),
        Mistake(
            "the faster one",
            lambda flops, moved, peak, bandwidth: min(flops / peak, moved / bandwidth),
            "You take the shorter of the two times. The kernel is done when the slower one is.",
            "chapter 05, section 8",
        ),
        Mistake(
            "arithmetic alone",
            lambda flops, moved, peak, bandwidth: flops / peak,
            "You count the arithmetic alone. Left of the ridge memory takes longer.",
            "chapter 05, section 8",
        ),
        Mistake(
            "memory alone",
            lambda flops, moved, peak, bandwidth: moved / bandwidth,
            "You count the memory alone. Right of the ridge arithmetic takes longer.",
            "chapter 05, section 8",
        ),
        Mistake(
            "the rate",
            lambda flops, moved, peak, bandwidth: min(peak, flops / moved * bandwidth),
            "That is the rate that can be reached, in FLOP/s. The time is the FLOPs divided by it.",
            "chapter 05, section 8",
        ),
    ),
)


TASKS = (GLA_GATE, AFTER, PLACE, LOG_SUM_EXP, LEAST_SECONDS)
