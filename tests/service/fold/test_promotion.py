"""A promoted shadow answers, and all learners go on as they were."""

from dataclasses import replace

import pytest
import torch

from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import Spec
from service.fold.state import ORIGINAL, PROMOTED, SERVED, State
from service.fold.step import Fold
from service.log.position import ORIGIN, Position, Progress
from service.trainer.checkpoint import Checkpoint
from streams.batch import Features
from tests.support.states import CPU, HYPERPARAMETERS, a_batch, a_spec, same_tensors

PROGRESS = Progress("uuid", 0, 0, Position(ORIGIN), 0, 0, 0, 0)
SHADOWED = replace(HYPERPARAMETERS, shadow=("adagrad:0.1", "adam"))
ASKED: Features = a_batch(99).features
OWN = ("calibration.", PROMOTED)


def a_state(spec: Spec | None = None) -> State:
    return State(spec or replace(a_spec(), calibrate=True), SHADOWED, CPU)


def learned(state: State, seeds: range) -> Fold:
    fold = Fold(state)
    for k in seeds:
        fold.step(a_batch(k))
    return fold


def raw(state: State) -> torch.Tensor:
    """Answers to ASKED as they come, without calibration."""
    snapshot = replace(Snapshot.of(state), calibration=None)
    return Evaluator(state.answering)(snapshot, ASKED)[1]


@pytest.mark.parametrize("model", ["logistic", "mlp", "auto", "tests.golden.restless:Restless"])
def test_a_promotion_changes_who_answers_and_nothing_that_is_learned(model: str) -> None:
    spec = replace(a_spec(model), calibrate=True)
    whole, promoted = a_state(spec), a_state(spec)
    for state in (whole, promoted):
        fold = learned(state, range(4))
        if state is promoted:
            state.promote("adam")
        for k in range(4, 8):
            fold.step(a_batch(k))
    ours = {k: v for k, v in promoted.tensors().items() if not k.startswith(OWN)}
    theirs = {k: v for k, v in whole.tensors().items() if not k.startswith(OWN)}
    assert same_tensors(ours, theirs)
    evaluator = Evaluator(promoted.served)  # made before, as a service's is
    snapshot = replace(Snapshot.of(promoted), calibration=None)
    assert torch.equal(evaluator(snapshot, ASKED)[1], raw(promoted))
    assert not torch.equal(raw(promoted), raw(whole))
    assert torch.equal(raw(promoted), Evaluator(whole.shadows["adam"])(
        replace(snapshot, weights=whole.shadows["adam"].frozen()), ASKED)[1])  # fmt: skip


def test_an_evaluator_of_one_expert_lets_all_experts_of_a_promoted_pool_answer() -> None:
    state = State(a_spec(optimizer="funnel"), replace(HYPERPARAMETERS, shadow=("pool",)), CPU)
    evaluator = Evaluator(state.served)
    learned(state, range(4))
    before = evaluator(Snapshot.of(state), ASKED)[1]
    state.promote("pool")
    snapshot = Snapshot.of(state)
    expected = Evaluator(state.shadows["pool"])(snapshot, ASKED)[1]
    assert torch.equal(evaluator(snapshot, ASKED)[1], expected)
    assert evaluator.of(snapshot) is evaluator.of(snapshot)
    state.promote(ORIGINAL)
    assert torch.equal(evaluator(Snapshot.of(state), ASKED)[1], before)


def test_roles_swap_and_swap_back() -> None:
    state = a_state()
    began, adam = state.served, state.shadows["adam"]
    state.promote("adam")
    assert state.roles() == {
        SERVED: adam,
        ORIGINAL: began,
        "adagrad:0.1": state.shadows["adagrad:0.1"],
    }
    state.promote(ORIGINAL)
    assert state.roles() == state.learners()
    assert state.answering is began
    for name in ("sgd", SERVED, ""):
        with pytest.raises(KeyError):
            state.promote(name)


def test_the_calibration_begins_again_and_learns_what_is_answered() -> None:
    state = a_state()
    fold = learned(state, range(6))
    assert state.calibration is not None
    before = state.calibration.answer.clone()
    state.promote("adam")
    assert state.calibration.answer.tolist() == [1.0, 0.0, 0.5]
    for k in range(6, 12):
        fold.step(a_batch(k))
    assert state.calibration.scores.read().scored == 120
    alone = State(replace(a_spec(optimizer="adam"), calibrate=True), HYPERPARAMETERS, CPU)
    assert alone.calibration is not None
    assert not torch.equal(state.calibration.answer, before)


def test_a_promoted_state_resumes_bit_for_bit_also_when_no_setting_names_its_shadow() -> None:
    state = a_state()
    fold = learned(state, range(4))
    state.promote("adam")
    fold.step(a_batch(4))
    state.set_hyperparameters(HYPERPARAMETERS)
    assert [*state.shadows] == ["adam"]
    fold.step(a_batch(5))
    saved = Checkpoint.of(state, PROGRESS)
    resumed = State(state.spec, HYPERPARAMETERS, CPU)
    resumed.load(saved.tensors, saved.version, saved.examples)
    assert resumed.promoted == "adam"
    assert torch.equal(raw(resumed), raw(state))
    for one in (fold, Fold(resumed)):
        one.step(a_batch(6))
    assert Checkpoint.of(state, PROGRESS).sha256() == Checkpoint.of(resumed, PROGRESS).sha256()
    for one in (state, resumed):
        one.promote(ORIGINAL)
        assert not one.shadows
    assert PROMOTED not in state.tensors()
    saved = Checkpoint.of(state, PROGRESS)
    resumed.load(saved.tensors, saved.version, saved.examples)
    assert not resumed.promoted
