"""The same numbers as flash-linear-attention's own references, which divide queries by √K where ours hide no scale."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import liger_mini as lm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns that this machine has no GPU
    gla = pytest.importorskip(
        "fla.ops.gla.naive", reason="flash-linear-attention is not installed (pip install -e '.[dev]')"
    )
    from fla.ops.delta_rule.naive import delta_rule_recurrence
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.gsa.naive import naive_recurrent_gsa
    from fla.ops.kda.naive import naive_recurrent_kda
    from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

B, T, H, K, V = 2, 70, 3, 16, 24
backends = pytest.mark.parametrize("backend", ["naive", "chunked"])


@pytest.fixture
def qkv():
    return torch.randn(B, T, H, K), torch.randn(B, T, H, K), torch.randn(B, T, H, V)


def agree(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)  # two float32 sums in another order


@backends
@pytest.mark.parametrize("name", ["gla", "hgrn2", "rwkv6"])
def test_vector_gates_agree_with_gla(qkv, name, backend):
    structure = lm.structures[name]
    q, k, v, log_gate = structure.inputs(*qkv).values()
    S = torch.randn(B, H, K, V)
    o, last = structure(*qkv, S, backend)
    agree((o, last), gla.naive_recurrent_gla(q * K**0.5, k, v, log_gate, S, output_final_state=True))


@backends
def test_rwkv6_agrees_with_theirs(qkv, backend):
    """Theirs reads the state before a token plus a bonus u; ours, as in the paper's Eq. 7, the state after it.

    So their output for a query one token later, with u = 0, is ours.
    """
    q, k, v, log_gate = lm.structures["rwkv6"].inputs(*qkv).values()
    later = [F.pad(x.transpose(1, 2), (0, 0, a, 1 - a)) for x, a in ((q, 1), (k, 0), (v, 0), (log_gate, 0))]
    theirs, last = naive_recurrent_rwkv6(*later, torch.zeros(H, K), scale=1, output_final_state=True)
    o, state = lm.structures["rwkv6"](*qkv, backend=backend)
    agree((o, state), (theirs[:, :, 1:].transpose(1, 2), last))


@backends
@pytest.mark.parametrize("name", ["mamba2", "gated_retention", "lightning", "linear"])
def test_scalar_gates_agree_with_simple_gla(qkv, name, backend):
    structure = lm.structures[name]
    q, k, v, log_gate = structure.inputs(*qkv).values()
    S = torch.randn(B, H, K, V)
    theirs = naive_recurrent_simple_gla(q, k, v, log_gate, scale=1, initial_state=S, output_final_state=True)
    agree(structure(*qkv, S, backend), theirs)


@backends
def test_gsa_agrees(qkv, backend):
    structure = lm.structures["gsa"]
    q, k, v, write, log_gate = structure.inputs(*qkv).values()
    states = (torch.randn(B, H, K, K), torch.randn(B, H, K, V))
    theirs = naive_recurrent_gsa(q, k, v, write, log_gate, 1.0, states, output_final_state=True)
    agree(structure(*qkv, states, backend), theirs)


@backends
def test_lightnet_gate_agrees_with_their_additive_one(qkv, backend):
    """Their slot attention without a gate uses LightNet's: logits in, running softmax out."""
    q, k, v = qkv
    logits = torch.randn(B, T, H, 8)
    log_gate = lm.structures["lightnet"].log_gate(logits)
    o, _ = lm.slot_recurrence(q, k, v, -log_gate.expm1(), log_gate, backend=backend)
    agree(o, naive_recurrent_gsa(q, k, v, logits, None, 1.0)[0])


@backends
def test_the_delta_rules_agree(qkv, backend):
    """Theirs differ from each other: `delta_rule` has heads before time and no scale to set, the others take one.

    All decay first, then correct, and read after the write, as ours.
    """
    for name in ("deltanet", "gated_deltanet", "kda", "hedgehog_deltanet"):
        structure = lm.structures[name]
        q, k, v, beta, g = structure.inputs(*qkv).values()
        S = torch.randn(B, H, k.shape[-1], V)
        if name == "deltanet":
            o, last = delta_rule_recurrence(*(x.transpose(1, 2) for x in (q * K**0.5, k, v, beta)), S)
            theirs = o.transpose(1, 2), last
        elif name != "kda":
            theirs = naive_recurrent_gated_delta_rule(q, k, v, beta, g, 1.0, S, output_final_state=True)
        else:
            theirs = naive_recurrent_kda(q, k, v, g, beta, 1.0, S, output_final_state=True)
        agree(structure(*qkv, S, backend), theirs)
