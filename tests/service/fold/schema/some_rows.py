"""Rows for tests: from Python values, from real data, and from hypothesis."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from river import datasets

from service.fold.schema.changes import SetKind
from service.fold.schema.encode import Encoded
from service.fold.schema.kinds import ColumnPolicy, Kind, LabelPolicy
from service.fold.schema.schema import Schema
from streams.rows.rows import TYPES, Chunk, Rows

Value = None | bool | int | float | str | datetime

NAMES = ("age", "plan", "at", "note", "paid", "ü x")
TEXTS = st.sampled_from(["basic", "pro", "3.5", "7", "true", "late fee again today", "2026-01-02"])
VALUES: dict[pa.DataType, st.SearchStrategy[Value]] = {
    pa.null(): st.none(),
    pa.bool_(): st.booleans(),
    pa.int64(): st.integers(-(1 << 53), 1 << 53) | st.integers(0, 3),
    pa.float64(): st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, 1.0]),
    pa.string(): st.text(max_size=8) | TEXTS,
    pa.timestamp("us", "UTC"): st.datetimes(timezones=st.just(UTC)),
}
LABELS = st.sampled_from(["stay", "churn", "other", "1", "2", "3"])


def chunk(columns: Mapping[str, Sequence[Value]], labels: Sequence[str] | None = None) -> Chunk:
    """Return a chunk whose types pyarrow infers, times as microseconds in UTC."""
    arrays = {name: pa.array(values) for name, values in columns.items()}
    for name, array in arrays.items():
        if pa.types.is_timestamp(array.type):
            arrays[name] = array.cast(pa.timestamp("us", "UTC"))
        assert arrays[name].type in TYPES
    return Chunk(
        pa.RecordBatch.from_pydict(arrays),
        None if labels is None else pa.array(labels, pa.string()),
    )


def rows(columns: Mapping[str, Sequence[Value]], labels: Sequence[str] | None = None) -> Rows:
    """Return rows in one chunk."""
    return Rows((chunk(columns, labels),))


def image_segments() -> Rows:
    """Return the rows of river's set of image segments: 18 numbers, and labels that are words."""
    found = list(datasets.ImageSegments())
    return rows(
        {name: [float(values[name]) for values, _ in found] for name in found[0][0]},
        [label for _, label in found],
    )


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    """Draw a chunk: any columns in any order, of any types, with labels or without."""
    n = draw(st.integers(1, 5))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    arrays = {}
    for name in names:
        of = draw(st.sampled_from(TYPES))
        values = st.lists(st.none() | VALUES[of], min_size=n, max_size=n)
        arrays[name] = pa.array(draw(values), of)
    labels = draw(st.none() | st.lists(LABELS, min_size=n, max_size=n))
    return Chunk(
        pa.RecordBatch.from_pydict(arrays),
        None if labels is None else pa.array(labels, pa.string()),
    )


many_rows = st.lists(chunks(), min_size=1, max_size=4).map(lambda found: Rows(tuple(found)))
retypes = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(Kind))
policies = st.sampled_from(
    [
        Schema(),
        Schema(crosses=(("*", "*"), ("at", "plan"), ("paid", "at:hour"))),
        Schema(labels=("churn", "stay"), new_labels=LabelPolicy.REJECT),
        Schema(new_labels=LabelPolicy.OTHER, max_classes=3),
        Schema(new_columns=ColumnPolicy.IGNORE),
        Schema(max_columns=3, max_classes=2),
    ]
)


@st.composite
def schemas(draw: st.DrawFn) -> tuple[Schema, Rows]:
    """Draw rows and the schema that they made, some columns of it of another kind."""
    found, schema = draw(many_rows), draw(policies)
    schema = schema.after(schema.changes_for(found))
    other = [SetKind(n, kind) for n, kind in draw(retypes).items() if n in schema.index]
    return schema.after(other), found


def assert_equal(one: Encoded, two: Encoded) -> None:
    """Check that two encodings have the same bits."""
    for name in ("dense", "rows", "keys", "values", "labels", "missing"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), name, strict=True)
    assert one.ignored == two.ignored
