"""The commands end to end on the embedded teacher: convert, recover, evaluate, harness."""

import dataclasses
import json

import pytest

import liger_mini as lm
from liger_mini.__main__ import main
from liger_mini.commands.options import attributes
from liger_mini.convert import Settings
from liger_mini.recovery import Recipe
from liger_mini.support.paths import data_dir

TEACHER = str(data_dir() / "teacher")


def test_a_linearized_model_keeps_its_settings(tmp_path, capsys):
    folder = str(tmp_path / "linear")
    assert main(["convert", "--model", TEACHER, "--window", "16", "--out", folder]) == 0
    recover = ["recover", "--model", folder, "--data", "tinyworld", "--steps", "1", "--out", str(tmp_path / "run")]
    assert main([*recover, "--structure", "lightnet", "--window", "16"]) == 2
    assert "linearized already, with {'structure': 'gla'}; {'structure': 'lightnet'}" in capsys.readouterr().err
    assert main(["evaluate", "--model", folder, "--window", "3"]) == 2
    assert "{'window': 3} would need the original" in capsys.readouterr().err


def test_sinks_and_a_pair_of_weights_are_flags(tmp_path, capsys):
    folder = str(tmp_path / "linear")
    assert (
        main(["convert", "--model", TEACHER, "--window", "16", "--mix", "0.1,1", "--sinks", "4", "--out", folder]) == 0
    )
    liger = lm.load(folder).config.liger
    assert (liger["mix"], liger["sinks"]) == ([0.1, 1.0], 4)
    assert main(["evaluate", "--model", folder, "--sinks", "0"]) == 2
    assert "with {'sinks': 4}; {'sinks': 0} would need the original" in capsys.readouterr().err
    bad = ["convert", "--model", TEACHER, "--out", str(tmp_path / "x"), "--mix"]
    assert main([*bad, "0,0"]) == 2
    assert "mix = (0.0, 0.0)" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*bad, "0.1,"])
    assert "argument --mix: invalid float value: '0.1,'" in capsys.readouterr().err


def test_an_output_that_is_a_folder_is_refused_before_the_work(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "--model", TEACHER, "--output", str(tmp_path)])
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_points_out_rows_that_the_windows_reach_over(tmp_path):
    output = tmp_path / "evaluate.json"
    with pytest.warns(UserWarning, match="windows of 32 reach 124 tokens through all layers, and rows have 64"):
        assert main(["evaluate", "--model", TEACHER, "--window", "32", "--length", "64", "--output", str(output)]) == 0
    assert json.loads(output.read_text())["branches"]["both"]["recall_outside"] is None


def test_debug_shows_where_an_error_was_raised():
    with pytest.raises(FileNotFoundError, match="no model folder"):
        main(["evaluate", "--model", "./nowhere", "--debug"])


@pytest.mark.parametrize("kind", [Recipe, Settings])
def test_every_flag_says_what_it_does_and_what_it_is_by_default(kind, capsys):
    told = attributes(kind)
    assert set(told) == {field.name for field in dataclasses.fields(kind)}
    assert all(len(words.split()) >= 2 for words in told.values())
    with pytest.raises(SystemExit, match="0"):
        main(["recover", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(kind):
        assert f"--{field.name.replace('_', '-')}" in shown
        assert f"(default: {field.default})" in shown


@pytest.mark.slow
def test_convert_recover_evaluate_and_the_harness(tmp_path, capsys):
    folder = tmp_path / "linear"
    assert (
        main(["convert", "--model", TEACHER, "--structure", "gated_retention", "--window", "16", "--out", str(folder)])
        == 0
    )
    assert "LigerLlamaForCausalLM, 2,1" in capsys.readouterr().out
    recover = ["recover", "--model", str(folder), "--data", str(data_dir() / "instructions.jsonl"), "--length", "256"]
    assert main([*recover, "--steps", "10", "--batch-size", "2", "--out", str(tmp_path / "run")]) == 0
    model = lm.load(tmp_path / "run" / "model")
    assert model.config.liger["structure"] == "gated_retention"
    assert "LoRA of rank 8" in (tmp_path / "run" / "model" / "README.md").read_text()
    text = tmp_path / "text.txt"
    text.write_text("Anna lives in Paris. Where does Anna live? Anna lives in Paris.")
    evaluate = ["evaluate", "--model", str(tmp_path / "run" / "model"), "--text", str(text), "--needle", "64"]
    assert main([*evaluate, "--output", str(tmp_path / "evaluate.json")]) == 0
    result = json.loads((tmp_path / "evaluate.json").read_text())
    assert set(result["branches"]) == {"both", "window only", "recurrence only", "neither"}
    assert 0 < result["text"]["loss"] < 20
    assert {row["depth"] for row in result["needle"]} == {0.1, 0.5, 0.9}
    harness = ["harness", "--model", str(tmp_path / "run" / "model"), "--limit", "8"]
    assert main([*harness, "--output", str(tmp_path / "harness.json")]) == 0
    written = json.loads((tmp_path / "harness.json").read_text())
    assert 0 <= written["scores"]["tinyworld"]["acc,none"] <= 0.5  # after 10 steps; the teacher: 0.8 or more
    assert written["limit"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "--model", "./nowhere", "--out", "x"], "no model folder at nowhere"),
        (
            ["convert", "--model", TEACHER, "--out", "{tmp}/x", "--structure", "linear", "--temper", "3"],
            "has no temper",
        ),
        (["recover", "--model", TEACHER, "--data", "{tmp}/none.jsonl", "--out", "{tmp}/x"], "no instruction file"),
        (["recover", "--model", TEACHER, "--data", "tinyworld", "--out", "{tmp}/x"], "give --steps"),
        (["recover", "--model", "./nowhere", "--data", "tinyworld", "--out", "{tmp}/x"], "no model folder at nowhere"),
        (
            ["recover", "--model", TEACHER, "--data", "{tmp}/bad.jsonl", "--out", "{tmp}/x"],
            "bad.jsonl, line 1: not JSON",
        ),
        (["recover", "--model", TEACHER, "--data", "{tmp}/empty.jsonl", "--out", "{tmp}/x"], "it is empty"),
        (["recover", "--model", TEACHER, "--data", "{tmp}/null.jsonl", "--out", "{tmp}/x"], "must be text"),
        (
            ["recover", "--model", TEACHER, "--data", "tinyworld", "--steps", "0", "--out", "{tmp}/x"],
            "steps = 0: allowed are whole numbers ≥ 1",
        ),
        (
            ["recover", "--model", TEACHER, "--data", "{tmp}/latin.txt", "--stories", "3", "--out", "{tmp}/x"],
            "--stories 3 is for --data tinyworld",
        ),
        (["evaluate", "--model", "./nowhere"], "no model folder at nowhere"),
        (["evaluate", "--model", TEACHER], "pass window="),
        (["evaluate", "--model", TEACHER, "--window", "0"], "window = 0: allowed are whole numbers ≥ 1"),
        (
            ["evaluate", "--model", TEACHER, "--window", "16", "--text", "{tmp}/latin.txt"],
            "latin.txt, line 1: not UTF-8",
        ),
        (["harness", "--model", TEACHER, "--limit", "0"], "limit = 0"),
        (["harness", "--model", TEACHER, "--tasks", "tinyworld, nonsense"], "no task 'nonsense'"),
        (["walk", "--minutes", "60", "--structure", "glaa", "--out", "{tmp}/x"], "unknown structure 'glaa'"),
        (["walk", "--minutes", "60", "--data", "{tmp}/none.jsonl", "--out", "{tmp}/x"], "no instruction file"),
        (["walk", "--minutes", "60", "--recipe", "paper", "--out", "{tmp}/x"], "give --steps"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_status_2(tmp_path, capsys, arguments, words):
    (tmp_path / "bad.jsonl").write_text("not json")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "null.jsonl").write_text('{"instruction": "Say nothing.", "output": null}')
    (tmp_path / "latin.txt").write_bytes("Straße".encode("latin-1"))
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
