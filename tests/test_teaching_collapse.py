"""Chapters 08 and 09: the figures show the numbers they were given, and what the chapters load is what was recorded."""

import pytest

from liger_mini.evaluation import HeldOut, branches, evaluate
from liger_mini.experiments import load_recovered, needles
from liger_mini.recovery import RECIPES
from liger_mini.teaching import figures, recorded, widgets
from liger_mini.teaching.figures import collapse


def test_retention_is_a_share_of_the_teachers_score():
    chart = collapse.retention({"8B": ((73.0, 72.4), (65.3, 43.4))})
    assert chart.data[0].y[0] == pytest.approx(99.18, abs=0.01)
    assert chart.data[1].y[0] == pytest.approx(66.46, abs=0.01)
    assert "8B 66 %" in figures.alt_text(chart)


def test_half_life_and_window_meet_where_they_should():
    box = widgets.explore(collapse.half_life_and_window, temper=[16, 1024], window=[64, 16])
    temper, window, view, words = box.children
    for tau, W in ((16, 16), (1024, 64), (16, 64)):
        temper.value, window.value = tau, W
        left = dict(zip(view.data[1].x, view.data[1].y))
        assert left[W] == pytest.approx(0.5 ** (W / tau))
        assert max(view.data[0].x) == W
        assert f"half-life {tau}, {0.5 ** (W / tau):.0%}" in words.value
    with pytest.raises(ValueError, match="allowed are tempers > 0 and windows ≥ 1"):
        collapse.half_life_and_window(0, 16)


def test_spread_bars_show_means_and_deviations():
    summaries = {"full": {"perplexity": (10.7, 0.2)}, "no window": {"perplexity": (30.0, 1.0)}}
    chart = collapse.spread_bars(summaries, "perplexity", "perplexity", title="Table 6")
    assert list(chart.data[0].x) == [10.7, 30.0]
    assert list(chart.data[0].error_x.array) == [0.2, 1.0]
    assert "no window 30.00 ± 1.00" in figures.alt_text(chart)
    with pytest.raises(ValueError, match="'full' has no 'loss': there are 'perplexity'"):
        collapse.spread_bars(summaries, "loss", "loss (nats)", title="")


def test_remedies_and_needles_show_every_row():
    rows = [
        {"structure": "gla", "name": "GLA", "steps": 400, "outside": 0.4, "window_only": 0.02},
        {"structure": "lightnet", "name": "LightNet", "steps": 800, "outside": 0.7, "window_only": 0.01},
    ]
    chart = collapse.remedies(rows, 0.99)
    assert [(trace.name, trace.x[0], trace.y[0]) for trace in chart.data] == [("gla", 400, 0.4), ("lightnet", 800, 0.7)]
    assert "The best is LightNet: 0.70" in figures.alt_text(chart)
    found = [
        {"length": length, "depth": depth, "found": share}
        for length, depth, share in ((128, 0.1, 0.5), (128, 0.9, 1.0), (1024, 0.1, 0.0), (1024, 0.9, 0.25))
    ]
    grid = collapse.needles(found, title="Needles").data[0]
    assert [list(row) for row in grid.z] == [[0.5, 0.0], [1.0, 0.25]]
    assert list(grid.x) == ["128", "1,024"]


@pytest.mark.slow
def test_the_recovered_teachers_are_what_the_record_says():
    """Adapters, settings and recorded recall belong together; without the recurrence the far answers are gone."""
    recalls = {}
    for name in ("paper", "recall"):
        model, tokenizer = load_recovered(name)
        held_out = HeldOut(tokenizer, stories=96, documents=1)
        recalls[name] = evaluate(model, held_out).recall_outside
        with branches(model, (0.0, 1.0)):
            assert evaluate(model, held_out).recall_outside < 0.1
    best = max(recorded("recall-search-cpu")["rows"], key=lambda row: row["recall"]["outside"])
    assert recalls["recall"] == pytest.approx(best["recall"]["outside"], abs=0.02)
    assert best["recipe"]["transfer_steps"] == RECIPES["recall"].transfer_steps
    assert recalls["paper"] < 0.1
    with pytest.raises(ValueError, match="no recovered teacher 'best': there are 'paper', 'recall'"):
        load_recovered("best")


@pytest.mark.slow
def test_needles_of_all_three_models_are_written(tmp_path):
    result = needles.run(tmp_path / "needle.json", lengths=(100,), depths=(0.9,), samples=2)
    assert list(result["models"]) == ["teacher", "paper", "recall"]
    assert all(rows[0]["length"] == 100 for rows in result["models"].values())
    assert (tmp_path / "needle.json").is_file()
