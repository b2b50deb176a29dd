"""The model of all families: it learns what no line separates, exactly, and refuses by name."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from service.fold.networks import ModelError
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import Hyperparameters, Spec
from service.fold.state import State
from service.fold.step import Fold
from service.model import build_state
from service.settings import load_settings
from streams.batch import Batch
from tests.support.states import CPU, HYPERPARAMETERS, same_tensors, step

WIDTH = 5


def a_state(task: str = "multiclass", **rates: float) -> State:
    classes = 2 if task in ("multiclass", "binary") else 0
    spec = Spec("auto", WIDTH, classes, (8,), "pool", True, 0, experts=6, task=task)
    hyperparameters: Hyperparameters = replace(HYPERPARAMETERS, **rates)
    return State(spec, hyperparameters, CPU)


def checkers(seed: int, n: int = 100, turned: bool = False, weights: bool = False) -> Batch:
    """Return a batch whose classes are the colours of a chess board."""
    rng = np.random.default_rng(seed)
    features = rng.uniform(0, 2, (n, WIDTH)).astype(np.float32)
    labels = (features[:, 0].astype(int) + features[:, 1].astype(int) + turned) % 2
    own = rng.integers(0, 3, n).astype(np.float32) if weights else None
    return Batch(features, labels.astype(np.int64), own)


@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_it_learns_a_chess_board_and_follows_its_reversal(task: str) -> None:
    state = a_state(task)
    for k in range(30):
        step(state, checkers(k))
    assert np.mean([step(state, checkers(100 + k)).accuracy for k in range(5)]) > 0.95
    turned = [float(step(state, checkers(200 + k, turned=True)).accuracy) for k in range(25)]
    assert turned[0] < 0.1
    assert np.mean(turned[-5:]) > 0.9


def test_its_answers_are_probabilities_that_are_right() -> None:
    state = a_state()
    for k in range(30):
        step(state, checkers(k))
    batch = checkers(999, 500)
    labels, answers = Evaluator(state.served)(Snapshot.of(state), batch.features)
    torch.testing.assert_close(answers.sum(dim=1), torch.ones(500), atol=1e-5, rtol=0)
    chosen = answers[torch.arange(500), torch.from_numpy(batch.labels)]
    assert float(-chosen.log().mean()) < 0.25 < math.log(2)
    assert float((labels.numpy() == batch.labels).mean()) > 0.95


@pytest.mark.parametrize("weights", [False, True])
def test_it_resumes_bit_for_bit(weights: bool) -> None:
    mine = a_state()
    for k in range(8):
        step(mine, checkers(k, weights=weights))
    other = a_state()
    other.load({k: v.clone() for k, v in mine.tensors().items()}, mine.version, mine.examples)
    for k in range(8, 14):
        assert step(mine, checkers(k, weights=weights)) == step(other, checkers(k, weights=weights))
    assert same_tensors(mine.tensors(), other.tensors())


def test_a_snapshot_answers_as_the_step_scores() -> None:
    state = a_state()
    for k in range(12):
        batch = checkers(k)
        labels, _ = Evaluator(state.served)(Snapshot.of(state), batch.features)
        accuracy = float((labels.numpy() == batch.labels).mean())
        assert step(state, batch).accuracy == pytest.approx(accuracy)


def test_a_batch_that_the_guard_skips_changes_no_family() -> None:
    state = a_state(loss_guard=2.0)
    for k in range(20):
        step(state, checkers(k))
    assert state.served.families is not None
    before = {k: v.clone() for k, v in state.served.families.tensors().items()}
    report = step(state, checkers(50, turned=True))
    assert not report.kept
    assert same_tensors(before, state.served.families.tensors())


def test_a_shadow_is_one_learner_without_families() -> None:
    state = State(a_state().spec, replace(HYPERPARAMETERS, shadow=("pool", "adagrad")), CPU)
    for k in range(3):
        step(state, checkers(k))
    assert state.served.families is not None
    assert all(shadow.families is None for shadow in state.shadows.values())


def is_fast(k: int) -> bool:
    return k % 5 in (1, 2, 3)


def test_a_state_with_skipped_batches_resumes_bit_for_bit() -> None:
    mine, other = a_state(), a_state()
    fold = Fold(mine)
    for k in range(18):
        fold.step(checkers(k), is_fast(k))
    other.load({k: v.clone() for k, v in mine.tensors().items()}, mine.version, mine.examples)
    again = Fold(other)
    for k in range(18, 27):
        assert fold.step(checkers(k), is_fast(k)) == again.step(checkers(k), is_fast(k))
    assert same_tensors(mine.tensors(), other.tensors())
    assert mine.served.families is not None
    assert int(mine.served.families.skipped) == sum(map(is_fast, range(27)))


def test_a_skipped_batch_is_answered_by_the_linear_pool_as_if_it_were_alone() -> None:
    mine = a_state()
    spec = replace(mine.spec, model="logistic", hidden=())
    linear, fold = Fold(State(spec, HYPERPARAMETERS, CPU)), Fold(mine)
    for k in range(10):
        mine_of, linear_of = fold.step(checkers(k), True), linear.step(checkers(k))
        assert (mine_of.accuracy, mine_of.loss) == (linear_of.accuracy, linear_of.loss)
    parts = linear.state.served.pool.tensors()
    assert same_tensors({k: mine.served.pool.tensors()[k] for k in parts}, parts)


def test_families_that_skipped_all_batches_answer_nothing() -> None:
    state, spec = a_state(), replace(a_state().spec, model="logistic", hidden=())
    linear = State(spec, HYPERPARAMETERS, CPU)
    folds = Fold(state), Fold(linear)
    for k in range(5):
        for fold in folds:
            fold.step(checkers(k), True)
    questions = checkers(9).features
    for mine, theirs in zip(
        Evaluator(state.served)(Snapshot.of(state), questions),
        Evaluator(linear.served)(Snapshot.of(linear), questions),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_trees_catch_up_on_skipped_batches_from_memory() -> None:
    state = a_state()
    fold = Fold(state)
    for k in range(30):
        fold.step(checkers(k), True)
    assert np.mean([fold.step(checkers(100 + k)).accuracy for k in range(12)][-6:]) > 0.9


def test_numbers_are_learned_by_linear_experts() -> None:
    state = a_state("regression")
    assert state.served.families is None
    batch = checkers(0)
    labels = batch.features[:, 0] * 3.0
    for _ in range(20):
        step(state, Batch(batch.features, labels.astype(np.float32)))
    values, _ = Evaluator(state.served)(Snapshot.of(state), batch.features)
    assert float(np.abs(values.numpy() - labels).mean()) < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [({"optimizer": "sgd"}, "FUNNEL_MODEL=auto is a pool: leave FUNNEL_OPTIMIZER=sgd unset"),
     ({"features": 10_001}, "takes at most 10,000 as FUNNEL_FEATURES, not 10,001"),
     ({"classes": 1_001}, "takes at most 1,000 as FUNNEL_CLASSES, not 1,001"),
     ({"classes": 500, "batch_size": 5_000}, "lower FUNNEL_BATCH_SIZE to 4,000"),
     ({"device": "meta"}, "trees and neighbours learn on the CPU, not on meta")],
)  # fmt: skip
def test_what_it_cannot_do_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    settings = load_settings({"model": "auto", "features": 4, "classes": 2} | options)
    with pytest.raises(ModelError, match=message):
        build_state(settings)
