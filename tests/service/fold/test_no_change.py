"""The last known label as an expert of the served pool: the same bits after a restart, and answers
by the label that a version knows."""

from dataclasses import replace

import pytest
import torch

from service.fold.learner import held_of
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import Spec
from service.fold.state import State
from service.fold.step import Fold
from service.log.position import Progress
from service.settings import Settings
from service.trainer.checkpoint import Checkpoint, decode, encode
from streams.batch import Batch
from tests.support.named import a_row_spec, a_row_state, some_rows
from tests.support.states import (
    CPU,
    HYPERPARAMETERS,
    a_batch,
    a_spec,
    same_tensors,
    statistics_of,
    step,
)

SHADOWED = replace(HYPERPARAMETERS, shadow=("pool", "adagrad"))


def a_state(model: str = "logistic") -> State:
    return State(replace(a_spec(model, "pool"), no_change=True), SHADOWED, CPU)


def runs(seed: int, n: int = 20) -> Batch:
    """Return a batch of one label, whose features say nothing."""
    batch = a_batch(seed, n)
    return Batch(batch.features, torch.full((n,), seed // 10 % 3).numpy())


def restarted(state: State) -> State:
    """Return a state that was loaded from a checkpoint of another one."""
    copy = Checkpoint.of(state, Progress("log"))
    saved = decode(encode(copy, copy.sha256(), {})).copy
    again = State(saved.spec, saved.hyperparameters, CPU)
    again.load(saved.tensors, saved.version, saved.examples, saved.drifts, saved.byte_examples)
    return again


@pytest.mark.parametrize("model", ["logistic", "mlp", "tests.support.states:Drawing"])
def test_a_resumed_pool_goes_on_exactly(model: str) -> None:
    whole = a_state(model)
    for k in range(30):
        step(whole, runs(k))
    resumed = restarted(whole)
    for state in (whole, resumed):
        for k in range(30, 50):
            step(state, runs(k))
    assert same_tensors(whole.tensors(), resumed.tensors())
    assert "loss.last" in whole.tensors()
    assert "shadow.pool.loss.last" in whole.tensors()
    assert "shadow.adagrad.loss.last" not in whole.tensors()


def test_rows_whose_classes_appear_are_resumed_exactly() -> None:
    whole = a_row_state(replace(a_row_spec(), no_change=True))

    def learn(state: State, first: int, stop: int) -> None:
        fold = Fold(state)
        for k in range(first, stop):
            rows = some_rows(k, classes=2 if k < 6 else 3)
            state.reshape(state.schema.changes_for(rows))
            fold.step(rows)

    learn(whole, 0, 10)
    resumed = restarted(whole)
    learn(whole, 10, 20)
    learn(resumed, 10, 20)
    assert same_tensors(whole.tensors(), resumed.tensors())
    rows = some_rows(99)
    _, found = Evaluator(whole.served)(Snapshot.of(whole), rows)
    _, other = Evaluator(resumed.served)(Snapshot.of(resumed), rows)
    assert torch.equal(found, other)
    assert found.shape[1] == len(whole.schema.labels) == 4
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)))


def test_an_answer_goes_by_the_last_label_of_its_version() -> None:
    state = a_state()
    for k in range(180):
        step(state, runs(k))
    before = Snapshot.of(state)
    for k in (180, 181):
        step(state, runs(k))
    after = Snapshot.of(state)
    assert [int(held_of(s.weights)["last"][2]) for s in (before, after)] == [2, 0]
    evaluate, rows = Evaluator(state.served), a_batch(999).features
    with_weight = [float(s.weights["mixing.log_weights"][-1].exp()) for s in (before, after)]
    assert min(with_weight) > 0.1
    labels, _ = evaluate(before, rows)
    assert (labels == 2).float().mean() > 0.5
    labels, _ = evaluate(after, rows)
    assert (labels == 2).float().mean() < 0.5


def test_its_weight_is_shown_among_those_of_the_experts() -> None:
    state = a_state()
    for k in range(60):
        step(state, runs(k))
    found = statistics_of(state).served.expert_weights
    assert list(found)[-1] == "no_change"
    assert len(found) == 7
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["no_change"] == pytest.approx(
        float(state.served.pool.mixing.log_weights[-1].exp())
    )


def test_a_spec_that_was_recorded_without_the_field_has_no_such_expert() -> None:
    fields = a_spec(optimizer="pool").fields()
    assert "no_change" not in fields
    assert not Spec.of(fields).no_change
    assert Spec.of(a_state().spec.fields()).no_change


def test_new_pools_of_classes_have_it() -> None:
    def spec(**given: object) -> Spec:
        return Settings.model_validate(given).spec

    assert spec(model="logistic").no_change
    assert spec(model="mlp").no_change
    assert spec(model="logistic", schema="auto", task="binary").no_change
    assert not spec(model="auto").no_change
    assert not spec(model="logistic", schema="auto", task="regression").no_change
    assert spec(model="logistic", optimizer="adam", shadow=("pool",)).no_change
