"""Promise 1 as one table: structure x backend x dtype x {output, states, every gradient}, against float64."""

import pytest
import torch

from liger_mini import structures
from liger_mini.experiments import equivalence
from liger_mini.structures import GLA


@pytest.mark.slow
def test_every_cell_of_the_matrix_is_within_its_tolerance():
    gpu = torch.cuda.is_available()
    forms = [form for form in equivalence.FORMS if form != "compiled" or not gpu]
    assert set(forms) >= {"naive", "chunked", "triton"}
    rows = list(equivalence.matrix(forms, "cuda" if gpu else "cpu"))
    assert {(r["structure"], r["backend"], r["dtype"]) for r in rows} == {
        (s, b, d)
        for s in (*structures, "window")
        for b in forms
        for d in ("float32", "bfloat16")
        if b != "compiled" or s not in ("gsa", "window")
    }
    gla = {r["what"] for r in rows if r["structure"] == "gla"}
    assert gla == {"output", "final state 0", "d q", "d k", "d v", "d log_gate", "d initial state 0"}
    slots = {r["what"] for r in rows if r["structure"] == "gsa"}
    assert slots == gla | {"final state 1", "d slot_write", "d initial state 1"}
    assert [r for r in rows if not r["ok"]] == []


def test_the_matrix_sees_a_wrong_form(monkeypatch):
    """A chunked form that forgets the state between spans, or rounds its gates to bfloat16, is over the tolerance."""
    from liger_mini.recurrences import diagonal

    right = diagonal.chunked
    monkeypatch.setattr(equivalence, "structures", {"gla": GLA()})
    wrong = [
        lambda q, k, v, g, S: right(q, k, v, g, 0 * S),
        lambda q, k, v, g, S: right(q, k, v, g.bfloat16().to(g.dtype), S),
    ]
    for form in wrong:
        monkeypatch.setattr(diagonal, "chunked", form)
        rows = [r for r in equivalence.matrix(["chunked"]) if r["dtype"] == "float32"]
        assert not next(r for r in rows if r["what"] == "output")["ok"]
