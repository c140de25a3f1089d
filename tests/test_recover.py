"""Recovery: LoRA where it belongs, a run that resumes to the same losses, and errors before work is lost."""

import json
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

import liger_mini as lm
from liger_mini.recover import Recipe, _last_complete_checkpoint


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        ids = torch.randint(2, 97, (24,), generator=torch.Generator().manual_seed(i)).tolist()
        return {"input_ids": ids, "labels": ids}


RECIPE = Recipe(rank=2, alpha=2, learning_rate=1e-2, steps=8, batch_size=4)


def test_recovery_trains_qkv_alone_and_merges_to_the_teachers_names(tiny, tmp_path):
    teacher = tiny()
    before = {name: p.clone() for name, p in teacher.state_dict().items()}
    model = lm.linearize(teacher, window=4)
    result = lm.recover(model, Rows(), output_dir=tmp_path, recipe=RECIPE, log_every=1)
    after = model.state_dict()
    assert {name: p.shape for name, p in after.items()} == {name: p.shape for name, p in before.items()}
    changed = {name.split(".")[-2] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"q_proj", "k_proj", "v_proj"}
    # rank · (in + out) numbers for each of q (32 -> 32), k and v (32 -> 16), in each of 3 layers
    assert result.parameters_trained == 3 * 2 * ((32 + 32) + 2 * (32 + 16))
    assert result.parameters == sum(p.numel() for p in model.parameters())
    assert result.tokens == 8 * 4 * 24
    assert [step for step, _ in result.losses] == list(range(1, 9))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in lines] == [loss for _, loss in result.losses]


def test_the_adapter_alone_gives_the_merged_model(tiny, tmp_path):
    from peft import PeftModel

    model = tiny()
    fresh = tiny()
    fresh.load_state_dict(model.state_dict())
    lm.recover(lm.linearize(model, window=4), Rows(), output_dir=tmp_path, recipe=RECIPE)
    adapted = PeftModel.from_pretrained(lm.linearize(fresh, window=4), tmp_path / "adapter").eval()
    ids = torch.randint(2, 97, (1, 20))
    torch.testing.assert_close(adapted(ids).logits, model.eval()(ids).logits, atol=1e-4, rtol=0)


SCRIPT = textwrap.dedent(
    """
    import importlib, os, signal, sys, torch
    import liger_mini as lm
    from tests.test_recover import RECIPE, Rows
    from transformers import LlamaForCausalLM
    recover = importlib.import_module('liger_mini.recover')

    class Kill(recover._MetricsLog):
        def on_log(self, args, state, control, **kwargs):
            super().on_log(args, state, control, **kwargs)
            if state.global_step == 6:
                os.kill(os.getpid(), signal.SIGKILL)

    recover._MetricsLog = Kill
    model = lm.linearize(LlamaForCausalLM.from_pretrained(sys.argv[1]), window=4)
    lm.recover(model, Rows(), output_dir=sys.argv[2], recipe=RECIPE, save_every=2, log_every=1)
    """
)


@pytest.mark.slow
def test_killed_at_step_6_it_resumes_to_the_same_losses(tiny, tmp_path):
    teacher = tiny()
    teacher.save_pretrained(tmp_path / "teacher")
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "teacher", tmp_path / "killed"], capture_output=True
    )
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    results = {}
    for name in ("killed", "whole"):
        model = lm.linearize(type(teacher).from_pretrained(tmp_path / "teacher"), window=4)
        results[name] = lm.recover(model, Rows(), output_dir=tmp_path / name, recipe=RECIPE, save_every=2, log_every=1)
        results[name + " weights"] = model.state_dict()
    assert results["killed"].losses == results["whole"].losses
    torch.testing.assert_close(results["killed weights"], results["whole weights"], rtol=0, atol=0)


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    for step, state in ((10, "{}"), (20, '{"global_st'), (30, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert _last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_folder_with_another_run_is_refused_before_any_work(tiny, tmp_path):
    lm.recover(lm.linearize(tiny(), window=4), Rows(), output_dir=tmp_path / "run", recipe=RECIPE)
    other = Recipe(rank=4, steps=8, batch_size=4)
    with pytest.raises(FileExistsError, match="holds another run"):
        lm.recover(lm.linearize(tiny(), window=4), Rows(), output_dir=tmp_path / "run", recipe=other)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not empty"):
        lm.recover(lm.linearize(tiny(), window=4), Rows(), output_dir=tmp_path / "thesis", recipe=RECIPE)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_a_dataset_without_labels_is_refused(tiny, tmp_path):
    model = lm.linearize(tiny(), window=4)
    with pytest.raises(ValueError, match=r"lacks \['labels'\]"):
        lm.recover(model, [{"input_ids": [1, 2]}], output_dir=tmp_path / "a")
    with pytest.raises(ValueError, match="the dataset is empty"):
        lm.recover(model, [], output_dir=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path):
    model = lm.linearize(tiny(), window=4)
    model.model.norm.weight.data.fill_(float("nan"))  # behind the gates, which refuse NaN themselves
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        lm.recover(model, Rows(), output_dir=tmp_path, recipe=RECIPE, log_every=1)


def test_recovering_twice_into_one_folder_returns_the_same(tiny, tmp_path):
    teacher = tiny()
    teacher.save_pretrained(tmp_path / "teacher")
    runs = []
    for _ in range(2):
        model = lm.linearize(type(teacher).from_pretrained(tmp_path / "teacher"), window=4)
        runs.append((lm.recover(model, Rows(), output_dir=tmp_path / "run", recipe=RECIPE), model.state_dict()))
    assert runs[0][0].losses == runs[1][0].losses
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=0, atol=0)
    shutil.rmtree(tmp_path / "run")
