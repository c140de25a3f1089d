"""Tasks of chapter 10: speed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from liger_mini.teaching.exercises.task import Case, Draw, Mistake, Task


def prefill_flops(T, K, V, window, chunk):
    """tokens; widths of a key and a value; W; C -> FLOPs per token and head: softmax, liger (floats)"""
    pair = 2 * (K + V)
    softmax = T / 2 * pair
    liger = 4 * K * V + (chunk - 1) / 2 * pair + 2 * window * pair
    return softmax, liger


def prefill_inputs(draw: Draw) -> Iterator[Case]:
    sizes = {
        "the paper's sizes": (1024, 64, 64, 64, 32),
        "where both are equal": (415, 64, 64, 64, 32),
        "values narrower than keys": (4096, 128, 48, 16, 64),
        "chunks of one token": (300, 8, 8, 4, 1),
        "": (draw.integer(500, 9000), draw.integer(16, 90), draw.integer(91, 200), draw.integer(17, 200), 16),
    }
    for name, (T, K, V, window, chunk) in sizes.items():
        yield Case(name, T=T, K=K, V=V, window=window, chunk=chunk)


def prefill_parts(T, K, V, window, chunk):
    """softmax, state, chunk, window"""
    return T * (K + V), 4 * K * V, (chunk - 1) * (K + V), 4 * window * (K + V)


def prefill_of(change):
    """A wrong answer: other parts from the right ones, and the sum of the last three."""

    def answer(T, K, V, window, chunk):
        softmax, *liger = change(*prefill_parts(T, K, V, window, chunk), T, K, V)
        return float(softmax), float(sum(liger))

    return answer


PREFILL_FLOPS = Task(
    number="10.1",
    title="Count a prefill",
    minutes=15,
    difficulty="medium",
    statement="""\
Count FLOPs, per token and head, of reading T tokens. A multiplication and an addition are one FLOP each, so a dot product of K numbers
has 2K. Wherever a query *meets* a key there is a score (a dot product over K channels) and a weighted value (V channels).

* Softmax attention: a query meets T/2 keys on average.
* Liger: the state is K x V. A token adds an outer product to it, and reads it: 2 FLOPs for each number of the state, each time. In its chunk of C
  tokens, a query meets (C - 1)/2 others on average. In its window, which is computed in blocks, it meets 2W keys.

Write `prefill_flops(T, K, V, window, chunk)`, which returns `(softmax, liger)`, two numbers. T is larger than 2W. For which T are
they equal if K = V = W = 64 and C = 32?""",
    hints=(
        "A meeting costs 2K for the score and 2V for the value.",
        "Softmax: T/2 · 2 (K + V). Writing and reading the state: 2KV + 2KV.",
        "Liger: 4KV + (C - 1)(K + V) + 4W (K + V).",
    ),
    reference=prefill_flops,
    inputs=prefill_inputs,
    returns=("softmax", "liger"),
    section="chapter 10, section 3",
    mistakes=(
        Mistake(
            "every query meets every key",
            prefill_of(lambda softmax, state, chunk, window, T, K, V: (2 * softmax, state, chunk, window)),
            "Your softmax query meets all T keys. It is causal: over the text it meets T/2 on average.",
            "chapter 10, section 3",
        ),
        Mistake(
            "a product and a sum are one",
            prefill_of(lambda softmax, state, chunk, window, T, K, V: (softmax / 2, state / 2, chunk / 2, window / 2)),
            "You counted a multiplication and its addition as one. Those are multiply-accumulates; FLOPs are twice as many.",
            "chapter 10, section 3",
        ),
        Mistake(
            "scores alone",
            prefill_of(
                lambda softmax, state, chunk, window, T, K, V: (
                    softmax * K / (K + V),
                    state,
                    chunk * K / (K + V),
                    window * K / (K + V),
                )
            ),
            "You counted the scores. Each weight is then multiplied with a value of V channels.",
            "chapter 10, section 3",
        ),
        Mistake(
            "the state is touched once",
            prefill_of(lambda softmax, state, chunk, window, T, K, V: (softmax, state / 2, chunk, window)),
            "You touch the state once. A token is written into it, and the query reads it: 2KV each.",
            "chapter 10, section 3",
        ),
        Mistake(
            "a window without blocks",
            prefill_of(lambda softmax, state, chunk, window, T, K, V: (softmax, state, chunk, window / 2)),
            "Your window has W keys. The blocked form computes 2W for every query and masks half of them.",
            "chapter 10, section 3",
        ),
        Mistake(
            "a whole chunk",
            prefill_of(
                lambda softmax, state, chunk, window, T, K, V: (softmax, state, 2 * chunk, window),
            ),
            "In your chunk a query meets all others, the later ones too. It is causal: (C - 1)/2 on average.",
            "chapter 10, section 3",
        ),
        Mistake(
            "all tokens",
            prefill_of(lambda softmax, state, chunk, window, T, K, V: (T * softmax, T * state, T * chunk, T * window)),
            "That is for all T tokens together. Asked is one token's share.",
            "chapter 10, section 3",
        ),
    ),
)


def crossing(lengths, ratios):
    """lengths, rising, and a ratio for each, > 0, lists -> the length where the ratio first rises to 1 (float), or None"""
    for i in range(1, len(lengths)):
        if ratios[i - 1] < 1 <= ratios[i]:
            share = math.log(1 / ratios[i - 1]) / math.log(ratios[i] / ratios[i - 1])
            return lengths[i - 1] * (lengths[i] / lengths[i - 1]) ** share
    return None


def crossing_inputs(draw: Draw) -> Iterator[Case]:
    r = [float(draw.uniform(low=low, high=low + 0.3)) for low in (0.3, 0.5, 1.2, 2.0)]
    for name, lengths, ratios in (
        ("the paper's decoding", [1024, 2048, 4096, 8192, 16384], [0.615, 0.662, 0.815, 1.185, 1.971]),
        ("", [512, 1024, 4096, 8192], r),
        ("in the first interval", [100, 1000, 2000], [0.2, 1.7, 4.0]),
        ("in the last interval", [64, 256, 300, 900], [0.2, 0.1, 0.4, 1.3]),
        ("never", [512, 1024, 2048], [0.3, 0.5, 0.9]),
        ("from the start", [512, 1024, 2048], [1.3, 2.0, 4.0]),
        ("falling", [512, 1024, 2048], [1.6, 0.9, 0.5]),
        ("exactly 1 at a length", [256, 512, 1024], [0.5, 1.0, 2.0]),
        ("down, and up again", [128, 256, 512, 1024, 2048], [1.4, 0.7, 1.3, 0.8, 2.0]),
        ("one length", [512], [0.5]),
    ):
        yield Case(name, lengths=lengths, ratios=ratios)


def crossing_straight(lengths, ratios):
    for i in range(1, len(lengths)):
        low, high = ratios[i - 1], ratios[i]
        if low < 1 <= high:
            return lengths[i - 1] + (1 - low) / (high - low) * (lengths[i] - lengths[i - 1])
    return None


def crossing_semilog(lengths, ratios):
    for i in range(1, len(lengths)):
        low, high = ratios[i - 1], ratios[i]
        if low < 1 <= high:
            return lengths[i - 1] * (lengths[i] / lengths[i - 1]) ** ((1 - low) / (high - low))
    return None


def crossing_measured(lengths, ratios):
    for i in range(1, len(lengths)):
        if ratios[i - 1] < 1 <= ratios[i]:
            return float(lengths[i])
    return None


def crossing_any(lengths, ratios):
    for i in range(1, len(lengths)):
        if (ratios[i - 1] - 1) * (ratios[i] - 1) <= 0:
            share = math.log(1 / ratios[i - 1]) / math.log(ratios[i] / ratios[i - 1])
            return lengths[i - 1] * (lengths[i] / lengths[i - 1]) ** share
    return None


def crossing_last(lengths, ratios):
    found = None
    for i in range(1, len(lengths)):
        if ratios[i - 1] < 1 <= ratios[i]:
            share = math.log(1 / ratios[i - 1]) / math.log(ratios[i] / ratios[i - 1])
            found = lengths[i - 1] * (lengths[i] / lengths[i - 1]) ** share
    return found


def crossing_from_the_start(lengths, ratios):
    return float(lengths[0]) if ratios[0] >= 1 else crossing(lengths, ratios)


def crossing_guessed(lengths, ratios):
    return crossing(lengths, ratios) or float(lengths[-1])


CROSSING = Task(
    number="10.2",
    title="Where the curves cross",
    minutes=15,
    difficulty="medium",
    statement="""\
Softmax's time divided by Liger's was measured at a few lengths. Below 1 Liger is the slower one. Write `crossing(lengths, ratios)`: the
length at which the ratio first rises to 1. Both arguments are lists; the lengths rise. Between two measured lengths the ratio is taken to lie on a
straight line in *log-log* (the logarithm of the ratio against the logarithm of the length). The result is a float, or None if no measured
ratio below 1 is followed by one of at least 1: then nobody knows where the crossing is.""",
    hints=(
        "Look for neighbours with `ratios[i - 1] < 1 <= ratios[i]`.",
        "The logarithm of the ratio has to get to log 1 = 0. Which share of the way between the two neighbours is that?",
        "With that share s, the length is `lengths[i - 1] * (lengths[i] / lengths[i - 1]) ** s`.",
    ),
    reference=crossing,
    inputs=crossing_inputs,
    section="chapter 10, section 4",
    mistakes=(
        Mistake(
            "a straight line without logarithms",
            crossing_straight,
            "Your line is straight in the lengths themselves. Lengths double from one to the next, so take both logarithms.",
            "chapter 10, section 4",
        ),
        Mistake(
            "one logarithm",
            crossing_semilog,
            "You took the logarithm of the length and not that of the ratio. In log-log both axes have one.",
            "chapter 10, section 4",
        ),
        Mistake(
            "the next measured length",
            crossing_measured,
            "You return the first measured length with a ratio of at least 1. The crossing lies between it and the one before.",
            "chapter 10, section 4",
        ),
        Mistake(
            "falling counts",
            crossing_any,
            "You take a ratio that falls through 1 for a crossing as well. Asked is where it first *rises* to 1.",
            "chapter 10, section 4",
        ),
        Mistake(
            "the last crossing",
            crossing_last,
            "Where the ratio crosses more than once, you return the last crossing. Asked is the first.",
            "chapter 10, section 4",
        ),
        Mistake(
            "above from the start",
            crossing_from_the_start,
            "Where the first ratio is above 1 already you return its length. It did not rise to 1 there: the crossing, if any, was earlier, "
            "where nobody measured.",
            "chapter 10, section 4",
        ),
        Mistake(
            "a number where none is known",
            crossing_guessed,
            "You return a length although the ratio never rises to 1. What was not measured is None.",
            "chapter 10, section 4",
        ),
    ),
)


def in_turns(variants, repeats, clock):
    """variants {name: function()}; repeats, odd; clock() -> seconds now -> {name: median seconds of a call}"""
    for call in variants.values():
        call()
    seconds = {name: [] for name in variants}
    for _ in range(repeats):
        for name, call in variants.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def run_in_turns(answer, variants, repeats, clock):
    """On a machine of cardboard: a variant takes `variants[name]` seconds, ten times as long at first, and the machine slows down."""
    now, order = [clock], []

    def work(name):
        def call():
            first = name not in order
            slowdown = 1 + 0.1 * (len(order) // 2) + (3 if len(order) % 7 == 6 else 0)  # and it hiccups
            order.append(name)
            now[0] += variants[name] * slowdown * (10 if first else 1)

        return call

    medians = answer({name: work(name) for name in variants}, repeats, lambda: now[0])
    return medians, order


def turns_inputs(draw: Draw) -> Iterator[Case]:
    a, b, c = (float(draw.uniform(low=low, high=low + 0.5)) for low in (1.0, 2.0, 3.0))
    yield Case("two variants", variants={"softmax": a, "liger": b}, repeats=5, clock=0.0)
    yield Case("three variants", variants={"naive": c, "chunked": a, "sdpa": b}, repeats=7, clock=100.0)
    yield Case("one repeat", variants={"one": 0.5, "the other": 0.5}, repeats=1, clock=3.0)
    yield Case("one variant", variants={"alone": b}, repeats=9, clock=0.0)


def timed(variants, rounds, clock):
    """Seconds of calls by name, in the order of `rounds`."""
    seconds = {name: [] for name in variants}
    for name in rounds:
        start = clock()
        variants[name]()
        seconds[name].append(clock() - start)
    return seconds


def turns_cold(variants, repeats, clock):
    seconds = timed(variants, list(variants) * repeats, clock)
    return {name: statistics.median(times) for name, times in seconds.items()}


def turns_first_counts(variants, repeats, clock):
    seconds = timed(variants, list(variants) * (repeats + 1), clock)
    return {name: statistics.median(times) for name, times in seconds.items()}


def turns_in_blocks(variants, repeats, clock):
    for call in variants.values():
        call()
    seconds = timed(variants, [name for name in variants for _ in range(repeats)], clock)
    return {name: statistics.median(times) for name, times in seconds.items()}


def turns_warm_blocks(variants, repeats, clock):
    seconds = timed(variants, [name for name in variants for _ in range(repeats + 1)], clock)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def turns_mean(variants, repeats, clock):
    seconds = timed(variants, list(variants) * (repeats + 1), clock)
    return {name: statistics.mean(times[1:]) for name, times in seconds.items()}


def turns_fastest(variants, repeats, clock):
    seconds = timed(variants, list(variants) * (repeats + 1), clock)
    return {name: min(times[1:]) for name, times in seconds.items()}


def turns_one_start(variants, repeats, clock):
    for call in variants.values():
        call()
    seconds = {name: [] for name in variants}
    for _ in range(repeats):
        start = clock()
        for name, call in variants.items():
            call()
            seconds[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


IN_TURNS = Task(
    number="10.3",
    title="A stopwatch that is fair",
    minutes=20,
    difficulty="medium",
    statement="""\
A first call is slow, a machine changes its speed while you measure, and now and then something else runs. Write
`in_turns(variants, repeats, clock)`: `variants` is a dictionary from names to functions without arguments, `repeats` is odd, and `clock()` tells the
time in seconds. In this order:

1. Call every variant once, to warm up. This call does not count.
2. Make `repeats` rounds. In each of them every variant is called once, in the dictionary's order, and timed by itself.

Return a dictionary from names to the median seconds of a call. (The check has a clock of its own and looks at the order of the calls. In a notebook,
`time.perf_counter` is a clock.)""",
    hints=(
        "Two loops: over the rounds outside, over the variants inside. Which one is inside is the whole point.",
        "Read the clock right before a call and right after it, and append the difference to the variant's list.",
        "`statistics.median(times)` for each list.",
    ),
    reference=in_turns,
    inputs=turns_inputs,
    run=run_in_turns,
    returns=("the medians", "the order of the calls"),
    section="chapter 10, section 1",
    mistakes=(
        Mistake(
            "no warm-up",
            turns_cold,
            "You time from the first call on. It is slow for reasons that have nothing to do with the variant: call each once before.",
            "chapter 10, section 1",
        ),
        Mistake(
            "the warm-up counts",
            turns_first_counts,
            "Your first call is among the timed ones. The warm-up does not count, and `repeats` rounds come after it.",
            "chapter 10, section 1",
        ),
        Mistake(
            "one variant after the other",
            turns_in_blocks,
            "You repeat one variant, then the next. If the machine slows down in between, the second one pays for it. Rounds are outside, "
            "variants inside.",
            "chapter 10, section 1",
        ),
        Mistake(
            "everything in blocks",
            turns_warm_blocks,
            "You warm up one variant, time it, and go on to the next. All are warmed up first, and then they take turns, so that a slower "
            "machine slows all of them.",
            "chapter 10, section 1",
        ),
        Mistake(
            "the mean",
            turns_mean,
            "You take the mean. A single hiccup of the machine moves it; the median does not mind.",
            "chapter 10, section 1",
        ),
        Mistake(
            "the fastest",
            turns_fastest,
            "You take the fastest run. It is useful to know, but the task wants the median.",
            "chapter 10, section 1",
        ),
        Mistake(
            "one start for a round",
            turns_one_start,
            "You read the clock once per round, so each variant's time has those before it in it. Read it before every call.",
            "chapter 10, section 1",
        ),
    ),
)


def cache_bytes(T, batch, layers, heads, kv_heads, width, window):
    """tokens so far; sizes of the model, K = V = width; W -> bytes held: softmax, liger (ints)"""
    memories = batch * layers * kv_heads
    softmax = memories * 2 * T * width * 2
    liger = memories * (width * width * 4 + 2 * min(T, window - 1) * width * 2)
    return softmax, liger


def cache_inputs(draw: Draw) -> Iterator[Case]:
    for name, sizes in {
        "Llama-3-8B, batch 16": (16384, 16, 32, 32, 8, 128, 64),
        "a short prompt": (10, 1, 4, 8, 2, 32, 64),
        "as long as the window": (64, 2, 3, 4, 4, 16, 64),
        "one token less": (63, 2, 3, 4, 4, 16, 64),
        "": (draw.integer(100, 5000), draw.integer(2, 9), draw.integer(10, 40), 12, 3, draw.integer(33, 90), 17),
    }.items():
        names = ("T", "batch", "layers", "heads", "kv_heads", "width", "window")
        yield Case(name, **dict(zip(names, sizes)))


def cache_of(change):
    """A wrong answer: the right function of other arguments, or another sum of the right parts."""

    def answer(T, batch, layers, heads, kv_heads, width, window):
        memories = batch * layers * kv_heads
        parts = 4 * T * width, 4 * width**2, 4 * min(T, window - 1) * width
        return tuple(int(x) for x in change(memories, *parts, T, heads, kv_heads, width, window))

    return answer


CACHE_BYTES = Task(
    number="10.4",
    title="What is held while writing",
    minutes=15,
    difficulty="medium",
    statement="""\
After T tokens, how many bytes does a model hold for its past? Keys and values are bfloat16 (2 bytes each number), and there is one memory for each
row of the batch, layer and key/value head.

* Softmax attention holds a key and a value of `width` numbers for every token.
* Liger holds a state of width x width numbers in float32 (4 bytes), and the keys and values of the last W - 1 tokens, or of all of them as long as there are
  fewer: the next token brings its own.

Write `cache_bytes(T, batch, layers, heads, kv_heads, width, window)`, which returns `(softmax, liger)`, two ints. (`heads` are the query heads.)
Then compute both for Llama-3-8B at 16,384 tokens: batch 16, 32 layers, 32 heads, 8 key/value heads, width 128, window 64.""",
    hints=(
        "Begin with one memory, and multiply by batch · layers · kv_heads at the end.",
        "Softmax: 2 · T · width numbers of 2 bytes.",
        "Liger: 4 · width² for the state, and 2 · min(T, W - 1) · width numbers of 2 bytes.",
    ),
    reference=cache_bytes,
    inputs=cache_inputs,
    returns=("softmax", "liger"),
    survivors={
        "liger = memories * (width * width * 4 + 2 * min(T, window - 1) * width * 2) → liger = memories * "
        "(width * width * 4 + 2 * min(window - 1, T) * width * 2)": "the smaller of two numbers, in either order",
    },
    section="chapter 10, section 7",
    mistakes=(
        Mistake(
            "a memory for each query head",
            cache_of(lambda m, cache, state, near, T, h, kv, w, W: (m * cache * h // kv, m * (state + near) * h // kv)),
            "You gave each query head a memory. Query heads of a group share the keys and values of one key/value head.",
            "chapter 10, section 7",
        ),
        Mistake(
            "keys alone",
            cache_of(lambda m, cache, state, near, T, h, kv, w, W: (m * cache // 2, m * (state + near // 2))),
            "You counted keys and no values. Both are held.",
            "chapter 10, section 7",
        ),
        Mistake(
            "everything in float32",
            cache_of(lambda m, cache, state, near, T, h, kv, w, W: (m * cache * 2, m * (state + near * 2))),
            "Your keys and values have 4 bytes a number. They are bfloat16; only the state is float32.",
            "chapter 10, section 7",
        ),
        Mistake(
            "everything in bfloat16",
            cache_of(lambda m, cache, state, near, T, h, kv, w, W: (m * cache, m * (state // 2 + near))),
            "Your state has 2 bytes a number. It is a long sum and is kept in float32.",
            "chapter 10, section 7",
        ),
        Mistake(
            "a whole window",
            cache_of(lambda m, cache, state, near, T, h, kv, w, W: (m * cache, m * (state + 4 * min(T, W) * w))),
            "You hold W tokens of the window. The next query brings its own key, so W - 1 of the past are enough.",
            "chapter 10, section 7",
        ),
        Mistake(
            "a full window from the start",
            cache_of(lambda m, cache, state, near, T, h, kv, w, W: (m * cache, m * (state + 4 * (W - 1) * w))),
            "Your window is full from the first token on. Before W - 1 tokens have come there are only T to hold.",
            "chapter 10, section 7",
        ),
        Mistake(
            "no window",
            cache_of(lambda m, cache, state, near, T, h, kv, w, W: (m * cache, m * state)),
            "You counted Liger's state and forgot its window, which holds keys and values as well.",
            "chapter 10, section 7",
        ),
    ),
)


def fewer_bytes_from(K, V, window):
    """widths of a key and a value; W -> a number of tokens (int)"""
    return 2 * K * V // (K + V) + window + 1


def fewer_inputs(draw: Draw) -> Iterator[Case]:
    for K, V, window in ((64, 64, 64), (128, 128, 64), (5, 7, 3), (1, 1, 1), (3, 6, 10)):
        yield Case("", K=K, V=V, window=window)
    yield Case("", K=draw.integer(10, 200), V=draw.integer(10, 200), window=draw.integer(5, 300))


FEWER_BYTES_FROM = Task(
    number="10.5",
    title="When decoding moves fewer bytes",
    minutes=10,
    difficulty="medium",
    statement="""\
To write a token, everything that is remembered is read. Softmax attention reads T keys and T values. Liger reads its K x V state, writes it back, and reads
W keys and W values. All numbers have the same size. Write `fewer_bytes_from(K, V, window)`: the smallest context T, as an int, at which Liger moves
*fewer* numbers per head than softmax attention. (T turns out larger than W.)""",
    hints=(
        "Softmax moves T (K + V) numbers.",
        "Liger moves 2 K V + W (K + V), whatever T is.",
        "Divide by K + V. Where both move the same, one token more is needed: round down and add 1.",
    ),
    reference=fewer_bytes_from,
    inputs=fewer_inputs,
    section="chapter 10, section 6",
    mistakes=(
        Mistake(
            "the state is only read",
            lambda K, V, window: K * V // (K + V) + window + 1,
            "You read the state once. After the token is written into it, it goes back to memory: 2 K V numbers.",
            "chapter 10, section 6",
        ),
        Mistake(
            "the window is free",
            lambda K, V, window: 2 * K * V // (K + V) + 1,
            "You forgot the window. Its W keys and values are read for every token, too.",
            "chapter 10, section 6",
        ),
        Mistake(
            "as many are not fewer",
            lambda K, V, window: 2 * K * V // (K + V) + window,
            "A token too few: with yours softmax does not move more than Liger yet.",
            "chapter 10, section 6",
        ),
        Mistake(
            "rounded up",
            lambda K, V, window: -(-2 * K * V // (K + V)) + window,
            "You round up. Where the division leaves no rest both move the same, and one more token is needed.",
            "chapter 10, section 6",
        ),
        Mistake(
            "keys alone",
            lambda K, V, window: 2 * V + window + 1,
            "Your softmax reads keys and no values. It reads K + V numbers for a token, and so does the window.",
            "chapter 10, section 6",
        ),
        Mistake(
            "not a whole number",
            lambda K, V, window: 2 * K * V / (K + V) + window,
            "That is where the two move the same, seldom a whole number of tokens. Give the first whole number above it.",
            "chapter 10, section 6",
        ),
    ),
)


def growth(lengths, per_token):
    """lengths in tokens, rising, and the seconds per token at each, lists -> p of time ~ T^p (float)"""
    return 1 + math.log(per_token[-1] / per_token[0]) / math.log(lengths[-1] / lengths[0])


def growth_inputs(draw: Draw) -> Iterator[Case]:
    lengths = [256, 512, 2048, 8192]
    p, s = float(draw.uniform(low=1.3, high=1.9)), float(draw.uniform(low=1, high=9))
    for name, seconds in {
        "a recurrence that wobbles": [30e-6, 48e-6, 28e-6, 29e-6],
        "softmax": [s * 1e-6 * T ** (p - 1) for T in lengths],
        "fixed costs": [90e-6, 50e-6, 20e-6, 14e-6],
        "exactly linear": [5e-6] * 4,
        "quadratic": [1e-7 * T for T in lengths],
    }.items():
        yield Case(name, lengths=lengths, per_token=seconds)
    yield Case("two lengths", lengths=[1000, 3000], per_token=[2e-6, 5e-6])


def growth_fitted(lengths, per_token):
    x, y = ([math.log(value) for value in values] for values in (lengths, per_token))
    return 1 + statistics.linear_regression(x, y).slope


def growth_of_neighbours(lengths, per_token):
    n = len(lengths)
    slopes = [math.log(per_token[i] / per_token[i - 1]) / math.log(lengths[i] / lengths[i - 1]) for i in range(1, n)]
    return 1 + sum(slopes) / len(slopes)


GROWTH = Task(
    number="10.6",
    title="Is it linear?",
    minutes=10,
    difficulty="easy",
    statement="""\
"Liger's time per token does not grow, so its time does not grow." Fit $\\text{time} \\sim T^p$, where time is that of all T tokens. Write
`growth(lengths, per_token)`: `lengths` are numbers of tokens, rising, and `per_token` are the seconds *per token* at each. Return p as a float, from the
shortest and the longest length alone: the slope of a straight line in log-log.""",
    hints=(
        "The time of all tokens is T times the time per token.",
        "p = log(time at the longest / time at the shortest) / log(longest / shortest).",
        "So p is 1 + log(per_token[-1] / per_token[0]) / log(lengths[-1] / lengths[0]).",
    ),
    reference=growth,
    inputs=growth_inputs,
    section="chapter 10, section 5",
    mistakes=(
        Mistake(
            "time per token",
            lambda lengths, per_token: growth(lengths, per_token) - 1,
            "That is the exponent of the time per token, 0 for a linear cost. The time of all tokens has one more power of T.",
            "chapter 10, section 5",
        ),
        Mistake(
            "no logarithms",
            lambda lengths, per_token: (
                (lengths[-1] * per_token[-1]) / (lengths[0] * per_token[0]) * lengths[0] / lengths[-1]
            ),
            "You divide how much the time grew by how much the length grew. An exponent is a ratio of their logarithms.",
            "chapter 10, section 5",
        ),
        Mistake(
            "upside down",
            lambda lengths, per_token: 1 / growth(lengths, per_token),
            "Your slope is upside down: the logarithm of the time goes above the line, that of the length below.",
            "chapter 10, section 5",
        ),
        Mistake(
            "a fit through all",
            growth_fitted,
            "You fitted a line through all lengths. That is sound too, but the task wants the slope between the first and the last.",
            "chapter 10, section 5",
        ),
        Mistake(
            "the mean of slopes",
            growth_of_neighbours,
            "You average the slopes between neighbours, whatever their distance. The task wants one slope, between the first and the last.",
            "chapter 10, section 5",
        ),
        Mistake(
            "the wrong sign",
            lambda lengths, per_token: 2 - growth(lengths, per_token),
            "Your sign is turned: time per token that rises with the length makes p larger than 1.",
            "chapter 10, section 5",
        ),
    ),
)

TASKS = (PREFILL_FLOPS, CROSSING, IN_TURNS, CACHE_BYTES, FEWER_BYTES_FROM, GROWTH)
