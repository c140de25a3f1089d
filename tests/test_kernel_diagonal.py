"""The Triton twin of the diagonal recurrence against the float64 loop: outputs, final state and every gradient.

Runs anywhere Triton can be installed: on a CUDA device, and without one in Triton's interpreter.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined, so before the import
pytest.importorskip("triton")

from liger_mini.kernels import diagonal as kernel
from liger_mini.kernels import tiles

from liger_mini.recurrences import diagonal, gated_recurrence

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
RESULTS = ("o", "final state", "dq", "dk", "dv", "dlog_gate", "dstate")
GATES = {
    "weak": lambda *shape: F.logsigmoid(torch.randn(*shape)) / 16,
    "mixed": lambda *shape: torch.where(torch.rand(*shape) < 0.3, -50.0, -0.05) * torch.rand(*shape),
    "exactly one": torch.zeros,
    "all exp(-50)": lambda *shape: torch.full(shape, -50.0),
    "forget everything": lambda *shape: torch.where(torch.rand(*shape) < 0.1, -1e30, -0.05),
}


def loop(q, k, v, log_gate, state, cu_seqlens=None):
    """The definition, token by token; document after document if the row is packed."""
    if cu_seqlens is None:
        return diagonal.naive(q, k, v, log_gate, state)
    outputs, states = [], []
    for start, end, S in zip(cu_seqlens.tolist(), cu_seqlens[1:].tolist(), state.split(1)):
        if end > start:
            o, S = diagonal.naive(*(x[:, start:end] for x in (q, k, v, log_gate)), S)
            outputs.append(o)
        states.append(S)
    return torch.cat(outputs, dim=1), torch.cat(states)


def inputs(T, K, V, gates, dtype=torch.float32, B=1, H=1, N=None):
    """q, k, v, log_gate and a state that is not zero. Rounded to `dtype` here, so that both sides see the same."""
    torch.manual_seed(T + K + V)
    q, k, log_gate = torch.randn(B, T, H, K), torch.randn(B, T, H, K), GATES[gates](B, T, H, K)
    q, k, v = (x.to(dtype) for x in (q, k, torch.randn(B, T, H, V)))
    return tuple(x.to(DEVICE) for x in (q, k, v, log_gate, torch.randn(N or B, H, K, V)))


def results(form, args, compute=None, cu_seqlens=None):
    """o, the final state and the gradient of every input, where both o and the final state feed the loss."""
    generator = torch.Generator().manual_seed(0)
    upstream = [torch.randn(x.shape, generator=generator).to(x) for x in args[2:5:2]]  # like v, like state
    args = [x.detach().to(compute or x.dtype).requires_grad_() for x in args]
    outputs = form(*args, cu_seqlens)
    return [*outputs, *torch.autograd.grad(outputs, args, [x.to(y.dtype) for x, y in zip(upstream, outputs)])]


def relative_rms(x, reference):
    return ((x.double() - reference).norm() / reference.norm()).item()


def check(args, tolerance, cu_seqlens=None):
    got = results(kernel.triton_recurrence, args, None, cu_seqlens)
    expected = results(loop, args, torch.float64, cu_seqlens)
    for name, x, reference in zip(RESULTS, got, expected, strict=True):
        error = relative_rms(x, reference)
        assert error <= tolerance, f"{name}: relative RMS error {error:.1e}, allowed {tolerance:.0e}"


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_gate_in_every_dtype(gates, dtype):
    check(inputs(65, 24, 40, gates, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("T", [1, 15, 63, 64, 65, 130])
def test_every_length(T):
    check(inputs(T, 24, 40, "mixed"), TOLERANCE[torch.float32])


@pytest.mark.parametrize(("K", "V"), [(16, 16), (64, 40), (256, 16), (16, 256)])
def test_every_width(K, V):
    check(inputs(20, K, V, "mixed"), TOLERANCE[torch.float32])


def test_batch_and_heads_do_not_mix():
    check(inputs(70, 16, 16, "weak", B=2, H=3), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_packed_documents(dtype):
    """Shorter than a chunk, longer, and empty: at the start, inside and at the end."""
    ends = torch.tensor([0, 0, 7, 7, 73, 90, 90], device=DEVICE)
    check(inputs(90, 24, 16, "weak", dtype, H=2, N=6), TOLERANCE[dtype], ends)


def test_an_empty_document_hands_its_state_through():
    q, k, v, log_gate, state = inputs(5, 16, 16, "weak", N=3)
    _, last = kernel.triton_recurrence(q, k, v, log_gate, state, torch.tensor([0, 0, 5, 5], device=DEVICE))
    assert torch.equal(last[::2], state[::2])


def test_mixed_dtypes_and_strided_inputs():
    """A softmax in float32 before the keys, values and gates in bfloat16, and q a transposed view."""
    q, k, v, log_gate, state = inputs(20, 16, 16, "weak", H=2)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    args = (q, k, v.bfloat16(), log_gate.bfloat16(), state)
    check(args, TOLERANCE[torch.bfloat16])
    o, last = kernel.triton_recurrence(*args)
    assert (o.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    assert relative_rms(last, diagonal.naive(*(x.double() for x in args))[1]) <= 1e-4


def test_two_halves_are_the_whole():
    """The final state is exactly what the next call needs, also in the middle of a chunk."""
    q, k, v, log_gate, state = inputs(90, 16, 16, "mixed")
    whole, last = kernel.triton_recurrence(q, k, v, log_gate, state)
    first, middle = kernel.triton_recurrence(q[:, :37], k[:, :37], v[:, :37], log_gate[:, :37], state)
    second, end = kernel.triton_recurrence(q[:, 37:], k[:, 37:], v[:, 37:], log_gate[:, 37:], middle)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(end, last, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unused", ["o", "final state"])
def test_a_loss_on_one_result_alone(unused):
    args = [x.requires_grad_() for x in inputs(20, 16, 16, "weak")]
    keep = 1 if unused == "o" else 0
    got = torch.autograd.grad(kernel.triton_recurrence(*args)[keep].sum(), args, materialize_grads=True)
    expected = torch.autograd.grad(diagonal.naive(*args)[keep].sum(), args, materialize_grads=True)
    for x, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(x, reference, rtol=1e-4, atol=1e-4)


def watch(monkeypatch, name, watcher):
    """Let `watcher` see, and change, what the interpreter's operation `name` is given."""
    if not tiles.INTERPRETED:
        pytest.skip("what a compiled kernel computes cannot be watched")
    from triton.runtime.interpreter import InterpreterBuilder

    operation = getattr(InterpreterBuilder, name)
    monkeypatch.setattr(InterpreterBuilder, name, lambda self, *args: operation(self, *watcher(*args)))


def test_decays_are_never_above_one(monkeypatch):
    """No positive exponent is ever formed."""
    seen = []
    watch(monkeypatch, "create_exp", lambda x: (seen.append(float(x.data.max())), [x])[1])
    results(kernel.triton_recurrence, inputs(70, 16, 16, "mixed"))
    assert len(seen) > 20, "the replaced exp was not used"
    assert max(seen) <= 0, f"largest exponent {max(seen)}"


def as_tf32(seen):
    """A watcher of products: a GPU leaves out the last 13 bits of their operands, if it reads them as tf32."""

    def short(x):
        return type(x)((x.data.astype(np.float32).view(np.int32) & -8192).view(np.float32), x.dtype)

    def watcher(a, b, total, precision, *more):
        if precision.name == "TF32":
            seen.append(1)
            a, b = short(a), short(b)
        return a, b, total, precision, *more

    return watcher


@pytest.mark.parametrize("gates", GATES)
def test_the_products_of_a_gpu_are_precise_enough(gates, monkeypatch):
    """The interpreter multiplies in float32, whatever the precision; here as a GPU does for bfloat16."""
    seen = []
    watch(monkeypatch, "create_dot", as_tf32(seen))
    check(inputs(100, 32, 32, gates, torch.bfloat16), TOLERANCE[torch.bfloat16])
    assert seen, "the replaced product was not used"


def test_a_width_above_256_is_refused():
    with pytest.raises(ValueError, match=r"K = 257; .* up to 256"):
        kernel.triton_recurrence(*inputs(1, 257, 16, "weak"))


def test_float64_is_refused():
    with pytest.raises(TypeError, match=r"q has dtype torch\.float64; .*float32, .*bfloat16, .*float16"):
        kernel.triton_recurrence(*(x.double() for x in inputs(1, 16, 16, "weak")))


def test_without_a_gpu_or_the_interpreter_the_error_names_both(monkeypatch):
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match=r"on cpu.* CUDA device.* TRITON_INTERPRET=1"):
        kernel.triton_recurrence(*(x.cpu() for x in inputs(1, 16, 16, "weak")))


def test_the_backend_argument_reaches_the_kernel_also_for_packed_documents():
    q, k, v, logits = torch.randn(4, 1, 20, 2, 16, device=DEVICE)
    log_gate, ends = F.logsigmoid(logits), torch.tensor([0, 7, 7, 20], device=DEVICE)
    o, state = gated_recurrence(q, k, v, log_gate, cu_seqlens=ends, backend="triton")
    expected, expected_state = gated_recurrence(q, k, v, log_gate, cu_seqlens=ends, backend="naive")
    torch.testing.assert_close(o, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-4)
