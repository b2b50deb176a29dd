"""The fold of named rows: growth, missing values, keys, and the same bits after a restart."""

from collections import Counter
from dataclasses import replace

import numpy as np
import orjson
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.fold.schema.changes import AddLabels
from service.fold.schema.keys import keys_of, prefix_of
from service.fold.schema.names import named_keys
from service.fold.schema.schema import Schema
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.state import State
from service.fold.step import Fold
from service.log.position import Progress
from service.trainer.checkpoint import Checkpoint, decode, encode
from streams.rows.numbers import Numbers
from streams.rows.records import from_json
from streams.rows.rows import Chunk, Rows, join
from tests.support.named import a_row_spec, a_row_state, extend, records, some_rows
from tests.support.states import HYPERPARAMETERS, same_tensors, step

MODELS = ("logistic", "mlp", "auto")
LEARNERS = (
    ("logistic", "pool"),
    ("mlp", "pool"),
    ("auto", "pool"),
    ("logistic", "funnel"),
    ("logistic", "adagrad"),
)


def fold(state: State, rows: Rows) -> None:
    extend(state, rows)
    step(state, rows)


def rows_of_numbers(seed: int) -> Rows:
    numbers = np.random.default_rng(seed).normal(size=(20, 2))
    found = [{"age": a, "height": b} for a, b in numbers.tolist()]
    labels = ["stay" if row["age"] > 0 else "churn" for row in found]
    return from_json(orjson.dumps({"rows": found, "labels": labels}), True)


def predicted(state: State, rows: Rows) -> tuple[list[str], np.ndarray]:
    labels, probabilities = Evaluator(state.served)(Snapshot.of(state), rows)
    return [state.schema.labels[k] for k in labels.tolist()], probabilities.numpy()


@pytest.mark.parametrize(("model", "optimizer"), LEARNERS)
def test_rows_are_learned(model: str, optimizer: str) -> None:
    state = a_row_state(a_row_spec(model=model, optimizer=optimizer))
    for k in range(60):
        fold(state, some_rows(k, 50))
    found, probabilities = predicted(state, some_rows(1_000, 500))
    _, truth = records(1_000, 500)
    assert np.mean([a == str(b) for a, b in zip(found, truth, strict=True)]) > 0.7
    assert np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)


def test_the_prediction_of_a_snapshot_does_not_change_while_learning_goes_on() -> None:
    state, rows = a_row_state(), some_rows(500, 50)
    for k in range(5):
        fold(state, some_rows(k))
    snapshot, evaluate = Snapshot.of(state), Evaluator(state.served)
    before = evaluate(snapshot, rows)[1]
    for k in range(5, 12):
        fold(state, some_rows(k, late=True, classes=3))
        Snapshot.of(state)
    assert torch.equal(evaluate(snapshot, rows)[1], before)


def test_columns_in_another_order_give_the_same_bits() -> None:
    one, other = a_row_state(), a_row_state()
    for k in range(12):
        rows = some_rows(k)
        [chunk] = rows.chunks
        names = chunk.columns.schema.names
        fold(one, rows)
        extend(other, rows)
        step(other, Rows((Chunk(chunk.columns.select(names[::-1]), chunk.labels),)))
    assert same_tensors(one.tensors(), other.tensors())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("is_late", [True, False])
def test_an_array_of_numbers_gives_the_bits_of_its_columns(
    dtype: type[np.float32], is_late: bool
) -> None:
    """In the schema's order and in another, while features start, and after a column has come."""
    one, other = a_row_state(), a_row_state()
    foreseen = Fold(other)
    for k in range(8):
        random = np.random.default_rng(k)
        names = ["a", "b", *["late"] * (is_late and k > 3)][:: 1 if k % 2 else -1]
        values = random.normal(size=(len(names), 30)).astype(dtype)
        values[0, 0] = 1e30 if dtype is np.float32 else 1e300
        labels = pa.array([str(word) for word in random.integers(0, 3, 30)])
        array = Rows((Chunk(Numbers(tuple(names), values), labels),))
        wide = dict(zip(names, values.astype(np.float64), strict=True))
        columns = Rows((Chunk(pa.record_batch(wide), labels),))
        fold(one, columns)
        extend(other, array)
        parts = [array.part(0, 30)]
        foreseen.foresee([*parts, array])
        foreseen.step(parts[0])
    assert same_tensors(one.tensors(), other.tensors())


def test_a_step_has_the_same_bits_whatever_was_foreseen() -> None:
    """Whether the next batches came, came late, or met a schema that had grown meanwhile."""
    one, other = a_row_state(), a_row_state()
    batches = [some_rows(k, late=k > 4, classes=1 + k // 4) for k in range(9)]
    for rows in batches:
        fold(one, rows)
    extend(other, batches[0])
    folding = Fold(other)
    for k, rows in enumerate(batches):
        if k % 3 == 0:
            folding.foresee([some_rows(99), *batches[k : k + 3]])
        extend(other, rows)
        folding.step(rows)
    assert same_tensors(one.tensors(), other.tensors())


def test_numbers_alone_are_learned_without_the_table_and_categories_with_it() -> None:
    """A state saved while its table was empty goes on bit for bit when the first key comes."""
    numbers = [rows_of_numbers(k) for k in range(6)]
    one, other = a_row_state(), a_row_state()
    for rows in numbers:
        fold(one, rows)
    assert one.served.table is not None
    assert one.served.table.index.used == 0
    copy = Checkpoint.of(one, Progress())
    saved = decode(encode(copy, copy.sha256(), {})).copy
    other.load(saved.tensors, saved.version, saved.examples)
    for state in (one, other):
        for k in range(6):
            fold(state, some_rows(k))
            fold(state, rows_of_numbers(k))
        assert state.served.table is not None
        assert state.served.table.index.used > 0
    assert same_tensors(one.tensors(), other.tensors())


def test_chunks_do_not_matter() -> None:
    one, other = a_row_state(), a_row_state()
    for k in range(6):
        rows = some_rows(k)
        fold(one, rows)
        extend(other, rows)
        step(other, join([rows.part(j, j + 1) for j in range(len(rows))]))
    assert same_tensors(one.tensors(), other.tensors())


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=12)
@given(data=st.data())
def test_a_saved_state_of_rows_goes_on_bit_for_bit(model: str, data: st.DataObject) -> None:
    """Whatever was saved: before any row, within a growth of columns or classes, or after it."""
    batches = [
        some_rows(k, data.draw(st.integers(1, 30)), late=k > 4, classes=1 + k // 3)
        for k in range(9)
    ]
    saved_at = data.draw(st.integers(0, len(batches)))
    spec = a_row_spec(model=model, bits=data.draw(st.sampled_from([0, 4, 12])))
    hyperparameters = replace(HYPERPARAMETERS, shadow=("adagrad",))
    one, other = (a_row_state(spec, hyperparameters) for _ in range(2))
    for rows in batches[:saved_at]:
        fold(one, rows)
    copy = Checkpoint.of(one, Progress())
    saved = decode(encode(copy, copy.sha256(), {})).copy
    other.load(saved.tensors, saved.version, saved.examples)
    for rows in batches[saved_at:]:
        fold(one, rows)
        fold(other, rows)
    assert same_tensors(one.tensors(), other.tensors())
    assert one.schema == other.schema


def test_classes_that_were_declared_are_as_those_that_grew() -> None:
    """A class without an example has the probability 0, declared or not."""
    _, labels = records(1, 60)
    names = tuple(dict.fromkeys(map(str, labels)))
    declared = a_row_state(a_row_spec(Schema(labels=names)))
    grown = a_row_state()
    for k in range(8):
        fold(declared, some_rows(k))
        fold(grown, some_rows(k))
    assert set(grown.schema.labels) <= {*names}
    order = [declared.schema.labels.index(name) for name in grown.schema.labels]
    mine, theirs = (predicted(state, some_rows(99))[1] for state in (grown, declared))
    assert np.allclose(mine, theirs[:, order], atol=1e-5)


def test_a_class_that_appears_late_begins_at_its_share_and_is_learned() -> None:
    state = a_row_state()
    for k in range(30):
        fold(state, some_rows(k, 50))
    state.reshape([AddLabels(("novel",))])
    _, probabilities = predicted(state, some_rows(100, 200))
    assert 0.0 < probabilities[:, -1].max() < 0.2
    rows, _ = records(200, 50)
    novel = from_json(orjson.dumps({"rows": rows, "labels": ["novel"] * 50}), True)
    for _ in range(20):
        fold(state, novel)
    assert np.mean([name == "novel" for name in predicted(state, novel)[0]]) > 0.9


def test_rows_whose_label_has_no_room_are_not_learned_and_the_others_are() -> None:
    state = a_row_state(a_row_spec(Schema(max_classes=2)))
    for k in range(4):
        fold(state, some_rows(k, classes=1))
    step(state, some_rows(9, 30, classes=3))
    assert len(state.schema.labels) == 2
    assert state.examples == 4 * 20 + 30
    assert int(state.served.scores.scored) < state.examples


def test_a_column_without_any_value_changes_no_statistics() -> None:
    state = a_row_state()
    for k in range(5):
        fold(state, some_rows(k))
    place = state.schema.place[state.schema.index["age"]]
    before = state.standardizer.statistics[:, place].clone()
    rows, labels = records(7)
    for row in rows:
        row.pop("age", None)
    fold(state, from_json(orjson.dumps({"rows": rows, "labels": labels}), True))
    assert torch.equal(state.standardizer.statistics[:, place], before)
    assert state.missing_ratios()["age"] > 0.1


@pytest.mark.parametrize("bits", [3, 14])
def test_keys_that_get_a_row_are_counted_once_by_their_column(bits: int) -> None:
    crosses = (("plan", "city"),)
    state, seen = a_row_state(a_row_spec(Schema(crosses=crosses), bits=bits)), set()
    of_key = {}
    for k in range(8):
        rows = some_rows(k, late=k > 4)
        fold(state, rows)
        for key, name in named_keys(state.schema, rows).items():
            of_key[key] = name
        table = state.served.table
        assert table is not None
        seen |= set(table.index.keys.tolist())
    column_of = {
        key: name.split("=")[0].split(" is ")[0].split(":")[0]
        for key, name in of_key.items()
        if " × " not in name
    }
    counts = Counter(column_of[key] for key in seen if key in column_of)
    assert state.new_key_counts() == {
        column.name: counts[column.name] for column in state.schema.columns
    }
    assert sum(counts.values()) < table.index.used, "keys of the cross have rows too"


def test_visits_count_the_rows_that_had_a_key() -> None:
    state, found = a_row_state(a_row_spec(bits=16)), Counter()
    for k in range(5):
        rows, labels = records(k)
        fold(state, from_json(orjson.dumps({"rows": rows, "labels": labels}), True))
        found.update(str(row["plan"]) for row in rows)
    assert state.served.table is not None
    index = state.served.table.index
    for plan, count in found.items():
        [row] = index.find(keys_of(prefix_of("plan", "category"), [plan.encode()])).tolist()
        assert index.row_visits[row] == count


def test_a_state_from_before_keys_were_counted_loads_with_counts_of_zero() -> None:
    state = a_row_state(a_row_spec(optimizer="funnel"), replace(HYPERPARAMETERS, shadow=("sgd",)))
    for k in range(5):
        fold(state, some_rows(k))
    added = {"new_keys", "table.visits", "shadow.sgd.table.visits"}
    old = {name: tensor for name, tensor in state.tensors().items() if name not in added}
    assert len(old) == len(state.tensors()) - 3
    loaded = a_row_state(a_row_spec(optimizer="funnel"), state.hyperparameters)
    loaded.load(old, state.version, state.examples)
    assert set((loaded.new_key_counts() or {}).values()) == {0}
    for k in range(5, 8):
        fold(state, some_rows(k))
        fold(loaded, some_rows(k))
    before, after = (
        {name: tensor for name, tensor in one.tensors().items() if name not in added}
        for one in (state, loaded)
    )
    assert same_tensors(before, after)


def test_a_table_of_few_slots_shows_its_collisions() -> None:
    crowded, roomy = (a_row_state(a_row_spec(bits=bits)) for bits in (3, 16))
    for k in range(5):
        fold(crowded, some_rows(k))
        fold(roomy, some_rows(k))
    assert crowded.key_collisions() > 0.3
    assert roomy.key_collisions() == 0.0
