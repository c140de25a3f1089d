"""Figures of chapter 04, against what is counted pair by pair. What they refuse is in test_teaching_figures.py."""

import itertools
import math

import pytest
import torch

from liger_mini.teaching.figures import alt_text
from liger_mini.teaching.figures import chunks as figures

A = torch.arange(1.0, 37.0).view(6, 6).tril() / 36


def outline(trace):
    """The closed paths of an outline trace as lists of points."""
    paths, path = [], []
    for point in zip(trace.x, trace.y):
        if point == (None, None):
            paths, path = [*paths, path] if path else paths, []
        else:
            path.append(point)
    return paths


def area(path):
    """Shoelace: how many unit cells a closed path encloses."""
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(path))) / 2


def test_chunk_map_shows_the_lower_triangle_and_nothing_above():
    heat = figures.chunk_map(A, 2, 6).data[0]
    for i in range(6):
        for j in range(6):
            assert heat.z[i][j] == (pytest.approx(A[i, j].item()) if j <= i else None)
            assert heat.text[i][j] == (f"{A[i, j]:.2f}" if j <= i else "")
    assert list(heat.x) == list(heat.y) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("C", [1, 2, 3, 4, 5, 6])
def test_chunk_map_outlines_every_pair_once(C):
    """Counted pair by pair: the enclosed cells are the pairs, and triangles and rectangles share none."""
    figure = figures.chunk_map(A, C, 6)
    _, triangles, through, row = figure.data
    inside = sum(1 for i in range(6) for j in range(i + 1) if i // C == j // C)
    assert sum(map(area, outline(triangles))) == inside
    assert sum(map(area, outline(through))) == 21 - inside
    assert len(outline(triangles)) == len(outline(through)) + 1 == math.ceil(6 / C)
    assert outline(row) == [[(0.5, 5.5), (6.5, 5.5), (6.5, 6.5), (0.5, 6.5), (0.5, 5.5)]]
    assert figure.layout.title.text == f"C = {C}: {math.ceil(6 / C)} steps, {inside} pairs in triangles"
    assert f"{inside} pairs, {len(outline(through))} rectangles with {21 - inside} pairs" in alt_text(figure)


def test_chunk_map_splits_the_row_of_its_token():
    for C, t, own in ((2, 6, 2), (2, 5, 1), (3, 5, 2), (1, 4, 1), (6, 4, 4)):
        told = alt_text(figures.chunk_map(A, C, t))
        assert f"Token {t} reads {own} tokens inside its chunk and {t - own} through the state" in told
    figure = figures.chunk_map(A, 2, 6)
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("token j, written", "token i, reads")


@pytest.mark.parametrize(("anchor", "overflow"), [(0, 15), (16, 0), (24, 6), (32, 14)])
def test_anchored_exponents_are_the_differences(anchor, overflow):
    """With log-gates of -5: b_i - b_m = 5 (m - i), above 88.7 from 18 tokens on the wrong side on."""
    assert math.exp(figures.LARGEST) == pytest.approx(torch.finfo(torch.float32).max)
    figure = figures.anchored_exponents(torch.full((32,), -5.0).cumsum(0), anchor)
    queries, keys, limit = figure.data
    assert list(queries.y) == [5.0 * (anchor - i) for i in range(1, 33)]
    assert list(keys.y) == [5.0 * (i - anchor) for i in range(1, 33)]
    assert list(limit.y) == [figures.LARGEST] * 2
    assert f"{overflow} of 64 overflow above 88.7" in alt_text(figure)
    assert f"largest exponent {5.0 * max(anchor - 1, 32 - anchor):.1f}" in alt_text(figure)
    assert figure.layout.yaxis.title.text == "exponent (nats)"


def test_halving_levels_are_those_of_the_recursion():
    """Parted where the first cut falls between them, found by halving instead of by the bits of i and j."""

    def level(i, j, size, depth=1):
        half = size // 2
        return depth if j < half <= i else level(i % half, j % half, half, depth + 1)

    for C in (2, 4, 16):
        figure = figures.halving_levels(C)
        for i in range(C):
            for j in range(C):
                assert figure.data[0].z[i][j] == (level(i, j, C) if j < i else None)
    assert "level 1: 1 squares of 8 x 8; level 2: 2 squares of 4 x 4" in alt_text(figure)
    assert figure.layout.yaxis.title.text == "token i, reads"


def test_errors_put_inf_and_nan_at_the_top():
    strengths = [0.1, 1.0, 3.0, 6.0]
    errors = {"textbook": [1e-7, 2e-7, math.inf, math.nan], "halving": [1e-7, 3e-7, 2e-7, 1e-7]}
    figure = figures.errors_by_strength(strengths, errors)
    assert list(figure.data[0].y) == [1e-7, 2e-7, figures.NOT_FINITE, figures.NOT_FINITE]
    assert list(figure.data[1].y) == errors["halving"]
    assert list(figure.data[0].x) == strengths
    assert "textbook not finite from 3.00; halving at most 3e-07" in alt_text(figure)
    assert dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext))[figures.NOT_FINITE] == "inf, NaN"
    assert "(nats/token)" in figure.layout.xaxis.title.text
