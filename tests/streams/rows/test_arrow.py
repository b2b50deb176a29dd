"""An Arrow stream is read as what it holds, or refused before it costs anything."""

import math
import struct
import tracemalloc
from datetime import UTC, date, datetime, timedelta, timezone
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.batch import InvalidBatchError, TooManyError
from streams.rows.bounds import MAX_BYTES, MAX_ROWS
from streams.rows.ipc.arrow import from_ipc
from streams.rows.labels import split_off
from streams.rows.rows import TYPES, Chunk


def stream(*batches: pa.RecordBatch, options: pa.ipc.IpcWriteOptions | None = None) -> bytes:
    sink = BytesIO()
    with pa.ipc.new_stream(sink, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write(batch)
    return sink.getvalue()


def column(array: pa.Array, *more: pa.Array) -> bytes:
    return stream(*(pa.record_batch({"a": each}) for each in (array, *more)))


UTC_TIME = datetime(2024, 2, 29, 10, 30, tzinfo=UTC)
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64()]
INTEGERS += [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
READ: dict[str, tuple[pa.Array, str, list[object]]] = {
    **{str(kind): (pa.array([1, None, 7], kind), "int64", [1, None, 7]) for kind in INTEGERS},
    **{
        str(kind): (pa.array([0.5, None, -2], kind), "double", [0.5, None, -2])
        for kind in (pa.float16(), pa.float32(), pa.float64())
    },
    **{
        str(kind): (pa.array(["x", None, "ü" * 20], kind), "string", ["x", None, "ü" * 20])
        for kind in (pa.string(), pa.large_string(), pa.string_view())
    },
    **{
        f"timestamp {unit}": (
            pa.array([UTC_TIME, None], pa.timestamp(unit, "Europe/Berlin")),
            "timestamp[us, tz=UTC]", [UTC_TIME, None])
        for unit in ("s", "ms", "us", "ns")
    },
    "times without a zone": (
        pa.array([UTC_TIME.replace(tzinfo=None)], pa.timestamp("ms")), "timestamp[us, tz=UTC]",
        [UTC_TIME]),
    "nanoseconds before 1970": (
        pa.array([-1], pa.timestamp("ns")), "timestamp[us, tz=UTC]",
        [datetime(1970, 1, 1, tzinfo=UTC) - timedelta(microseconds=1)]),
    "date32": (
        pa.array([date(2024, 2, 29)], pa.date32()), "timestamp[us, tz=UTC]",
        [datetime(2024, 2, 29, tzinfo=UTC)]),
    "date64": (
        pa.array([date(2024, 2, 29)], pa.date64()), "timestamp[us, tz=UTC]",
        [datetime(2024, 2, 29, tzinfo=UTC)]),
    "bool": (pa.array([True, None]), "bool", [True, None]),
    "null": (pa.nulls(3), "null", [None] * 3),
    "a dictionary": (
        pa.array(["x", None, "y", "x"]).dictionary_encode(), "string", ["x", None, "y", "x"]),
    "a dictionary of long strings": (
        pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.uint8()),
            pa.array(["x", "y"], pa.large_string())), "string", ["y", "x"]),
    "NaN": (pa.array([1.5, float("nan"), None]), "double", [1.5, None, None]),
    "ids beyond 2^53": (pa.array([2**53 + 1, 1]), "string", ["9007199254740993", "1"]),
    "ids beyond int64": (
        pa.array([2**64 - 1, None], pa.uint64()), "string", ["18446744073709551615", None]),
    "a part of an array": (pa.array(["x", "y", None, "z"]).slice(1, 2), "string", ["y", None]),
}  # fmt: skip


@pytest.mark.parametrize(("array", "kind", "expected"), READ.values(), ids=READ)
def test_a_type_becomes_one_of_the_six(array: pa.Array, kind: str, expected: list[object]) -> None:
    (chunk,) = from_ipc(column(array), None, False).chunks
    assert str(chunk.columns.schema.field("a").type) == kind
    assert chunk.columns.column("a").to_pylist() == expected
    assert set(chunk.columns.schema.types) <= set(TYPES)


def test_the_rows_of_all_batches_are_one_chunk() -> None:
    first, second = pa.array([1, 2]), pa.array([2**60])
    raw = column(first, second, first.slice(0, 0))
    (chunk,) = from_ipc(raw, None, False).chunks
    assert chunk.columns.column("a").to_pylist() == ["1", "2", str(2**60)]
    words = [pa.array(each).dictionary_encode() for each in (["x", "y"], ["z"])]
    (chunk,) = from_ipc(column(*words), None, False).chunks
    assert chunk.columns.column("a").to_pylist() == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([1, 0]), ["1", "0"]),
        (pa.array([1.0, 0.5]), ["1", "0.5"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array(["007", "x"]), ["007", "x"]),
        (pa.array([2**53 + 1, 1]), ["9007199254740993", "1"]),
        (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
    ],
)
def test_labels_become_canonical_texts(labels: pa.Array, expected: list[str]) -> None:
    raw = stream(pa.record_batch({"y": labels, "a": pa.array([1, 2])}))
    (chunk,) = from_ipc(raw, "y", True).chunks
    assert chunk.labels is not None
    assert chunk.labels.to_pylist() == expected
    assert chunk.columns.schema.names == ["a"]
    assert from_ipc(raw, "y", False).chunks[0].labels is None


def compressed() -> bytes:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    return stream(pa.record_batch({"a": pa.array(range(1000))}), options=options)


def deltas() -> bytes:
    words = [pa.array(each).dictionary_encode() for each in (["x"], ["x", "y"])]
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    return stream(*(pa.record_batch({"a": each}) for each in words), options=options)


def arrow_file() -> bytes:
    sink = BytesIO()
    batch = pa.record_batch({"a": [1]})
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write(batch)
    return sink.getvalue()


def with_infinity() -> pa.Array:
    return pa.array([1.0, None, float("-inf")])


LAST_DAY = datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-5)))
BAD: dict[str, tuple[bytes, str, str | None, int | None]] = {
    "nothing": (b"", "must begin with a schema", None, None),
    "no rows": (column(pa.array([], pa.int64())), "there are no rows", None, None),
    "no columns": (stream(pa.record_batch({})), "have no columns", None, None),
    "text": (b'{"rows": []}', "no message begins at byte 0", None, None),
    "a file": (arrow_file(), "send the stream format", None, None),
    "compression": (compressed(), "send it uncompressed", None, None),
    "parts of dictionaries": (deltas(), "send it whole", None, None),
    "lists": (column(pa.array([[1]])), "column 'a' holds lists", "a", None),
    "structs": (column(pa.array([{"b": 1}])), "column 'a' holds structs", "a", None),
    "maps": (column(pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8()))), "maps", "a", None),
    "unions": (
        column(pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()),
            [pa.array([1])])), "holds unions", "a", None),
    "runs": (
        column(pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array([1]))),
        "holds runs; decode", "a", None),
    "binary values": (column(pa.array([b"x"])), "holds binary values", "a", None),
    "decimals": (
        column(pa.array([1], pa.decimal128(5, 2))), "decimals; cast it to float64", "a", None),
    "durations": (column(pa.array([1], pa.duration("s"))), "holds durations", "a", None),
    "extension types": (
        column(pa.ExtensionArray.from_storage(pa.opaque(pa.int64(), "x", "y"), pa.array([1]))),
        "extension type 'arrow.opaque'", "a", None),
    "dictionaries of numbers": (
        column(pa.array([1, 2]).dictionary_encode()), "other values than strings", "a", None),
    "infinity": (column(with_infinity()), "column 'a' holds -inf", "a", 2),
    "a time beyond the calendar": (
        column(pa.array([1, 1 << 60], pa.timestamp("s"))), "outside the years", "a", None),
    "a time beyond the calendar in UTC": (
        column(pa.array([0, 1 << 60], pa.timestamp("us"))), "outside the years", "a", 1),
    "names twice": (
        stream(pa.RecordBatch.from_arrays([pa.array([1])] * 2, ["a", "a"])),
        "columns 1 and 2 are both named 'a'", "a", None),
    "an empty name": (
        stream(pa.RecordBatch.from_arrays([pa.array([1])], [""])), "column 1 has no name", None,
        None),
    "a long name": (
        stream(pa.RecordBatch.from_arrays([pa.array([1])], ["n" * 257])), "at most 256", "n" * 40,
        None),
    "a very long name": (
        stream(pa.RecordBatch.from_arrays([pa.array([1])], ["n" * 9999])), "more than 256", None,
        None),
    "a long text": (column(pa.array(["x" * (1 << 20), "y" * ((1 << 20) + 1)])), "at most 1,048,576",
        "a", 1),
    "10,000 columns": (
        stream(pa.record_batch({f"c{k}": [1] for k in range(10_000)})),
        "10,000 columns, at most 4,096", None, None),
    "much metadata": (
        stream(pa.record_batch({"a": [1]}).replace_schema_metadata({"x": "y" * (1 << 20)})),
        "bytes of metadata", None, None),
    "more after the end": (column(pa.array([1])) + b"more", "bytes follow the end", None, None),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "message", "field", "index"), BAD.values(), ids=BAD)
def test_a_fault_is_named_with_its_place(
    raw: bytes, message: str, field: str | None, index: int | None
) -> None:
    with pytest.raises(InvalidBatchError, match=message) as caught:
        from_ipc(raw, None, False)
    assert (caught.value.field, caught.value.index) == (field, index)


@pytest.mark.parametrize(
    ("labels", "message", "index"),
    [
        (pa.array(["x", None]), "label is missing", 1),
        (pa.array([1.0, float("nan")]), "label is missing", 1),
        (pa.array(["x", ""]), "an empty string", 1),
        (pa.nulls(2), "label is missing", 0),
        (pa.array([UTC_TIME, UTC_TIME]), "must not be times", None),
    ],
)
def test_what_is_no_label_is_refused(labels: pa.Array, message: str, index: int | None) -> None:
    raw = stream(pa.record_batch({"a": pa.array([1, 2]), "y": labels}))
    with pytest.raises(InvalidBatchError, match=message) as caught:
        from_ipc(raw, "y", True)
    assert caught.value.index == index
    with pytest.raises(InvalidBatchError, match=r"no column 'z' .* the columns are a, y"):
        from_ipc(raw, "z", True)


def lying(raw: bytes, true: int, false: int) -> bytes:
    """Return a stream in which a number of rows is another wherever its metadata has it."""
    packed = struct.pack("<q", true)
    assert packed in raw
    return raw.replace(packed, struct.pack("<q", false))


def test_a_billion_null_rows_in_few_bytes_cost_nothing() -> None:
    raw = lying(column(pa.nulls(12_345)), 12_345, 10**9)
    assert len(raw) < 300
    tracemalloc.start()
    with pytest.raises(TooManyError, match="1,000,000,000 rows, at most 131,072"):
        from_ipc(raw, None, False)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize("rows", [-1, 1 << 62, -(1 << 63), 12_346, 0])
def test_a_lie_about_the_number_of_rows_is_refused(rows: int) -> None:
    for array in (pa.nulls(12_345), pa.array(range(12_345)), pa.array(["x"] * 12_345)):
        raw = lying(column(array), 12_345, rows)
        try:
            found = from_ipc(raw, None, False)
        except InvalidBatchError:
            continue
        assert pa.types.is_null(array.type)
        assert len(found) == rows


def test_thousands_of_empty_batches_are_refused() -> None:
    batch = pa.record_batch({"a": [1]})
    with pytest.raises(TooManyError, match="more than 2,048 batches"):
        from_ipc(stream(*[batch] * 3_000), None, False)
    wide = pa.record_batch({f"c{k}": [1] for k in range(4_000)})
    with pytest.raises(TooManyError, match="cells, at most"):
        from_ipc(stream(*[wide] * 50), None, False)


def test_rows_of_all_batches_count_together() -> None:
    half = pa.record_batch({"a": np.zeros(MAX_ROWS // 2 + 1)})
    assert len(from_ipc(stream(half), None, False)) == MAX_ROWS // 2 + 1
    with pytest.raises(TooManyError, match="131,074 rows, at most 131,072"):
        from_ipc(stream(half, half), None, False)


def test_strings_that_repeat_are_counted_before_they_are_decoded() -> None:
    once = pa.array(["x" * 100_000])
    times = MAX_BYTES // 100_000 + 1
    coded = pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, np.int32)), once)
    view = np.array([100_000, int.from_bytes(b"xxxx", "little"), 0, 0], np.int32)
    buffers = [None, pa.py_buffer(np.tile(view, times)), once.buffers()[2]]
    for array in (coded, pa.Array.from_buffers(pa.string_view(), times, buffers)):
        raw = column(array)
        assert len(raw) < 200_000
        with pytest.raises(TooManyError, match=r"strings up to column 'a' .* 268,435,456 bytes"):
            from_ipc(raw, None, False)


def test_two_columns_of_one_buffer_count_twice() -> None:
    """A stream may refer to a buffer from many columns; here the metadata is made to."""
    n = 100_000
    raw = bytearray(stream(pa.record_batch({f"c{k}": np.zeros(n) for k in range(2)})))
    second = raw.rindex(struct.pack("<qq", 8 * n, 8 * n))
    raw[second : second + 8] = struct.pack("<q", 0)
    (chunk,) = from_ipc(bytes(raw), None, False).chunks
    assert chunk.columns.num_rows == n


BATCH = pa.record_batch(
    {
        "i": pa.array([1, None, 3]),
        "f": pa.array([0.5, None, 2.5], pa.float32()),
        "s": pa.array(["x", None, "zz"]),
        "v": pa.array(["x", None, "z" * 20], pa.string_view()),
        "d": pa.array(["x", None, "x"]).dictionary_encode(),
        "t": pa.array([0, None, 1], pa.timestamp("ns", "UTC")),
        "b": pa.array([True, None, False]),
        "n": pa.nulls(3),
    }
)
GOOD = stream(BATCH, BATCH.slice(1))


def is_read_or_refused(raw: bytes) -> None:
    try:
        found = from_ipc(raw, "s", True)
    except InvalidBatchError:
        return
    for chunk in found.chunks:
        chunk.columns.validate(full=True)
        chunk.columns.to_pylist()
        assert set(chunk.columns.schema.types) <= set(TYPES)


def test_a_stream_cut_short_anywhere_is_read_or_refused() -> None:
    for length in range(len(GOOD)):
        is_read_or_refused(GOOD[:length])


@pytest.mark.parametrize("value", [0x01, 0x80, 0xFF])
def test_every_byte_may_be_another(value: int) -> None:
    for place in range(len(GOOD)):
        is_read_or_refused(GOOD[:place] + bytes([value]) + GOOD[place + 1 :])


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_random_flips_never_crash(data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        piece: Any = data.draw(
            st.integers(0, 255).map(lambda n: bytes([n]))
            | st.sampled_from([-1, 1 << 31, 1 << 40, 1 << 62, 0]).map(struct.Struct("<q").pack)
        )
        raw[place : place + len(piece)] = piece
    is_read_or_refused(bytes(raw))


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_metadata_is_refused(metadata: bytes, rest: bytes) -> None:
    for raw in (rest, b"\xff" * 4 + struct.pack("<i", len(metadata)) + metadata + rest):
        with pytest.raises(InvalidBatchError):
            from_ipc(raw, None, False)


def test_the_index_of_pandas_is_no_column_of_the_rows() -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "y": ["p", "q", "p"]})
    table = pa.Table.from_pandas(frame.iloc[[2, 0, 1]])
    assert "__index_level_0__" in table.column_names
    sink = BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    rows = from_ipc(sink.getvalue(), "y", True)
    assert rows.chunks[0].columns.schema.names == ["a"]


@given(st.data())
def test_columns_of_floats_are_read_together_as_each_is_alone(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 5))
    kinds = data.draw(
        st.lists(
            st.sampled_from(("float", "double", "halffloat", "int64", "bool")),
            min_size=1,
            max_size=5,
        )
    )
    floats = st.sampled_from((0.5, -2.0, float(np.float32(0.1)), math.nan, None))
    cells = {"int64": st.integers(-9, 9), "bool": st.booleans()}
    parts = []
    for _ in range(data.draw(st.integers(1, 2))):
        arrays = []
        for kind in kinds:
            values = data.draw(st.lists(cells.get(kind, floats), min_size=n, max_size=n))
            arrays.append(pa.array(values, pa.type_for_alias(kind)))
        parts.append(pa.RecordBatch.from_arrays(arrays, [f"c{k}" for k in range(len(kinds))]))
    [found] = from_ipc(stream(*parts), None, False).chunks
    alone = {
        name: from_ipc(stream(*(part.select([name]) for part in parts)), None, False)
        for name in parts[0].schema.names
    }
    assert found.columns.schema.names == parts[0].schema.names == list(found.names)
    for name, [one] in ((name, rows.chunks) for name, rows in alone.items()):
        assert found.columns[name].equals(one.columns[name])
    name = data.draw(st.sampled_from(found.names))
    column, rest = split_off(found, name, "label")
    assert column.equals(found.columns[name])
    assert Chunk(rest).columns.equals(found.columns.drop_columns([name]))


def test_infinity_among_columns_of_floats_is_refused() -> None:
    raw = stream(pa.record_batch({k: [1.0, math.inf if k == "b" else 2.0] for k in "abc"}))
    with pytest.raises(InvalidBatchError, match="column 'b' holds inf") as caught:
        from_ipc(raw, None, False)
    assert (caught.value.field, caught.value.index) == ("b", 1)
