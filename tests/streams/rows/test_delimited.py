"""Rows of CSV are read as what they are, or refused with line and column."""

import codecs
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.batch import InvalidBatchError, TooManyError
from streams.rows.bounds import MAX_ROWS
from streams.rows.delimited import from_csv
from streams.rows.rows import TYPES


def table(raw: bytes | str, label: str | None = None) -> dict[str, list[object]]:
    """Return the columns by name; the labels are the column ``label``."""
    raw = raw if isinstance(raw, bytes) else raw.encode()
    (chunk,) = from_csv(raw, label, label is not None).chunks
    found: dict[str, list[object]] = chunk.columns.to_pydict()
    if chunk.labels is not None:
        found[str(label)] = chunk.labels.to_pylist()
    return found


TWO = {"a": [1, 2], "b": ["x", "y"]}
READ: dict[str, tuple[str | bytes, dict[str, list[object]]]] = {
    "commas": ("a,b\n1,x\n2,y\n", TWO),
    "semicolons": ("a;b\n1;x\n2;y\n", TWO),
    "tabs": ("a\tb\n1\tx\n2\ty\n", TWO),
    "CRLF": ("a,b\r\n1,x\r\n2,y\r\n", TWO),
    "blank lines, and no line end at the end": ("\na,b\n\n1,x\n  \n2,y", TWO),
    "a byte order mark": (codecs.BOM_UTF8 + b"a,b\n1,x\n2,y\n", TWO),
    "UTF-16": ("a,b\n1,x\n2,y\n".encode("utf-16"), TWO),
    "spaces around cells": (' a , b \n 1 , x\n2 , "y"\n', TWO),
    "quotes": ('"a","b"\n"1","x"\n"2","y"\n', TWO),
    "quoted newlines, commas and quotes": (
        'a,b\n1,"x\ny"\n2,"p, ""q"""\n', {"a": [1, 2], "b": ["x\ny", 'p, "q"']}),
    "decimal commas": (
        "a;b\n1,5;x\n-2;y\n,5;1,5\n", {"a": [1.5, -2, 0.5], "b": ["x", "y", "1.5"]}),
    "decimal commas that no semicolons part": ('a,b\n"1,5",x\n', {"a": ["1,5"], "b": ["x"]}),
    "one column": ("a\n1\n2\n", {"a": [1, 2]}),
    "names that count the columns": ("0,1\n5,x\n", {"0": [5], "1": ["x"]}),
    "a label": ("a,y\n1,2.0\n2,007\n3,x\n", {"a": [1, 2, 3]}),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "expected"), READ.values(), ids=READ)
def test_a_dialect_is_read(raw: str | bytes, expected: dict[str, list[object]]) -> None:
    found = table(raw)
    assert {name: found[name] for name in expected} == expected


CELLS: dict[str, tuple[str, str, list[object]]] = {
    "integers": ("1 -2 0", "int64", [1, -2, 0]),
    "integers as exact as they can be": ("9007199254740992", "int64", [2**53]),
    "integers beyond 2^53": ("9007199254740993 5", "string", ["9007199254740993", "5"]),
    "integers beyond int64": ("99999999999999999999 -0", "string", ["99999999999999999999", "0"]),
    "integers beyond 2^53 and floats": ("9007199254740993 1.0", "string",
        ["9007199254740993", "1"]),
    "floats": ("1e5 -3.25 .5 2. 1 1E-3", "double", [1e5, -3.25, 0.5, 2, 1, 1e-3]),
    "zeros at the beginning": ("007 8", "string", ["007", "8"]),
    "a plus sign": ("+5", "string", ["+5"]),
    "an underscore": ("1_2", "string", ["1_2"]),
    "hexadecimal digits": ("0x1f", "string", ["0x1f"]),
    "booleans": ("true False TRUE", "bool", [True, False, True]),
    "numbers among words": ("1.0 a 1e2 True", "string", ["1", "a", "100", "true"]),
    "missing values": ("NA NaN null None - ? 3", "int64", [None] * 6 + [3]),
    "missing values among words": ("NA x n/a", "string", [None, "x", None]),
    "nothing but missing values": ("NA -", "null", [None, None]),
    "infinities among words": ("inf x", "string", ["inf", "x"]),
    "dates": ("2024-02-29", "timestamp[us, tz=UTC]", [datetime(2024, 2, 29, tzinfo=UTC)]),
    "times": (
        "2024-02-29T10:00 2024-02-29T10:00:00.1234567Z 2024-02-29T10:00:00+02:00 NA",
        "timestamp[us, tz=UTC]",
        [datetime(2024, 2, 29, 10, tzinfo=UTC), datetime(2024, 2, 29, 10, 0, 0, 123456, UTC),
         datetime(2024, 2, 29, 8, tzinfo=UTC), None]),
    "dates that no calendar has": ("2023-02-29", "string", ["2023-02-29"]),
    "dates among words": ("2024-02-29 never", "string", ["2024-02-29", "never"]),
    "times beyond the calendar in UTC": (
        "9999-12-31T23:00-05:00", "string", ["9999-12-31T23:00-05:00"]),
}  # fmt: skip


@pytest.mark.parametrize(("cells", "kind", "expected"), CELLS.values(), ids=CELLS)
def test_a_column_has_the_type_of_all_its_cells(
    cells: str, kind: str, expected: list[object]
) -> None:
    raw = "a,b\n" + "".join(f"{cell},0\n" for cell in cells.split())
    (chunk,) = from_csv(raw.encode(), None, False).chunks
    assert str(chunk.columns.schema.field("a").type) == kind
    assert chunk.columns.column("a").to_pylist() == expected
    assert set(chunk.columns.schema.types) <= set(TYPES)


BAD: dict[str, tuple[str | bytes, str, str | None, int | None]] = {
    "nothing": ("", "needs a header", None, None),
    "a header alone": ("a,y\n", "no rows after the header", None, None),
    "data alone": ("5.1,3.5,setosa\n4.9,3.0,setosa\n", "begins with data", None, None),
    "no column of the label": ("a,b\n1,2\n", "no column 'y' .* the columns are a, b", "y", None),
    "a label alone": ("y\n1\n", "have no columns", None, None),
    "names twice": ("a,b,a,y\n1,2,3,4\n", "columns 1 and 3 are both named 'a'", "a", None),
    "a column without a name": ("a,,y\n1,2,3\n", "column 2 has no name", None, None),
    "short rows": ("a,b,y\n1,2,3\n1,2\n", "line 3 has 2 columns, expected 3", None, 1),
    "long rows": ("a,b,y\n1,2,3,\n", "line 2 has 4 columns, expected 3; the line", None, 0),
    "comments": ("a,b,y\n# note\n", "remove comments", None, 0),
    "an open quote": ('a,b,y\n1,2,3\n1,"2,3\n', "line 3: a quote that begins here", None, None),
    "text after a quote": ('a,b,y\n1,"2"x,3\n', "line 2: text follows a closing quote", None, None),
    "latin-1": ("a,b,y\n1,é,3\n".encode("latin-1"), "line 2, column 'b'.*0xe9", "b", 0),
    "latin-1 in the header": ("é,y\n1,3\n".encode("latin-1"), "line 1: .*0xe9", None, None),
    "half of UTF-16": (codecs.BOM_UTF16_LE + b"a", "cannot be decoded", None, None),
    "compressed": (b"\x1f\x8b\x08\x00,y\n1,2\n", "0x8b", None, None),
    "infinity": ("a,b,y\n1,2,3\n2,-inf,3\n", "line 3, column 'b': '-inf' is not a fin", "b", 1),
    "Infinity": ("a,b,y\n1,Infinity,3\n", "line 2, column 'b': 'Infinity' is not", "b", 0),
    "a number beyond float64": ("a,b,y\n1,1e999,3\n", "'1e999' is not a finite number", "b", 0),
    "decimal commas and points": (
        "a;b;y\n1,5;2;3\n1.5;2;3\n", "line 3, column 'a': '1.5' has a point", "a", 1),
    "a missing label": ("a,y\n1,2\n\n1,\n", "line 4, column 'y': the label is missing", "y", 1),
    "a label that stands for a missing one": ("a,y\n1,NA\n", "'NA' stands for a missing", "y", 0),
    "an infinite label": ("a,y\n1,inf\n", "'inf' is not finite", "y", 0),
    "a label with a line break": ('a,y\n1,"x\ny"\n', "a line break", "y", 0),
    "10,000 columns": (
        ",".join(f"c{k}" for k in range(10_000)) + ",y\n", "10,001 columns, at most 4,096", None,
        None),
    "a million columns": (
        ",".join(f"c{k}" for k in range(1_000_000)), "first line has more than 1,060,864", None,
        None),
    "a long name": ("n" * 300 + ",y\n1,2\n", "300 characters, at most 256", "n" * 40, None),
    "a long cell": ("a,y\n" + "x" * 200_000 + ",1\n", "field limit .131072", None, None),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "message", "field", "index"), BAD.values(), ids=BAD)
def test_a_fault_is_named_with_its_place(
    raw: str | bytes, message: str, field: str | None, index: int | None
) -> None:
    with pytest.raises(InvalidBatchError, match=message) as caught:
        from_csv(raw if isinstance(raw, bytes) else raw.encode(), "y", True)
    assert (caught.value.field, caught.value.index) == (field, index)


def test_labels_are_the_canonical_texts_of_their_cells() -> None:
    cells = "1.0 007 True churn 1 + - 1e1"
    raw = "y,a\n" + "".join(f"{cell},0\n" for cell in cells.split())
    assert table(raw, "y")["y"] == ["1", "007", "true", "churn", "1", "+", "-", "10"]


def test_a_column_of_labels_is_dropped_where_none_are_wanted() -> None:
    (chunk,) = from_csv(b"a,y\n1,2\n", "y", False).chunks
    assert chunk.labels is None
    assert chunk.columns.schema.names == ["a"]


def test_the_text_of_a_cell_does_not_depend_on_the_rows_around_it() -> None:
    alone = table("a,b\n1.10,0\n")["a"]
    among_words = table("a,b\n1.10,0\nx,0\n")["a"]
    assert (alone, among_words) == ([1.1], ["1.1", "x"])


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(TooManyError, match="more than 131,072 rows"):
        from_csv(b"a,b\n" + b"1,2\n" * (MAX_ROWS + 1), None, False)


def test_what_pandas_writes_is_what_it_had() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "float": rng.standard_normal(500),
            "integer": rng.integers(-9, 9, 500),
            "flag": rng.random(500) < 0.5,
            "word": rng.choice(["a b", 'say "hi"', "x,y"], 500),
            "at": pd.date_range("2024-01-01", periods=500, freq="h", tz="UTC"),
            "gaps": np.where(rng.random(500) < 0.5, np.nan, 0.25),
        }
    )
    found = table(frame.to_csv(index=False))
    for name, column in frame.items():
        values = [None if value != value else value for value in column.tolist()]
        assert found[str(name)] == values


@given(st.binary(max_size=80) | st.text('ab1.,;"\n\r-e', max_size=40).map(str.encode))
def test_any_bytes_are_a_table_or_refused(raw: bytes) -> None:
    for label in ("a", None):
        try:
            found = from_csv(raw, label, label is not None)
        except InvalidBatchError:
            continue
        assert len(found) > 0


@pytest.mark.parametrize("name", ["", '""', "Unnamed: 0"])
@pytest.mark.parametrize("first", [0, 1, 700])
def test_a_first_column_that_counts_the_rows_is_no_feature(name: str, first: int) -> None:
    text = f"{name},plan,y\n" + "".join(f"{first + k},pro,{k % 2}\n" for k in range(5))
    for raw in (text, "\n".join(text.split("\n")[:2]) + "\n"):
        rows = from_csv(raw.encode(), "y", True)
        assert rows.chunks[0].columns.schema.names == ["plan"]


@pytest.mark.parametrize(
    "text", [",plan,y\n3,pro,1\n1,pro,0\n", ",plan,y\nx,pro,1\n", "plan,,y\npro,1,1\n"]
)
def test_another_column_without_a_name_is_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(InvalidBatchError, match="has no name"):
        from_csv(text.encode(), "y", True)


@pytest.mark.parametrize("first", ["sep=;\r\n", "SEP=;\n", '"sep=;"\n'])
def test_a_line_that_names_the_delimiter_is_skipped(first: str) -> None:
    assert table(first + "a;b,c\n1;2,5\n") == {"a": [1], "b,c": [2.5]}
    with pytest.raises(InvalidBatchError, match="line 4"):
        table(first + "a;b\n1;2\n1;2;3\n")


@pytest.mark.parametrize("first", ["# on Monday, by hand\n", "#comment\n", "## x\n", "# a,b\n"])
def test_a_comment_in_place_of_the_header_is_refused_with_what_to_do(first: str) -> None:
    with pytest.raises(InvalidBatchError, match=r"begins with a comment.*remove the lines"):
        table(first + "a,b\n1,2\n")
    assert table("#,#b\n1,2\n").keys() == {"#", "#b"}
