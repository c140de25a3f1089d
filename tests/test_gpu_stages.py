"""`make gpu` rehearsed without a GPU: its commands exist, and its stages run, tiny, with Triton's interpreter."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from liger_mini.commands import parser
from liger_mini.experiments import benchmark, races, twins

ROOT = Path(__file__).parent.parent
RESULTS = (ROOT / "book" / "results.ipynb").read_text("utf-8")


def stages():
    """What `make gpu` would run where the packages are installed and no index is to be had, command by command."""
    dry = ["make", "--dry-run", "gpu", "RUN=python3", "DEV="]
    told = subprocess.run(dry, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [shlex.split(line) for line in told.splitlines() if not line.startswith("make")]


def test_every_command_is_one_and_the_page_of_results_shows_what_it_writes():
    written = set()
    for command in stages():
        if command[:3] == ["python3", "-m", "liger_mini"]:
            options = parser().parse_args(command[3:])
            written.add(Path(getattr(options, "output", "")).name)
        elif command[0] == "cp":
            written.add(Path(command[-1]).name)
        else:
            assert command[:3] == ["python3", "-m", "pytest"]
    named = re.search(r"on_gpu = .*?for name in \((.*?)\)", RESULTS).group(1)
    assert {f"{name}-gpu.json" for name in re.findall(r"(\w+)", named)} == written - {""}


def test_the_kernels_tests_are_all_among_the_stages():
    """By kernel, and one stage for whatever names none of them."""
    *kernels, others = [command[command.index("-k") + 1] for command in stages() if "-k" in command]
    assert set(kernels) == {"diagonal", "scalar", "slots", "delta", "window"}
    assert others == " and ".join(f"not {name}" for name in kernels)


@pytest.fixture
def tiny(monkeypatch):
    """Triton beside the others, as on a GPU, and everything once."""
    monkeypatch.setattr(races, "forms", lambda device: (*races.FORMS, "triton"))
    monkeypatch.setattr(races, "TOKENS", 1)
    monkeypatch.setattr(races, "BUDGET", 0)
    monkeypatch.setattr(races, "DTYPES", (torch.bfloat16,))
    turns = races.in_turns
    monkeypatch.setattr(races, "in_turns", lambda runs, repeats: turns(runs, repeats=1))


@pytest.mark.slow
def test_layer_prefill_and_decode(tmp_path, monkeypatch, tiny):
    monkeypatch.delitem(races.MODELS, "SmolLM2")
    monkeypatch.delitem(races.DECODING, "SmolLM2")
    monkeypatch.setattr(races, "_flex", lambda *inputs: inputs[0])  # compiled for a minute
    rows = races.run(tmp_path / "races.json", ("layer", "prefill", "decode"), [20])["rows"]
    reasons = {row["contestant"]: row["reason"] for row in rows if "reason" in row}
    assert set(reasons) <= {"FlexAttention, the window"}
    triton = {(row["part"], row["direction"]) for row in rows if row["contestant"].endswith("triton")}
    assert triton == {
        ("layer", "forward"),
        ("layer", "forward + backward"),
        ("prefill", "forward"),
        ("decode", "forward"),
    }


def test_a_kernel_that_was_timed_is_not_timed_again():
    timed, kept = [], {}

    def once(name, measure):
        if len(timed) == 2 and name not in kept:
            raise KeyboardInterrupt
        return kept.setdefault(name, measure()) if name not in kept else kept[name]

    def milliseconds(run):
        timed.append(run)
        return [1.0] * 3

    how = {"tokens": 16, "heads": 1, "width": 16, "device": "cpu", "milliseconds": milliseconds}
    with pytest.raises(KeyboardInterrupt):
        benchmark.kernels((16,), **how, once=once)
    assert len(kept) == 1  # forward, and forward with backward
    first = dict(kept)
    rows = benchmark.kernels((16,), **how, once=lambda name, measure: first.pop(name, None) or measure())
    assert not first
    assert len(timed) == 2 * len(rows)


@pytest.mark.slow
def test_twins(tmp_path):
    """Chunked and Triton, two steps: the losses of both agree, and a second call trains nothing again."""
    how = {"steps": 2, "length": 16, "structures": ["gla"], "forms": twins.FORMS["cuda"], "batch_size": 1}
    record = twins.run(tmp_path / "twins.json", **how)
    first, second = record["rows"]
    assert [row["form"] for row in (first, second)] == ["chunked", "triton"]
    assert len(first["losses"]) == len(second["losses"]) == 2
    assert second["largest_difference"] == max(abs(x - y) for x, y in zip(first["losses"], second["losses"])) < 1e-4
    assert second["difference_of_the_last"] == second["losses"][-1] - first["losses"][-1]
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("adapter/adapter_model.safetensors")}
    assert len(written) == 2
    assert twins.run(tmp_path / "twins.json", **how)["rows"] == record["rows"]
    assert written == {path: path.stat().st_mtime_ns for path in written}
