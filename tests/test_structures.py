"""Table 1 as code: gates, pooling, tempers, padding and packing of every structure."""

import itertools
import math

import pytest
import torch

import liger_mini as lm
from liger_mini import gates
from liger_mini.experiments.equivalence import relative_rms
from liger_mini.structures import get_structure, softmax_features, two_sided_features, unit_features

every_structure = pytest.mark.parametrize("name", lm.structures)
TEMPERED = [name for name, s in lm.structures.items() if s.temper is not None]


def projections(T=50, B=2, H=4, H_kv=2, K=16, V=12, dtype=torch.float64):
    draw = lambda heads, width: torch.randn(B, T, heads, width, dtype=dtype)  # noqa: E731
    return draw(H, K), draw(H_kv, K), draw(H_kv, V)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)  # mask and gates are exact; LightNet's gate subtracts logs


def test_there_are_fourteen():
    additive = "gla hgrn2 rwkv6 mamba2 gated_retention mlstm gsa lightning lightnet linear".split()
    assert list(lm.structures) == [*additive, "deltanet", "gated_deltanet", "kda", "hedgehog_deltanet"]


@pytest.mark.parametrize("features", [unit_features, two_sided_features])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_of_the_delta_rules_have_length_one(features, dtype):
    """To the rounding of their dtype, whatever the key: flat, one channel alone, far from zero."""
    x = torch.cat([torch.randn(50, 64), 30 * torch.randn(50, 64), torch.zeros(1, 64), 1000 * torch.eye(64)]).to(dtype)
    lengths = features(x).double().norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=2 * torch.finfo(dtype).eps)


def test_two_sides_keep_apart_what_one_side_confuses():
    """Keys that differ in their low channels alone have nearly the same softmax, and another softmax of -x."""
    one = torch.zeros(64)
    one[0], one[1], one[2] = 8.0, -8.0, -1.0
    other = one[[0, 2, 1, *range(3, 64)]]
    assert unit_features(one) @ unit_features(other) > 0.99
    assert two_sided_features(one) @ two_sided_features(other) < 0.6
    x = torch.randn(5, 64)
    k, minus = two_sided_features(x).chunk(2, dim=-1)
    torch.testing.assert_close(torch.cat([minus, k], -1), two_sided_features(-x))
    torch.testing.assert_close(k / k.sum(-1, keepdim=True), x.softmax(-1))


@pytest.mark.parametrize("name", TEMPERED)
@pytest.mark.parametrize("temper", [0.5, 16, 1024])
def test_temper_is_the_half_life_of_a_neutral_gate_in_tokens(name, temper):
    log_alpha = get_structure(name, temper).log_gate(torch.zeros(1, 1, 2, 8))
    torch.testing.assert_close((temper * log_alpha).exp(), torch.full_like(log_alpha, 0.5))


TABLE_1 = {  # P -> α, from the paper
    "gla": lambda k: k.sigmoid(),
    "hgrn2": lambda k: k.sigmoid(),
    "rwkv6": lambda k: torch.exp(-torch.exp(k)),
    "mamba2": lambda k: torch.exp(-torch.log1p(torch.exp(k.mean(-1)))),
    "gated_retention": lambda k: k.mean(-1).sigmoid(),
    "mlstm": lambda k: k.mean(-1).sigmoid(),
    "gsa": lambda k: k.sigmoid(),
    "linear": lambda k: torch.ones_like(k[..., 0]),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_gates_are_table_1(name):
    paper = {"gla": 1.0, "gsa": 1.0}.get(name)  # elsewhere the default temper is the paper's
    k = torch.randn(2, 5, 3, 8)
    torch.testing.assert_close(get_structure(name, paper).log_gate(k).exp(), TABLE_1[name](k))


def test_mamba2_is_gated_retention_of_the_opposite_key():
    k = torch.randn(2, 5, 3, 8)
    torch.testing.assert_close(lm.structures["mamba2"].log_gate(k), lm.structures["gated_retention"].log_gate(-k))


def test_gates_are_finite_and_below_one_for_extreme_keys():
    k = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0]).expand(1, 1, 1, 5)
    for name in TEMPERED:
        log_alpha = lm.structures[name].log_gate(k)
        assert log_alpha.isfinite().all(), name
        assert (log_alpha <= 0).all(), name


def test_lower_bound_holds():
    from liger_mini.structures import HGRN2

    alpha = HGRN2(lower_bound=0.3).log_gate(torch.linspace(-100, 100, 64).reshape(1, 1, 8, 8)).exp()
    assert alpha.min() >= 0.3 - 1e-6
    assert alpha.max() <= 1
    k = torch.randn(2, 5, 3, 8)
    torch.testing.assert_close(HGRN2(lower_bound=0.3).log_gate(k).exp(), 0.3 + 0.7 * k.sigmoid())


def test_pool_is_average_pooling():
    k = torch.randn(2, 5, 3, 8)
    torch.testing.assert_close(gates.pool(k, 1).squeeze(-1), k.mean(-1))
    torch.testing.assert_close(gates.pool(k, 4), k.unflatten(-1, (4, 2)).mean(-1))
    assert gates.pool(k, 8) is k
    with pytest.raises(ValueError, match="8 channels to 9"):
        gates.pool(k, 9)


def test_lightning_half_lives():
    log_alpha = lm.structures["lightning"].log_gate(torch.randn(1, 3, 8, 4))
    assert (log_alpha == log_alpha[:, :1]).all()  # no data in it
    torch.testing.assert_close(log_alpha[0, 0], -(0.5 ** torch.arange(1, 9)))


def test_lightnet_is_a_running_average_weighted_by_exp_k():
    q, k, v = projections(H_kv=4)
    o, _ = lm.structures["lightnet"](q, k, v)
    weight = k.exp().unsqueeze(-1)  # [B, T, H, K, 1]
    average = (weight * v.unsqueeze(-2)).cumsum(1) / weight.cumsum(1)
    torch.testing.assert_close(o, torch.einsum("bthk,bthkv->bthv", q.softmax(-1), average))


def test_lightnet_keeps_its_precision_over_a_long_text():
    """The gate nears 1 and the write 1/t: as a difference of logarithms the gate would lose its last digits."""
    q, k, v = projections(T=4000, B=1, H=2)
    truth, _ = lm.structures["lightnet"](q, k, v)
    o, _ = lm.structures["lightnet"](q.float(), k.float(), v.float())
    assert relative_rms(o, truth) < 1e-5


def test_mlstm_divides_by_its_normaliser():
    """With queries and keys of one channel φ = 1, so the normaliser counts tokens, and the output is a running mean."""
    q, k = torch.zeros(2, 1, 30, 1, 1)
    v = torch.randn(1, 30, 1, 5)
    o, _ = get_structure("mlstm", 1e9)(q, k, v)  # a half-life beyond all tokens
    torch.testing.assert_close(o, v.cumsum(1) / torch.arange(1, 31).reshape(1, 30, 1, 1))


def test_hgrn2_and_gsa_take_in_what_they_forget():
    k = torch.randn(1, 5, 2, 8)
    for name in ("hgrn2", "gsa"):
        s = lm.structures[name]
        write = s.inputs(k, k, k)["k" if name == "hgrn2" else "slot_write"]
        torch.testing.assert_close(write + s.log_gate(k).exp(), torch.ones_like(k))


def test_gsa_pools_to_its_slots():
    from liger_mini.structures import GSA

    q, k, v = projections()
    o, (keys, values) = GSA(slots=4)(q, k, v)
    assert (o.shape, keys.shape, values.shape) == ((2, 50, 4, 12), (2, 2, 16, 4), (2, 2, 4, 12))
    with pytest.raises(ValueError, match="16 channels to 17"):
        GSA(slots=17)(q, k, v)


@every_structure
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name, side):
    q, k, v = projections()
    alone, state = lm.structures[name](q, k, v)
    where = slice(9, None) if side == "left" else slice(0, 50)
    padded = [torch.randn(2, 59, *x.shape[2:], dtype=x.dtype) for x in (q, k, v)]
    for x, y in zip(padded, (q, k, v)):
        x[:, where] = y
    mask = torch.zeros(2, 59)
    mask[:, where] = 1
    o, padded_state = lm.structures[name](*padded, mask=mask)
    close(o[:, where], alone)
    close(padded_state, state)


@every_structure
def test_pieces_are_the_whole(name):
    q, k, v = projections()
    whole, last = lm.structures[name](q, k, v)
    outputs, state = [], None
    for a, b in itertools.pairwise([0, 1, 2, 20, 50]):
        o, state = lm.structures[name](q[:, a:b], k[:, a:b], v[:, a:b], state)
        outputs.append(o)
    close(torch.cat(outputs, 1), whole)
    close(state, last)


@every_structure
def test_packed_documents_are_alone(name):
    q, k, v = projections(B=1)
    ends = [0, 13, 13, 50]
    o, state = lm.structures[name](q, k, v, cu_seqlens=torch.tensor(ends))
    for n, (a, b) in enumerate(itertools.pairwise(ends)):
        if b > a:
            alone, last = lm.structures[name](q[:, a:b], k[:, a:b], v[:, a:b])
            close(o[:, a:b], alone)
            close(
                state[0][n : n + 1] if isinstance(state, tuple) else state[n : n + 1],
                last[0] if isinstance(last, tuple) else last,
            )


@every_structure
def test_every_gradient_is_finite(name):
    q, k, v = (3 * x.float().requires_grad_() for x in projections())
    grads = torch.autograd.grad(lm.structures[name](q, k, v)[0].square().sum(), [q, k, v])
    assert all(g.isfinite().all() for g in grads)
    assert all(g.norm() > 0 for g in grads)


def test_softmax_features_sum_to_one_in_any_dtype():
    for dtype in (torch.float32, torch.bfloat16):
        x = softmax_features(torch.randn(3, 64, dtype=dtype) * 20)
        assert x.dtype == dtype
        torch.testing.assert_close(x.float().sum(-1), torch.ones(3), atol=64 * 2**-9, rtol=0)


@pytest.mark.parametrize("name", sorted(set(lm.structures) - set(TEMPERED)))
def test_a_temper_where_there_is_none_is_refused(name):
    with pytest.raises(ValueError, match=f"{name!r} has no temper.*'gla'"):
        get_structure(name, 16.0)


def test_an_unknown_structure_is_refused():
    with pytest.raises(ValueError, match="unknown structure 'glu': allowed are 'gla'"):
        get_structure("glu")


def test_default_tempers_are_what_the_docstrings_say():
    assert {n: s.temper for n, s in lm.structures.items() if s.temper is not None} == {
        "gla": 16, "hgrn2": 1, "rwkv6": math.log(2), "mamba2": 1, "gated_retention": 1, "mlstm": 1, "gsa": 16, "gated_deltanet": 1024, "kda": 1024,
        "hedgehog_deltanet": 1024,
    }  # fmt: skip


def test_masks_and_states_of_the_wrong_shape_are_refused():
    q, k, v = projections()
    with pytest.raises(ValueError, match=r"mask has shape \(1, 1\); .* must be \(2, 50\)"):
        lm.structures["gla"](q, k, v, mask=torch.zeros(1, 1))
    _, (S, log1p_z) = lm.structures["lightnet"](q, k, v)
    with pytest.raises(ValueError, match=r"the gate.s, has shape \(1, 2, 16\)"):
        lm.structures["lightnet"](q, k, v, (S, log1p_z[:1]))
    for name in ("lightnet", "gsa"):
        for state in (S, (S,), [S, S]):
            with pytest.raises(ValueError, match=r"goes on from a tuple of 2 tensors"):
                lm.structures[name](q, k, v, state)
    with pytest.raises(TypeError, match="initial_state is a tuple"):
        lm.structures["gla"](q, k, v, (S,))
    with pytest.raises(TypeError, match="cu_seqlens is a list"):
        lm.structures["lightnet"](q[:1], k[:1], v[:1], cu_seqlens=[0, 50])


@pytest.mark.parametrize("temper", [0, -1, math.inf, "3", True])
def test_tempers_are_positive_numbers(temper):
    with pytest.raises(ValueError, match="allowed are numbers > 0"):
        get_structure("rwkv6", temper)


def test_bounds_and_slots_outside_their_range_are_refused():
    from liger_mini.structures import GSA, HGRN2

    for bound in (-0.1, 1.0):
        with pytest.raises(ValueError, match="lower_bound"):
            HGRN2(lower_bound=bound)
    with pytest.raises(ValueError, match="16 channels to 0"):
        GSA(slots=0)(*projections())


def test_a_zero_state_of_lightnet_has_a_gradient():
    (q, k, v), lightnet = projections(B=1, T=6), lm.structures["lightnet"]
    zero = torch.zeros(1, 2, 16, dtype=torch.float64, requires_grad=True)
    o, _ = lightnet(q, k, v, (torch.zeros(1, 2, 16, 12, dtype=torch.float64), zero))
    assert torch.autograd.grad(o.sum(), zero)[0].isfinite().all()
