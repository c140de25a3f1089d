"""temper="teacher": the half-lives are the mean distances at which the teacher's own attention looks back."""

import pytest
import torch
import torch.nn.functional as F

import liger_mini as lm
from liger_mini import gates
from liger_mini.commands import main
from liger_mini.convert import Settings
from liger_mini.evaluation import look_back
from liger_mini.structures import get_structure

from .conftest import FAMILIES

ROWS = [list(range(2, 42)), list(range(90, 60, -1)), [7, 9]]  # of unequal length
DIGITS = 1e-3  # of the four that are kept


def by_definition(model, rows):
    """Σ_j w_ij (i - j), the mean over all queries of all rows and over the query heads of a key head."""
    model.set_attn_implementation("eager")
    sums = 0
    for row in rows:
        weights = torch.stack(model(torch.tensor([row]), output_attentions=True).attentions)  # [layers, 1, H, T, T]
        i = torch.arange(len(row))
        sums = sums + (weights * (i[:, None] - i)).sum((1, 3, 4))
    heads = model.config.num_key_value_heads
    return (sums / sum(map(len, rows))).unflatten(1, (heads, -1)).mean(2)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_is_the_mean_distance_by_definition(tiny, family):
    model = tiny(family).train()
    attention = model.config._attn_implementation
    told = torch.tensor(look_back(model, ROWS))
    assert model.config._attn_implementation == attention
    assert model.training
    torch.testing.assert_close(told, by_definition(model.eval(), ROWS), rtol=DIGITS, atol=0)


def test_uniform_attention_looks_back_half_of_what_there_is(tiny):
    """All weights of query i are 1 / (i + 1), so it looks i / 2 tokens back, and T queries (T - 1) / 4 on average."""
    model = tiny()
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
    told = look_back(model, torch.randint(2, 97, (3, 41)))
    assert told == ((10.0, 10.0),) * 3
    told = look_back(model, [[5] * 41, [5] * 21])
    assert told == ((pytest.approx((41 * 10 + 21 * 5) / 62, rel=DIGITS),) * 2,) * 3


def test_the_teachers_own_window_counts(tiny):
    wide, narrow = tiny("mistral"), tiny("mistral", sliding_window=4)
    narrow.load_state_dict(wide.state_dict())
    assert torch.tensor(look_back(wide, ROWS)).max() > 4
    assert torch.tensor(look_back(narrow, ROWS)).max() < 4


@pytest.mark.parametrize("structure", [name for name, s in lm.structures.items() if s.temper is not None])
def test_the_gates_have_these_half_lives(tiny, structure):
    """A neutral gate of each layer and key head leaves half after its own number of tokens."""
    model = tiny()
    told = look_back(model, ROWS)
    lm.linearize(model, structure, temper="teacher", sample=ROWS)
    assert Settings.of(model.config.liger).temper == told
    for layer, half_lives in zip(model.model.layers, told):
        log_gate = layer.self_attn.structure.log_gate(torch.zeros(1, 1, 2, 8))
        log_gate = log_gate.reshape(2, -1)
        for head, half_life in enumerate(half_lives):
            one = get_structure(structure, half_life).log_gate(torch.zeros(1, 1, 1, 8)).reshape(1, -1)
            torch.testing.assert_close(log_gate[head : head + 1], one)
    assert len({number for layer in told for number in layer}) == 6  # all differ, so a mixed-up head would show


def test_half_lives_can_be_given_as_numbers(tiny):
    told = [[3.0, 200.0], [1.5, 16.0], [0.5, 7.0]]
    model, ids = lm.linearize(tiny(), temper=told), torch.randint(2, 97, (1, 30))
    k = torch.randn(1, 5, 2, 8)
    expected = F.logsigmoid(k) / torch.tensor([3.0, 200.0]).reshape(2, 1)
    torch.testing.assert_close(model.model.layers[0].self_attn.structure.log_gate(k), expected)
    other = lm.linearize(tiny(), temper=tuple(map(tuple, told)))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(ids).logits, other(ids).logits)


def test_float64_keys_keep_their_precision():
    structure = get_structure("gla", (3.0, 1 / 3))
    k = torch.randn(1, 4, 2, 8, dtype=torch.float64)
    expected = F.logsigmoid(k) / torch.tensor([3.0, 1 / 3], dtype=torch.float64).reshape(2, 1)
    torch.testing.assert_close(structure.log_gate(k), expected, rtol=1e-14, atol=0)
    assert gates.sigmoid_gate(k, 2.0).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"temper": "teacher"}, "temper = 'teacher' and sample = None.*both or neither"),
        ({"sample": ROWS}, "temper = None and sample = given"),
        ({"temper": 16, "sample": ROWS}, "temper = 16 and sample = given"),
        ({"structure": "lightnet", "temper": "teacher", "sample": ROWS}, "'lightnet' has no temper"),
        ({"structure": "deltanet", "temper": [[1.0, 2.0]] * 3}, "'deltanet' has no temper"),
        ({"temper": "student", "sample": ROWS}, "temper = 'student'"),
        ({"temper": "teacher", "sample": []}, "no rows"),
        ({"temper": "teacher", "sample": [[3]]}, "row 0 of the sample has 1 tokens; allowed are 2 to"),
        (
            {"temper": "teacher", "sample": [[3, 4], [3, 97]]},
            "row 1 of the sample holds the token .*97; allowed are 0 to 96",
        ),
        ({"temper": "teacher", "sample": [[3, -1]]}, "holds the token -1"),
        ({"temper": "teacher", "sample": [[0.5, 1.5]]}, "row 0 of the sample is of torch.float32"),
        ({"temper": "teacher", "sample": [{"input_ids": [3, 4]}]}, r'is a dict and not .*row\["input_ids"\]'),
        ({"temper": "teacher", "sample": [3, 4, 5]}, r"of shape \[\]; needed is one list"),
        ({"temper": [[1.0, 2.0]]}, "half-lives for 1 layers .*the model has 3 of 2"),
        ({"temper": [[1.0]] * 3}, r"of \[1\] key heads"),
        ({"temper": [[1.0, 0.0]] * 3}, "temper = .*allowed are numbers > 0"),
        ({"temper": [[1.0, True]] * 3}, "temper = .*allowed are numbers > 0"),
        ({"temper": [1.0, 2.0]}, "as a list it has one list of half-lives per layer"),
        ({"temper": []}, "as a list it has one list"),
    ],
)
def test_bad_input_leaves_the_model_alone(tiny, arguments, words):
    model = tiny()
    with pytest.raises(ValueError, match=words):
        lm.linearize(model, **arguments)
    assert type(model).__name__ == "LlamaForCausalLM"


def test_a_linearized_model_has_no_teacher_to_watch(tiny):
    model = lm.linearize(tiny())
    with pytest.raises(ValueError, match="linearized already"):
        lm.linearize(model, temper="teacher", sample=ROWS)


def test_a_structure_of_two_half_lives_wants_two_heads():
    with pytest.raises(ValueError, match="temper has 2 half-lives, and the layer 3 key heads"):
        get_structure("gla", (1.0, 2.0)).log_gate(torch.zeros(1, 1, 3, 8))


def test_it_works_from_a_shell(tiny, tmp_path, capsys):
    from liger_mini.support.paths import data_dir

    text = tmp_path / "text.txt"
    text.write_text("Anna lives in Paris. Where does Anna live? Anna lives in Paris. " * 20)
    teacher, folder = str(data_dir() / "teacher"), tmp_path / "linear"
    convert = ["convert", "--model", teacher, "--structure", "gated_deltanet", "--window", "16", "--out", str(folder)]
    assert main([*convert, "--temper", "teacher", "--length", "128"]) == 2
    assert "both or neither" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*convert, "--temper", "teachers"])
    assert "argument --temper: invalid float value: 'teachers'" in capsys.readouterr().err
    assert main([*convert, "--temper", "teacher", "--sample", str(text), "--length", "128"]) == 0
    temper = lm.load(folder).config.liger["temper"]
    assert [len(layer) for layer in temper] == [2, 2, 2, 2]
    assert "tokens, one per key head" in (folder / "README.md").read_text()
    recover = ["recover", "--model", str(folder), "--data", "tinyworld", "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main([*recover, "--sample", str(text)]) == 2
    assert "no teacher to watch" in capsys.readouterr().err
