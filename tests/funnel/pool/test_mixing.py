"""Fixed Share against a float64 twin, its bound, and its weights at the edges."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from funnel.pool.loss import CROSS_ENTROPY
from funnel.pool.mixing import (
    RATE_SWITCH_RATE,
    SWITCH_RATES,
    FixedShare,
    mixed,
    mixed_losses,
    weights_of,
)
from funnel.pool.pool import predicted

CPU = torch.device("cpu")
ALL = torch.ones(5, dtype=torch.bool)
KEEP = torch.tensor(True)
Floats = npt.NDArray[np.float64]


def shared(weights: Floats, switch_rate: float, n: int) -> Floats:
    alpha = 1 - (1 - switch_rate) ** n
    return (1 - alpha) * weights + alpha / weights.shape[-1]


class Twin:
    """Learn-α over Fixed Share in the linear domain, float64."""

    def __init__(self, experts: int, rate: float, switch_rates: Sequence[float]) -> None:
        self.rate, self.switch_rates = rate, switch_rates
        self.v = np.full((len(switch_rates), experts), 1 / experts)
        self.u = np.full(len(switch_rates), 1 / len(switch_rates))

    def update(self, losses: Floats) -> Floats:
        """Take losses [K, n], and return the experts' weights."""
        n = losses.shape[1]
        for a, switch_rate in enumerate(self.switch_rates):
            self.u[a] *= np.prod((self.v[a] @ np.exp(-losses)) ** self.rate)
            self.v[a] *= np.exp(-self.rate * losses.sum(axis=1))
            self.v[a] = shared(self.v[a] / self.v[a].sum(), switch_rate, n)
        self.u = shared(self.u / self.u.sum(), RATE_SWITCH_RATE, n)
        found: Floats = self.u @ self.v
        return found


def spread(losses: Tensor, n: int) -> Tensor:
    """Return losses [K] of a batch as those of n equal examples, [K, n]."""
    return (losses / n)[:, None].expand(-1, n)


@pytest.mark.parametrize("switch_rates", [(1e-3,), SWITCH_RATES, (1e-6, 0.1)], ids=str)
@pytest.mark.parametrize("rate", [0.2, 1.0, 0.0])
def test_weights_are_those_of_a_float64_twin(rate: float, switch_rates: tuple[float, ...]) -> None:
    share, twin = FixedShare(5, CPU, rate, switch_rates), Twin(5, rate, switch_rates)
    rng = np.random.default_rng(0)
    for t in range(200):
        best = (np.arange(5) != t // 40)[:, None]
        losses = rng.exponential(size=(5, int(rng.integers(1, 60)))) * (0.3 + best)
        expected = twin.update(losses)
        share.update(torch.tensor(losses, dtype=torch.float32), ALL, KEEP)
        weights = share.log_weights.exp()
        np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-3)
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_switch_rate_that_fits_the_stream_gains_weight() -> None:
    for best_for, expected in ((4_000, 0), (100, 2)):
        share = FixedShare(5, CPU)
        generator = torch.Generator().manual_seed(0)
        for t in range(40):
            losses = 1.0 + torch.rand(5, 100, generator=generator)
            losses[t * 100 // best_for % 5] -= 1.0
            share.update(losses, ALL, KEEP)
        assert int(share.log_rate_weights.argmax()) == expected


def test_without_shares_it_is_bayes_rule() -> None:
    share = FixedShare(5, CPU, rate=1.0, switch_rates=(0.0,))
    losses = torch.rand(30, 5)
    for row in losses:
        share.update(row[:, None], ALL, KEEP)
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
    share = FixedShare(experts, CPU, rate=1.0, switch_rates=(switch_rate,))
    losses = rng.exponential(2.0, size=(examples, experts))
    losses[np.arange(examples), best] = rng.exponential(0.3, size=examples)
    total = 0.0
    for row in torch.tensor(losses, dtype=torch.float32):
        total += float(mixed_losses(share.log_weights, row[:, None], ALL))
        share.update(row[:, None], ALL, KEEP)
    regret = (
        math.log(experts)
        + switches * math.log(experts / switch_rate)
        - (examples - 1 - switches) * math.log(1 - switch_rate)
    )
    assert total <= losses[np.arange(examples), best].sum() + regret + 1e-2


def test_a_stream_counts_the_same_however_it_is_cut() -> None:
    whole, cut = FixedShare(5, CPU), FixedShare(5, CPU)
    losses = torch.tensor([3.0, 3.1, 2.9, 3.0, 3.0])
    whole.update(spread(10 * losses, 100), ALL, KEEP)
    for _ in range(10):
        cut.update(spread(losses, 10), ALL, KEEP)
    torch.testing.assert_close(whole.log_weights, cut.log_weights, rtol=0.02, atol=0)


def test_an_expert_that_was_out_comes_back() -> None:
    share = FixedShare(5, CPU)
    for losses in ([0.0, 500.0] + [500.0] * 3, [500.0, 0.0] + [500.0] * 3):
        for _ in range(20):
            share.update(spread(torch.tensor(losses), 100), ALL, KEEP)
        assert share.log_weights.isfinite().all()
    assert int(share.log_weights.argmax()) == 1
    assert float(share.log_weights[1].exp()) > 0.8


def test_weights_stay_where_a_batch_is_not_kept() -> None:
    share = FixedShare(5, CPU)
    share.update(torch.full((5, 100), torch.nan), ~ALL, torch.tensor(False))
    assert torch.equal(share.log_weights, torch.full((5,), -math.log(5)))


def test_a_prediction_is_a_probability_however_the_weights_are_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([40.0, 0.0, 0.0]).expand(6, 4, 3)
    healthy = torch.ones(6, dtype=torch.bool)
    most = 0.0
    for _ in range(200):
        log_weights = torch.randn(6, generator=generator).log_softmax(dim=0)
        most = max(most, float(mixed(log_weights, logits.softmax(dim=-1), healthy).max()))
        shown = predicted(CROSS_ENTROPY, {}, log_weights, logits)
        assert 0.0 <= float(shown.min()) <= float(shown.max()) <= 1.0
    assert most > 1.0, "no weights were rounded up"
