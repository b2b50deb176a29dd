"""The guard on loss holds back outliers, lets drift in, and is exact in replay."""

import numpy as np
import pytest
import torch

from service.fold.loss_guard import MAX_IN_A_ROW, WARM_UP, LossGuard
from service.fold.spec import Hyperparameters
from service.fold.state import State
from streams.batch import Batch
from tests.support.states import CPU, a_batch, a_spec, same_tensors, step

GUARDED = Hyperparameters(lr=0.03, momentum=0.0, gain_lr=0.03, scale_lr=0.03, loss_guard=8.0)
TRUE = torch.tensor(True)


def poison(seed: int, n: int = 20) -> Batch:
    """A batch whose labels are all wrong."""
    batch = a_batch(seed, n)
    return Batch(batch.features, (batch.labels + 1) % 3)


def learned(model: str = "logistic", batches: int = 60) -> State:
    state = State(a_spec(model), GUARDED, CPU)
    for k in range(batches):
        step(state, a_batch(k))
    return state


@pytest.mark.parametrize("model", ["logistic", "mlp", "tests.golden.restless:Restless"])
def test_an_outlier_is_scored_and_not_learned(model: str) -> None:
    state = learned(model)
    before = {k: v.detach().clone() for k, v in state.tensors().items()}
    scored = int(state.served.scores.scored)
    report = step(state, poison(100))
    assert not report.kept
    changed = {k for k, v in state.tensors().items() if not torch.equal(v, before[k])}
    assert {
        k for k in changed if not k.startswith(("scores.", "guard.", "floors.scores."))
    } == set()
    assert int(state.served.scores.scored) == scored + 20
    assert int(state.guard.quarantined) == 1
    assert state.version == 61


def test_after_a_usual_batch_outliers_are_held_back_again() -> None:
    state = learned()
    kept = [bool(step(state, b).kept) for b in (poison(1), a_batch(1), poison(2), a_batch(2))]
    assert kept == [False, True, False, True]


def test_what_goes_on_coming_is_drift_and_is_learned() -> None:
    state = learned()
    kept = [bool(step(state, poison(k)).kept) for k in range(80)]
    assert kept[: MAX_IN_A_ROW + 1] == [False] * MAX_IN_A_ROW + [True]
    assert kept.count(False) <= 3 * MAX_IN_A_ROW
    assert float(step(state, poison(90)).accuracy) > 0.8


def test_without_a_guard_all_is_learned() -> None:
    state = State(a_spec(), Hyperparameters(0.03, 0.0, 0.03, 0.03), CPU)
    kept = [bool(step(state, a_batch(k) if k < 60 else poison(k)).kept) for k in range(70)]
    assert all(kept)
    assert int(state.guard.seen) == 0


def test_nothing_is_held_back_before_there_is_a_recent_range() -> None:
    state = State(a_spec(), GUARDED, CPU)
    assert all(step(state, a_batch(k) if k % 2 else poison(k)).kept for k in range(WARM_UP))


def test_the_first_batch_behind_the_warm_up_may_be_held_back() -> None:
    guard = LossGuard(CPU)
    for _ in range(WARM_UP):
        assert guard.judge(torch.tensor(1.0), TRUE, 5.0)
    assert not guard.judge(torch.tensor(9.0), TRUE, 5.0)


def test_a_batch_that_is_not_finite_is_not_remembered() -> None:
    guard = LossGuard(CPU)
    for k in range(30):
        assert guard.judge(torch.tensor(1.0 + 0.01 * (k % 3)), TRUE, 5.0)
    before = {k: v.clone() for k, v in guard.tensors().items()}
    assert not guard.judge(torch.tensor(torch.nan), ~TRUE, 5.0)
    assert not guard.judge(torch.tensor(torch.inf), ~TRUE, 5.0)
    assert same_tensors(before, guard.tensors())


def test_level_and_spread_are_plain_averages_at_first() -> None:
    guard, losses = LossGuard(CPU), np.float32([2.0, 1.0, 3.0])
    for loss in losses:
        guard.judge(torch.tensor(loss), TRUE, 5.0)
    assert float(guard.level) == pytest.approx(2.0)
    assert float(guard.spread) == pytest.approx((0 + 1.0 + 1.5) / 3)


def test_level_and_spread_forget_what_is_hundreds_of_batches_old() -> None:
    guard = LossGuard(CPU)
    for loss in [0.9, 1.1] * 250 + [2.0] * 100:
        guard.judge(torch.tensor(loss), TRUE, 1e9)
    assert float(guard.level) == pytest.approx(2.0 - 0.99**100, abs=0.01)


def test_the_guard_may_be_set_in_a_running_model() -> None:
    state = State(a_spec(), Hyperparameters(0.03, 0.0, 0.03, 0.03), CPU)
    for k in range(40):
        step(state, a_batch(k))
    state.set_hyperparameters(GUARDED)
    for k in range(40):
        step(state, a_batch(k))
    assert not step(state, poison(1)).kept
