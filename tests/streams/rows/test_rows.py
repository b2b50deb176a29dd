"""Rows in fewer chunks are the same rows."""

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.rows.entry import from_bytes, to_bytes
from streams.rows.records import from_json
from streams.rows.rows import Rows, join, merged

CELLS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | st.text(
    st.characters(codec="utf-8"), max_size=3
)  # fmt: skip
RECORDS = st.dictionaries(st.sampled_from("abcd"), CELLS, min_size=1)


def rows_of(records: list[dict[str, object]], weights: list[float] | None = None) -> Rows:
    document: dict[str, object] = {"rows": records, "labels": [*range(len(records))]}
    return from_json(orjson.dumps(document | ({"weights": weights} if weights else {})), True)


def values(rows: Rows) -> list[dict[str, object]]:
    """Return each row's values; 5 and 5.0 are equal, 1 and true are not."""
    return [
        {name: (type(v) is bool, v) for name, v in row.items() if v is not None}
        for chunk in rows.chunks
        for row in chunk.columns.to_pylist()
    ]


@given(st.lists(st.tuples(RECORDS, st.none() | st.floats(0.5, 2, width=32)), min_size=1))
def test_merged_rows_have_the_same_values_labels_and_weights_in_the_same_order(
    sent: list[tuple[dict[str, object], float | None]],
) -> None:
    rows = join([rows_of([record], None if w is None else [w]) for record, w in sent])
    found = from_bytes(to_bytes(merged(rows)))
    assert values(found) == values(rows)
    assert [text for c in found.chunks for text in c.labels.to_pylist()] == ["0"] * len(sent)
    if rows.weights is None:
        assert found.weights is None
    else:
        assert np.array_equal(found.weights, rows.weights)


def test_rows_of_like_columns_become_one_chunk() -> None:
    parts = [
        rows_of([{"plan": "pro", "age": 41, "x": None}]),
        rows_of([{"age": 41.5, "plan": None, "x": 1}]),
        rows_of([{"plan": "vip", "x": 2}]),
    ]
    [chunk] = merged(join(parts)).chunks
    assert chunk.columns.to_pydict() == {
        "plan": ["pro", None, "vip"], "age": [41.0, 41.5, None], "x": [None, 1, 2]
    }  # fmt: skip
    assert chunk.columns.schema.field("age").type == pa.float64()


@pytest.mark.parametrize(
    "others",
    [
        rows_of([{"a": "5"}]),
        rows_of([{"a": True}]),
        rows_of([{"a": 5}], [2.0]),
        rows_of([{"b": 1, "c": 2, "d": 3, "e": 4, "f": 5}]),
    ],
)
def test_rows_that_have_little_in_common_stay_apart(others: Rows) -> None:
    rows = join([rows_of([{"a": 1}])] * 8 + [others] + [rows_of([{"a": 2}])] * 8)
    found = merged(rows)
    assert 3 <= len(found.chunks) <= 9
    assert values(found) == values(rows)
