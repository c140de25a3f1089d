"""Chapters 08 and 09: what they load is what was recorded, and the figures with several panels or series of dots.

Their other figures are in test_teaching_figures.py.
"""

import pytest

from liger_mini.evaluation import HeldOut, Recall, branches, evaluate
from liger_mini.experiments import load_recovered, needles
from liger_mini.recovery import RECIPES
from liger_mini.support.paths import data_dir
from liger_mini.teaching import recorded
from liger_mini.teaching.figures import alt_text, collapse


def test_retention_above_chance_can_be_negative():
    scores = {"1B": ((59.9, 59.0), (31.0, 22.4)), "8B": ((73.0, 72.4), (65.3, 43.4))}
    chart = collapse.retention(scores, chance=25)
    assert [trace.name for trace in chart.data] == ["average without MMLU", "MMLU", "MMLU above chance"]
    assert list(chart.data[2].y) == pytest.approx([100 * -2.6 / 6, 100 * 18.4 / 40.3])
    assert "MMLU above chance: 1B -43 %, 8B 46 %" in alt_text(chart)


def test_recall_dots_show_every_model_in_order():
    both = {"lightnet": (0.66, 0.03), "gla": (0.58, 0.03)}
    series = {"both": both, "window only": {"lightnet": (0.03, 0.01), "gla": (0.04, 0.01)}}
    chart = collapse.recall_dots(series, title="Same training", teacher=0.99)
    for trace, recalls in zip(chart.data, series.values(), strict=True):
        assert dict(zip(trace.y, trace.x)) == {name: recall for name, (recall, _) in recalls.items()}
        assert list(trace.error_x.array) == [error for _, error in recalls.values()]
    assert len({trace.marker.symbol for trace in chart.data}) == 2
    assert (list(chart.layout.yaxis.categoryarray), chart.layout.yaxis.autorange) == (["lightnet", "gla"], "reversed")
    assert chart.layout.xaxis.title.text == "recall outside (share)"
    assert "± standard error. both: lightnet 0.66 ± 0.03, gla 0.58 ± 0.03" in alt_text(chart)
    assert "± standard deviation" in alt_text(collapse.recall_dots(series, title="", spread="standard deviation"))


def test_remedies_mark_what_was_changed_otherwise():
    row = {"structure": "gla", "name": "plain", "steps": 400, "outside": 0.4, "error": 0.03, "window_only": 0.02}
    dropped = row | {"name": "dropped", "outside": 0.1, "variation": True}
    chart = collapse.remedies([row | {"variation": False}, dropped], 0.99)
    assert list(chart.data[0].marker.symbol) == ["circle", "circle-open"]
    assert list(chart.data[0].error_y.array) == [0.03, 0.03]
    assert "plain 0.40, the best of each structure; the lowest of all is dropped 0.10" in alt_text(chart)


def test_losses_stand_against_recall_each_in_its_panel():
    points = {
        "gla": {"outside": 0.58, "error": 0.03, "loss_tinyworld": 0.66, "loss_pydocs": 3.6},
        "lightnet": {"outside": 0.66, "error": 0.03, "loss_tinyworld": 0.65, "loss_pydocs": 3.65},
    }
    chart = collapse.losses_against_recall(points, named={"lightnet": "bottom right"})
    for trace, axis, losses in zip(chart.data, ("y", "y2"), ([0.66, 0.65], [3.6, 3.65]), strict=True):
        assert (trace.yaxis, list(trace.x), list(trace.y)) == (axis, [0.58, 0.66], losses)
        assert list(trace.error_x.array) == [0.03, 0.03]
        assert list(trace.text) == ["", "lightnet"]
    assert "nats per token" in chart.layout.yaxis2.title.text
    assert "lightnet 0.66, 0.650 and 3.650" in alt_text(chart)


def test_rivals_show_errors_and_what_a_guess_would_score():
    chart = collapse.recall_by_rivals({"model": {1: Recall(1.0, 1.0, 20), 4: Recall(0.5, 0.25, 100)}})
    assert (list(chart.data[0].x), list(chart.data[0].y)) == ([1, 4], [1.0, 0.5])
    assert list(chart.data[0].error_y.array) == [0.0, 0.05]
    assert list(chart.data[1].y) == [1.0, 0.25]
    assert "4: 0.50 ± 0.05" in alt_text(chart)


def test_the_log_of_experiments_has_every_run_of_the_search():
    """Each recovery stands in the log once, with the recall, its standard error and the loss that were recorded."""
    log = (data_dir().parent / "book" / "experiments.md").read_text("utf-8").splitlines()
    search = recorded("recall-search-cpu")
    questions = recorded("ablation-cpu")["teacher"]["recall"]["outside"]["questions"]
    for row in search["rows"]:
        r = Recall(row["recall"]["outside"], 0.0, questions)
        wanted = f"| {row['name']} | {r.recall:.2f} ± {r.standard_error:.2f} | {row['window_only']['outside']:.2f} |"
        wanted += f" {row['loss_tinyworld']:.2f} | {row['loss_pydocs']:.2f} |"
        assert log.count(wanted) == 1, wanted
    delta = search["delta"]
    for row in delta["rows"]:
        r, seed = Recall(row["recall"]["outside"], 0.0, delta["questions_outside"]), row["recipe"]["seed"]
        name = f"{row['name']}, seed {seed}" if row["name"] == "the recall recipe" else row["name"]
        wanted = f"| {name} | {r.recall:.2f} ± {r.standard_error:.2f} | {row['window_only']['outside']:.2f} |"
        wanted += f" {row['loss_tinyworld']:.2f} | {row['loss_pydocs']:.2f} |"
        assert log.count(wanted) == 1, wanted


@pytest.mark.slow
def test_the_recovered_teachers_are_what_the_record_says():
    """Adapters, settings and recorded recall belong together; without the recurrence the far answers are gone."""
    recalls = {}
    for name in ("paper", "additive", "recall"):
        model, tokenizer = load_recovered(name)
        held_out = HeldOut(tokenizer, stories=96, documents=1)
        recalls[name] = evaluate(model, held_out).recall_outside
        with branches(model, (0.0, 1.0)):
            assert evaluate(model, held_out).recall_outside < 0.1
    search = recorded("recall-search-cpu")
    best = max(search["rows"], key=lambda row: row["recall"]["outside"])
    assert recalls["additive"] == pytest.approx(best["recall"]["outside"], abs=0.02)
    delta = next(row for row in search["delta"]["rows"] if row["name"] == "the recall recipe")
    error = Recall(recalls["recall"], 0.0, 230).standard_error  # the record has more questions
    assert recalls["recall"] == pytest.approx(delta["recall"]["outside"], abs=3 * error)
    assert best["recipe"]["transfer_steps"] == delta["recipe"]["transfer_steps"] == RECIPES["recall"].transfer_steps
    assert recalls["paper"] < 0.1
    with pytest.raises(
        ValueError, match="no recovered teacher 'best': there are 'additive', 'needles', 'paper', 'recall'"
    ):
        load_recovered("best")


@pytest.mark.slow
def test_needles_of_all_models_are_written(tmp_path):
    result = needles.run(tmp_path / "needle.json", lengths=(100,), depths=(0.9,), samples=2, more=3)
    assert list(result["models"]) == ["teacher", "paper", "additive", "recall", "needles"]
    assert {name: rows[0]["samples"] for name, rows in result["many"].items()} == {
        "additive": 3,
        "recall": 3,
        "needles": 3,
    }
    assert all(rows[0]["length"] == 100 for rows in result["models"].values())
    assert (tmp_path / "needle.json").is_file()
