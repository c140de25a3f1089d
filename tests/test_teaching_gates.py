"""What the figures of chapter 02 compute: the share left, histograms, the parts of a variance."""

import pytest
import torch

from liger_mini import gates
from liger_mini.teaching import counting
from liger_mini.teaching.figures import gates as show
from liger_mini.teaching.figures.theme import alt_text


@pytest.fixture
def k():
    return torch.randn(2, 40, 2, 8, generator=torch.Generator().manual_seed(0))


def test_share_left_is_a_mean_of_products_of_gates(k):
    alpha = k.double().sigmoid()
    products = torch.stack([alpha[:, t + 1 : t + 6].prod(1) for t in range(35)], dim=1)
    torch.testing.assert_close(counting.share_left(alpha.log(), 5), products.mean((0, 1)))
    assert (counting.share_left(alpha.log(), 0) == 1).all()
    neutral = gates.sigmoid_gate(torch.zeros(1, 65, 1), 16)
    assert counting.share_left(neutral, 64).item() == pytest.approx(0.5**4)


def test_share_left_weighs_by_what_was_written(k):
    log_gate = gates.sigmoid_gate(k, 4)
    only_first = torch.zeros_like(k)
    only_first[0, 0] = 1
    torch.testing.assert_close(counting.share_left(log_gate, 3, only_first), log_gate[0, 1:4].double().sum(0).exp())


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
        shares = counting.variance_parts(P, token, kind)
        assert sum(shares.values()) == pytest.approx(1)
        assert max(shares, key=shares.get) == cause
    assert counting.variance_parts(normal(12, 2, 8)[token], token, kind)["context"] == pytest.approx(0, abs=1e-9)
