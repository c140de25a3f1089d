"""Tasks of chapter 03: the family of gated recurrences."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from liger_mini.teaching.exercises.task import Case, Draw, Mistake, Task


def gated_step(q, k, v, log_gate, state):
    """q, k, log_gate [B, H, K]; v [B, H, V]; state [B, H, K, V] -> o [B, H, V], state [B, H, K, V]"""
    state = log_gate.exp()[..., :, None] * state + k[..., :, None] * v[..., None, :]
    o = (q[..., :, None] * state).sum(-2)
    return o, state


def gated_inputs(draw: Draw) -> Iterator[Case]:
    gates = {"ordinary gates": (0.0, 2.0), "weak gates": (0.0, 1e-3), "strong gates": (3.0, 50.0)}
    for (name, (low, high)), (B, H, K, V) in zip(gates.items(), ((2, 3, 5, 4), (1, 1, 1, 1), (2, 2, 4, 4))):
        q, k, v = draw.normal(B, H, K), draw.normal(B, H, K), draw.normal(B, H, V)
        gate = -draw.uniform(B, H, K, low=low, high=high)
        yield Case(name, q=q, k=k, v=v, log_gate=gate, state=draw.normal(B, H, K, V))
    q, k, v = draw.normal(1, 2, 8), draw.normal(1, 2, 8), draw.normal(1, 2, 3)
    gate = -draw.uniform(1, 2, 8)
    yield Case("the state outweighs the token", q=q, k=k, v=v, log_gate=gate, state=draw.normal(1, 2, 8, 3, scale=10))
    yield Case("gates of exactly 1", q=q, k=k, v=v, log_gate=torch.zeros(1, 2, 8), state=draw.normal(1, 2, 8, 3))


def gate_after_write(q, k, v, log_gate, state):
    state = log_gate.exp().unsqueeze(-1) * (state + k.unsqueeze(-1) * v.unsqueeze(-2))
    return torch.einsum("bhk,bhkv->bhv", q, state), state


def gated_reads_first(q, k, v, log_gate, state):
    o = torch.einsum("bhk,bhkv->bhv", q, state)
    return o, gated_step(q, k, v, log_gate, state)[1]


def reads_decayed(q, k, v, log_gate, state):
    decayed = log_gate.exp().unsqueeze(-1) * state
    return torch.einsum("bhk,bhkv->bhv", q, decayed), decayed + k.unsqueeze(-1) * v.unsqueeze(-2)


def gate_as_it_is(q, k, v, log_gate, state):
    state = log_gate.unsqueeze(-1) * state + k.unsqueeze(-1) * v.unsqueeze(-2)
    return torch.einsum("bhk,bhkv->bhv", q, state), state


def ties_the_write(q, k, v, log_gate, state):
    alpha = log_gate.exp().unsqueeze(-1)
    state = alpha * state + (1 - alpha) * k.unsqueeze(-1) * v.unsqueeze(-2)
    return torch.einsum("bhk,bhkv->bhv", q, state), state


def gate_on_values(q, k, v, log_gate, state):
    state = log_gate.exp().unsqueeze(-2) * state + k.unsqueeze(-1) * v.unsqueeze(-2)
    return torch.einsum("bhk,bhkv->bhv", q, state), state


def changes_state(q, k, v, log_gate, state):
    state *= log_gate.exp().unsqueeze(-1)
    state += k.unsqueeze(-1) * v.unsqueeze(-2)
    return torch.einsum("bhk,bhkv->bhv", q, state), state


def one_gate_per_head(q, k, v, log_gate, state):
    return gated_step(q, k, v, log_gate.mean(-1, keepdim=True).expand_as(log_gate), state)


def gated_scaled(q, k, v, log_gate, state):
    o, state = gated_step(q, k, v, log_gate, state)
    return o / q.shape[-1] ** 0.5, state


GATED_STEP = Task(
    number="03.1",
    title="One token of the diagonal recurrence",
    minutes=15,
    difficulty="medium",
    statement="""\
Write one step of the recurrence behind GLA, HGRN2, RWKV6 and LightNet, with one gate per key channel:

$$S_t = \\mathrm{diag}(\\alpha_t)\\,S_{t-1} + k_t^\\top v_t, \\qquad o_t = q_t S_t, \\qquad \\alpha_t = e^{\\texttt{log\\_gate}_t}$$

`q`, `k` and `log_gate` are [B, H, K], `v` is [B, H, V], `state` is [B, H, K, V]. Write `gated_step(q, k, v, log_gate, state)`.
Return `(o, state)`, and leave the state that you were given as it is.""",
    hints=(
        "diag(α) S multiplies row c of the K x V state by α_c.",
        "`log_gate.exp()[..., :, None]` has the shape [B, H, K, 1] and multiplies the old state only.",
        "Decay, then write, then read: `state = alpha * state + k[..., :, None] * v[..., None, :]`.",
    ),
    reference=gated_step,
    inputs=gated_inputs,
    returns=("o", "state"),
    section="chapter 03, section 3",
    mistakes=(
        Mistake(
            "the gate after the write",
            gate_after_write,
            "Your gate is applied after the write, so the new token is decayed at once. The definition decays the old state first.",
            "chapter 03, section 3",
        ),
        Mistake(
            "reads before it writes",
            gated_reads_first,
            "Your query reads the state of the token before. It reads S_t, after decay and write.",
            "chapter 03, section 3",
        ),
        Mistake(
            "reads between decay and write",
            reads_decayed,
            "Your query reads the decayed state without this token. Write first, then read.",
            "chapter 03, section 3",
        ),
        Mistake(
            "log-gate taken for the gate",
            gate_as_it_is,
            "You multiply the state by log α. The factor is α, so exp is missing.",
            "chapter 03, section 8",
        ),
        Mistake(
            "a tied write",
            ties_the_write,
            "You write with the share 1 - α, as HGRN2 does. In the plain recurrence a token writes in full.",
            "chapter 03, section 3",
        ),
        Mistake(
            "the gate on the value channels",
            gate_on_values,
            "Your gate runs along the value axis. There is one gate per key channel, and it scales a row of the K x V state.",
            "chapter 03, section 3",
        ),
        Mistake(
            "changes the state in place",
            changes_state,
            "Your numbers are right, but `*=` and `+=` change the caller's state. Make a new tensor.",
            "chapter 03, section 3",
        ),
        Mistake(
            "one gate per head",
            one_gate_per_head,
            "You average the gates of a head. Here each channel keeps its own.",
            "chapter 03, section 3",
        ),
        Mistake(
            "scales by √K",
            gated_scaled,
            "Your state is right, but the output is divided by √K. No structure of the family has that factor: o = q S.",
            "chapter 03, section 3",
        ),
        Mistake(
            "no gate",
            lambda q, k, v, log_gate, state: gated_step(q, k, v, torch.zeros_like(log_gate), state),
            "Your state does not decay at all. That is chapter 01's recurrence; here the old state is multiplied by α.",
            "chapter 03, section 3",
        ),
        Mistake(
            "forgets the old state",
            lambda q, k, v, log_gate, state: gated_step(q, k, v, log_gate, torch.zeros_like(state)),
            "Your new state is this token alone. The old one decays and is added.",
            "chapter 03, section 3",
        ),
        Mistake(
            "returns the old state",
            lambda q, k, v, log_gate, state: (gated_step(q, k, v, log_gate, state)[0], state),
            "Your output is right, but the state you return is the one you were given. The next token has to find this one in it.",
            "chapter 03, section 3",
        ),
        Mistake(
            "returns state and output in the wrong order",
            lambda q, k, v, log_gate, state: gated_step(q, k, v, log_gate, state)[::-1],
            "You return (state, o). Wanted is (o, state), as in every step of the course.",
            "chapter 03, section 3",
        ),
    ),
)


def scalar_log_gate(k, temper):
    """k [B, T, H, K]; temper in tokens -> [B, T, H]"""
    return F.logsigmoid(k.mean(-1)) / temper


def scalar_inputs(draw: Draw) -> Iterator[Case]:
    yield Case("temper 1", k=draw.normal(2, 5, 3, 4, scale=2), temper=1)
    yield Case("temper 16", k=draw.normal(1, 7, 2, 9, scale=3), temper=16.0)
    yield Case("one channel", k=draw.normal(2, 3, 4, 1), temper=2)
    yield Case("keys that forget", k=-20 + draw.normal(1, 4, 4, 4), temper=8)
    yield Case("as many tokens as heads and channels", k=draw.normal(3, 3, 3, 3, scale=2), temper=4)


SCALAR_LOG_GATE = Task(
    number="03.2",
    title="Gated Retention's gate",
    minutes=10,
    difficulty="easy",
    statement="""\
Gated Retention has one gate per head, $\\alpha_t = \\sigma(P_t)^{1/\\tau}$, where P is the mean of the key's channels. Write
`scalar_log_gate(k, temper)`: `k` is [B, T, H, K], the result is log α, [B, T, H].""",
    hints=(
        "Pooling to one number is a mean over the last axis.",
        "First the mean, then the sigmoid: they do not commute.",
        "`F.logsigmoid(k.mean(-1)) / temper`.",
    ),
    reference=scalar_log_gate,
    inputs=scalar_inputs,
    section="chapter 03, section 2",
    mistakes=(
        Mistake(
            "the mean of log-gates",
            lambda k, temper: F.logsigmoid(k).mean(-1) / temper,
            "You average the log-gates of the channels. P is the mean of the key, and the sigmoid comes after it.",
            "chapter 02, section 3",
        ),
        Mistake(
            "the mean of gates",
            lambda k, temper: k.sigmoid().mean(-1).log() / temper,
            "You average the gates of the channels. Average the key first, then take one sigmoid.",
            "chapter 02, section 3",
        ),
        Mistake(
            "the sum",
            lambda k, temper: F.logsigmoid(k.sum(-1)) / temper,
            "You sum the channels. P is their mean, which does not grow with the width of a head.",
            "chapter 02, section 3",
        ),
        Mistake(
            "an axis too many",
            lambda k, temper: F.logsigmoid(k.mean(-1, keepdim=True)) / temper,
            "Your result keeps an axis of length 1. One gate per head is [B, T, H]: no `keepdim`.",
            "chapter 03, section 2",
        ),
        Mistake(
            "the sign of Mamba2",
            lambda k, temper: F.logsigmoid(-k.mean(-1)) / temper,
            "That is Mamba2's gate, which forgets where P is large. Gated Retention's keeps there.",
            "chapter 03, section 2",
        ),
        Mistake(
            "no temper",
            lambda k, temper: F.logsigmoid(k.mean(-1)),
            "The temper is missing: log α is divided by τ.",
            "chapter 02, section 1",
        ),
        Mistake(
            "the gate itself",
            lambda k, temper: k.mean(-1).sigmoid() ** (1 / temper),
            "That is α and not log α: a log-gate is at most 0.",
            "chapter 02, section 1",
        ),
        Mistake(
            "multiplied by the temper",
            lambda k, temper: F.logsigmoid(k.mean(-1)) * temper,
            "You multiply by τ. The exponent of σ(P) is 1/τ, so its logarithm is divided by τ.",
            "chapter 02, section 1",
        ),
        Mistake(
            "the temper inside the sigmoid",
            lambda k, temper: F.logsigmoid(k.mean(-1) / temper),
            "You divide P by τ before the sigmoid. τ belongs outside, as the root of the gate.",
            "chapter 02, section 1",
        ),
        Mistake(
            "the sign of the logarithm",
            lambda k, temper: -F.logsigmoid(k.mean(-1)) / temper,
            "Your log-gates are positive, so the state would grow with every token. log σ is at most 0 as it is.",
            "chapter 02, section 1",
        ),
        Mistake(
            "pooled over the heads",
            lambda k, temper: F.logsigmoid(k.mean(-2)) / temper,
            "You average over the heads. P is the mean over the channels of a head, the last axis.",
            "chapter 02, section 3",
        ),
    ),
)


def attention_map(q, k, log_gate):
    """q, k, log_gate [T, K] -> [T, T]"""
    b = log_gate.cumsum(0)
    decay = (b[:, None] - b[None, :]).clamp(max=0).exp()
    return torch.einsum("tc,tsc,sc->ts", q, decay, k).tril()


def map_inputs(draw: Draw) -> Iterator[Case]:
    for name, (T, K) in {"": (8, 3), "one token": (1, 4), "T = K": (6, 6), "a few very strong gates": (12, 5)}.items():
        q, k, gate = (draw.normal(T, K, dtype=torch.float64) for _ in range(3))
        gate = -gate.abs()
        if name == "a few very strong gates":
            gate[3::3] -= 400
        yield Case(name, q=q, k=k, log_gate=gate)


def map_with_own_gate(q, k, log_gate):
    b = log_gate.cumsum(0)
    decay = (b[:, None] - b[None, :] + log_gate[None, :]).clamp(max=0).exp()
    return torch.einsum("tc,tsc,sc->ts", q, decay, k).tril()


def map_before_gate(q, k, log_gate):
    b = log_gate.cumsum(0) - log_gate
    return torch.einsum("tc,tsc,sc->ts", q, (b[:, None] - b[None, :]).clamp(max=0).exp(), k).tril()


def map_of_the_mean(q, k, log_gate):
    b = log_gate.mean(-1).cumsum(0)
    return ((q @ k.T) * (b[:, None] - b[None, :]).clamp(max=0).exp()).tril()


def map_without_mask(q, k, log_gate):
    b = log_gate.cumsum(0)
    return torch.einsum("tc,tsc,sc->ts", q, (b[:, None] - b[None, :]).clamp(max=0).exp(), k)


def map_overflows(q, k, log_gate):
    b = log_gate.cumsum(0)
    return torch.einsum("tc,tsc,sc->ts", q, (b[:, None] - b[None, :]).exp(), k).tril()


ATTENTION_MAP = Task(
    number="03.3",
    title="The map that a recurrence hides",
    minutes=20,
    difficulty="hard",
    statement="""\
A gated recurrence is a weighted sum of values, $o_t = \\sum_{s \\le t} A_{ts} v_s$, with

$$A_{ts} = \\sum_c q_{tc} \\Big(\\prod_{j=s+1}^{t} \\alpha_{jc}\\Big) k_{sc}$$

Write `attention_map(q, k, log_gate)`: all three are [T, K], in float64, the result is [T, T], and 0 where s > t.
Log-gates go down to about -400. Gradients have to be right as well, so nothing may overflow, not even above the diagonal.""",
    hints=(
        "The product of gates from s+1 to t is exp of a sum of log-gates, and that is a difference of two running sums.",
        "`b = log_gate.cumsum(0)`; `b[:, None] - b` has the shape [T, T, K]. Above the diagonal it is positive: clamp it at 0.",
        "`torch.einsum('tc,tsc,sc->ts', q, decay, k).tril()`.",
    ),
    reference=attention_map,
    inputs=map_inputs,
    gradients=("q", "k", "log_gate"),
    tolerance=1e-11,  # a difference of sums of a few thousand loses four digits of float64's sixteen
    survivors={
        "decay = (b[:, None] - b[None, :]).clamp(max=0).exp() → decay = (b[:, None] - b[None, :]).clamp(max=1).exp()": "above the "
        "diagonal, where alone it is positive, `tril` drops the value",
    },
    section="chapter 03, section 6",
    picture=True,
    mistakes=(
        Mistake(
            "its own gate counts",
            map_with_own_gate,
            "Your token s is decayed by its own gate. The product starts at s + 1, so the diagonal of A is q_t · k_t.",
            "chapter 03, section 6",
        ),
        Mistake(
            "one gate too early",
            map_before_gate,
            "Your product runs from s to t - 1. The gate of token t acts before t reads, and the gate of s acts before s writes.",
            "chapter 03, section 6",
        ),
        Mistake(
            "no gates",
            lambda q, k, log_gate: (q @ k.T).tril(),
            "Your map has no decay: it is the one of ungated linear attention.",
            "chapter 03, section 6",
        ),
        Mistake(
            "one gate per token",
            map_of_the_mean,
            "You average the gates over channels. Each channel decays at its own rate, so the decay stays inside the sum over c.",
            "chapter 03, section 6",
        ),
        Mistake(
            "overflows above the diagonal",
            map_overflows,
            "Your map is right, and its gradient is not finite: above the diagonal the exponent is positive and exp overflows, before "
            "`tril` drops it. 0 times infinity is NaN. Clamp the exponent at 0.",
            "chapter 03, section 6",
        ),
        Mistake(
            "the future is visible",
            map_without_mask,
            "Your map is not 0 where s > t: the mask is missing.",
            "chapter 03, section 6",
        ),
    ),
)


def hgrn2_step(q, k, v, state):
    """q, k [H, K]; v [H, V]; state [H, K, V] -> o [H, V], state [H, K, V]"""
    alpha = k.sigmoid()
    state = alpha[..., :, None] * state + (1 - alpha)[..., :, None] * v[..., None, :]
    return (q[..., :, None] * state).sum(-2), state


def hgrn2_inputs(draw: Draw) -> Iterator[Case]:
    for H, K, V in ((2, 5, 4), (1, 1, 1), (3, 4, 4)):
        q, k, v = draw.normal(H, K), draw.normal(H, K, scale=2), draw.normal(H, V)
        yield Case("", q=q, k=k, v=v, state=draw.normal(H, K, V))


def hgrn2_writes_key(q, k, v, state):
    state = k.sigmoid().unsqueeze(-1) * state + k.unsqueeze(-1) * v.unsqueeze(-2)
    return torch.einsum("hk,hkv->hv", q, state), state


def hgrn2_writes_alpha(q, k, v, state):
    alpha = k.sigmoid().unsqueeze(-1)
    state = alpha * state + alpha * v.unsqueeze(-2)
    return torch.einsum("hk,hkv->hv", q, state), state


def hgrn2_swapped(q, k, v, state):
    alpha = k.sigmoid().unsqueeze(-1)
    state = (1 - alpha) * state + alpha * v.unsqueeze(-2)
    return torch.einsum("hk,hkv->hv", q, state), state


def hgrn2_writes_features(q, k, v, state):
    alpha = k.sigmoid().unsqueeze(-1)
    state = alpha * state + k.softmax(-1).unsqueeze(-1) * v.unsqueeze(-2)
    return torch.einsum("hk,hkv->hv", q, state), state


HGRN2_STEP = Task(
    number="03.4",
    title="A write tied to the gate",
    minutes=10,
    difficulty="medium",
    statement="""\
HGRN2 ties the write to the gate. A channel keeps the share $\\alpha = \\sigma(k)$ of what it holds, and takes in the share
$1 - \\alpha$ of the new value:

$$S_t = \\mathrm{diag}(\\alpha_t)\\,S_{t-1} + (1-\\alpha_t)^\\top v_t, \\qquad o_t = q_t S_t$$

Write `hgrn2_step(q, k, v, state)`: `q`, `k` are [H, K], `v` is [H, V], `state` is [H, K, V]. The temper is 1, and q is used as it
is. Return `(o, state)`.""",
    hints=(
        "The key appears nowhere but in the gate.",
        "It is task 03.1 with 1 - α in place of k.",
        "`(1 - alpha)[..., :, None] * v[..., None, :]`.",
    ),
    reference=hgrn2_step,
    inputs=hgrn2_inputs,
    returns=("o", "state"),
    section="chapter 03, section 3",
    mistakes=(
        Mistake(
            "writes the key",
            hgrn2_writes_key,
            "You write the key, as GLA does. A tied write is 1 - α: what the channel gave up.",
            "chapter 03, section 3",
        ),
        Mistake(
            "writes α",
            hgrn2_writes_alpha,
            "You write with the share α. A channel that keeps α has room for 1 - α.",
            "chapter 03, section 3",
        ),
        Mistake(
            "keeps what it should write",
            hgrn2_swapped,
            "You keep 1 - α and write α. The gate is what is kept.",
            "chapter 03, section 3",
        ),
        Mistake(
            "writes φ(k)",
            hgrn2_writes_features,
            "You write φ(k). It is gone in HGRN2; the write is 1 - α.",
            "chapter 03, section 3",
        ),
    ),
)


def left_after_reset(strength, temper):
    """strength of the reset; temper in tokens -> the share of an old fact that is left (float)"""
    return 2 ** (1 / temper) / (1 + math.exp(strength)) ** (1 / temper)


def reset_inputs(draw: Draw) -> Iterator[Case]:
    for strength, temper in ((4.0, 16.0), (16.0, 1024.0), (0.0, 7.0), (float(draw.uniform(low=1, high=9)), 2.0)):
        yield Case("", strength=strength, temper=temper)


LEFT = Task(
    number="03.5",
    title="Forgetting on command",
    minutes=15,
    difficulty="medium",
    statement="""\
"With a temper of 1024 the model remembers long, and a strong key can still clear the state." Compute what is true. A reset is one token
whose key has the value -s in each channel. Write `left_after_reset(strength, temper)` for GLA's gate
$\\alpha = \\sigma(P)^{1/\\tau}$: the share of an old fact that is left after the reset, *relative to a neutral token in its place*, as a float.

Then call it with a strength of 16 and a temper of 1024.""",
    hints=(
        "It is the ratio of two gates: the reset's and a neutral key's.",
        "σ(-s) = 1 / (1 + e^s), and a neutral key has σ(0) = 1/2.",
        "(2 / (1 + e^s))^(1/τ).",
    ),
    reference=left_after_reset,
    inputs=reset_inputs,
    section="chapter 03, section 7",
    mistakes=(
        Mistake(
            "not relative",
            lambda strength, temper: (1 + math.exp(strength)) ** (-1 / temper),
            "That is the reset's gate. A neutral token would have forgotten something, too: divide by its gate.",
            "chapter 03, section 7",
        ),
        Mistake(
            "no temper",
            lambda strength, temper: 2 / (1 + math.exp(strength)),
            "You left the temper out, which divides the reset's log-gate as well. This is the price of a long memory.",
            "chapter 03, section 7",
        ),
        Mistake(
            "the wrong sign",
            lambda strength, temper: (2 / (1 + math.exp(-strength))) ** (1 / temper),
            "Your key is +s, which keeps. The reset has -s in each channel.",
            "chapter 03, section 7",
        ),
        Mistake(
            "RWKV6's gate",
            lambda strength, temper: math.exp((1 - math.exp(min(strength, 600))) * math.log(2) / temper),
            "That is RWKV6's gate, whose log-gate grows exponentially with the key. GLA's grows in proportion to it.",
            "chapter 03, section 7",
        ),
    ),
)

TASKS = (GATED_STEP, SCALAR_LOG_GATE, ATTENTION_MAP, HGRN2_STEP, LEFT)
