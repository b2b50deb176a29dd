"""Deviations of normal errors: right while they keep their size, and soon after it has changed."""

from collections.abc import Callable

import pytest
import torch

from funnel.families.numbers import Numbers
from funnel.pool.deviation import QUICK
from funnel.pool.loss import Gaussian

CPU = torch.device("cpu")
Deviations = Callable[[torch.Tensor, bool], torch.Tensor]
BATCH, BEFORE = 20, 4_000
WITHIN = 1.2816
"""Deviations that hold 80 % of normal errors."""


def errors(seed: int, after: float) -> torch.Tensor:
    """Return batches of normal errors of deviation 0.3, and of another one in the second half."""
    generator = torch.Generator().manual_seed(seed)
    found = 0.3 * torch.randn(2 * BEFORE, generator=generator)
    found[BEFORE:] *= after / 0.3
    return found.reshape(-1, BATCH)


def of_pool(batches: torch.Tensor, is_quick: bool) -> torch.Tensor:
    """Return the deviations of a pool whose experts answer 0, [batches]."""
    loss, found = Gaussian(is_quick), []
    held, learned = loss.fresh(2, CPU), torch.ones(2, dtype=torch.bool)
    for own in batches:
        judged = loss.judge(held, torch.zeros(2, 1, BATCH), own)
        answers = judged.answers.mT
        mixed = loss.mixed(torch.zeros(3), answers, torch.ones(3, dtype=torch.bool), held)
        mixed[:, 0] = 0.0
        found.append(mixed[0, 1])
        summary = loss.completed(held, judged.summary, mixed, own, None)
        loss.learn(held, summary, BATCH, learned)
    return torch.stack(found)


def of_families(batches: torch.Tensor, is_quick: bool) -> torch.Tensor:
    """Return the deviations of families that answer 0, [batches]."""
    numbers, found = Numbers((), CPU, is_quick), []
    held, yes = numbers.fresh(), torch.tensor(True)
    for own in batches:
        answers = torch.zeros(BATCH, 1)
        found.append(numbers.shown(answers, held)[0, 1])
        numbers.learn(held, answers, answers, own, torch.ones(BATCH), yes)
    return torch.stack(found)


def coverage(batches: torch.Tensor, deviations: torch.Tensor, start: int, stop: int) -> float:
    """Return the share of errors within the deviations that hold 80 %, of examples from ``start``
    to ``stop``."""
    inside = batches.abs() <= WITHIN * deviations[:, None]
    return float(inside.flatten()[start:stop].float().mean())


@pytest.mark.parametrize("deviations", [of_pool, of_families])
@pytest.mark.parametrize("after", [0.03, 0.3, 3.0])
def test_the_deviation_is_right_200_examples_after_a_change(
    deviations: Deviations, after: float
) -> None:
    rows = [errors(seed, after) for seed in range(5)]
    quick = [deviations(batches, True) for batches in rows]

    def mean(start: int, stop: int) -> float:
        pairs = zip(rows, quick, strict=True)
        return sum(coverage(*pair, start, stop) for pair in pairs) / len(rows)

    assert mean(1_000, BEFORE) == pytest.approx(0.8, abs=0.01)
    assert mean(BEFORE + 200, BEFORE + 500) == pytest.approx(0.8, abs=0.07)
    assert mean(BEFORE + 1_000, 2 * BEFORE) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("deviations", [of_pool, of_families])
def test_without_the_quick_mean_it_is_wrong_for_long(deviations: Deviations) -> None:
    batches = errors(0, 0.03)
    slow = deviations(batches, False)
    assert coverage(batches, slow, BEFORE + 200, BEFORE + 700) > 0.98


def test_a_batch_that_is_not_learned_changes_nothing_even_if_it_is_not_finite() -> None:
    loss = Gaussian(is_quick=True)
    held, before = loss.fresh(2, CPU), loss.fresh(2, CPU)
    summary = torch.full((8,), torch.nan)
    numbers, no = Numbers((), CPU, is_quick=True), torch.tensor(False)
    of_numbers = numbers.fresh()
    loss.learn(held, summary, BATCH, torch.zeros(2, dtype=torch.bool))
    numbers.learn(
        of_numbers, torch.zeros(3, 1), torch.zeros(3, 1), torch.ones(3), torch.ones(3), no
    )
    for name in (QUICK, "trust"):
        assert torch.equal(held[name], before[name])
        assert torch.equal(of_numbers[name], numbers.fresh()[name])


def test_the_quick_mean_follows_the_unit() -> None:
    loss, ratio, shift = Gaussian(is_quick=True), torch.tensor(0.5), torch.tensor(0.1)
    held, numbers = loss.fresh(2, CPU), Numbers((), CPU, is_quick=True)
    of_numbers = numbers.fresh()
    loss.rescale(held, ratio, shift)
    numbers.rescale(of_numbers, ratio)
    assert float(held[QUICK]) == float(of_numbers[QUICK]) == 0.25
