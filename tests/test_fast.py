"""The compiled loop: the naive loop's numbers and gradients, on any threads, and never where PyTorch has to see operations."""

import functools
import itertools
import subprocess
import sys
import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import liger_mini as lm
from liger_mini.experiments.equivalence import relative_rms
from liger_mini.recurrences import dispatch

from .test_recurrences import FLOAT32, GATES, inputs, run

pytest.importorskip("numba", reason="numba is not installed (pip install -e '.[fast]', which '.[dev]' includes)")
from liger_mini.recurrences import compiled

KINDS = ["diagonal", "scalar", "delta", "delta, a gate per channel"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def with_gradients(kind, tensors, states, backend, dtype):
    """Output, last state and the gradient of every input, for a loss in which all of it counts."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (*tensors, *states)]
    o, finals = run(kind, leaves[:-1], (leaves[-1],), backend=backend)
    (o.square().sum() + finals[0].square().sum()).backward()
    return [o, *finals, *(x.grad for x in leaves)]


@every_kind
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("T", [1, 2, compiled.EVERY, compiled.EVERY + 1, 100])
def test_it_equals_the_loop_in_float64_with_every_gradient(kind, T, gates):
    tensors, states = inputs(kind, T, gates=gates)
    truth = with_gradients(kind, tensors, states, "naive", torch.float64)
    for n, (x, y) in enumerate(zip(with_gradients(kind, tensors, states, "compiled", torch.float32), truth)):
        if y.norm() == 0:  # such as d state where every gate is shut
            assert x.norm() == 0, n
        else:
            assert relative_rms(x, y) < FLOAT32, n


@every_kind
@pytest.mark.parametrize(("K", "V"), [(1, 1), (7, 33), (64, 5)])
def test_any_width(kind, K, V):
    tensors, states = inputs(kind, 40, K=K, V=V)
    truth = with_gradients(kind, tensors, states, "naive", torch.float64)
    for ours, true in zip(with_gradients(kind, tensors, states, "compiled", torch.float32), truth):
        assert relative_rms(ours, true) < FLOAT32


@every_kind
def test_bfloat16_and_views_come_in_and_their_gradients_go_out(kind):
    tensors, states = inputs(kind, 50, gates="weak", dtype=torch.bfloat16)
    tensors = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in tensors]  # as a model has them
    o, finals = run(kind, tensors, tuple(S.float() for S in states), backend="compiled")
    assert (o.dtype, finals[0].dtype) == (torch.bfloat16, torch.float32)
    truth, _ = run(kind, [x.detach().double() for x in tensors], tuple(S.double() for S in states), backend="naive")
    assert relative_rms(o, truth) < 2**-8  # only o is rounded, to 8 bits
    o.sum().backward()
    assert {x.grad.dtype for x in tensors} == {torch.bfloat16}


@every_kind
def test_a_shut_gate_forgets_everything_before(kind):
    tensors, states = inputs(kind, 40, gates="weak", dtype=torch.float32)
    tensors[-1][:, 20] = -torch.inf
    leaves = [x.requires_grad_() for x in tensors]
    o, last = run(kind, leaves, states, backend="compiled")
    fresh, fresh_last = run(kind, [x[:, 20:] for x in tensors], backend="compiled")
    torch.testing.assert_close(o[:, 20:], fresh)
    torch.testing.assert_close(last, fresh_last)
    o.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves)


@every_kind
def test_packed_documents_do_not_see_each_other(kind):
    ends = torch.tensor([0, 13, 13, 14, 60])
    tensors, _ = inputs(kind, 60, B=1, dtype=torch.float32)
    _, states = inputs(kind, 1, B=4, dtype=torch.float32)
    o, finals = run(kind, tensors, states, cu_seqlens=ends, backend="compiled")
    for n, (a, b) in enumerate(itertools.pairwise(ends.tolist())):
        own = (states[0][n : n + 1],)
        if b > a:
            alone, own = run(kind, [x[:, a:b] for x in tensors], own, backend="compiled")
            assert torch.equal(o[:, a:b], alone)
        assert torch.equal(finals[0][n : n + 1], own[0])


@every_kind
def test_threads_change_nothing(kind):
    tensors, states = inputs(kind, 40, B=3, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5, 16):
            torch.set_num_threads(threads)
            results.append(with_gradients(kind, tensors, states, "compiled", torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other))


def test_it_changes_none_of_its_inputs():
    tensors, states = inputs("diagonal", 40, dtype=torch.float32)
    copies = [x.clone() for x in (*tensors, *states)]
    with_gradients("diagonal", tensors, states, "compiled", torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(copies, (*tensors, *states)))


@pytest.fixture
def chosen(monkeypatch):
    """Whether the compiled loop was asked for, call by call."""
    asked = []

    def watch(recurrence):
        asked.append(recurrence.__name__)
        return compiled.compiled(recurrence)

    monkeypatch.setattr(dispatch, "compiled", watch)
    return asked


def test_auto_is_the_compiled_loop_where_it_can_be(chosen):
    tensors, states = inputs("diagonal", 20, dtype=torch.float32)
    run("diagonal", tensors, states)
    assert len(chosen) == 1
    run("diagonal", [x[:, :1] for x in tensors], states)  # a step
    assert len(chosen) == 2
    run("slots", *inputs("slots", 20, dtype=torch.float32))
    with FlopCounterMode(display=False) as counter:
        run("diagonal", tensors, states)
    assert counter.get_total_flops() > 0
    batched = torch.func.vmap(lambda q, k, v, g: dispatch_alone(q, k, v, g))(*(x.unsqueeze(1) for x in tensors))
    torch.testing.assert_close(batched.squeeze(1), lm.gated_recurrence(*tensors, backend="chunked")[0])
    assert len(chosen) == 2


def dispatch_alone(q, k, v, g):
    """Without the checks, which read values."""
    states = {"initial_state": (None, (*k.shape[2:], v.shape[-1]))}
    return dispatch.run(dispatch.diagonal, q, (k, v, g), states, None, "auto")[0]


def test_torch_compile_keeps_a_whole_graph_and_by_name_breaks_it(chosen):
    tensors, states = inputs("scalar", 20, dtype=torch.float32)
    expected, _ = run("scalar", tensors, states, backend="chunked")
    whole = torch.compile(lambda *x: run("scalar", x, states)[0], fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(*tensors), expected)
    assert chosen == []
    broken = torch.compile(lambda *x: run("scalar", x, states, backend="compiled")[0] * 1, backend="eager")
    torch.testing.assert_close(broken(*tensors), expected)


def test_it_is_differentiable_once_and_says_so():
    (q, k, v, g), _ = inputs("diagonal", 5, dtype=torch.float32)
    q.requires_grad_()
    (first,) = torch.autograd.grad(lm.gated_recurrence(q, k, v, g)[0].square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_what_it_cannot_run_is_refused_by_name():
    with pytest.raises(ValueError, match="here are cpu tensors for 'slots'"):
        run("slots", *inputs("slots", 5), backend="compiled")


def test_without_numba_the_name_is_refused_and_auto_goes_on(monkeypatch):
    monkeypatch.setattr(dispatch, "numba_is_missing", lambda: True)
    monkeypatch.setitem(sys.modules, "numba", None)
    tensors, states = inputs("diagonal", 5)
    with pytest.raises(RuntimeError, match=r"numba, which is not installed: pip install 'liger_mini\[fast\]'"):
        run("diagonal", tensors, states, backend="compiled")
    run("diagonal", tensors, states)


def test_the_environment_says_what_auto_is(monkeypatch, chosen):
    tensors, states = inputs("diagonal", 20)
    monkeypatch.setattr(dispatch, "ASKED", "chunked")
    run("diagonal", tensors, states)
    assert chosen == []
    assert lm.explain_backend() == (
        "on cpu: 'chunked', because the environment has LIGER_MINI_BACKEND. A single token is one step of the loop"
    )
    monkeypatch.setattr(dispatch, "ASKED", "fastest")
    run("diagonal", tensors, states, backend="naive")  # a name in the call is above it
    run("diagonal", [x[:, :1] for x in tensors], states)
    with pytest.raises(ValueError, match="LIGER_MINI_BACKEND = 'fastest': allowed are 'auto', 'naive'"):
        run("diagonal", tensors, states)


def test_explain_backend_says_what_auto_does(monkeypatch):
    assert lm.explain_backend().startswith("on cpu: 'compiled' (the naive loop")
    assert lm.explain_backend("cuda").startswith("on cuda: 'chunked'")
    monkeypatch.setattr("liger_mini.recurrences.numba_is_missing", lambda: True)
    assert "pip install 'liger_mini[fast]'" in lm.explain_backend()


def _double(x, errors=()):
    if errors:
        raise errors[0]
    x *= 2


@pytest.mark.parametrize("openmp", [True, False])
def test_tasks_run_once_each_whatever_threads_there_are_and_an_error_comes_back(monkeypatch, openmp):
    if not openmp:
        monkeypatch.setattr(compiled, "_gnu_openmp", lambda: None)
    numbers = torch.arange(8.0).numpy()
    compiled.side_by_side([functools.partial(_double, numbers[i : i + 1]) for i in range(8)])
    assert numbers.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    for error in (IndexError("of the task"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            compiled.side_by_side([functools.partial(_double, numbers, [error]), lambda: None])


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's threads are GNU OpenMP's on Linux")
def test_on_linux_pytorchs_own_threads_do_the_work():
    assert compiled._gnu_openmp() is not None
    both = threading.Barrier(2, timeout=30)  # passed only by two threads at once
    compiled.side_by_side([both.wait, both.wait])


def test_a_process_that_forks_off_has_none_of_these_threads_and_waits_for_none():
    code = """
import os, sys, threading
from liger_mini.recurrences import compiled
def run():
    both = threading.Barrier(2, timeout=30)
    compiled.side_by_side([both.wait, both.wait])
run()
child = os.fork()
if child == 0:
    run()
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
