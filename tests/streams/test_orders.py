"""The stream of orders: the same for a seed however it is cut, and its relation drifts."""

from itertools import islice

import numpy as np
import pyarrow as pa
import pytest

from service.commands.comparisons.row_comparison import ServedRows
from service.fold.schema.schema import Schema
from service.settings import load_settings
from streams.made.named import STREAMS, named
from streams.orders import LABELS, SEASON, orders
from streams.peers.row_learners import RowBatch
from streams.rows.rows import TYPES, Rows, join
from streams.sources.names import ROW_NAMES


def table(rows: Rows) -> pa.Table:
    """Return rows and their labels as one table."""
    batches = [c.columns.append_column("outcome", c.labels) for c in rows.chunks]
    return pa.Table.from_batches(batches).combine_chunks()


def test_help_names_the_streams_that_are_made() -> None:
    assert tuple(STREAMS) == ROW_NAMES
    assert tuple(named(name, 1_000).name for name in STREAMS) == ROW_NAMES
    assert [shift.example for shift in named("churn", 1_000).shifts] == [0, 500]


def test_how_it_is_cut_does_not_change_it_and_its_seed_does() -> None:
    one, other = (table(join(list(orders(1_234).batches(n, 3)))) for n in (1_234, 7))
    assert one.num_rows == 1_234
    assert one.equals(other)
    assert not one.equals(table(join(list(orders(1_234).batches(100, 4)))))
    assert one.equals(table(join(list(orders(9_999).batches(100, 3)))).slice(0, 1_234))


def test_it_has_strings_numbers_times_and_missing_values() -> None:
    found = table(join(list(orders(2_000).batches(500))))
    assert {str(field.type) for field in found.schema} <= set(map(str, TYPES))
    kinds = {str(field.type) for field in found.schema}
    assert kinds == {"string", "double", "int64", "timestamp[us, tz=UTC]"}
    without = {name for name in found.column_names if found[name].null_count}
    assert without == {"carrier", "discount", "note"}
    assert set(found["outcome"].to_pylist()) == set(LABELS)
    assert found["at"].to_pylist() == sorted(found["at"].to_pylist())


def test_each_season_is_a_shift() -> None:
    shifts = [(shift.example, shift.what) for shift in orders(SEASON + 1).shifts]
    assert shifts == [(0, "season 1"), (SEASON, "season 2")]


@pytest.mark.slow
def test_a_learner_that_stops_falls_slowly_and_then_at_once() -> None:
    """It learns the first third of a season; one that goes on learning does not fall."""
    frozen, going, right = (learner(), learner(), [])
    for k, rows in enumerate(islice(orders(2 * SEASON).batches(100), 170)):
        batch = labelled(rows)
        right.append([np.mean(one.predict(batch) == batch.labels) for one in (frozen, going)])
        going.learn(batch)
        if k < 50:
            frozen.learn(batch)
    early, late, after = (
        np.mean(right[a:b], axis=0) for a, b in ((40, 60), (130, 150), (150, 170))
    )
    assert early[0] > late[0] + 0.03
    assert late[0] > after[0] + 0.06
    assert late[1] > late[0] + 0.03


def learner() -> ServedRows:
    return ServedRows(load_settings({"schema": "auto"}), Schema(), LABELS)


def labelled(rows: Rows) -> RowBatch:
    texts = [text for chunk in rows.chunks for text in chunk.labels.to_pylist()]
    codes = np.array([LABELS.index(text) for text in texts])
    none = np.empty(0)
    return RowBatch(rows, none, none, none, none, codes)
