"""The Triton twin of sliding-window attention against all T x T scores in float64: outputs and every gradient.

Runs anywhere Triton can be installed: on a CUDA device, and without one in Triton's interpreter.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined, so before the import
pytest.importorskip("triton")

from liger_mini.kernels import tiles
from liger_mini.kernels import window as kernel

from liger_mini import window as pytorch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def reference(q, k, v, window, key_mask=None, cu_seqlens=None):
    """The naive form, document after document if the row is packed."""
    if key_mask is None:
        key_mask = torch.ones(k.shape[:2], dtype=torch.bool, device=k.device)
    if cu_seqlens is not None:
        lengths = [n for n in cu_seqlens.diff().tolist() if n > 0]
        documents = zip(*(x.split(lengths, dim=1) for x in (q, k, v, key_mask)))
        return torch.cat([reference(*inputs, window, mask) for *inputs, mask in documents], dim=1)
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    return pytorch.naive(q, k, v, window, key_mask).transpose(1, 2)


def inputs(Tq, Tk=None, K=16, V=16, dtype=torch.float32, B=1, H=1, Hkv=1):
    """q, k and v, rounded to `dtype` here, so that both sides see the same."""
    Tk = Tk or Tq
    tensors = torch.randn(B, Tq, H, K), torch.randn(B, Tk, Hkv, K), torch.randn(B, Tk, Hkv, V)
    return tuple(x.to(DEVICE, dtype) for x in tensors)


def results(form, args, window, **options):
    """o and the gradients of q, k and v."""
    args = [x.detach().requires_grad_() for x in args]
    o = form(*args, window, **options)
    upstream = torch.randn(o.shape, generator=torch.Generator().manual_seed(0)).to(o)
    return [o, *torch.autograd.grad(o, args, upstream)]


def check(args, window, tolerance=1e-4, **options):
    got = results(kernel.triton_window, args, window, **options)
    expected = results(reference, [x.double() for x in args], window, **options)
    for name, x, y in zip(("o", "dq", "dk", "dv"), got, expected, strict=True):
        difference = (x.double() - y).norm()
        # A query that sees one key has p = 1 whatever q and k are: there y = 0, and x is 0 but for rounding.
        scale = max(y.norm(), 1e-2 * y.numel() ** 0.5)
        assert difference <= tolerance * scale, f"{name}: relative error {difference / scale:.1e} > {tolerance:.0e}"


@pytest.mark.parametrize("window", [1, 5, 16, 64, 200])
@pytest.mark.parametrize("T", [1, 15, 64, 65, 130])
def test_every_window_and_length(window, T):
    check(inputs(T, K=24, V=16), window)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("window", [1, 16, 100])
def test_every_dtype(dtype, window):
    check(inputs(65, K=24, V=40, dtype=dtype, H=2), window, TOLERANCE[dtype])


@pytest.mark.parametrize(("K", "V"), [(8, 16), (16, 24), (40, 16), (64, 256), (256, 64)])
def test_every_width(K, V):
    check(inputs(20, K=K, V=V), 7)


@pytest.mark.parametrize(("H", "Hkv"), [(3, 3), (6, 3), (6, 1)])
def test_batch_and_heads_do_not_mix(H, Hkv):
    check(inputs(40, B=2, H=H, Hkv=Hkv), 10)


@pytest.mark.parametrize(("Tq", "Tk"), [(1, 33), (17, 65), (60, 65)])
@pytest.mark.parametrize("window", [1, 16, 100])
def test_the_queries_are_the_last_positions(Tq, Tk, window):
    check(inputs(Tq, Tk, B=2, H=2), window)


@pytest.mark.parametrize("window", [1, 5, 100])
@pytest.mark.parametrize("Tq", [20, 50])
def test_hidden_keys(window, Tq):
    """Left padding, a hole, and a row of padding alone. A query that sees no key gives 0; so do the gradients."""
    args = inputs(Tq, 50, B=3)
    key_mask = torch.ones(3, 50, dtype=torch.bool, device=DEVICE)
    key_mask[0, :37], key_mask[1, 20:33], key_mask[2] = False, False, False
    check(args, window, key_mask=key_mask)
    o, dq, dk, dv = results(kernel.triton_window, args, window, key_mask=key_mask)
    assert not any(x[2].any() for x in (o, dq, dk, dv))
    assert not any(x[~key_mask].any() for x in (dk, dv))
    assert not any(x[0, : 37 - 50 + Tq].any() for x in (o, dq))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("window", [5, 40, 200])
def test_documents_do_not_see_each_other(dtype, window):
    """Shorter than a window, longer, and empty: at the start, inside and at the end."""
    ends = torch.tensor([0, 0, 7, 7, 73, 90, 90], device=DEVICE)
    check(inputs(90, dtype=dtype, H=2), window, TOLERANCE[dtype], cu_seqlens=ends)


def test_documents_with_hidden_keys():
    ends = torch.tensor([0, 20, 45], device=DEVICE)
    check(inputs(45), 16, cu_seqlens=ends, key_mask=(torch.arange(45, device=DEVICE) % 20 > 8)[None])


def test_mixed_dtypes_and_strided_inputs():
    """q and k in float32 after the rotary embedding, as transposed views; v in bfloat16."""
    q, k, v = inputs(30, H=4, Hkv=2)
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    args = q, k, v.bfloat16()
    check(args, 8, TOLERANCE[torch.bfloat16])
    o, dq, dk, dv = results(kernel.triton_window, args, 8)
    assert (o.dtype, dv.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (dq.dtype, dk.dtype) == (torch.float32, torch.float32)


def test_a_loss_on_v_alone_and_an_expanded_gradient():
    q, k, v = inputs(20)
    expected = torch.autograd.grad(reference(q, k, v.requires_grad_(), 5).sum(), v)
    torch.testing.assert_close(torch.autograd.grad(kernel.triton_window(q, k, v, 5).sum(), v), expected)


def test_no_score_is_too_large(monkeypatch):
    """exp is given nothing positive: forward not at all, backward no more than rounding. Watched in the interpreter."""
    if not kernel.INTERPRETED:
        pytest.skip("exp inside a compiled kernel cannot be watched")
    import triton.runtime.interpreter as interpreter

    seen = []
    exp = interpreter.InterpreterBuilder.create_exp

    def watched(self, x):
        seen.append(float(x.data.max()))
        return exp(self, x)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_exp", watched)
    q, k, v = inputs(40)
    q, k, v = (x.requires_grad_() for x in (30 * q, 30 * k, v))  # scores in the thousands
    o = kernel.triton_window(q, k, v, 16)
    assert len(seen) > 5, "the replaced exp was not used"
    assert max(seen) <= 0, f"largest exponent {max(seen)}"
    o.sum().backward()
    assert max(seen) <= 1e-2, f"largest exponent {max(seen)}"
    torch.testing.assert_close(o, reference(q, k, v, 16), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cu_seqlens", [None, torch.arange(0, 129, 32)], ids=["one document", "documents"])
def test_the_work_grows_with_T_not_with_its_square(monkeypatch, cu_seqlens):
    """Products of tiles, counted in the interpreter. A document bounds what a wide window can see."""
    if not kernel.INTERPRETED:
        pytest.skip("products inside a compiled kernel cannot be counted")
    import triton.runtime.interpreter as interpreter

    count = 0
    dot = interpreter.InterpreterBuilder.create_dot

    def counted(*args):
        nonlocal count
        count += 1
        return dot(*args)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", counted)
    counts = []
    for T in (64, 128):
        ends = cu_seqlens if cu_seqlens is None else cu_seqlens[cu_seqlens <= T]
        count = 0
        results(kernel.triton_window, inputs(T), 16 if cu_seqlens is None else 200, cu_seqlens=ends)
        counts.append(count)
    assert 0 < counts[1] < 2.5 * counts[0], f"{counts} products for T = 64 and 128"


@pytest.mark.parametrize("width", [16, 24, 256])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_some_blocks_fit_at_every_width(width, dtype):
    smallest = kernel.triton.Config({"BLOCK": 16, "STEP": 16}, num_warps=4)
    arguments = {"q_ptr": torch.empty(0, dtype=dtype), "K": 16, "V": width}
    assert kernel.fitting([smallest], arguments) == [smallest]


def test_a_width_above_256_is_refused():
    with pytest.raises(ValueError, match=r"V = 257; .* up to 256"):
        kernel.triton_window(*inputs(1, V=257), 4)


def test_float64_is_refused():
    with pytest.raises(TypeError, match=r"q has dtype torch\.float64; .*float32, .*bfloat16, .*float16"):
        kernel.triton_window(*inputs(1, dtype=torch.float64), 4)


def test_without_a_gpu_or_the_interpreter_the_error_names_both(monkeypatch):
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match=r"on cpu.* CUDA device.* TRITON_INTERPRET=1"):
        kernel.triton_window(*(x.cpu() for x in inputs(1)), 4)
