"""Numbers are scored as they were sent: in every new model, and an old one goes on as it began."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from funnel.compiled import loops, plainly
from service.fold.scoring.classification import LOOPS
from service.fold.scoring.regression import RegressionMeasures
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import Spec
from service.fold.state import State
from service.settings import Settings
from streams.batch import Batch
from tests.support.states import CPU, HYPERPARAMETERS, step

NEW = Settings.model_validate({"model": "logistic", "features": 3, "task": "regression"}).spec
OLD = replace(NEW, scores_as_sent=False)
LEVELS = (0.1, 0.5, 0.9)
Answers = npt.NDArray[np.float64]


def batches(wild: float) -> list[Batch]:
    """Return equal numbers, then a number that differs, then a relation with a wild number."""
    found, rng = [], np.random.default_rng(0)
    for k in range(12):
        inputs = rng.normal(size=(50, 3)).astype(np.float32)
        numbers = np.zeros(50, np.float32)
        if k == 3:
            numbers[9] = 2.5
        if k > 3:
            numbers += 7.0 + inputs @ np.float32([1.0, -2.0, 0.5])
        if k == 8:
            numbers[31] = wild
        found.append(Batch(inputs, numbers))
    return found


def learned(spec: Spec, wild: float) -> tuple[State, Answers, Answers]:
    """Return a state, what it answered to each number of all batches but the first, and these."""
    state = State(spec, HYPERPARAMETERS, CPU)
    evaluate = Evaluator(state.served)
    answers, numbers = [], []
    for k, batch in enumerate(batches(wild)):
        if k:
            answers.append(evaluate(Snapshot.of(state), batch.features)[1].numpy().astype(float))
            numbers.append(batch.labels.astype(float))
        step(state, batch)
    return state, np.concatenate(answers), np.concatenate(numbers)


@pytest.mark.parametrize("wild", [1e8, -1e12])
@pytest.mark.parametrize("model", ["logistic", "auto"])
def test_errors_are_those_of_the_numbers_that_were_sent(model: str, wild: float) -> None:
    state, answers, numbers = learned(replace(NEW, model=model), wild)
    assert state.served.numbers is not None
    found = state.served.numbers.read().windows["total"]
    assert isinstance(found, RegressionMeasures)
    errors = np.abs(answers[:, 0] - numbers)
    assert errors.max() == pytest.approx(abs(wild), rel=1e-6)
    assert found.examples == len(numbers)
    assert found.mae == pytest.approx(errors.mean(), rel=1e-6)
    assert found.loss == pytest.approx(errors.mean(), rel=1e-6)
    assert found.rmse == pytest.approx(np.sqrt(np.square(errors).mean()), rel=1e-6)
    known = np.isfinite(answers[:, 1])
    covered = errors[known] <= 1.645 * answers[known, 1]
    assert found.coverage == pytest.approx(covered.mean(), abs=2 / len(covered))


def test_the_first_number_that_differs_is_an_error() -> None:
    for spec, error in ((NEW, 2.5), (OLD, 0.0)):
        state = State(spec, HYPERPARAMETERS, CPU)
        for batch in batches(0.0)[:4]:
            for k in range(0, 50, 5):
                step(state, Batch(batch.features[k : k + 5], batch.labels[k : k + 5]))
        assert state.served.numbers is not None
        total = state.served.numbers.read().windows["total"]
        assert total.loss * total.examples == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("task", ["regression", "quantile:0.1,0.5,0.9"])
def test_the_largest_numbers_have_losses_whose_sum_is_finite(task: str) -> None:
    state = State(replace(NEW, task=task), HYPERPARAMETERS, CPU)
    for wild in (3.4e38, -3.4e38):
        for batch in batches(wild):
            step(state, batch)
    total = state.served.scores.measure()
    assert np.isfinite([total.loss, total.rolling_loss]).all()
    assert total.loss > 1e26


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("task", ["regression", "quantile:0.1,0.5,0.9"])
def test_one_wild_number_after_equal_ones_moves_no_answer_far(task: str, weight: float) -> None:
    state = State(replace(NEW, model="auto", task=task), HYPERPARAMETERS, CPU)
    evaluate, rng = Evaluator(state.served), np.random.default_rng(0)
    inputs = rng.normal(size=(20, 3)).astype(np.float32)
    for _ in range(20):
        step(state, Batch(inputs, np.full(20, 0.5, np.float32)))
    step(state, Batch(inputs[:1], np.float32([1e4]), np.float32([weight])))
    values = evaluate(Snapshot.of(state), inputs)[0].numpy()
    assert np.abs(values - 0.5).max() < 0.2


@pytest.mark.parametrize("wild", [1e8, -1e12])
def test_pinball_losses_are_those_of_the_numbers_that_were_sent(wild: float) -> None:
    state, answers, numbers = learned(replace(NEW, task="quantile:0.1,0.5,0.9"), wild)
    assert state.served.numbers is not None
    found = state.served.numbers.read().windows["total"]
    above = numbers[:, None] - answers
    levels = np.array(LEVELS)
    pinball = np.maximum(levels * above, (levels - 1.0) * above).mean()
    assert pinball > 1e4
    assert found.loss == pytest.approx(pinball, rel=1e-6)
    assert found.scores()["pinball"] == pytest.approx(pinball, rel=1e-6)


def test_a_model_that_has_learned_nothing_has_no_deviation() -> None:
    inputs = np.zeros((2, 3), np.float32)
    for spec, is_known in ((NEW, False), (replace(NEW, follows_jumps=False), True)):
        state = State(spec, HYPERPARAMETERS, CPU)
        values, answers = Evaluator(state.served)(Snapshot.of(state), inputs)
        assert values.tolist() == [0.0, 0.0]
        assert np.isfinite(answers[:, 1].numpy()).all() == is_known


def test_a_shadow_is_scored_alike() -> None:
    hyperparameters = replace(HYPERPARAMETERS, shadow=("adagrad",))
    state = State(NEW, hyperparameters, CPU)
    for batch in batches(1e8):
        step(state, batch)
    shadow = state.learners()["adagrad"].numbers
    assert shadow is not None
    total = shadow.read().windows["total"]
    assert total.loss * total.examples == pytest.approx(1e8, rel=1e-4)


def test_a_wild_number_is_no_drift() -> None:
    """What decides sees a number within its bounds, whose rounding hides no other error."""
    state = State(NEW, HYPERPARAMETERS, CPU)
    for k in range(6):
        for batch in batches(1e30 if k == 3 else 7.0)[4:]:
            report = step(state, batch)
            state.drift.note(report, len(batch), state.examples, None)
    state.drift.settle()
    assert not state.drift.events


def test_compiled_loops_give_the_same_bits() -> None:
    pytest.importorskip("numba")
    assert loops(LOOPS) is not None
    with_loops = learned(NEW, 1e8)[0]
    with plainly():
        without = learned(NEW, 1e8)[0]
    assert with_loops.served.numbers is not None
    assert without.served.numbers is not None
    assert repr(with_loops.served.numbers.read()) == repr(without.served.numbers.read())


def test_every_new_model_of_numbers_has_it_and_no_other() -> None:
    assert NEW.scores_as_sent
    assert not Settings.model_validate({"model": "logistic", "features": 3}).spec.scores_as_sent
    assert "scores_as_sent" not in OLD.fields()
    assert not Spec.of(OLD.fields()).scores_as_sent
    assert NEW.differences(OLD) == []
