"""Every figure shows the numbers it was given, says them in words, names its axes, and refuses what it cannot draw."""

import functools
import math

import numpy as np
import pytest
import torch

import liger_mini as lm
from liger_mini.recurrences import diagonal
from liger_mini.structures import DeltaNet
from liger_mini.teaching import counting, figures
from liger_mini.teaching.counting import crossover, decode_bytes, kernel_cost, prefill_flops
from liger_mini.teaching.figures import attention, chunks, collapse, conversion, gates, kernels, speed, theme, window
from liger_mini.teaching.figures.conversion import loss_after_conversion
from liger_mini.teaching.figures.structures import attention_maps, reset_curves, state_at

ADDING = [name for name, structure in lm.structures.items() if not isinstance(structure, DeltaNet)]
NAMES, VALUES = ["Ada", "Ben", "Cleo", "Dan"], ["Rome", "Oslo", "Cork", "Bern"]
GROWTH = {"softmax": [64.0, 256.0, 1024.0], "recurrence": [8.0, 16.0, 32.0]}
ERRORS = {"random": [0.0, 0.9, 2.1], "softmax": [0.0, 0.0, 0.01]}
WEIGHTS = {"no gate": torch.arange(1, 6) / 4, "gate": torch.full((5,), 0.25)}
COSINES = {"keys": [0.9, -0.25], "φ(keys)": [0.95, 0.4]}
FLOPS = {"diagonal": {8: 17_280, 32: 20_352}, "scalar": {8: 18_432, 32: 24_576}}
SPREAD = {"full": {"perplexity": (10.7, 0.2)}, "no window": {"perplexity": (30.0, 1.0)}}
RECOVERIES = [
    {"structure": structure, "name": name, "steps": steps, "outside": outside, "error": 0.02, "window_only": 0.02}
    | {"variation": False}
    for structure, name, steps, outside in (("gla", "GLA", 400, 0.4), ("lightnet", "LightNet", 800, 0.7))
]
CACHES = {"softmax": [4096, 65536], "Liger": [8192, 8192]}
SECONDS = {"SDPA": [0.001, 0.004], "Liger": [0.002, 0.004]}
PARTS = dict(zip(counting.PARTS, (0.5, 0.25, 0.125, 0.125)))
STATE = {
    "model.embed_tokens.weight": torch.zeros(10, 4),
    "model.layers.0.self_attn.k_proj.weight": torch.zeros(4, 4),
    "model.layers.0.self_attn.k_proj.bias": torch.zeros(4),
    "model.layers.1.self_attn.k_proj.weight": torch.zeros(4, 4),
    "model.layers.1.input_layernorm.weight": torch.zeros(4),
    "model.norm.weight": torch.zeros(4),
}
NORMAL = torch.randn(2, 20, 32, 64, generator=torch.Generator().manual_seed(0))
STATES = {"sum": NORMAL[0].cumsum(0), "average": NORMAL[1]}


def visible(T, W):
    """Who sees whom, by the package's own window: values that are the identity give the weights."""
    q, k = torch.randn(2, 1, T, 1, 4, generator=torch.Generator().manual_seed(0))
    return lm.sliding_window_attention(q, k, torch.eye(T)[None, :, None], W)[0, :, 0] > 0


X_TITLE, Y_TITLE = "layout.xaxis.title.text", "layout.yaxis.title.text"
# (the figure, what is seen where, words): a place is Plotly's own path, [:] every item; x and y are the axes' titles
FIGURES = {
    "growth": (
        lambda: attention.growth([8, 16, 32], GROWTH, title="Time", unit="time (ms)"),
        {"x": "T (tokens)", "y": "time (ms)", "layout.xaxis.type": "log", "layout.yaxis.type": "log"}
        | {"data[0].x": [8, 16, 32], "data[:].name": list(GROWTH), "data[:].y": list(GROWTH.values())},
        ["softmax 64 to 1,024, as T to the 2.00", "recurrence 8 to 32, as T to the 1.00"],
    ),
    "interference": (
        lambda: attention.interference([1, 5, 17], ERRORS, width=4),
        {"x": "stored facts n", "y": "error / length of the value", "layout.shapes[:].x0": [4]}
        | {"data[:].y": [*ERRORS.values(), [0, 1, 2]]},  # and beside them the theory
        ["random 0.00 to 2.10; softmax 0.00 to 0.01"],
    ),
    "total_weight": (
        lambda: attention.total_weight(WEIGHTS),
        {"x": "t (tokens)", "y": "sum of weights", "data[0].x": [1, 2, 3, 4, 5]}
        | {"data[0].y": pytest.approx([0.25, 0.5, 0.75, 1.0, 1.25])},
        ["no gate 1.25; gate 0.25"],
    ),
    "key_overlap": (
        lambda: attention.key_overlap(COSINES),
        {"y": "mean cosine of two keys", "layout.yaxis.range": pytest.approx([-0.25, 1.15])}
        | {"data[:].name": list(COSINES), "data[:].y": list(COSINES.values())},
        ["keys 0.90, -0.25; φ(keys) 0.95, 0.40"],
    ),
    "forgetting": (
        lambda: gates.forgetting({"fast": [1, 0.5, 0.25], "slow": [1, 0.9, 0.81]}, [0, 1, 2], window=2),
        {"x": "age (tokens)", "y": "share left", "data[:].y": [[1, 0.5, 0.25], [1, 0.9, 0.81]]},
        ["After 2 tokens: fast 0.25; slow 0.81"],
    ),
    "pooled_spread": (
        lambda: gates.pooled_spread({"layer 0": [2.0, 1.0, 0.5]}, [64, 8, 1]),
        {"y": "standard deviation of P", "data[0].x": [64, 8, 1], "data[0].y": [2.0, 1.0, 0.5]},
        ["layer 0 from 2.00 to 0.50"],
    ),
    "gates_over_tokens": (  # channels are sorted
        lambda: gates.gates_over_tokens(torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.3, 0.5]]), ["Ada", "lives"]),
        {"y": "channel (by mean gate)", "layout.xaxis.ticktext": ["Ada", "lives"]}
        | {"data[0].z": [[0.1, 0.3], [0.5, 0.5], [0.9, 0.8]]},
        [f"over tokens is {(0.1 + 0.2) / 3 / 2**0.5:.2f}"],
    ),
    "variance_bars": (
        lambda: gates.variance_bars({"layer 0": PARTS}),
        {"y": "share of the variance of P", "layout.barmode": "stack"}
        | {"data[:].name": list(PARTS), "data[:].y": [[part] for part in PARTS.values()]},
        ["layer 0: channel 0.50, kind of token 0.25"],
    ),
    "reset_curves": (
        lambda: reset_curves({"gla": [1.0, 0.8, 0.4], "linear": [1.0, 1.0, 1.0]}, [0, 4, 16]),
        {"y": "share of the old fact left"}
        | {"data[:].x": [[0, 4, 16]] * 2, "data[:].y": [[1.0, 0.8, 0.4], [1.0, 1.0, 1.0]]},
        ["At strength 16: gla 0.40; linear 1.00"],
    ),
    "flops_by_chunk": (
        lambda: chunks.flops_by_chunk(FLOPS, marked=32),
        {"y": "FLOPs per token and head", "layout.shapes[:].x0": [32]}
        | {"data[:].name": list(FLOPS), "data[:].x": [[8, 32]] * 2}
        | {"data[:].y": [[17_280, 20_352], [18_432, 24_576]]},
        ["diagonal 17,280 at C = 8 and 20,352 at C = 32"],
    ),
    "program_map": (
        lambda: kernels.program_map(torch.tensor([[0, 0, 1], [0, 0, 1], [2, 2, 3]]), starts=[0, 2]),
        {"y": "token t", "data[0].z": [[0, 0, 1], [0, 0, 1], [2, 2, 3]], "layout.annotations[:].text": list("0123")},
        ["3 tokens by 3 columns, written by 4 programs: each writes one block of 1 to 4"],
    ),
    "band": (  # seen, masked, skipped
        lambda: window.band(visible(6, 2), 2),
        {"x": "key s (token)", "y": "query t (token)", "layout.title.text": "W = 2: 20 scores for 11 seen"}
        | {"data[:].name": [None, "skipped", "masked", "seen"]}
        | {"data[0].z": [[int(digit) for digit in row] for row in "210000 220000 122100 112200 001221 001122".split()]},
        ["11 seen of 36; the blocks around it hold 20"],
    ),
    "gaps": (  # zero has no logarithm
        lambda: window.gaps({"intact": torch.tensor([0.0, 1e-6]), "no window": torch.tensor([1e-6, 0.5])}),
        {"x": "t (tokens)", "y": "relative difference", "layout.yaxis.type": "log", "data[0].x": [1, 2]}
        | {"data[0].y": pytest.approx([1e-9, 1e-6]), "data[1].y": pytest.approx([1e-6, 0.5])},
        ["intact 1.0e-06 at the most; no window 5.0e-01"],
    ),
    "loss_by_window": (
        lambda: window.loss_by_window([1, 4, 16], {"window only": [6.5, 3.0, 2.25]}, 2.0),
        {"x": "window W (tokens)", "y": "loss (nats per token)", "layout.shapes[:].y0": [2.0]}
        | {"data[0].x": [1, 4, 16], "data[0].y": [6.5, 3.0, 2.25]},
        ["windows of 1, 4, 16 tokens: window only 6.50, 3.00, 2.25. The teacher has 2.00"],
    ),
    "parameters_before_and_after": (
        lambda: conversion.parameters_before_and_after(STATE, STATE | {"model.gate_proj.weight": torch.zeros(4, 4)}),
        {"x": "parameters (thousands)"}
        | {"data[0].y": ["embed_tokens", "k_proj", "norms"], "data[0].x": [0.04, 0.036, 0.008]}
        | {"data[1].y": ["embed_tokens", "k_proj", "norms", "gate_proj"], "data[1].x": [0.04, 0.036, 0.008, 0.016]},
        ["before 84 in 6 tensors; after 100 in 7 tensors"],
    ),
    "loss_after_conversion": (
        lambda: loss_after_conversion({"gla": 7.5, "rwkv6": 3.25}, references={"teacher": 2.0, "window only": 2.5}),
        {"x": "loss (nats per token)", "data[0].text": ["7.50", "3.25"]}
        | {"data[:].name": [None, "teacher 2.00", "window only 2.50"]}
        | {"data[:].x": [[7.5, 3.25], [2.0, 2.0], [2.5, 2.5]], "data[:].y": [["gla", "rwkv6"]] * 3},
        ["gla 7.50, rwkv6 3.25. teacher: 2.00. window only: 2.50."],
    ),
    "next_token": (
        lambda: conversion.next_token(["Rome", "Oslo"], [0.75, 0.25], [0.5, 0.125], name="gla, mix 0.5", loss=0.693),
        {"y": "probability", "layout.xaxis.ticktext": ["Rome", "Oslo"], "data[:].y": [[0.75, 0.25], [0.5, 0.125]]},
        ["'Rome' 0.75, the converted model 0.50, a loss of 0.69 nats"],
    ),
    "cache_growth": (
        lambda: conversion.cache_growth([16, 256], CACHES),
        {"y": "cache (KiB)", "layout.xaxis.tickvals": [16, 64, 256]}
        | {"data[:].name": list(CACHES), "data[:].y": [[4.0, 64.0], [8.0, 8.0]]},
        ["softmax from 4,096 to 65,536 bytes; Liger from 8,192 to 8,192 bytes"],
    ),
    "retention": (
        lambda: collapse.retention({"8B": ((73.0, 72.4), (65.3, 43.4))}),
        {"data[0].y": pytest.approx([99.18], abs=0.01), "data[1].y": pytest.approx([66.46], abs=0.01)},
        ["8B 66 %"],
    ),
    "spread_bars": (
        lambda: collapse.spread_bars(SPREAD, "perplexity", "perplexity", title="Table 6"),
        {"x": "perplexity", "data[0].x": [10.7, 30.0], "data[0].error_x.array": [0.2, 1.0]},
        ["no window 30.00 ± 1.00"],
    ),
    "remedies": (
        lambda: collapse.remedies(RECOVERIES, 0.99),
        {"y": "recall outside (share)", "data[:].name": ["gla", "lightnet"], "data[:].y": [[0.4], [0.7]]}
        | {"data[:].customdata": [[["GLA", 400]], [["LightNet", 800]]], "data[0].x": pytest.approx([400], rel=0.03)}
        | {"data[1].x": pytest.approx([800], rel=0.03)},  # a little aside
        ["for 2 recoveries", "LightNet 0.70; GLA 0.40"],
    ),
    "needles_by_length": (
        lambda: collapse.needles_by_length({"GLA": {128: (0.5, 4), 1024: (0.0, 4)}, "GSA": {128: (1.0, 4)}}, title=""),
        {"y": "needles found (share)", "layout.xaxis.ticktext": ["128", "1 K"]}
        | {"data[:].x": [[128, 1024], [128]], "data[:].y": [[0.5, 0.0], [1.0]], "data[0].error_y.array": [0.25, 0.0]},
        ["GLA: 128 tokens 0.50, 1,024 tokens 0.00; GSA: 128 tokens 1.00"],
    ),
    "time_against_length": (
        lambda: speed.time_against_length([1000, 2000], SECONDS, title="Prefill"),
        {"y": "time (µs per token)", "data[:].name": list(SECONDS), "data[:].y": [[1.0, 2.0], [2.0, 2.0]]},
        ["SDPA 1 at 1,000 and 2 at 2,000"],
    ),
    "time_against_length, whole": (
        lambda: speed.time_against_length([1000, 2000], SECONDS, title="Decode", per_token=False),
        {"y": "time (µs)", "data[0].y": [1000.0, 4000.0]},
        ["time against length, microseconds"],
    ),
    "speed_ratios": (
        lambda: speed.speed_ratios({"ours": ([1024, 4096], [0.5, 2.0]), "never": ([1024, 2048], [0.1, 0.2])}),
        {"y": "softmax time / Liger time", "data[0].y": [0.5, 2.0], "data[1].y": [0.1, 0.2]}
        | {"data[2].text": ["2,048"], "data[2].x": pytest.approx([2048])},
        ["ours: 0.50 at 1,024 tokens to 2.00 at 4,096, crossover near 2,048", "0.20 at 2,048, no crossover in between"],
    ),
}


def look(figure, place):
    """What is there, as plain lists and numbers."""
    if "[:]." in place:
        items, rest = place.split("[:].")
        return [look(item, rest) for item in figure[items]]
    plain = lambda x: [plain(y) for y in x] if isinstance(x, (list, tuple, np.ndarray)) else x  # noqa: E731
    return plain(figure[place])


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_shows_what_it_was_given_and_says_it(name):
    draw, seen, words = FIGURES[name]
    figure = draw()
    for place, expected in seen.items():
        assert look(figure, {"x": X_TITLE, "y": Y_TITLE}.get(place, place)) == expected, place
    for told in words:
        assert told in figures.alt_text(figure)


def refused(words, draw, *inputs):
    """Rows of REFUSED: every input to `draw` is refused with the words."""
    return [(words, functools.partial(draw, x)) for x in inputs]


K40, ONES, MAP, ROWS = torch.zeros(2, 40, 2, 8), torch.ones(6, 6), torch.eye(6), [{"T": 8, "recurrence": "diagonal"}]
REFUSED = [
    ("two or more positive points", lambda: counting.exponent([8], [1.0])),
    ("two or more positive points", lambda: counting.exponent([8, 16], [1.0, 0.0])),
    ("'softmax' has 1 values for 2 points", lambda: attention.growth([1, 2], {"softmax": [1]}, title="", unit="")),
    ("nothing to draw", lambda: attention.growth([1, 2], {}, title="", unit="")),
    *refused(
        r"needed are state \[K, V\], scores \[t, t\]",
        lambda x: attention.state_stream(torch.ones(x[0]), torch.ones(x[1]), NAMES[: x[2]], VALUES),
        *[(2, (2, 2), 4), ((2, 2), (2, 3), 4), ((2, 2), (5, 5), 4), ((2, 2), (2, 2), 3), ((2, 2), (0, 0), 4)],
    ),
    ("width = 0", lambda: attention.interference([1, 5, 17], ERRORS, width=0)),
    ("'random' has 1 values for 3 points", lambda: attention.interference([1, 5, 17], {"random": [1.0]}, width=4)),
    ("'gate' has 4 values for 5 points", lambda: attention.total_weight(WEIGHTS | {"gate": torch.ones(4)})),
    ("nothing to draw", lambda: attention.total_weight({})),
    (r"'φ\(keys\)' has 1 values for 2 points", lambda: attention.key_overlap(COSINES | {"φ(keys)": [0.1]})),
    ("age = 40 tokens: with T = 40 tokens, allowed are 0 to 39", lambda: counting.share_left(K40, 40)),
    ("weight has shape", lambda: counting.share_left(K40, 3, K40[:1])),
    (r"curves\['fast'\] has 1 values, ages 2", lambda: gates.forgetting({"fast": [1]}, [0, 1])),
    ("temper = 0: allowed are numbers > 0", lambda: gates.remembering(K40, temper=0)),
    ("temper = inf", lambda: gates.remembering(K40, temper=math.inf)),
    ("lower_bound = 1.0: allowed are", lambda: gates.remembering(K40, temper=1, lower_bound=1.0)),
    ("with T = 40 tokens", lambda: gates.remembering(K40, temper=1, oldest=99)),
    (r"pass α = log_gate\.exp\(\)", lambda: gates.gate_distributions({"layer 0": {"head 0": K40 - 1}})),
    ("must be the same", lambda: gates.gate_distributions({"layer 0": {"head 0": K40}, "layer 1": {"head 1": K40}})),
    ("widths 2; they must be as many", lambda: gates.pooled_spread({"layer 0": [2.0]}, [64, 1])),
    (r"must be \[T, K\] with T = 3", lambda: gates.gates_over_tokens(torch.ones(2, 3), ["Ada", "lives", "in"])),
    ("token and kind must have P's shape", lambda: counting.variance_parts(K40, K40[:1, :, 0, 0], K40[..., 0, 0])),
    ("'layer 1' lacks the part 'context'", lambda: gates.variance_bars({"layer 1": dict([*PARTS.items()][:3])})),
    *refused(r"'b' has shape \(3, 6\); all must be \[T, T\] = \(6, 6\)", attention_maps, {"a": MAP, "b": MAP[:3]}),
    *refused("'later' has negative weights, or looks ahead", attention_maps, {"later": ONES}),
    *refused("'negative' has negative weights", attention_maps, {"negative": -MAP}),
    ("allowed are 'sum', 'average'", lambda: state_at(STATES, "gla", 1)),
    ("t = 0: allowed are 1 to T = 20", lambda: state_at(STATES, "sum", 0)),
    ("t = 21", lambda: state_at(STATES, "sum", 21)),
    ("'gla' has 1 shares for 2 strengths", lambda: reset_curves({"gla": [1.0]}, [0, 4])),
    ("C = 0: allowed are 1 to T = 6", lambda: chunks.chunk_map(ONES, 0, 6)),
    ("C = 7: allowed are 1 to T = 6", lambda: chunks.chunk_map(ONES, 7, 6)),
    ("t = 0: allowed are 1 to T = 6", lambda: chunks.chunk_map(ONES, 2, 0)),
    ("t = 7: allowed are 1 to T = 6", lambda: chunks.chunk_map(ONES, 2, 7)),
    *refused(r"must be square, \[T, T\]", lambda A: chunks.chunk_map(A, 2, 6), ONES[:, :5], ONES[0]),
    (r"anchor = -1: allowed are 0 \(the chunk's start\) to C = 6", lambda: chunks.anchored_exponents(ONES[0], -1)),
    (r"anchor = 7: allowed are 0 \(the chunk's start\) to C = 6", lambda: chunks.anchored_exponents(ONES[0], 7)),
    (r"b has shape \(32, 1\)", lambda: chunks.anchored_exponents(torch.ones(32, 1), 0)),
    ("C = 0: allowed are powers of two", lambda: chunks.halving_levels(0)),
    ("C = 1: allowed are powers of two", lambda: chunks.halving_levels(1)),
    ("C = 12: allowed are powers of two", lambda: chunks.halving_levels(12)),
    ("textbook: 1 errors for 2 strengths", lambda: chunks.errors_by_strength([1.0, 2.0], {"textbook": [1.0]})),
    ("no counts", lambda: chunks.flops_by_chunk({}, marked=32)),
    ("nowhere.load.* no such file", lambda: kernels.kernel_source("nowhere.load")),
    ("diagonal.* no such file", lambda: kernels.kernel_source("diagonal")),
    ("tiles.lode.* there is no 'lode'; allowed are .*'load'", lambda: kernels.kernel_source("tiles.lode")),
    ("no line of tiles.load has 'gone'", lambda: kernels.kernel_source("tiles.load", "gone")),
    ("no line of across has 'gone'", lambda: kernels.beside({"x": (diagonal.across, "gone", "tiles.load", "tl.load")})),
    ("2 entries have a negative number", lambda: kernels.program_map(torch.tensor([[-1, -1]]))),
    (r"owner has shape \(3,\)", lambda: kernels.program_map(torch.zeros(3))),
    ("gpu = 'V100': allowed are 'A100', 'H100'", lambda: kernels.roofline("V100")),
    ("rising whole numbers", lambda: kernels.estimated_times("A100", [2, 1])),
    ("form = 'rnn': allowed are 'softmax'", lambda: kernel_cost("rnn", 8)),
    ("T = 0: allowed are whole numbers", lambda: kernel_cost("softmax", 0)),
    ("chunk = 48: allowed are powers of two", lambda: kernel_cost("softmax", 8, chunk=48)),
    *refused("allowed are whole numbers from 1 to T", lambda W: window.band(visible(6, 2), W), 0, 7, 2.0),
    *refused("it must be a bool", lambda x: window.band(x, 2), ONES[:, :5] > 0, ONES, ONES[0] > 0),
    *refused(r"\[L \+ 1, D\]", lambda x: window.reach_map(x, 3), ONES[0], ONES[:1], -ONES[:2], ONES * math.nan),
    *refused(r"shape \[T\], T ≥ 1", window.gaps, {}, {"intact": torch.ones(2, 2)}, {"intact": torch.ones(0)}),
    ("'window only' has 1 losses for 2 windows", lambda: window.loss_by_window([1, 4], {"window only": [6.5]}, 2.0)),
    ("nothing to draw", lambda: window.loss_by_window([], {}, 2.0)),
    ("no parameters", lambda: conversion.parameters_before_and_after({}, STATE)),
    ("no loss to show", lambda: loss_after_conversion({}, references={})),
    ("loss of 'gla' is nan; allowed are finite", lambda: loss_after_conversion({"gla": math.nan}, references={})),
    ("2 tokens, 1 and 2 probabilities", lambda: conversion.next_token(VALUES[:2], [1.0], [0.5, 0.5], name="", loss=0)),
    ("apply softmax", lambda: conversion.next_token(["Rome"], [1.0], [-3.0], name="", loss=0)),
    ("rising whole numbers", lambda: conversion.cache_growth([256, 16], CACHES)),
    ("'softmax' has 1 values for 2 contexts", lambda: conversion.cache_growth([16, 256], {"softmax": [1]})),
    ("allowed are tempers > 0 and windows ≥ 1", lambda: collapse.half_life_and_window(0, 16)),
    ("'full' has no 'loss': there are 'perplexity'", lambda: collapse.spread_bars(SPREAD, "loss", "loss", title="")),
    ("2 lengths and 1 ratios", lambda: crossover([1, 2], [0.5])),
    ("must rise", lambda: crossover([2, 1], [0.5, 2])),
    ("must be > 0", lambda: crossover([1, 2], [0.5, 0])),
    ("T = 0: allowed are whole numbers", lambda: decode_bytes(0, 64, 64)),
    ("width = 1.5", lambda: prefill_flops(8, 1.5, 64)),
    ("cost = 'time': allowed are 'prefill FLOPs', 'decode bytes'", lambda: speed.cost_model("time")),
    ("window = 0", lambda: speed.cost_model(window=0)),
    ("'SDPA' has 1 times for 2 lengths", lambda: speed.time_against_length([1, 2], {"SDPA": [1.0]}, title="")),
    ("rising whole numbers", lambda: speed.time_against_length([2, 1], SECONDS, title="")),
    ("no curve", lambda: speed.speed_ratios({})),
    ("recurrence = 'slots': these rows have 'diagonal'", lambda: speed.kernel_times(ROWS, "slots")),
]


@pytest.mark.parametrize(("words", "draw"), REFUSED)
def test_what_makes_no_sense_is_refused_with_a_sentence(words, draw):
    with pytest.raises(ValueError, match=words):
        draw()


def test_exponent_is_the_slope():
    lengths = [512, 1024, 2048, 4096]
    assert counting.exponent(lengths, [3 * T**2 for T in lengths]) == pytest.approx(2)
    assert counting.exponent(lengths, [5 * T for T in lengths]) == pytest.approx(1)
    assert counting.exponent(lengths, [7] * 4) == pytest.approx(0)


def facts(K=3, t=3, shift=0.0):
    generator = torch.Generator().manual_seed(t)
    k, v = torch.eye(K)[torch.arange(t) % K] + shift, torch.eye(4)[:t]
    state = k.T @ v + 0.01 * torch.randn(K, 4, generator=generator)
    return state, k @ state @ v.T


def test_state_stream_marks_the_best_value_of_each_key():
    state, scores = facts()
    scores[1] = torch.tensor([2.0, 1.0, 0.0])  # Ben is found in Rome
    figure = attention.state_stream(state, scores, NAMES, VALUES)
    heat_state, heat_scores, best = figure.data
    assert torch.allclose(torch.tensor(heat_state.z), state)
    assert torch.allclose(torch.tensor([row[:3] for row in heat_scores.z[:3]]), scores)
    assert all(x is None for x in heat_scores.z[3])
    assert [row[3] for row in heat_scores.z] == [None] * 4
    assert list(best.x) == ["Rome", "Rome", "Cork"]
    assert list(best.y) == NAMES[:3]
    assert "right for 2 of 3" in figures.alt_text(figure)
    assert figure.layout.title.text == "Facts stored t = 3, found 2"
    assert figure.layout.yaxis2.title.text == "asked for"


@functools.cache
def maps():
    """Who takes from whom, by each structure that adds: a correction takes away as well, and has no such map."""
    q, k = torch.randn(2, 1, 12, 1, 8, generator=torch.Generator().manual_seed(0))
    basis = torch.eye(12).reshape(1, 12, 1, 12)
    return {name: lm.structures[name](q, k, basis)[0][0, :, 0] for name in ADDING}


def test_attention_maps_divide_rows_by_their_sums():
    chosen = {name: maps()[name] for name in ("gla", "linear")}
    figure = attention_maps(chosen)
    for trace, weights in zip(figure.data, chosen.values(), strict=True):
        shown = torch.tensor([list(row) for row in trace.z])
        torch.testing.assert_close(shown, weights / weights.sum(-1, keepdim=True), atol=6e-4, rtol=0)
    assert figure.layout.xaxis.title.text == "token s"
    assert figure.layout.yaxis.title.text == "token t"
    assert figure.layout.yaxis.autorange == "reversed"
    recent = chosen["gla"][-1, -8:].sum() / chosen["gla"][-1].sum()
    assert f"gla: the last token takes {recent:.2f} from the last 8 tokens" in figures.alt_text(figure)
    assert f"its row sums to {chosen['linear'][-1].sum():.3g}." in figures.alt_text(figure)


@pytest.mark.parametrize("W", [1, 3, 4, 12])
def test_blocks_hold_the_band(W):
    computed = window.blocks(12, W)
    assert bool((computed | ~visible(12, W)).all())
    assert int(computed.sum()) == sum(min(2, t // W + 1) * W for t in range(12))


def staircase(L, D, W):
    """Changes that are felt exactly l (W - 1) tokens on, ten times weaker at each."""
    return torch.stack([torch.tensor([10.0**-d * (d <= i * (W - 1)) for d in range(D)]) for i in range(L + 1)])


def test_reach_map_is_a_staircase():
    figure = window.reach_map(staircase(3, 12, 3), 3)
    heat, bound = figure.data
    assert [sum(x is not None for x in row) for row in heat.z] == [1, 3, 5, 7]
    assert heat.z[3][4] == pytest.approx(-4)
    assert list(bound.x) == [0, 2, 4, 6]
    assert list(bound.y) == [0, 1, 2, 3]
    assert figure.layout.title.text == "W = 3: felt 6 tokens on"
    assert "2 after layer 1, 4 after layer 2, 6 after layer 3" in figures.alt_text(figure)
    assert figure.layout.yaxis.title.text == "after layer"


def test_parameters_are_counted_by_kind(tiny):
    assert counting.parameters_by_kind(STATE) == {"embed_tokens": 40, "k_proj": 36, "norms": 8}
    model = tiny("qwen3")
    assert sum(counting.parameters_by_kind(dict(model.named_parameters())).values()) == model.num_parameters()


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([5.9, 47.0], ["1", "2", "5", "10", "20", "50", "100", "200", "500"]),
        ([0.2, 9000.0], ["0.1", "1", "10", "100", "1,000", "10,000"]),
    ],
)
def test_a_logarithmic_axis_has_ticks_that_can_be_read(values, ticks):
    figure = theme.new_figure("", "x", "y").add_scatter(y=values)
    theme.log_ticks(figure)
    assert list(figure.layout.yaxis.ticktext) == ticks
    assert list(figure.layout.yaxis.tickvals) == [float(tick.replace(",", "")) for tick in ticks]
