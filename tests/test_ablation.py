"""The ablation: every variant changes what it says, trains what it says, and a finished run is not repeated."""

import json

import pytest
import torch

import liger_mini as lm
from liger_mini.attention import liger_layers
from liger_mini.evaluation import HeldOut
from liger_mini.experiments import ablation
from liger_mini.experiments.variants import learned_features, random_gate

from .test_recover import RECIPE, Rows


def gates(model, ids):
    """The log-gates of the first layer, [B, T, H_kv, K]."""
    layer, seen = liger_layers(model)[0], []
    original = type(layer).recurrence

    def watch(self, q, k, v, *rest):
        o = original(self, q, k, v, *rest)
        seen.append(self.structure.log_gate(k.transpose(1, 2)))
        return o

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(type(layer), "recurrence", watch)
        model(ids)
    return seen[0]


def test_a_random_gate_does_not_read_the_key(tiny):
    ids = torch.randint(2, 97, (1, 12))
    model = lm.linearize(tiny(), window=4)
    k = model.model.layers[0].self_attn.k_proj
    for reads_key in (True, False):
        before = gates(model, ids)
        with torch.no_grad():
            k.weight.mul_(1.5)
        assert torch.equal(gates(model, ids), before) != reads_key
        if reads_key:
            random_gate(model)


def test_learned_features_that_are_the_identity_change_nothing(tiny):
    ids = torch.randint(2, 97, (1, 12))
    model = lm.linearize(tiny(), window=4)
    before, gate = model(ids).logits, gates(model, ids)
    learned_features(model)
    for layer in liger_layers(model):
        torch.nn.init.eye_(layer.q_features.weight)
        torch.nn.init.eye_(layer.k_features.weight)
    torch.testing.assert_close(model(ids).logits, before)
    torch.nn.init.normal_(liger_layers(model)[0].k_features.weight)
    assert (model(ids).logits - before).abs().max() > 1e-3
    assert torch.equal(gates(model, ids), gate)  # read off the key, not off its features


@pytest.mark.parametrize("name", ["random gate projection", "learned feature map"])
def test_the_new_modules_are_trained_in_full(tiny, tmp_path, name):
    variant = ablation.VARIANTS[name]
    model = lm.linearize(tiny(), window=4)
    variant.change(model)
    before = {n: p.clone() for n, p in model.named_parameters() if any(part in n for part in variant.train_in_full)}
    assert len(before) == 3 * len(variant.train_in_full)
    lm.recover(model, Rows(), output_dir=tmp_path, recipe=RECIPE, train_in_full=variant.train_in_full)
    after = dict(model.named_parameters())
    assert all(not torch.equal(after[n], p) for n, p in before.items())


SMALL = {"steps": 2, "batch_size": 2}


@pytest.mark.slow
def test_one_command_makes_the_table_and_goes_on_where_it_was(monkeypatch, tmp_path):
    monkeypatch.setattr(ablation, "HeldOut", lambda tokenizer: HeldOut(tokenizer, stories=2, documents=1))
    chosen = ["full", "no LoRA", "no recurrence"]
    first = ablation.run(tmp_path, seeds=(0, 1), variants=chosen, **SMALL)
    written = json.loads((tmp_path / "ablation.json").read_text())
    assert list(written["variants"]) == chosen
    assert len(written["variants"]["full"]["runs"]) == 2
    assert written["paper_perplexity"]["full"] == 2.96
    monkeypatch.setattr(ablation, "run_one", lambda *args: pytest.fail("a finished run was repeated"))
    assert ablation.run(tmp_path, seeds=(0, 1), variants=chosen, **SMALL)["variants"] == first["variants"]
    with pytest.raises(FileExistsError, match="holds another run"):
        ablation.run(tmp_path, table="memory", **SMALL)


@pytest.mark.slow
def test_the_memory_table_transfers_and_keeps_its_tempers(monkeypatch, tmp_path):
    monkeypatch.setattr(ablation, "HeldOut", lambda tokenizer: HeldOut(tokenizer, stories=2, documents=1))
    result = ablation.run(tmp_path, table="memory", seeds=(1,), variants=["hgrn2"], transfer_steps=3, **SMALL)
    assert result["variants"]["hgrn2"]["linearize"] == {"structure": "hgrn2", "temper": 16}
    run = json.loads((tmp_path / "hgrn2-1" / "run.json").read_text())
    assert run["liger"]["temper"] == 16
    assert run["rows"] == 3 * 2  # the longer of the two stages
    assert (run["recipe"]["rank"], run["recipe"]["seed"]) == (64, 1)


def test_an_unknown_table_or_variant_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown variants \['no luck'\]: allowed are 'full'"):
        ablation.run(tmp_path, variants=["no luck"])
    with pytest.raises(ValueError, match=r"unknown table 'chairs': allowed are 'paper', 'memory'"):
        ablation.run(tmp_path, table="chairs")


@pytest.mark.parametrize("table", ablation.TABLES)
def test_every_structure_is_in_the_tables(table):
    covered = {v.linearize.get("structure", "gla") for v in ablation.TABLES[table].variants.values()}
    assert covered == set(lm.structures)


def test_the_papers_lines_are_in_its_table():
    assert set(ablation.PAPER_PERPLEXITY) <= set(ablation.VARIANTS)
