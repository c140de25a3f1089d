"""Right answers to chapter 10's tasks that are not the reference: two for each."""

import math

import torch

from liger_mini.teaching.counting import crossover


def prefill_by_formula(T, K, V, window, chunk):
    return T * (K + V), 4 * K * V + (chunk - 1 + 4 * window) * (K + V)


def prefill_by_meetings(T, K, V, window, chunk):
    """Keys that are met, summed over a whole text and a whole chunk."""
    cost = {"score": 2 * K, "value": 2 * V}
    met = [T / 2, sum(range(chunk)) / chunk + 2 * window]
    softmax, liger = (sum(n * flops for flops in cost.values()) for n in met)
    return [softmax, liger + 2 * (2 * K * V)]


def crossing_by_lines(lengths, ratios):
    x, y = ([math.log2(value) for value in values] for values in (lengths, ratios))
    for x0, y0, x1, y1 in zip(x, y, x[1:], y[1:]):
        if y0 < 0 <= y1:
            return 2 ** (x0 - y0 * (x1 - x0) / (y1 - y0))
    return None


def turns_zipped(variants, repeats, clock):
    seconds = []
    for round_ in range(repeats + 1):
        row = []
        for call in variants.values():
            begin = clock()
            call()
            row.append(clock() - begin)
        if round_ > 0:
            seconds.append(row)
    return {name: sorted(column)[repeats // 2] for name, column in zip(variants, zip(*seconds))}


def turns_of_tensors(variants, repeats, clock):
    [call() for call in variants.values()]
    stamps = torch.zeros(repeats, len(variants), dtype=torch.float64)
    for i in range(repeats):
        for j, name in enumerate(variants):
            begin = clock()
            variants[name]()
            stamps[i, j] = clock() - begin
    return dict(zip(variants, stamps.median(0).values))


def cache_numbers(T, batch, layers, heads, kv_heads, width, window):
    softmax = liger = 0
    for _ in range(layers):
        for _ in range(kv_heads):
            softmax += batch * 2 * 2 * T * width
            near = T if window > T else window - 1
            liger += batch * (4 * width**2 + 4 * near * width)
    return softmax, liger


def cache_tensors(T, batch, layers, heads, kv_heads, width, window):
    with torch.device("meta"):
        keys = torch.empty(layers, batch, kv_heads, T, width, dtype=torch.bfloat16)
        near = keys[..., max(T - (window - 1), 0) :, :]
        state = torch.empty(layers, batch, kv_heads, width, width)
    held = [2 * x.numel() * x.element_size() for x in (keys, near)]
    return held[0], held[1] + state.numel() * state.element_size()


def fewer_bytes_search(K, V, window):
    T = 1
    while 2 * K * V + min(T, window) * (K + V) >= T * (K + V):
        T += 1
    return T


def growth_of_times(lengths, per_token):
    first, last = lengths[0] * per_token[0], lengths[-1] * per_token[-1]
    return math.log(last / first, lengths[-1] / lengths[0])


def growth_in_log_log(lengths, per_token):
    T, s = (torch.tensor(x, dtype=torch.float64) for x in (lengths, per_token))
    x, y = T.log10(), (T * s).log10()
    return (y[-1] - y[0]) / (x[-1] - x[0])


ANSWERS = {
    "10.1": (prefill_by_formula, prefill_by_meetings),
    "10.2": (crossing_by_lines, crossover),
    "10.3": (turns_zipped, turns_of_tensors),
    "10.4": (cache_numbers, cache_tensors),
    "10.5": (fewer_bytes_search, lambda K, V, window: math.floor(window + 2 / (1 / K + 1 / V) + 1e-9) + 1),
    "10.6": (growth_of_times, growth_in_log_log),
}
