"""The 1B path, on a CPU: the same code on a small model, and a 1B-shaped one converted, saved, loaded and generating."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from liger_mini.corpora import World
from liger_mini.evaluation import HeldOut
from liger_mini.experiments.pretraining import Mixture, one_billion, pretrain
from liger_mini.experiments.walk import walk
from liger_mini.recovery import Recipe

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


@pytest.mark.slow
def test_the_whole_walk_on_a_small_model(teacher, tmp_path):
    _, tokenizer = teacher
    torch.manual_seed(0)
    model = one_billion(tokenizer, **SMALL)
    about = pretrain(model, tokenizer, tmp_path / "teacher", minutes=0.05, length=64, batch_size=4)
    assert about["tokens"] >= 64 * 4
    assert about["parameters"] == model.num_parameters()
    torch.manual_seed(1)
    again = one_billion(tokenizer, **SMALL)
    how = {"minutes": 0.05, "length": 64, "batch_size": 4}
    assert pretrain(again, tokenizer, tmp_path / "teacher", **how) == json.loads(json.dumps(about))
    torch.testing.assert_close(again.state_dict(), model.state_dict())  # loaded, not trained
    with pytest.raises(FileExistsError, match="holds another run"):
        pretrain(again, tokenizer, tmp_path / "teacher", **{**how, "minutes": 60})
    recipe = Recipe(steps=4, batch_size=2)
    result = walk(
        model,
        tokenizer,
        World(tokenizer, 8, length=64),
        tmp_path / "walk",
        recipe=recipe,
        held_out=HeldOut(tokenizer, stories=4, documents=2, length=64),
        contexts=(32, 64),
        about=about,
        window=8,
        temper=64,
    )
    written = json.loads((tmp_path / "walk" / "walk.json").read_text())
    assert set(written) == set(result)
    assert set(written["recovered"]) == {"both", "window only", "recurrence only", "neither"}
    linear, softmax = written["decode_linearized"], written["decode_teacher"]
    assert linear[0]["state_bytes"] == linear[1]["state_bytes"]
    assert softmax[1]["state_bytes"] > softmax[0]["state_bytes"]
    assert written["provenance"]["gpu"] is None or torch.cuda.is_available()


def test_rows_that_hold_no_question_outside_are_pointed_out(teacher, tmp_path):
    model, tokenizer = one_billion(teacher[1], **SMALL), teacher[1]
    held_out = HeldOut(tokenizer, stories=2, documents=1, length=64)
    how = {"recipe": Recipe(steps=1, batch_size=1), "held_out": held_out, "contexts": (8,), "window": 40}
    with pytest.warns(UserWarning, match="windows of 40 reach 78 tokens through all layers, and rows have 64"):
        walk(model, tokenizer, World(tokenizer, 1, length=64), tmp_path, **how)


def test_pretraining_rows_repeat_themselves(teacher):
    _, tokenizer = teacher
    rows = Mixture(tokenizer, 20, length=64, sources=20_000)
    assert [rows[i] for i in range(20)] == [rows[i] for i in range(20)]
    assert all(len(rows[i]["input_ids"]) == len(rows[i]["labels"]) <= 64 for i in range(20))


@pytest.mark.slow
def test_a_1b_model_is_converted_saved_loaded_and_generates(teacher, tmp_path):
    """Llama-3.2-1B's layers in bfloat16 with random weights; memory stays below one and a half copies of the weights."""
    script = textwrap.dedent(
        """
        import resource, sys, torch
        import liger_mini as lm
        from liger_mini.experiments import load_teacher
        from liger_mini.experiments.pretraining import one_billion
        torch.set_default_dtype(torch.bfloat16)
        tokenizer = load_teacher()[1]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        model = one_billion(tokenizer)
        lm.linearize(model).save_pretrained(sys.argv[1])
        parameters = model.num_parameters()
        del model
        model = lm.load(sys.argv[1], dtype=torch.bfloat16)
        out = model.generate(torch.arange(2, 100).unsqueeze(0), max_new_tokens=4, min_new_tokens=4)
        peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        print(parameters, out.shape[1], peak)
        """
    )
    command = [sys.executable, "-c", script, tmp_path / "big"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    parameters, tokens, peak = map(int, done.stdout.split())
    assert parameters > 970e6
    assert tokens == 98 + 4
    assert peak < 1.5 * 2 * parameters
