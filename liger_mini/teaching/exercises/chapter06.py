"""Tasks of chapter 06: a recurrence and a small window."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from liger_mini.teaching.exercises.task import Case, Draw, Mistake, Task


def window_mask(T, window):
    """T tokens, a window of `window` ≥ 1 keys -> bool [T, T]"""
    t = torch.arange(T)
    age = t[:, None] - t[None, :]
    return (age >= 0) & (age < window)


def window_inputs(draw: Draw) -> Iterator[Case]:
    for T, window in ((8, 3), (1, 1), (1, 4), (5, 1), (5, 2), (5, 4), (5, 5), (4, 9), (2, 2)):
        yield Case("", T=T, window=window)
    T = draw.integer(12, 60)
    yield Case("", T=T, window=draw.integer(3, T - 3))


def ages(T: int) -> Tensor:
    """[T, T]: how many tokens the key of the column lies behind the query of the row."""
    t = torch.arange(T)
    return t[:, None] - t


def window_slices(T, window):
    mask = torch.zeros(T, T, dtype=torch.bool)
    for t in range(T):
        mask[t, t - window + 1 : t + 1] = True
    return mask


WINDOW_MASK = Task(
    number="06.1",
    title="The window, as a mask",
    minutes=10,
    difficulty="easy",
    statement="""\
In a window of W keys, query t sees key s if $t - W < s \\le t$: itself and the W - 1 before it.

Write `window_mask(T, window)`: a tensor of truth values (`torch.bool`) of the shape [T, T], True where the query of the row may
see the key of the column. The window is at least 1, and may be longer than the text.""",
    hints=(
        "How far is a key behind its query? `t[:, None] - t` with `t = torch.arange(T)` has the query in its row.",
        "That age has to be at least 0 and less than W.",
        "`(age >= 0) & (age < window)`. Count a row: it must have `window` times True, or fewer at the start of the text.",
    ),
    reference=window_mask,
    inputs=window_inputs,
    section="chapter 06, section 4",
    picture=True,
    mistakes=(
        Mistake(
            "one key too many",
            lambda T, window: (ages(T) >= 0) & (ages(T) <= window),
            "Your window has W + 1 keys: the current one counts, so the oldest is t - W + 1. The loss would hardly show it.",
            "chapter 06, section 5",
        ),
        Mistake(
            "one key too few",
            lambda T, window: (ages(T) >= 0) & (ages(T) < window - 1),
            "Your window has W - 1 keys. With W = 1 a token still sees itself; with yours it sees nothing.",
            "chapter 06, section 5",
        ),
        Mistake(
            "without the current key",
            lambda T, window: (ages(T) > 0) & (ages(T) <= window),
            "Your queries see the W keys before them and not their own. s ≤ t includes s = t.",
            "chapter 06, section 5",
        ),
        Mistake(
            "the future is visible",
            lambda T, window: ages(T) < window,
            "Your window has no upper edge: keys with s > t are visible. The age t - s is negative there, which is less than W as well.",
            "chapter 06, section 4",
        ),
        Mistake(
            "on both sides",
            lambda T, window: ages(T).abs() < window,
            "Your window lies on both sides of the query. A language model looks back only.",
            "chapter 06, section 4",
        ),
        Mistake(
            "no window",
            lambda T, window: ages(T) >= 0,
            "That is the mask of full causal attention: the window's lower edge is missing.",
            "chapter 06, section 4",
        ),
        Mistake(
            "rows and columns swapped",
            lambda T, window: ((ages(T) >= 0) & (ages(T) < window)).T,
            "Your rows belong to keys. A row is a query, and what it sees lies to the left of the diagonal.",
            "chapter 06, section 4",
        ),
        Mistake(
            "turned round",
            lambda T, window: (ages(T) < 0) | (ages(T) >= window),
            "Your mask is True where the key is hidden. True means visible here, as in `scaled_dot_product_attention`; `masked_fill` wants "
            "the opposite, `~mask`.",
            "chapter 06, section 2",
        ),
        Mistake(
            "0 and -inf",
            lambda T, window: torch.zeros(T, T).masked_fill((ages(T) < 0) | (ages(T) >= window), -torch.inf),
            "You return what is added to the scores, 0 and -inf. Asked are truth values.",
            "chapter 06, section 4",
        ),
        Mistake(
            "1 and 0",
            lambda T, window: ((ages(T) >= 0) & (ages(T) < window)).float(),
            "Right, but as floats 1 and 0. Give truth values: `.bool()`. As floats PyTorch would *add* them to the scores.",
            "chapter 06, section 4",
        ),
        Mistake(
            "a slice from before the text",
            window_slices,
            "Your rows at the start of the text are empty. There the window begins before key 0, and a negative start of a slice counts from the end: `max(0, start)`.",
            "chapter 06, section 4",
        ),
    ),
)


def window_and_sink_mask(T, window, sinks):
    """T tokens, window ≥ 1, sinks from 0 to T -> bool [T, T]"""
    t = torch.arange(T)
    age = t[:, None] - t[None, :]
    return (age >= 0) & ((age < window) | (t < sinks))


def sink_inputs(draw: Draw) -> Iterator[Case]:
    sizes = (
        (9, 3, 2),
        (8, 3, 0),
        (6, 2, 6),
        (7, 1, 1),
        (10, 2, 4),
        (1, 1, 0),
        (1, 1, 1),
        (5, 9, 2),
        (5, 5, 1),
        (6, 4, 3),
    )
    for T, window, sinks in sizes:
        yield Case("", T=T, window=window, sinks=sinks)
    T = draw.integer(20, 60)
    yield Case("", T=T, window=draw.integer(3, 8), sinks=draw.integer(2, 8))


def sinks_whatever_the_time(T, window, sinks):
    return window_mask(T, window) | (torch.arange(T) < sinks)


def sinks_inside_the_window(T, window, sinks):
    return (ages(T) >= 0) & ((ages(T) < window - sinks) | (torch.arange(T) < sinks))


def sinks_as_queries(T, window, sinks):
    return (ages(T) >= 0) & ((ages(T) < window) | (torch.arange(T)[:, None] < sinks))


def sinks_at_the_end(T, window, sinks):
    return (ages(T) >= 0) & ((ages(T) < window) | (torch.arange(T) >= T - sinks))


def sinks_behind_the_window(T, window, sinks):
    mask = window_mask(T, window)
    mask[window:, :sinks] = True
    return mask


WINDOW_AND_SINK_MASK = Task(
    number="06.2",
    title="A window and attention sinks",
    minutes=10,
    difficulty="medium",
    statement="""\
Trained models put much of their attention on the first tokens of a text, whatever these say: *attention sinks*. A window that slides
past them takes that place away, so some models keep the first few keys visible for good.

Write `window_and_sink_mask(T, window, sinks)`: `torch.bool` of the shape [T, T], True where the query of the row may see the key of the
column. Visible are the keys of the window, as in task 06.1, and the first `sinks` keys of the text, but never a key in the
query's future. `sinks` goes from 0 to T, and the window keeps its `window` keys whatever `sinks` is.""",
    hints=(
        "Two reasons to be visible, joined by *or*; one condition that holds for both, joined by *and*.",
        "Key s is a sink if s < sinks. Which axis is s?",
        "`(age >= 0) & ((age < window) | (t < sinks))`: here `t` runs along the columns.",
    ),
    reference=window_and_sink_mask,
    inputs=sink_inputs,
    section="chapter 06, section 12",
    picture=True,
    mistakes=(
        Mistake(
            "sinks seen from their past",
            sinks_whatever_the_time,
            "Your sinks are visible to queries *before* them. Token 0 sees token 1 if both are sinks: the future leaks.",
            "chapter 06, section 4",
        ),
        Mistake(
            "no sinks",
            lambda T, window, sinks: window_mask(T, window),
            "Your mask is the window alone: the first keys vanish once it has passed them.",
            "chapter 06, section 12",
        ),
        Mistake(
            "one sink too many",
            lambda T, window, sinks: (ages(T) >= 0) & ((ages(T) < window) | (torch.arange(T) <= sinks)),
            "You keep one sink too many. The first `sinks` keys are those with s < sinks; sinks = 0 keeps none.",
            "chapter 06, section 12",
        ),
        Mistake(
            "one sink too few",
            lambda T, window, sinks: (ages(T) >= 0) & ((ages(T) < window) | (torch.arange(T) < sinks - 1)),
            "You keep one sink too few: keys count from 0, so the first `sinks` of them are 0 to sinks - 1.",
            "chapter 06, section 12",
        ),
        Mistake(
            "sinks inside the window's budget",
            sinks_inside_the_window,
            "Your window shrinks by the number of sinks. Here the sinks are added to its `window` keys.",
            "chapter 06, section 12",
        ),
        Mistake(
            "queries in place of keys",
            sinks_as_queries,
            "You let the first *queries* see everything before them. A sink is a key: a column that stays visible.",
            "chapter 06, section 12",
        ),
        Mistake(
            "and for or",
            lambda T, window, sinks: (ages(T) >= 0) & (ages(T) < window) & (torch.arange(T) < sinks),
            "You ask for both: in the window *and* a sink. One of the two is enough.",
            "chapter 06, section 12",
        ),
        Mistake(
            "the last keys",
            sinks_at_the_end,
            "Your sinks are the last keys of the text. They are its first.",
            "chapter 06, section 12",
        ),
        Mistake(
            "the window one key too wide",
            lambda T, window, sinks: (ages(T) >= 0) & ((ages(T) <= window) | (torch.arange(T) < sinks)),
            "The sinks are right, but your window has W + 1 keys: the current one counts.",
            "chapter 06, section 5",
        ),
        Mistake(
            "the window one key too narrow",
            lambda T, window, sinks: (ages(T) >= 0) & ((ages(T) < window - 1) | (torch.arange(T) < sinks)),
            "The sinks are right, but your window has W - 1 keys: the current one and W - 1 others belong into it.",
            "chapter 06, section 5",
        ),
        Mistake(
            "a window widened by the sinks",
            lambda T, window, sinks: (ages(T) >= 0) & ((ages(T) < window + sinks) | (torch.arange(T) < sinks)),
            "Your window grows by the number of sinks. It keeps its `window` keys; the sinks are others, at the start of the text.",
            "chapter 06, section 12",
        ),
        Mistake(
            "sinks set behind the window",
            sinks_behind_the_window,
            "You open the sinks for the queries behind the first window, without asking whether they lie in the future. With many sinks and a short window some do.",
            "chapter 06, section 12",
        ),
        Mistake(
            "no upper edge",
            lambda T, window, sinks: (ages(T) < window) | (torch.arange(T) < sinks),
            "Your mask shows the future: nothing asks for age ≥ 0. That condition holds for window and sinks alike.",
            "chapter 06, section 4",
        ),
    ),
)


def rotate(x, positions, theta):
    """x [T, K], K even; positions [T] (int64); theta a number -> [T, K]"""
    half = x.shape[-1] // 2
    angle = positions[:, None] * theta ** (-torch.arange(half) / half)  # [T, K/2]
    left, right = x[:, :half], x[:, half:]
    return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], dim=-1)


def rotate_inputs(draw: Draw) -> Iterator[Case]:
    start = draw.integer(30, 100)
    yield Case("positions from 0", x=draw.normal(6, 8), positions=torch.arange(6), theta=10000.0)
    yield Case("positions from elsewhere", x=draw.normal(5, 4), positions=start + torch.arange(5), theta=500.0)
    yield Case(
        "the first two are padding", x=draw.normal(6, 6), positions=torch.tensor([0, 0, 0, 1, 2, 3]), theta=100.0
    )
    yield Case("one pair of channels", x=draw.normal(3, 2), positions=torch.tensor([1, 5, 2]), theta=10000.0)
    yield Case("one token", x=draw.normal(1, 8), positions=torch.tensor([7]), theta=10.0)


def _turned(
    x: Tensor,
    positions: Tensor,
    frequency: Tensor,
    sign: int = 1,
    left: slice | None = None,
    right: slice | None = None,
) -> Tensor:
    """Pairs of channels, turned by position x frequency; [T, K/2, 2] as two halves again."""
    half = x.shape[-1] // 2
    a, b = x[:, left or slice(half)], x[:, right or slice(half, None)]
    angle = sign * positions[:, None] * frequency
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def frequencies(x: Tensor, theta: float) -> Tensor:
    half = x.shape[-1] // 2
    return theta ** (-torch.arange(half) / half)


def rotate_neighbours(x, positions, theta):
    turned = _turned(x, positions, frequencies(x, theta), 1, slice(0, None, 2), slice(1, None, 2))
    return torch.stack(turned.chunk(2, dim=-1), dim=-1).flatten(-2)


def rotate_by_row(x, positions, theta):
    return _turned(x, torch.arange(len(x)), frequencies(x, theta))


def rotate_slowly(x, positions, theta):
    K = x.shape[-1]
    return _turned(x, positions, theta ** (-torch.arange(K // 2) / K))


def rotate_alone(x, positions, theta):
    angle = positions[:, None] * frequencies(x, theta).repeat(2)
    return x * angle.cos() + torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1) * angle.sin()


def rotate_overwritten(x, positions, theta):
    half, x = x.shape[-1] // 2, x.clone()
    angle = positions[:, None] * frequencies(x, theta)
    x[:, :half] = x[:, :half] * angle.cos() - x[:, half:] * angle.sin()
    x[:, half:] = x[:, half:] * angle.cos() + x[:, :half] * angle.sin()
    return x


ROTATE = Task(
    number="06.3",
    title="Rotary embedding, at given positions",
    minutes=20,
    difficulty="medium",
    statement="""\
The window reads queries and keys *after* rotary embedding. As Llama has it, channel i and channel i + K/2 form a pair, for i from 0 to
K/2 - 1, and the pair of token t is turned by the angle $p_t\\,\\theta^{-2i/K}$, where $p_t$ is the token's position:

$$x'_i = x_i \\cos - x_{i+K/2} \\sin, \\qquad x'_{i+K/2} = x_{i+K/2} \\cos + x_i \\sin$$

Write `rotate(x, positions, theta)`: `x` is [T, K] with an even K, `positions` is [T] and holds whole numbers, the result is [T, K].
Positions need not begin at 0: a decoded token stands alone in its tensor and far back in its text.""",
    hints=(
        "The K/2 frequencies: `theta ** (-torch.arange(half) / half)`; -2i/K is -i/(K/2).",
        "An angle for each token and pair, [T, K/2]: `positions[:, None] * frequencies`.",
        "Take the left and the right half of the channels, turn them, and `torch.cat` them along the last axis.",
    ),
    reference=rotate,
    inputs=rotate_inputs,
    tolerance=2e-4,  # an angle of 100 has steps of 1e-5 in float32
    section="chapter 06, section 3",
    mistakes=(
        Mistake(
            "neighbours as pairs",
            rotate_neighbours,
            "You pair neighbouring channels, 2i with 2i + 1, as the paper on rotary embedding does. In Llama's checkpoints channel i turns "
            "with i + K/2. Weights trained for one are nonsense with the other.",
            "chapter 06, section 3",
        ),
        Mistake(
            "the row for the position",
            rotate_by_row,
            "You count rows of x. In decoding there is one row, whose position is hundreds of tokens into the text: use `positions`.",
            "chapter 06, section 3",
        ),
        Mistake(
            "turned the other way",
            lambda x, positions, theta: _turned(x, positions, frequencies(x, theta), -1),
            "You turn the other way: the signs of the two sines are exchanged. Among your own tensors nobody would notice; with a cache "
            "rotated by others it is wrong.",
            "chapter 06, section 3",
        ),
        Mistake(
            "frequencies too high",
            rotate_slowly,
            "Your exponent is -i/K. It is -2i/K, so that the slowest pair turns with almost 1/θ.",
            "chapter 06, section 3",
        ),
        Mistake(
            "one frequency",
            lambda x, positions, theta: _turned(x, positions, torch.ones(x.shape[-1] // 2)),
            "All your pairs turn at the same rate, by the position itself. Pair i turns by position times θ^(-2i/K).",
            "chapter 06, section 3",
        ),
        Mistake(
            "growing frequencies",
            lambda x, positions, theta: _turned(
                x, positions, theta ** (torch.arange(x.shape[-1] // 2) / (x.shape[-1] // 2))
            ),
            "Your frequencies grow with i. The exponent is negative: pair 0 is the fastest.",
            "chapter 06, section 3",
        ),
        Mistake(
            "both signs plus",
            rotate_alone,
            "You add in both halves. A rotation needs one minus: x_i cos - x_(i+K/2) sin. Without it lengths change.",
            "chapter 06, section 3",
        ),
        Mistake(
            "a half overwritten",
            rotate_overwritten,
            "Your second half is computed from the first after it was turned. Both formulas read the old x: keep it until both are done.",
            "chapter 06, section 3",
        ),
        Mistake(
            "counted from the first token",
            lambda x, positions, theta: rotate(x, positions - positions[0], theta),
            "You count positions from the first token of the tensor. In decoding that token is far back in its text: use its position as it is.",
            "chapter 06, section 3",
        ),
    ),
)


def ring_step(q, k, v, keys, values, t):
    """q, k [K]; v [V]; keys [W, K]; values [W, V]; t: tokens before this one -> o [V], keys [W, K], values [W, V]"""
    W = len(keys)
    keys, values = keys.clone(), values.clone()
    keys[t % W], values[t % W] = k, v
    weights = (keys[: t + 1] @ q / len(q) ** 0.5).softmax(0)  # a slice ends with the last slot
    return weights @ values[: t + 1], keys, values


def ring_inputs(draw: Draw) -> Iterator[Case]:
    steps = {
        "the first token": (4, 0),
        "half full": (5, 2),
        "full for the first time": (4, 3),
        "the oldest is overwritten": (4, 4),
        "far on": (5, 5 * draw.integer(20, 40) + 3),
        "a window of 1": (1, 6),
        "a window of 1, the first token": (1, 0),
    }
    for name, (W, t) in steps.items():
        K, V = (3, 3) if name == "half full" else (4, 2)
        token = {"q": draw.normal(K, scale=2), "k": draw.normal(K, scale=2), "v": draw.normal(V)}
        yield Case(name, **token, keys=draw.normal(W, K, scale=2), values=draw.normal(W, V), t=t)


def _ring(q, keys, values, scale=None):
    weights = (keys @ q / (len(q) ** 0.5 if scale is None else scale)).softmax(0)
    return weights @ values


def _written(x: Tensor, slot: int, row: Tensor) -> Tensor:
    x = x.clone()
    x[slot] = row
    return x


def ring_unscaled(q, k, v, keys, values, t):
    _, keys, values = ring_step(q, k, v, keys, values, t)
    n = min(t + 1, len(keys))
    return _ring(q, keys[:n], values[:n], 1.0), keys, values


def ring_reads_empty_slots(q, k, v, keys, values, t):
    _, keys, values = ring_step(q, k, v, keys, values, t)
    return _ring(q, keys, values), keys, values


def ring_one_key_too_many(q, k, v, keys, values, t):
    n = min(t, len(keys))
    o = _ring(q, torch.cat([keys[:n], k[None]]), torch.cat([values[:n], v[None]]))
    return o, *ring_step(q, k, v, keys, values, t)[1:]


def ring_reads_first(q, k, v, keys, values, t):
    n = min(t, len(keys))
    o = _ring(q, keys[:n], values[:n]) if n else torch.zeros_like(v)
    return o, *ring_step(q, k, v, keys, values, t)[1:]


def ring_slot_late(q, k, v, keys, values, t):
    W = len(keys)
    keys, values = _written(keys, (t + 1) % W, k), _written(values, (t + 1) % W, v)
    return _ring(q, keys[: t + 1], values[: t + 1]), keys, values


def ring_shifted(q, k, v, keys, values, t):
    keys, values = torch.cat([keys[1:], k[None]]), torch.cat([values[1:], v[None]])
    n = min(t + 1, len(keys))
    return _ring(q, keys[-n:], values[-n:]), keys, values


def ring_stops_when_full(q, k, v, keys, values, t):
    W = len(keys)
    if t < W:
        return ring_step(q, k, v, keys, values, t)
    return ring_step(q, k, v, keys, values, W - 1)


def ring_in_place(q, k, v, keys, values, t):
    keys[t % len(keys)], values[t % len(keys)] = k, v
    return _ring(q, keys[: t + 1], values[: t + 1]), keys, values


def ring_one_short(q, k, v, keys, values, t):
    _, keys, values = ring_step(q, k, v, keys, values, t)
    n = min(t, len(keys))
    return _ring(q, keys[:n], values[:n]), keys, values


def ring_emptied_late(q, k, v, keys, values, t):
    _, keys, values = ring_step(q, k, v, keys, values, t)
    weights = (keys @ q / len(q) ** 0.5).softmax(0) * (torch.arange(len(keys)) <= t)
    return weights @ values, keys, values


RING_STEP = Task(
    number="06.4",
    title="A cache that goes round",
    minutes=20,
    difficulty="hard",
    statement="""\
A window of W needs the last W keys and values, and no more. A *ring buffer* has W slots: token t is written into slot t mod W, over
the token that has just left the window. Then its query attends to all slots that were written so far. (Their order does not matter:
softmax attention does not see it, and rotated keys carry their positions.)

$$o = \\sum_s \\mathrm{softmax}_s\\!\\left(\\frac{q \\cdot k_s}{\\sqrt K}\\right) v_s$$

Write `ring_step(q, k, v, keys, values, t)` for one token and one head: `q` and `k` are [K], `v` is [V], `keys` is [W, K], `values` is
[W, V], and t counts from 0. Slots that were never written hold arbitrary numbers. Return `(o, keys, values)` and leave the buffers
that you were given as they are.""",
    hints=(
        "Write first, then read: the token sees itself.",
        "After token t, min(t + 1, W) slots are written, and they are the first ones.",
        "`keys = keys.clone(); keys[t % W] = k`, the same for values, then `(keys[: t + 1] @ q / K ** 0.5).softmax(0) @ values[: t + 1]`: a "
        "slice that is too long ends with the last slot.",
    ),
    reference=ring_step,
    inputs=ring_inputs,
    returns=("o", "keys", "values"),
    survivors={
        "weights = (keys[:t + 1] @ q / len(q) ** 0.5).softmax(0) → weights = (keys[:t + 1] @ q / len(q) ** 0.5).softmax(-1)": "the scores "
        "have one axis, which is the first and the last",
    },
    section="chapter 06, section 6",
    mistakes=(
        Mistake(
            "no √K",
            ring_unscaled,
            "Your scores are not divided by √K, so the softmax is sharper than the one the weights were trained with.",
            "chapter 06, section 4",
        ),
        Mistake(
            "empty slots are read",
            ring_reads_empty_slots,
            "At the start of a text you attend to slots that nothing was written into yet. Only the first min(t + 1, W) count.",
            "chapter 06, section 6",
        ),
        Mistake(
            "one key too many",
            ring_one_key_too_many,
            "You attend to W old keys and the new one: W + 1. The oldest has left the window; overwrite it before you read.",
            "chapter 06, section 5",
        ),
        Mistake(
            "reads before it writes",
            ring_reads_first,
            "Your query reads the buffer before its own key is in it. The window includes the current token, also if it is the first.",
            "chapter 06, section 5",
        ),
        Mistake(
            "one slot too far",
            ring_slot_late,
            "You write into slot t + 1. Token 0 belongs into slot 0, and then the first t + 1 slots are filled.",
            "chapter 06, section 6",
        ),
        Mistake(
            "everything is moved",
            ring_shifted,
            "You move all keys by one slot and append the new one. That is a right cache and another one: in a ring a key stays where it is, "
            "so that a step writes one row and not W.",
            "chapter 06, section 6",
        ),
        Mistake(
            "the last slot for ever",
            ring_stops_when_full,
            "Once your buffer is full, every token overwrites the last slot, and the first tokens are never forgotten. The slot goes round: "
            "t mod W.",
            "chapter 06, section 6",
        ),
        Mistake(
            "changes the buffers in place",
            ring_in_place,
            "Your numbers are right, but you write into the caller's buffers. (A real cache does just that. Here the caller still needs them: "
            "clone.)",
            "chapter 06, section 6",
        ),
        Mistake(
            "one slot short",
            ring_one_short,
            "You read min(t, W) slots, after writing. Token 0 has one slot to read, its own: min(t + 1, W).",
            "chapter 06, section 6",
        ),
        Mistake(
            "emptied after the softmax",
            ring_emptied_late,
            "You set the weights of empty slots to 0 after the softmax. The others then sum to less than 1: leave the slots out of the softmax.",
            "chapter 06, section 4",
        ),
    ),
)


def find_window(attend, T):
    """attend: (q [T, K], k [T, K], v [T, V]) -> [T, V]; T tokens -> int"""
    q = torch.zeros(T, 1)
    weights = attend(q, q, torch.eye(T))
    return int((weights[-1] > 0).sum())


class Attention:
    """Causal softmax attention of one head; how far back it sees is for others to find out."""

    def __init__(self, seen: int) -> None:
        self._seen = seen

    def __repr__(self) -> str:
        return "a layer"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        age = ages(q.shape[-2])
        hidden = (age < 0) | (age >= self._seen)
        return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf).softmax(-1) @ v


def find_inputs(draw: Draw) -> Iterator[Case]:
    T = draw.integer(20, 50)
    for tokens, seen in ((12, 4), (12, 3), (12, 1), (12, 12), (9, 30), (1, 1), (16, 15), (T, draw.integer(5, T - 2))):
        yield Case("", attend=Attention(seen), T=tokens)


def weights_of(attend, T):
    return attend(torch.zeros(T, 1), torch.zeros(T, 1), torch.eye(T))


def find_by_late_change(attend, T):
    """Changes the last value but one."""
    v = torch.zeros(T, 1)
    v[-2:-1] = 1
    return int((attend(torch.zeros(T, 1), torch.zeros(T, 1), v) != 0).sum())


FIND_WINDOW = Task(
    number="06.5",
    title="How many keys does it really see?",
    minutes=15,
    difficulty="medium",
    statement="""\
Somebody hands you an attention layer and says "W = 16". A window that is off by one changes the loss by a percent, so find out for
yourself: call it.

`attend(q, k, v)` takes q and k [T, K] and v [T, V], for one head and any K and V you like, and returns [T, V]. It is causal softmax
attention, with a window or without. Write `find_window(attend, T)`: how many keys the *last* of T tokens sees, its own included, as
an int. (A window longer than T shows itself as T.)""",
    hints=(
        "You choose the values. With which values does the output tell the weights themselves?",
        "With the identity matrix: then row t of the output holds the weights of query t. With q = k = 0 all visible keys weigh the same.",
        "`weights = attend(q, q, torch.eye(T))`, then count what is larger than 0 in the last row.",
    ),
    reference=find_window,
    inputs=find_inputs,
    section="chapter 06, section 5",
    survivors={
        "q = torch.zeros(T, 1) → q = torch.zeros(T, 2)": "the scores are 0 for any number of channels",
        "q = torch.zeros(T, 1) → q = torch.ones(T, 1)": "equal scores give equal weights, whatever they are",
    },
    mistakes=(
        Mistake(
            "the oldest key's age",
            lambda attend, T: int((weights_of(attend, T)[-1] > 0).sum()) - 1,
            "You count the keys before the current one, the W - 1 that a cache keeps. W includes the current key.",
            "chapter 06, section 5",
        ),
        Mistake(
            "one too many",
            lambda attend, T: int((weights_of(attend, T)[-1] > 0).sum()) + 1,
            "One key too many: count the visible keys of the last query. Its own is among them already.",
            "chapter 06, section 5",
        ),
        Mistake(
            "the first query",
            lambda attend, T: int((weights_of(attend, T)[0] > 0).sum()),
            "You look at the first query, which sees nothing but itself in any window. Look at the last.",
            "chapter 06, section 4",
        ),
        Mistake(
            "all queries",
            lambda attend, T: int((weights_of(attend, T) > 0).sum()),
            "You count the visible pairs of all queries. Asked is one query, the last.",
            "chapter 06, section 4",
        ),
        Mistake(
            "a change too near the end",
            find_by_late_change,
            "You change one value and count the outputs that move, which is a good test. But only the tokens from it to the end can move: "
            "change the first value, not one of the last.",
            "chapter 06, section 5",
        ),
        Mistake(
            "believed",
            lambda attend, T: 16,
            "You return what you were told. Call `attend` and look.",
            "chapter 06, section 5",
        ),
        Mistake(
            "the length of the text",
            lambda attend, T: T,
            "You return T, as if every key were visible. Without a window that is right; look at the weights.",
            "chapter 06, section 4",
        ),
        Mistake(
            "cut off",
            lambda attend, T: int(1 / weights_of(attend, T)[-1, -1].item()),
            "You take 1 / weight, a good idea, and `int` cuts 2.9999999 down to 2. Round, or count the weights above 0.",
            "chapter 06, section 5",
        ),
    ),
)


def token_positions(mask):
    """mask [B, T]: 1 for a token, 0 for padding (int64) -> [B, T] (int64)"""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def positions_inputs(draw: Draw) -> Iterator[Case]:
    yield Case("one row in full", mask=torch.ones(1, 5, dtype=torch.int64))
    yield Case("rows of 5, 2 and 1 tokens", mask=torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]))
    T = draw.integer(12, 40)
    yield Case(
        "rows of any length",
        mask=(torch.arange(T) >= torch.tensor([[draw.integer(1, T - 2)] for _ in range(4)])).long(),
    )


POSITIONS = Task(
    number="06.6",
    title="Positions behind padding",
    minutes=5,
    difficulty="easy",
    statement="""\
In a batch, shorter texts are padded on the left. Rotary embedding counts positions from the first *real* token, so that a text gets the
same angles alone and in a batch. Write `token_positions(mask)`: `mask` is [B, T], whole numbers (`torch.int64`), 1 for a token and 0 for
padding; the result is [B, T], `torch.int64` as well: 0, 1, 2, … for the tokens of a row. Padding gets position 0.""",
    hints=(
        "How many tokens of a row have come so far? A running sum of the mask.",
        "The first token has had 1 so far and wants 0. And the padding before it?",
        "`(mask.cumsum(-1) - 1).clamp(min=0)`.",
    ),
    reference=token_positions,
    inputs=positions_inputs,
    section="chapter 06, section 7",
    mistakes=(
        Mistake(
            "padding counts",
            lambda mask: torch.arange(mask.shape[1]).expand(mask.shape),
            "You count the padding as well. A text then gets other angles in a batch than alone.",
            "chapter 06, section 7",
        ),
        Mistake(
            "counted from 1",
            lambda mask: mask.cumsum(-1),
            "Your first token has position 1. Positions count from 0.",
            "chapter 06, section 7",
        ),
        Mistake(
            "-1 at the padding",
            lambda mask: mask.cumsum(-1) - 1,
            "The tokens are right, but padding gets -1. Clamp it to 0: a position of -1 is an index from the end for some embeddings.",
            "chapter 06, section 7",
        ),
        Mistake(
            "along the batch",
            lambda mask: (mask.cumsum(0) - 1).clamp(min=0),
            "You sum over the rows of the batch. Time is the last axis.",
            "chapter 06, section 7",
        ),
        Mistake(
            "padding on the right",
            lambda mask: torch.arange(mask.shape[1]) * mask,
            "You hide the padding's positions and still count from the start of the row. That is right for padding on the right; here it is "
            "on the left.",
            "chapter 06, section 7",
        ),
    ),
)

TASKS = (WINDOW_MASK, WINDOW_AND_SINK_MASK, ROTATE, RING_STEP, FIND_WINDOW, POSITIONS)
