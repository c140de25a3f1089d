"""lm-evaluation-harness on our models, offline, on a task over tinyworld."""

import pytest

import liger_mini as lm
from liger_mini.evaluation.lm_harness import harness, tinyworld_documents, tinyworld_task
from liger_mini.experiments import load_recovered, load_teacher

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (pip install -e '.[dev]')")


def test_the_task_ends_each_story_where_the_answer_goes():
    rows = tinyworld_documents(20)["test"]
    assert len(rows) == 20
    for row in rows:
        assert row["text"].split()[-1] in ("in", "a")
        assert len(set(row["choices"])) == 24
        assert 0 <= row["label"] < 24


@pytest.mark.slow
def test_the_harness_tells_a_teacher_from_an_unrecovered_model():
    teacher, tokenizer = load_teacher()
    score = harness(teacher, tokenizer, ["tinyworld"], limit=24)["tinyworld"]["acc,none"]
    assert score >= 0.8
    linearized = lm.linearize(teacher, window=16)
    broken = harness(linearized, tokenizer, ["tinyworld"], limit=24)["tinyworld"]["acc,none"]
    assert broken < score - 0.4


@pytest.mark.slow
def test_the_harness_opens_a_folder_itself(tmp_path):
    """Its own Python API, given nothing but a path (after `import liger_mini`), has the scores of ours."""
    import lm_eval

    model, tokenizer = load_recovered("recall")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    how = {"model_args": {"pretrained": str(tmp_path)}, "device": "cpu", "batch_size": 8, "log_samples": False}
    theirs = lm_eval.simple_evaluate(model="hf", tasks=[tinyworld_task(16)], **how)["results"]["tinyworld"]
    ours = harness(model, tokenizer, ["tinyworld"], limit=16)["tinyworld"]
    assert theirs["acc,none"] == ours["acc,none"] > 0.5


def test_the_harness_finds_a_batch_size_itself(teacher):
    """ "auto" is a string all the way; the scores do not depend on how many rows are scored together."""
    scores = [harness(*teacher, ["tinyworld"], batch_size=size, limit=6)["tinyworld"] for size in (8, "auto", "auto:2")]
    assert scores[0] == scores[1] == scores[2]
    for wrong in (0, -1, 1.5, "many", "auto:", "auto:0"):
        with pytest.raises(ValueError, match=r"batch_size = .*: allowed are whole numbers"):
            harness(*teacher, ["tinyworld"], batch_size=wrong)
