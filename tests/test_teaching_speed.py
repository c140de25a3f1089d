"""Chapter 10's cost model, counter and figures: the numbers are the formulas', and a figure shows what it was given."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import liger_mini as lm
from liger_mini.experiments import benchmark
from liger_mini.teaching import figures, widgets
from liger_mini.teaching.counting import Traffic, crossover, decode_bytes, prefill_flops
from liger_mini.teaching.figures.speed import LENGTHS, cost_model, kernel_times, speed_ratios, time_against_length


def test_crossover_lies_on_the_line_between_two_lengths():
    assert crossover([1024, 4096], [0.5, 2.0]) == pytest.approx(2048)
    assert crossover([1, 2, 4], [0.25, 1.0, 4.0]) == pytest.approx(2)
    assert crossover([1, 2], [0.25, 0.5]) is None
    assert crossover([1, 2], [1.5, 3.0]) is None  # it won before the first length
    for lengths, ratios, words in (
        ([1, 2], [0.5], "2 lengths and 1 ratios"),
        ([2, 1], [0.5, 2], "must rise"),
        ([1, 2], [0.5, 0], "must be > 0"),
    ):
        with pytest.raises(ValueError, match=words):
            crossover(lengths, ratios)


@pytest.mark.parametrize(("K", "W"), [(16, 32), (32, 16), (64, 64)])
def test_the_flop_formula_is_what_pytorch_counts(K, W):
    T, H = 256, 2
    q, k, v, logits = (torch.randn(1, T, H, K) for _ in range(4))
    calls = {
        "liger": lambda: (
            lm.gated_recurrence(q, k, v, F.logsigmoid(logits)),
            lm.sliding_window_attention(q, k, v, W),
        ),
        "softmax": functools.partial(F.scaled_dot_product_attention, *(x.transpose(1, 2) for x in (q, k, v))),
    }
    counted = {}
    for name, call in calls.items():
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        counted[name] = counter.get_total_flops() / (T * H)
    assert (counted["softmax"] / 2, counted["liger"]) == prefill_flops(T, K, W)


def test_decode_bytes_are_equal_at_K_plus_W():
    for K, W in ((64, 64), (128, 16)):
        softmax, liger = decode_bytes(K + W, K, W)
        assert softmax == liger
    assert decode_bytes(1000, 64, 64)[1] == decode_bytes(2000, 64, 64)[1]
    with pytest.raises(ValueError, match="T = 0: allowed are whole numbers"):
        decode_bytes(0, 64, 64)
    with pytest.raises(ValueError, match=r"width = 1.5"):
        prefill_flops(8, 1.5, 64)


def test_traffic_counts_operations_and_not_views():
    x = torch.ones(10, 10)
    with Traffic() as count:
        x.T.contiguous()[:5]
        y = torch.ones(3) + 1
    assert count.bytes == 2 * 400 + 12 + 24  # the copy; ones; their sum
    assert (count.largest, len(y)) == (400, 3)
    sizes = []
    for T in (128, 256):
        inputs = benchmark.random_inputs(T)
        with Traffic() as count:
            lm.gated_recurrence(*inputs)
        sizes.append(count.bytes)
    assert sizes[1] / sizes[0] < 2.2


def test_cost_model_draws_its_formulas_and_marks_where_they_meet():
    figure = cost_model("prefill FLOPs", width=64, window=64)
    softmax, liger, meeting = figure.data
    assert list(zip(softmax.y, liger.y)) == [prefill_flops(T, 64, 64) for T in LENGTHS]
    assert meeting.x[0] == pytest.approx(415, rel=0.01)
    assert "crossover 415" in meeting.name.lower()
    assert "Crossover 415 tokens" in figures.alt_text(figure)
    assert figure.layout.yaxis.title.text == "cost (FLOPs)"
    with pytest.raises(ValueError, match="cost = 'time': allowed are 'prefill FLOPs', 'decode bytes'"):
        cost_model("time")
    with pytest.raises(ValueError, match="window = 0"):
        cost_model(window=0)


def test_the_cost_widget_follows_every_control():
    box = widgets.explore(cost_model, cost=["prefill FLOPs", "decode bytes"], width=[64, 128], window=[64, 16])
    cost, width, window, view, words = box.children
    for c, K, W in (("decode bytes", 64, 64), ("decode bytes", 128, 16), ("prefill FLOPs", 128, 16)):
        cost.value, width.value, window.value = c, K, W
        expected = cost_model(c, K, W)
        assert [list(trace.y) for trace in view.data] == [list(trace.y) for trace in expected.data]
        assert view.layout.title.text == f"{c}, K = {K}, W = {W}"
        assert words.value.startswith(f"{c} a token and head for K = V = {K} and a window of {W}")


def test_time_against_length():
    seconds = {"SDPA": [0.001, 0.004], "Liger": [0.002, 0.004]}
    figure = time_against_length([1000, 2000], seconds, title="Prefill")
    assert {trace.name: list(trace.y) for trace in figure.data} == {"SDPA": [1.0, 2.0], "Liger": [2.0, 2.0]}
    assert figure.layout.yaxis.title.text == "time (µs per token)"
    assert "SDPA 1 at 1,000 and 2 at 2,000" in figures.alt_text(figure)
    whole = time_against_length([1000, 2000], seconds, title="Decode", per_token=False)
    assert list(whole.data[0].y) == [1000.0, 4000.0]
    assert whole.layout.yaxis.title.text == "time (µs)"
    with pytest.raises(ValueError, match="'SDPA' has 1 times for 2 lengths"):
        time_against_length([1, 2], {"SDPA": [1.0]}, title="")
    with pytest.raises(ValueError, match="rising whole numbers"):
        time_against_length([2, 1], seconds, title="")


def test_speed_ratios_names_the_crossover():
    figure = speed_ratios({"ours": ([1024, 4096], [0.5, 2.0]), "never": ([1024, 2048], [0.1, 0.2])})
    ours, never, crossings = figure.data
    assert (list(ours.y), list(never.y)) == ([0.5, 2.0], [0.1, 0.2])
    assert list(crossings.text) == ["2,048"]
    assert crossings.x[0] == pytest.approx(2048)
    assert figure.layout.yaxis.title.text == "softmax time / Liger time"
    words = figures.alt_text(figure)
    assert "ours: 0.50 at 1,024 tokens to 2.00 at 4,096, crossover near 2,048" in words
    assert "0.20 at 2,048, no crossover in between" in words
    with pytest.raises(ValueError, match="no curve"):
        speed_ratios({})


def test_kernel_times_reads_the_rows_of_a_benchmark():
    kernel = {"B": 2, "forward_ms": [4.0, 3.0, 5.0]}
    rows = [{**kernel, "T": T, "recurrence": "diagonal", "implementation": "liger_mini"} for T in (100, 200)]
    rows += [{**kernel, "T": 200, "recurrence": "diagonal", "implementation": "fla"}]
    sdpa = {"recurrence": "window", "implementation": "softmax over everything (SDPA)"}
    rows += [{**kernel, "T": T, **sdpa} for T in (100, 200)]
    figure = kernel_times(rows)
    curves = {trace.name: list(trace.y) for trace in figure.data}
    assert curves["our kernel"] == pytest.approx([20.0, 10.0])  # 4 ms over 2 rows of 100 and of 200 tokens
    assert curves["SDPA"] == pytest.approx([20.0, 10.0])
    assert math.isnan(curves["fla"][0])
    with pytest.raises(ValueError, match="recurrence = 'slots': these rows have 'diagonal'"):
        kernel_times(rows, "slots")
