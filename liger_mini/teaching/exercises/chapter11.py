"""Tasks of chapter 11: the delta rule."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from liger_mini.teaching.exercises.task import Case, Draw, Mistake, Task


def delta_step(q, k, v, beta, log_gate, state):
    """q, k [B, H, K]; v [B, H, V]; beta, log_gate [B, H]; state [B, H, K, V] -> o [B, H, V], state [B, H, K, V]"""
    state = log_gate.exp()[..., None, None] * state
    u = beta[..., None] * (v - torch.einsum("bhk,bhkv->bhv", k, state))
    state = state + torch.einsum("bhk,bhv->bhkv", k, u)
    return torch.einsum("bhk,bhkv->bhv", q, state), state


def delta_inputs(draw: Draw) -> Iterator[Case]:
    for name, (B, H, K, V, strongest) in {
        "weak gates": (2, 3, 5, 4, 0.5),
        "strong gates": (1, 2, 4, 6, 6.0),
        "K = V": (2, 2, 4, 4, 1.0),
        "B = H = K = V": (3, 3, 3, 3, 1.0),
        "one of everything": (1, 1, 1, 1, 1.0),
        "wide": (1, 4, 33, 16, 1.0),
    }.items():
        q, k, v = draw.normal(B, H, K), F.normalize(draw.normal(B, H, K), dim=-1), draw.normal(B, H, V)
        beta, log_gate = draw.uniform(B, H, low=0.2, high=2), -draw.uniform(B, H, high=strongest)
        yield Case(name, q=q, k=k, v=v, beta=beta, log_gate=log_gate, state=draw.normal(B, H, K, V))
    q, k, v = draw.normal(2, 4, 5), 0.7 * F.normalize(draw.normal(2, 4, 5), dim=-1), draw.normal(2, 4, 3)
    beta = torch.tensor([[0.0, 1.0, 2.0, 0.5]] * 2)
    log_gate = torch.tensor([[0.0, 0.0, -0.7, -80.0], [-0.3, -80.0, 0.0, 0.0]])
    state = draw.normal(2, 4, 5, 3)
    yield Case("β of 0, 1 and 2, gates open and shut", q=q, k=k, v=v, beta=beta, log_gate=log_gate, state=state)
    yield Case("empty state", q=q, k=k, v=v, beta=beta, log_gate=log_gate, state=torch.zeros(2, 4, 5, 3))


def delta_parts(k, v, beta, log_gate, state):
    """the gate [B, H, 1, 1]; β [B, H, 1]; what the state says for the key before and after the gate [B, H, V]"""
    alpha = log_gate.exp()[..., None, None]
    return (
        alpha,
        beta[..., None],
        (k.unsqueeze(-2) @ state).squeeze(-2),
        (k.unsqueeze(-2) @ (alpha * state)).squeeze(-2),
    )


def outer(k, v):
    """k [..., K], v [..., V] -> [..., K, V]"""
    return k.unsqueeze(-1) * v.unsqueeze(-2)


def read(q, state):
    """q [..., K], state [..., K, V] -> [..., V]"""
    return (q.unsqueeze(-2) @ state).squeeze(-2)


def delta_reads_first(q, k, v, beta, log_gate, state):
    alpha, b, _, says = delta_parts(k, v, beta, log_gate, state)
    return read(q, alpha * state), alpha * state + outer(k, b * (v - says))


def delta_reads_the_old(q, k, v, beta, log_gate, state):
    return read(q, state), delta_step(q, k, v, beta, log_gate, state)[1]


def delta_gate_after(q, k, v, beta, log_gate, state):
    alpha, b, says, _ = delta_parts(k, v, beta, log_gate, state)
    state = alpha * (state + outer(k, b * (v - says)))
    return read(q, state), state


def delta_undecayed(q, k, v, beta, log_gate, state):
    alpha, b, says, _ = delta_parts(k, v, beta, log_gate, state)
    state = alpha * state + outer(k, b * (v - says))
    return read(q, state), state


def delta_without_beta(q, k, v, beta, log_gate, state):
    return delta_step(q, k, v, torch.ones_like(beta), log_gate, state)


def delta_beta_on_value(q, k, v, beta, log_gate, state):
    alpha, b, _, says = delta_parts(k, v, beta, log_gate, state)
    state = alpha * state + outer(k, b * v - says)
    return read(q, state), state


def delta_beta_on_read(q, k, v, beta, log_gate, state):
    alpha, b, _, says = delta_parts(k, v, beta, log_gate, state)
    state = alpha * state + outer(k, v - b * says)
    return read(q, state), state


def delta_adds(q, k, v, beta, log_gate, state):
    alpha, b, _, _ = delta_parts(k, v, beta, log_gate, state)
    state = alpha * state + outer(k, b * v)
    return read(q, state), state


def delta_log_gate_as_it_is(q, k, v, beta, log_gate, state):
    says = read(k, log_gate[..., None, None] * state)
    state = log_gate[..., None, None] * state + outer(k, beta[..., None] * (v - says))
    return read(q, state), state


def delta_query_asks(q, k, v, beta, log_gate, state):
    alpha, b, _, _ = delta_parts(k, v, beta, log_gate, state)
    state = alpha * state + outer(k, b * (v - read(q, alpha * state)))
    return read(q, state), state


def delta_no_gate(q, k, v, beta, log_gate, state):
    return delta_step(q, k, v, beta, torch.zeros_like(log_gate), state)


def delta_one_gate(q, k, v, beta, log_gate, state):
    return delta_step(q, k, v, beta, log_gate.mean(-1, keepdim=True).expand_as(log_gate), state)


def delta_in_place(q, k, v, beta, log_gate, state):
    state *= log_gate.exp()[..., None, None]
    state += outer(k, beta[..., None] * (v - read(k, state)))
    return read(q, state), state


def delta_transposed(q, k, v, beta, log_gate, state):
    alpha, b, _, says = delta_parts(k, v, beta, log_gate, state)
    state = alpha * state + outer(b * (v - says), k)
    return read(q, state), state


def delta_plus(q, k, v, beta, log_gate, state):
    alpha, b, _, says = delta_parts(k, v, beta, log_gate, state)
    state = alpha * state + outer(k, b * (v + says))
    return read(q, state), state


def delta_normalises(q, k, v, beta, log_gate, state):
    return delta_step(q, F.normalize(k, dim=-1), v, beta, log_gate, state)


def delta_scaled(q, k, v, beta, log_gate, state):
    o, state = delta_step(q, k, v, beta, log_gate, state)
    return o / q.shape[-1] ** 0.5, state


DELTA_STEP = Task(
    number="11.1",
    title="One token of the gated delta rule",
    minutes=15,
    difficulty="medium",
    statement="""\
Write one token of the gated delta rule. The state decays first. Then the key reads it, and what is missing to the value is written. The query reads last.

$$S' = \\alpha_t S_{t-1}, \\qquad u_t = \\beta_t\\,(v_t - k_t S'), \\qquad S_t = S' + k_t^\\top u_t, \\qquad o_t = q_t S_t$$

Write `delta_step(q, k, v, beta, log_gate, state)`: `q` and `k` are [B, H, K], `v` is [B, H, V], `state` is $S_{t-1}$, [B, H, K, V]. `beta` and `log_gate` are
[B, H], one number per head, and $\\alpha_t = \\exp(\\mathrm{log\\_gate})$. Return `(o, state)`: the output [B, H, V] and the new state. Use q and k as
they are, and leave the state that you were given as it is.""",
    hints=(
        "`log_gate.exp()[..., None, None]` is [B, H, 1, 1] and scales a K x V state as a whole.",
        "What the decayed state says for the key: `torch.einsum('bhk,bhkv->bhv', k, state)`.",
        "The write is `k[..., :, None] * u[..., None, :]` with `u = beta[..., None] * (v - says)`.",
    ),
    reference=delta_step,
    inputs=delta_inputs,
    returns=("o", "state"),
    section="chapter 11, section 2",
    mistakes=(
        Mistake(
            "reads before it writes",
            delta_reads_first,
            "Your query reads the state before the correction is written. It reads S_t, which knows this token.",
            "chapter 11, section 2",
        ),
        Mistake(
            "reads the state it was given",
            delta_reads_the_old,
            "Your query reads the state of the token before, not even decayed. First decay and correct, then read.",
            "chapter 11, section 2",
        ),
        Mistake(
            "the gate after the write",
            delta_gate_after,
            "Your gate is applied after the correction, so what was just written decays at once. The old state decays first.",
            "chapter 11, section 2",
        ),
        Mistake(
            "corrects the state before the gate",
            delta_undecayed,
            "Your key reads the state before it decays, and the correction is written into the decayed one. Then a write with β = 1 "
            "is not exact. Read after the gate.",
            "chapter 11, section 2",
        ),
        Mistake(
            "β forgotten",
            delta_without_beta,
            "β is missing: you always write the whole correction.",
            "chapter 11, section 2",
        ),
        Mistake(
            "β on the value alone",
            delta_beta_on_value,
            "Your β scales the value and not what is read. It is a step size: it scales the whole difference.",
            "chapter 11, section 2",
        ),
        Mistake(
            "β on the reading alone",
            delta_beta_on_read,
            "Your β scales what is taken off and not the value. It is a step size: it scales the whole difference.",
            "chapter 11, section 2",
        ),
        Mistake(
            "adds",
            delta_adds,
            "You add β kᵀv, as every structure before this chapter did. The delta rule first takes off what the state says for the key.",
            "chapter 11, section 1",
        ),
        Mistake(
            "log-gate taken for the gate",
            delta_log_gate_as_it_is,
            "You multiply the state by log α. The factor is α, so exp is missing here as well.",
            "chapter 11, section 2",
        ),
        Mistake(
            "the query asks",
            delta_query_asks,
            "You take off what the state says for the query. The correction is about the key: that is where the value will stand.",
            "chapter 11, section 1",
        ),
        Mistake(
            "no gate at all",
            delta_no_gate,
            "Your state does not decay. That is DeltaNet; with a gate it comes before the correction.",
            "chapter 11, section 2",
        ),
        Mistake(
            "one gate for all heads",
            delta_one_gate,
            "You average the gates over the heads. Each head has its own.",
            "chapter 11, section 2",
        ),
        Mistake(
            "the wrong sign",
            delta_plus,
            "You add what the state says to the value. It is taken off: u = β (v - k S).",
            "chapter 11, section 1",
        ),
        Mistake(
            "written the wrong way round",
            delta_transposed,
            "You write uᵀk. The state is [K, V]: a column of the key times a row of the correction. Where K = V the shapes do not tell you.",
            "chapter 11, section 1",
        ),
        Mistake(
            "changes the given state",
            delta_in_place,
            "Your numbers are right, but you decay and correct the caller's state in place. Make a new tensor for S'.",
            "chapter 11, section 2",
        ),
        Mistake(
            "brings the key to length one",
            delta_normalises,
            "You bring the key to length one. Whoever calls a step has done that, or has a reason not to: use k as it is.",
            "chapter 11, section 3",
        ),
        Mistake(
            "scales by √K",
            delta_scaled,
            "Your state is right, and the output is divided by √K. That belongs to softmax attention; here o = q S.",
            "chapter 11, section 2",
        ),
        Mistake(
            "returns the old state",
            lambda *args: (delta_step(*args)[0], args[-1]),
            "Your output is right, but you give the old state back, so the next token does not know of this one.",
            "chapter 11, section 2",
        ),
        Mistake(
            "returns state and output in the wrong order",
            lambda *args: delta_step(*args)[::-1],
            "Your results are in the wrong order: first o, then the state.",
            "chapter 11, section 2",
        ),
        Mistake(
            "β at most 1",
            lambda q, k, v, beta, log_gate, state: delta_step(q, k, v, beta.clamp(max=1), log_gate, state),
            "You clamp β at 1. It goes up to 2: beyond 1 the step overshoots, which is allowed.",
            "chapter 11, section 4",
        ),
    ),
)


def store(k, v, rounds):
    """k [n, K], of length one; v [n, V] -> [K, V]"""
    state = torch.zeros(k.shape[1], v.shape[1])
    for _ in range(rounds):
        for key, value in zip(k, v):
            state = state + torch.outer(key, value - key @ state)
    return state


def store_inputs(draw: Draw) -> Iterator[Case]:
    for name, (n, K, V, rounds) in {
        "two facts": (2, 2, 3, 2),
        "more rounds": (5, 6, 4, 4),
        "as many facts as channels": (4, 4, 4, 3),
        "more facts than channels": (9, 4, 5, 2),
        "one round": (6, 5, 3, 1),
        "one fact": (1, 3, 2, 3),
    }.items():
        k = draw.normal(n, K).softmax(-1)
        yield Case(name, k=k / k.norm(dim=-1, keepdim=True), v=draw.normal(n, V), rounds=rounds)


def store_all_at_once(k, v, rounds):
    state = torch.zeros(k.shape[1], v.shape[1])
    for _ in range(rounds):
        state = state + k.T @ (v - k @ state)
    return state


def store_backwards(k, v, rounds):
    return store(k.flip(0), v.flip(0), rounds)


def store_adds(k, v, rounds):
    return rounds * k.T @ v


def store_exactly(k, v, rounds):
    return torch.linalg.lstsq(k.double(), v.double(), driver="gelsd").solution.float()


STORE = Task(
    number="11.2",
    title="Facts that overlap, told again",
    minutes=15,
    difficulty="medium",
    statement="""\
A list of n facts is told from the first to the last, and then the whole list again, `rounds` times in all. Each fact is a key of length one and a value. The keys
overlap, so a new fact disturbs what was stored for the others; each round repairs some of that. Write `store(k, v, rounds)`: `k` is [n, K], `v` is [n, V],
and the result is the state after the last fact, [K, V]. It starts empty. Each telling is a delta write with β = 1 and no gate:

$$S \\leftarrow S + k_i^\\top (v_i - k_i S)$$""",
    hints=(
        "Two loops: over the rounds outside, over the facts inside.",
        "Each fact reads the state that all facts before it have left, not the one at the round's beginning.",
        "`state = state + torch.outer(key, value - key @ state)`.",
    ),
    reference=store,
    inputs=store_inputs,
    section="chapter 11, section 1",
    mistakes=(
        Mistake(
            "adds",
            store_adds,
            "You add all outer products, once per round. Adding never looks at what is there: repeated facts grow, and nothing is repaired.",
            "chapter 11, section 1",
        ),
        Mistake(
            "a round at once",
            store_all_at_once,
            "All your facts of a round read the same old state, and their corrections are added. Where keys overlap, each corrects the "
            "others' share once more, and it overshoots. One fact after the other.",
            "chapter 11, section 1",
        ),
        Mistake(
            "one round",
            lambda k, v, rounds: store(k, v, 1),
            "Your state is that of one round. Either `rounds` is not used, or you tell each fact several times in a row: the second time there is "
            "nothing left to correct. Tell the whole list again.",
            "chapter 11, section 1",
        ),
        Mistake(
            "the last comes first",
            store_backwards,
            "You tell the facts from the last to the first. The order matters: what was told last is exact.",
            "chapter 11, section 1",
        ),
        Mistake(
            "the solution",
            store_exactly,
            "You solved k S = v. That is where many rounds lead if all facts can be stored; after a few rounds the state is still on its way.",
            "chapter 11, section 1",
        ),
        Mistake(
            "one round too many",
            lambda k, v, rounds: store(k, v, rounds + 1),
            "You tell the list once too often.",
            "chapter 11, section 1",
        ),
        Mistake(
            "keys and values swapped",
            lambda k, v, rounds: store(k, v, rounds).T,
            "Your state is [V, K]. A row belongs to a key channel: [K, V].",
            "chapter 11, section 1",
        ),
    ),
)


def two_sided_features(x):
    """x [..., K] -> [..., 2K], of length one"""
    both = torch.cat([x.softmax(-1), (-x).softmax(-1)], dim=-1)
    return both / both.norm(dim=-1, keepdim=True)


def features_inputs(draw: Draw) -> Iterator[Case]:
    for name, shape, scale in (
        ("a batch", (2, 5, 3, 4), 1.0),
        ("tokens", (6, 8), 2.0),
        ("as many tokens as channels", (4, 4), 1.0),
        ("one key", (5,), 1.0),
        ("far apart", (3, 7), 200.0),
        ("all alike", (2, 3), 0.0),
        ("one channel", (4, 1), 1.0),
    ):
        yield Case(name, x=draw.normal(*shape, scale=scale))


def features_each_side(x):
    return torch.cat([F.normalize(x.softmax(-1), dim=-1), F.normalize((-x).softmax(-1), dim=-1)], dim=-1)


def features_of_one_softmax(x):
    return F.normalize(torch.cat([x, -x], dim=-1).softmax(-1), dim=-1)


def features_minus(x):
    return F.normalize(torch.cat([x.softmax(-1), -x.softmax(-1)], dim=-1), dim=-1)


def features_normalised_first(x):
    x = F.normalize(x, dim=-1)
    return torch.cat([x.softmax(-1), (-x).softmax(-1)], dim=-1)


def features_sum_to_one(x):
    return torch.cat([x.softmax(-1), (-x).softmax(-1)], dim=-1) / 2


def features_squared(x):
    both = torch.cat([x.softmax(-1), (-x).softmax(-1)], dim=-1)
    return both / both.square().sum(-1, keepdim=True)


def features_overflow(x):
    both = torch.cat([x.exp() / x.exp().sum(-1, keepdim=True), (-x).exp() / (-x).exp().sum(-1, keepdim=True)], dim=-1)
    return F.normalize(both, dim=-1)


def features_turned(x):
    return two_sided_features(-x)


def features_one_length(x):
    both = torch.cat([x.softmax(-1), (-x).softmax(-1)], dim=-1)
    return both / both.norm()


def features_interleaved(x):
    both = torch.stack([x.softmax(-1), (-x).softmax(-1)], dim=-1).flatten(-2)
    return F.normalize(both, dim=-1)


TWO_SIDED_FEATURES = Task(
    number="11.3",
    title="Keys of length one, with two sides",
    minutes=10,
    difficulty="easy",
    statement="""\
The delta rule needs keys of length one. A softmax shows what is high in a key and hides what is low; two-sided features show both:

$$\\hat\\phi(x) = \\frac{[\\mathrm{softmax}(x),\\ \\mathrm{softmax}(-x)]}{\\lVert [\\mathrm{softmax}(x),\\ \\mathrm{softmax}(-x)] \\rVert_2}$$

Write `two_sided_features(x)`: `x` is [..., K] with any number of axes before the last, the result is [..., 2K], the softmax of x first. Numbers in x can be in the
hundreds.""",
    hints=(
        "`torch.cat([a, b], dim=-1)` puts two vectors one behind the other.",
        "The length is a norm over the last axis of both sides together: keep that axis.",
        "`both / both.norm(dim=-1, keepdim=True)`.",
    ),
    reference=two_sided_features,
    inputs=features_inputs,
    section="chapter 11, sections 3 and 4",
    mistakes=(
        Mistake(
            "each side of length one",
            features_each_side,
            "You bring each side to length one. Together they have the length √2, so β‖k‖² is 2β: at β above 1 the state explodes.",
            "chapter 11, section 3",
        ),
        Mistake(
            "one softmax over both",
            features_of_one_softmax,
            "You take one softmax over [x, -x]. Each side has its own, so that what is low counts as much as what is high.",
            "chapter 11, section 4",
        ),
        Mistake(
            "minus the softmax",
            features_minus,
            "Your second side is -softmax(x), which says the first once more. Wanted is softmax(-x): it is large where x is low.",
            "chapter 11, section 4",
        ),
        Mistake(
            "normalised before the softmax",
            features_normalised_first,
            "You bring x to length one before the softmax. Normalise after it: only what is written has to have length one.",
            "chapter 11, section 3",
        ),
        Mistake(
            "sums to one",
            features_sum_to_one,
            "Your features sum to one. Their length, the root of the sum of squares, has to be one, and it is less.",
            "chapter 11, section 3",
        ),
        Mistake(
            "divided by the squared length",
            features_squared,
            "You divide by the squared length. The root is missing.",
            "chapter 11, section 3",
        ),
        Mistake(
            "overflows",
            features_overflow,
            "Your exp overflows for numbers in the hundreds. `softmax` takes the largest off first.",
            "chapter 11, section 3",
        ),
        Mistake(
            "the sides swapped",
            features_turned,
            "Your sides are swapped: softmax(x) comes first.",
            "chapter 11, section 4",
        ),
        Mistake(
            "one length for all",
            features_one_length,
            "You divide by the norm of the whole tensor. Each key has a length of its own: a norm over the last axis.",
            "chapter 11, section 3",
        ),
        Mistake(
            "interleaved",
            features_interleaved,
            "Your two sides alternate, channel by channel. One softmax comes after the other: `cat`, not `stack`.",
            "chapter 11, section 4",
        ),
        Mistake(
            "a softmax over another axis",
            lambda x: F.normalize(torch.cat([x.softmax(0), (-x).softmax(0)], dim=-1), dim=-1),
            "Your softmax runs over the first axis, so that keys compete with each other. It runs over the channels of one key, the last axis.",
            "chapter 11, section 4",
        ),
        Mistake(
            "one minus the softmax",
            lambda x: F.normalize(torch.cat([x.softmax(-1), 1 - x.softmax(-1)], dim=-1), dim=-1),
            "Your second side is 1 - softmax(x), nearly the same for all channels. Wanted is softmax(-x).",
            "chapter 11, section 4",
        ),
    ),
)


def corrections(k, v, beta, state):
    """k [C, K]; v [C, V]; beta [C]; state [K, V], before the chunk -> u [C, V]"""
    A = (beta[:, None] * (k @ k.T)).tril(-1)
    right = beta[:, None] * (v - k @ state)
    return torch.linalg.solve_triangular(torch.eye(len(k)) + A, right, upper=False)


def corrections_inputs(draw: Draw) -> Iterator[Case]:
    double = torch.float64
    for name, (C, K, V) in {
        "": (6, 4, 3),
        "C = K = V": (4, 4, 4),
        "one token": (1, 3, 2),
        "a long chunk": (64, 16, 8),
        "two tokens": (2, 5, 5),
    }.items():
        k = F.normalize(draw.normal(C, K, dtype=double), dim=-1)
        v, beta = draw.normal(C, V, dtype=double), draw.uniform(C, low=0.2, high=1.5, dtype=double)
        yield Case(name, k=k, v=v, beta=beta, state=draw.normal(K, V, dtype=double))
    k = F.normalize(1 + draw.normal(64, 16, scale=0.01, dtype=double), dim=-1)
    ones, state = torch.ones(64, dtype=double), draw.normal(16, 4, dtype=double)
    yield Case("the same word again and again", k=k, v=draw.normal(64, 4, dtype=double), beta=ones, state=state)


def solved(A, right):
    """u of (I + A) u = right, A strictly lower."""
    return torch.linalg.solve(torch.eye(len(A), dtype=A.dtype) + A, right)


def corrections_on_diagonal(k, v, beta, state):
    return solved((beta[:, None] * (k @ k.T)).tril(), beta[:, None] * (v - k @ state))


def corrections_alone(k, v, beta, state):
    return beta[:, None] * (v - k @ state)


def corrections_from_empty(k, v, beta, state):
    return solved((beta[:, None] * (k @ k.T)).tril(-1), beta[:, None] * v)


def corrections_other_beta(k, v, beta, state):
    return solved((beta * (k @ k.T)).tril(-1), beta[:, None] * (v - k @ state))


def corrections_sign(k, v, beta, state):
    return solved(-(beta[:, None] * (k @ k.T)).tril(-1), beta[:, None] * (v - k @ state))


def corrections_beta_on_value(k, v, beta, state):
    return solved((beta[:, None] * (k @ k.T)).tril(-1), beta[:, None] * v - k @ state)


def corrections_one_pass(k, v, beta, state):
    right = beta[:, None] * (v - k @ state)
    return right - (beta[:, None] * (k @ k.T)).tril(-1) @ right


def corrections_doubling(k, v, beta, state):
    power = (beta[:, None] * (k @ k.T)).tril(-1)
    inverse = torch.eye(len(k), dtype=k.dtype) - power
    for _ in range(len(k).bit_length()):
        power = power @ power
        inverse = inverse + inverse @ power
    return inverse @ (beta[:, None] * (v - k @ state))


def corrections_without_identity(k, v, beta, state):
    A = (beta[:, None] * (k @ k.T)).tril(-1)
    return torch.linalg.solve_triangular(A, beta[:, None] * (v - k @ state), upper=False)


def corrections_beta_last(k, v, beta, state):
    return beta[:, None] * solved((k @ k.T).tril(-1), v - k @ state)


CORRECTIONS = Task(
    number="11.4",
    title="A triangular system",
    minutes=25,
    difficulty="hard",
    statement="""\
In a chunk of C tokens, without a gate, each token's correction depends on those before it:

$$u_i = \\beta_i \\Big(v_i - k_i S_0 - \\sum_{j<i} (k_i \\cdot k_j)\\, u_j\\Big)$$

Write `corrections(k, v, beta, state)`: `k` is [C, K], `v` is [C, V], `beta` is [C], `state` is $S_0$, [K, V], all in float64. The result is u, [C, V]. A loop over
tokens is right. So is solving a system of linear equations, (I + A) u = right. Be careful with shortcuts: one of the cases is a word that comes again and
again, 64 keys that are nearly equal, with β = 1.""",
    hints=(
        "Bring every u to one side. A is strictly lower triangular: A[i, j] = β_i k_i · k_j for j < i.",
        "The right-hand side is β_i (v_i - k_i S_0), for all tokens at once.",
        "`torch.linalg.solve_triangular(I + A, right, upper=False)`.",
    ),
    reference=corrections,
    inputs=corrections_inputs,
    tolerance=1e-5,
    section="chapter 11, section 5",
    mistakes=(
        Mistake(
            "a token corrects itself",
            corrections_on_diagonal,
            "Your A has its diagonal. The sum is over j < i: a token reads the state before its own write. `tril(-1)`.",
            "chapter 11, section 5",
        ),
        Mistake(
            "every token alone",
            corrections_alone,
            "Your tokens read the state before the chunk and nothing of the chunk. What the tokens before have written counts as well.",
            "chapter 11, section 5",
        ),
        Mistake(
            "an empty state",
            corrections_from_empty,
            "You forgot the state before the chunk: k_i S_0 is taken off every value.",
            "chapter 11, section 5",
        ),
        Mistake(
            "β of the wrong token",
            corrections_other_beta,
            "Your A[i, j] has the β of token j. It is the step size of the token that writes the correction, i: it scales a row.",
            "chapter 11, section 5",
        ),
        Mistake(
            "the wrong sign",
            corrections_sign,
            "Your A has the wrong sign. The sum is taken off on the right, so it is added on the left: I + A.",
            "chapter 11, section 5",
        ),
        Mistake(
            "β on the value alone",
            corrections_beta_on_value,
            "On your right-hand side β scales the value only. It scales the whole difference, v_i - k_i S_0.",
            "chapter 11, section 5",
        ),
        Mistake(
            "one pass",
            corrections_one_pass,
            "You take the tokens before off once, with corrections that were themselves not corrected. That is (I - A) for the inverse of (I + A), "
            "right for two tokens only.",
            "chapter 11, section 5",
        ),
        Mistake(
            "powers of A",
            corrections_doubling,
            "You sum powers of A. As algebra it is exact; with nearly equal keys the powers reach 1e17 and have to cancel, and no float has "
            "that many digits. Substitute.",
            "chapter 11, section 6",
        ),
        Mistake(
            "no identity",
            corrections_without_identity,
            "You solve A u = right. A has zeros on its diagonal and no inverse; the u_i on the left is the identity: I + A.",
            "chapter 11, section 5",
        ),
        Mistake(
            "β after the system",
            corrections_beta_last,
            "You solve without β and multiply by it at the end. The corrections on the right have their own β already, so it belongs into A and the right-hand side.",
            "chapter 11, section 5",
        ),
    ),
)


def prepare(k, v, beta, log_gate):
    """k [C, K]; v [C, V]; beta, log_gate [C] -> U [C, V], W [C, K]"""
    b = log_gate[:, None].cumsum(0)
    decay = (b - b.T).clamp(max=0).exp()
    A = (beta[:, None] * (k @ k.T) * decay).tril(-1)
    right = beta[:, None] * torch.cat([v, b.exp() * k], dim=1)
    both = torch.linalg.solve_triangular(torch.eye(len(k)) + A, right, upper=False)
    return both[:, : v.shape[1]], both[:, v.shape[1] :]


def prepare_inputs(draw: Draw) -> Iterator[Case]:
    double = torch.float64
    for name, (C, K, V, strongest) in {
        "weak gates": (6, 4, 3, 0.5),
        "C = K = V": (4, 4, 4, 1.0),
        "one token": (1, 3, 2, 1.0),
        "no gate": (8, 5, 4, 0.0),
        "very strong gates": (32, 6, 5, 100.0),
        "a long chunk": (64, 16, 8, 0.1),
    }.items():
        k = F.normalize(draw.normal(C, K, dtype=double), dim=-1)
        v, beta = draw.normal(C, V, dtype=double), draw.uniform(C, low=0.3, high=1.2, dtype=double)
        yield Case(name, k=k, v=v, beta=beta, log_gate=-draw.uniform(C, high=strongest, dtype=double))


def prepared(k, v, beta, log_gate, decay, since):
    """U and W of a decay matrix [C, C] and of decays since the chunk's start [C]."""
    A = (beta[:, None] * (k @ k.T)).mul(decay).tril(-1)
    return solved(A, beta[:, None] * v), solved(A, (beta * since)[:, None] * k)


def decays(log_gate):
    """between two tokens [C, C], from after the column's to the row's; since the start [C], the own gate included"""
    b = log_gate.cumsum(0)
    return (b[:, None] - b).clamp(max=0).exp(), b.exp()


def prepare_ungated_system(k, v, beta, log_gate):
    decay, since = decays(log_gate)
    return prepared(k, v, beta, log_gate, torch.ones_like(decay), since)


def prepare_ungated_state(k, v, beta, log_gate):
    decay, since = decays(log_gate)
    return prepared(k, v, beta, log_gate, decay, torch.ones_like(since))


def prepare_state_too_early(k, v, beta, log_gate):
    decay, _ = decays(log_gate)
    return prepared(k, v, beta, log_gate, decay, (log_gate.cumsum(0) - log_gate).exp())


def prepare_own_gate(k, v, beta, log_gate):
    b = log_gate.cumsum(0)
    decay = (b[:, None] - b + log_gate).clamp(max=0).exp()
    return prepared(k, v, beta, log_gate, decay, b.exp())


def prepare_gate_before(k, v, beta, log_gate):
    b = log_gate.cumsum(0)
    decay = ((b - log_gate)[:, None] - b).clamp(max=0).exp()
    return prepared(k, v, beta, log_gate, decay, (b - log_gate).exp())


def prepare_no_gate(k, v, beta, log_gate):
    decay, since = decays(log_gate)
    return prepared(k, v, beta, log_gate, torch.ones_like(decay), torch.ones_like(since))


def prepare_quotient(k, v, beta, log_gate):
    since = log_gate.cumsum(0).exp()
    return prepared(k, v, beta, log_gate, since[:, None] / since, since)


def prepare_without_beta(k, v, beta, log_gate):
    decay, since = decays(log_gate)
    U, _ = prepared(k, v, beta, log_gate, decay, since)
    return U, solved((beta[:, None] * (k @ k.T)).mul(decay).tril(-1), since[:, None] * k)


def prepare_turned(k, v, beta, log_gate):
    U, W = prepare(k, v, beta, log_gate)
    return W, U


def prepare_unsolved(k, v, beta, log_gate):
    return prepare(k, v, beta, log_gate)[0], (beta * log_gate.cumsum(0).exp())[:, None] * k


def prepare_other_beta(k, v, beta, log_gate):
    decay, since = decays(log_gate)
    A = (beta * (k @ k.T)).mul(decay).tril(-1)
    return solved(A, beta[:, None] * v), solved(A, (beta * since)[:, None] * k)


PREPARE = Task(
    number="11.5",
    title="Corrections before the state is known",
    minutes=30,
    difficulty="hard",
    statement="""\
With one gate per token and a state $S_0$ before the chunk, the corrections of a chunk are

$$u_i = \\beta_i \\Big(v_i - a_i\\, k_i S_0 - \\sum_{j<i} d_{ij}\\,(k_i \\cdot k_j)\\, u_j\\Big), \\qquad a_i = \\alpha_1 \\cdots \\alpha_i, \\quad d_{ij} = \\alpha_{j+1} \\cdots \\alpha_i$$

All chunks shall be worked on at once, and $S_0$ is not known yet. The system is linear, so there are a U and a W with $u = U - W S_0$ for *every* $S_0$.
Write `prepare(k, v, beta, log_gate)`: `k` is [C, K], `v` is [C, V], `beta` and `log_gate` are [C], all in float64. Return `(U, W)`, [C, V] and [C, K].
Log-gates go down to -100, and chunks have up to 64 tokens, so nothing may overflow or be divided by a product of gates.""",
    hints=(
        "Set S_0 = 0: what is left gives U. The rest belongs to W. Both have the same matrix I + A.",
        "d_ij is exp of a difference of running sums of log_gate, clamped at 0; a_i is exp of the running sum.",
        "(I + A) [U | W] = [β v | β a k] with A = β_i d_ij k_i · k_j below the diagonal.",
    ),
    reference=prepare,
    inputs=prepare_inputs,
    returns=("U", "W"),
    tolerance=1e-5,
    survivors={
        "decay = (b - b.T).clamp(max=0).exp() → decay = (b - b.T).exp()": "above the diagonal, where alone "
        "the exponent is positive, `tril` drops the value, finite or not; only a gradient would suffer",
        "decay = (b - b.T).clamp(max=0).exp() → decay = (b - b.T).clamp(max=1).exp()": "above the diagonal, where "
        "alone the exponent is positive, `tril` drops the value",
    },
    section="chapter 11, section 5",
    mistakes=(
        Mistake(
            "no decay within the chunk",
            prepare_ungated_system,
            "Your A has no gates. What token j wrote has decayed by d_ij when token i reads it.",
            "chapter 11, section 5",
        ),
        Mistake(
            "no decay of the state",
            prepare_ungated_state,
            "Your W has no gates of its own: the state before the chunk has decayed by a_i when token i reads it.",
            "chapter 11, section 5",
        ),
        Mistake(
            "the state one gate short",
            prepare_state_too_early,
            "Your a_i stops at token i - 1. Token i's gate acts before its key reads, so it belongs to the product.",
            "chapter 11, section 5",
        ),
        Mistake(
            "the gate of the writer",
            prepare_own_gate,
            "Your d_ij begins with the gate of token j. That acts before j writes: the product starts at j + 1.",
            "chapter 11, section 5",
        ),
        Mistake(
            "reads before the gate",
            prepare_gate_before,
            "Your tokens read before their own gate acts: both products stop at i - 1. The state decays first, then it is corrected.",
            "chapter 11, section 5",
        ),
        Mistake(
            "no gates",
            prepare_no_gate,
            "Your system has no gates at all. It is DeltaNet's, and here each token has a gate.",
            "chapter 11, section 5",
        ),
        Mistake(
            "a quotient of products",
            prepare_quotient,
            "You divide a product of gates by another one. Both become 0 for strong gates, and 0/0 is NaN. Subtract the running sums, then take exp.",
            "chapter 11, section 5",
        ),
        Mistake(
            "β missing in W",
            prepare_without_beta,
            "β is missing on the right-hand side of W: it scales the whole difference, what is read of S_0 included.",
            "chapter 11, section 5",
        ),
        Mistake(
            "U and W swapped",
            prepare_turned,
            "You return (W, U); the task wants (U, W).",
            "chapter 11, section 5",
        ),
        Mistake(
            "the sign of W",
            lambda *args: (prepare(*args)[0], -prepare(*args)[1]),
            "Your W has the wrong sign. The minus stands in u = U - W S_0 already.",
            "chapter 11, section 5",
        ),
        Mistake(
            "W not solved for",
            prepare_unsolved,
            "Your W is the right-hand side, β a k. The tokens before correct it as well: the same system, the same I + A.",
            "chapter 11, section 5",
        ),
        Mistake(
            "β of the wrong token",
            prepare_other_beta,
            "Your A has β by its columns. β_i belongs to the row, the token that is corrected.",
            "chapter 11, section 5",
        ),
    ),
)


def look_back(weights, kv_heads):
    """weights [H, T, T], a causal softmax's, query first -> tokens [kv_heads]"""
    _, T, _ = weights.shape
    t = torch.arange(T)
    looked = (weights * (t[:, None] - t)).sum((1, 2)) / T
    return looked.reshape(kv_heads, -1).mean(1)


def look_back_inputs(draw: Draw) -> Iterator[Case]:
    for name, (H, T, kv_heads) in {
        "groups of three": (6, 9, 2),
        "as many key heads": (4, 12, 4),
        "one key head": (3, 7, 1),
        "H = T": (8, 8, 4),
        "longer": (4, 40, 2),
    }.items():
        scores = draw.normal(H, T, T, scale=3) + 4 * draw.normal(H, 1, 1) * torch.linspace(0, 1, T)
        hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
        yield Case(name, weights=scores.masked_fill(hidden, -torch.inf).softmax(-1), kv_heads=kv_heads)


def distances(weights):
    """Σ_j w_ij (i - j), [H, T]"""
    t = torch.arange(weights.shape[-1])
    return (weights * (t[:, None] - t)).sum(-1)


LOOK_BACK = Task(
    number="11.6",
    title="A half-life that the teacher tells",
    minutes=15,
    difficulty="medium",
    statement="""\
How far back does a softmax head look? A query i looks at the distance i - j with the weight $w_{ij}$, so its mean distance is $\\sum_j w_{ij}\\,(i - j)$. Average it over
all queries of the text, and then over the query heads that share a key head. That is a half-life for the key head, in tokens. Write
`look_back(weights, kv_heads)`: `weights` are a causal softmax's, [H, T, T] with the query in the row, and each row sums to 1. H is a multiple of
`kv_heads`: the first H / kv_heads query heads belong to key head 0, the next to key head 1, and so on. The result is [kv_heads].""",
    hints=(
        "`t[:, None] - t` with `t = torch.arange(T)` has i - j in row i and column j.",
        "Sum over the keys j, which are weighted already; take the mean over the queries i.",
        "`.reshape(kv_heads, -1).mean(1)` averages over each group of neighbouring heads.",
    ),
    reference=look_back,
    inputs=look_back_inputs,
    section="chapter 11, section 9",
    mistakes=(
        Mistake(
            "heads in turns",
            lambda weights, kv_heads: distances(weights).mean(-1).reshape(-1, kv_heads).mean(0),
            "You share the heads out in turns. Query heads of a key head are neighbours: the first H / kv_heads belong to key head 0.",
            "chapter 11, section 9",
        ),
        Mistake(
            "the sum over queries",
            lambda weights, kv_heads: distances(weights).sum(-1).reshape(kv_heads, -1).mean(1),
            "You sum over the queries. It is a mean, in tokens, and does not grow with the text for that reason.",
            "chapter 11, section 9",
        ),
        Mistake(
            "the mean over keys",
            lambda weights, kv_heads: distances(weights).mean(-1).reshape(kv_heads, -1).mean(1) / weights.shape[-1],
            "You take a mean over keys and over queries. The weights of a row sum to 1 already: sum over the keys.",
            "chapter 11, section 9",
        ),
        Mistake(
            "the wrong sign",
            lambda weights, kv_heads: -distances(weights).mean(-1).reshape(kv_heads, -1).mean(1),
            "Your distances are negative: they are i - j, the query's position minus the key's.",
            "chapter 11, section 9",
        ),
        Mistake(
            "the position",
            lambda weights, kv_heads: (
                (weights * torch.arange(weights.shape[-1])).sum(-1).mean(-1).reshape(kv_heads, -1).mean(1)
            ),
            "That is the mean position that is looked at, not the distance to it: i - j instead of j.",
            "chapter 11, section 9",
        ),
        Mistake(
            "the last query",
            lambda weights, kv_heads: distances(weights)[:, -1].reshape(kv_heads, -1).mean(1),
            "You took the last query alone. The average is over all queries of the text.",
            "chapter 11, section 9",
        ),
        Mistake(
            "one head of the group",
            lambda weights, kv_heads: distances(weights).mean(-1).reshape(kv_heads, -1)[:, 0],
            "You took the first query head of each group. All heads that share the key head count.",
            "chapter 11, section 9",
        ),
        Mistake(
            "where it looks most",
            lambda weights, kv_heads: (
                (torch.arange(weights.shape[-1]) - weights.argmax(-1)).float().mean(-1).reshape(kv_heads, -1).mean(1)
            ),
            "You took the distance of the largest weight. The mean distance weighs all keys.",
            "chapter 11, section 9",
        ),
        Mistake(
            "the sum of a group",
            lambda weights, kv_heads: distances(weights).mean(-1).reshape(kv_heads, -1).sum(1),
            "You add the heads of a group. It is their mean: a half-life does not grow with the number of heads.",
            "chapter 11, section 9",
        ),
        Mistake(
            "one token too far",
            lambda weights, kv_heads: 1 + distances(weights).mean(-1).reshape(kv_heads, -1).mean(1),
            "Your distances are one too large. A query that looks at its own key looks 0 tokens back.",
            "chapter 11, section 9",
        ),
    ),
)

TASKS = (DELTA_STEP, STORE, TWO_SIDED_FEATURES, CORRECTIONS, PREPARE, LOOK_BACK)
