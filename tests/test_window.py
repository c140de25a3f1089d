"""Sliding-window attention: naive, blocked and step, against a loop over tokens."""

import itertools

import pytest
import torch

import liger_mini as lm


def by_hand(q, k, v, window, key_mask=None, sinks=0):
    """Token by token; queries are the last Tq of Tk positions, and the first `sinks` keys are seen whatever W is."""
    B, Tq, H, K = q.shape
    Tk, group = k.shape[1], H // k.shape[2]
    o = torch.zeros(B, Tq, H, v.shape[-1], dtype=v.dtype)
    for b in range(B):
        real = [s for s in range(Tk) if key_mask is None or key_mask[b, s]]
        for i in range(Tq):
            t = Tk - Tq + i
            seen = [s for s in real if s <= t and (s > t - window or s in real[:sinks])]
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


SINKS = (1, 4, 5, 40)  # fewer than W, more, and more than there are tokens


@pytest.mark.parametrize("backend", ["naive", "blocked"])
@pytest.mark.parametrize("sinks", SINKS)
@pytest.mark.parametrize(("Tq", "Tk"), [(1, 1), (37, 37), (35, 35), (1, 37), (1, 3), (11, 37)])
@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
def test_sinks_against_a_loop(backend, sinks, Tq, Tk, padding):
    """The first real tokens of a row, once each; one query is a step, whatever the keys before it."""
    q = torch.randn(2, Tq, 4, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, Tk, 2, 8, dtype=torch.float64)
    key_mask = torch.ones(2, Tk, dtype=torch.bool)
    if padding == "holes":
        key_mask = torch.rand(2, Tk) < 0.5
    elif padding != "none":
        key_mask[0, : Tk // 2 + 1] = False
    if padding == "right":
        key_mask = key_mask.flip(1)
    how = {"key_mask": None if padding == "none" else key_mask, "sinks": sinks}
    for form in (backend, "auto"):  # "auto" is a step for one query
        o = lm.sliding_window_attention(q, k, v, 5, **how, backend=form)
        torch.testing.assert_close(o, by_hand(q, k, v, 5, **how))


def test_a_sink_moves_every_later_token_and_counts_once():
    q, k, v = torch.randn(3, 1, 20, 1, 4)
    changed = v.clone()
    changed[0, 1] += 1
    before, after = (lm.sliding_window_attention(q, k, x, 4, sinks=2) for x in (v, changed))
    assert ((before - after).abs().amax((0, 2, 3)) > 0).tolist() == [False] + 19 * [True]
    equal = lm.sliding_window_attention(q * 0, k, v, 4, sinks=2)[0, :, 0]  # all scores are 0: a mean over those seen
    torch.testing.assert_close(equal[2], v[0, :3, 0].mean(0))  # the sinks are in the window
    torch.testing.assert_close(equal[9], v[0, [0, 1, 6, 7, 8, 9], 0].mean(0))


@pytest.mark.parametrize(
    ("backend", "sinks"), [*itertools.product(["naive", "blocked"], SINKS), ("triton", 4)]
)  # test_kernels has more of the last
def test_every_document_has_its_own_sinks(backend, sinks):
    """Documents shorter than the sinks, longer than the window, empty; with padding at both ends of some."""
    if backend == "triton":
        pytest.importorskip("triton")
    dtype = torch.float32 if backend == "triton" else torch.float64
    q, k, v = torch.randn(3, 1, 60, 2, 8, dtype=dtype)
    ends, mask = [0, 7, 7, 8, 30, 60], torch.ones(1, 60, dtype=torch.bool)
    mask[0, 8:11], mask[0, 40:55], mask[0, 58:] = False, False, False
    how = {"sinks": sinks, "cu_seqlens": torch.tensor(ends), "backend": backend}
    for key_mask in (None, mask):
        grads = []
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        o = lm.sliding_window_attention(*leaves, 5, key_mask=key_mask, **how)
        grads.append(torch.autograd.grad(o.square().sum(), leaves))
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        alone = []
        for a, b in itertools.pairwise(ends):
            pieces = [x[:, a:b] for x in leaves]
            alone.append(by_hand(*pieces, 5, None if key_mask is None else key_mask[:, a:b], sinks))
        alone = torch.cat(alone, dim=1)
        grads.append(torch.autograd.grad(alone.square().sum(), leaves))
        close = {"rtol": 1e-4, "atol": 1e-4} if backend == "triton" else {}
        torch.testing.assert_close(o, alone, **close)
        torch.testing.assert_close(*grads, **close)


@pytest.mark.parametrize("sinks", [1, 3, 30])
def test_spans_meet_without_a_seam_and_without_losing_sinks(monkeypatch, sinks):
    q, k, v = torch.randn(3, 2, 50, 2, 8, dtype=torch.float64)
    mask = torch.arange(50) >= torch.tensor([[12], [0]])
    whole = lm.sliding_window_attention(q, k, v, 8, key_mask=mask, sinks=sinks, backend="naive")
    for span in (3, 8, 20):
        monkeypatch.setattr("liger_mini.window.SPAN", span)
        o = lm.sliding_window_attention(q, k, v, 8, key_mask=mask, sinks=sinks, backend="blocked")
        torch.testing.assert_close(o, whole)


@pytest.mark.parametrize("backend", ["naive", "blocked"])
def test_without_sinks_nothing_has_changed(backend):
    """To the bit, whether sinks = 0 is said or not; also where they would change something."""
    q, k, v = torch.randn(3, 1, 40, 2, 8)
    plain = lm.sliding_window_attention(q, k, v, 5, backend=backend)
    assert torch.equal(lm.sliding_window_attention(q, k, v, 5, sinks=0, backend=backend), plain)
    assert not torch.equal(lm.sliding_window_attention(q, k, v, 5, sinks=1, backend=backend), plain)


@pytest.mark.parametrize("sinks", [0, 1, 8, 40])
def test_gradients_agree(sinks):
    q, k, v = torch.randn(3, 1, 37, 2, 8, dtype=torch.float64)
    grads = []
    for backend in ("naive", "blocked"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        lm.sliding_window_attention(*leaves, 8, sinks=sinks, backend=backend).square().sum().backward()
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


@pytest.mark.parametrize("sinks", [-1, 1.5, True])
def test_sinks_that_are_no_number_of_tokens_are_named(sinks):
    q = torch.zeros(1, 3, 1, 4)
    with pytest.raises(ValueError, match=rf"sinks = {sinks}: allowed are whole numbers ≥ 0"):
        lm.sliding_window_attention(q, q, q, 2, sinks=sinks)


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
