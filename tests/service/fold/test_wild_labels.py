"""A wild label moves the floors of numbers no further than the learner: in every new model, and an
old log or checkpoint goes on as it began."""

from dataclasses import replace

import numpy as np
import pytest

from service.fold.scoring.regression import worse_than
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import Spec
from service.fold.state import State
from service.settings import Settings
from streams.batch import Batch
from tests.support.states import CPU, HYPERPARAMETERS, same_tensors, step

NEW = Spec("logistic", 3, 0, (), "pool", True, 0, experts=6, task="regression", bounds_floors=True)
OLD = replace(NEW, bounds_floors=False)
WILD = 1e9
TASKS = ("regression", "quantile:0.1,0.5,0.9")


def batch_of(seed: int, wild: int | None = None, n: int = 100) -> Batch:
    """Return numbers near 10 that the inputs do not predict, of which one may be wild."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n, 3)).astype(np.float32)
    numbers = (10.0 + rng.normal(size=n)).astype(np.float32)
    if wild is not None:
        numbers[wild] = WILD
    return Batch(inputs, numbers)


def floor_after_a_wild_label(spec: Spec, at: int, place: int = 17) -> tuple[float, float]:
    """Return the value and the deviation of the floor ``mean``."""
    state = State(spec, HYPERPARAMETERS, CPU)
    for k in range(20):
        step(state, batch_of(k, place if k == at else None))
    assert state.number_floors is not None
    values, deviations = state.number_floors.predict()
    return float(values[0]), float(deviations[0])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("at", [0, 5])
def test_a_wild_label_does_not_spoil_the_floor(task: str, at: int) -> None:
    value, deviation = floor_after_a_wild_label(replace(NEW, task=task), at)
    assert value == pytest.approx(10.0, abs=0.1)
    assert deviation == pytest.approx(1.0, abs=0.1)
    assert floor_after_a_wild_label(replace(OLD, task=task), at)[0] > 100.0


def test_a_model_below_the_floor_is_named_after_a_wild_label() -> None:
    """The learning rate is far too large, so that the model is worse than the mean."""
    spec = replace(NEW, optimizer="sgd", experts=0)
    state = State(spec, replace(HYPERPARAMETERS, lr=0.3), CPU)
    for k in range(20):
        step(state, batch_of(k, 17 if k == 5 else None))
    assert state.served.numbers is not None
    assert state.number_floors is not None
    found = worse_than(state.served.numbers.read(), state.number_floors.read())
    assert any(words.startswith("below the floor mean") for words in found)


@pytest.mark.parametrize("model", ["logistic", "auto"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("at", [0, 1])
def test_a_wild_first_label_is_soon_forgotten(at: int, task: str, model: str) -> None:
    """Single examples are learned, so that the first labels alone are the unit of numbers."""
    spec = replace(NEW, model=model, task=task, follows_jumps=True)
    state, rng, missed = State(spec, HYPERPARAMETERS, CPU), np.random.default_rng(0), []
    evaluator = Evaluator(state.served)
    for k in range(300):
        inputs = rng.normal(size=(1, 3)).astype(np.float32)
        number = (10.0 + inputs.sum(axis=1) + 0.3 * rng.normal(size=1)).astype(np.float32)
        if k >= 200:
            found = evaluator(Snapshot.of(state), inputs)[0].numpy()
            missed.append(np.abs(found - number).item())
        step(state, Batch(inputs, np.full_like(number, WILD) if k == at else number))
    assert np.mean(missed) < 0.4


MOSTLY_ZERO = {
    "a tenth are 50": lambda rng, inputs: np.where(rng.random(len(inputs)) < 0.1, 50.0, 0.0),
    "counts": lambda rng, inputs: rng.poisson(np.exp(0.5 * inputs[:, 0] - 1.5)),
}


@pytest.mark.parametrize("kind", MOSTLY_ZERO)
@pytest.mark.parametrize("seed", [0, 1])
def test_quantiles_of_numbers_that_are_mostly_zero_stay_near_the_floor(
    kind: str, seed: int
) -> None:
    """Quantiles cross where many numbers are equal, and a shift must follow its own."""
    spec = replace(NEW, model="auto", task="quantile:0.1,0.5,0.9", follows_jumps=True)
    state, rng = State(spec, HYPERPARAMETERS, CPU), np.random.default_rng(seed)
    evaluator = Evaluator(state.served)
    for _ in range(30):
        inputs = rng.normal(size=(100, 3)).astype(np.float32)
        numbers = MOSTLY_ZERO[kind](rng, inputs).astype(np.float32)
        step(state, Batch(inputs, numbers))
    lowest = evaluator(Snapshot.of(state), inputs)[1].numpy()[:, 0]
    assert lowest.min() > -0.1 * numbers.max() - 0.5
    assert state.served.numbers is not None
    assert state.number_floors is not None
    mine = state.served.numbers.read().windows["1000"].loss
    floor = state.number_floors.read()["mean"].windows["1000"].loss
    assert mine < 1.2 * floor


def test_a_model_that_answers_the_median_of_skewed_numbers_is_below_the_floor_by_rmse() -> None:
    state, rng = State(NEW, HYPERPARAMETERS, CPU), np.random.default_rng(0)
    for _ in range(20):
        inputs = rng.normal(size=(100, 3)).astype(np.float32)
        numbers = np.where(rng.random(100) < 0.08, 50.0, 0.0).astype(np.float32)
        step(state, Batch(inputs, numbers))
    assert state.served.numbers is not None
    assert state.number_floors is not None
    found = worse_than(state.served.numbers.read(), state.number_floors.read())
    assert [words for words in found if "below the floor mean: RMSE" in words]


def test_the_floor_follows_numbers_that_move_for_good() -> None:
    state = State(NEW, HYPERPARAMETERS, CPU)
    for k in range(40):
        batch = batch_of(k)
        step(state, Batch(batch.features, batch.labels + np.float32(1_000.0 * (k >= 5))))
    assert state.number_floors is not None
    assert float(state.number_floors.predict()[0][0]) == pytest.approx(10 + 875, rel=0.05)


def test_every_new_model_of_numbers_has_it_and_no_other() -> None:
    def spec(task: str) -> Spec:
        return Settings.model_validate({"model": "logistic", "features": 3, "task": task}).spec

    assert all(spec(task).bounds_floors for task in TASKS)
    assert not spec("multiclass").bounds_floors
    assert "bounds_floors" not in OLD.fields()
    assert not Spec.of(OLD.fields()).bounds_floors
    assert NEW.differences(OLD) == []


def test_a_fresh_state_continues_as_a_log_began() -> None:
    states = State(NEW, HYPERPARAMETERS, CPU), State(OLD, HYPERPARAMETERS, CPU)
    states[0].begin_as(OLD)
    for k in range(10):
        for state in states:
            step(state, batch_of(k, 17 if k == 5 else None))
    assert same_tensors(states[0].tensors(), states[1].tensors())
