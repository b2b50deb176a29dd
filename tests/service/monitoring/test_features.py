"""What is read back from a model of rows is what its tensors hold."""

import numpy as np
import pytest
import torch

from service.fold.schema.keys import keys_of, prefix_of
from service.fold.schema.names import named_keys
from service.fold.snapshot import Snapshot
from service.monitoring.features import FeatureNames, Names, Weights, learned, strongest
from tests.support.clock import StillClock
from tests.support.named import a_row_spec, a_row_state, extend, some_rows
from tests.support.states import step


def weights_of(found: list[Weights], name: str) -> Weights:
    return next(one for one in found if one.name == name)


@pytest.mark.parametrize("optimizer", ["pool", "funnel"])
def test_a_gain_is_the_geometric_mean_over_labels_and_experts_by_weight(optimizer: str) -> None:
    state, names = a_row_state(a_row_spec(optimizer=optimizer)), {}
    for k in range(30):
        rows = some_rows(k, 50)
        extend(state, rows)
        step(state, rows)
        names |= named_keys(state.schema, rows)
    found = strongest(Snapshot.of(state), Names.of(names), 1_000)
    age, vip = weights_of(found, "age"), weights_of(found, "plan=vip")
    table, labels = state.served.table, len(state.schema.labels)
    assert table is not None
    [row] = table.index.find(keys_of(prefix_of("plan", "category"), [b"vip"])).tolist()
    of_age = table.pool.columns()["log_gain"][:, :labels, state.schema.place[3]]
    of_vip = table.rows.named()["log_gain"][row, :, :labels]
    shares = table.pool.mixing.log_weights.exp().numpy()
    for one, log_gain in ((age, of_age), (vip, of_vip)):
        expected = np.exp((shares[:, None] * log_gain.numpy()).sum(axis=0).mean())
        [how] = learned(state, [one])
        assert how.gain == pytest.approx(expected, rel=1e-5)
        assert how.gain != pytest.approx(1.0, abs=1e-3)


def test_reading_gains_and_counts_changes_nothing() -> None:
    state, rows = a_row_state(), some_rows(0, 50)
    extend(state, rows)
    step(state, rows)
    found = strongest(Snapshot.of(state), Names.of(named_keys(state.schema, rows)), 1_000)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    counts = {one.name: how.count for one, how in zip(found, learned(state, found), strict=True)}
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())
    assert sum(count for name, count in counts.items() if name.startswith("plan=")) == 50
    assert counts["age"] + counts["age is missing"] == 50


def test_a_model_without_labels_yet_has_no_features() -> None:
    assert strongest(Snapshot.of(a_row_state()), Names.of({}), 10) == []


def test_names_are_noted_once_a_second_and_those_that_were_read_stay_as_they_are() -> None:
    state, clock = a_row_state(), StillClock()
    names, known, first = FeatureNames(clock), dict[int, str](), FeatureNames(clock).read()
    for k in range(3):
        rows = some_rows(k, 50)
        extend(state, rows)
        names.note(state.schema, rows)
        names.note(state.schema, some_rows(100, 50))  # within the same second
        known |= named_keys(state.schema, rows)
        if k == 0:
            first, count = names.read(), len(known)
        clock.now += 1.5
    last = names.read()
    assert dict(zip(last.keys.tolist(), last.texts.to_pylist(), strict=True)) == known
    assert len(first) == count < len(last)
