"""Tasks of chapter 01: attention becomes a recurrence."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from liger_mini.teaching.exercises.task import Case, Draw, Mistake, Task


def step(q, k, v, state):
    """q, k [B, H, K]; v [B, H, V]; state [B, H, K, V] -> o [B, H, V], state [B, H, K, V]"""
    state = state + k[..., :, None] * v[..., None, :]
    o = (q[..., :, None] * state).sum(-2)
    return o, state


def step_inputs(draw: Draw) -> Iterator[Case]:
    for name, (B, H, K, V) in {
        "several heads": (2, 3, 5, 4),
        "K = V": (2, 2, 4, 4),
        "one of everything": (1, 1, 1, 1),
        "wide": (1, 2, 33, 16),
    }.items():
        q, k, v = draw.normal(B, H, K), draw.normal(B, H, K), draw.normal(B, H, V)
        yield Case(name, q=q, k=k, v=v, state=draw.normal(B, H, K, V))
        yield Case(f"{name}, empty state", q=q, k=k, v=v, state=torch.zeros(B, H, K, V))


def step_reads_first(q, k, v, state):
    return torch.einsum("bhk,bhkv->bhv", q, state), state + k.unsqueeze(-1) * v.unsqueeze(-2)


def step_scaled(q, k, v, state):
    state = state + k.unsqueeze(-1) * v.unsqueeze(-2)
    return torch.einsum("bhk,bhkv->bhv", q, state) / q.shape[-1] ** 0.5, state


def step_overwrites(q, k, v, state):
    state = k.unsqueeze(-1) * v.unsqueeze(-2)
    return torch.einsum("bhk,bhkv->bhv", q, state), state


def step_old_state(q, k, v, state):
    new = state + k.unsqueeze(-1) * v.unsqueeze(-2)
    return torch.einsum("bhk,bhkv->bhv", q, new), state


def step_in_place(q, k, v, state):
    state += k.unsqueeze(-1) * v.unsqueeze(-2)
    return torch.einsum("bhk,bhkv->bhv", q, state), state


def step_swapped(q, k, v, state):
    o, state = step(q, k, v, state)
    return state, o


def step_query_writes(q, k, v, state):
    state = state + q.unsqueeze(-1) * v.unsqueeze(-2)
    return torch.einsum("bhk,bhkv->bhv", k, state), state


STEP = Task(
    number="01.1",
    title="One token of linear attention",
    minutes=10,
    difficulty="easy",
    statement="""\
Write one step of ungated linear attention: the token is written into the state, then the query reads the new state.

$$S_t = S_{t-1} + k_t^\\top v_t, \\qquad o_t = q_t S_t$$

`q` and `k` have the shape [B, H, K], `v` has [B, H, V], and `state` is $S_{t-1}$, [B, H, K, V]. They are features already:
no φ, no scaling and no denominator. Write `step(q, k, v, state)`, which returns
`(o, state)`: the output [B, H, V] and the new state. Do not change the state that you were given.""",
    hints=(
        "The outer product of a column and a row: `k[..., :, None]` has the shape [B, H, K, 1].",
        "`k[..., :, None] * v[..., None, :]` has the shape [B, H, K, V]. Add it to the state first.",
        "Reading is a sum over the K channels: `torch.einsum('bhk,bhkv->bhv', q, state)`.",
    ),
    reference=step,
    inputs=step_inputs,
    returns=("o", "state"),
    section="chapter 01, section 4",
    mistakes=(
        Mistake(
            "reads before it writes",
            step_reads_first,
            "Your query reads the state before the token is written, so no token sees itself. The new state comes first, then "
            "o = q S.",
            "chapter 01, section 4",
        ),
        Mistake(
            "scales by √K",
            step_scaled,
            "Your output is divided by √K. That factor belongs to softmax attention and went with its exponential.",
            "chapter 01, section 2",
        ),
        Mistake(
            "forgets the old state",
            step_overwrites,
            "Your new state is this token's outer product alone. It has to be added to the state before.",
            "chapter 01, section 4",
        ),
        Mistake(
            "returns the old state",
            step_old_state,
            "Your output is right, but you return the state you were given. The next token needs the new one.",
            "chapter 01, section 4",
        ),
        Mistake(
            "changes the state in place",
            step_in_place,
            "Your numbers are right, but `state +=` changes the caller's tensor. Write `state = state + …`.",
            "chapter 01, section 4",
        ),
        Mistake(
            "returns state and output in the wrong order",
            step_swapped,
            "You return (state, o); the task wants (o, state).",
            "chapter 01, section 4",
        ),
        Mistake(
            "query and key swapped",
            step_query_writes,
            "You write with the query and read with the key. The key says where a value is stored, the query where to look.",
            "chapter 01, section 6",
        ),
    ),
)


def weights(q, k):
    """q, k [T, K] -> [T, T]"""
    return (q @ k.T).tril()


def weights_inputs(draw: Draw) -> Iterator[Case]:
    for T, K in ((6, 4), (1, 3), (9, 9), (33, 8)):
        yield Case("", q=draw.normal(T, K), k=draw.normal(T, K))


WEIGHTS = Task(
    number="01.2",
    title="The weights, as a picture",
    minutes=5,
    difficulty="easy",
    statement="""\
Linear attention has a T x T matrix of weights, although it never stores it:

$$A_{ts} = \\begin{cases} q_t \\cdot k_s & s \\le t \\\\ 0 & s > t \\end{cases}$$

Write `weights(q, k)` for one head: `q` and `k` are [T, K], the result is [T, T]. Row t belongs to the query of token t.""",
    hints=(
        "Without the mask it is one matrix product.",
        "`q @ k.T` has the query in its row.",
        "`tril` keeps the diagonal and what is below.",
    ),
    reference=weights,
    inputs=weights_inputs,
    section="chapter 01, section 2",
    picture=True,
    mistakes=(
        Mistake(
            "no mask",
            lambda q, k: q @ k.T,
            "Your tokens see the future: where s > t the weight has to be 0.",
            "chapter 01, section 1",
        ),
        Mistake(
            "rows and columns swapped",
            lambda q, k: (k @ q.T).tril(),
            "Your rows belong to keys. Row t is the query of token t: q kᵀ, not k qᵀ.",
            "chapter 01, section 1",
        ),
        Mistake(
            "upper triangle",
            lambda q, k: (q @ k.T).triu(),
            "You kept the future and hid the past: `triu` keeps s ≥ t. The past is below the diagonal.",
            "chapter 01, section 1",
        ),
        Mistake(
            "without the diagonal",
            lambda q, k: (q @ k.T).tril(-1),
            "Your tokens do not see themselves. s ≤ t includes s = t, the diagonal.",
            "chapter 01, section 2",
        ),
        Mistake(
            "masked with -inf",
            lambda q, k: (q @ k.T).masked_fill(torch.ones(len(q), len(q), dtype=torch.bool).triu(1), -torch.inf),
            "You masked with -inf, which is for scores before a softmax. Here is no softmax: a hidden weight is 0.",
            "chapter 01, section 2",
        ),
        Mistake(
            "a softmax",
            lambda q, k: (
                (q @ k.T / q.shape[-1] ** 0.5)
                .masked_fill(torch.ones(len(q), len(q), dtype=torch.bool).triu(1), -torch.inf)
                .softmax(-1)
            ),
            "These are softmax attention's weights. In linear attention the product q·k itself is the weight.",
            "chapter 01, section 2",
        ),
    ),
)


def resume(q, k, v, state):
    """q, k [T, K]; v [T, V]; state [K, V] -> o [T, V], state [K, V]"""
    o = q @ state + (q @ k.T).tril() @ v
    return o, state + k.T @ v


def resume_inputs(draw: Draw) -> Iterator[Case]:
    for T, K, V in ((7, 4, 3), (1, 5, 5), (16, 8, 8), (50, 3, 6)):
        q, k, v = draw.normal(T, K), draw.normal(T, K), draw.normal(T, V)
        yield Case("", q=q, k=k, v=v, state=draw.normal(K, V))


RESUME = Task(
    number="01.3",
    title="Stop, and go on",
    minutes=15,
    difficulty="medium",
    statement="""\
A text comes in two parts. The state after the first part is all that is left of it. Write `resume(q, k, v, state)` for the second
part, one head, without a gate: `q`, `k` are [T, K], `v` is [T, V], `state` is [K, V]. Return the T outputs [T, V] and the state
after the last token.

$$o_t = q_t \\Big(S + \\sum_{s \\le t} k_s^\\top v_s\\Big)$$

A loop over tokens is right. Can you do without one?""",
    hints=(
        "Take the brackets apart: what a query reads of the first part, and what it reads of the second.",
        "The first is `q @ state`. The second has the T x T weights of task 01.2.",
        "The state grows by all outer products at once: `k.T @ v`.",
    ),
    reference=resume,
    inputs=resume_inputs,
    returns=("o", "state"),
    section="chapter 01, section 4",
    mistakes=(
        Mistake(
            "the first part is not read",
            lambda q, k, v, state: ((q @ k.T).tril() @ v, state + k.T @ v),
            "Your outputs know nothing of the first part: q S is missing.",
            "chapter 01, section 4",
        ),
        Mistake(
            "the state starts anew",
            lambda q, k, v, state: (q @ state + (q @ k.T).tril() @ v, k.T @ v),
            "The state you return holds the second part only. A third part would find nothing of the first.",
            "chapter 01, section 4",
        ),
        Mistake(
            "the state stays",
            lambda q, k, v, state: (q @ state + (q @ k.T).tril() @ v, state),
            "You return the state of the first part. The second part has to be added to it.",
            "chapter 01, section 4",
        ),
        Mistake(
            "every token reads the last state",
            lambda q, k, v, state: (q @ (state + k.T @ v), state + k.T @ v),
            "All your queries read the state after the last token, and with it their own future. Token t reads what came up to t.",
            "chapter 01, section 3",
        ),
        Mistake(
            "tokens do not see themselves",
            lambda q, k, v, state: (q @ state + (q @ k.T).tril(-1) @ v, state + k.T @ v),
            "Your token t reads tokens before t only. It is written before it is read, so s = t counts.",
            "chapter 01, section 4",
        ),
    ),
)


def average(q, k, v):
    """q, k [T, K], positive; v [T, V] -> [T, V]"""
    A = (q @ k.T).tril()
    return (A @ v) / A.sum(-1, keepdim=True)


def average_inputs(draw: Draw) -> Iterator[Case]:
    for T, K, V in ((7, 4, 3), (1, 4, 2), (20, 8, 8), (64, 6, 5)):
        q, k = draw.normal(T, K).softmax(-1), draw.normal(T, K).softmax(-1)
        yield Case("", q=q, k=k, v=draw.normal(T, V))
    yield Case("large features", q=10 + draw.uniform(9, 4), k=10 + draw.uniform(9, 4), v=draw.normal(9, 3))


AVERAGE = Task(
    number="01.4",
    title="The denominator",
    minutes=10,
    difficulty="medium",
    statement="""\
Softmax attention returns an average of the values. Linear attention does so too if each output is divided by the sum of its
weights:

$$o_t = \\frac{\\sum_{s \\le t} (q_t \\cdot k_s)\\, v_s}{\\sum_{s \\le t} q_t \\cdot k_s}$$

Write `average(q, k, v)` for one head: `q`, `k` are [T, K] and positive (they are features), `v` is [T, V], the result [T, V].""",
    hints=(
        "The numerator is task 01.2 times v.",
        "The denominator is one number for each query: the sum of its row of weights. Keep its axis: `keepdim=True`.",
        "As a recurrence: append a column of ones to v and divide by what it returns.",
    ),
    reference=average,
    inputs=average_inputs,
    section="chapter 01, section 9",
    mistakes=(
        Mistake(
            "no denominator",
            lambda q, k, v: (q @ k.T).tril() @ v,
            "The denominator is missing: your weights do not add up to 1.",
            "chapter 01, section 9",
        ),
        Mistake(
            "divided by the number of tokens",
            lambda q, k, v: (q @ k.T).tril() @ v / torch.arange(1, len(q) + 1)[:, None],
            "You divide by the number of tokens so far. The weights differ: divide by their sum.",
            "chapter 01, section 9",
        ),
        Mistake(
            "the denominator sees the future",
            lambda q, k, v: (q @ k.T).tril() @ v / (q @ k.T).sum(-1, keepdim=True),
            "Your denominator sums over all tokens, the future included. Mask first, then sum.",
            "chapter 01, section 9",
        ),
        Mistake(
            "columns are summed",
            lambda q, k, v: ((q @ k.T).tril() / (q @ k.T).tril().sum(0, keepdim=True)) @ v,
            "You sum over the queries of a key (a column). Each query divides by the sum of its own row.",
            "chapter 01, section 9",
        ),
        Mistake(
            "a softmax of the weights",
            lambda q, k, v: (
                (q @ k.T).masked_fill(torch.ones(len(q), len(q), dtype=torch.bool).triu(1), -torch.inf).softmax(-1) @ v
            ),
            "You took a softmax over the weights. The features are positive already: divide by the plain sum.",
            "chapter 01, section 9",
        ),
    ),
)


def break_even(K, V):
    """K, V: widths of a key and of a value -> a number of tokens (int)"""
    return K * V // (K + V) + 1


def break_even_inputs(draw: Draw) -> Iterator[Case]:
    for K, V in ((64, 64), (128, 128), (1, 1), (5, 7), (draw.integer(8, 200), draw.integer(8, 200))):
        yield Case("", K=K, V=V)


BREAK_EVEN = Task(
    number="01.5",
    title="When is a state smaller?",
    minutes=5,
    difficulty="easy",
    statement="""\
Softmax attention keeps the key and the value of each token. The recurrence keeps one K x V matrix. Write
`break_even(K, V)`: the smallest number of tokens, as an int, at which the recurrence keeps *fewer* numbers per head.""",
    hints=(
        "After T tokens, softmax attention keeps T (K + V) numbers.",
        "Fewer, not as many: where both are equal, one more token is needed.",
        "`//` divides and rounds down.",
    ),
    reference=break_even,
    inputs=break_even_inputs,
    section="chapter 01, section 5",
    mistakes=(
        Mistake(
            "as many is not fewer",
            lambda K, V: K * V // (K + V),
            "One token too few: at that length the cache is not larger than the state yet.",
            "chapter 01, section 5",
        ),
        Mistake(
            "only keys are counted",
            lambda K, V: V + 1,
            "You counted the keys alone. Softmax attention keeps the values as well, K + V numbers a token.",
            "chapter 01, section 5",
        ),
        Mistake(
            "not a whole number",
            lambda K, V: K * V / (K + V),
            "K V / (K + V) is where the two are equal, seldom a whole number of tokens. Give the first whole number above it.",
            "chapter 01, section 5",
        ),
        Mistake(
            "rounded up",
            lambda K, V: -(-K * V // (K + V)),
            "You round up. That is right unless K V / (K + V) is whole: then both keep the same, and one more token is needed.",
            "chapter 01, section 5",
        ),
    ),
)

TASKS = (STEP, WEIGHTS, RESUME, AVERAGE, BREAK_EVEN)
