"""Tasks of chapter 02: gates from keys."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from liger_mini.teaching.exercises.task import Case, Draw, Mistake, Task


def log_gate(k, temper):
    """k [B, T, H, K]; temper in tokens -> [B, T, H, K]"""
    return F.logsigmoid(k) / temper


def log_gate_inputs(draw: Draw) -> Iterator[Case]:
    yield Case("temper 16", k=draw.normal(2, 5, 3, 4), temper=16)
    yield Case("temper 1", k=draw.normal(1, 1, 1, 6), temper=1)
    yield Case("keys that keep", k=4 + draw.uniform(1, 7, 2, 3), temper=0.5)
    yield Case("keys that forget", k=-30 + draw.uniform(1, 7, 2, 3), temper=64.0)


LOG_GATE = Task(
    number="02.1",
    title="GLA's gate",
    minutes=10,
    difficulty="easy",
    statement="""\
GLA has one gate per key channel, $\\alpha = \\sigma(k)^{1/\\tau}$, and carries its logarithm. Write `log_gate(k, temper)`: `k` is
[B, T, H, K], `temper` is τ in tokens, and the result is log α, [B, T, H, K].""",
    hints=(
        "The logarithm of a power: log(x^p) = p log x.",
        "torch has log σ in one function.",
        "`torch.nn.functional.logsigmoid`, divided by τ.",
    ),
    reference=log_gate,
    inputs=log_gate_inputs,
    section="chapter 02, section 1",
    mistakes=(
        Mistake(
            "no temper",
            lambda k, temper: F.logsigmoid(k),
            "You leave the temper out. Without it a neutral key forgets half with every token.",
            "chapter 02, section 1",
        ),
        Mistake(
            "multiplied by the temper",
            lambda k, temper: F.logsigmoid(k) * temper,
            "You multiply by the temper; a longer half-life needs a log-gate nearer to 0, so divide by it.",
            "chapter 02, section 1",
        ),
        Mistake(
            "the gate itself",
            lambda k, temper: k.sigmoid() ** (1 / temper),
            "You return α. What is carried is its logarithm, which is at most 0.",
            "chapter 02, section 1",
        ),
        Mistake(
            "the temper inside the sigmoid",
            lambda k, temper: F.logsigmoid(k / temper),
            "You divide the key by the temper, before the sigmoid. That flattens the gate; its half-life stays one token.",
            "chapter 02, section 1",
        ),
        Mistake(
            "the sign of Mamba2",
            lambda k, temper: F.logsigmoid(-k) / temper,
            "Your gate forgets where the key is large, as Mamba2's does. GLA's keeps there: σ(k), not σ(-k).",
            "chapter 02, section 2",
        ),
        Mistake(
            "the sign of the logarithm",
            lambda k, temper: -F.logsigmoid(k) / temper,
            "Your log-gate is positive: α would be larger than 1, and the state would explode.",
            "chapter 02, section 1",
        ),
        Mistake(
            "logarithm to base 2",
            lambda k, temper: F.logsigmoid(k) / math.log(2) / temper,
            "You took the logarithm to base 2. log is the natural one: a neutral key has log α = -ln 2 / τ.",
            "chapter 02, section 1",
        ),
        Mistake(
            "the gate divided by the temper",
            lambda k, temper: k.sigmoid() / temper,
            "You divide the gate itself by τ. α is a power, σ(k)^(1/τ): its logarithm is what is divided.",
            "chapter 02, section 1",
        ),
        Mistake(
            "pooled over the channels",
            lambda k, temper: F.logsigmoid(k.mean(-1, keepdim=True)).expand_as(k) / temper,
            "All channels of your key have one gate. GLA has one for each: no mean.",
            "chapter 02, section 2",
        ),
    ),
)


def half_life(log_gate):
    """log_gate < 0, any shape -> the same shape, in tokens"""
    return math.log(0.5) / log_gate


def half_life_inputs(draw: Draw) -> Iterator[Case]:
    yield Case("ordinary gates", log_gate=-draw.uniform(2, 5, 3, low=0.1, high=2))
    yield Case("weak gates", log_gate=-draw.uniform(4, 7, low=1e-4, high=1e-3))
    yield Case("strong gates", log_gate=-draw.uniform(11, low=20, high=50))
    yield Case("one number", log_gate=-draw.uniform(low=0.01, high=0.1))


HALF_LIFE = Task(
    number="02.2",
    title="The half-life of a gate",
    minutes=5,
    difficulty="easy",
    statement="""\
A constant gate α multiplies the state with every token. After how many tokens is half of it left? Write
`half_life(log_gate)`: `log_gate` is log α < 0, of any shape; the result has the same shape and is in tokens. It need not be whole.""",
    hints=(
        "After n tokens the share exp(n log α) is left.",
        "Set it to one half and solve for n.",
        "n = ln 0.5 / log α. Both are negative.",
    ),
    reference=half_life,
    inputs=half_life_inputs,
    section="chapter 02, section 1",
    mistakes=(
        Mistake(
            "the sign",
            lambda log_gate: math.log(2) / log_gate,
            "Your half-life is negative. ln 0.5 is -ln 2, and the log-gate is negative, too.",
            "chapter 02, section 1",
        ),
        Mistake(
            "a time constant",
            lambda log_gate: -1 / log_gate,
            "That is the time until 1/e is left. For one half, ln 2 is missing.",
            "chapter 02, section 1",
        ),
        Mistake(
            "the gate taken for its logarithm",
            lambda log_gate: math.log(0.5) / log_gate.abs().log(),
            "You took the logarithm of the log-gate. It is a logarithm already.",
            "chapter 02, section 1",
        ),
        Mistake(
            "upside down",
            lambda log_gate: log_gate / math.log(0.5),
            "That is half-lives per token. You want its inverse: tokens per half-life.",
            "chapter 02, section 1",
        ),
        Mistake(
            "rounded",
            lambda log_gate: (math.log(0.5) / log_gate).round(),
            "You rounded to whole tokens. A gate can forget half between two tokens.",
            "chapter 02, section 1",
        ),
        Mistake(
            "the gate at which half is left at once",
            lambda log_gate: math.log(0.5) / log_gate.exp(),
            "You divided by α. The number of tokens is multiplied with log α in the exponent, so divide by log α.",
            "chapter 02, section 1",
        ),
        Mistake(
            "rounded up",
            lambda log_gate: (math.log(0.5) / log_gate).ceil(),
            "You rounded up to the first token at which less than half is left. The half-life need not be whole.",
            "chapter 02, section 1",
        ),
        Mistake(
            "no logarithm of one half",
            lambda log_gate: 0.5 / log_gate.abs(),
            "You divide one half by log α. It is ln 0.5 that is divided: exp(n log α) has to be one half.",
            "chapter 02, section 1",
        ),
    ),
)


def share_left(log_gate):
    """log_gate [T, K] -> [T, K]"""
    return (log_gate.sum(0) - log_gate.cumsum(0)).exp()


def share_left_inputs(draw: Draw) -> Iterator[Case]:
    for T, K in ((6, 3), (1, 4), (17, 5)):
        yield Case("", log_gate=-draw.uniform(T, K, high=0.5, dtype=torch.float64))
    yield Case("some gates of exactly 1", log_gate=-F.relu(draw.normal(9, 4, scale=0.3, dtype=torch.float64)))


SHARE_LEFT = Task(
    number="02.3",
    title="What is left at the end",
    minutes=15,
    difficulty="medium",
    statement="""\
Each token writes once, and every later gate multiplies what it wrote. Write `share_left(log_gate)`: `log_gate` is [T, K], in
float64; in row t of the result stands the share of token t's write that is left after the last token, [T, K].

A token's own gate acts on the state *before* it writes.""",
    hints=(
        "The share left is the product of the gates of the tokens after t, so exp of a sum of log-gates.",
        "What is the share of the last token? No gate came after it.",
        "The sum over s > t is the sum of all minus the sum up to t: `sum` and `cumsum`.",
    ),
    reference=share_left,
    inputs=share_left_inputs,
    section="chapter 02, section 1",
    picture=True,
    mistakes=(
        Mistake(
            "its own gate counts",
            lambda log_gate: (log_gate.sum(0) - log_gate.cumsum(0) + log_gate).exp(),
            "Your token is decayed by its own gate. The gate acts on the old state, before the write.",
            "chapter 02, section 1",
        ),
        Mistake(
            "from the start",
            lambda log_gate: log_gate.cumsum(0).exp(),
            "You multiply the gates up to t. What token t wrote has only seen the gates after it.",
            "chapter 02, section 1",
        ),
        Mistake(
            "gates added",
            lambda log_gate: log_gate.exp().sum(0) - log_gate.exp().cumsum(0),
            "You add gates. Gates multiply, log-gates add: sum first, then exp.",
            "chapter 02, section 1",
        ),
        Mistake(
            "the logarithm",
            lambda log_gate: log_gate.sum(0) - log_gate.cumsum(0),
            "That is the logarithm of the share. The share itself is exp of it.",
            "chapter 02, section 1",
        ),
        Mistake(
            "over channels",
            lambda log_gate: (log_gate.sum(-1, keepdim=True) - log_gate.cumsum(-1)).exp(),
            "You sum over channels. Time is the first axis: dimension 0.",
            "chapter 02, section 1",
        ),
    ),
)


def safe_log_gate(k):
    """k [T, K], float32, of any size -> [T, K], finite"""
    return k.clamp(max=0) - (-k.abs()).exp().log1p()


def safe_inputs(draw: Draw) -> Iterator[Case]:
    yield Case("ordinary keys", k=draw.normal(5, 4))
    yield Case("large negative keys", k=-draw.uniform(5, 4, low=100, high=1000))
    yield Case("large positive keys", k=draw.uniform(3, 4, low=20, high=80))
    yield Case("very large keys", k=draw.uniform(3, 4, low=100, high=1000))
    yield Case("keys near 0", k=draw.normal(2, 2, scale=1e-3))


SAFE = Task(
    number="02.4",
    title="A gate that cannot overflow",
    minutes=20,
    difficulty="hard",
    statement="""\
`k.sigmoid().log()` is the textbook form of log σ(k). At k = -200 it gives -inf, because σ(k) is smaller than any float32. The true
value is -200.0. At k = 20 it gives 0, and the true value is $-2\\cdot10^{-9}$: a gate that forgets something became one that forgets
nothing.

Write `safe_log_gate(k)` with `exp`, `log`, `log1p`, `clamp`, `abs` and the like, without torch's own `logsigmoid` and `softplus` if
you can. It has to be right in float32 for keys from -1000 to 1000, and so does its gradient with respect to k.""",
    hints=(
        "log σ(k) = -log(1 + e^(-k)). Which of the two steps overflows, and which loses digits?",
        "Where k < 0, pull k out: log σ(k) = k - log(1 + e^k). Now the exponent is never positive on either side.",
        "Both together: min(k, 0) - log1p(e^(-|k|)).",
    ),
    reference=safe_log_gate,
    inputs=safe_inputs,
    gradients=("k",),
    section="chapter 02, section 2",
    mistakes=(
        Mistake(
            "the textbook form",
            lambda k: k.sigmoid().log(),
            "This is the textbook form: σ(k) becomes 0 in float32 for a very negative key, and its logarithm -inf.",
            "chapter 02, section 2",
        ),
        Mistake(
            "exp overflows",
            lambda k: -(-k).exp().log1p(),
            "Right for positive keys, but exp(-k) overflows for a very negative one. Never take exp of something large.",
            "chapter 02, section 2",
        ),
        Mistake(
            "clamped",
            lambda k: (-k).clamp(max=60).exp().log1p().neg(),
            "You clamp the exponent. Nothing overflows, but all keys below the clamp get one gate, and no gradient.",
            "chapter 02, section 2",
        ),
        Mistake(
            "an epsilon",
            lambda k: (k.sigmoid() + 1e-6).log(),
            "You add a small number before the logarithm. That keeps it finite and makes it wrong: log α stops at the logarithm of that "
            "number.",
            "chapter 02, section 2",
        ),
        Mistake(
            "log of 1 + x",
            lambda k: k.clamp(max=0) - (1 + (-k.abs()).exp()).log(),
            "Nothing overflows, but 1 + e^(-k) rounds to 1 for a large key, and the gate to exactly 1. `log1p` keeps the digits.",
            "chapter 02, section 2",
        ),
    ),
)


def temper_for(share, tokens):
    """share in (0, 1); tokens > 0 -> the temper (float)"""
    return tokens * math.log(0.5) / math.log(share)


def temper_inputs(draw: Draw) -> Iterator[Case]:
    yield Case("", share=0.5, tokens=64)
    yield Case("", share=0.06, tokens=64)
    yield Case("", share=float(draw.uniform(low=0.1, high=0.9)), tokens=draw.integer(5, 500))


TEMPER = Task(
    number="02.5",
    title="A temper for a purpose",
    minutes=10,
    difficulty="medium",
    statement="""\
A colleague wants that of what a token writes the share 0.25 is left after 128 neutral tokens (P = 0). Which temper does a sigmoid gate
need? Write `temper_for(share, tokens)` for any share and any number of tokens; the result is a float, in tokens.""",
    hints=(
        "After n neutral tokens 0.5^(n/τ) is left.",
        "How many half-lives make up the share? log2 of its inverse.",
        "τ = n ln 0.5 / ln share. For 0.25 after 128 tokens, two half-lives: 64.",
    ),
    reference=temper_for,
    inputs=temper_inputs,
    section="chapter 02, section 1",
    mistakes=(
        Mistake(
            "linear",
            lambda share, tokens: tokens * 0.5 / (1 - share),
            "You let the share fall in a straight line. It is halved again and again: 0.5^(n/τ).",
            "chapter 02, section 1",
        ),
        Mistake(
            "upside down",
            lambda share, tokens: tokens * math.log(share) / math.log(0.5),
            "A smaller share would need a longer temper with yours. Divide the tokens by the number of half-lives.",
            "chapter 02, section 1",
        ),
        Mistake(
            "a time constant",
            lambda share, tokens: -tokens / math.log(share),
            "That is the time after which 1/e is left. The temper is a half-life: a factor ln 2 is missing.",
            "chapter 02, section 1",
        ),
        Mistake(
            "the forgotten share",
            lambda share, tokens: tokens * math.log(0.5) / math.log(1 - share),
            "You took the share that is forgotten. The one that is left was given.",
            "chapter 02, section 1",
        ),
    ),
)

TASKS = (LOG_GATE, HALF_LIFE, SHARE_LEFT, SAFE, TEMPER)
