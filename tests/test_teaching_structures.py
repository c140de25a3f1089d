"""The figures of chapter 03 show the numbers they were given, in words too, and refuse what makes no sense."""

import pytest
import torch

import liger_mini as lm
from liger_mini.teaching import widgets
from liger_mini.teaching.figures import structures as show
from liger_mini.teaching.figures.theme import alt_text


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def maps():
    q, k = normal(1, 12, 1, 8), normal(1, 12, 1, 8, seed=1)
    basis = torch.eye(12).reshape(1, 12, 1, 12)
    return {name: structure(q, k, basis)[0][0, :, 0] for name, structure in lm.structures.items()}


def test_attention_maps_divide_rows_by_their_sums(maps):
    chosen = {"gla": maps["gla"], "linear": maps["linear"]}
    figure = show.attention_maps(chosen)
    for trace, weights in zip(figure.data, chosen.values(), strict=True):
        shown = torch.tensor([list(row) for row in trace.z])
        torch.testing.assert_close(shown, weights / weights.sum(-1, keepdim=True), atol=6e-4, rtol=0)
    assert figure.layout.xaxis.title.text == "token s"
    assert figure.layout.yaxis.title.text == "token t"
    assert figure.layout.yaxis.autorange == "reversed"
    recent = maps["gla"][-1, -8:].sum() / maps["gla"][-1].sum()
    assert f"gla: the last token takes {recent:.2f} from the last 8 tokens" in alt_text(figure)
    assert f"its row sums to {maps['linear'][-1].sum():.3g}." in alt_text(figure)


def test_attention_maps_widget_shows_every_structure(maps):
    box = widgets.explore(lambda structure: show.attention_maps({structure: maps[structure]}), structure=list(maps))
    structure, view, words = box.children
    for name in (*list(maps)[::-1], "gsa"):
        structure.value = name
        expected = show.attention_maps({name: maps[name]})
        assert [list(row) for row in view.data[0].z] == [list(row) for row in expected.data[0].z]
        assert words.value == alt_text(expected)
        assert view.layout.annotations[0].text == name


def test_attention_maps_refuse(maps):
    with pytest.raises(ValueError, match=r"'b' has shape \(3, 4\); all must be \[T, T\] = \(12, 12\)"):
        show.attention_maps({"a": maps["gla"], "b": torch.ones(3, 4)})
    with pytest.raises(ValueError, match="'later' has negative weights, or looks ahead"):
        show.attention_maps({"later": torch.ones(3, 3)})
    with pytest.raises(ValueError, match="'negative' has negative weights"):
        show.attention_maps({"negative": -torch.eye(3)})


@pytest.fixture(scope="module")
def states():
    return {"sum": normal(20, 32, 64).cumsum(0), "average": normal(20, 32, 64, seed=1)}


def test_state_at_follows_both_controls(states):
    box = widgets.explore(
        lambda structure, t: show.state_at(states, structure, t), structure=list(states), t=[1, 7, 20]
    )
    structure, t, view, words = box.children
    for name, at in (("sum", 7), ("average", 20), ("average", 1), ("sum", 20)):
        structure.value, t.value = name, at
        expected = show.state_at(states, name, at)
        norms = states[name].flatten(1).norm(dim=1)
        assert list(view.data[1].y) == pytest.approx(norms.tolist())
        assert (view.data[2].x[0], view.data[2].y[0]) == (at, pytest.approx(norms[at - 1].item()))
        shown = torch.tensor([list(row) for row in view.data[0].z])
        assert shown.shape == (16, 16)
        assert shown.square().mean().item() == pytest.approx(states[name][at - 1].square().mean().item(), rel=0.01)
        block = states[name][at - 1, :2, :4].square().mean().sqrt().item()
        assert shown[0, 0].item() == pytest.approx(block, abs=1e-3)
        assert view.data[0].zmax == expected.data[0].zmax
        assert words.value == alt_text(expected)
        assert f"its norm is {norms[at - 1]:.2f} at t = {at}" in words.value
    assert view.layout.yaxis2.title.text == "norm"


@pytest.mark.parametrize(
    ("structure", "t", "message"),
    [("gla", 1, "allowed are 'sum', 'average'"), ("sum", 0, "t = 0: allowed are 1 to T = 20"), ("sum", 21, "t = 21")],
)
def test_state_at_refuses(states, structure, t, message):
    with pytest.raises(ValueError, match=message):
        show.state_at(states, structure, t)


def test_reset_curves_show_their_lines():
    figure = show.reset_curves({"gla": [1.0, 0.8, 0.4], "linear": [1.0, 1.0, 1.0]}, [0, 4, 16])
    assert [list(trace.x) for trace in figure.data] == [[0, 4, 16]] * 2
    assert [list(trace.y) for trace in figure.data] == [[1.0, 0.8, 0.4], [1.0, 1.0, 1.0]]
    assert "At strength 16: gla 0.40; linear 1.00" in alt_text(figure)
    assert figure.layout.yaxis.title.text == "share of the old fact left"
    with pytest.raises(ValueError, match="'gla' has 1 shares for 2 strengths"):
        show.reset_curves({"gla": [1.0]}, [0, 4])
