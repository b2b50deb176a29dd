"""Rows have room for few more columns than there are; a log goes on with the room that it began
with."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from service.fold.spec import Spec
from service.fold.state import NARROW, State, size_of
from service.fold.step import Fold
from service.settings import Settings
from streams.rows.numbers import Numbers
from streams.rows.rows import Chunk, Rows
from tests.support.named import a_row_spec, a_row_state
from tests.support.states import HYPERPARAMETERS, same_tensors

CPU = torch.device("cpu")


def rows(columns: int, seed: int = 0, n: int = 20) -> Rows:
    values = np.random.default_rng(seed).normal(size=(columns, n)).astype(np.float32)
    labels = pa.array([str(int(value > 0)) for value in values[0]])
    return Rows((Chunk(Numbers(tuple(f"n{k}" for k in range(columns)), values), labels),))


def learned(state: State, columns: int) -> State:
    fold = Fold(state)
    for seed in range(3):
        batch = rows(columns, seed)
        state.reshape(state.schema.changes_for(batch))
        fold.step(batch)
    return state


@pytest.mark.parametrize(
    ("columns", "narrow", "wide"), [(1, 4, 16), (4, 4, 16), (20, 20, 32), (33, 40, 64)]
)
def test_a_new_model_has_room_for_a_quarter_more_columns_at_most(
    columns: int, narrow: int, wide: int
) -> None:
    schema = learned(a_row_state(), columns).schema
    found, before = size_of(schema, True), size_of(schema, False)
    assert (found.features, found.codes) == (narrow, 0)
    assert (before.features, before.codes) == (wide, 16)
    assert found.used == before.used == (0, columns)
    assert narrow - columns < max(NARROW, columns / 4)


def test_room_grows_with_the_columns_and_weights_stay() -> None:
    state = learned(a_row_state(replace(a_row_spec(), is_narrow=True)), 8)
    before = state.served.pool.columns()["weight"].clone()
    state.reshape(state.schema.changes_for(rows(9)))
    after = state.served.pool.columns()["weight"]
    assert (before.shape[2], after.shape[2]) == (8, 12)
    assert torch.equal(after[:, :, :8], before)
    assert not after[:, :, 8:].any()


def test_only_new_models_of_rows_are_narrow() -> None:
    assert Settings.model_validate({"schema": "auto"}).spec.is_narrow
    assert not Settings.model_validate({"model": "logistic", "features": 3}).spec.is_narrow
    fields = a_row_spec().fields()
    assert "is_narrow" not in fields
    assert not Spec.of(fields).is_narrow
    assert Spec.of(replace(a_row_spec(), is_narrow=True).fields()).is_narrow


@pytest.mark.parametrize("is_narrow", [False, True])
def test_a_state_goes_on_with_the_room_that_it_began_with(is_narrow: bool) -> None:
    spec = replace(a_row_spec(), is_narrow=is_narrow)
    first = learned(a_row_state(spec), 20)
    heir = a_row_state(replace(spec, is_narrow=not is_narrow))
    assert not heir.spec.differences(spec), "no setting chooses it"
    heir.begin_as(spec)
    heir.load(first.tensors(), first.version, first.examples)
    assert same_tensors(heir.tensors(), first.tensors())
    assert heir.served.pool.columns()["weight"].shape[2] == (20 if is_narrow else 32)


def test_a_new_state_takes_the_hyperparameters_of_before() -> None:
    state = State(a_row_spec(), replace(HYPERPARAMETERS, shadow=("adagrad",)), CPU)
    state.begin_as(replace(a_row_spec(), is_narrow=True))
    assert {learner.size.features for learner in state.learners().values()} == {NARROW}
