"""The diagonal recurrence: naive is the definition, everything else must agree with it (promises 1 and 5)."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import liger_mini as lm
from liger_mini.recurrences import diagonal

from .conftest import relative_rms

# a product of at most T gates and sums of at most T terms: a few hundred float32 roundings of 6e-8, mostly averaged out
FLOAT32 = 1e-5
BFLOAT16 = 1e-2  # outputs are rounded to 8 bits: 2^-9 relative each


def inputs(T, *, B=2, H=3, K=16, V=24, gates="mixed", dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    q, k, v = draw(B, T, H, K), draw(B, T, H, K), draw(B, T, H, V)
    uniform = torch.rand(B, T, H, K, generator=generator, dtype=torch.float64)
    log_gate = {"weak": -uniform / 16, "mixed": -50 * uniform**6, "one": 0 * uniform, "shut": 0 * uniform - 50}[gates]
    return [x.to(dtype) for x in (q, k, v, log_gate)] + [draw(B, H, K, V).float()]


def by_hand(q, k, v, log_gate, state):
    """The definition once more, as a sum over pairs, with nothing shared with the package."""
    o = torch.zeros(*q.shape[:3], v.shape[-1], dtype=torch.float64)
    for i in range(q.shape[1]):
        decay = log_gate[:, : i + 1].sum(1).exp()
        o[:, i] = torch.einsum("bhk,bhk,bhkv->bhv", q[:, i], decay, state.double())
        for j in range(i + 1):
            decay = log_gate[:, j + 1 : i + 1].sum(1).exp()
            o[:, i] += (q[:, i] * decay * k[:, j]).sum(-1, keepdim=True) * v[:, j]
    return o


def test_naive_is_the_definition():
    q, k, v, g, S = inputs(9)
    o, _ = lm.gated_recurrence(q, k, v, g, initial_state=S, backend="naive")
    torch.testing.assert_close(o, by_hand(q, k, v, g, S))


@pytest.mark.parametrize("gates", ["weak", "mixed", "one", "shut"])
@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 600])
def test_chunked_equals_naive_with_every_gradient(T, gates):
    reference = [x.double().requires_grad_() for x in inputs(T, gates=gates)]
    leaves = [x.detach().float().requires_grad_() for x in reference]
    results = {}
    for name, args, backend in (("naive", reference, "naive"), ("chunked", leaves, "chunked")):
        o, S = lm.gated_recurrence(*args[:4], initial_state=args[4], backend=backend)
        (o.square().sum() + S.square().sum()).backward()
        results[name] = [o, S, *(x.grad for x in args)]
    for what, ours, truth in zip(["o", "S", "dq", "dk", "dv", "dg", "dS"], results["chunked"], results["naive"]):
        if truth.norm() == 0:  # at T = 1 from gates of one there is nothing a gate could change, and so on
            assert ours.norm() == 0, what
        else:
            assert relative_rms(ours, truth) < FLOAT32, what


@pytest.mark.parametrize("backend", ["naive", "chunked"])
def test_gradcheck(backend):
    args = [x.double().requires_grad_() for x in inputs(5, B=1, H=1, K=3, V=2, gates="weak")]
    torch.autograd.gradcheck(
        lambda q, k, v, g, S: lm.gated_recurrence(q, k, v, g, initial_state=S, backend=backend), args
    )


def test_bfloat16_keeps_its_dtype_and_a_float32_state():
    exact = inputs(130, gates="weak")
    rounded = [x.bfloat16() for x in exact[:4]]
    truth, _ = lm.gated_recurrence(*(x.double() for x in rounded), initial_state=exact[4], backend="naive")
    o, S = lm.gated_recurrence(*rounded, initial_state=exact[4], backend="chunked")
    assert o.dtype == torch.bfloat16
    assert S.dtype == torch.float32
    assert relative_rms(o, truth) < BFLOAT16


@settings(max_examples=25, deadline=None)
@given(
    T=st.integers(2, 150),
    split=st.floats(0, 1),
    seed=st.integers(0, 10**6),
    gates=st.sampled_from(["weak", "mixed", "one"]),
)
def test_running_in_two_pieces_is_running_once(T, split, seed, gates):
    q, k, v, g, S = inputs(T, gates=gates, seed=seed)
    s = 1 + int(split * (T - 2))
    whole, last = lm.gated_recurrence(q, k, v, g, initial_state=S)
    first, between = lm.gated_recurrence(*(x[:, :s] for x in (q, k, v, g)), initial_state=S)
    second, end = lm.gated_recurrence(*(x[:, s:] for x in (q, k, v, g)), initial_state=between)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)


def test_a_shut_gate_forgets_everything_before():
    q, k, v, g, S = inputs(40, gates="weak")
    g[:, 20] = -torch.inf
    o, last = lm.gated_recurrence(q, k, v, g, initial_state=S)
    fresh, fresh_last = lm.gated_recurrence(*(x[:, 20:] for x in (q, k, v, g)))
    torch.testing.assert_close(o[:, 20:], fresh)
    torch.testing.assert_close(last, fresh_last)


@pytest.mark.parametrize("backend", ["naive", "chunked"])
def test_packed_documents_do_not_see_each_other(backend):
    q, k, v, g, _ = inputs(100, B=1)
    states = torch.randn(4, 3, 16, 24)
    ends = torch.tensor([0, 30, 30, 31, 100])  # one document is empty, one is a single token
    o, S = lm.gated_recurrence(q, k, v, g, initial_state=states, cu_seqlens=ends, backend=backend)
    torch.testing.assert_close(S[1], states[1].double())
    for n, (a, b) in enumerate(itertools.pairwise(ends)):
        if b > a:
            alone, last = lm.gated_recurrence(*(x[:, a:b] for x in (q, k, v, g)), initial_state=states[n : n + 1])
            torch.testing.assert_close(o[:, a:b], alone)
            torch.testing.assert_close(S[n : n + 1], last)


def test_step_is_one_token_of_naive():
    q, k, v, g, S = inputs(1)
    o, last = diagonal.step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], S.double())
    expected, expected_last = lm.gated_recurrence(q, k, v, g, initial_state=S, backend="naive")
    torch.testing.assert_close(o, expected[:, 0])
    torch.testing.assert_close(last, expected_last)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"log_gate": torch.full((1, 4, 2, 3), 0.5)}, ValueError, "must be ≤ 0"),
        ({"log_gate": torch.full((1, 4, 2, 3), torch.nan)}, ValueError, "nan"),
        ({"k": torch.randn(1, 4, 2, 5)}, ValueError, "k has 5 channels"),
        ({"v": torch.randn(1, 3, 2, 3)}, ValueError, "v has"),
        ({"q": torch.randn(4, 2, 3)}, ValueError, "four axes"),
        ({"q": torch.ones(1, 4, 2, 3, dtype=torch.long)}, TypeError, "floating point"),
        ({"initial_state": torch.zeros(1, 2, 3, 9)}, ValueError, "initial_state has shape"),
        ({"backend": "cuda"}, ValueError, "'naive', 'chunked'"),
        ({"cu_seqlens": torch.tensor([0, 3])}, ValueError, "must rise from 0 to T = 4"),
        ({"cu_seqlens": torch.tensor([0, 3, 2, 4])}, ValueError, "must rise"),
    ],
)
def test_bad_input_is_named(change, error, words):
    q, k, v = torch.randn(3, 1, 4, 2, 3)
    arguments = {"q": q, "k": k, "v": v, "log_gate": -torch.rand(1, 4, 2, 3), **change}
    with pytest.raises(error, match=words):
        lm.gated_recurrence(
            arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), arguments.pop("log_gate"), **arguments
        )


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="empty sequence"):
        lm.gated_recurrence(*torch.zeros(4, 1, 0, 2, 3))


def test_gla_gate_halves_in_temper_tokens():
    """The half-life of a neutral key's gate is its temper, in tokens."""
    import dataclasses

    for temper in (16, 1024):
        gla = dataclasses.replace(lm.structures["gla"], temper=temper)
        log_alpha = gla.log_gate(torch.zeros(1, 1, 1, 4))
        torch.testing.assert_close((temper * log_alpha).exp(), torch.full((1, 1, 1, 4), 0.5))
