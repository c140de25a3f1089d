"""The demo from end to end with a few steps, its report, and the figures and widgets it shares with the notebooks."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from liger_mini.convert import linearize
from liger_mini.evaluation import HeldOut, branch_ablation, evaluate
from liger_mini.experiments import WINDOW, demo, load_teacher
from liger_mini.experiments.benchmark import decode_against_prefill, in_turns
from liger_mini.teaching import figures, widgets


@pytest.fixture(scope="module")
def run_of_the_demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    patch = pytest.MonkeyPatch()
    short = {
        name: dataclasses.replace(p, recipe=dataclasses.replace(p.recipe, steps=10, transfer_steps=0))
        for name, p in demo.PLANS.items()
    }
    patch.setattr(demo, "PLANS", short)
    patch.setattr(demo, "HeldOut", lambda tokenizer: HeldOut(tokenizer, stories=16, documents=8))
    result = demo.run(folder)
    patch.undo()
    return folder, result


@pytest.mark.slow
def test_result_holds_what_it_promises(run_of_the_demo):
    folder, result = run_of_the_demo
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    for part in (result, result["delta"]):
        for model in (result["teacher"], part["linearized"], part["recovered"]):
            assert {"loss", "perplexity", "recall_inside", "recall_outside"} <= set(model)
        assert part["recovered"]["loss"] < part["linearized"]["loss"]
        for when in ("before", "after"):
            assert set(part["branch_ablation"][when]) == {"both", "window only", "recurrence only", "neither"}
    assert result["seconds"] > 0
    assert result["provenance"]["torch"]


@pytest.mark.slow
def test_the_report_needs_no_network(run_of_the_demo):
    """No script, style, image or font from elsewhere; every figure has words."""
    folder, _ = run_of_the_demo

    class Reader(HTMLParser):
        outside, labelled, caption = [], 0, False

        def handle_starttag(self, tag, attributes):
            attributes = dict(attributes)
            if tag in ("script", "link", "img", "iframe") and (attributes.get("src") or attributes.get("href")):
                self.outside.append((tag, attributes))
            self.caption = tag == "figcaption"

        def handle_data(self, words):
            self.labelled += self.caption and len(words) > 40
            self.caption = False

    reader = Reader()
    reader.feed((folder / "report.html").read_text())
    assert reader.outside == []
    assert reader.labelled == 4


@pytest.fixture(scope="module")
def reports(teacher):
    model, tokenizer = teacher
    held_out = HeldOut(tokenizer, stories=24, documents=4)
    liger, _ = load_teacher()
    linearize(liger, window=WINDOW)
    return evaluate(model, held_out, window=WINDOW), branch_ablation(liger, held_out)


def test_the_demo_prints_the_table_of_the_readme(reports):
    teacher_report, _ = reports
    table = demo.table(teacher_report, {})
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    assert f"| {' | '.join(table.head)} |" in readme
    assert table.rows == [
        [
            "teacher",
            *(f"{x:.2f}" for x in (teacher_report.loss, teacher_report.recall_inside, teacher_report.recall_outside)),
        ]
    ]


def test_figures_show_the_numbers_and_have_units_and_words(reports):
    teacher_report, ablation = reports
    charts = {
        "losses": figures.losses({"teacher": teacher_report}),
        "recall": figures.recall_by_distance({"teacher": teacher_report}),
        "branches": figures.branch_bars({"linearized": ablation}),
        "curves": figures.loss_curves({"run": [(1, 3.0), (2, 2.5)]}, teacher_loss=2.0),
    }
    for chart in charts.values():
        assert chart.layout.yaxis.title.text
        assert len(figures.alt_text(chart)) > 40
    assert list(charts["branches"].data[0].y) == [report.loss for report in ablation.values()]
    below = charts["branches"].data[1]
    assert list(below.y) == [report.recall_outside for report in ablation.values()]
    assert list(below.error_y.array) == [report.recall["outside"].standard_error for report in ablation.values()]
    assert (below.yaxis, charts["branches"].layout.yaxis2.title.text) == ("y2", "recall outside (share)")
    for branch, report in ablation.items():
        assert f"{branch} {report.loss:.2f} and {report.recall_outside:.2f}" in figures.alt_text(charts["branches"])
    assert charts["losses"].data[1].y == (teacher_report.loss_pydocs,)
    points = [recall.recall for _, recall in teacher_report.recall_by_distance if recall.questions >= 20]
    assert list(charts["recall"].data[0].y) == points


def test_branch_bars_show_every_model_and_keep_numbers_apart(reports):
    """Both panels have every model; the numbers above the bars are there as long as a narrow page has room for them."""
    _, ablation = reports
    for models in (("a",), ("a", "b"), ("a", "b", "c", "d")):
        chart = figures.branch_bars(dict.fromkeys(models, ablation))
        for panel in ("y", "y2"):
            bars = [trace for trace in chart.data if trace.type == "bar" and trace.yaxis == panel]
            assert [trace.name for trace in bars] == list(models)
            assert len({trace.marker.pattern.shape for trace in bars}) == len(models)
        numbers = [trace for trace in chart.data if trace.type == "scatter"]
        assert [trace.visible for trace in numbers] == [len(models) <= 2] * len(models)
        assert chart.data[0].textposition == ("outside" if len(models) <= 2 else "none")
        assert figures.alt_text(chart).count("window only") == len(models)


def test_generation_widget_shows_what_its_twin_shows_and_survives_mistakes(teacher):
    model, tokenizer = teacher
    models, prompt = {"teacher": model}, "Ada lives in Rome. Where does Ada live? Ada lives in"
    box = widgets.generation_widget(models, tokenizer, prompt, tokens=4)
    text, (length, button), answer = box.children[0], box.children[1].children, box.children[2]
    assert answer.value == widgets.side_by_side(models, tokenizer, prompt, tokens=4).data
    assert "Rome" in answer.value.split("</caption>")[1]
    for tokens in (1, 9, 30):
        length.value = tokens
        button.click()
        assert answer.value == widgets.side_by_side(models, tokenizer, prompt, tokens=tokens).data
    text.value = "   "
    button.click()
    assert "the prompt is empty" in answer.value
    text.value = "Ben keeps a goat. What does Ben keep? Ben keeps a"
    button.click()
    assert "goat" in answer.value.split("</caption>")[1]


def test_benchmark_measures(teacher):
    """The harness runs each variant as often as it says; the accuracy it reports is within the bar."""
    calls = []
    times = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert times["a"]["fastest_s"] <= times["a"]["median_s"] <= times["a"]["slowest_s"]
    liger, _ = load_teacher()
    assert decode_against_prefill(linearize(liger, window=WINDOW), T=60) <= 1e-4
