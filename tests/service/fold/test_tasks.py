"""Tasks beyond classes: numbers in their own unit, two classes, the same bits after a restart."""

from dataclasses import replace

import numpy as np
import orjson
import pytest

from service.fold.schema.schema import Schema
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import Spec
from service.fold.state import State
from service.fold.task import Task
from service.log.position import Progress
from service.trainer.checkpoint import Checkpoint, decode, encode
from streams.batch import Batch, InvalidBatchError, check
from streams.rows.records import from_json
from streams.rows.rows import Rows
from tests.support.named import a_row_spec, a_row_state, extend
from tests.support.states import CPU, HYPERPARAMETERS, same_tensors, statistics_of, step

TASKS = ("binary", "regression", "quantile:0.1,0.5,0.9")
NUMBERS = TASKS[1:]
SHADOWED = replace(HYPERPARAMETERS, shadow=("adagrad",))


def a_spec(task: str, model: str = "logistic") -> Spec:
    classes = 2 if task == "binary" else 0
    hidden = (5,) if model == "mlp" else ()
    return Spec(model, 3, classes, hidden, "pool", True, 0, 6, task=task)


def a_state(task: str, model: str = "logistic") -> State:
    return State(a_spec(task, model), SHADOWED, CPU)


def a_batch(task: str, seed: int, n: int = 50, scale: float = 1.0, zero: float = 0.0) -> Batch:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n, 3)).astype(np.float32)
    numbers = inputs @ np.float32([1.0, -2.0, 0.5]) + 0.3 * rng.normal(size=n)
    if task == "binary":
        return Batch(inputs, (numbers > 0).astype(np.int64))
    return Batch(inputs, (scale * numbers + zero).astype(np.float32))


def some_rows(task: str, seed: int, n: int = 50) -> Rows:
    batch = a_batch(task, seed, n)
    plans = np.random.default_rng(seed).integers(0, 4, n).tolist()
    rows = [
        {"a": row[0], "b": row[1], "plan": f"plan {plan}"}
        for row, plan in zip(batch.features.tolist(), plans, strict=True)
    ]
    words = ["no", "yes"]
    labels = batch.labels.tolist()
    if task == "binary":
        labels = [words[label] for label in labels]
    return from_json(orjson.dumps({"rows": rows, "labels": labels}), True)


def a_row_spec_of(task: str) -> Spec:
    numeric = Task.parse(task).is_numeric
    schema = Schema(numeric_labels=numeric) if numeric else Schema(max_classes=2)
    return replace(a_row_spec(schema), task=task)


def answers(state: State, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    labels, found = Evaluator(state.served)(Snapshot.of(state), batch.features)
    return labels.numpy(), found.numpy()


def reloaded(state: State, spec: Spec) -> State:
    """Return the state after a checkpoint was written and read."""
    state.drift.settle()
    copy = Checkpoint.of(state, Progress())
    read = decode(encode(copy, copy.sha256(), {})).copy
    assert read.spec == spec
    again = State(spec, SHADOWED, CPU)
    again.load(read.tensors, read.version, read.examples, read.drifts, read.byte_examples)
    return again


@pytest.mark.parametrize("model", ["logistic", "mlp"])
@pytest.mark.parametrize("task", TASKS)
def test_a_state_continues_from_a_checkpoint_with_the_same_bits(task: str, model: str) -> None:
    state = a_state(task, model)
    for k in range(20):
        step(state, a_batch(task, k))
    again = reloaded(state, a_spec(task, model))
    for k in range(20, 30):
        step(state, a_batch(task, k))
        step(again, a_batch(task, k))
    assert same_tensors(state.tensors(), again.tensors())


@pytest.mark.parametrize("task", TASKS)
def test_rows_continue_from_a_checkpoint_with_the_same_bits(task: str) -> None:
    spec = a_row_spec_of(task)
    state = a_row_state(spec, SHADOWED)
    for k in range(10):
        rows = some_rows(task, k)
        extend(state, rows)
        step(state, rows)
    again = reloaded(state, spec)
    for k in range(10, 15):
        rows = some_rows(task, k)
        for one in (state, again):
            extend(one, rows)
            step(one, rows)
    assert same_tensors(state.tensors(), again.tensors())
    assert state.served.scores.read().rolling_accuracy > 0.7


@pytest.mark.parametrize("task", NUMBERS)
def test_numbers_are_answered_in_the_unit_in_which_they_were_sent(task: str) -> None:
    state = a_state(task)
    for k in range(60):
        report = step(state, a_batch(task, k, scale=2_000.0, zero=1e5))
    fresh = a_batch(task, 1_000, 500, scale=2_000.0, zero=1e5)
    values, found = answers(state, fresh)
    error = np.abs(values - fresh.labels).mean()
    assert error < 1.25 * 0.3 * 2_000.0 * np.sqrt(2 / np.pi)
    assert 0 < report.loss < 1_000.0
    if task == "regression":
        assert found[:, 1].min() > 400.0
        assert found[:, 1].max() < 800.0
    else:
        assert (np.diff(found, axis=1) >= 0).all()
        inside = (found[:, 0] < fresh.labels) & (fresh.labels < found[:, 2])
        assert 0.7 < inside.mean() < 0.9


@pytest.mark.parametrize("task", NUMBERS)
def test_a_power_of_two_as_unit_changes_no_bit(task: str) -> None:
    one, other = a_state(task), a_state(task)
    for k in range(20):
        step(one, a_batch(task, k))
        step(other, a_batch(task, k, scale=1_024.0))
    mine, theirs = answers(one, a_batch(task, 99)), answers(other, a_batch(task, 99))
    assert np.array_equal(mine[1] * np.float32(1_024.0), theirs[1])


@pytest.mark.parametrize("task", NUMBERS)
def test_a_wild_number_hardly_moves_the_answers(task: str) -> None:
    state = a_state(task)
    for k in range(60):
        step(state, a_batch(task, k))
    fresh = a_batch(task, 1_000, 200)
    before = answers(state, fresh)[0]
    wild = a_batch(task, 60)
    wild.labels[7] = 1e12
    step(state, wild)
    assert np.abs(answers(state, fresh)[0] - before).mean() < 0.2
    assert all(tensor.isfinite().all() for tensor in state.served.frozen().values())


@pytest.mark.parametrize("task", NUMBERS)
def test_numbers_that_move_to_another_unit_are_followed(task: str) -> None:
    state = a_state(task)
    for k in range(60):
        step(state, a_batch(task, k))
    for k in range(60, 120):
        step(state, a_batch(task, k, scale=1_000.0, zero=-1e6))
    fresh = a_batch(task, 1_000, 500, scale=1_000.0, zero=-1e6)
    assert np.abs(answers(state, fresh)[0] - fresh.labels).mean() < 400.0


def test_a_constant_target_is_learned() -> None:
    state = a_state("regression")
    for k in range(20):
        batch = a_batch("regression", k)
        step(state, Batch(batch.features, np.full(50, 7.5, np.float32)))
    values, found = answers(state, a_batch("regression", 99))
    assert np.allclose(values, 7.5, atol=1e-3)
    assert np.isfinite(found).all()


def test_whole_numbers_and_numbers_with_fractions_may_follow_one_another() -> None:
    state = a_state("regression")
    batch = a_batch("regression", 0, scale=100.0)
    step(state, Batch(batch.features, batch.labels.astype(np.int64)))
    step(state, batch)
    assert state.version == 2


def test_labels_are_checked_as_the_task_has_them() -> None:
    batch = a_batch("regression", 0)
    check(batch, 3, 0)
    with pytest.raises(InvalidBatchError, match="FUNNEL_TASK=regression"):
        check(batch, 3, 2)
    batch.labels[3] = np.nan
    with pytest.raises(InvalidBatchError, match="label nan is not finite") as error:
        check(batch, 3, 0)
    assert error.value.index == 3


def test_a_row_with_a_word_for_a_number_is_refused_by_row() -> None:
    schema = Schema(numeric_labels=True)
    rows = from_json(b'{"rows": [{"a": 1}, {"a": 2}], "labels": [1.5, "many"]}', True)
    with pytest.raises(InvalidBatchError, match="'many' is no finite number") as error:
        schema.check(rows)
    assert error.value.index == 1
    assert schema.changes_for(rows)
    assert not schema.after(schema.changes_for(rows)).labels


def test_a_third_label_is_refused_where_there_are_two() -> None:
    schema = Schema(max_classes=2, labels=("no", "yes"))
    rows = from_json(b'{"rows": [{"a": 1}], "labels": ["perhaps"]}', True)
    with pytest.raises(InvalidBatchError, match="all of its 2 classes"):
        schema.check(rows)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ranking", "choose auto"),
        ("regression:0.5", "choose auto"),
        ("quantile:", "no list"),
        ("quantile:0.5,0.1", "ascending"),
        ("quantile:0,1", "between"),
    ],
)
def test_a_task_that_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Task.parse(text)


def test_a_task_is_part_of_the_spec_and_shown_only_where_it_is_new() -> None:
    spec = a_spec("regression")
    assert Spec.of(spec.fields()) == spec
    assert "task" not in replace(spec, task="multiclass").fields()
    assert spec.differences(replace(spec, task="binary")) == [("task", "binary", "regression")]


def rare(seed: int, n: int = 100) -> Batch:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.05).astype(np.int64)
    inputs = rng.normal(size=(n, 3)) + labels[:, None] * 0.8
    return Batch(inputs.astype(np.float32), labels)


def test_balanced_classes_let_a_rare_one_be_recalled() -> None:
    recalls = {}
    for weights in ("none", "balanced"):
        hyperparameters = replace(HYPERPARAMETERS, class_weights=weights)
        state = State(a_spec("binary"), hyperparameters, CPU)
        for k in range(60):
            step(state, rare(k))
        fresh = rare(1_000, 4_000)
        recalls[weights] = (answers(state, fresh)[0][fresh.labels == 1] == 1).mean()
    assert recalls["none"] < 0.4
    assert recalls["balanced"] > 0.6


def test_class_weights_are_recorded_only_where_they_are_set() -> None:
    assert "class_weights" not in HYPERPARAMETERS.fields()
    balanced = replace(HYPERPARAMETERS, class_weights="balanced")
    assert type(balanced).of(balanced.fields()) == balanced


@pytest.mark.parametrize("task", NUMBERS)
def test_scores_of_numbers_are_those_of_all_predictions_but_the_first_batch(task: str) -> None:
    state = a_state(task)
    errors, batches = [], [a_batch(task, k, scale=200.0, zero=1e4) for k in range(30)]
    for k, batch in enumerate(batches):
        if k:
            errors.append(np.abs(answers(state, batch)[0] - batch.labels))
        step(state, batch)
    statistics = statistics_of(state)
    shown = statistics.numbers()
    assert set(shown) == {"served", "adagrad", "mean", "no_change"}
    total = shown["served"].windows["total"].scores()
    assert shown["served"].windows["total"].examples == 29 * 50
    if task == "regression":
        assert total["mae"] == pytest.approx(np.concatenate(errors).mean(), rel=1e-4)
        assert total["r2"] > 0.9
        assert 0.85 < total["coverage"] <= 1.0
    else:
        assert 0.7 < total["coverage"] < 0.95
    assert statistics.below_floors() == []


def test_a_model_of_numbers_that_follow_no_input_is_said_to_be_below_its_floor() -> None:
    spec = replace(a_spec("regression"), optimizer="sgd", experts=0)
    state = State(spec, replace(HYPERPARAMETERS, lr=0.5), CPU)
    rng = np.random.default_rng(0)
    for k in range(40):
        batch = a_batch("regression", k)
        step(state, Batch(batch.features, rng.normal(size=50).astype(np.float32)))
    (found,) = [text for text in statistics_of(state).below_floors() if "mean" in text]
    assert found.startswith("below the floor mean: loss ")
