"""Every Triton kernel against its definition in float64: outputs, final states and every gradient; and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from liger_mini.kernels import tiles
from torch._subclasses.fake_tensor import FakeTensorMode

from liger_mini.experiments.equivalence import relative_rms
from liger_mini.recurrences import delta_recurrence, gated_recurrence, slot_recurrence

from .kernel_harness import DEVICE, GATES, KERNELS, RECURRENCES, TOLERANCE, check, exponents, inputs, named, watch

every_recurrence = pytest.mark.parametrize("kind", RECURRENCES)


@every_recurrence
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_gate_in_every_dtype(kind, gates, dtype):
    check(kind, inputs(kind, 65, 24, 40, gates=gates, dtype=dtype))


@every_recurrence
@pytest.mark.parametrize("T", [1, 15, 63, 64, 65, 130])
def test_every_length(kind, T):
    check(kind, inputs(kind, T, 24, 40, 40, gates="mixed"))


WIDTHS = {
    "diagonal": [(16, 16), (64, 40), (256, 16), (16, 256)],
    "scalar": [(16, 16), (64, 40), (256, 16), (16, 256), (16, 272)],  # 272: with a filled-up column for a normaliser
    "delta": [(16, 16), (64, 40), (256, 16), (16, 256)],
    "delta per channel": [(16, 16), (40, 24)],
    "slots": [(64, 16, 16), (16, 64, 24), (16, 16, 256), (256, 16, 16), (16, 256, 16)],
    "window": [(8, 16), (16, 24), (40, 16), (64, 256), (256, 64)],
}


@pytest.mark.parametrize(("kind", "widths"), [(kind, widths) for kind in WIDTHS for widths in WIDTHS[kind]])
def test_every_width(kind, widths):
    check(kind, inputs(kind, 20, *widths, gates="mixed"))


@pytest.mark.parametrize(
    ("kind", "H", "Hkv"), [(kind, *heads) for kind in KERNELS for heads in ((3, 3), (6, 3), (6, 1))]
)
def test_batch_and_heads_do_not_mix(kind, H, Hkv):
    check(kind, inputs(kind, 70, B=2, H=H, Hkv=Hkv))


@pytest.mark.parametrize(
    ("kind", "options"), [*((kind, {}) for kind in RECURRENCES), *(("window", {"window": W}) for W in (5, 40, 200))]
)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_packed_documents(kind, options, dtype):
    """Shorter than a chunk or window, longer, and empty: at the start, inside and at the end."""
    ends = torch.tensor([0, 0, 7, 7, 73, 90, 90], device=DEVICE)
    check(kind, inputs(kind, 90, 24, 16, dtype=dtype, H=2, N=6), cu_seqlens=ends, **options)


@every_recurrence
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_packed_documents_of_grouped_heads(kind, dtype):
    ends = torch.tensor([0, 0, 7, 73, 90], device=DEVICE)
    args = inputs(kind, 90, 24, 40, gates="mixed", dtype=dtype, H=6, Hkv=2, N=4)
    check(kind, args, cu_seqlens=ends)


@every_recurrence
def test_memory_that_nobody_wrote_reaches_no_result(kind):
    """Of six documents some have no chunk, and more chunks are set aside than there are. New memory is full of NaN here."""
    torch.use_deterministic_algorithms(True)
    try:
        check(
            kind, inputs(kind, 90, 24, 16, H=2, N=6), cu_seqlens=torch.tensor([0, 0, 7, 7, 73, 90, 90], device=DEVICE)
        )
    finally:
        torch.use_deterministic_algorithms(False)


@every_recurrence
def test_an_empty_document_hands_its_state_through(kind):
    args = inputs(kind, 5, N=3)
    got = named(kind, KERNELS[kind].call(**args, cu_seqlens=torch.tensor([0, 0, 5, 5], device=DEVICE)))
    for name in KERNELS[kind].states:
        assert torch.equal(got[f"final {name}"][::2], args[name][::2])


@pytest.mark.parametrize(
    ("kind", "dtypes", "heads"),
    [
        ("diagonal", {"v": torch.bfloat16, "log_gate": torch.bfloat16}, {"H": 2}),
        ("scalar", {"v": torch.bfloat16, "log_gate": torch.bfloat16}, {"H": 2}),
        ("slots", {"v": torch.bfloat16, "write": torch.float16}, {"H": 2}),
        ("window", {"v": torch.bfloat16}, {"H": 4, "Hkv": 2}),
    ],
)
def test_mixed_dtypes_and_strided_inputs(kind, dtypes, heads):
    """A softmax or a rotary embedding in float32 before the rest in bfloat16; q and k are transposed views."""
    args = inputs(kind, 30, **heads)
    args |= {name: args[name].transpose(1, 2).contiguous().transpose(1, 2) for name in "qk"}
    args |= {name: args[name].to(dtype) for name, dtype in dtypes.items()}
    got = check(kind, args)
    expected = named(kind, KERNELS[kind].definition(*(x.double() for x in args.values())))
    assert got["o"].dtype == torch.bfloat16
    for name, x in args.items():
        assert got[f"d{name}"].dtype == x.dtype
    for name in (f"final {state}" for state in KERNELS[kind].states):
        assert got[name].dtype == torch.float32
        assert relative_rms(got[name], expected[name]) <= 1e-4


@every_recurrence
def test_two_halves_are_the_whole(kind):
    """The final states are exactly what the next call needs, also in the middle of a chunk."""
    call, args = KERNELS[kind].call, inputs(kind, 90, gates="mixed")
    states = [args.pop(name) for name in KERNELS[kind].states]
    whole, *last = call(*args.values(), *states)
    first, *middle = call(*(x[:, :37] for x in args.values()), *states)
    second, *end = call(*(x[:, 37:] for x in args.values()), *middle)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(end, last, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "only"), [(kind, i) for kind in RECURRENCES for i in range(1 + len(KERNELS[kind].states))]
)
def test_a_loss_on_one_result_alone(kind, only):
    args = [x.requires_grad_() for x in inputs(kind, 20).values()]
    exact = [x.detach().double().requires_grad_() for x in args]
    got = torch.autograd.grad(KERNELS[kind].call(*args)[only].sum(), args, materialize_grads=True)
    expected = torch.autograd.grad(KERNELS[kind].definition(*exact)[only].sum(), exact, materialize_grads=True)
    for x, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(x, reference.float(), rtol=1e-4, atol=1e-4)


@every_recurrence
def test_decays_are_never_above_one(kind, monkeypatch):
    """No positive exponent is ever formed."""
    seen = exponents(monkeypatch)
    check(kind, inputs(kind, 70, gates="mixed"))
    assert len(seen) > {"scalar": 15, "delta": 15}.get(kind, 20), "the replaced exp was not used"
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


@pytest.mark.parametrize(
    ("kind", "gates"), [*(("diagonal", gates) for gates in GATES), ("slots", "weak"), ("slots", "mixed")]
)
def test_the_products_of_a_gpu_are_precise_enough(kind, gates, monkeypatch):
    """The interpreter multiplies in float32, whatever the precision; here as a GPU does for bfloat16.

    The scores of the slots go through an exponential: their errors count.
    """
    seen = []
    watch(monkeypatch, "create_dot", as_tf32(seen))
    check(kind, inputs(kind, 100, 32, 32, 32, gates=gates, dtype=torch.bfloat16))
    assert seen, "the replaced product was not used"


@pytest.mark.parametrize(
    ("kind", "name", "width"),
    [("diagonal", "K", 257), ("scalar", "K", 257), ("scalar", "V", 273), ("slots", "M", 257), ("window", "V", 257)],
)
def test_a_width_above_the_limit_is_refused(kind, name, width):
    with pytest.raises(ValueError, match=f"{name} = {width}; .* up to {width - 1}"):
        KERNELS[kind].call(**inputs(kind, 1, **{name: width}))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KERNELS for name in inputs(kind, 1)])
def test_float64_is_refused(kind, name):
    args = inputs(kind, 1)
    args[name] = args[name].double()
    allowed = "float32" if name in KERNELS[kind].states else r"float32, .*bfloat16, .*float16"
    with pytest.raises(TypeError, match=rf"{name} has dtype torch\.float64; .*{allowed}"):
        KERNELS[kind].call(**args)


@pytest.mark.parametrize("kind", KERNELS)
def test_without_a_gpu_or_the_interpreter_the_error_names_both(kind, monkeypatch):
    monkeypatch.setattr("liger_mini.kernels.tiles.INTERPRETED", False)
    with pytest.raises(RuntimeError, match=r"on cpu.* CUDA device.* TRITON_INTERPRET=1"):
        KERNELS[kind].call(**{name: x.cpu() for name, x in inputs(kind, 1).items()})


def test_the_backend_argument_reaches_the_kernel_also_for_packed_documents():
    q, k, v, logits = torch.randn(4, 1, 20, 2, 16, device=DEVICE)
    log_gate, ends = F.logsigmoid(logits), torch.tensor([0, 7, 7, 20], device=DEVICE)
    o, state = gated_recurrence(q, k, v, log_gate, cu_seqlens=ends, backend="triton")
    expected, expected_state = gated_recurrence(q, k, v, log_gate, cu_seqlens=ends, backend="naive")
    torch.testing.assert_close(o, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-4)


def given(T=40, K=16, G=1):
    q = torch.randn(1, T, 2 * G, K, device=DEVICE)
    k, v = torch.randn(2, 1, T, 2, K, device=DEVICE)
    return q, k, v, F.logsigmoid(torch.randn(1, T, 2, K, device=DEVICE)) / 16


def by_name(recurrence, T, G=1):
    """A recurrence through its public function, with inputs that are trained."""
    q, k, v, g = (x.requires_grad_() for x in given(T, G=G))
    if recurrence == "slots":
        return slot_recurrence(q, k, v, -g.expm1(), g, backend="triton")
    if recurrence == "delta":
        return delta_recurrence(q, F.normalize(k, dim=-1), v, g[..., 0].exp(), g[..., 1], backend="triton")
    return gated_recurrence(q, k, v, g if recurrence == "diagonal" else g[..., 0], backend="triton")


@pytest.mark.parametrize("recurrence", ["diagonal", "scalar", "delta", "slots"])
def test_for_grouped_heads_nothing_is_repeated(recurrence):
    """What is stored for the backward pass has the keys' heads, six times fewer than the queries'."""
    stored = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: stored.setdefault(x.data_ptr(), x), lambda x: x):
        by_name(recurrence, T=64, G=6)
    q, k, v, g = given(T=64, G=6)
    # slots also keep what queries read of them, before and after a softmax, and `write`; the rest β and states
    more = 2 * q.numel() + 2 * k.numel() if recurrence == "slots" else 3 * k.numel()
    assert sum(x.numel() for x in stored.values()) <= sum(x.numel() for x in (q, k, v, g)) + more


def test_under_autocast_a_kernel_has_one_dtype_and_its_output_the_callers(monkeypatch):
    from liger_mini.kernels import diagonal

    seen, kernel = [], diagonal.triton_recurrence
    monkeypatch.setattr(
        diagonal, "triton_recurrence", lambda *given: seen.append([x.dtype for x in given[:5]]) or kernel(*given)
    )
    q, k, v, g = given()
    with torch.autocast(DEVICE, torch.bfloat16):
        o, _ = gated_recurrence(q, k.bfloat16(), v, g, backend="triton")  # a softmax gives float32 under autocast
    assert seen == [3 * [torch.bfloat16] + 2 * [torch.float32]]
    assert o.dtype == torch.float32
    assert relative_rms(o, gated_recurrence(q, k, v, g, backend="naive")[0]) < TOLERANCE[torch.bfloat16]


def test_a_column_for_the_normaliser_is_filled_up_to_whole_rows(monkeypatch):
    """mLSTM has V + 1 values: the kernel gets a multiple of 16, and the caller what the loop gives, gradients too."""
    from liger_mini.kernels import scalar

    seen, kernel = [], scalar.triton_recurrence
    monkeypatch.setattr(
        scalar, "triton_recurrence", lambda q, k, v, *rest: seen.append(v.shape) or kernel(q, k, v, *rest)
    )
    q, k, _, g = given()
    leaves = [x.requires_grad_() for x in (q, k, torch.randn(1, 40, 2, 17, device=DEVICE), g[..., 0].contiguous())]
    start = torch.randn(1, 2, 16, 17, device=DEVICE)
    told = {}
    for backend in ("triton", "naive"):
        o, S = gated_recurrence(*leaves, initial_state=start, backend=backend)
        told[backend] = o, S, *torch.autograd.grad(o.square().sum() + S.square().sum(), leaves)
    assert seen == [(1, 40, 2, 32)]
    for ours, true in zip(told["triton"], told["naive"]):
        assert ours.shape == true.shape
        assert relative_rms(ours, true) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("recurrence", ["diagonal", "scalar", "delta", "slots"])
def test_where_gradients_are_doubted_a_kernel_shows_them_first_and_once(recurrence, monkeypatch):
    """On Hopper below triton 3.7.1: compared with the chunked form before a training uses them, and refused if they differ."""
    from importlib import import_module

    from liger_mini.recurrences import trust

    monkeypatch.setattr(trust, "doubtful", lambda device: True)
    monkeypatch.setattr(trust, "_held", set())
    kernels, calls = import_module(f"liger_mini.kernels.{recurrence}"), []
    kernel = kernels.triton_recurrence

    def wrong(q, k, *rest):
        calls.append(1)
        return kernel(q, k + 0.1 * (k - k.detach()), *rest)  # the gradient of k is 1.1 times what it should be

    def run():
        return by_name(recurrence, T=70)[0].sum().backward()

    monkeypatch.setattr(kernels, "triton_recurrence", wrong)
    with pytest.raises(RuntimeError, match=r"the gradient of input 1 is off by 0\.1 .*install a newer one"):
        run()
    with torch.no_grad():
        by_name(recurrence, T=70)  # without gradients there is nothing to doubt
    monkeypatch.setattr(kernels, "triton_recurrence", lambda *given: calls.append(1) or kernel(*given))
    calls.clear()
    run()
    assert len(calls) == 2  # once to show them, once for the caller
    run()
    assert len(calls) == 3
    by_name(recurrence, T=70, G=2)[0].sum().backward()
    assert len(calls) == 5  # for grouped heads another kernel is compiled, which has to show its own


@pytest.mark.parametrize(
    ("capability", "version", "expected"),
    [
        ((9, 0), "3.6.0", True),
        ((9, 0), "3.4.0", True),
        ((9, 0), "3.7.1", False),
        ((9, 0), "3.3.1", False),
        ((8, 0), "3.6.0", False),
    ],
)
def test_which_gpus_are_doubted(capability, version, expected, monkeypatch):
    import triton

    from liger_mini.recurrences.trust import doubtful

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(triton, "__version__", version)
    assert doubtful(torch.device("cuda", 0)) is expected
    assert not doubtful(torch.device("cpu"))


def test_a_kernel_stands_beside_a_compiled_graph_and_forgets_everything_there_too():
    q, k, v, g = given()
    compiled = torch.compile(lambda *x: 2 * gated_recurrence(*x, backend="triton")[0], backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(q, k, v, g), 2 * gated_recurrence(q, k, v, g, backend="triton")[0])
        g[:, 20] = -torch.inf


def test_chunks_are_counted_without_a_look_at_any_value():
    """What a GPU is asked for is computed there: a fake tensor has no values at all."""
    for ends in ([0, 100], [0, 0, 64, 65, 65, 200], [0, 64, 128], [0, 1]):
        cu_seqlens = torch.tensor(ends)
        rows, of_document = tiles.chunks(1, ends[-1], cu_seqlens, cu_seqlens.device)
        expected = [[a + n, b - a - n] for a, b in itertools.pairwise(ends) for n in range(0, b - a, tiles.C.value)]
        assert rows[: len(expected)].tolist() == expected
        assert not (rows[len(expected) :, 1] > 0).any()  # chunks to spare have no rows
        assert of_document.tolist() == [sum(row[0] < end for row in expected) for end in ends]
    batch = tiles.chunks(2, 100, None, cu_seqlens.device)
    packed = tiles.chunks(1, 200, torch.tensor([0, 100, 200]), cu_seqlens.device)
    assert torch.equal(batch.rows, packed.rows[:4])
    with FakeTensorMode():
        tiles.chunks(1, 200, torch.tensor([0, 100, 200]), torch.device("cpu"))
        tiles.chunks(2, 100, None, torch.device("cpu"))


@pytest.mark.parametrize("W", [1, 5, 16, 64, 200])
@pytest.mark.parametrize("T", [1, 15, 64, 65, 130])
def test_every_window_and_length(W, T):
    check("window", inputs("window", T, K=24, V=16), window=W)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("W", [1, 16, 100])
def test_every_window_and_dtype(dtype, W):
    check("window", inputs("window", 65, K=24, V=40, dtype=dtype, H=2), window=W)


@pytest.mark.parametrize(("Tq", "Tk"), [(1, 33), (17, 65), (60, 65)])
@pytest.mark.parametrize("W", [1, 16, 100])
def test_the_queries_are_the_last_positions(Tq, Tk, W):
    check("window", inputs("window", Tq, Tk=Tk, B=2, H=2), window=W)


@pytest.mark.parametrize("W", [1, 5, 100])
@pytest.mark.parametrize("Tq", [20, 50])
def test_hidden_keys(W, Tq):
    """Left padding, a hole, and a row of padding alone. A query that sees no key gives 0; so do the gradients."""
    key_mask = torch.ones(3, 50, dtype=torch.bool, device=DEVICE)
    key_mask[0, :37], key_mask[1, 20:33], key_mask[2] = False, False, False
    o, dq, dk, dv = check("window", inputs("window", Tq, Tk=50, B=3), window=W, key_mask=key_mask).values()
    assert not any(x[2].any() for x in (o, dq, dk, dv))
    assert not any(x[~key_mask].any() for x in (dk, dv))
    assert not any(x[0, : 37 - 50 + Tq].any() for x in (o, dq))


def test_documents_with_hidden_keys():
    ends, key_mask = torch.tensor([0, 20, 45], device=DEVICE), (torch.arange(45, device=DEVICE) % 20 > 8)[None]
    check("window", inputs("window", 45), window=16, cu_seqlens=ends, key_mask=key_mask)


@pytest.mark.parametrize("sinks", [1, 20, 200])
@pytest.mark.parametrize(("Tq", "Tk"), [(1, 33), (17, 65), (70, 70)])
def test_sinks(sinks, Tq, Tk):
    """Where W is small and the sinks far behind; where they are more than the keys; and grouped heads."""
    check("window", inputs("window", Tq, Tk=Tk, H=2), window=16, sinks=sinks)


@pytest.mark.parametrize(("dtype", "sinks"), [(torch.float32, 1), (torch.float32, 7), (torch.bfloat16, 7)], ids=str)
def test_sinks_of_packed_documents_and_padded_rows(dtype, sinks):
    """A document's own first real tokens, which may lie in several tiles; rows of padding alone have none."""
    ends, key_mask = torch.tensor([0, 0, 3, 3, 40, 110], device=DEVICE), torch.rand(1, 110, device=DEVICE) < 0.6
    check("window", inputs("window", 110, dtype=dtype), window=9, cu_seqlens=ends, key_mask=key_mask, sinks=sinks)
    key_mask = (torch.arange(70, device=DEVICE) - torch.tensor([[45], [0], [70]], device=DEVICE)) >= 0
    got = check("window", inputs("window", 70, dtype=dtype, B=3), window=9, key_mask=key_mask, sinks=sinks)
    assert not any(x[2].any() for x in got.values())


def test_sinks_far_behind_padding_cost_no_pass_over_it(monkeypatch):
    """Tiles between the sinks and the window are left out: products of tiles with and without sinks."""
    products, counts = [], []
    watch(monkeypatch, "create_dot", lambda *args: (products.append(1), args)[1])
    key_mask = torch.arange(256, device=DEVICE)[None] >= 100
    for sinks in (0, 1):
        products.clear()
        KERNELS["window"].call(**inputs("window", 256), window=16, key_mask=key_mask, sinks=sinks)
        counts.append(len(products))
    assert counts[0] < counts[1] <= counts[0] + 2 * 256 / 16, counts


def test_a_loss_on_v_alone_and_an_expanded_gradient():
    q, k, v = inputs("window", 20).values()
    call, definition, *_ = KERNELS["window"]
    got = torch.autograd.grad(call(q, k, v.requires_grad_()).sum(), v)
    torch.testing.assert_close(got, torch.autograd.grad(definition(q, k, v).sum(), v))


def test_no_score_is_too_large(monkeypatch):
    """exp is given nothing positive: forward not at all, backward no more than rounding."""
    seen = exponents(monkeypatch)
    q, k, v = inputs("window", 40).values()
    q, k, v = (x.requires_grad_() for x in (30 * q, 30 * k, v))  # scores in the thousands
    o = KERNELS["window"].call(q, k, v, window=16)
    assert len(seen) > 5, "the replaced exp was not used"
    assert max(seen) <= 0, f"largest exponent {max(seen)}"
    o.sum().backward()
    assert max(seen) <= 1e-2, f"largest exponent {max(seen)}"
    torch.testing.assert_close(o, KERNELS["window"].definition(q, k, v, window=16), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cu_seqlens", [None, torch.arange(0, 129, 32)], ids=["one document", "documents"])
def test_the_work_grows_with_T_not_with_its_square(monkeypatch, cu_seqlens):
    """Products of tiles, counted in the interpreter. A document bounds what a wide window can see."""
    products, counts = [], []
    watch(monkeypatch, "create_dot", lambda *args: (products.append(1), args)[1])
    for T in (64, 128):
        products.clear()
        ends, W = (None, 16) if cu_seqlens is None else (cu_seqlens[cu_seqlens <= T], 200)
        check("window", inputs("window", T), window=W, cu_seqlens=ends)
        counts.append(len(products))
    assert 0 < counts[1] < 2.5 * counts[0], f"{counts} products for T = 64 and 128"


@pytest.mark.parametrize("width", [16, 24, 256])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_some_blocks_fit_at_every_width(width, dtype):
    from liger_mini.kernels import window

    smallest = window.triton.Config({"BLOCK": 16, "STEP": 16}, num_warps=4)
    arguments = {"q_ptr": torch.empty(0, dtype=dtype), "K": 16, "V": width}
    assert window.fitting([smallest], arguments) == [smallest]
