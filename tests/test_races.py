"""The benchmark's races: what a row holds, peers that cannot take part, and an interruption."""

import dataclasses
import functools
import json
import math

import pytest
import torch

from liger_mini import teaching
from liger_mini.__main__ import main
from liger_mini.experiments import profile, races
from liger_mini.experiments.benchmark import recurrences
from liger_mini.experiments.races import Contestant, race
from liger_mini.recurrences import compiled
from liger_mini.recurrences.compiled import numba_is_missing

TIMES = {"median_s", "fastest_s", "slowest_s", "repeats", "seconds"}
FOR_CHAPTERS = {
    "chunked_against_naive",
    "growth",
    "liger_against_softmax",
    "decode",
    "decode_seconds_ratio",
    "stream",
    "profile",
}
FOR_CHAPTERS |= {"decode_state_ratio", "decode_against_prefill", "provenance", "profile", "tried"}


def check_row(row):
    assert row["part"] in races.PARTS
    assert row["dtype"] in ("float32", "bfloat16")
    assert row["direction"] in races.DIRECTIONS
    assert all(isinstance(row[name], str) and row[name] for name in ("subject", "contestant"))
    assert isinstance(row["T"], int)
    rest = set(row) - {"part", "subject", "T", "dtype", "direction", "contestant"}
    if "reason" in rest:
        assert rest == {"reason"}
        assert row["reason"]
    else:
        assert {"times"} <= rest <= {"times", "against", "ratio", "launches"}
        assert row.get("launches", 1) > 0
        assert set(row["times"]) == TIMES
        assert len(row["times"]["seconds"]) == row["times"]["repeats"] >= 3
        if "ratio" in rest:
            assert 0 < row["ratio"]["lower"] <= row["ratio"]["median"] <= row["ratio"]["upper"] < math.inf


def test_the_record_is_what_chapters_read():
    record = teaching.recorded("benchmark-cpu")
    assert set(record) >= FOR_CHAPTERS
    for row in record.get("rows", []):
        check_row(row)


@pytest.fixture
def short(monkeypatch):
    """Three turns of everything, and no SmolLM2."""
    monkeypatch.setattr(races, "TOKENS", 3)
    turns = races.in_turns
    monkeypatch.setattr(races, "in_turns", lambda runs, repeats: turns(runs, repeats=3))

    def missing():
        raise FileNotFoundError("SmolLM2 was not fetched")

    for models in (races.MODELS, races.DECODING):
        monkeypatch.setitem(models, "SmolLM2", dataclasses.replace(models["SmolLM2"], load=missing))


def test_a_ratio_is_taken_turn_by_turn(monkeypatch):
    seconds = {"a": [1.0, 2.0, 4.0], "b": [2.0, 6.0, 4.0]}
    monkeypatch.setattr(races, "in_turns", lambda runs, repeats: {name: {"seconds": seconds[name]} for name in runs})
    first, second = race({"a": Contestant(int), "b": Contestant(int)}, repeats=3)
    assert first["ratio"]["median"] == 1
    assert second["against"] == "a"
    assert second["ratio"] == {"lower": 1.5, "median": 2.0, "upper": 2.5}


def test_who_cannot_take_part_has_a_row_that_says_so(capsys):
    def raises():
        raise RuntimeError("\nno such kernel\nand a long trace")

    def exhausted():
        raise MemoryError

    contestants = {
        "ours": Contestant(int),
        "raises": Contestant(raises),
        "exhausted": Contestant(exhausted),
        "too large": Contestant(int, 1e18),
        "missing": "it is not installed",
    }
    rows = {row["contestant"]: row for row in race(contestants, repeats=3)}
    assert list(rows) == list(contestants)
    assert rows["raises"] == {"contestant": "raises", "reason": "RuntimeError: no such kernel"}
    assert rows["exhausted"]["reason"] == "MemoryError: "
    assert rows["too large"]["reason"].startswith("needs about 1000000000.0 GB of memory, and ")
    assert rows["missing"]["reason"] == "it is not installed"
    assert "ratio" in rows["ours"]


def test_without_the_first_contestant_there_are_times_and_no_ratios():
    rows = list(race({"first": "it is not installed", "second": Contestant(int)}, repeats=3))
    assert set(rows[1]) == {"contestant", "times"}


@pytest.mark.parametrize("name", races.REFERENCES)
def test_peers_of_a_recurrence_compute_the_same(name, monkeypatch):
    """What is timed side by side has the same output, forward."""
    outputs = []
    monkeypatch.setattr(races, "directed", lambda direction, leaves, call: lambda: outputs.append(call()[0].detach()))
    contestants = races._recurrence(name, races.REFERENCES[name], "forward", 70, torch.float32, "cpu")
    pytest.importorskip("fla", reason="flash-linear-attention is not installed (pip install -e '.[dev]')")
    without = {"compiled"} if name == "slots" or numba_is_missing() else set()
    for form, contestant in contestants.items():
        if form in without:
            assert race({form: contestant}, repeats=3).__next__()["reason"].startswith(("ValueError", "RuntimeError"))
        else:
            contestant.run()
    assert len(outputs) == len(contestants) - len(without)
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], atol=1e-4, rtol=1e-3)


def test_backward_reaches_every_input_of_a_recurrence():
    for call in recurrences(*races.random_inputs(20, requires_grad=True)).values():
        grads = torch.autograd.grad(call()[0].sum(), call.args, allow_unused=True)
        assert all(g is not None for g in grads)


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_races_and_goes_on(tmp_path, monkeypatch, capsys, short):
    output, once = tmp_path / "benchmark.json", races.race
    command = ["benchmark", "recurrence", "prefill", "decode", "recovery", "--lengths", "24", "--output", str(output)]
    calls = []

    def interrupted(contestants, repeats):
        calls.append(list(contestants))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return once(contestants, repeats)

    monkeypatch.setattr(races, "race", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(command)
    kept = {path.name: path.read_text() for path in (tmp_path / "benchmark.races").glob("recurrence*.json")}
    assert len(kept) == 3
    assert not output.exists()
    assert main([*command[:1], "decode", "--lengths", "25", "--output", str(output)]) == 2
    assert "lengths: there [24], now [25]" in capsys.readouterr().err
    assert main(command) == 0
    rows = json.loads(output.read_text())["rows"]
    for row in rows:
        check_row(row)
    first = [row for text in kept.values() for row in json.loads(text)]
    assert all(row in rows for row in first)
    assert {row["part"] for row in rows} == {"recurrence", "prefill", "decode", "recovery"}
    assert {row["subject"] for row in rows if row["part"] == "recurrence"} == {"diagonal", "scalar", "slots", "delta"}
    assert {row.get("reason") for row in rows if row["subject"] == "SmolLM2"} == {"SmolLM2 was not fetched"}
    assert not (tmp_path / "benchmark.races").exists()


@pytest.mark.slow
def test_a_whole_run_has_what_chapters_read(tmp_path, monkeypatch, short):
    monkeypatch.setattr(races, "growth", lambda: [{"recurrence": "diagonal", "exponent": 1.0}])
    monkeypatch.setattr(races, "stream", functools.partial(races.stream, tokens=64, piece=16))
    monkeypatch.setattr(profile, "rows", lambda: [{"what": "attention of a layer", "shares": {}}])
    monkeypatch.setattr(profile, "tried", lambda: [{"tried": "chunks of 16 tokens", "ratio": 1.0}])
    decoded = [{"seconds_per_token": 1.0, "state_bytes": 1}] * 2
    monkeypatch.setattr(races, "decode", lambda model: decoded)
    monkeypatch.setitem(races.PARTS, "layer", fast_layer)
    record = races.run(tmp_path / "benchmark.json", lengths=[24])
    assert set(record) >= FOR_CHAPTERS | {"rows"}
    assert [row["recurrence"] for row in record["chunked_against_naive"]] == list(races.REFERENCES)
    assert record["stream"]["tokens"] == 64
    assert len(set(record["stream"]["state_bytes"])) == 1
    (layer,) = record["liger_against_softmax"]
    times = layer["times"]
    assert layer["softmax_over_liger"] == times["softmax"]["median_s"] / times["liger"]["median_s"]


def fast_layer(T, dtype, device):
    """The layer's race without FlexAttention, which is compiled for minutes where there is a compiler."""
    for subject, direction, contestants in races.layer_races(T, dtype, device):
        yield subject, direction, lambda who=contestants: {**who(), "FlexAttention, the window": "left out"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kernels"], "are for a GPU, and PyTorch sees none here"),
        (["layer", "--device", "cuda"], "PyTorch sees none here"),
        (["speed"], r"unknown parts ['speed']: allowed are 'recurrence'"),
        (["layer", "--lengths", "0"], "lengths = [0]"),
    ],
)
def test_bad_input_is_named(arguments, words, tmp_path, capsys):
    assert main(["benchmark", *arguments, "--output", str(tmp_path / "x.json")]) == 2
    assert words in capsys.readouterr().err


def test_a_profile_sorts_all_of_the_time_and_sees_the_compiled_loop(monkeypatch):
    plain, asked = compiled.over_heads, []
    monkeypatch.setattr(
        profile, "_step", lambda *how: asked.append(how) or (lambda bf16: torch.ones(40, 40) @ torch.ones(40))
    )
    rows = profile.rows(T=40, training=20)
    assert compiled.over_heads is plain
    assert asked == [(True, 20), (False, 20)]
    assert [row["what"] for row in rows] == 3 * ["attention of a layer"] + 4 * ["a training step"]
    for row in rows:
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["seconds"] > 0
    auto, chunked, sdpa, *_ = (row["shares"] for row in rows)
    assert (profile.LOOP in auto) == (not numba_is_missing())
    assert "matrix products" in chunked
    assert profile.LOOP not in chunked
    assert "softmax attention" in sdpa


def test_what_was_tried_leaves_the_code_as_it_is():
    before = {name: getattr(module, constant) for name, (_, module, constant, _) in profile.CHOICES.items()}
    found = profile.tried(T=80)
    assert {row["tried"] for row in found} == {
        name for name, (_, module, _, _) in profile.CHOICES.items() if module is not compiled or not numba_is_missing()
    }
    assert all(row["ratio"] > 0 and row["instead of"] in (before[row["tried"]], "as it is") for row in found)
    assert before == {name: getattr(module, constant) for name, (_, module, constant, _) in profile.CHOICES.items()}


def test_a_profile_without_the_real_model_says_so(monkeypatch):
    def missing(*how):
        raise FileNotFoundError("SmolLM2 was not fetched")

    monkeypatch.setattr(profile, "_step", missing)
    *layers, last = profile.rows(T=20)
    assert len(layers) == 3
    assert last["reason"] == "SmolLM2 was not fetched"


def test_launches_are_operators_without_views_and_without_what_they_call():
    x, cpu = torch.ones(4, 4), torch.device("cpu")
    assert profile.launches(lambda: (x @ x).T.contiguous(), cpu) == 2  # the product, and a copy
    assert profile.launches(lambda: x @ x, cpu, compiled=5) == 6  # of a compiled graph: its kernels, and what it calls
