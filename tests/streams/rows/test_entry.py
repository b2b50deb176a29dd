"""The log holds rows as they were read, in little room, and trusts nothing that it holds."""

import struct
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.batch import InvalidBatchError, TooManyError
from streams.rows.bounds import MAX_TEXT
from streams.rows.entry import ALIGNMENT, MAGIC, from_bytes, to_bytes
from streams.rows.numbers import Numbers
from streams.rows.rows import TYPES, Chunk, Rows, join

values: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.null(): st.none(),
    pa.bool_(): st.booleans(),
    pa.int64(): st.integers(-(2**53), 2**53),
    pa.float64(): st.floats(allow_nan=False, allow_infinity=False),
    pa.string(): st.text(st.characters(codec="utf-8")),
    TYPES[5]: st.datetimes(timezones=st.just(UTC)),
}


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    n = draw(st.integers(1, 20))
    kinds = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=8))
    arrays = []
    for kind in kinds:
        cells = st.none() | values[kind] if draw(st.booleans()) else values[kind]
        arrays.append(pa.array(draw(st.lists(cells, min_size=n, max_size=n)), kind))
    names = [f"{'ü' * k}{k}" for k in range(len(kinds))]
    texts = st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=n, max_size=n)
    labels = draw(st.none() | texts)
    weights = draw(st.none() | st.lists(st.floats(0, 1e6, width=32), min_size=n, max_size=n))
    return Chunk(
        pa.RecordBatch.from_arrays(arrays, names),
        None if labels is None else pa.array(labels, pa.string()),
        None if weights is None else np.array(weights, np.float32),
    )


def assert_same(found: Rows, expected: Rows) -> None:
    for chunk, was in zip(found.chunks, expected.chunks, strict=True):
        chunk.columns.validate(full=True)
        assert chunk.columns.equals(was.columns)
        assert (chunk.labels is None) == (was.labels is None)
        assert chunk.labels is None or chunk.labels.equals(was.labels)
        assert (chunk.weights is None) == (was.weights is None)
        assert chunk.weights is None or np.array_equal(chunk.weights, was.weights)


@given(st.lists(chunks(), min_size=1, max_size=3), st.data())
def test_rows_survive_their_bytes(parts: list[Chunk], data: st.DataObject) -> None:
    rows = Rows(tuple(parts))
    raw = to_bytes(rows)
    found = from_bytes(raw)
    assert_same(found, rows)
    assert to_bytes(found) == raw
    start = data.draw(st.integers(0, len(rows) - 1))
    part = rows.part(start, data.draw(st.integers(start + 1, len(rows))))
    assert_same(from_bytes(to_bytes(part)), part)
    assert to_bytes(from_bytes(to_bytes(part))) == to_bytes(part)


def test_one_row_of_39_columns_takes_less_than_a_kilobyte() -> None:
    numbers = {f"I{k}": [k * 1_000] for k in range(13)}
    words = {f"C{k}": [f"{k:08x}"] for k in range(26)}
    one = Rows((Chunk(pa.record_batch(numbers | words), pa.array(["1"])),))
    assert len(to_bytes(one)) < 700
    many = Rows((Chunk(pa.record_batch({k: v * 1_000 for k, v in (numbers | words).items()})),))
    assert len(to_bytes(many)) < 1_000 * (13 * 8 + 26 * 9) + 700


SINGLES = np.array([[0.5, -2.0, 1e-42], [3.0, float(np.float32(0.1)), -0.0]], np.float32)


def test_floats_that_four_bytes_hold_take_four_and_are_the_same() -> None:
    columns = {"a": SINGLES[0].astype(np.float64), "b": [0.1, 1e300, 0.5], "c": [0.25, None, 4.0]}
    rows = Rows((Chunk(pa.record_batch(columns)),))
    raw = to_bytes(rows)
    assert b'"types":"gfG"' in raw
    assert_same(from_bytes(raw), rows)
    rows = Rows((Chunk(pa.record_batch({k: np.arange(1e3) for k in "abcd"})),))
    assert len(to_bytes(rows)) < 4 * 4 * 1_000 + 100


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("has_labels", [True, False])
def test_an_array_of_numbers_has_the_bytes_of_its_columns(
    dtype: type[np.float32], has_labels: bool
) -> None:
    values = SINGLES.astype(dtype)
    if dtype is np.float64:
        values[0, 1] = 0.1
    labels = pa.array(["x", "y", "x"]) if has_labels else None
    numbers = Rows((Chunk(Numbers(("a", "b"), values), labels, np.ones(3, np.float32)),))
    columns = pa.record_batch(dict(zip("ab", values.astype(np.float64), strict=True)))
    assert_same(numbers, Rows((Chunk(columns, labels, np.ones(3, np.float32)),)))
    raw = to_bytes(numbers)
    assert raw == to_bytes(Rows((Chunk(columns, labels, np.ones(3, np.float32)),)))
    found = from_bytes(raw)
    assert found.chunks[0].numbers is not None
    assert_same(found, numbers)
    assert_same(found.part(1, 3), numbers.part(1, 3))
    assert to_bytes(found.part(1, 3)) == to_bytes(numbers.part(1, 3))


def test_an_entry_of_an_earlier_version_whose_floats_have_eight_bytes_is_read() -> None:
    [chunk] = from_bytes(forged(FINE | {"types": "f"}, struct.pack("<d", 0.5))).chunks
    assert chunk.columns.equals(pa.record_batch({"a": [0.5]}))


def test_rows_that_are_a_part_of_others_have_their_own_labels() -> None:
    labels = ["b", "a", "b", "c"]
    whole = from_bytes(
        to_bytes(Rows((Chunk(pa.record_batch({"a": [1.0] * 4}), pa.array(labels)),)))
    )
    [chunk] = whole.part(1, 4).part(1, 3).chunks
    words, codes = chunk.coded_labels
    assert [words[code] for code in codes] == labels[2:4]


def test_equal_rows_have_equal_bytes_whatever_lies_where_values_are_missing() -> None:
    clean = pa.array([1, None], pa.int64())
    _, numbers = pa.array([1, 77], pa.int64()).buffers()
    dirty = pa.Array.from_buffers(pa.int64(), 2, [clean.buffers()[0], numbers])
    one, other = (Rows((Chunk(pa.record_batch({"a": each})),)) for each in (clean, dirty))
    assert to_bytes(one) == to_bytes(other)


def forged(header: object, *sections: bytes) -> bytes:
    text = header if isinstance(header, bytes) else orjson.dumps(header)
    parts = (struct.pack("<I", len(text)) + text, *sections)
    return MAGIC + b"".join(part + b"\0" * (-len(part) % ALIGNMENT) for part in parts)


FINE = {"n": 1, "names": ["a"], "types": "i", "width": 1, "labels": False}
TEXT = FINE | {"types": "s"}
NAN, INF = (struct.pack("<d", float(number)) for number in ("nan", "inf"))
BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "first bytes are others"),
    "no chunks": (MAGIC, "there are no rows"),
    "no header": (MAGIC + b"\1", "bytes are missing"),
    "a long header": (MAGIC + b"\xff\xff\xff\xff", "bytes, at most 8,388,608"),
    "a header that is no JSON": (forged(b"{"), "not the rows"),
    "a header that is deep": (forged(b"[" * 100_000), "not the rows"),
    "a header that is a list": (forged([]), "not the rows"),
    "a header that lacks a key": (forged({"n": 1}), "not the rows"),
    "rows that are a text": (forged(FINE | {"n": "1"}), "other types"),
    "rows that are true": (forged(FINE | {"n": True}), "other types"),
    "no rows": (forged(FINE | {"n": 0}), "there are no rows"),
    "too many rows": (forged(FINE | {"n": 1 << 40}), "rows, at most 131,072"),
    "too many null rows": (forged(FINE | {"n": 10**9, "types": "n"}), "rows, at most 131,072"),
    "many chunks of null rows": (
        MAGIC + 40 * forged(FINE | {"n": 4_000, "types": "n"})[len(MAGIC):],
        "rows, at most 131,072"),
    "many chunks of many columns": (
        MAGIC + 99 * forged(FINE | {"types": "n" * 4_000, "names": [*map(str, range(4_000))]})[
            len(MAGIC):], "cells, at most 8,388,608"),
    "less than no rows": (forged(FINE | {"n": -1}), "there are no rows"),
    "no columns": (forged(FINE | {"names": [], "types": ""}), "no columns"),
    "names that are numbers": (forged(FINE | {"names": [1]}), "other types"),
    "names twice": (forged(FINE | {"names": ["a", "a"], "types": "ii"}), "both named 'a'"),
    "an unknown type": (forged(FINE | {"types": "x"}), "unknown type 'x'"),
    "an unknown width": (forged(FINE | {"width": 3}), "not the rows"),
    "a list as width": (forged(FINE | {"width": [1]}), "not the rows"),
    "no values": (forged(FINE), "8 bytes are missing"),
    "NaN": (forged(FINE | {"types": "f"}, NAN), "column 'a' holds nan"),
    "NaN in four bytes": (forged(
        FINE | {"n": 2, "types": "gg", "names": ["a", "b"]}, b"", b"", b"", b"",
        struct.pack("<4f", 1, 2, 3, float("nan"))), "column 'b' holds nan"),
    "too few of four bytes": (forged(FINE | {"types": "g"}), "4 bytes are missing"),
    "infinity": (forged(FINE | {"types": "f"}, INF), "column 'a' holds inf"),
    "an integer beyond 2^53": (forged(FINE, struct.pack("<q", 2**53 + 1)), "column 'a' holds 9"),
    "a time beyond the calendar": (
        forged(FINE | {"types": "t"}, struct.pack("<q", 1 << 62)), "column 'a' holds 4"),
    "no text": (forged(TEXT, b"\x09", b"x"), "1 bytes are missing"),
    "text that is not UTF-8": (forged(TEXT, b"\1", b"\xff"), "[Uu][Tt][Ff]"),
    "text that ends within a letter": (
        forged(TEXT | {"n": 2}, b"\1\1", "ü".encode()), "[Uu][Tt][Ff]"),
    "a long text": (
        forged(TEXT | {"width": 4}, struct.pack("<I", MAX_TEXT + 1), b"x" * (MAX_TEXT + 1)),
        "bytes, at most 1,048,576"),
    "an empty label": (
        forged(FINE | {"labels": True}, bytes(8), b"\0", b""), "label is an empty string"),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "message"), BAD.values(), ids=BAD)
def test_what_to_bytes_would_not_write_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidBatchError, match=message):
        from_bytes(raw)


def test_a_file_beyond_the_bound_is_refused_unread() -> None:
    with pytest.raises(TooManyError, match="268,435,456"):
        from_bytes(MAGIC + bytes(256 << 20))


GOOD = to_bytes(
    Rows(
        (
            Chunk(
                pa.record_batch(
                    {
                        "i": pa.array([1, None, 3]),
                        "f": pa.array([0.1, 1.5, None]),
                        "g": pa.array([0.5, 1.5, None]),
                        "s": pa.array(["x", None, "üü"]),
                        "t": pa.array([datetime(2024, 1, 1, tzinfo=UTC), None, None], TYPES[5]),
                        "b": pa.array([True, None, False]),
                        "n": pa.nulls(3),
                    }
                ),
                pa.array(["1", "churn", "x"]),
            ),
        )
    )
)


def is_read_or_refused(raw: bytes) -> None:
    try:
        rows = from_bytes(raw)
    except InvalidBatchError:
        return
    for chunk in rows.chunks:
        chunk.columns.validate(full=True)
        chunk.columns.to_pylist()
    assert_same(from_bytes(to_bytes(rows)), rows)


def test_every_byte_may_be_another_and_the_end_anywhere() -> None:
    for place in range(len(GOOD)):
        is_read_or_refused(GOOD[:place])
        for value in (0x00, 0x31, 0x80, 0xFF):
            is_read_or_refused(GOOD[:place] + bytes([value]) + GOOD[place + 1 :])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=9)), max_size=4))
def test_random_changes_never_crash(changes: list[tuple[int, bytes]]) -> None:
    raw = GOOD
    for place, piece in changes:
        raw = raw[:place] + piece + raw[place + len(piece) :]
    is_read_or_refused(raw)


def test_joined_rows_are_an_entry_of_many_chunks() -> None:
    rows = join([from_bytes(GOOD)] * 3)
    assert len(from_bytes(to_bytes(rows))) == 9
    assert_same(from_bytes(to_bytes(rows)), rows)
