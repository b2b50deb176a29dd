"""Rows of JSON and NDJSON are read as what they are, or refused with row and column."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.batch import InvalidBatchError, TooManyError
from streams.rows.bounds import MAX_NAME, MAX_ROWS, MAX_TEXT
from streams.rows.labels import label_text
from streams.rows.names import answered
from streams.rows.records import from_json, from_ndjson
from streams.rows.rows import TYPES, Rows, join

BAD: dict[str, tuple[str | bytes, str, str | None, int | None]] = {
    "nothing": ("", "not JSON", None, None),
    "a list": ("[]", "expected an object with 'rows' and 'labels'", None, None),
    "no labels": ('{"rows": [{"a": 1}]}', "'labels' is missing", "labels", None),
    "no label": ('{"row": {"a": 1}}', "'label' is missing", "label", None),
    "a misspelt field": (
        '{"rows": [{"a": 1}], "labels": [1], "lables": 1}', "unknown field 'lables'", "lables",
        None),
    "rows that are an object": ('{"rows": {"a": 1}, "labels": [1]}', "a list of objects", "rows",
        None),
    "labels that are a text": ('{"rows": [{"a": 1}], "labels": "1"}', "a list", "labels", None),
    "weights of another number": (
        '{"rows": [{"a": 1}], "labels": [1], "weights": [1, 1]}', "one an example", "weights",
        None),
    "a negative weight": (
        '{"rows": [{"a": 1}], "labels": [1], "weights": [-1]}', "-1 is outside", "weights", 0),
    "a null weight": ('{"row": {"a": 1}, "label": 1, "weight": null}', "not null", "weight", None),
    "no rows": ('{"rows": [], "labels": []}', "there are no rows", None, None),
    "rows without columns": ('{"rows": [{}], "labels": [1]}', "have no columns", None, None),
    "a row that is a list": ('{"rows": [{"a": 1}, [1]], "labels": [1, 1]}', "not a list", None, 1),
    "a row that is null": ('{"row": null, "label": 1}', "not null", None, 0),
    "a list as a value": (
        '{"rows": [{"a": 1}, {"a": [1]}], "labels": [1, 1]}', "column 'a' holds a list", "a", 1),
    "an object as a value": ('{"row": {"a": {"b": 1}}, "label": 1}', "holds an object", "a", 0),
    "an empty name": ('{"row": {"a": 1, "": 2}, "label": 1}', "column 2 has no name", None, None),
    "a long name": (
        json.dumps({"row": {"n" * 300: 1}, "label": 1}), f"300 characters, at most {MAX_NAME}",
        "n" * 40, None),
    "a long text": (
        json.dumps({"row": {"a": "t" * (MAX_TEXT + 1)}, "label": 1}), "at most 1,048,576", "a", 0),
    "labels of another number": (
        '{"rows": [{"a": 1}], "labels": [1, 2]}', "2 labels for 1 rows", "labels", None),
    "a null label": (
        '{"rows": [{"a": 1}, {"a": 1}], "labels": [1, null]}', "label is missing", "label", 1),
    "a nested label": ('{"row": {"a": 1}, "label": [1]}', "not a list", "label", 0),
    "an empty label": ('{"row": {"a": 1}, "label": ""}', "an empty string", "label", 0),
    "NaN": ('{"row": {"a": NaN}, "label": 1}', "must be finite", None, None),
    "infinity": ('{"row": {"a": -Infinity}, "label": 1}', "must be finite", None, None),
    "a number beyond float64": ('{"row": {"a": 1e999}, "label": 1}', "must be finite", None, None),
    "latin-1": ('{"row": {"a": "é"}, "label": 1}'.encode("latin-1"), "not JSON", None, None),
    "half a surrogate": (r'{"row": {"a": "\ud800"}, "label": 1}', "not JSON", None, None),
    "deep lists": ('{"row": {"a": ' + "[" * 100_000, "depth limit", None, None),
    "deep objects": ('{"row": ' + '{"a":' * 100_000, "depth limit", None, None),
    "a depth that the parser takes": (
        '{"row": {"a": 99999999999999999999, "b": ' + "[" * 900 + "]" * 900 + '}, "label": 1}',
        "holds a list", "b", 0),
    "10,000 columns": (
        json.dumps({"row": {f"c{k}": k for k in range(10_000)}, "label": 1}),
        "more than 4,096 columns", None, None),
    "5,000 columns, in two rows": (
        json.dumps(
            {"rows": [{f"{j}{k}": k for k in range(2_500)} for j in "ab"], "labels": [1, 1]}),
        "5,000 columns, at most 4,096", None, None),
    "a key twice": (
        '{"rows": [{"a": 1}, {"a": 1, "b": 2, "a": 3}], "labels": [1, 2]}', "key 'a' occurs twice",
        "a", 1),
    "a key twice, with spaces": (
        '{"row": {"a" : 1, "a"\t\n:2}, "label": 1}', "key 'a' occurs twice", "a", 0),
    "a key twice, once with an escape": (
        r'{"row": {"a": 1, "\u0061": 2}, "label": 1}', "key 'a' occurs twice", "a", 0),
    "a key twice, hidden by texts": (
        r'{"row": {"a" : ":", "a" : "\":"}, "label": ":\\"}', "key 'a' occurs twice", "a", 0),
    "rows twice": (
        '{"rows": [{"a": 1}], "rows": [{"a": 2}], "labels": [1]}', "key 'rows' occurs twice",
        "rows", None),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message", "field", "index"), BAD.values(), ids=BAD)
def test_a_fault_is_named_with_its_place(
    text: str | bytes, message: str, field: str | None, index: int | None
) -> None:
    with pytest.raises(InvalidBatchError, match=message) as caught:
        from_json(text if isinstance(text, bytes) else text.encode(), labelled=True)
    assert (caught.value.field, caught.value.index) == (field, index)


LINES: dict[str, tuple[str, str, str | None, int | None]] = {
    "nothing": ("", "there are no rows", None, None),
    "no label": ('{"row": {"a": 1}, "label": 1}\n{"row": {"a": 1}}', "'label' is", "label", 1),
    "no JSON": ('{"row": {"a": 1}, "label": 1}\n\n{"row', "not JSON", None, 1),
    "a list as a value": (
        '{"row": {"a": 1}, "label": 1}\n{"row": {"a": [1]}, "label": 1}', "holds a list", "a", 1),
    "a key twice": (
        '{"row": {"a": 1}, "label": 1}\n\n{"row": {"b":2, "b":3}, "label": 1}', "occurs twice",
        "b", 1),
    "two labels": ('{"row": {"a": 1}, "label": 1, "label": 2}', "occurs twice", "label", 0),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message", "field", "index"), LINES.values(), ids=LINES)
def test_a_fault_in_a_line_is_named_with_the_index_of_its_row(
    text: str, message: str, field: str | None, index: int | None
) -> None:
    with pytest.raises(InvalidBatchError, match=message) as caught:
        from_ndjson(text.encode(), labelled=True)
    assert (caught.value.field, caught.value.index) == (field, index)


COLUMNS: dict[str, tuple[str, str, list[object]]] = {
    "integers": ("1, 2, null", "int64", [1, 2, None]),
    "integers and floats": ("1, 2.5, null", "double", [1.0, 2.5, None]),
    "booleans": ("true, null", "bool", [True, None]),
    "texts": ('"a", "", null', "string", ["a", "", None]),
    "nothing but null": ("null, null", "null", [None, None]),
    "numbers and texts": ('1.0, "a", 0.5', "string", ["1", "a", "0.5"]),
    "booleans and numbers": ("true, 1, null", "string", ["true", "1", None]),
    "ids up to 2^53": ("9007199254740992, -9007199254740992", "int64", [2**53, -(2**53)]),
    "ids beyond 2^53": ("9007199254740993, 1", "string", ["9007199254740993", "1"]),
    "ids beyond 2^53 and floats": ("9007199254740993, 0.5", "string", ["9007199254740993", "0.5"]),
    "ids beyond int64": (
        "18446744073709551617, -3", "string", ["18446744073709551617", "-3"]),
    "ids beyond int64 and texts": (
        '-18446744073709551617, "x"', "string", ["-18446744073709551617", "x"]),
    "ids of 300 digits": ("9" * 300, "string", ["9" * 300]),
    "large floats": ("1e300, 18446744073709551616.0", "double", [1e300, 2.0**64]),
    "dates, which only a schema knows": ('"2024-01-01"', "string", ["2024-01-01"]),
}  # fmt: skip


@pytest.mark.parametrize(("values", "kind", "expected"), COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize("form", [from_json, from_ndjson])
def test_a_column_has_the_type_of_all_its_values(
    values: str, kind: str, expected: list[object], form: Callable[[bytes, bool], Rows]
) -> None:
    cells = values.split(", ")
    if form is from_json:
        rows = ", ".join(f'{{"a": {cell}}}' for cell in cells)
        raw = f'{{"rows": [{rows}]}}'
    else:
        raw = "\n".join(f'{{"row": {{"a": {cell}}}}}' for cell in cells)
    (chunk,) = form(raw.encode(), False).chunks
    assert str(chunk.columns.schema.field("a").type) == kind
    assert chunk.columns.column("a").to_pylist() == expected
    assert chunk.labels is None


def test_labels_become_canonical_texts() -> None:
    labels = b'[true, 1, 1.0, 0.5, "1", "007", "churn", 9007199254740993, 18446744073709551617]'
    rows = b"[" + b",".join([b'{"a": 1}'] * 9) + b"]"
    (chunk,) = from_json(b'{"rows": ' + rows + b', "labels": ' + labels + b"}", True).chunks
    assert chunk.labels is not None
    assert chunk.labels.to_pylist() == [
        "true", "1", "1", "0.5", "1", "007", "churn", "9007199254740993", "18446744073709551617",
    ]  # fmt: skip


def test_a_key_that_a_row_lacks_is_null_and_columns_keep_the_order_of_their_first_rows() -> None:
    (chunk,) = from_json(b'{"rows": [{"b": 1}, {"a": "x", "b": 2}, {}, {"c": true}]}', False).chunks
    assert chunk.columns.schema.names == ["b", "a", "c"]
    assert chunk.columns.to_pylist() == [
        {"b": 1, "a": None, "c": None},
        {"b": 2, "a": "x", "c": None},
        {"b": None, "a": None, "c": None},
        {"b": None, "a": None, "c": True},
    ]


def test_one_row_is_a_table_of_one() -> None:
    one = from_json(b'\xef\xbb\xbf{"row": {"a": 1}, "label": "x"}', True).chunks[0]
    many = from_json(b'{"rows": [{"a": 1}], "labels": ["x"]}', True).chunks[0]
    assert one.columns.equals(many.columns)
    assert one.labels is not None
    assert one.labels.equals(many.labels)
    with pytest.raises(InvalidBatchError, match="unknown field 'label'"):
        from_json(b'{"row": {"a": 1}, "label": "x"}', False)


def test_too_many_rows_are_refused_before_they_are_parsed() -> None:
    many = b'{"rows": [' + b",".join([b"{}"] * (MAX_ROWS + 10)) + b'], "labels": []}'
    for raw in (many, many.replace(b"{}", b"[]")):
        with pytest.raises(TooManyError, match="131,072 rows"):
            from_json(raw, True)
    with pytest.raises(TooManyError, match="131,072 rows"):
        from_ndjson(b'{"row": {"a": 1}}\n' * (MAX_ROWS + 1), False)
    brackets = orjson.dumps({"row": {"a": "[{" * (1 << 18)}})
    assert len(from_json(brackets, False)) == 1


def test_millions_of_keys_are_refused_before_they_are_parsed() -> None:
    keys = b",".join(b'"%d":1' % k for k in range(1_000_000))
    with pytest.raises(TooManyError, match="more than 4,096 columns"):
        from_json(b'{"row": {' + keys + b"}}", False)
    colons = orjson.dumps({"row": {"a": ":" * 200_000}})
    assert len(from_json(colons, False)) == 1


def test_sparse_rows_cannot_claim_more_cells_than_the_limit() -> None:
    rows = [{f"c{k % 4_000}": k} for k in range(5_000)]
    with pytest.raises(TooManyError, match="cells, at most 8,388,608"):
        from_json(orjson.dumps({"rows": rows}), False)


texts = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ['":', " :", '\\":', ":"]
)
values = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)  # fmt: skip
names = (texts | st.sampled_from(["a", "row", "label"])).filter(bool)


@given(st.lists(st.dictionaries(names, values, max_size=5), min_size=1), st.integers(0, 3))
def test_any_rows_survive_with_nothing_lost_and_no_key_found_twice(
    rows: list[dict[str, Any]], indent: int
) -> None:
    if not any(rows):
        rows[0]["a"] = None
    raw = json.dumps({"rows": rows}, indent=indent or None, ensure_ascii=indent == 1).encode()
    lines = b"\n".join(json.dumps({"row": row}, separators=(" ,", " :")).encode() for row in rows)
    (chunk,) = from_json(raw, False).chunks
    (same,) = from_ndjson(lines, False).chunks
    assert chunk.columns.equals(same.columns)
    assert set(chunk.columns.schema.types) <= set(TYPES)
    for row, found in zip(rows, chunk.columns.to_pylist(), strict=True):
        for name, value in found.items():
            was = row.get(name)
            if isinstance(value, str) and not isinstance(was, str):
                assert str(was).lower() == value or float(was) == float(value)
            else:
                assert value == was


@given(st.dictionaries(names, texts, min_size=1), st.data())
def test_any_key_twice_is_found(row: dict[str, str], data: st.DataObject) -> None:
    twice = data.draw(st.sampled_from(sorted(row)))
    pairs = [*row.items(), (twice, data.draw(texts))]
    colon = data.draw(st.sampled_from([":", " :", "\t: ", "\n:"]))
    body = ",".join(f"{json.dumps(k)}{colon}{json.dumps(v)}" for k, v in pairs)
    with pytest.raises(InvalidBatchError, match="occurs twice") as caught:
        from_json(f'{{"row": {{{body}}}}}'.encode(), False)
    assert (caught.value.field, caught.value.index) == (twice, 0)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_bytes_raise_anything_but_a_refusal(raw: bytes) -> None:
    for read in (from_json, from_ndjson):
        with pytest.raises(InvalidBatchError):
            read(raw, True)


@given(st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e9, 1e9) | texts)
def test_an_answered_label_is_the_one_that_was_sent(label: bool | int | float | str) -> None:
    """A text of a boolean or number is answered as that, as both are one label."""
    shown = answered(text := label_text(label) if label != "" else "x")
    assert label_text(shown) == text
    if not isinstance(label, str):
        assert shown == label
        assert isinstance(shown, bool) == isinstance(label, bool)


def as_list(text: str) -> str:
    """Return a list of what non-blank lines hold."""
    return f"[{','.join(line for line in text.splitlines() if line.strip())}]"


@pytest.mark.parametrize(
    ("text", "message", "field", "index"),
    [LINES["no label"], LINES["a list as a value"], LINES["a key twice"], LINES["two labels"]],
)
def test_a_fault_in_a_list_of_rows_is_named_as_in_a_line(
    text: str, message: str, field: str | None, index: int | None
) -> None:
    with pytest.raises(InvalidBatchError, match=message) as caught:
        from_json(as_list(text).encode(), labelled=True)
    assert (caught.value.field, caught.value.index) == (field, index)


@given(st.lists(st.dictionaries(names, values, max_size=5), min_size=1), st.data())
def test_a_list_of_rows_is_read_as_the_lines_are(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    if not any(rows):
        rows[0]["a"] = None
    pairs = [{"row": row, "label": data.draw(st.sampled_from([1, "x", True]))} for row in rows]
    for pair in pairs:
        if data.draw(st.booleans()):
            pair["weight"] = 2.0
    indent = data.draw(st.sampled_from([None, 2]))
    (chunk,) = from_json(json.dumps(pairs, indent=indent).encode(), True).chunks
    (same,) = from_ndjson("\n".join(map(json.dumps, pairs)).encode(), True).chunks
    assert chunk.columns.equals(same.columns)
    assert chunk.labels.equals(same.labels)
    assert np.array_equal(chunk.weights, same.weights) or chunk.weights is same.weights is None
    bare = json.dumps([{"row": row} for row in rows]).encode()
    assert from_json(bare, False).chunks[0].columns.equals(same.columns)


def test_a_list_of_as_many_rows_as_there_may_be_is_read_and_one_more_is_refused() -> None:
    pair = b'{"row":{"a":1},"label":1}'
    found = from_json(b"[" + b",".join([pair] * MAX_ROWS) + b"]", True)
    assert len(found) == MAX_ROWS
    with pytest.raises(TooManyError, match="131,072 rows"):
        from_json(b"[" + b",".join([pair] * (MAX_ROWS + 1)) + b"]", True)


def test_weights_are_read_where_labels_are() -> None:
    many = from_json(b'{"rows": [{"a": 1}, {"a": 2}], "labels": [1, 2], "weights": [0, 2.5]}', True)
    one = from_json(b'{"row": {"a": 1}, "label": 1, "weight": 3}', True)
    lines = from_ndjson(
        b'{"row": {"a": 1}, "label": 1}\n{"row": {"a": 2}, "label": 1, "weight": 2}\n', True
    )
    found = [None if rows.weights is None else rows.weights.tolist() for rows in (many, one, lines)]
    assert found == [[0.0, 2.5], [3.0], [1.0, 2.0]]
    assert join([many, from_json(b'{"row": {"a": 1}, "label": 1}', True)]).weights is not None
    with pytest.raises(InvalidBatchError, match="'weights'"):
        from_json(b'{"rows": [{"a": 1}], "weights": [1]}', False)
    with pytest.raises(InvalidBatchError, match="'weight' occurs twice"):
        from_json(b'{"row": {"a": 1}, "label": 1, "weight": 1, "weight": 2}', True)
