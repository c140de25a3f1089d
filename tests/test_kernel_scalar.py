"""The Triton twin of the scalar recurrence against a float64 loop: outputs, final state and every gradient.

Runs anywhere Triton can be installed: on a CUDA device, and without one in Triton's interpreter.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined, so before the import
pytest.importorskip("triton")

from liger_mini.kernels import scalar as kernel

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
    if cu_seqlens is not None:
        ends = cu_seqlens.tolist()
        parts = [
            loop(*(x[:, start:end] for x in (q, k, v, log_gate)), S)
            for start, end, S in zip(ends, ends[1:], state.split(1))
        ]
        return torch.cat([o for o, _ in parts], dim=1), torch.cat([S for _, S in parts])
    o = [v[:, :0]]
    for t in range(q.shape[1]):
        state = log_gate[:, t].exp()[..., None, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        o.append((q[:, t, :, None, :] @ state).transpose(1, 2))
    return torch.cat(o, dim=1), state


def inputs(T, K, V, gates, dtype=torch.float32, B=1, H=1, N=None):
    """q, k, v, log_gate and a state that is not zero. Rounded to `dtype` here, so that both sides see the same."""
    torch.manual_seed(T + K + V)
    q, k, log_gate = torch.randn(B, T, H, K), torch.randn(B, T, H, K), GATES[gates](B, T, H)
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
    check(inputs(T, 24, 16, "mixed"), TOLERANCE[torch.float32])


@pytest.mark.parametrize(("K", "V"), [(16, 16), (64, 40), (256, 16), (16, 256), (16, 257)])
def test_every_width(K, V):
    """257: the normaliser of the mLSTM is one column more."""
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
    assert relative_rms(last, loop(*(x.double() for x in args))[1]) <= 1e-4


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
    expected = torch.autograd.grad(loop(*args)[keep].sum(), args, materialize_grads=True)
    for x, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(x, reference, rtol=1e-4, atol=1e-4)


def test_decays_are_never_above_one(monkeypatch):
    """No positive exponent is ever formed: watched in the interpreter, where exp can be replaced."""
    if not kernel.INTERPRETED:
        pytest.skip("exp inside a compiled kernel cannot be watched")
    import triton.runtime.interpreter as interpreter

    seen = []
    exp = interpreter.InterpreterBuilder.create_exp

    def watched(self, x):
        seen.append(float(x.data.max()))
        return exp(self, x)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_exp", watched)
    results(kernel.triton_recurrence, inputs(70, 16, 16, "mixed"))
    assert len(seen) > 15, "the replaced exp was not used"
    assert max(seen) <= 0, f"largest exponent {max(seen)}"


@pytest.mark.parametrize(
    ("K", "V", "message"), [(257, 16, "K = 257; .* up to 256"), (16, 258, "V = 258; .* up to 257")]
)
def test_a_width_above_the_limit_is_refused(K, V, message):
    with pytest.raises(ValueError, match=message):
        kernel.triton_recurrence(*inputs(1, K, V, "weak"))


def test_float64_is_refused():
    with pytest.raises(TypeError, match=r"q has dtype torch\.float64; .*float32, .*bfloat16, .*float16"):
        kernel.triton_recurrence(*(x.double() for x in inputs(1, 16, 16, "weak")))


def test_without_a_gpu_or_the_interpreter_the_error_names_both(monkeypatch):
    from liger_mini.kernels import tiles

    monkeypatch.setattr(tiles, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match=r"on cpu.* CUDA device.* TRITON_INTERPRET=1"):
        kernel.triton_recurrence(*(x.cpu() for x in inputs(1, 16, 16, "weak")))
