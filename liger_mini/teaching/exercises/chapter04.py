"""Tasks of chapter 04: the chunked form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from liger_mini.teaching.exercises.task import Case, Draw, Mistake, Task

EXPONENTIALS = {f"aten::{name}{in_place}" for name in ("exp", "exp2", "expm1") for in_place in ("", "_")}
POWERS = {"aten::pow.Scalar", "aten::pow.Tensor_Tensor", "aten::pow_.Tensor"}  # a number or a tensor to a tensor


class Exponents(TorchDispatchMode):
    """Notes the largest exponent that torch is asked for, also as a power of e and inside of `vmap`."""

    largest = -math.inf

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name() in EXPONENTIALS:
            self._note(args[0])
        result = function(*args, **(kwargs or {}))
        if function.name() in POWERS and result.is_floating_point():
            self._note(result.log())
        return result

    def _note(self, exponents: Tensor) -> None:
        if exponents.numel():
            self.largest = max(self.largest, exponents.max().item())


def watched(answer: Callable, *args: Any) -> tuple[Any, str]:
    """What the answer returns, and the sign of its largest exponent (0 and what rounding makes of it is not positive)."""
    with Exponents() as exponents:
        o = answer(*args)
    return o, "not positive" if exponents.largest < 0.01 else "positive"


def within_chunk(q, k, v, log_gate):
    """q, k [C, K]; v [C, V]; log_gate [C] -> [C, V]"""
    later = torch.ones(len(q), len(q)).tril(-1)  # 1 in row l and column j where l > j
    D = (later * log_gate[:, None]).cumsum(0).exp().tril()
    return (q @ k.T * D) @ v


def within_inputs(draw: Draw) -> Iterator[Case]:
    gates = {
        "weak gates": (8, 4, 3, -draw.uniform(8, high=0.5)),
        "one token": (1, 4, 2, -draw.uniform(1)),
        "gates of exactly 1": (5, 5, 5, torch.zeros(5)),
        "64 tokens, all gates e^-50": (64, 3, 3, torch.full((64,), -50.0)),
        "gates from e^-50 to 1": (33, 4, 6, -draw.uniform(33, high=50)),
        "64 tokens, some strong gates among weak ones": (
            64,
            8,
            5,
            -50 * (draw.uniform(64) < 0.2) - draw.uniform(64) / 20,
        ),
    }
    for name, (C, K, V, log_gate) in gates.items():
        yield Case(name, q=draw.normal(C, K), k=draw.normal(C, K), v=draw.normal(C, V), log_gate=log_gate)
    q, k, v = draw.normal(12, 3), draw.normal(12, 3), draw.normal(12, 4)
    log_gate = torch.tensor([0.0, -50.0]).repeat(6)
    q[::2], v[::2] = 0.0, 1e12 * v[::2]  # nobody reads these before the next gate has forgotten them
    yield Case("large values that a strong gate forgets", q=q, k=k, v=v, log_gate=log_gate)


def within_textbook(q, k, v, log_gate):
    b = log_gate.cumsum(0)[:, None]
    return ((q * b.exp()) @ (k * (-b).exp()).T).tril() @ v


def within_textbook_in_float64(q, k, v, log_gate):
    return within_textbook(*(x.double() for x in (q, k, v, log_gate)))


def within_anchored(q, k, v, log_gate):
    b = log_gate.cumsum(0)[:, None]
    b = b - b[len(b) // 2]
    return ((q * b.exp()) @ (k * (-b).exp()).T).tril() @ v


def within_clamped(q, k, v, log_gate):
    b = log_gate.cumsum(0)[:, None]
    return ((q * b.exp()) @ (k * (-b).clamp(max=80).exp()).T).tril() @ v


def within_weakened(q, k, v, log_gate):
    return within_chunk(q, k, v, log_gate.clamp(min=-2.5))


def within_own_gate(q, k, v, log_gate):
    b = log_gate.cumsum(0)
    return (q @ k.T * (b[:, None] - b + log_gate).clamp(max=0).exp()).tril() @ v


def within_gate_too_early(q, k, v, log_gate):
    b = log_gate.cumsum(0) - log_gate
    return (q @ k.T * (b[:, None] - b).clamp(max=0).exp()).tril() @ v


def within_without_mask(q, k, v, log_gate):
    b = log_gate.cumsum(0)
    return (q @ k.T * (b[:, None] - b).clamp(max=0).exp()) @ v


def within_masked_late(q, k, v, log_gate):
    b = log_gate.cumsum(0)
    return (q @ k.T * (b[:, None] - b).exp().tril()) @ v


def within_along_rows(q, k, v, log_gate):
    D = (torch.ones(len(q), len(q)).tril(-1) * log_gate[:, None]).cumsum(1).exp().tril()
    return (q @ k.T * D) @ v


def within_without_itself(q, k, v, log_gate):
    return within_chunk(q, k, v, log_gate) - (q * k).sum(-1, keepdim=True) * v


def within_one_gate(q, k, v, log_gate):
    return (q @ k.T * log_gate.exp()[:, None]).tril() @ v


WITHIN_CHUNK = Task(
    number="04.1",
    title="What a chunk reads of itself",
    minutes=20,
    difficulty="hard",
    statement="""\
A chunk of C tokens, one head, one gate per token. Token i reads what the tokens j ≤ i of the *same* chunk wrote:

$$o_i = \\sum_{j \\le i} D_{ij}\\, (q_i \\cdot k_j)\\, v_j, \\qquad D_{ij} = \\alpha_{j+1} \\cdots \\alpha_i = \\exp \\sum_{l=j+1}^{i} \\log\\alpha_l$$

Write `within_chunk(q, k, v, log_gate)`: `q` and `k` are [C, K], `v` is [C, V], `log_gate` is [C]; the result is [C, V].

C goes up to 64, and log-gates from 0 to -50, all in float32. So no exponent may be positive, not even one that a mask hides
afterwards: exp would overflow there, and its gradient with it.""",
    hints=(
        "It is (q kᵀ ⊙ D) v. D has ones on its diagonal and zeros above it.",
        "With b = cumsum(log_gate), D_ij = exp(b_i - b_j). Above the diagonal that is positive: mask *before* exp, as well as after.",
        "As in section 8: put log α_l into row l of each column j < l, zeros elsewhere, and sum down the columns. "
        "`(torch.ones(C, C).tril(-1) * log_gate[:, None]).cumsum(0).exp().tril()`.",
    ),
    reference=within_chunk,
    inputs=within_inputs,
    run=watched,
    returns=("the output", "the sign of your largest exponent"),
    seconds=15.0,  # two cases of 64 tokens, for those who write two loops
    tolerance=1e-3,  # running sums reach -3200, where float32 has steps of 2e-4: their differences are right, too
    section="chapter 04, sections 2 and 8",
    mistakes=(
        Mistake(
            "the textbook form",
            within_textbook,
            "You split exp(b_i - b_j) into exp(b_i) and exp(-b_j). The second has a positive exponent and overflows.",
            "chapter 04, section 6",
        ),
        Mistake(
            "the textbook form in float64",
            within_textbook_in_float64,
            "You moved the textbook form to float64, which reaches e^709. 64 gates of e^-50 make e^3200: it overflows there as well.",
            "chapter 04, section 6",
        ),
        Mistake(
            "anchored in the middle",
            within_anchored,
            "You count b from the middle of the chunk. That halves the exponents; it does not make them negative, and strong gates still "
            "overflow.",
            "chapter 04, section 6",
        ),
        Mistake(
            "clamped exponents",
            within_clamped,
            "You clamp the exponent of the textbook form. Nothing overflows, and the products are wrong wherever the clamp acts: exp(b_i) "
            "has become 0 there, and with it even what a token reads of itself.",
            "chapter 04, section 6",
        ),
        Mistake(
            "weakened gates",
            within_weakened,
            "You clamp the log-gates, so that no gate forgets more than 92 %. That is another model: a strong gate has to forget at once.",
            "chapter 04, section 6",
        ),
        Mistake(
            "its own gate counts",
            within_own_gate,
            "Your token j is decayed by its own gate as well. The product starts at j + 1: D has ones on its diagonal.",
            "chapter 04, section 2",
        ),
        Mistake(
            "one gate too early",
            within_gate_too_early,
            "Your product runs from j to i - 1. The gate of token i acts before i reads, so the sum ends with i and starts after j.",
            "chapter 04, section 2",
        ),
        Mistake(
            "the future is visible",
            within_without_mask,
            "Your tokens read later tokens of their chunk, undecayed. D is 0 for j > i.",
            "chapter 04, section 2",
        ),
        Mistake(
            "masked after exp only",
            within_masked_late,
            "Your output is right, but above the diagonal you take exp of a positive number before the mask hides it. It is infinite "
            "there, and the gradient NaN. Mask or clamp the exponent first.",
            "chapter 04, section 8",
        ),
        Mistake(
            "summed along rows",
            within_along_rows,
            "You sum along a row of the matrix. Column j holds the gates after j, so the running sum goes down: cumsum(0).",
            "chapter 04, section 8",
        ),
        Mistake(
            "does not read itself",
            within_without_itself,
            "Your token i does not read what it wrote itself. The sum goes over j ≤ i, and D has ones on its diagonal.",
            "chapter 04, section 2",
        ),
        Mistake(
            "no gates",
            lambda q, k, v, log_gate: (q @ k.T).tril() @ v,
            "Nothing decays in your chunk. Either D is missing, or its differences have the wrong sign and a clamp makes them all 0: it is b_i - b_j.",
            "chapter 04, section 2",
        ),
        Mistake(
            "scales by √K",
            lambda q, k, v, log_gate: within_chunk(q / q.shape[-1] ** 0.5, k, v, log_gate),
            "You divide the scores by √K. A recurrence reads q S as it is, and a chunk has to give what the recurrence gives.",
            "chapter 04, section 2",
        ),
        Mistake(
            "one gate each",
            within_one_gate,
            "Your weights carry one gate each, that of their row or their column. D_ij is the product of all gates from j + 1 to i.",
            "chapter 04, section 2",
        ),
    ),
)


def next_state(state, k, v, log_gate):
    """state [K, V]; k, log_gate [C, K]; v [C, V] -> [K, V]"""
    later = log_gate.flip(0).cumsum(0).flip(0) - log_gate  # the sum over the tokens after each
    return log_gate.sum(0).exp()[:, None] * state + (k * later.exp()).T @ v


def next_inputs(draw: Draw) -> Iterator[Case]:
    gates = {
        "weak gates": (8, 4, 3, -draw.uniform(8, 4, high=0.5)),
        "one token": (1, 3, 5, -draw.uniform(1, 3)),
        "gates of exactly 1": (6, 4, 4, torch.zeros(6, 4)),
        "64 tokens, all gates e^-50": (64, 3, 2, torch.full((64, 3), -50.0)),
        "gates from e^-50 to 1": (20, 5, 5, -draw.uniform(20, 5, high=50)),
        "channels that keep all beside channels that forget all": (
            64,
            4,
            3,
            -torch.tensor([0.0, 50.0, 0.02, 1.0]).repeat(64, 1),
        ),
        "some strong gates among weak ones": (40, 6, 3, -50 * (draw.uniform(40, 6) < 0.1) - draw.uniform(40, 6) / 20),
    }
    for name, (C, K, V, log_gate) in gates.items():
        yield Case(name, state=draw.normal(K, V, scale=2), k=draw.normal(C, K), v=draw.normal(C, V), log_gate=log_gate)
    k, v, state = draw.normal(3, 4), draw.normal(3, 4), draw.normal(4, 4, scale=1e12)
    log_gate = torch.tensor([[-50.0], [-0.1], [-0.3]]).expand(3, 4)
    yield Case("a large state that is forgotten", state=state, k=k, v=v, log_gate=log_gate.clone())
    log_gate = -draw.uniform(5, 3, high=0.5)
    yield Case("a state alone", state=draw.normal(3, 2), k=torch.zeros(5, 3), v=draw.normal(5, 2), log_gate=log_gate)


def next_textbook(state, k, v, log_gate):
    b = log_gate.cumsum(0)
    return b[-1].exp()[:, None] * (state + (k * (-b).exp()).T @ v)


def next_textbook_in_float64(state, k, v, log_gate):
    return next_textbook(*(x.double() for x in (state, k, v, log_gate)))


def next_own_gate(state, k, v, log_gate):
    b = log_gate.cumsum(0)
    return b[-1].exp()[:, None] * state + (k * (b[-1] - b + log_gate).exp()).T @ v


def next_since_start(state, k, v, log_gate):
    b = log_gate.cumsum(0)
    return b[-1].exp()[:, None] * state + (k * b.exp()).T @ v


def next_keys_undecayed(state, k, v, log_gate):
    return log_gate.sum(0).exp()[:, None] * state + k.T @ v


def next_state_undecayed(state, k, v, log_gate):
    b = log_gate.cumsum(0)
    return state + (k * (b[-1] - b).exp()).T @ v


def next_last_gate(state, k, v, log_gate):
    b = log_gate.cumsum(0)
    return log_gate[-1].exp()[:, None] * state + (k * (b[-1] - b).exp()).T @ v


def next_lost(state, k, v, log_gate):
    b = log_gate.cumsum(0)
    return (k * (b[-1] - b).exp()).T @ v


def next_on_values(state, k, v, log_gate):
    b = log_gate.cumsum(0)
    return b[-1].exp() * state + (k * (b[-1] - b).exp()).T @ v


def next_in_place(state, k, v, log_gate):
    b = log_gate.cumsum(0)
    state *= b[-1].exp()[:, None]
    state += (k * (b[-1] - b).exp()).T @ v
    return state


def next_whole_chunk(state, k, v, log_gate):
    return log_gate.sum(0).exp()[:, None] * (state + k.T @ v)


NEXT_STATE = Task(
    number="04.2",
    title="The state after a chunk",
    minutes=15,
    difficulty="medium",
    statement="""\
A chunk of C tokens, one head, one gate per key channel. What is the state after its last token?

$$S' = \\mathrm{diag}(\\alpha_1 \\cdots \\alpha_C)\\, S + \\sum_{j=1}^{C} (\\alpha_{j+1} \\cdots \\alpha_C \\odot k_j)^\\top v_j$$

Write `next_state(state, k, v, log_gate)`: `state` is S, [K, V]; `k` and `log_gate` are [C, K], `v` is [C, V]; the result is
[K, V]. Gates go from e^-50 to exactly 1, in float32, and C up to 64. Leave the state that you were given as it is.""",
    hints=(
        "Every channel decays on its own: sums of log-gates run over dimension 0, and channel c scales row c of the state.",
        "A key decays by the gates *after* its token, until the chunk's end. With b = cumsum(log_gate, 0) that is exp(b_C - b_j).",
        "`b[-1].exp()[:, None] * state + (k * (b[-1] - b).exp()).T @ v`.",
    ),
    reference=next_state,
    inputs=next_inputs,
    tolerance=1e-3,  # as in 04.1
    section="chapter 04, section 4",
    mistakes=(
        Mistake(
            "the textbook form",
            next_textbook,
            "You pull exp(b_C) out of both terms, which leaves exp(-b_j) at the keys. Its exponent is positive and overflows.",
            "chapter 04, section 6",
        ),
        Mistake(
            "the textbook form in float64",
            next_textbook_in_float64,
            "exp(-b_j) overflows in float64, too, only later: at e^709. A chunk of strong gates reaches e^3200.",
            "chapter 04, section 6",
        ),
        Mistake(
            "its own gate counts",
            next_own_gate,
            "Your keys are decayed by their own token's gate as well. That gate acts on the state before the write.",
            "chapter 04, section 4",
        ),
        Mistake(
            "decayed since the start",
            next_since_start,
            "Your keys are decayed from the chunk's start to their token. They have to be decayed from their token to the chunk's end.",
            "chapter 04, section 4",
        ),
        Mistake(
            "keys that do not decay",
            next_keys_undecayed,
            "You write the keys as they are. What the first token wrote has passed all the later gates by the end of the chunk.",
            "chapter 04, section 4",
        ),
        Mistake(
            "a state that does not decay",
            next_state_undecayed,
            "You carry the old state over undecayed. It passes every gate of the chunk.",
            "chapter 04, section 4",
        ),
        Mistake(
            "the last gate alone",
            next_last_gate,
            "The old state decays by the last token's gate only. It passes all C of them: exp of their sum.",
            "chapter 04, section 4",
        ),
        Mistake(
            "the state is lost",
            next_lost,
            "The state from before the chunk is lost, so all memory ends at a chunk's boundary. A text of one chunk would not show it.",
            "chapter 04, section 4",
        ),
        Mistake(
            "the gate on the value channels",
            next_on_values,
            "Your gates scale columns of the state. They belong to key channels, which are its rows: `[:, None]`.",
            "chapter 04, section 4",
        ),
        Mistake(
            "changes the state in place",
            next_in_place,
            "Your numbers are right, but `*=` and `+=` change the state that the chunk's queries still have to read.",
            "chapter 04, section 4",
        ),
        Mistake(
            "keys decayed by the whole chunk",
            next_whole_chunk,
            "You decay every key by all gates of the chunk. It passes only those after its own token: the last key none at all.",
            "chapter 04, section 4",
        ),
    ),
)


def breaking_strength(C, anchor):
    """C ≥ 2 tokens; anchor from 0 to C -> nats per token (float)"""
    return math.log(torch.finfo(torch.float32).max) / max(anchor - 1, C - anchor)


def breaking_inputs(draw: Draw) -> Iterator[Case]:
    C = draw.integer(5, 300)
    pairs = ((32, 0), (64, 0), (32, 16), (32, 32), (32, 31), (33, 17), (2, 1), (2, 2), (64, 48))
    for tokens, anchor in (*pairs, (C, draw.integer(0, C)), (C, C)):
        yield Case("", C=tokens, anchor=anchor)


def breaks_of(largest: float, longest: Callable) -> Callable:
    return lambda C, anchor: largest / longest(C, anchor)


NATS = math.log(torch.finfo(torch.float32).max)

BREAKING_STRENGTH = Task(
    number="04.3",
    title="Where the textbook form breaks",
    minutes=15,
    difficulty="medium",
    statement="""\
The textbook form multiplies every query by $e^{b_i - b_m}$ and every key by $e^{b_m - b_j}$, for all i and j from 1 to C, with
$b_i = \\log\\alpha_1 + \\dots + \\log\\alpha_i$. The anchor m is a token from 1 to C, or 0 for the start of the chunk ($b_0 = 0$).

Let every log-gate be -s. Write `breaking_strength(C, anchor)`: the strength s > 0, in nats per token, at which the largest of all
these exponents reaches the logarithm of the largest float32 (88.7). C ≥ 2; the result is a float.

A formula is wanted, not a search over strengths. Then ask it: section 6 measured two such numbers for C = 32. Which anchors last longest
there, and does any survive s = 50?""",
    hints=(
        "With equal gates $b_i = -i s$. Which key has the largest exponent, and which query?",
        "The last key: (C - m) s. The first query: (m - 1) s. Both factors have to stay finite.",
        "`88.72 / max(anchor - 1, C - anchor)`. For C = 32 that is largest at m = 16 and 17, with 5.5: no anchor survives 50.",
    ),
    reference=breaking_strength,
    inputs=breaking_inputs,
    survivors={
        "return math.log(torch.finfo(torch.float32).max) / max(anchor - 1, C - anchor) → "
        "return math.log(torch.finfo(torch.float32).max) / max(C - anchor, anchor - 1)": "max does not care for the order",
    },
    tolerance=1e-3,  # 88.7 will do
    section="chapter 04, section 6",
    mistakes=(
        Mistake(
            "the anchor is ignored",
            breaks_of(NATS, lambda C, anchor: C),
            "That is the strength for an anchor at the start. From token m on, the last key is only C - m tokens away.",
            "chapter 04, section 6",
        ),
        Mistake(
            "keys alone",
            breaks_of(NATS, lambda C, anchor: C - anchor),
            "You look at the keys after the anchor. Queries before it have positive exponents, too.",
            "chapter 04, section 6",
        ),
        Mistake(
            "keys alone, guarded",
            breaks_of(NATS, lambda C, anchor: max(C - anchor, 1)),
            "You look at the keys after the anchor alone, and guard against dividing by 0. The queries before it have positive exponents as well.",
            "chapter 04, section 6",
        ),
        Mistake(
            "queries alone",
            breaks_of(NATS, lambda C, anchor: max(anchor - 1, 1)),
            "You look at the queries before the anchor. Keys after it have positive exponents, too.",
            "chapter 04, section 6",
        ),
        Mistake(
            "one gate too many",
            breaks_of(NATS, lambda C, anchor: max(anchor, C - anchor)),
            "Close: you give the first query m gates. It has passed its own gate already, so m - 1 are left between it and the anchor.",
            "chapter 04, section 6",
        ),
        Mistake(
            "always the middle",
            breaks_of(2 * NATS, lambda C, anchor: C),
            "That is about right for an anchor in the middle, and for no other.",
            "chapter 04, section 6",
        ),
        Mistake(
            "of the product",
            breaks_of(NATS, lambda C, anchor: C - 1),
            "You look at the distance from the first token to the last, where both factors are multiplied. Each factor overflows on its own.",
            "chapter 04, section 6",
        ),
        Mistake(
            "the smaller side",
            breaks_of(NATS, lambda C, anchor: min(abs(anchor - 1), C - anchor)),
            "You took the side that breaks last. The form is broken as soon as one side is.",
            "chapter 04, section 6",
        ),
        Mistake(
            "decimal digits",
            breaks_of(math.log10(torch.finfo(torch.float32).max), lambda C, anchor: max(anchor - 1, C - anchor)),
            "You took the logarithm to base 10. The exponent belongs to e: ln 3.4e38 = 88.7.",
            "chapter 04, section 6",
        ),
    ),
)


def by_chunks(q, k, v, log_gate, state, C):
    """q, k, log_gate [T, K]; v [T, V]; state [K, V]; C tokens a chunk -> o [T, V], state [K, V]"""
    outputs = []
    for q_n, k_n, v_n, g_n in zip(*(x.split(C) for x in (q, k, v, log_gate))):
        b = g_n.cumsum(0)
        A = torch.einsum("ic,ijc,jc->ij", q_n, (b[:, None] - b).exp(), k_n).tril()
        outputs.append((q_n * b.exp()) @ state + A @ v_n)
        state = b[-1].exp()[:, None] * state + (k_n * (b[-1] - b).exp()).T @ v_n
    return torch.cat(outputs), state


def chunks_inputs(draw: Draw) -> Iterator[Case]:
    shapes = {
        "three chunks": (12, 4, 4, 3),
        "the last chunk is shorter": (11, 4, 3, 5),
        "one token in the last chunk": (9, 4, 4, 4),
        "one chunk": (6, 6, 5, 2),
        "a chunk longer than the text": (5, 16, 3, 3),
        "chunks of one token": (5, 1, 3, 3),
    }
    for name, (T, C, K, V) in shapes.items():
        q, k, v, state = draw.normal(T, K), draw.normal(T, K), draw.normal(T, V), draw.normal(K, V, scale=2)
        yield Case(name, q=q, k=k, v=v, log_gate=-draw.uniform(T, K, high=0.6), state=state, C=C)
    q, k, v, state = draw.normal(14, 3), draw.normal(14, 3), draw.normal(14, 3), draw.normal(3, 3)
    yield Case("gates of exactly 1", q=q, k=k, v=v, log_gate=torch.zeros(14, 3), state=state, C=4)


def _in_chunks(
    read: Callable = lambda q, b, state, new: (q * b.exp()) @ state,
    carry: Callable = lambda old, decayed, written: decayed + written,
    mask: Callable = torch.tril,
) -> Callable:
    """`by_chunks` with another way to read the state, to carry it on, or to mask."""

    def chunked(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor, C: int) -> tuple[Tensor, Tensor]:
        outputs = []
        for q_n, k_n, v_n, g_n in zip(*(x.split(C) for x in (q, k, v, log_gate))):
            b = g_n.cumsum(0)
            A = mask(torch.einsum("ic,ijc,jc->ij", q_n, (b[:, None] - b).exp(), k_n))
            new = carry(state, b[-1].exp()[:, None] * state, (k_n * (b[-1] - b).exp()).T @ v_n)
            outputs.append(read(q_n, b, state, new) + A @ v_n)
            state = new
        return torch.cat(outputs), state

    return chunked


def chunks_from_the_first_state(q, k, v, log_gate, state, C):
    parts = [by_chunks(*part, state, C) for part in zip(*(x.split(C) for x in (q, k, v, log_gate)))]
    return torch.cat([o for o, _ in parts]), parts[-1][1]


def chunks_from_zeros(q, k, v, log_gate, state, C):
    return by_chunks(q, k, v, log_gate, torch.zeros_like(state), C)


def chunks_reading_the_first_state(q, k, v, log_gate, state, C):
    o, _ = chunks_from_the_first_state(q, k, v, log_gate, state, C)
    return o, by_chunks(q, k, v, log_gate, state, C)[1]


def chunks_without_the_rest(q, k, v, log_gate, state, C):
    T = len(q) // C * C
    if T == 0:
        return v[:0], state
    return by_chunks(q[:T], k[:T], v[:T], log_gate[:T], state, C)


def chunks_running_sum(q, k, v, log_gate, state, C):
    outputs, all_b = [], log_gate.cumsum(0)
    for q_n, k_n, v_n, b in zip(*(x.split(C) for x in (q, k, v, all_b))):
        A = torch.einsum("ic,ijc,jc->ij", q_n, (b[:, None] - b).exp(), k_n).tril()
        outputs.append((q_n * b.exp()) @ state + A @ v_n)
        state = b[-1].exp()[:, None] * state + (k_n * (b[-1] - b).exp()).T @ v_n
    return torch.cat(outputs), state


BY_CHUNKS = Task(
    number="04.4",
    title="The whole text, chunk after chunk",
    minutes=20,
    difficulty="medium",
    statement="""\
Put the two parts together, for one head with one gate per channel. Cut T tokens into chunks of C. In each chunk

$$o_i = (q_i \\odot e^{b_i})\\, S + \\sum_{j \\le i} A_{ij}\\, v_j, \\qquad A_{ij} = \\sum_c q_{ic}\\, e^{b_{ic} - b_{jc}}\\, k_{jc}$$

where S is the state before the chunk, and b the running sum of the chunk's *own* log-gates. Then the state is carried on to the next
chunk, as in task 04.2.

Write `by_chunks(q, k, v, log_gate, state, C)`: `q`, `k` and `log_gate` are [T, K], `v` is [T, V], `state` is [K, V], the state before
the first token. Return `(o, state)`: the outputs [T, V] and the state after the last token. C need not divide T; here no
gate is stronger than e^-0.6, so overflow is not the topic.

The check sees numbers only, so a loop over tokens would pass; it is not the exercise. And if you lose the state between two chunks, everything
still runs. How many chunks must a test have to notice?""",
    hints=(
        "`x.split(C)` cuts along the first axis; the last piece may be shorter, which is right.",
        "Three lines a chunk: b, the output (state first, then the triangle), the next state. Read before you carry on.",
        "The triangle: `torch.einsum('ic,ijc,jc->ij', q_n, (b[:, None] - b).exp(), k_n).tril()`. The rest is in section 4.",
    ),
    reference=by_chunks,
    inputs=chunks_inputs,
    returns=("o", "state"),
    tolerance=1e-4,  # of running sums and their differences in float32
    section="chapter 04, section 4",
    mistakes=(
        Mistake(
            "the state is lost between chunks",
            _in_chunks(carry=lambda old, decayed, written: written),
            "Your state forgets everything at the end of each chunk: the old one, decayed by the whole chunk, is missing. A text of one "
            "chunk would not show it in the outputs.",
            "chapter 04, section 4",
        ),
        Mistake(
            "every chunk starts from the first state",
            chunks_from_the_first_state,
            "Every chunk of yours starts from the state you were given. The next one has to start from where the last one ended.",
            "chapter 04, section 4",
        ),
        Mistake(
            "the text starts from zeros",
            chunks_from_zeros,
            "You start from zeros, as section 4 does. Here the text starts from the `state` you were given.",
            "chapter 04, section 4",
        ),
        Mistake(
            "every chunk reads the first state",
            chunks_reading_the_first_state,
            "You carry the state on, and every chunk still reads the one from before the first token. Chunk n reads what chunk n - 1 left.",
            "chapter 04, section 4",
        ),
        Mistake(
            "the state is read undecayed",
            _in_chunks(read=lambda q, b, state, new: q @ state),
            "Your queries read the state as it was before the chunk. By token i it has passed the gates 1 to i: q ⊙ exp(b).",
            "chapter 04, section 4",
        ),
        Mistake(
            "the state is not read",
            _in_chunks(read=lambda q, b, state, new: 0.0),
            "Your outputs are the triangles alone. The rectangles, all that is older than the chunk, go through the state: they are missing.",
            "chapter 04, section 3",
        ),
        Mistake(
            "carried on before it is read",
            _in_chunks(read=lambda q, b, state, new: (q * b.exp()) @ new),
            "Your queries read the state *after* their chunk, and with it their own future. Compute the outputs first.",
            "chapter 04, section 4",
        ),
        Mistake(
            "the state does not decay",
            _in_chunks(carry=lambda old, decayed, written: old + written),
            "Your state passes a chunk undecayed. Multiply row c by the product of the chunk's gates of channel c.",
            "chapter 04, section 4",
        ),
        Mistake(
            "the rest is dropped",
            chunks_without_the_rest,
            "You drop the tokens after the last full chunk. A shorter chunk is a chunk.",
            "chapter 04, section 4",
        ),
        Mistake(
            "a running sum over the whole text",
            chunks_running_sum,
            "Your b runs on from chunk to chunk, so the state is decayed by old gates again. It starts anew in each chunk.",
            "chapter 04, section 4",
        ),
        Mistake(
            "a square in place of the triangle",
            _in_chunks(mask=lambda A: A),
            "Your tokens read the future of their chunk: keep only j ≤ i of A.",
            "chapter 04, section 3",
        ),
    ),
)


def triangle(q, k, log_gate):
    """q, k, log_gate [C, K] -> [C, C]"""
    later = torch.ones(len(q), len(q)).tril(-1)[..., None]  # 1 where row l comes after column j
    decay = (later * log_gate[:, None]).cumsum(0).exp()  # [C, C, K]
    return torch.einsum("ic,ijc,jc->ij", q, decay, k).tril()


def triangle_inputs(draw: Draw) -> Iterator[Case]:
    jump = -draw.uniform(24, 3, high=0.02)
    jump[3] = -10_000.0
    gates = {
        "one very strong gate": jump,
        "weak gates": -draw.uniform(8, 4, high=0.5),
        "one token": -draw.uniform(1, 3),
        "a strong channel beside weak ones": -torch.tensor([0.02, 3.0, 0.0]).repeat(40, 1),
        "strong gates here and there": -10_000.0 * (draw.uniform(32, 5) < 0.1) - draw.uniform(32, 5) / 50,
        "C = K": -draw.uniform(6, 6),
    }
    for name, log_gate in gates.items():
        yield Case(name, q=draw.normal(*log_gate.shape), k=draw.normal(*log_gate.shape), log_gate=log_gate)


def triangle_differences(q, k, log_gate):
    b = log_gate.cumsum(0)
    return torch.einsum("ic,ijc,jc->ij", q, (b[:, None] - b).clamp(max=0).exp(), k).tril()


def triangle_anchored(q, k, log_gate):
    b = log_gate.cumsum(0)
    b = b - b[len(b) // 2]
    return ((q * b.exp()) @ (k * (-b).exp()).T).tril()


def triangle_textbook(q, k, log_gate):
    b = log_gate.cumsum(0)
    return ((q * b.exp()) @ (k * (-b).exp()).T).tril()


def triangle_quotients(q, k, log_gate):
    decay = log_gate.exp().cumprod(0)
    return ((q * decay) @ (k / (decay + 1e-6)).T).tril()


def triangle_weakened(q, k, log_gate):
    return triangle(q, k, log_gate.clamp(min=-2.5))


def triangle_own_gate(q, k, log_gate):
    later = torch.ones(len(q), len(q)).tril()[..., None]
    return torch.einsum("ic,ijc,jc->ij", q, (later * log_gate[:, None]).cumsum(0).exp(), k).tril()


def triangle_square(q, k, log_gate):
    later = torch.ones(len(q), len(q)).tril(-1)[..., None]
    return torch.einsum("ic,ijc,jc->ij", q, (later * log_gate[:, None]).cumsum(0).exp(), k)


def triangle_mean_gate(q, k, log_gate):
    later = torch.ones(len(q), len(q)).tril(-1)
    return q @ k.T * (later * log_gate.mean(-1)[:, None]).cumsum(0).exp().tril()


TRIANGLE = Task(
    number="04.5",
    title="Neither overflow nor cancellation",
    minutes=30,
    difficulty="hard",
    statement="""\
The triangle of a chunk with one gate per channel, for j ≤ i (and 0 for j > i):

$$A_{ij} = \\sum_c q_{ic}\\, \\big(\\alpha_{j+1,c} \\cdots \\alpha_{i,c}\\big)\\, k_{jc}$$

Write `triangle(q, k, log_gate)`: all three are [C, K] in float32, the result is [C, C]. Log-gates go from 0 down to -10,000, and a
strong one stands among weak ones. So the textbook form overflows (section 6), and differences of running sums lose the weak gates'
digits (section 8). Five digits of the largest entry have to be right.

How you get there is free: halving, a sum for each column, products of gates. Stay in float32: twice the digits only move the limit.

The picture has a row for each i, from the top, and a column for each j. The strong gate is that of the fourth token (index 3): from the fourth row
down the first three columns are white, because nothing that was written earlier survives it.""",
    hints=(
        "A product of numbers in [0, 1] is always safe: α_{j+1} ⋯ α_i grows by one factor from row i - 1 to row i.",
        "Or sum the log-gates of each pair by themselves: a tensor [C, C, K] with log α_l in row l of each column j < l, and a running "
        "sum down its rows.",
        "`(torch.ones(C, C).tril(-1)[..., None] * log_gate[:, None]).cumsum(0).exp()` is [C, C, K]; then "
        "`torch.einsum('ic,ijc,jc->ij', q, decay, k).tril()`.",
    ),
    reference=triangle,
    inputs=triangle_inputs,
    tolerance=2e-5,
    section="chapter 04, section 7",
    picture=True,
    mistakes=(
        Mistake(
            "differences of running sums",
            triangle_differences,
            "Nothing that overflows is left after `tril`, and nothing warns: but near -10,000 a float32 has steps of 0.001, and the difference of two such sums has "
            "lost the weak gates' digits. Sum only the log-gates between j and i, also where you halve: between the boundary and the token.",
            "chapter 04, section 8",
        ),
        Mistake(
            "anchored in the middle",
            triangle_anchored,
            "You count b from the middle of the chunk. An anchor moves the overflow to another token and does not take it away.",
            "chapter 04, section 6",
        ),
        Mistake(
            "the textbook form",
            triangle_textbook,
            "This is the textbook form, exp(b_i) times exp(-b_j) or a product of gates divided by another: behind a strong gate the first "
            "factor is 0 and the second infinite.",
            "chapter 04, section 6",
        ),
        Mistake(
            "quotients with an epsilon",
            triangle_quotients,
            "You divide one product of gates by another, and add a small number so that nothing is divided by 0. Behind a strong gate that "
            "number is all there is. Multiply only the gates between j and i; never divide by a decay.",
            "chapter 04, section 7",
        ),
        Mistake(
            "weakened gates",
            triangle_weakened,
            "You clamp the log-gates, and 8 % of everything survives a gate that should forget it all.",
            "chapter 04, section 6",
        ),
        Mistake(
            "its own gate counts",
            triangle_own_gate,
            "Your pairs include the gate of token j. The product starts at j + 1, so that A_ii = q_i · k_i.",
            "chapter 04, section 2",
        ),
        Mistake(
            "a square",
            triangle_square,
            "Above the diagonal your A is not 0: tokens see the future of their chunk.",
            "chapter 04, section 3",
        ),
        Mistake(
            "one gate per token",
            triangle_mean_gate,
            "You average the gates of a token. Each channel decays at its own rate, inside the sum over c.",
            "chapter 04, section 2",
        ),
    ),
)

TASKS = (WITHIN_CHUNK, NEXT_STATE, BREAKING_STRENGTH, BY_CHUNKS, TRIANGLE)
