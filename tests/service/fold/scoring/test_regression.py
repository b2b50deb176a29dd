"""Scores of numbers equal those of scikit-learn and river, and floors those written out."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from river import metrics, stats
from scipy.stats import norm
from sklearn import metrics as oracles

from service.fold.scoring.regression import (
    FLOORS,
    NORMAL_90,
    NumberFloors,
    QuantileMeasures,
    QuantileScores,
    RegressionMeasures,
    RegressionScores,
)

CPU = torch.device("cpu")
YES, NO = torch.tensor(True), torch.tensor(False)
RNG = np.random.default_rng(0)
N = 23_456
TARGETS = 50.0 + np.cumsum(RNG.normal(size=N))
PREDICTIONS = TARGETS + RNG.normal(size=N) * 3.0
STD = np.exp(RNG.normal(size=N) * 0.3) * 3.0
QUANTILES = (0.1, 0.5, 0.9)


def parts(size: int) -> list[tuple[int, int]]:
    return list(pairwise([*range(0, N, size), N]))


def as_tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).float()


def means_before(size: int) -> np.ndarray:
    """Return the mean of the targets of the batches before each example; NaN in the first."""
    found = np.full(N, np.nan)
    for start, stop in parts(size)[1:]:
        found[start:stop] = as_tensor(TARGETS[:start]).double().mean()
    return found


@pytest.mark.parametrize("size", [1_000, 37, 15_000])
def test_scores_of_values_equal_those_of_scikit_learn(size: int) -> None:
    scores = RegressionScores(CPU)
    losses = RNG.random(N)
    for start, stop in parts(size):
        own = (as_tensor(x[start:stop]) for x in (PREDICTIONS, STD, TARGETS, losses))
        scores.update(*own, YES)
    read, means = scores.read(), means_before(size)
    assert read.scored == N
    p, s, y = (as_tensor(x).double().numpy() for x in (PREDICTIONS, STD, TARGETS))
    for name, last in (("total", N), ("1000", 1_000), ("10000", 10_000)):
        found, own = read.windows[name], slice(N - last, N)
        assert found.examples == last
        assert found.loss == pytest.approx(losses[own].mean(), rel=1e-6)
        assert found.mae == pytest.approx(oracles.mean_absolute_error(y[own], p[own]), rel=1e-6)
        squared = oracles.mean_squared_error(y[own], p[own])
        assert found.rmse == pytest.approx(math.sqrt(squared), rel=1e-6)
        known = own if name != "total" else slice(size, N)
        if not np.isnan(means[known]).any():
            rivals = ((y - p)[known] ** 2).sum() / ((y - means)[known] ** 2).sum()
            assert found.r2 == pytest.approx(1 - rivals, abs=1e-6)
        covered = np.abs(y - p)[own] <= NORMAL_90 * s[own]
        assert found.coverage == pytest.approx(covered.mean(), abs=1e-12)
        expected = -norm.logpdf(y[own], p[own], s[own]).mean()
        assert found.log_score == pytest.approx(expected, rel=1e-6)


def test_scores_of_values_equal_those_of_river() -> None:
    scores, mae, rmse = RegressionScores(CPU), metrics.MAE(), metrics.RMSE()
    mean, rivals, deviations = stats.Mean(), 0.0, 0.0
    for k in range(300):
        p, y = as_tensor(PREDICTIONS[k : k + 1]), as_tensor(TARGETS[k : k + 1])
        if k:
            rivals += float(p - y) ** 2
            deviations += (float(y) - mean.get()) ** 2
        scores.update(p, None, y, torch.zeros(1), YES)
        mae.update(float(y), float(p))
        rmse.update(float(y), float(p))
        mean.update(float(y))
    found = scores.read().windows["total"]
    assert found.mae == pytest.approx(mae.get(), rel=1e-6)
    assert found.rmse == pytest.approx(rmse.get(), rel=1e-6)
    assert found.r2 == pytest.approx(1 - rivals / deviations, abs=1e-6)
    assert math.isnan(found.coverage)
    assert math.isnan(found.log_score)


@pytest.mark.parametrize("size", [1_000, 37, 15_000])
def test_scores_of_quantiles_equal_those_of_scikit_learn(size: int) -> None:
    given = PREDICTIONS[:, None] + 4.0 * norm.ppf(QUANTILES)[None]
    scores = QuantileScores(QUANTILES, CPU)
    for start, stop in parts(size):
        own = as_tensor(given[start:stop]), None, as_tensor(TARGETS[start:stop])
        scores.update(*own, torch.ones(stop - start), YES)
    p, y = as_tensor(given).double().numpy(), as_tensor(TARGETS).double().numpy()
    for name, last in (("total", N), ("1000", 1_000), ("10000", 10_000)):
        found, own = scores.read().windows[name], slice(N - last, N)
        assert (found.examples, found.loss) == (last, 1.0)
        for k, q in enumerate(QUANTILES):
            expected = oracles.mean_pinball_loss(y[own], p[own, k], alpha=q)
            assert found.pinball[k] == pytest.approx(expected, rel=1e-6)
            assert found.coverage[k] == (y[own] <= p[own, k]).mean()
        assert found.width == pytest.approx((p[own, 2] - p[own, 0]).mean(), rel=1e-6)
        assert found.inside == ((p[own, 0] <= y[own]) & (y[own] <= p[own, 2])).mean()


@pytest.mark.parametrize("wrong", [(), (0.0, 0.5), (0.5, 0.5), (0.9, 0.1), (0.5, 1.0)])
def test_quantiles_must_ascend_within_0_and_1(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must ascend"):
        QuantileScores(wrong, CPU)


def test_before_the_first_example_no_score_is_defined() -> None:
    for measures in RegressionScores(CPU).read().windows.values():
        assert measures.examples == 0
        assert math.isnan(measures.mae)
        assert math.isnan(measures.r2)
    for quantiles in QuantileScores(QUANTILES, CPU).read().windows.values():
        assert all(map(math.isnan, (*quantiles.pinball, *quantiles.coverage, quantiles.width)))


def floors_by_hand(batches: list[np.ndarray]) -> tuple[list[float], list[float]]:
    """Return values and deviations of the floors after batches."""
    seen = np.concatenate(batches)
    changes = [(y - a[-1]) ** 2 for a, b in pairwise(batches) for y in b]
    return [seen.mean(), seen[-1]], [seen.std(), math.sqrt(np.mean(changes))]


def test_floors_predict_what_is_written_out() -> None:
    floors, batches = NumberFloors(CPU), []
    assert floors.predict()[0].tolist() == [0.0, 0.0]
    assert floors.predict()[1].isnan().all()
    for k, size in enumerate((3, 1, 50, 7)):
        batch = 1e6 + RNG.normal(size=size) * 2.0 + k
        floors.score(torch.from_numpy(batch), torch.zeros(2, size), YES)
        floors.learn(torch.from_numpy(batch), YES)
        batches.append(batch)
        if k:
            values, deviations = floors.predict()
            expected = floors_by_hand(batches)
            assert values.tolist() == pytest.approx(expected[0], rel=1e-12)
            assert deviations.tolist() == pytest.approx(expected[1], rel=1e-6)
    assert {name: own.scored for name, own in floors.read().items()} == dict.fromkeys(FLOORS, 61)


def test_the_floor_mean_has_no_r2_and_no_change_has_one_where_values_drift() -> None:
    floors = NumberFloors(CPU)
    for start, stop in parts(100):
        batch = torch.from_numpy(TARGETS[start:stop])
        floors.score(batch, torch.zeros(2, stop - start), YES)
        floors.learn(batch, YES)
    mean, no_change = (floors.read()[name].windows["total"] for name in FLOORS)
    assert isinstance(mean, RegressionMeasures)
    assert isinstance(no_change, RegressionMeasures)
    assert mean.r2 == pytest.approx(0.0, abs=1e-5)
    assert no_change.r2 > 0.9
    assert no_change.coverage == pytest.approx(0.9, abs=0.03)


def test_floors_of_quantiles_are_those_of_a_normal_distribution() -> None:
    floors = NumberFloors(CPU, QUANTILES)
    for _ in range(100):
        batch = torch.from_numpy(RNG.normal(10.0, 2.0, size=100))
        floors.score(batch, torch.zeros(2, 100), YES)
        floors.learn(batch, YES)
    mean = floors.read()["mean"].windows["1000"]
    assert isinstance(mean, QuantileMeasures)
    assert mean.coverage == pytest.approx(QUANTILES, abs=0.04)
    assert mean.inside == pytest.approx(0.8, abs=0.05)


def test_a_batch_that_is_not_kept_changes_nothing() -> None:
    bad = torch.full((5,), math.nan)
    kinds = RegressionScores(CPU), QuantileScores(QUANTILES, CPU)
    for scores, shape in zip(kinds, ((5,), (5, 3)), strict=True):
        scores.update(torch.ones(shape), torch.ones(5), torch.ones(5), torch.ones(5), YES)
        before = {k: v.clone() for k, v in scores.tensors().items()}
        scores.update(torch.full(shape, math.nan), bad, bad, bad, NO)
        assert all(torch.equal(before[k], v) for k, v in scores.tensors().items())
    floors = NumberFloors(CPU)
    floors.learn(torch.ones(5), YES)
    kept = {k: v.clone() for k, v in floors.tensors().items()}
    floors.score(bad, torch.full((2, 5), math.nan), NO)
    floors.learn(bad, NO)
    assert all(torch.equal(kept[k], v) for k, v in floors.tensors().items())
