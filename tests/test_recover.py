"""Recovery: LoRA where it belongs, a run that resumes to the same losses, and errors before work is lost."""

import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel, Trainer

import liger_mini as lm
from liger_mini.attention import liger_layers
from liger_mini.recovery import Recipe, stages
from liger_mini.recovery.objectives import as_teacher
from liger_mini.recovery.run_folder import MetricsLog, last_complete_checkpoint


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
    model = tiny()
    fresh = tiny()
    fresh.load_state_dict(model.state_dict())
    lm.recover(lm.linearize(model, window=4), Rows(), output_dir=tmp_path, recipe=RECIPE)
    adapted = PeftModel.from_pretrained(lm.linearize(fresh, window=4), tmp_path / "adapter").eval()
    ids = torch.randint(2, 97, (1, 20))
    torch.testing.assert_close(adapted(ids).logits, model.eval()(ids).logits, atol=1e-4, rtol=0)


SCRIPT = textwrap.dedent(
    """
    import os, signal, sys, torch
    import liger_mini as lm
    from tests.test_recover import RECIPE, Rows
    from transformers import LlamaForCausalLM
    from liger_mini.recovery import stages as recover

    class Kill(recover.MetricsLog):
        def on_log(self, args, state, control, **kwargs):
            super().on_log(args, state, control, **kwargs)
            if state.global_step == 6:
                os.kill(os.getpid(), signal.SIGKILL)

    recover.MetricsLog = Kill
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


class UnequalRows(Rows):
    def __getitem__(self, i):
        return {name: x[: 6 + i % 19] for name, x in super().__getitem__(i).items()}


def losses(tiny, folder, save_every=100, rows=UnequalRows(), **changes):
    torch.manual_seed(0)
    model = lm.linearize(tiny(), "lightnet", window=4)
    recipe = dataclasses.replace(RECIPE, **changes)
    return lm.recover(model, rows, output_dir=folder, recipe=recipe, save_every=save_every, log_every=1), model


@pytest.mark.parametrize("objective", [{}, {"distillation": 0.5}, {"transfer_steps": 3}], ids=str)
def test_packing_gives_the_losses_of_padding(tiny, tmp_path, objective):
    padded, _ = losses(tiny, tmp_path / "padded", **objective)
    packed, _ = losses(tiny, tmp_path / "packed", packing=True, **objective)
    assert [loss for _, loss in packed.losses] == pytest.approx([loss for _, loss in padded.losses], abs=1e-3)


@pytest.mark.parametrize("objective", [{}, {"distillation": 0.5}, {"transfer_steps": 3}], ids=str)
def test_gradient_checkpointing_gives_the_same_losses_from_fewer_kept_activations(tiny, tmp_path, objective):
    kept = {}

    def recovered(checkpointing: bool):
        saved: list[int] = []  # bytes of every tensor kept for the way back
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.nbytes) or x, lambda x: x):
            result, model = losses(
                tiny, tmp_path / str(checkpointing), gradient_checkpointing=checkpointing, **objective
            )
        kept[checkpointing] = sum(saved)
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        return result

    plain, checkpointed = recovered(False), recovered(True)
    assert [loss for _, loss in checkpointed.losses] == pytest.approx([loss for _, loss in plain.losses], abs=1e-5)
    assert kept[True] < kept[False]


@pytest.mark.parametrize(
    ("family", "own"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 7}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
        ("qwen3", {}),
    ],
    ids=["llama", "mistral, window", "qwen2, window in some layers", "qwen3"],
)
def test_the_teacher_is_still_inside(tiny, tmp_path, family, own):
    """Adapters off, no sinks, and the window as wide as it was: the logits of the softmax model, whatever the adapters learned."""
    teacher, ids = tiny(family, **own), torch.randint(2, 97, (2, 30))
    expected = teacher(ids).logits
    lm.linearize(teacher, window=4, sinks=2).save_pretrained(tmp_path)
    model = get_peft_model(lm.load(tmp_path), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    before = model(ids).logits
    with as_teacher(model):
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=0)
    assert (before - expected).abs().max() > 0.1
    assert torch.equal(model(ids).logits, before)


LONGER = {"rank": 8, "alpha": 8, "learning_rate": 1e-2, "batch_size": 8}


def falls(losses: list[float]) -> bool:
    """The mean of the last ten is below that of the first ten by more than a tenth."""
    return sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_distillation_alone_pulls_towards_the_teacher(tiny, tmp_path):
    """λ = 1: the loss is KL(teacher ‖ student) alone, and the labels, which are noise, do not matter."""
    result, _ = losses(tiny, tmp_path, distillation=1.0, steps=60, **LONGER)
    assert falls([loss for _, loss in result.losses])
    assert min(loss for _, loss in result.losses) > 0


def test_attention_transfer_lowers_its_error_and_then_trains(tiny, tmp_path):
    result, _ = losses(tiny, tmp_path, transfer_steps=60, **LONGER)
    errors = [json.loads(line)["loss"] for line in (tmp_path / "transfer" / "metrics.jsonl").read_text().splitlines()]
    assert len(errors) == 60
    assert falls(errors)
    assert [step for step, _ in result.losses] == list(range(1, 9))


def test_attention_transfer_leaves_the_blocks_of_a_layer_hybrid_alone(tiny, tmp_path):
    model = lm.linearize(tiny(num_hidden_layers=4), window=4, softmax_every=2)
    recipe = dataclasses.replace(RECIPE, transfer_steps=4)
    lm.recover(model, Rows(), output_dir=tmp_path, recipe=recipe)
    adapter = load_file(last_complete_checkpoint(tmp_path / "transfer" / "checkpoints") / "adapter_model.safetensors")
    trained = {int(name.split(".layers.")[1][0]) for name, B in adapter.items() if "lora_B" in name and B.any()}
    assert trained == {0, 2}


def test_attention_transfer_in_micro_batches_is_a_mean_as_well(tiny, tmp_path):
    """Not a sum over the micro-batches. A mean of ratios is not the ratio of means, hence the tolerance."""
    first = []
    for micro in (None, 1):
        losses(tiny, tmp_path / str(micro), transfer_steps=1, micro_batch_size=micro)
        first.append(json.loads((tmp_path / str(micro) / "transfer" / "metrics.jsonl").read_text())["loss"])
    assert first[1] == pytest.approx(first[0], rel=0.2)


def test_a_finished_run_is_merged_without_its_checkpoints(tiny, tmp_path):
    whole, model = losses(tiny, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    again, same = losses(tiny, tmp_path / "run")
    assert again == whole
    torch.testing.assert_close(same.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_window_dropout_falls_to_zero_and_leaves_the_branches_alone(tiny, tmp_path):
    seen = []
    model = lm.linearize(tiny(), window=4)
    layers = liger_layers(model)
    hook = layers[0].register_forward_pre_hook(lambda layer, args: seen.append([x.branches for x in layers]))
    recipe = dataclasses.replace(RECIPE, window_dropout=1.0, steps=40)
    lm.recover(model, Rows(), output_dir=tmp_path, recipe=recipe)
    hook.remove()
    assert seen[0] == [(1.0, 0.0)] * 3  # with certainty in the first step
    early, late = (sum(b == (1.0, 0.0) for step in part for b in step) for part in (seen[:20], seen[20:]))
    assert early > late > 0
    assert [layer.branches for layer in layers] == [(0.5, 0.5)] * 3


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    for step, state in ((10, "{}"), (20, '{"global_st'), (30, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


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


@pytest.mark.parametrize(
    ("dataset", "error", "words"),
    [
        ([{"input_ids": [1, 2]}], ValueError, r"row 0 lacks \['labels'\]; it has \['input_ids'\]"),
        ([([1, 2], [1, 2])], ValueError, "row 0 is a tuple; needed is a mapping with input_ids and labels"),
        ([], ValueError, "has 0 rows, which is less than a batch of 8"),
        ({"train": Rows(), "test": Rows()}, TypeError, r"several splits, \['test', 'train'\]; give one"),
        (iter([]), TypeError, "list_iterator has no length"),
        (
            [{"input_ids": [1] * 65, "labels": [1] * 65}],
            ValueError,
            "row 0 has 65 tokens, and the model's positions end at 64",
        ),
        ([{"input_ids": [1, 200], "labels": [1, 2]}], ValueError, "row 0 holds the token 200; allowed are 0 to 96"),
        ([{"input_ids": [1, -3], "labels": [1, 2]}], ValueError, "row 0 holds the token -3; allowed are 0 to 96"),
        (
            [{"input_ids": [1, 2], "labels": [1, 97]}],
            ValueError,
            "row 0 has the label 97; allowed are 0 to 96, and -100",
        ),
        (
            [{"input_ids": [1, 2], "labels": [1, -1]}],
            ValueError,
            "row 0 has the label -1; allowed are 0 to 96, and -100",
        ),
        ([{"input_ids": [1, 2.5], "labels": [1, 2]}], ValueError, "row 0: input_ids is of float32 .* whole numbers"),
        ([{"input_ids": [1, "2"], "labels": [1, 2]}], ValueError, "row 0: input_ids cannot be read as whole numbers"),
        ([{"input_ids": [[1, 2]], "labels": [[1, 2]]}], ValueError, r"row 0: input_ids .* shape \[1, 2\]"),
        ([{"input_ids": [1, 2, 3], "labels": [1, 2]}], ValueError, "row 0 has 3 input_ids and 2 labels"),
        ([{"input_ids": [1, 2], "labels": [-100, -100]}], ValueError, "no label to learn from"),
        ([{"input_ids": [], "labels": []}], ValueError, "row 0, of 0 tokens, has no label"),
        ([{"input_ids": [5], "labels": [5]}], ValueError, "after the first, all are -100"),
    ],
)
def test_a_dataset_that_cannot_be_learned_from_is_refused(tiny, tmp_path, dataset, error, words):
    model = lm.linearize(tiny(max_position_embeddings=64), window=4)
    if isinstance(dataset, list):
        dataset = dataset * 8
    with pytest.raises(error, match=words):
        lm.recover(model, dataset, output_dir=tmp_path / "a")
    assert not (tmp_path / "a").exists()


class OnDemand(Rows):
    """Rows that are made when they are asked for; one of them, which no run reads beforehand, is too long."""

    def __init__(self, bad=13):
        self.bad = bad

    def __getitem__(self, i):
        row = super().__getitem__(i)
        return row if i != self.bad else {name: x * 3 for name, x in row.items()}


@pytest.mark.parametrize("packing", [False, True])
def test_every_row_is_looked_at_and_the_model_left_as_it_was(tiny, tmp_path, packing):
    model = lm.linearize(tiny(max_position_embeddings=64), window=4)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    recipe = dataclasses.replace(
        RECIPE, packing=packing, steps=None, epochs=1, window_dropout=1.0, gradient_checkpointing=True
    )
    with pytest.raises(ValueError, match="row 13 has 72 tokens"):  # in the fifth batch
        lm.recover(model, OnDemand(), output_dir=tmp_path, recipe=recipe, train_in_full=["embed_tokens"])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)  # and no adapter in between
    assert model.config.use_cache
    assert all(p.requires_grad for p in model.parameters())
    assert not model.training
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert [layer.branches for layer in liger_layers(model)] == [(0.5, 0.5)] * 3


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
def test_rows_in_memory_are_all_looked_at_before_the_first_step(tiny, tmp_path, kind):
    rows = [Rows()[i] for i in range(64)]
    rows[21]["labels"] = [97] * 24
    model = lm.linearize(tiny(), window=4)
    with pytest.raises(ValueError, match="row 21 has the label 97"):
        lm.recover(model, kind(rows), output_dir=tmp_path / "a", recipe=RECIPE)
    assert not (tmp_path / "a").exists()


def test_a_run_that_met_a_bad_row_goes_on_with_another_in_its_place(tiny, tmp_path):
    """What the message says is the way on; the steps before the bad row are not taken again."""

    def run(name, rows):
        torch.manual_seed(0)
        model = lm.linearize(tiny(max_position_embeddings=64), window=4)
        recipe = dataclasses.replace(RECIPE, steps=None, epochs=1)
        return lm.recover(model, rows, output_dir=tmp_path / name, recipe=recipe, save_every=1, log_every=1)

    with pytest.raises(ValueError, match=r"row 13 has 72 tokens.*Put another row in its place.*last checkpoint"):
        run("a", OnDemand())
    before = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert 2 < len(before) < 16
    mended = run("a", Rows())  # the same but for row 13
    assert (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[: len(before)] == before
    assert mended.losses == run("whole", Rows()).losses


@pytest.mark.parametrize("change", ["one row less", "a row by which it is known"])
def test_other_data_is_refused_with_what_may_change(tiny, tmp_path, change):
    rows = [UnequalRows()[i] for i in range(64)]
    losses(tiny, tmp_path / "run", rows=rows)
    other = rows[:-1] if change == "one row less" else [rows[1], *rows[1:]]
    with pytest.raises(FileExistsError, match=r"their number must stay, and rows 0, 4, .*, 60, by which"):
        losses(tiny, tmp_path / "run", rows=other)


def stopped_at(step, monkeypatch, *args, **kwargs):
    """`losses(…)`, ended by an error after `step` steps of a stage."""

    class Stopping(MetricsLog):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == step:
                raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "MetricsLog", Stopping)
        with pytest.raises(RuntimeError, match="stopped"):
            losses(*args, save_every=2, **kwargs)


FRUGAL = {"micro_batch_size": 1, "gradient_checkpointing": True}


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"distillation": 0.5},
        {"window_dropout": 0.5, "packing": True},
        {"steps": None, "epochs": 2, "batch_size": 6},
    ],
    ids=str,
)
def test_a_stopped_run_goes_on_in_smaller_pieces_to_the_same_losses(tiny, tmp_path, monkeypatch, recipe):
    whole, _ = losses(tiny, tmp_path / "whole", **recipe)
    stopped_at(5, monkeypatch, tiny, tmp_path / "stopped", **recipe)
    resumed, _ = losses(tiny, tmp_path / "stopped", save_every=2, **recipe, **FRUGAL)
    assert resumed.recipe.gradient_checkpointing
    assert [step for step, _ in resumed.losses] == [step for step, _ in whole.losses]
    assert [loss for _, loss in resumed.losses] == pytest.approx([loss for _, loss in whole.losses], rel=1e-5)


def test_a_last_batch_that_is_not_full_is_left_out_of_any_micro_batches(tiny, tmp_path):
    whole, small = (
        losses(tiny, tmp_path / str(micro), steps=None, epochs=1, batch_size=6, micro_batch_size=micro)[0]
        for micro in (None, 1)
    )
    assert len(small.losses) == len(whole.losses) == 64 // 6
    assert small.tokens == whole.tokens


def test_attention_transfer_keeps_its_micro_batches_until_it_is_done(tiny, tmp_path, monkeypatch):
    """Its loss is a mean of ratios, another one with other micro-batches."""
    whole, _ = losses(tiny, tmp_path / "whole", transfer_steps=5)
    stopped_at(3, monkeypatch, tiny, tmp_path / "run", transfer_steps=5)
    with pytest.raises(
        FileExistsError, match=r"transfer .* not finished.* 4 rows at a time, now 1.*micro_batch_size=None"
    ):
        losses(tiny, tmp_path / "run", save_every=2, transfer_steps=5, **FRUGAL)
    how = {"transfer_steps": 5, "gradient_checkpointing": True}
    stopped_at(7, monkeypatch, tiny, tmp_path / "run", **how)  # a step that transfer does not reach
    resumed, _ = losses(tiny, tmp_path / "run", save_every=2, transfer_steps=5, **FRUGAL)
    assert [loss for _, loss in resumed.losses] == pytest.approx([loss for _, loss in whole.losses], rel=1e-5)


def test_the_run_of_an_older_version_is_recognised(tiny, tmp_path, monkeypatch):
    """Its run.json holds the fields that may change, and lacks those that came since."""
    stopped_at(5, monkeypatch, tiny, tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["recipe"].pop("window_dropout") == 0.0
    liger = {name: run["liger"][name] for name in ("structure", "window", "mix", "temper", "softmax_every")}
    old = {name: run[name] for name in ("recipe", "train_in_full", "rows", "data", "weights")} | {"liger": liger}
    (tmp_path / "run.json").write_text(json.dumps(old))
    with pytest.raises(FileExistsError, match=r"recipe's window_dropout: there None, now 0\.5"):
        losses(tiny, tmp_path, save_every=2, window_dropout=0.5)
    assert len(losses(tiny, tmp_path, save_every=2, **FRUGAL)[0].losses) == 8


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_says_how_to_go_on(tiny, tmp_path, error):
    model, calls = lm.linearize(tiny(), window=4), []

    def full(module, args):
        calls.append(1)
        if len(calls) == 6:
            raise error

    hook = model.model.norm.register_forward_pre_hook(full)
    with pytest.raises(MemoryError, match=r"checkpoint-4\. .*micro_batch_size.*gradient_checkpointing") as caught:
        lm.recover(model, Rows(), output_dir=tmp_path, recipe=RECIPE, save_every=2, log_every=1)
    assert caught.value.__cause__ is error
    hook.remove()
    recipe = dataclasses.replace(RECIPE, **FRUGAL)
    assert len(lm.recover(model, Rows(), output_dir=tmp_path, recipe=recipe, save_every=2, log_every=1).losses) == 8


def test_rows_of_tensors_and_other_columns_are_taken(tiny, tmp_path):
    tensors = Dataset.from_list([{**Rows()[i], "source": "here"} for i in range(64)]).with_format("torch")
    results = []
    for name, rows in (("lists", Rows()), ("tensors", tensors)):
        torch.manual_seed(0)
        results.append(lm.recover(lm.linearize(tiny(), window=4), rows, output_dir=tmp_path / name, recipe=RECIPE))
    assert results[0].losses == results[1].losses


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("steps", 0, "whole numbers ≥ 1, or None"),
        ("batch_size", 0, "whole numbers ≥ 1$"),
        ("micro_batch_size", -1, "or None"),
        ("transfer_steps", -2, "≥ 0"),
        ("epochs", 0, "numbers > 0"),
        ("learning_rate", float("nan"), "numbers > 0"),
        ("distillation", 3.0, "from 0 to 1"),
        ("window_dropout", 7, "from 0 to 1"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(field, value, words):
    with pytest.raises(ValueError, match=f"{field} = .*{words}"):
        Recipe(**{field: value})


def test_a_model_that_is_not_ready_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="linearize it first"):
        lm.recover(tiny(), Rows(), output_dir=tmp_path / "a")
    linearized = lm.linearize(tiny(), window=4)
    with pytest.raises(ValueError, match="save_every = 5 is not a multiple of log_every = 2"):
        lm.recover(linearized, Rows(), output_dir=tmp_path / "a", save_every=5, log_every=2)
    for names, error, words in (
        ("lm_head", TypeError, "needed is a list"),
        (["gate"], ValueError, r"\['gate'\].* no such"),
    ):
        with pytest.raises(error, match=words):
            lm.recover(linearized, Rows(), output_dir=tmp_path / "a", train_in_full=names)
    with pytest.raises(TypeError, match="inside PEFT already"):
        lm.recover(get_peft_model(linearized, LoraConfig(target_modules=["q_proj"])), Rows(), output_dir=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_recovered_model_goes_on_but_has_no_teacher_inside(tiny, tmp_path):
    first, model = losses(tiny, tmp_path / "first")
    with pytest.raises(FileExistsError, match="a model with other weights"):  # its adapter would be merged twice
        lm.recover(model, UnequalRows(), output_dir=tmp_path / "first", recipe=RECIPE, log_every=1)
    model.save_pretrained(tmp_path / "saved")
    model = lm.load(tmp_path / "saved")
    for objective in ({"distillation": 0.5}, {"transfer_steps": 2}):
        with pytest.raises(ValueError, match="need the teacher"):
            lm.recover(model, Rows(), output_dir=tmp_path / "a", recipe=dataclasses.replace(RECIPE, **objective))
    second = lm.recover(model, UnequalRows(), output_dir=tmp_path / "second", recipe=RECIPE, log_every=1)
    assert sum(loss for _, loss in second.losses) < sum(loss for _, loss in first.losses)


def test_a_stage_that_is_finished_is_not_trained_further(tiny, tmp_path):
    """Killed after the last checkpoint and before the adapter was written; and between transfer and the rest."""
    whole, model = losses(tiny, tmp_path / "run", transfer_steps=3)
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "adapter")
    again, same = losses(tiny, tmp_path / "run", transfer_steps=3)
    assert again.losses == whole.losses
    torch.testing.assert_close(same.state_dict(), model.state_dict(), rtol=0, atol=0)
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    again, same = losses(tiny, tmp_path / "run", transfer_steps=3)
    assert again.losses == whole.losses
    torch.testing.assert_close(same.state_dict(), model.state_dict(), rtol=0, atol=1e-6)


def test_a_setting_that_is_refused_leaves_no_folder(tiny, tmp_path):
    model = lm.linearize(tiny(), window=4)
    with pytest.raises(ValueError, match="batch_size = 4 is not a multiple of micro_batch_size x processes = 3 x 1"):
        lm.recover(model, Rows(), output_dir=tmp_path / "a", recipe=dataclasses.replace(RECIPE, micro_batch_size=3))
    assert not (tmp_path / "a").exists()


def test_a_damaged_adapter_leaves_the_model_alone(tiny, tmp_path):
    losses(tiny, tmp_path / "run")
    (tmp_path / "run" / "adapter" / "adapter_model.safetensors").write_bytes(b"half")
    torch.manual_seed(0)
    model = lm.linearize(tiny(), "lightnet", window=4)
    names = list(model.state_dict())
    with pytest.raises(OSError, match=r"deserializing.*delete .*result\.json.*last checkpoint"):
        lm.recover(model, UnequalRows(), output_dir=tmp_path / "run", recipe=RECIPE, log_every=1)
    assert list(model.state_dict()) == names
    assert not model.config.liger.get("recovered")


def test_a_half_written_log_line_is_dropped(tiny, tmp_path):
    whole, _ = losses(tiny, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(last_complete_checkpoint(tmp_path / "run" / "checkpoints"))
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(log.read_text()[:-20])
    assert losses(tiny, tmp_path / "run")[0].losses == whole.losses


@pytest.fixture
def adapter(tiny, tmp_path):
    """The folder of a teacher, and the adapter of its recovery; the recovered model."""
    tiny().save_pretrained(tmp_path / "teacher")
    model = lm.linearize(LlamaForCausalLM.from_pretrained(tmp_path / "teacher"), "hgrn2", window=4)
    lm.recover(model, Rows(), output_dir=tmp_path / "run", recipe=RECIPE)
    return tmp_path / "teacher", tmp_path / "run" / "adapter", model.eval()


def test_an_adapter_names_its_base_and_how_that_was_linearized(adapter):
    teacher, folder, _ = adapter
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(teacher)
    assert (config["liger"]["structure"], config["liger"]["window"]) == ("hgrn2", 4)
    card = (folder / "README.md").read_text()
    code = card.split("```python")[1].split("```")[0].replace("this folder", str(folder))
    scope = {}
    exec(code, scope)  # what it says is how it is loaded
    ids = torch.randint(2, 97, (1, 20))
    torch.testing.assert_close(scope["model"](ids).logits, adapter[2](ids).logits, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("error", "ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's, with any adapter
def test_an_adapter_is_loaded_on_a_linearized_model_without_noise(adapter):
    teacher, folder, recovered = adapter
    ids = torch.randint(2, 97, (1, 20))
    for load in (PeftModel.from_pretrained, lambda model, folder: model.load_adapter(folder) and model):
        model = lm.linearize(LlamaForCausalLM.from_pretrained(teacher), "hgrn2", window=4)
        logits = load(model, folder).eval()(ids).logits
        torch.testing.assert_close(logits, recovered(ids).logits, atol=1e-4, rtol=0)


def test_an_adapter_is_refused_by_the_softmax_model(adapter):
    """Else AutoModel would put it on softmax attention, and who evaluates it would measure the teacher."""
    teacher, folder, _ = adapter
    words = r"LlamaForCausalLM is not linearized.*adapter was trained on.*linearize\(.*structure='hgrn2', window=4"
    with pytest.raises(TypeError, match=words):
        PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(teacher), folder)
    with pytest.raises(TypeError, match=words):
        AutoModelForCausalLM.from_pretrained(folder)
    script = "import peft, sys, transformers as t; base = t.AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
    script += "peft.PeftModel.from_pretrained(base, sys.argv[2])"
    done = subprocess.run([sys.executable, "-c", script, teacher, folder], capture_output=True, text=True)
    assert done.returncode != 0  # where liger_mini was never imported
    assert "LIGER_LORA" in done.stderr


def test_an_adapter_warns_of_a_model_linearized_in_another_way(adapter):
    teacher, folder, recovered = adapter
    model = lm.linearize(LlamaForCausalLM.from_pretrained(teacher), "hgrn2", window=8)
    with pytest.warns(UserWarning, match="window: there 4, here 8"):
        PeftModel.from_pretrained(model, folder)
    with pytest.warns(UserWarning, match="recovered: there None, here True"):
        PeftModel.from_pretrained(recovered, folder)


def test_an_adapter_of_a_saved_linearized_model_names_that(tiny, tmp_path):
    lm.linearize(tiny(), window=4).save_pretrained(tmp_path / "linearized")
    lm.recover(lm.load(tmp_path / "linearized"), Rows(), output_dir=tmp_path / "run", recipe=RECIPE)
    folder = tmp_path / "run" / "adapter"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path / "linearized"
    )
    assert AutoModelForCausalLM.from_pretrained(folder).config.liger["window"] == 4
    assert f'lm.load("{tmp_path / "linearized"}")' in (folder / "README.md").read_text()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("in_full", [(), ("embed_tokens",), ("lm_head",)], ids=str)
def test_parameters_are_counted_and_tied_ones_stay_tied(tiny, tmp_path, tied, in_full):
    model = lm.linearize(tiny(tie_word_embeddings=tied), window=4)
    before, names = model.num_parameters(), set(model.state_dict())
    embedding = model.get_input_embeddings().weight.detach().clone()
    result = lm.recover(model, Rows(), output_dir=tmp_path / "run", recipe=RECIPE, train_in_full=in_full)
    assert result.parameters == model.num_parameters() == before
    assert result.parameters_added == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["parameters_added"] == 0
    assert set(model.state_dict()) == names
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert (model.get_output_embeddings().in_features, model.get_output_embeddings().out_features) == (32, 97)
    changed = not torch.equal(model.get_input_embeddings().weight, embedding)
    assert changed == (in_full == ("embed_tokens",) or (tied and bool(in_full)))
    ids = torch.randint(2, 97, (1, 20))
    expected = model.eval()(ids).logits
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(lm.load(tmp_path / "saved")(ids).logits, expected)
    torch.manual_seed(0)
    again = lm.linearize(tiny(tie_word_embeddings=tied), window=4)
    assert lm.recover(again, Rows(), output_dir=tmp_path / "run", recipe=RECIPE, train_in_full=in_full) == result
    torch.testing.assert_close(again.eval()(ids).logits, expected, atol=1e-5, rtol=0)


def test_a_result_of_an_older_version_is_read(tiny, tmp_path):
    whole, _ = losses(tiny, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result.pop("parameters_added") == 0
    (tmp_path / "result.json").write_text(json.dumps({**result, "parameters": 1}))
    assert losses(tiny, tmp_path)[0] == whole  # counted again


def test_a_model_that_carries_an_adapter_is_refused(tiny, tmp_path):
    model = lm.linearize(tiny(), window=4)
    model.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), adapter_name="mine")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(
        TypeError, match=r"carries PEFT's 'mine', which a recovery would throw away; merge.*merge_and_unload"
    ):
        lm.recover(model, Rows(), output_dir=tmp_path / "a", recipe=RECIPE)
    assert not (tmp_path / "a").exists()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("other", [LlamaModel, LlamaForSequenceClassification])
def test_a_model_without_a_head_over_the_vocabulary_is_refused(tiny, tmp_path, other):
    model = lm.linearize(other(tiny().config), window=4)
    with pytest.raises(TypeError, match=f"Liger{other.__name__} is no causal language model.*AutoModelForCausalLM"):
        lm.recover(model, Rows(), output_dir=tmp_path / "a", recipe=RECIPE)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("step", [4, 8], ids=["on a step that saves", "on the last step"])
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_spoils_a_checkpoint(tiny, tmp_path, step):
    model, calls = lm.linearize(tiny(), window=4), []

    def spoil(gradient):
        calls.append(gradient)
        return gradient * (float("nan") if len(calls) == step else 1.0)

    model.model.norm.register_forward_hook(lambda module, args, output: output.register_hook(spoil) and None)
    with pytest.raises(FloatingPointError, match=f"NaN or infinite at step {step}.*Lower the learning rate"):
        lm.recover(model, Rows(), output_dir=tmp_path, recipe=RECIPE, save_every=2, log_every=2)
    last = last_complete_checkpoint(tmp_path / "checkpoints")
    assert last.name == f"checkpoint-{step - 2}"
    assert all(x.isfinite().all() for x in load_file(last / "adapter_model.safetensors").values())
    assert not (tmp_path / "result.json").exists()


def test_a_model_with_nan_in_its_keys_is_told_so(tiny, tmp_path):
    model = lm.linearize(tiny(), window=4)
    model.model.embed_tokens.weight.data[5] = float("nan")
    with pytest.raises(ValueError, match=r"log_gate has NaN: the keys .* lower the learning rate"):
        lm.recover(model, Rows(), output_dir=tmp_path, recipe=RECIPE)


@pytest.mark.parametrize("room", [1_000, 5_200, 8_000, 12_000])
def test_a_full_disk_is_explained_and_the_run_goes_on_from_the_last_checkpoint(tiny, tmp_path, monkeypatch, room):
    """The system refuses to write more than `room` bytes of a file; Python, torch and safetensors each say it differently."""
    resource = pytest.importorskip("resource")
    torch.manual_seed(0)
    tiny().save_pretrained(tmp_path / "teacher")

    def run(name):
        model = lm.linearize(LlamaForCausalLM.from_pretrained(tmp_path / "teacher"), window=4)
        return lm.recover(model, Rows(), output_dir=tmp_path / name, recipe=RECIPE, save_every=2, log_every=1)

    save, limits = Trainer._save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def cramped(self, *args, **kwargs):
        if self.state.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            return save(self, *args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", cramped)
        with pytest.raises(OSError, match=r"could not write \(.*checkpoint-2\..*run the same again"):
            run("filled")
    assert run("filled").losses == run("whole").losses
