"""Chapter 05's sources, counter, estimates and figures: they show what the kernels have, and refuse what they cannot."""

import sys

import pytest
import torch
import torch.nn.functional as F

import liger_mini as lm
from liger_mini.recurrences import diagonal, loops
from liger_mini.teaching import figures, widgets
from liger_mini.teaching.counting import FORMATS, FORMS, GPUS, Work, estimated_crossover, estimated_seconds, kernel_cost
from liger_mini.teaching.figures.kernels import beside, estimated_times, kernel_source, program_map, roofline


def test_kernel_source_shows_functions_methods_and_pieces():
    whole = kernel_source("diagonal.within_chunk").data
    assert whole.startswith("@triton.jit\ndef within_chunk")
    assert '"""' not in whole
    piece = kernel_source("diagonal._chunk_states", "S = load", "store(last").data.splitlines()
    assert piece[0].startswith("S = load")
    assert piece[-1].startswith("store(last")
    assert piece[1].startswith("for step")
    assert kernel_source("slots._Scores.forward").data.startswith("@staticmethod")


def test_kernel_source_says_what_is_not_there():
    for name, words in (
        ("nowhere.load", "no such file"),
        ("diagonal", "no such file"),
        ("tiles.lode", "there is no 'lode'; allowed are .*'load'"),
    ):
        with pytest.raises(ValueError, match=words):
            kernel_source(name)
    with pytest.raises(ValueError, match=r"no line of tiles.load has 'gone'"):
        kernel_source("tiles.load", "gone")


def test_kernels_are_shown_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # as on a machine that has none
    monkeypatch.delitem(sys.modules, "liger_mini.kernels.tiles", raising=False)
    assert "def load" in kernel_source("tiles.load").data
    assert "liger_mini.kernels.tiles" not in sys.modules


def test_beside_looks_both_lines_up():
    table = beside({"keep": (loops.carry, "before.append", "diagonal._chunk_states", "store(states_ptr")})
    ((what, ours, kernels),) = table.rows
    assert (what, ours) == ("keep", "before.append(state)")
    assert kernels.startswith("store(states_ptr")
    assert "<code>before.append(state)</code>" in table._repr_html_()
    assert "PyTorch: before.append(state)" in str(table)
    with pytest.raises(ValueError, match=r"no line of across has 'gone'"):
        beside({"x": (diagonal.across, "gone", "tiles.load", "tl.load")})


def test_program_map_shows_the_owners():
    owner = torch.tensor([[0, 0, 1], [0, 0, 1], [2, 2, 3]])
    figure = program_map(owner, starts=[0, 2])
    assert [list(row) for row in figure.data[0].z] == owner.tolist()
    assert sorted(a.text for a in figure.layout.annotations) == ["0", "1", "2", "3"]
    assert "3 tokens by 3 columns, written by 4 programs: each writes one block of 1 to 4" in figures.alt_text(figure)
    assert figure.layout.yaxis.title.text == "token t"
    with pytest.raises(ValueError, match="2 entries have a negative number"):
        program_map(torch.tensor([[-1, -1]]))
    with pytest.raises(ValueError, match=r"owner has shape \(3,\)"):
        program_map(torch.zeros(3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter counts, a GPU does not")
@pytest.mark.parametrize("form", ["gate a head", "gate a channel"])
def test_the_formula_is_what_the_interpreter_counts(form):
    pytest.importorskip("triton")
    T, H, K = 128, 2, 32
    q, k, v, logits = (torch.randn(1, T, H, K) for _ in range(4))
    log_gate = F.logsigmoid(logits)
    log_gate = log_gate.mean(-1) if form == "gate a head" else log_gate
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
    assert kernel_cost("gate a head", 4096) == (4 * 128**2 + 4 * 64 * 128, 1536 + 8 + 4 * 128**2 * (2 / 64 + 2 / 4096))
    assert estimated_seconds("softmax", "A100", 4096) == pytest.approx((4096 * 256 / 312e12, 1024 / 2.0e12))
    arithmetic, memory = estimated_seconds("gate a channel", "H100", 4096)
    sums = 6 * 64 * 128 * 8
    flops, moved = kernel_cost("gate a channel", 4096)
    assert arithmetic == pytest.approx((flops - sums) / 495e12 + sums / 989e12)
    assert memory == pytest.approx(moved / 3.35e12)
    for bad, words in (
        ({"form": "rnn", "T": 8}, "form = 'rnn': allowed are 'softmax'"),
        ({"form": "softmax", "T": 0}, "T = 0: allowed are whole numbers"),
        ({"form": "softmax", "T": 8, "chunk": 48}, "chunk = 48: allowed are powers of two"),
    ):
        with pytest.raises(ValueError, match=words):
            kernel_cost(**bad)


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
        assert f"{form}: {flops / moved:.0f} FLOP/byte" in figures.alt_text(figure)
    assert "an estimate" in figures.alt_text(figure)
    assert figure.layout.yaxis.title.text == "attainable (TFLOP/s)"
    with pytest.raises(ValueError, match="gpu = 'V100': allowed are 'A100', 'H100'"):
        roofline("V100")


def test_the_roofline_widget_follows_every_control():
    box = widgets.explore(roofline, gpu=["A100", "H100"], chunk=[64, 16], T=[4096, 512])
    gpu, chunk, T, view, words = box.children
    for setting in (("H100", 64, 4096), ("H100", 16, 512), ("A100", 16, 4096)):
        gpu.value, chunk.value, T.value = setting
        expected = roofline(*setting)
        assert [list(trace.y) for trace in view.data] == [list(trace.y) for trace in expected.data]
        assert view.layout.title.text == f"{setting[0]}, C = {setting[1]}, T = {setting[2]:,}"
        assert words.value.startswith(f"Roofline of an {setting[0]}")


def test_estimated_times_and_crossings():
    lengths = [512, 4096, 32768]
    figure = estimated_times("A100", lengths)
    for trace in figure.data:
        assert list(trace.y) == [1e9 * max(estimated_seconds(trace.name, "A100", T)) for T in lengths]
    assert figure.layout.yaxis.title.text == "time (ns per token and head)"
    assert "not measured" in figures.alt_text(figure)
    at = estimated_crossover("gate a head", "A100")
    softmax, recurrence = (max(estimated_seconds(form, "A100", round(at))) for form in ("softmax", "gate a head"))
    assert softmax == pytest.approx(recurrence, rel=0.02)
    with pytest.raises(ValueError, match="rising whole numbers"):
        estimated_times("A100", [2, 1])
