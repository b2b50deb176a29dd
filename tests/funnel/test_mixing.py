"""Fixed Share against a float64 twin, its bound, and its weights at the edges."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from funnel.mixing import FixedShare, mixed, mixed_losses, weights_of

CPU = torch.device("cpu")
ALL = torch.ones(5, dtype=torch.bool)
KEEP = torch.tensor(True)
Floats = npt.NDArray[np.float64]


def twin(weights: Floats, losses: Floats, n: int, rate: float, switch_rate: float) -> Floats:
    """One update of Herbster & Warmuth in the linear domain, float64."""
    alpha = 1 - (1 - switch_rate) ** n
    weights = weights * np.exp(-rate * (losses - losses.min()))
    weights /= weights.sum()
    return (1 - alpha) * weights + alpha / len(weights)


@pytest.mark.parametrize(("rate", "switch_rate"), [(0.2, 1e-3), (1.0, 0.01), (0.0, 0.1)])
def test_weights_are_those_of_a_float64_twin(rate: float, switch_rate: float) -> None:
    share, expected = FixedShare(5, CPU, rate, switch_rate), np.full(5, 0.2)
    rng = np.random.default_rng(0)
    for t in range(200):
        n = int(rng.integers(1, 200))
        losses = n * rng.exponential(size=5) * (np.arange(5) != t // 40)
        expected = twin(expected, losses, n, rate, switch_rate)
        share.update(torch.tensor(losses, dtype=torch.float32), n, ALL, KEEP)
        weights = share.log_weights.exp()
        np.testing.assert_allclose(weights.numpy(), expected, rtol=2e-4)
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)


def test_without_shares_it_is_bayes_rule() -> None:
    share = FixedShare(5, CPU, rate=1.0, switch_rate=0.0)
    losses = torch.rand(30, 5)
    for row in losses:
        share.update(row, 1, ALL, KEEP)
    torch.testing.assert_close(share.log_weights, (-losses.sum(dim=0)).log_softmax(dim=0))


def test_the_mixture_is_the_weighted_mean_of_probabilities() -> None:
    log_weights = torch.randn(5).log_softmax(dim=0)
    probabilities = torch.randn(5, 8, 3).softmax(dim=-1)
    labels = torch.arange(8) % 3
    healthy = torch.tensor([True, True, False, True, True])
    weights = np.where(healthy, log_weights.double().exp(), 0.0)
    weights /= weights.sum()
    expected = np.einsum("k,knc->nc", weights, probabilities.double().numpy())
    losses = -probabilities.log().gather(-1, labels[:, None].expand(5, 8, 1))[..., 0]
    losses[2], probabilities[2] = torch.nan, torch.nan
    np.testing.assert_allclose(weights_of(log_weights, healthy), weights, rtol=1e-5)
    np.testing.assert_allclose(mixed(log_weights, probabilities, healthy), expected, rtol=1e-5)
    np.testing.assert_allclose(
        mixed_losses(log_weights, losses, healthy), -np.log(expected[range(8), labels]), rtol=1e-5
    )


def test_losses_of_hundreds_of_nats_do_not_underflow() -> None:
    losses = torch.tensor([[500.0], [600.0]])
    found = mixed_losses(torch.tensor([0.5, 0.5]).log(), losses, torch.tensor([True, True]))
    assert float(found) == pytest.approx(500 + math.log(2), rel=1e-6)


@pytest.mark.parametrize("switches", [0, 3, 9])
def test_the_total_loss_is_within_the_bound_of_the_best_sequence_of_experts(switches: int) -> None:
    """Theorem 7 of Herbster & Warmuth, for the log loss at η = 1."""
    examples, experts, switch_rate = 1000, 5, 0.01
    rng = np.random.default_rng(switches)
    best = np.repeat(np.arange(switches + 1) % experts, -(-examples // (switches + 1)))[:examples]
    share = FixedShare(experts, CPU, rate=1.0, switch_rate=switch_rate)
    losses = rng.exponential(2.0, size=(examples, experts))
    losses[np.arange(examples), best] = rng.exponential(0.3, size=examples)
    total = 0.0
    for row in torch.tensor(losses, dtype=torch.float32):
        total += float(mixed_losses(share.log_weights, row[:, None], ALL))
        share.update(row, 1, ALL, KEEP)
    regret = (
        math.log(experts)
        + switches * math.log(experts / switch_rate)
        - (examples - 1 - switches) * math.log(1 - switch_rate)
    )
    assert total <= losses[np.arange(examples), best].sum() + regret + 1e-2


def test_a_stream_counts_the_same_however_it_is_cut() -> None:
    whole, cut = FixedShare(5, CPU), FixedShare(5, CPU)
    losses = torch.tensor([3.0, 3.1, 2.9, 3.0, 3.0])
    whole.update(10 * losses, 100, ALL, KEEP)
    for _ in range(10):
        cut.update(losses, 10, ALL, KEEP)
    torch.testing.assert_close(whole.log_weights, cut.log_weights, rtol=0.02, atol=0)


def test_an_expert_that_was_out_comes_back() -> None:
    share = FixedShare(5, CPU)
    for losses in ([0.0, 500.0] + [500.0] * 3, [500.0, 0.0] + [500.0] * 3):
        for _ in range(20):
            share.update(torch.tensor(losses), 100, ALL, KEEP)
        assert share.log_weights.isfinite().all()
    assert int(share.log_weights.argmax()) == 1
    assert float(share.log_weights[1].exp()) > 0.8


def test_weights_stay_where_a_batch_is_not_kept() -> None:
    share = FixedShare(5, CPU)
    share.update(torch.full((5,), torch.nan), 100, ~ALL, torch.tensor(False))
    assert torch.equal(share.log_weights, torch.full((5,), -math.log(5)))
