"""The model of all families: it learns what no line separates, exactly, and refuses by name."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from service.fold.networks import ModelError
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import FAMILIES, FOLD_VERSION, Hyperparameters, Spec
from service.fold.state import State
from service.fold.step import Fold
from service.model import build_state
from service.settings import SettingsError, load_settings
from streams.batch import Batch
from tests.support.states import CPU, HYPERPARAMETERS, same_tensors, step

WIDTH = 5


def a_state(task: str = "multiclass", families: tuple[str, ...] = (), **rates: float) -> State:
    classes = 2 if task in ("multiclass", "binary") else 0
    spec = Spec(
        "auto", WIDTH, classes, (8,), "pool", True, 0, experts=6, task=task, families=families
    )
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


def test_a_checkpoint_of_before_examples_were_kept_as_they_are_compared_opens() -> None:
    mine, other = a_state(), a_state()
    for k in range(12):
        step(mine, checkers(k))
    own = {k: v.clone() for k, v in mine.tensors().items()}
    kept = {k: v for k, v in own.items() if ".compared." not in k and ".waiting." not in k}
    assert len(kept) < len(own)
    other.load(kept, mine.version, mine.examples)
    for k in range(12, 30):
        report = step(other, checkers(k))
    assert report.accuracy > 0.9


def test_cuts_of_all_families_of_before_are_not_replayed() -> None:
    assert not Fold(a_state()).can_replay(4)
    assert Fold(a_state()).can_replay(FOLD_VERSION)


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


def heights(seed: int, n: int = 100, zero: float = 0.0, weights: bool = False) -> Batch:
    """Return a batch whose numbers lie on the squares of a chess board of two heights."""
    batch = checkers(seed, n, weights=weights)
    noise = np.random.default_rng(seed + 5_000).normal(0, 0.1, n)
    numbers = 50.0 + 20.0 * batch.labels + noise + zero
    return Batch(batch.features, numbers.astype(np.float32), batch.weights)


NUMERIC = pytest.mark.parametrize("task", ["regression", "quantile:0.1,0.5,0.9"])


def answered(state: State, batch: Batch) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return numbers, or middle quantiles, [n]."""
    values, _ = Evaluator(state.served)(Snapshot.of(state), batch.features)
    return values.numpy()


@NUMERIC
def test_it_learns_numbers_that_no_line_explains(task: str) -> None:
    state, batch = a_state(task), heights(999, 500)
    for k in range(30):
        step(state, heights(k))
    assert float(np.abs(answered(state, batch) - batch.labels).mean()) < 2.5
    for k in range(30, 60):  # a level far away, where the unit moves
        step(state, heights(k, zero=1_000.0))
    late = answered(state, batch) - (batch.labels + 1_000.0)
    assert float(np.abs(late).mean()) < 2.5


def test_its_quantiles_hold_their_shares_and_never_cross() -> None:
    state = a_state("quantile:0.1,0.5,0.9")
    inside = []
    for k in range(60):
        batch = heights(k)
        _, answers = Evaluator(state.served)(Snapshot.of(state), batch.features)
        assert bool((answers.diff(dim=1) >= 0).all())
        found = answers.numpy()
        inside.append(((found[:, 0] <= batch.labels) & (batch.labels <= found[:, 2])).mean())
        step(state, batch)
    assert 0.7 < np.mean(inside[-30:]) < 0.9


def test_a_number_comes_with_the_deviation_of_its_error() -> None:
    state, batch = a_state("regression"), heights(999, 500)
    for k in range(60):
        step(state, heights(k))
    _, answers = Evaluator(state.served)(Snapshot.of(state), batch.features)
    missed = answers[:, 0].numpy() - batch.labels
    assert answers.shape == (500, 2)
    assert 0.3 < float(np.sqrt(np.mean(missed**2)) / answers[0, 1]) < 3.0


@NUMERIC
@pytest.mark.parametrize("weights", [False, True])
def test_numbers_resume_bit_for_bit(task: str, weights: bool) -> None:
    mine, other = a_state(task), a_state(task)
    fold = Fold(mine)

    def batch(k: int) -> Batch:  # the unit moves before and after the copy
        return heights(k, zero=300.0 * (k // 6), weights=weights)

    for k in range(14):
        fold.step(batch(k), is_fast(k))
    other.load({k: v.clone() for k, v in mine.tensors().items()}, mine.version, mine.examples)
    again = Fold(other)
    for k in range(14, 22):
        assert fold.step(batch(k), is_fast(k)) == again.step(batch(k), is_fast(k))
    assert same_tensors(mine.tensors(), other.tensors())


@NUMERIC
def test_a_snapshot_of_numbers_answers_as_the_step_scores(task: str) -> None:
    state = a_state(task)
    for k in range(12):
        batch = heights(k, zero=100.0 * (k // 4))
        _, answers = Evaluator(state.served)(Snapshot.of(state), batch.features)
        report = step(state, batch)
        if k < 2:  # the first batch has no unit, and before it nothing is known
            continue
        missed = batch.labels[:, None] - answers.numpy()
        levels = np.array(state.spec.predicts.quantiles or (0.5,))
        missed = missed[:, : len(levels)]
        losses = np.maximum(levels * missed, (levels - 1.0) * missed).mean()
        expected = losses if state.spec.predicts.quantiles else np.abs(missed).mean()
        assert float(report.loss) == pytest.approx(float(expected), rel=1e-3)


@NUMERIC
def test_wild_numbers_and_missing_inputs_leave_everything_finite(task: str) -> None:
    state = a_state(task)
    for k in range(20):
        batch = heights(k)
        batch.labels[::9] = 1e30 * (-1) ** k
        batch.features[::7, 2] = 1e18
        step(state, batch)
    for name, tensor in state.served.tensors().items():
        if "thresholds" not in name and "memory" not in name and tensor.is_floating_point():
            assert not bool(tensor.isnan().any()), name
    assert bool(np.isfinite(answered(state, heights(99))).all())


def test_numbers_of_a_state_without_families_go_on_without_them() -> None:
    mine = a_state("regression")
    linear = Fold(State(replace(mine.spec, model="logistic", hidden=()), HYPERPARAMETERS, CPU))
    for k in range(6):
        linear.step(heights(k))
    before = linear.state
    old = {k: v.clone() for k, v in before.tensors().items()}
    mine.load(old, before.version, before.examples)
    fold = Fold(mine)
    for k in range(6, 10):
        assert fold.step(heights(k)) == linear.step(heights(k))
    assert same_tensors(mine.tensors(), before.tensors())


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


CHOICES = [
    (("mlp",), "multiclass"),
    (("trees",), "multiclass"),
    (("neighbours",), "regression"),
    (("frequencies",), "multiclass"),
    ((), "regression"),
    (("trees", "frequencies"), "regression"),
]


@pytest.mark.parametrize(("chosen", "task"), CHOICES, ids=str)
def test_chosen_families_learn_answer_and_resume_alone(chosen: tuple[str, ...], task: str) -> None:
    families = ("linear", *chosen)
    mine, other = a_state(task, families), a_state(task, families)
    assert mine.served.families is not None
    names = {name.partition("/")[0] for name in mine.served.families.names}
    assert names - {"recent"} == set(families) - (
        {"frequencies"} if task == "regression" else set()
    )
    fold = Fold(mine)
    for k in range(12):
        fold.step(of_task(checkers(k), task), is_fast(k))
    fold.step(of_task(checkers(12), task), False)
    other.load({k: v.clone() for k, v in mine.tensors().items()}, mine.version, mine.examples)
    again = Fold(other)
    for k in range(13, 20):
        batch = of_task(checkers(k), task)
        asked = Evaluator(mine.served)(Snapshot.of(mine), batch.features)[0].numpy()
        report = fold.step(batch, False)
        if task == "multiclass":
            assert report.accuracy == pytest.approx(float((asked == batch.labels).mean()))
        assert report == again.step(batch, False)
    assert same_tensors(mine.tensors(), other.tensors())


@pytest.mark.parametrize("name", ["mlp", "trees", "neighbours"])
def test_a_family_that_is_missing_has_no_state(name: str) -> None:
    others = tuple(family for family in FAMILIES if family != name)
    assert a_state(families=("linear", *others)).tensors().keys() < a_state().tensors().keys()


def of_task(batch: Batch, task: str) -> Batch:
    """Return a batch, with numbers for labels if the task wants them."""
    if task == "multiclass":
        return batch
    return Batch(batch.features, batch.labels.astype(np.float32) + batch.features[:, 2])


def test_families_are_chosen_by_name() -> None:
    settings = load_settings({"model": "auto", "families": "trees, mlp"})
    assert settings.spec.families == ("linear", "mlp", "trees")
    assert load_settings({"model": "auto"}).spec.families == ()
    assert load_settings({"model": "auto", "families": "linear"}).spec.families == ("linear",)
    assert load_settings({"model": "mlp", "families": "trees"}).spec.families == ()
    with pytest.raises(SettingsError, match="FAMILIES: 'forests' is none of linear, mlp, trees"):
        load_settings({"model": "auto", "families": "forests"})
