"""Sliding-window attention: naive, blocked and step, against a loop over tokens."""

import itertools

import pytest
import torch

import liger_mini as lm


def by_hand(q, k, v, window, key_mask=None):
    """Token by token; queries are the last Tq of Tk positions."""
    B, Tq, H, K = q.shape
    Tk, group = k.shape[1], H // k.shape[2]
    o = torch.zeros(B, Tq, H, v.shape[-1], dtype=v.dtype)
    for b in range(B):
        for i in range(Tq):
            t = Tk - Tq + i
            seen = [s for s in range(max(0, t - window + 1), t + 1) if key_mask is None or key_mask[b, s]]
            for h in range(H):
                if seen:
                    weights = (k[b, seen, h // group] @ q[b, i, h] / K**0.5).softmax(0)
                    o[b, i, h] = weights @ v[b, seen, h // group]
    return o


@pytest.mark.parametrize("backend", ["naive", "blocked"])
@pytest.mark.parametrize("window", [1, 2, 5, 8, 100])
@pytest.mark.parametrize(("Tq", "Tk"), [(1, 1), (13, 13), (16, 16), (1, 13), (4, 13)])
def test_against_a_loop(backend, window, Tq, Tk):
    q = torch.randn(2, Tq, 4, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, Tk, 2, 8, dtype=torch.float64)
    key_mask = torch.ones(2, Tk, dtype=torch.bool)
    key_mask[0, : Tk // 2] = False  # left padding
    o = lm.sliding_window_attention(q, k, v, window, key_mask=key_mask, backend=backend)
    torch.testing.assert_close(o, by_hand(q, k, v, window, key_mask))


def test_window_counts_the_current_key():
    """W = 1 sees the current key alone, so the output is v; key t - W is out of sight, key t - W + 1 is in."""
    q, k, v = torch.randn(3, 1, 20, 1, 4)
    torch.testing.assert_close(lm.sliding_window_attention(q, k, v, 1), v)
    changed = v.clone()
    changed[0, 10] += 1
    moved = (lm.sliding_window_attention(q, k, changed, 4) - lm.sliding_window_attention(q, k, v, 4)).abs().amax(
        (0, 2, 3)
    ) > 0
    assert moved.nonzero().flatten().tolist() == [10, 11, 12, 13]


def test_spans_meet_without_a_seam(monkeypatch):
    """`blocked` works on spans of queries; here on spans shorter than the window, equal to it, and longer."""
    q, k, v = torch.randn(3, 2, 50, 2, 8, dtype=torch.float64)
    whole = lm.sliding_window_attention(q, k, v, 8, backend="naive")
    for span in (3, 8, 20):
        monkeypatch.setattr("liger_mini.window.SPAN", span)
        torch.testing.assert_close(lm.sliding_window_attention(q, k, v, 8, backend="blocked"), whole)


@pytest.mark.parametrize("backend", ["naive", "blocked"])
def test_packed_documents_do_not_see_each_other(backend):
    q, k, v = torch.randn(3, 1, 40, 2, 8, dtype=torch.float64)
    mask = torch.rand(1, 40) < 0.8
    ends = [0, 7, 7, 8, 40]
    o = lm.sliding_window_attention(q, k, v, 5, key_mask=mask, cu_seqlens=torch.tensor(ends), backend=backend)
    for a, b in itertools.pairwise(ends):
        if b > a:
            alone = by_hand(q[:, a:b], k[:, a:b], v[:, a:b], 5, mask[:, a:b])
            torch.testing.assert_close(o[:, a:b], alone)


def test_documents_need_as_many_queries_as_keys():
    q, k = torch.randn(1, 3, 2, 8), torch.randn(1, 9, 2, 8)
    with pytest.raises(ValueError, match="as many queries as keys"):
        lm.sliding_window_attention(q, k, k, 4, cu_seqlens=torch.tensor([0, 9]))


def test_chunked_is_another_word_for_blocked():
    q, k, v = torch.randn(3, 1, 20, 2, 8)
    blocked, chunked = (lm.sliding_window_attention(q, k, v, 4, backend=b) for b in ("blocked", "chunked"))
    assert torch.equal(blocked, chunked)


def test_gradients_agree():
    q, k, v = torch.randn(3, 1, 37, 2, 8, dtype=torch.float64)
    grads = []
    for backend in ("naive", "blocked"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        lm.sliding_window_attention(*leaves, 8, backend=backend).square().sum().backward()
        grads.append([x.grad for x in leaves])
    torch.testing.assert_close(grads[0], grads[1])


def test_a_padded_query_gives_zero_and_a_finite_gradient():
    q = torch.randn(1, 9, 1, 4, requires_grad=True)
    mask = torch.tensor([[False] * 5 + [True] * 4])
    o = lm.sliding_window_attention(q, q, q, 3, key_mask=mask)
    assert (o[0, :5] == 0).all()
    o.sum().backward()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize(
    ("shapes", "window", "words"),
    [
        ([(1, 4, 2, 8)] * 3, 0, "window = 0"),
        ([(1, 4, 2, 8)] * 3, 2.5, "window = 2.5"),
        ([(1, 4, 3, 8), (1, 4, 2, 8), (1, 4, 2, 8)], 4, "do not divide"),
        ([(1, 5, 2, 8), (1, 4, 2, 8), (1, 4, 2, 8)], 4, "more queries than keys"),
        ([(1, 4, 2, 8), (1, 4, 2, 6), (1, 4, 2, 8)], 4, "shapes do not fit"),
        ([(1, 0, 2, 8)] * 3, 4, "empty sequence"),
        ([(4, 2, 8)] * 3, 4, "four axes"),
    ],
)
def test_bad_input_is_named(shapes, window, words):
    with pytest.raises(ValueError, match=words):
        lm.sliding_window_attention(*(torch.zeros(shape) for shape in shapes), window)


def test_without_triton_the_backend_says_what_to_install(monkeypatch):
    """Both entry points, before anything of it is imported."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    q = torch.randn(1, 3, 1, 4)
    for run in (
        lambda: lm.sliding_window_attention(q, q, q, 2, backend="triton"),
        lambda: lm.gated_recurrence(q, q, q, torch.zeros(1, 3, 1), backend="triton"),
    ):
        with pytest.raises(RuntimeError, match="pip install triton"):
            run()


def test_documents_are_not_dropped_by_a_form_that_does_not_know_them():
    q, numbers = torch.randn(1, 6, 2, 4), torch.tensor([[0, 0, 0, 1, 1, 1]])
    apart = torch.cat([lm.sliding_window_attention(x, x, x, 4) for x in q.split(3, dim=1)], dim=1)
    for backend in ("auto", "naive"):
        o = lm.sliding_window_attention(q, q, q, 4, documents=numbers, backend=backend)
        torch.testing.assert_close(o, apart)
    for other in ({"backend": "triton"}, {"cu_seqlens": torch.tensor([0, 3, 6])}):
        with pytest.raises(ValueError, match="documents: allowed without cu_seqlens"):
            lm.sliding_window_attention(q, q, q, 4, documents=numbers, **other)
