"""Work and traffic of chapters 05 and 10: the formulas are what PyTorch and the interpreter count, the figures the formulas'."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import liger_mini as lm
from liger_mini.experiments import benchmark
from liger_mini.teaching.counting import (
    FORMATS,
    FORMS,
    GPUS,
    Traffic,
    Work,
    crossover,
    decode_bytes,
    estimated_crossover,
    estimated_seconds,
    kernel_cost,
    prefill_flops,
)
from liger_mini.teaching.figures import alt_text
from liger_mini.teaching.figures.kernels import estimated_times, roofline
from liger_mini.teaching.figures.speed import LENGTHS, cost_model, kernel_times


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter counts, a GPU does not")
@pytest.mark.parametrize("form", ["gate per head", "gate per channel"])
def test_the_formula_is_what_the_interpreter_counts(form):
    pytest.importorskip("triton")
    T, H, K = 128, 2, 32
    q, k, v, logits = (torch.randn(1, T, H, K) for _ in range(4))
    log_gate = F.logsigmoid(logits)
    log_gate = log_gate.mean(-1) if form == "gate per head" else log_gate
    expected, _ = lm.gated_recurrence(q, k, v, log_gate)
    with Work() as work:
        o, _ = lm.gated_recurrence(q, k, v, log_gate, backend="triton")
    assert (work.flops / (T * H), work.bytes / (T * H)) == kernel_cost(form, T, width=K, number=4)
    torch.testing.assert_close(o, expected, atol=1e-4, rtol=1e-4)
    before = work.flops
    lm.gated_recurrence(q, k, v, log_gate, backend="triton")
    assert work.flops == before  # nothing is counted after it was left


def test_costs_by_hand():
    assert kernel_cost("softmax", 4096) == (4096 * 256, 1024)
    assert kernel_cost("gate per head", 4096) == (
        4 * 128**2 + 4 * 64 * 128,
        1536 + 8 + 2 * 128**2 * 2 / 64 + 4 * 128**2 * 2 / 4096,  # bfloat16 states between chunks
    )
    assert estimated_seconds("softmax", "A100", 4096) == pytest.approx((4096 * 256 / 312e12, 1024 / 2.0e12))
    arithmetic, memory = estimated_seconds("gate per channel", "H100", 4096)
    triangle = 2 * 64 * 128 * 3 + 2 * 16 * 128 * 4
    flops, moved = kernel_cost("gate per channel", 4096)
    assert arithmetic == pytest.approx((flops - triangle) / 989e12 + triangle / 495e12)
    assert memory == pytest.approx(moved / 3.35e12)


@pytest.mark.parametrize("gpu", GPUS)
def test_roofline_places_every_form_under_its_roof(gpu):
    figure = roofline(gpu, chunk=128, T=512)
    shown = {trace.name: trace for trace in figure.data}
    for name in FORMATS:
        assert max(shown[name].y) == pytest.approx(GPUS[gpu][name] / 1e12)
    for form in FORMS:
        flops, moved = kernel_cost(form, 512, chunk=128)
        assert shown[form].x[0] == flops / moved
        reached = flops / max(estimated_seconds(form, gpu, 512, chunk=128)) / 1e12
        assert shown[form].y[0] == pytest.approx(reached)
        assert f"{form}: {flops / moved:.0f} FLOP/byte" in alt_text(figure)
    assert "an estimate" in alt_text(figure)
    assert figure.layout.yaxis.title.text == "attainable (TFLOP/s)"


def test_estimated_times_and_crossings():
    lengths = [512, 4096, 32768]
    figure = estimated_times("A100", lengths)
    for trace in figure.data:
        assert list(trace.y) == [1e9 * max(estimated_seconds(trace.name, "A100", T)) for T in lengths]
    assert figure.layout.yaxis.title.text == "time (ns per token and head)"
    assert "not measured" in alt_text(figure)
    at = estimated_crossover("gate per head", "A100")
    softmax, recurrence = (max(estimated_seconds(form, "A100", round(at))) for form in ("softmax", "gate per head"))
    assert softmax == pytest.approx(recurrence, rel=0.02)


def test_crossover_lies_on_the_line_between_two_lengths():
    assert crossover([1024, 4096], [0.5, 2.0]) == pytest.approx(2048)
    assert crossover([1, 2, 4], [0.25, 1.0, 4.0]) == pytest.approx(2)
    assert crossover([1, 2], [0.25, 0.5]) is None
    assert crossover([1, 2], [1.5, 3.0]) is None  # it won before the first length


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
    assert "Crossover 415 tokens" in alt_text(figure)
    assert figure.layout.yaxis.title.text == "cost (FLOPs)"


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
