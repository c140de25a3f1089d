"""Four recurrences: naive is the definition, everything else must agree with it (promises 1 and 5)."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import liger_mini as lm
from liger_mini.experiments.equivalence import relative_rms
from liger_mini.recurrences import delta

# a product of at most T gates and sums of at most T terms: a few hundred float32 roundings of 6e-8, mostly averaged out
FLOAT32 = 1e-5
RECURRENCES = ["diagonal", "scalar", "slots", "delta", "delta, a gate per channel"]
GATES = {
    "weak": lambda u: -u / 16,
    "mixed": lambda u: -50 * u**6,
    "one": lambda u: 0 * u,
    "shut": lambda u: 0 * u - 50,
}
every_recurrence = pytest.mark.parametrize("kind", RECURRENCES)


def inputs(kind, T, *, B=2, H=4, H_kv=2, K=16, V=24, M=12, gates="mixed", dtype=torch.float64, seed=0):
    """([q, k, v, (write or beta,) log_gate], (states)), float64 by default; heads are grouped."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    uniform = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = [draw(B, T, H, K), draw(B, T, H_kv, K), draw(B, T, H_kv, V)]
    width = {"scalar": [], "delta": [], "slots": [M]}.get(kind, [K])
    log_gate = GATES[gates](uniform(B, T, H_kv, *width))
    if kind.startswith("delta"):
        tensors[1] = torch.nn.functional.normalize(tensors[1], dim=-1)
        tensors.append(uniform(B, T, H_kv))
    if kind == "slots":
        tensors.append(uniform(B, T, H_kv, M) / 2)
        states = (draw(B, H_kv, K, M) / 4, draw(B, H_kv, M, V))
    else:
        states = (draw(B, H_kv, K, V),)
    return [x.to(dtype) for x in (*tensors, log_gate)], tuple(S.to(dtype) for S in states)


def run(kind, tensors, states=None, **how):
    """(o, tuple of states) of the public function."""
    public = {"slots": lm.slot_recurrence}.get(kind, lm.gated_recurrence)
    public = lm.delta_recurrence if kind.startswith("delta") else public
    state = states if states is None or kind == "slots" else states[0]
    o, state = public(*tensors, initial_state=state, **how)
    return o, state if kind == "slots" else (state,)


def decay(log_gate, j, i):
    """Product of the gates after j up to i."""
    return log_gate[:, j + 1 : i + 1].sum(1).exp()


def by_hand(kind, tensors, states):
    """The definition once more, as a sum over pairs, with nothing shared with the package."""
    groups = tensors[0].shape[2] // tensors[1].shape[2]
    q, k, v, *write, g = [tensors[0], *(x.repeat_interleave(groups, 2) for x in tensors[1:])]
    states = [S.repeat_interleave(groups, 1) for S in states]
    g = g.unsqueeze(-1) if kind in ("scalar", "delta") else g
    if kind.startswith("delta"):
        v, u = v.clone(), v  # what is written: the corrections, one after the other
        for i in range(q.shape[1]):
            said = torch.einsum("bhk,bhkv->bhv", k[:, i] * decay(g, -1, i), states[0])
            for j in range(i):
                said += (k[:, i] * decay(g, j, i) * k[:, j]).sum(-1, keepdim=True) * v[:, j]
            v[:, i] = write[0][:, i, :, None] * (u[:, i] - said)
    o = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for i in range(q.shape[1]):
        if kind != "slots":
            o[:, i] = torch.einsum("bhk,bhkv->bhv", q[:, i] * decay(g, -1, i), states[0])
            for j in range(i + 1):
                o[:, i] += (q[:, i] * decay(g, j, i) * k[:, j]).sum(-1, keepdim=True) * v[:, j]
            continue
        share = [write[0][:, j] * decay(g, j, i) for j in range(i + 1)]  # of token j in each slot at time i
        keys = states[0] * decay(g, -1, i).unsqueeze(-2) + sum(
            k[:, j, :, :, None] * s.unsqueeze(-2) for j, s in enumerate(share)
        )
        values = states[1] * decay(g, -1, i).unsqueeze(-1) + sum(
            s.unsqueeze(-1) * v[:, j, :, None] for j, s in enumerate(share)
        )
        p = torch.einsum("bhk,bhkm->bhm", q[:, i], keys).softmax(-1)
        o[:, i] = torch.einsum("bhm,bhmv->bhv", p, values)
    return o


@every_recurrence
def test_naive_is_the_definition(kind):
    tensors, states = inputs(kind, 9)
    o, _ = run(kind, tensors, states, backend="naive")
    torch.testing.assert_close(o, by_hand(kind, tensors, states))


@every_recurrence
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 1000])
def test_chunked_equals_naive_with_every_gradient(kind, T, gates):
    sizes = {"H": 2, "H_kv": 1} if T == 1000 else {}
    tensors, states = inputs(kind, T, gates=gates, **sizes)
    results = {}
    for backend, dtype in (("naive", torch.float64), ("chunked", torch.float32)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (*tensors, *states)]
        o, finals = run(kind, leaves[: len(tensors)], tuple(leaves[len(tensors) :]), backend=backend)
        (o.square().sum() + sum(S.square().sum() for S in finals)).backward()
        results[backend] = [o, *finals, *(x.grad for x in leaves)]
    for n, (ours, truth) in enumerate(zip(results["chunked"], results["naive"])):
        if truth.norm() == 0:  # such as d state where every gate is shut
            assert ours.norm() == 0, n
        else:
            assert relative_rms(ours, truth) < FLOAT32, n


@every_recurrence
@pytest.mark.parametrize(("K", "V", "M"), [(1, 1, 1), (7, 256, 3), (256, 5, 64)])
def test_any_width(kind, K, V, M):
    tensors, states = inputs(kind, 40, K=K, V=V, M=M)
    truth, truths = run(kind, tensors, states, backend="naive")
    o, finals = run(kind, [x.float() for x in tensors], tuple(S.float() for S in states))
    for ours, true in zip((o, *finals), (truth, *truths)):
        assert relative_rms(ours, true) < FLOAT32


@every_recurrence
@pytest.mark.parametrize("backend", ["naive", "chunked"])
def test_gradcheck(kind, backend):
    tensors, states = inputs(kind, 5, B=1, H=2, H_kv=1, K=3, V=2, M=2, gates="weak")
    leaves = [x.requires_grad_() for x in (*tensors, *states)]

    def flat(*args):
        o, finals = run(kind, args[: len(tensors)], args[len(tensors) :], backend=backend)
        return o, *finals

    torch.autograd.gradcheck(flat, leaves)


@every_recurrence
def test_bfloat16_keeps_its_dtype_and_a_float32_state(kind):
    tensors, states = inputs(kind, 130, gates="weak", dtype=torch.bfloat16)
    truth, _ = run(kind, [x.double() for x in tensors], tuple(S.double() for S in states), backend="naive")
    o, finals = run(kind, tensors, tuple(S.float() for S in states), backend="chunked")
    assert o.dtype == torch.bfloat16
    assert {S.dtype for S in finals} == {torch.float32}
    assert relative_rms(o, truth) < 2**-8  # only o is rounded, to 8 bits


@every_recurrence
@settings(max_examples=25, deadline=None)
@given(
    T=st.integers(2, 150),
    cut=st.floats(0, 1),
    seed=st.integers(0, 10**6),
    gates=st.sampled_from(["weak", "mixed", "one"]),
)
def test_running_in_two_pieces_is_running_once(kind, T, cut, seed, gates):
    tensors, states = inputs(kind, T, gates=gates, seed=seed)
    s = 1 + int(cut * (T - 2))
    whole, last = run(kind, tensors, states)
    first, between = run(kind, [x[:, :s] for x in tensors], states)
    second, end = run(kind, [x[:, s:] for x in tensors], between)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)


@every_recurrence
@settings(max_examples=10, deadline=None)
@given(T=st.integers(1, 70), seed=st.integers(0, 10**6))
def test_rows_do_not_see_each_other(kind, T, seed):
    tensors, states = inputs(kind, T, B=3, seed=seed)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    o, finals = run(kind, tensors, states)
    permuted, permuted_finals = run(kind, [x[order] for x in tensors], tuple(S[order] for S in states))
    torch.testing.assert_close(permuted, o[order])
    torch.testing.assert_close(permuted_finals, tuple(S[order] for S in finals))


@every_recurrence
@pytest.mark.parametrize("backend", ["naive", "chunked"])
def test_a_shut_gate_forgets_everything_before(kind, backend):
    tensors, states = inputs(kind, 40, gates="weak")
    tensors[-1][:, 20] = -torch.inf
    leaves = [x.requires_grad_() for x in tensors]
    o, last = run(kind, leaves, states, backend=backend)
    fresh, fresh_last = run(kind, [x[:, 20:] for x in tensors], backend=backend)
    torch.testing.assert_close(o[:, 20:], fresh)
    torch.testing.assert_close(last, fresh_last)
    o.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves)


@pytest.mark.parametrize("kind", ["diagonal", "scalar"])
def test_a_gate_of_one_is_ungated(kind):
    (q, k, v, g), _ = inputs(kind, 70, gates="one", H_kv=4)
    causal = torch.einsum("bihk,bjhk->bhij", q, k).tril()
    torch.testing.assert_close(run(kind, [q, k, v, g])[0], torch.einsum("bhij,bjhv->bihv", causal, v))


def test_a_scalar_gate_is_a_diagonal_gate_with_equal_channels():
    tensors, states = inputs("scalar", 100)
    wide = [*tensors[:3], tensors[3].unsqueeze(-1).expand_as(tensors[1])]
    torch.testing.assert_close(run("scalar", tensors, states), run("diagonal", wide, states))


@every_recurrence
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=5).filter(sum), seed=st.integers(0, 10**6))
def test_packed_documents_do_not_see_each_other(kind, lengths, seed):
    ends = torch.tensor([0, *itertools.accumulate(lengths)])
    tensors, _ = inputs(kind, int(ends[-1]), B=1, seed=seed)
    _, states = inputs(kind, 1, B=len(lengths), seed=seed)
    o, finals = run(kind, tensors, states, cu_seqlens=ends)
    for n, (a, b) in enumerate(itertools.pairwise(ends.tolist())):
        own = tuple(S[n : n + 1] for S in states)
        if b > a:
            alone, own = run(kind, [x[:, a:b] for x in tensors], own)
            torch.testing.assert_close(o[:, a:b], alone)
        torch.testing.assert_close(tuple(S[n : n + 1] for S in finals), own)  # an empty one hands its state through


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "compiler"),
    [(kind, "inductor" if kind == "scalar" else "aot_eager") for kind in RECURRENCES],
)  # inductor takes over a minute to write C++ for the halvings
def test_chunked_compiles_without_a_graph_break(kind, compiler):
    tensors, states = inputs(kind, 80, B=1, dtype=torch.float32)
    compiled = torch.compile(lambda *args: run(kind, args, states, backend="chunked"), fullgraph=True, backend=compiler)
    o, finals = compiled(*tensors)
    expected, expected_finals = run(kind, tensors, states, backend="chunked")
    for ours, true in zip((o, *finals), (expected, *expected_finals)):
        assert relative_rms(ours, true) < FLOAT32


def arguments():
    q, k, v = torch.randn(3, 1, 4, 2, 3)
    return {"q": q, "k": k, "v": v, "log_gate": -torch.rand(1, 4, 2, 3)}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"log_gate": torch.full((1, 4, 2, 3), 0.5)}, ValueError, "must be ≤ 0"),
        ({"log_gate": torch.full((1, 4, 2, 3), torch.nan)}, ValueError, "log_gate has NaN"),
        ({"log_gate": -torch.rand(1, 4, 2, 5)}, ValueError, "log_gate has 5 channels, but k has 3"),
        ({"log_gate": -torch.rand(1, 4)}, ValueError, r"log_gate has shape \(1, 4\)"),
        ({"k": torch.randn(1, 4, 2, 5)}, ValueError, "k has 5 channels"),
        ({"v": torch.randn(1, 3, 2, 3)}, ValueError, "v has"),
        ({"v": torch.randn(1, 4, 1, 3)}, ValueError, "v has 1 heads, but k has 2"),
        ({"q": torch.randn(1, 4, 3, 3)}, ValueError, "2 heads of k do not divide the 3 heads of q"),
        ({"q": torch.randn(4, 2, 3)}, ValueError, "four axes"),
        ({"q": torch.ones(1, 4, 2, 3, dtype=torch.long)}, TypeError, "floating point"),
        ({"k": torch.randn(1, 4, 2, 3, device="meta")}, ValueError, "k is on meta, but q is on cpu"),
        ({"initial_state": torch.zeros(1, 2, 3, 9)}, ValueError, "initial_state has shape"),
        ({"initial_state": torch.zeros(1, 2, 3, 3, dtype=torch.bfloat16)}, TypeError, "float32"),
        ({"backend": "cuda"}, ValueError, "'naive', 'chunked'"),
        ({"cu_seqlens": torch.tensor([0, 3])}, ValueError, "must rise from 0 to T = 4"),
        ({"cu_seqlens": torch.tensor([0, 3, 2, 4])}, ValueError, "must rise"),
        ({"cu_seqlens": torch.tensor([0.0, 4.0])}, ValueError, "whole numbers"),
    ],
)
def test_bad_input_is_named(change, error, words):
    with pytest.raises(error, match=words):
        lm.gated_recurrence(**{**arguments(), **change})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slot_write": torch.rand(1, 4, 2, 6)}, "log_gate has 5 channels, but slot_write has 6"),
        ({"initial_state": torch.zeros(1, 2, 3, 5)}, "pair"),
        ({"initial_state": (torch.zeros(1, 2, 3, 5), torch.zeros(1, 2, 3, 5))}, r"initial_state\[1\] has shape"),
    ],
)
def test_bad_slots_are_named(change, words):
    slots_given = {"slot_write": torch.rand(1, 4, 2, 5), "log_gate": -torch.rand(1, 4, 2, 5)}
    with pytest.raises(ValueError, match=words):
        lm.slot_recurrence(**{**arguments(), **slots_given, **change})


def test_documents_need_one_row():
    q, k, v = torch.randn(3, 2, 4, 2, 3)
    with pytest.raises(ValueError, match="B = 2 rows"):
        lm.gated_recurrence(q, k, v, -torch.rand(2, 4, 2, 3), cu_seqlens=torch.tensor([0, 4]))


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="empty sequence"):
        lm.gated_recurrence(*torch.zeros(4, 1, 0, 2, 3))


# ---------------------------------------------------------------------------------------------
# the delta rule
# ---------------------------------------------------------------------------------------------
def delta_inputs(T, *, gate=0.0, beta=None, equal_keys=False, per_channel=False):
    tensors, states = inputs("delta, a gate per channel" if per_channel else "delta", T, H=2, H_kv=1, B=1)
    q, k, v, b, g = tensors
    if equal_keys:
        k = k[:, :1].expand_as(k)
    return [q, k, v, b if beta is None else torch.full_like(b, beta), torch.full_like(g, gate)], states


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("equal_keys", [False, True])
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("gate", [0.0, -50.0, -torch.inf])
@pytest.mark.parametrize("T", [1, 31, 32, 33, 1000])
def test_corrections_at_their_limits(T, gate, beta, equal_keys, per_channel):
    """Gates of exactly 1, e^-50 and 0; nothing written, replaced, reflected; one key again and again."""
    if T == 1000 and (per_channel or gate == -50.0):
        T = 200
    tensors, states = delta_inputs(T, gate=gate, beta=beta, equal_keys=equal_keys, per_channel=per_channel)
    # where the same key is reflected without decay, every rounding is carried to the end
    tolerance = 1e-4 if beta == 2 and equal_keys and gate == 0 else FLOAT32
    given = [x.float() for x in (*tensors, *states)]  # rounded, so that all sides see the same
    results = []
    for form, dtype in ((delta.naive, torch.float64), (delta.naive, torch.float32), (delta.chunked, torch.float32)):
        leaves = [x.clone().to(dtype).requires_grad_() for x in given]
        o, S = form(*leaves)
        (o.square().sum() + S.square().sum()).backward()
        results.append([o, S, *(x.grad for x in leaves)])
    for n, (truth, definition, ours) in enumerate(zip(*results)):
        # one number that is left of many that cancel is no better in the definition's own float32
        assert relative_rms(ours, truth) < max(tolerance, 4 * relative_rms(definition, truth)), n


def test_a_beta_of_one_replaces_and_no_gate_is_a_gate_of_one():
    (q, k, v, b, g), _ = delta_inputs(40)
    o, S = lm.delta_recurrence(k, k, v, torch.ones_like(b))
    torch.testing.assert_close(o, v)  # each token reads its own key right after writing
    torch.testing.assert_close(lm.delta_recurrence(q, k, v, b, torch.zeros_like(g)), lm.delta_recurrence(q, k, v, b))
    nothing, S = lm.delta_recurrence(q, k, v, torch.zeros_like(b))
    assert not nothing.any()
    assert not S.any()


def test_the_state_explodes_beyond_the_allowed_length_and_not_at_it():
    (q, k, v, b, g), states = delta_inputs(400, beta=1.0, equal_keys=True)
    for stretch, bounded in ((2**0.5, True), (1.6, False)):
        _, S = delta.naive(q, stretch * k, v, b, g, *states)
        assert (S.norm() < 1e3) == bounded


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beta": torch.full((1, 4, 2), 2.1)}, "beta has values from 2.1 to 2.1; allowed are 0"),
        ({"beta": torch.full((1, 4, 2), -0.1)}, "allowed are 0"),
        ({"beta": torch.full((1, 4, 2), torch.nan)}, "beta has values from nan"),
        ({"beta": torch.rand(1, 4, 2, 3)}, r"beta has shape \(1, 4, 2, 3\); it must have three axes"),
        ({"beta": torch.rand(1, 4, 1)}, "beta has 1 heads, but k has 2"),
        ({"k": torch.full((1, 4, 2, 3), 2.0)}, "Normalise the keys"),
        ({"k": torch.full((1, 4, 2, 3), torch.nan)}, "Normalise the keys"),
        ({"log_gate": torch.full((1, 4, 2), torch.nan)}, "log_gate has NaN"),
        ({"log_gate": torch.full((1, 4, 2), 0.1)}, "must be ≤ 0"),
        ({"log_gate": -torch.rand(1, 4, 2, 5)}, "log_gate has 5 channels, but k has 3"),
        ({"initial_state": torch.zeros(1, 2, 9, 3)}, r"initial_state has shape \(1, 2, 9, 3\)"),
        ({"q": torch.randn(1, 4, 2, 5)}, "k has 3 channels, but q has 5"),
    ],
)
def test_bad_corrections_are_named(change, words):
    given = {**arguments(), "beta": torch.ones(1, 4, 2), "log_gate": None}
    given["k"] = torch.nn.functional.normalize(given["k"], dim=-1)
    with pytest.raises(ValueError, match=words):
        lm.delta_recurrence(**{**given, **change})


def test_keys_of_length_one_pass_in_every_dtype():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        k = torch.nn.functional.normalize(torch.randn(1, 500, 2, 64, dtype=torch.float64), dim=-1).to(dtype)
        o, S = lm.delta_recurrence(k, k, k, torch.full((1, 500, 2), 2.0, dtype=dtype))
        assert o.isfinite().all()
        assert S.norm() < 1e3


def test_a_caller_who_vouches_for_the_gates_is_not_asked(monkeypatch):
    """A structure does, for a single token; with more of them, and whoever else calls, every gate is looked at."""
    model_side, seen = lm.structures["gla"], []
    monkeypatch.setattr("liger_mini.recurrences.check_gate", lambda gate: seen.append(gate.shape[1]))
    q, k, v = torch.randn(3, 1, 5, 2, 8)
    model_side(q, k, v)
    model_side(q[:, :1], k[:, :1], v[:, :1])
    lm.gated_recurrence(q[:, :1], k[:, :1], v[:, :1], -k[:, :1].abs())
    lm.gated_recurrence(q, k, v, -k.abs(), trusted=True)
    assert seen == [5, 1]
