"""Several processes have the losses of one: DDP with torchrun, FSDP with our configuration file, over gloo on a CPU.

Another order of summing is all that may differ.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import liger_mini as lm
from liger_mini.support.paths import data_dir

from .test_recover import FRUGAL, RECIPE, UnequalRows

SCRIPT = textwrap.dedent(
    """
    import json, os, sys
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        make = AcceleratorState.__init__

        def make_with_fsdp(self, *args, **kwargs):
            # accelerate leaves FSDP to processes with a GPU each; torch's FSDP itself shards on a CPU as well
            PartialState(cpu=True)
            if not AcceleratorState._shared_state:
                PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
            make(self, *args, **kwargs)

        AcceleratorState.__init__ = make_with_fsdp

    import liger_mini as lm
    from tests.test_distributed import RECIPE, UnequalRows
    from transformers import LlamaForCausalLM
    from liger_mini.recovery import Recipe

    folder, output_dir, recipe = sys.argv[1:]
    model = lm.linearize(LlamaForCausalLM.from_pretrained(folder), window=4)
    lm.recover(model, UnequalRows(), output_dir=output_dir, recipe=Recipe(**json.loads(recipe)), save_every=4, log_every=1)
    sharded = any(hasattr(p, "placements") for p in model.parameters())
    assert sharded == (os.environ.get("ACCELERATE_USE_FSDP") == "true")
    """
)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone"]
FSDP = ["-m", "accelerate.commands.launch", "--config_file", str(data_dir() / "accelerate" / "fsdp-8b.yaml")]
FSDP += ["--mixed_precision", "no", "--num_processes", "2"]
OBJECTIVES = {
    "next token": {},
    "distillation": {"distillation": 0.5},
    "transfer": {"transfer_steps": 4},
    "an epoch that does not divide": {"steps": None, "epochs": 1, "batch_size": 6, "micro_batch_size": 1},
    "in micro-batches": {"distillation": 0.5, "micro_batch_size": 1, "gradient_checkpointing": True},
}


@pytest.fixture
def run(tiny, tmp_path):
    """Recover a small saved teacher in a process group of its own; returns the finished process."""
    tiny().save_pretrained(tmp_path / "teacher")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    def launch(how, name, **changes):
        recipe = dataclasses.asdict(dataclasses.replace(RECIPE, **changes))
        return subprocess.run(
            [sys.executable, *how, script, tmp_path / "teacher", tmp_path / name, json.dumps(recipe)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"},
        )

    return launch


def result(done, folder):
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


def losses(folder, stage="."):
    return [json.loads(line)["loss"] for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_have_the_losses_of_one(run, tmp_path, objective):
    """DDP, with rows of unequal length: half the batch each, and different numbers of tokens."""
    one, two = (
        result(run([*TORCHRUN, f"--nproc-per-node={n}"], str(n), **OBJECTIVES[objective]), tmp_path / str(n))
        for n in (1, 2)
    )
    assert len(one["losses"]) == (10 if "epochs" in OBJECTIVES[objective] else 8)
    assert [loss for _, loss in two["losses"]] == pytest.approx([loss for _, loss in one["losses"]], rel=1e-4)
    assert two["tokens"] == one["tokens"]
    if "transfer_steps" in OBJECTIVES[objective]:
        assert losses(tmp_path / "2", "transfer") == pytest.approx(losses(tmp_path / "1", "transfer"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["next token", "in micro-batches"])
def test_fsdp_has_the_losses_of_one_process_goes_on_and_is_merged_by_one(run, tiny, tmp_path, objective):
    """The file for 8B, with two processes: sharded weights, a resume, an adapter that one process merges."""
    changes, folder = OBJECTIVES[objective], tmp_path / "fsdp"
    one = result(run([], "one", **changes), tmp_path / "one")
    two = result(run(FSDP, "fsdp", **changes), folder)
    assert [loss for _, loss in two["losses"]] == pytest.approx([loss for _, loss in one["losses"]], rel=1e-4)
    assert not two["merged"]
    for counted in ("parameters", "parameters_added", "parameters_trained"):
        assert two[counted] == one[counted]
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "teacher")
    shutil.rmtree(folder / "checkpoints" / "checkpoint-8")
    (folder / "result.json").unlink()
    again = result(run(FSDP, "fsdp", **{**changes, **FRUGAL}), folder)  # in smaller pieces
    assert [loss for _, loss in again["losses"]] == pytest.approx([loss for _, loss in two["losses"]], rel=1e-5)
    merged = {}
    for name in ("one", "fsdp"):
        model = lm.linearize(type(tiny()).from_pretrained(tmp_path / "teacher"), window=4)
        recipe = dataclasses.replace(RECIPE, **changes)
        assert lm.recover(model, UnequalRows(), output_dir=tmp_path / name, recipe=recipe).merged
        merged[name] = model.state_dict()
    torch.testing.assert_close(merged["fsdp"], merged["one"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_attention_transfer_under_fsdp_is_refused(run):
    done = run(FSDP, "fsdp", transfer_steps=4)
    assert done.returncode != 0
    assert "attention transfer does not run under FSDP" in done.stderr


TENSOR_PARALLEL = textwrap.dedent(
    """
    import sys, torch
    from pathlib import Path
    import liger_mini as lm
    from transformers import AutoModelForCausalLM, DynamicCache
    from transformers.distributed import DistributedConfig

    torch.distributed.init_process_group("gloo")
    ids = torch.randint(2, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        whole = AutoModelForCausalLM.from_pretrained(folder).eval()
        how = DistributedConfig(tp_size=2, tp_plan="auto")
        spread = AutoModelForCausalLM.from_pretrained(folder, distributed_config=how).eval()
        assert spread.model.layers[0].self_attn.k_proj.weight.to_local().shape[0] == 8, "not spread"
        with torch.no_grad():
            expected, logits = (model(ids, use_cache=False).logits for model in (whole, spread))
            cache = DynamicCache(config=spread.config)
            steps = [spread(ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits for t in range(20)]
        for found in (logits, torch.cat(steps, 1)):
            assert (found - expected).abs().max() < 2e-4, (folder.name, (found - expected).abs().max())
    """
)


@pytest.mark.slow
def test_tensor_parallelism_gives_the_numbers_of_one_process(tiny, tmp_path):
    """Key heads spread over two processes: every structure, hybrids and sinks; some decays go by a head's number."""
    per_head = [[1.0, 64.0], [2.0, 128.0], [4.0, 0.5]]
    others = {"hybrid": {"softmax_every": 2}, "half-lives per head": {"temper": per_head}, "sinks": {"sinks": 3}}
    for name, settings in {**{name: {"structure": name} for name in lm.structures}, **others}.items():
        torch.manual_seed(0)
        lm.linearize(tiny(), window=4, **settings).save_pretrained(tmp_path / name)
    script = tmp_path.with_suffix(".py")
    script.write_text(TENSOR_PARALLEL)
    command = [sys.executable, *TORCHRUN, "--nproc-per-node", "2", str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
