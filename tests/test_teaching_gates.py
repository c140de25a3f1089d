"""The figures of chapter 02 show the numbers they were given, in words too, and refuse what makes no sense."""

import math

import pytest
import torch

from liger_mini import gates
from liger_mini.teaching import widgets
from liger_mini.teaching.figures import gates as show
from liger_mini.teaching.figures.theme import alt_text


@pytest.fixture
def k():
    return torch.randn(2, 40, 2, 8, generator=torch.Generator().manual_seed(0))


def test_share_left_is_a_mean_of_products_of_gates(k):
    alpha = k.double().sigmoid()
    products = torch.stack([alpha[:, t + 1 : t + 6].prod(1) for t in range(35)], dim=1)
    torch.testing.assert_close(show.share_left(alpha.log(), 5), products.mean((0, 1)))
    assert (show.share_left(alpha.log(), 0) == 1).all()
    neutral = gates.sigmoid_gate(torch.zeros(1, 65, 1), 16)
    assert show.share_left(neutral, 64).item() == pytest.approx(0.5**4)


def test_share_left_weighs_by_what_was_written(k):
    log_gate = gates.sigmoid_gate(k, 4)
    only_first = torch.zeros_like(k)
    only_first[0, 0] = 1
    torch.testing.assert_close(show.share_left(log_gate, 3, only_first), log_gate[0, 1:4].double().sum(0).exp())
    with pytest.raises(ValueError, match=r"age = 40 tokens: with T = 40 tokens, allowed are 0 to 39"):
        show.share_left(log_gate, 40)
    with pytest.raises(ValueError, match="weight has shape"):
        show.share_left(log_gate, 3, only_first[:1])


def test_forgetting_shows_its_curves():
    figure = show.forgetting({"fast": [1, 0.5, 0.25], "slow": [1, 0.9, 0.81]}, [0, 1, 2], window=2)
    assert [list(trace.y) for trace in figure.data] == [[1, 0.5, 0.25], [1, 0.9, 0.81]]
    assert "After 2 tokens: fast 0.25; slow 0.81" in alt_text(figure)
    assert figure.layout.xaxis.title.text == "age (tokens)"
    assert figure.layout.yaxis.title.text == "share left"
    with pytest.raises(ValueError, match=r"curves\['fast'\] has 1 values, ages 2"):
        show.forgetting({"fast": [1]}, [0, 1])


def test_remembering_follows_both_handles(k):
    box = widgets.explore(
        lambda temper, lower_bound: show.remembering(k, temper=temper, lower_bound=lower_bound, window=8, oldest=32),
        temper=[1, 16, 256],
        lower_bound=[0.0, 0.5],
    )
    temper, lower_bound, view, words = box.children
    for tau, bound in ((16, 0.5), (256, 0.0), (1, 0.5), (1, 0.0)):
        temper.value, lower_bound.value = tau, bound
        expected = show.remembering(k, temper=tau, lower_bound=bound, window=8, oldest=32)
        for shown, drawn in zip(view.data, expected.data, strict=True):
            assert list(shown.y) == list(drawn.y)
        assert words.value == alt_text(expected)
        assert view.data[0].y[-1] == pytest.approx(((1 + bound) / 2) ** (32 / tau))
        real = (bound + (1 - bound) * k.double().sigmoid()) ** (1 / tau)
        assert view.data[1].y[1] == pytest.approx(real[:, 1:].mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temper": 0}, "temper = 0: allowed are numbers > 0"),
        ({"temper": math.inf}, "temper = inf"),
        ({"temper": 1, "lower_bound": 1.0}, "lower_bound = 1.0: allowed are"),
        ({"temper": 1, "oldest": 99}, "with T = 40 tokens"),
    ],
)
def test_remembering_refuses(k, setting, message):
    with pytest.raises(ValueError, match=message):
        show.remembering(k, **setting)


def test_gate_distributions_count_every_gate(k):
    alpha = k.sigmoid()
    panels = {f"layer {n}": {"head 0": alpha[:, :, 0], "head 1": alpha[:, :, 1] ** (n + 1)} for n in range(3)}
    figure = show.gate_distributions(panels, bins=10)
    assert len(figure.data) == 6
    for trace in figure.data:
        assert sum(trace.y) == pytest.approx(1)
    share = ((alpha[:, :, 0] >= 0.5) & (alpha[:, :, 0] < 0.6)).float().mean().item()
    assert figure.data[0].y[5] == pytest.approx(share, abs=1e-6)
    assert figure.data[0].x[5] == pytest.approx(0.55)
    assert figure.layout.yaxis.title.text == "share of gates"
    assert figure.layout.xaxis3.title.text == "gate α"
    low = alpha[:, :, 0].flatten().quantile(0.05).item()
    assert f"layer 0: head 0 from {low:.2f}" in alt_text(figure)
    with pytest.raises(ValueError, match=r"pass α = log_gate\.exp\(\)"):
        show.gate_distributions({"layer 0": {"head 0": alpha.log()}})
    with pytest.raises(ValueError, match="must be the same"):
        show.gate_distributions({"layer 0": {"head 0": alpha}, "layer 1": {"head 1": alpha}})


def test_pooled_spread_shows_its_lines():
    figure = show.pooled_spread({"layer 0": [2.0, 1.0, 0.5]}, [64, 8, 1])
    assert list(figure.data[0].x) == [64, 8, 1]
    assert list(figure.data[0].y) == [2.0, 1.0, 0.5]
    assert "layer 0 from 2.00 to 0.50" in alt_text(figure)
    assert figure.layout.yaxis.title.text == "standard deviation of P"
    with pytest.raises(ValueError, match="widths 2; they must be as many"):
        show.pooled_spread({"layer 0": [2.0]}, [64, 1])


def test_gates_over_tokens_sorts_channels_and_names_tokens():
    alpha = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.3, 0.5]])  # [T, K]
    figure = show.gates_over_tokens(alpha, ["Ada", "lives"])
    assert [list(row) for row in figure.data[0].z] == [[0.1, 0.3], [0.5, 0.5], [0.9, 0.8]]
    assert list(figure.layout.xaxis.ticktext) == ["Ada", "lives"]
    assert figure.layout.yaxis.title.text == "channel (by mean gate)"
    assert f"over tokens is {alpha.std(0).mean():.2f}" in alt_text(figure)
    with pytest.raises(ValueError, match=r"must be \[T, K\] with T = 3"):
        show.gates_over_tokens(alpha, ["Ada", "lives", "in"])


def test_variance_parts_find_the_cause_that_was_put_in():
    draw = torch.Generator().manual_seed(0)
    token = torch.randint(0, 12, (8, 200), generator=draw)
    kind = token % 3
    normal = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    causes = {
        "channel": normal(2, 8).expand(8, 200, 2, 8),
        "kind of token": normal(3, 2, 8)[kind],
        "context": normal(8, 200, 2, 8),
    }
    for cause, P in causes.items():
        shares = show.variance_parts(P, token, kind)
        assert sum(shares.values()) == pytest.approx(1)
        assert max(shares, key=shares.get) == cause
    assert show.variance_parts(normal(12, 2, 8)[token], token, kind)["context"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="token and kind must have P's shape"):
        show.variance_parts(causes["context"], token[:4], kind)


def test_variance_bars_stack_every_part():
    parts = {"layer 0": dict(zip(show.PARTS, (0.5, 0.25, 0.125, 0.125)))}
    figure = show.variance_bars(parts)
    assert [(trace.name, trace.y[0]) for trace in figure.data] == list(parts["layer 0"].items())
    assert figure.layout.barmode == "stack"
    assert figure.layout.yaxis.title.text == "share of the variance of P"
    assert "layer 0: channel 0.50, kind of token 0.25" in alt_text(figure)
    with pytest.raises(ValueError, match="'layer 1' lacks the part 'context'"):
        show.variance_bars({"layer 1": {"channel": 1.0, "kind of token": 0.0, "which token": 0.0}})
