"""Inputs that are wrong or change: the service's learner stays near what clean inputs give."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch

from service.commands.comparisons.evaluation import Served
from service.settings import Settings
from streams.batch import Batch
from streams.prequential import Outcomes, prequential

Floats = npt.NDArray[np.float32]
N, D, SIZE = 6_000, 8, 100
RNG = np.random.default_rng(0)
CLEAN: Floats = RNG.normal(size=(N, D)).astype(np.float32)
LABELS = (CLEAN @ RNG.normal(size=D) > 0).astype(np.int64)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def outcomes(
    features: Floats, standardize: bool = True, first: int = SIZE, model: str = "logistic"
) -> Outcomes:
    """Return which answers are right on a stream whose first batch has ``first`` examples."""
    settings = Settings(model=model, features=D, classes=2, standardize=standardize, device="cpu")
    ends = [0, *range(first, N, SIZE), N]
    batches = [Batch(features[i:j], LABELS[i:j]) for i, j in pairwise(ends)]
    return prequential(Served(settings), batches)


def accuracies(features: Floats, standardize: bool = True, first: int = SIZE) -> list[float]:
    """Return the accuracy in each third of a stream whose first batch has ``first`` examples."""
    right = outcomes(features, standardize, first)
    return [float(part.mean()) for part in np.array_split(right, 3)]


@pytest.mark.parametrize("value", [-999.0, -1e6, 1e18])
@pytest.mark.parametrize("first", [1, SIZE])
def test_a_wild_first_example_costs_next_to_nothing(value: float, first: int) -> None:
    features = CLEAN.copy()
    features[0] = value
    found, clean = accuracies(features, first=first), accuracies(CLEAN, first=first)
    assert min(f - c for f, c in zip(found, clean, strict=True)) > -0.03


UNITS = [(1 / 255, 0), (1e-3, 0), (1e3, 0), (1, 1e3), (1, -1e5)]


@pytest.mark.parametrize(("factor", "offset"), UNITS)
def test_a_new_unit_or_zero_costs_a_few_batches_whatever_its_direction(
    factor: float, offset: float
) -> None:
    features = CLEAN.copy()
    features[N // 3 :] = features[N // 3 :] * np.float32(factor) + np.float32(offset)
    _, middle, last = accuracies(features)
    assert middle > 0.93
    assert last > 0.97


@pytest.mark.parametrize(("factor", "offset"), UNITS)
def test_all_families_recover_from_a_new_unit_in_three_batches(
    factor: float, offset: float
) -> None:
    features = CLEAN.copy()
    features[N // 3 :] = features[N // 3 :] * np.float32(factor) + np.float32(offset)
    right = outcomes(features, model="auto")
    assert right[N // 3 + 3 * SIZE : N // 3 + 8 * SIZE].mean() > 0.9
    assert right[-N // 3 :].mean() > 0.97


@pytest.mark.parametrize("unit", [1e-18, 1e-12, 1e12])
def test_the_unit_of_the_inputs_does_not_matter(unit: float) -> None:
    assert accuracies(CLEAN * np.float32(unit)) == pytest.approx(accuracies(CLEAN), abs=0.01)


@pytest.mark.parametrize("value", [-9_999.0, 1e6, 1e18])
@pytest.mark.parametrize(("share", "cost"), [(0.001, 0.015), (0.01, 0.02), (0.05, 0.06)])
def test_sentinels_cost_little_more_than_with_clean_statistics(
    share: float, cost: float, value: float
) -> None:
    features = CLEAN.copy()
    features[np.random.default_rng(1).random(CLEAN.shape) < share] = value
    own, known = accuracies(features), accuracies(np.clip(features, -5, 5), standardize=False)
    assert own[-1] > known[-1] - cost


def test_sentinels_in_one_feature_leave_the_others_as_good_as_ever() -> None:
    features = CLEAN.copy()
    features[np.random.default_rng(1).random(N) < 0.05, 0] = 1e18
    known = accuracies(np.clip(features, -5, 5), standardize=False)
    assert accuracies(features)[-1] > known[-1] - 0.03
