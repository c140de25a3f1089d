"""The experiment on a real model, rehearsed on the embedded teacher: its controls are what they say, and it resumes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from liger_mini.experiments import load_teacher, real
from liger_mini.experiments.report import real_page
from liger_mini.recovery import Recipe

SMALL = {"length": 128, "rows": 3, "load": load_teacher}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    ways = ["teacher", "window 64 + sink", "window 16", "gated_deltanet, a tenth"]
    return real.run(tmp_path_factory.mktemp("real"), plan="untrained", ways=ways, **SMALL)


def test_a_window_over_everything_is_the_untouched_teacher(untrained):
    teacher = untrained["ways"]["teacher"]
    for text in ("pydocs", "pysource"):
        torch.testing.assert_close(teacher[text]["loss"], untrained["untouched"][text], atol=2e-5, rtol=0)
        assert max(teacher[text]["kl"]) < 1e-5
        assert min(teacher[text]["top1"]) == 1
        assert min(untrained["ways"]["window 16"][text]["kl"]) > 1e-3


def test_a_way_without_its_recurrence_is_its_window(untrained):
    way, window = untrained["ways"]["gated_deltanet, a tenth"], untrained["ways"]["window 64 + sink"]
    torch.testing.assert_close(way["branches"]["window only"], window["pydocs"]["loss"], atol=2e-5, rtol=0)
    assert way["pydocs"]["loss"] != window["pydocs"]["loss"]


def test_the_report_says_where_each_way_stands(untrained):
    page = real_page(untrained, "window 64 + sink")
    ours, base = (torch.tensor(untrained["ways"][name]["pydocs"]["loss"]) for name in ("window 16", "window 64 + sink"))
    above = (ours - torch.tensor(untrained["untouched"]["pydocs"])).mean()
    sigmas = (ours - base).mean() / ((ours - base).std() / 3**0.5)
    assert f"window 16: {above:+.3f} above it ({sigmas:.1f} standard errors above window 64 + sink)." in page
    assert page.count("<table") == 2
    assert "<script" in page  # plotly.js is in it
    assert "http" not in page.split("<body>")[0]


def test_its_table_compares_row_by_row(untrained):
    table = real.table(untrained, "window 64 + sink", "pysource")
    rows = {row[0]: row for row in table.rows}
    assert rows["window 64 + sink"][2] == "+0.000 ± 0.000"
    a, b = (torch.tensor(untrained["ways"][name]["pysource"]["loss"]) for name in ("window 16", "window 64 + sink"))
    assert rows["window 16"][2] == f"{(a - b).mean():+.3f} ± {(a - b).std() / 3**0.5:.3f}"


@pytest.mark.slow
def test_training_is_the_same_for_all_and_goes_on_where_it_was(tmp_path, monkeypatch):
    ways, changes = ["teacher", "window 64 + sink"], {"steps": 2, "rank": 4}
    result = real.run(tmp_path, plan="screen", ways=ways, **changes, **SMALL)
    assert {way["tokens"] for way in result["ways"].values()} == {2 * 128}
    assert Recipe(**result["recipe"]).rank == 4
    assert result["ways"]["teacher"]["pydocs"]["loss"] != result["untouched"]["pydocs"]  # the ceiling learns, too
    real.keep(result, "window 64 + sink", tmp_path, tmp_path / "kept")
    made = json.loads((tmp_path / "kept" / "run.json").read_text("utf-8"))
    assert made["liger"]["sinks"] == 1
    kept = load_file(tmp_path / "kept" / "adapter_model.safetensors")
    trained = load_file(tmp_path / "window-64-sink" / "adapter" / "adapter_model.safetensors")
    assert {x.dtype for x in kept.values()} == {torch.bfloat16}
    assert all(torch.equal(x, trained[name].bfloat16()) for name, x in kept.items())
    (tmp_path / "window-64-sink.json").unlink()
    asked = []
    monkeypatch.setattr(
        real, "run_one", lambda load, name, *rest, once=real.run_one: asked.append(name) or once(load, name, *rest)
    )
    again = real.run(tmp_path, plan="screen", ways=ways, **changes, **SMALL)
    assert asked == ["window 64 + sink"]
    assert again["ways"] == json.loads(json.dumps(result["ways"]))
    with pytest.raises(FileExistsError):
        real.run(tmp_path, plan="screen", ways=ways, **{**changes, "steps": 3}, **SMALL)


def test_what_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match="'untrained', 'screen', 'long'"):
        real.run(tmp_path, plan="scren")
    with pytest.raises(ValueError, match="'window 64 \\+ sink'"):
        real.run(tmp_path, ways=["window 65"])
    with pytest.raises(ValueError, match="trains nothing, so steps cannot be changed"):
        real.run(tmp_path, steps=3)
