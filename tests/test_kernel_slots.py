"""The Triton twin of the slot recurrence against a float64 loop: outputs, final states and every gradient."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from liger_mini.kernels import slots as kernel

from .test_kernel_diagonal import DEVICE, GATES, TOLERANCE, as_tf32, relative_rms, watch

RESULTS = ("o", "final K", "final V", "dq", "dk", "dv", "dwrite", "dlog_gate", "dK", "dV")


def loop(q, k, v, write, log_gate, keys, values, cu_seqlens=None):
    """The definition, token by token; document after document if the row is packed. keys is K̃ᵀ, as in the package."""
    if cu_seqlens is not None:
        ends, inputs = cu_seqlens.tolist(), (q, k, v, write, log_gate)
        parts = [
            loop(*(x[:, start:end] for x in inputs), *state)
            for start, end, *state in zip(ends, ends[1:], keys.split(1), values.split(1))
        ]
        o, keys, values = zip(*parts)
        return torch.cat(o, dim=1), torch.cat(keys), torch.cat(values)
    o = [v[:, :0]]
    for t in range(q.shape[1]):
        alpha, w = log_gate[:, t].exp(), write[:, t]
        keys = alpha[..., None, :] * keys + k[:, t, :, :, None] * w[..., None, :]
        values = alpha[..., :, None] * values + w[..., :, None] * v[:, t, :, None, :]
        p = (q[:, t, :, None, :] @ keys).softmax(-1)
        o.append((p @ values).transpose(1, 2))
    return torch.cat(o, dim=1), keys, values


def inputs(T, K, V, M, gates, dtype=torch.float32, B=1, H=1, N=None):
    """q, k, v, write, log_gate and states that are not zero. Rounded to `dtype`, so that both sides see the same."""
    torch.manual_seed(T + K + V + M)
    q, k, v = torch.randn(B, T, H, K) / K**0.5, torch.randn(B, T, H, K), torch.randn(B, T, H, V)
    written = (x.to(dtype) for x in (q, k, v, torch.rand(B, T, H, M)))
    args = *written, GATES[gates](B, T, H, M), torch.randn(N or B, H, K, M), torch.randn(N or B, H, M, V)
    return tuple(x.to(DEVICE) for x in args)


def results(form, args, compute=None, cu_seqlens=None):
    """o, the final states and the gradient of every input, where all three results feed the loss."""
    generator = torch.Generator().manual_seed(0)
    upstream = [torch.randn(args[i].shape, generator=generator).to(args[i]) for i in (2, 5, 6)]  # like v, like states
    args = [x.detach().to(compute or x.dtype).requires_grad_() for x in args]
    outputs = form(*args, cu_seqlens)
    return [*outputs, *torch.autograd.grad(outputs, args, [x.to(y.dtype) for x, y in zip(upstream, outputs)])]


def check(args, tolerance, cu_seqlens=None):
    got = results(kernel.triton_recurrence, args, None, cu_seqlens)
    expected = results(loop, args, torch.float64, cu_seqlens)
    for name, x, reference in zip(RESULTS, got, expected, strict=True):
        error = relative_rms(x, reference)
        assert error <= tolerance, f"{name}: relative RMS error {error:.1e}, allowed {tolerance:.0e}"


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_gate_in_every_dtype(gates, dtype):
    check(inputs(65, 24, 40, 16, gates, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("T", [1, 15, 63, 64, 130])
def test_every_length(T):
    check(inputs(T, 16, 16, 40, "mixed"), TOLERANCE[torch.float32])


@pytest.mark.parametrize(("K", "V", "M"), [(64, 16, 16), (16, 64, 24), (16, 16, 256), (256, 16, 16), (16, 256, 16)])
def test_every_width(K, V, M):
    check(inputs(20, K, V, M, "mixed"), TOLERANCE[torch.float32])


def test_batch_and_heads_do_not_mix():
    check(inputs(66, 16, 16, 16, "weak", B=2, H=3), TOLERANCE[torch.float32])


def test_packed_documents():
    """Shorter than a chunk, longer, and empty: at the start, inside and at the end."""
    ends = torch.tensor([0, 0, 7, 7, 73, 90, 90], device=DEVICE)
    check(inputs(90, 16, 24, 16, "weak", H=2, N=6), TOLERANCE[torch.float32], ends)


def test_mixed_dtypes_and_strided_inputs():
    q, k, v, write, *rest = inputs(20, 16, 16, 16, "weak", H=2)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    args = (q, k, v.bfloat16(), write.half(), *rest)
    check(args, TOLERANCE[torch.bfloat16])
    o, keys, values = kernel.triton_recurrence(*args)
    assert (o.dtype, keys.dtype, values.dtype) == (torch.bfloat16, torch.float32, torch.float32)


@pytest.mark.parametrize("only", range(3))
def test_a_loss_on_one_result_alone(only):
    args = [x.requires_grad_() for x in inputs(20, 16, 16, 16, "weak")]
    got = torch.autograd.grad(kernel.triton_recurrence(*args)[only].sum(), args, materialize_grads=True)
    expected = torch.autograd.grad(loop(*args)[only].sum(), args, materialize_grads=True)
    for x, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(x, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gates", ["weak", "mixed"])
def test_the_products_of_a_gpu_are_precise_enough(gates, monkeypatch):
    """Scores go through an exponential: their errors count. See the diagonal recurrence."""
    seen = []
    watch(monkeypatch, "create_dot", as_tf32(seen))
    check(inputs(100, 32, 32, 32, gates, torch.bfloat16), TOLERANCE[torch.bfloat16])
    assert seen, "the replaced product was not used"


@pytest.mark.parametrize(("name", "at"), [("q", 0), ("write", 3), ("keys", 5), ("values", 6)])
def test_float64_is_refused(name, at):
    args = list(inputs(1, 16, 16, 16, "weak"))
    args[at] = args[at].double()
    with pytest.raises(TypeError, match=rf"{name} has dtype torch\.float64; .*float32"):
        kernel.triton_recurrence(*args)


def test_a_width_above_256_is_refused():
    with pytest.raises(ValueError, match=r"M = 257; .* up to 256"):
        kernel.triton_recurrence(*inputs(1, 16, 16, 257, "weak"))
