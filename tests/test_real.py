"""The experiment on a real model, rehearsed on the embedded teacher: its controls are what they say, and it resumes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from liger_mini import linearize
from liger_mini.evaluation import look_back
from liger_mini.experiments import load_teacher, real
from liger_mini.experiments.report import real_page
from liger_mini.recovery import Recipe

SMALL = {"length": 128, "rows": 3, "load": load_teacher}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    ways = ["teacher", "window 64 + sink", "window 16", "gated_deltanet, a tenth"]
    return real.run(tmp_path_factory.mktemp("real"), plan="untrained", ways=ways, **SMALL)


def test_a_window_over_everything_is_the_untouched_teacher(untrained):
    teacher = untrained["ways"]["teacher"]
    for text in ("pydocs", "pysource"):
        torch.testing.assert_close(teacher[text]["loss"], untrained["untouched"][text], atol=2e-5, rtol=0)
        assert max(teacher[text]["kl"]) < 1e-5
        assert min(teacher[text]["top1"]) == 1
        assert min(untrained["ways"]["window 16"][text]["kl"]) > 1e-3


def test_a_way_without_its_recurrence_is_its_window(untrained):
    way, window = untrained["ways"]["gated_deltanet, a tenth"], untrained["ways"]["window 64 + sink"]
    torch.testing.assert_close(way["branches"]["window only"], window["pydocs"]["loss"], atol=2e-5, rtol=0)
    assert way["pydocs"]["loss"] != window["pydocs"]["loss"]


def test_half_lives_are_told_by_the_teacher_and_kept(tmp_path):
    name = "hedgehog_deltanet, a tenth, half-lives told"
    told = real.run(tmp_path, plan="untrained", ways=[name], **SMALL)["ways"][name]["settings"]["temper"]
    teacher, tokenizer = load_teacher()
    rows = real.Documentation(tokenizer, real.TELLING_ROWS, length=SMALL["length"])
    assert told == [list(layer) for layer in look_back(teacher, [row["input_ids"] for row in rows])]


def test_the_report_says_where_each_way_stands(untrained):
    page = real_page(untrained, "window 64 + sink")
    ours, base = (torch.tensor(untrained["ways"][name]["pydocs"]["loss"]) for name in ("window 16", "window 64 + sink"))
    above = (ours - torch.tensor(untrained["untouched"]["pydocs"])).mean()
    sigmas = (ours - base).mean() / ((ours - base).std() / 3**0.5)
    assert f"window 16: {above:+.3f} above it ({sigmas:.1f} standard errors above window 64 + sink)." in page
    assert page.count("<table") == 2
    assert "<script" in page  # plotly.js is in it
    assert "http" not in page.split("<body>")[0]


def test_its_table_compares_row_by_row(untrained):
    table = real.table(untrained, "window 64 + sink", "pysource")
    rows = {row[0]: row for row in table.rows}
    assert rows["window 64 + sink"][2] == "+0.000 ± 0.000"
    a, b = (torch.tensor(untrained["ways"][name]["pysource"]["loss"]) for name in ("window 16", "window 64 + sink"))
    assert rows["window 16"][2] == f"{(a - b).mean():+.3f} ± {(a - b).std() / 3**0.5:.3f}"


@pytest.mark.slow
def test_training_is_the_same_for_all_and_goes_on_where_it_was(tmp_path, monkeypatch):
    ways, changes = ["teacher", "window 64 + sink"], {"steps": 2, "rank": 4}
    result = real.run(tmp_path, plan="screen", ways=ways, **changes, **SMALL)
    assert {way["tokens"] for way in result["ways"].values()} == {2 * 128}
    assert Recipe(**result["recipe"]).rank == 4
    assert result["ways"]["teacher"]["pydocs"]["loss"] != result["untouched"]["pydocs"]  # the ceiling learns, too
    real.keep(result, "window 64 + sink", tmp_path, tmp_path / "kept")
    made = json.loads((tmp_path / "kept" / "run.json").read_text("utf-8"))
    assert made["liger"]["sinks"] == 1
    kept = load_file(tmp_path / "kept" / "adapter_model.safetensors")
    trained = load_file(tmp_path / "window-64-sink" / "adapter" / "adapter_model.safetensors")
    assert {x.dtype for x in kept.values()} == {torch.bfloat16}
    assert all(torch.equal(x, trained[name].bfloat16()) for name, x in kept.items())
    (tmp_path / "window-64-sink.json").unlink()
    asked = []
    monkeypatch.setattr(
        real, "made", lambda load, name, *rest, once=real.made: asked.append(name) or once(load, name, *rest)
    )
    again = real.run(tmp_path, plan="screen", ways=ways, **changes, **SMALL)
    assert asked == ["window 64 + sink"]
    assert again["ways"] == json.loads(json.dumps(result["ways"]))
    with pytest.raises(FileExistsError):
        real.run(tmp_path, plan="screen", ways=ways, **{**changes, "steps": 3}, **SMALL)


def test_more_can_be_asked_of_a_way_without_making_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "ASKED", (("passkey", 60),))
    monkeypatch.setattr(real, "EDGES", (64, 128))
    ways = ["teacher", "window 16"]
    result = real.run(tmp_path, plan="untrained", ways=ways, measures=["text", "far"], **SMALL)
    monkeypatch.setattr(real, "made", None)  # asked again, nothing is made
    assert real.run(tmp_path, plan="untrained", ways=ways, measures=["far"], **SMALL)["ways"]["teacher"].keys() == {
        "far"
    }
    (edge, near, _), (_, farther, _) = result["ways"]["teacher"]["far"]["edges"]
    tokens = real.pydocs_tokens("heldout", load_teacher()[1])
    rows = [tokens[i * 128 : (i + 1) * 128] for i in range(real.FAR_ROWS)]
    whole = real.row_losses(load_teacher()[0], rows).mean().item()
    assert edge == 64
    assert (63 * near + 64 * farther) / 127 == pytest.approx(whole, abs=1e-5)
    assert real.far_table(result).rows[0][1] == f"{near:.3f} ± {result['ways']['teacher']['far']['edges'][0][2]:.3f}"


def test_recall_is_counted_by_text(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "ASKED", (("phone_book", 100),))
    answers = {"right": [1, 1, 1, 0, 0, 0], "text": [0, 0, 0, 1, 1, 1], "distance": [100] * 6, "chance": 0.25}
    table = real.recall_table({"ways": {"one": {"recall": {"phone_book, 100": answers}}}})
    assert table.rows == [["one", "0.50 ± 0.50"]]  # two texts, one all right and one all wrong


def test_chat_is_a_share_with_its_error_and_the_first_answer():
    asked = {"one": {"chat": {"right": [1, 1, 0, 0], "wrote": ["Paris.", "Rome.", "?", "?"]}}, "other": {}}
    assert real.chat_table({"ways": asked}).rows == [["one", "0.50 ± 0.29", "Paris."]]


def test_one_normaliser_is_one_average_over_everything():
    model, _ = load_teacher()
    window, T = 5, 23
    linearize(model, structure="linear", window=window, sinks=2, mix=(0.0, 1.0))
    real.one_normaliser(model)
    layer = real.liger_layers(model)[0]
    K, groups = layer.head_dim, model.config.num_attention_heads // model.config.num_key_value_heads
    torch.manual_seed(0)
    q = torch.randn(1, groups, T, K)
    k, v = torch.randn(2, 1, 1, T, K)
    still = torch.ones(1, T, K), torch.zeros(1, T, K)  # no rotation
    o = layer.mixed(q, k, v, still, None, None, None)
    phi_q, phi_k = q.softmax(-1), k.softmax(-1)
    for t in range(T):
        inside = [s for s in range(t + 1) if s > t - window or s < 2]
        weights = torch.stack(
            [
                ((q[0, :, t] @ k[0, 0, s]) / K**0.5).exp() if s in inside else K * phi_q[0, :, t] @ phi_k[0, 0, s]
                for s in range(t + 1)
            ],
            -1,
        )  # [H, t + 1]
        expected = weights @ v[0, 0, : t + 1] / weights.sum(-1, keepdim=True)
        torch.testing.assert_close(o[0, t], expected, atol=1e-5, rtol=1e-5)


def test_a_ramp_is_silent_while_the_window_sees_everything():
    model, _ = load_teacher()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        told = model(ids).logits
        linearize(model, structure="gla", window=16, mix=(1.0, 1.0))
        flat = model(ids).logits
        real.ramp(model)
        ramped = model(ids).logits
    torch.testing.assert_close(ramped[:, :16], told[:, :16], atol=2e-4, rtol=0)
    assert (flat[:, :16] - told[:, :16]).abs().max() > 0.1
    assert (ramped[:, 16:] - told[:, 16:]).abs().max() > 0.1


def test_what_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match="'untrained', 'screen', 'answers', 'recall', 'long'"):
        real.run(tmp_path, plan="scren")
    with pytest.raises(ValueError, match="'window 64 \\+ sink'"):
        real.run(tmp_path, ways=["window 65"])
    with pytest.raises(ValueError, match="'text', 'recall', 'far'"):
        real.run(tmp_path, measures=["txt"])
    with pytest.raises(ValueError, match="trains nothing, so steps cannot be changed"):
        real.run(tmp_path, steps=3)


@pytest.mark.slow
def test_a_plan_has_rows_of_its_own_and_losses_add_up_over_kinds_of_tokens(tmp_path, monkeypatch):
    """`recall` trains on phone books; new, near and far tokens together are the row."""
    made = []
    monkeypatch.setattr(
        real.PhoneBooks, "make", lambda self, dice, i, make=real.PhoneBooks.make: made.append(i) or make(self, dice, i)
    )
    changes = {"steps": 2, "rank": 4, "measures": ["text", "repeats"]}
    result = real.run(tmp_path, plan="recall", ways=["window 16 + sink"], **changes, **SMALL)
    assert set(made) == {0, 1}
    way = result["ways"]["window 16 + sink"]
    for text, rows in (("pydocs", way["pydocs"]["loss"]), ("pysource", way["pysource"]["loss"])):
        for i, loss in enumerate(rows):
            sums, counts = zip(*((sums[i], counts[i]) for sums, counts in way["repeats"][text].values()))
            assert sum(sums) / sum(counts) == pytest.approx(loss, abs=2e-5)
    table = real.repeats_table(result)
    assert [head.split(" (")[0] for head in table.head] == [
        "model",
        "new",
        "seen within 64 tokens",
        "seen before those",
    ]
