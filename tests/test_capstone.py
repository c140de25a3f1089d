"""The capstone: what a team may hand in, and that rows which are evaluated are found among those trained on."""

import json

import pytest

from liger_mini.corpora import World, encode_story, pydocs_tokens, story
from liger_mini.evaluation import HeldOut
from liger_mini.experiments import capstone, load_teacher
from liger_mini.experiments.capstone import Submission, judge, leaderboard, leaks, read, train_on

OWN = """
from dataclasses import dataclass

from liger_mini.structures import GLA


@dataclass(frozen=True)
class Slow(GLA):
    temper: float = 2048.0

    def log_gate(self, k):
        return super().log_gate(k) / 2


structure, mix, recipe = Slow(), 0.25, {"rank": 4}
"""


@pytest.fixture(scope="module")
def tokenizer():
    return load_teacher()[1]


@pytest.fixture(scope="module")
def held_out(tokenizer):
    return HeldOut(tokenizer, stories=12, documents=4)


def ids(rows, n):
    return [rows[i]["input_ids"] for i in range(n)]


def test_honest_rows_do_not_leak(tokenizer, held_out):
    assert leaks(ids(World(tokenizer, 160), 160), held_out) == []


@pytest.mark.parametrize("shift", [0, 7])
def test_what_is_evaluated_is_found_also_where_it_is_cut_otherwise(tokenizer, held_out, shift):
    honest = ids(World(tokenizer, 20), 20)
    row = held_out.story_rows[3]["input_ids"]
    document = held_out.document_rows[2]["input_ids"]
    halves = [row[shift : len(row) // 2 + 40], row[len(row) // 2 - 20 :], document[shift:]]
    assert leaks([*honest, *halves], held_out) == ["story 3", "document 2"]


def test_a_quarter_is_a_phrase(tokenizer, held_out):
    row = held_out.document_rows[0]["input_ids"]
    assert leaks([row[: len(row) // 4 + capstone.RUN]], held_out) == []


def test_rows_that_are_not_allowed(tokenizer, held_out):
    recipe = capstone.BUDGET.__class__(steps=2, transfer_steps=1, batch_size=2)

    def cheating(tokenizer, n):
        return [encode_story(story(0, "heldout", i, sentences=42), tokenizer, 256) for i in range(n)]

    for rows, told in {
        cheating: "hold what is evaluated: story 0, story 1, story 2 …",
        (lambda tokenizer, n: World(tokenizer, n - 1)): "has 3 rows; the budget reads 4",
        (lambda tokenizer, n: World(tokenizer, n, length=512)): "the budget allows 256",
    }.items():
        with pytest.raises(ValueError, match=told):
            train_on(Submission("gla", rows=rows), tokenizer, recipe, held_out)
    own = [{"input_ids": pydocs_tokens("train", tokenizer)[i : i + 64]} for i in range(4)]
    assert train_on(Submission("gla", rows=lambda tokenizer, n: own), tokenizer, recipe, held_out) is own


def test_files_that_are_not_submissions(tmp_path):
    file = tmp_path / "mine.py"
    with pytest.raises(FileNotFoundError, match="no submission at"):
        read(file)
    for text, error, told in (
        ("x = 1", ValueError, "defines no `structure`"),
        ("structure = 'delta'", ValueError, "allowed are gla, hgrn2"),
        ("structure = 3", TypeError, "structure is a int"),
        ("structure, recipe = 'gla', {'steps': 9, 'rank': 4}", ValueError, "recipe sets steps"),
        ("structure, recipe = 'gla', {'rnak': 4}", ValueError, "recipe sets rnak"),
    ):
        file.write_text(text)
        with pytest.raises(error, match=told):
            read(file)


def test_the_courses_own_entries_lead_every_leaderboard(tmp_path, monkeypatch):
    recall = dict(zip(capstone.BASELINES, (0.1, 0.4, 0.3, 0.2)))

    def judged(submission, name, output_dir):
        outside = {"recall": recall[name], "questions": 100}
        report = {"loss": 2.0, "recall_outside": recall[name], "recall": {"outside": outside}}
        steps = {"transfer_steps": 120, "steps": 220}
        return {"name": name, "recipe": steps, "after": {"both": report, "window only": report}}

    monkeypatch.setattr(capstone, "judge", judged)
    monkeypatch.setattr(capstone, "data_dir", lambda: tmp_path)
    assert leaderboard(None).rows == []
    record = tmp_path / "results" / "capstone-cpu.json"
    capstone.train_baselines(tmp_path / "runs", record)
    assert json.loads(record.read_text("utf-8"))["provenance"]["torch"]
    assert [row[0] for row in leaderboard(None).rows] == [
        f"{name} (the course's)" for name in sorted(recall, key=lambda name: -recall[name])
    ]
    assert leaderboard(None).rows[0][1:] == ["0.40 ± 0.05", "0.40 ± 0.05", "2.000", "120 + 220"]


@pytest.mark.slow
def test_a_gate_of_ones_own_from_file_to_leaderboard(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    submission = read(file)
    assert (submission.mix, submission.recipe, submission.structure.temper) == (0.25, {"rank": 4}, 2048)
    monkeypatch.setattr(capstone, "HeldOut", lambda tokenizer: HeldOut(tokenizer, stories=4, documents=2))
    short = {"steps": 2, "transfer_steps": 1, "batch_size": 2}
    seen = []
    give = capstone._give
    monkeypatch.setattr(capstone, "_give", lambda model, own: (give(model, own), seen.append(model)))
    result = judge(submission, "slow", tmp_path / "board", **short)
    assert all(layer.self_attn.structure is submission.structure for layer in seen[0].model.layers)
    assert result["recipe"]["rank"] == 4
    assert result["recipe"]["steps"] == 2
    assert json.loads((tmp_path / "board" / "slow.json").read_text())["after"] == result["after"]
    board = leaderboard(tmp_path / "board")
    assert any(row[0] == "slow" for row in board.rows)
    file.write_text(OWN.replace("2048", "512"))  # the name is taken, by a file that is no longer this one
    with pytest.raises(FileExistsError, match="slow"):
        judge(read(file), "slow", tmp_path / "board", **short)
    with pytest.raises(ValueError, match="it has no slash"):
        judge(submission, "../slow", tmp_path / "board")
