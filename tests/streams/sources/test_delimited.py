"""A text file is read as what it is, or refused with line and column; nothing in between."""

import bz2
import codecs
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.sources.delimited import CELLS
from streams.sources.faults import MISSING
from streams.sources.table import Table, TableError, read


class Right(NamedTuple):
    """What a file holds."""

    features: list[list[float]]
    labels: list[str]
    note: str = ""


def outcome(path: Path, label: str | None = None) -> Right | str:
    """Return what is read, or why the file is refused."""
    try:
        found = read(path, label)
    except TableError as error:
        return str(error).removeprefix(str(path))
    names = found.names or tuple(map(str, range(found.classes)))
    labels = [names[k] for k in found.batch.labels]
    return Right(found.batch.features.tolist(), labels, "; ".join(found.notes))


def of(directory: Path, text: str | bytes, name: str = "mine.csv") -> Right | str:
    path = directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return outcome(path)


TWO = Right([[1], [2]], ["0", "1"])
THREE = Right([[1, 2], [3, 4]], ["0", "1"])

READ: dict[str, tuple[str, Right]] = {
    "quoted header with another delimiter": (
        '"height, cm";"weight, kg";"class, a or b"\n1;2;0\n3;4;1\n', THREE),
    "header with a line break": ('"a\nb",y\n1,0\n2,1\n', TWO),
    "header without quotes, parted as the rows are": ("a,b;y\n1;0\n2;1\n", TWO),
    "pipes": ("a|y\n1|0\n2|1\n", TWO),
    "tabs and a comma": ("a\tb, c\ty\n1\t2\t0\n3\t4\t1\n", THREE),
    "spaces before quotes": ('"a", "y"\n1, "0"\n2, "1"\n', TWO),
    "quotes around all cells": ('"a","y"\n"1","0"\n"2","1"\n', TWO),
    "quoted label with a delimiter": ('a,y\n1,"b, c"\n2,d\n', Right([[1], [2]], ["b, c", "d"])),
    "quoted label with a quote": ('a,y\n1,"b""c"\n2,d\n', Right([[1], [2]], ['b"c', "d"])),
    "quotes from the second row on": ('a,y\n1,b\n2,"b"\n3,c\n', Right([[1], [2], [3]], [*"bbc"])),
    "trailing delimiters": ("a,b,y,\n1,2,0,\n3,4,1,\n", THREE),
    "two trailing delimiters and spaces": ("a,y,,\n1,0,, \n2,1,,\n", TWO),
    "blank lines": ("\n\na,y\n\n1,0\n  \t\n2,1\n\n", TWO),
    "line ends of old Macs": ("a,y\r1,0\r2,1\r", TWO),
    "mixed line ends": ("a,y\r\n1,0\n2,1\r", TWO),
    "doubled carriage returns": ("a,y\r\r\n1,0\r\r\n2,1\r\r\n", TWO),
    "no line end at the end": ("a,y\n1,0\n2,1", TWO),
    "spaces around numbers": ("a , y\n 1 , 0\n2\t,1 \n", TWO),
    "forms of numbers": ("a,b,y\n1.,+2,0\n3e0,.4E1,1\n", THREE),
    "years among the names": ("a,2019,y\n1,2,0\n3,4,1\n", THREE),
    "columns named by their numbers": ("0,1,y\n1,2,0\n3,4,1\n", THREE),
    "columns numbered from 1, and a word": (
        "1,2,3,kind\n1,2,3,a\n4,5,6,b\n", Right([[1, 2, 3], [4, 5, 6]], ["a", "b"])),
    "plus and minus": ("a,y\n1,+\n2,-\n", Right([[1], [2]], ["+", "-"])),
    "words that only begin as missing ones": ("a,y\n1,none\n2,NAN1\n", Right(
        [[1], [2]], ["none", "NAN1"])),
    "unnamed index": (
        ",a,y\n0,1,0\n1,2,1\n", Right(*TWO[:2], "column 1 (no name) counts the rows")),
    "index of a file that pandas wrote twice": (
        ",Unnamed: 0,a,y\n0,5,1,0\n1,6,2,1\n",
        Right(*TWO[:2], "column 'Unnamed: 0' counts the rows and is not learned")),
    "names twice": (
        "a,a,y\n1,2,0\n3,4,1\n", Right(*THREE[:2], "several columns are named 'a'")),
    "labels that look alike": (
        "a,y\n1,True\n2,true\n",
        Right([[1], [2]], ["True", "true"], "'True' and 'true' in 'y' are different classes")),
    "seconds in a time of months": (
        "a,y\n1700000000,0\n1700000001,1\n1710000000,1\n",
        Right([[1.7e9], [1.7e9], [1.71e9]], ["0", "1", "1"],
              "column 'a': float32 keeps 2 of 3 different values; 1700000000.0 and 1700000001.0 ")),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_a_file_is_read_as_what_it_is(tmp_path: Path, case: str) -> None:
    text, right = READ[case]
    found = of(tmp_path, text)
    assert isinstance(found, Right), found
    assert found[:2] == right[:2]
    assert right.note in found.note
    assert bool(found.note) == bool(right.note)


def row(cell: str) -> str:
    """Return a file with a cell of a feature in line 4."""
    return f"a,b,y\n1,2,0\n\n3,{cell},1\n"


DECIMAL = "write a decimal point, and no thousands separators"
CODES = "encode categories as numbers, or remove the column"
REFUSED: dict[str, tuple[str, str]] = {
    "quote never closed": ('x,y\n1,b\n2,"a\n3,b\n4,c\n', "line 3: a quote that begins here is"),
    "quote after others never closed": (
        'x,"y\nz"\n1,"b"\n2,"c"\n3,"b\n4,c\n', "line 5: a quote that begins here is never closed"),
    "quote never closed in a large file": (
        'x,y\n1,"a\n' + "2,b\n" * 50_000, "line 2: a quote that begins here is never closed"),
    "quote of the header never closed": ('"x,y\n1,0\n2,1\n', "line 1: a quote that begins here"),
    "quote closed by another cell's": (
        'x,y\n1,"b\n2,"c"\n3,d\n',
        "line 3: text follows a closing quote, which may begin in line 2"),
    "quote closed at another cell's end": (
        'x,y\n1,"b\n2,c"\n3,d\n', "line 2, column 'y': 'b\\n2,c' has a line break"),
    "quote that is never opened": ('x,y\n1,b"\n2,c\n', "line 2, column 'y': 'b\"' has a quote at"),
    "escaped by a backslash": ('x,y\n1,"b\\"c"\n2,d\n', "line 2: text follows a closing quote"),
    "text after needless quotes": ('x,y\n1,"b"c\n2,d\n', "line 2: text follows a closing quote"),
    "quotes around nothing": ('x,y\n1,""\n2,d\n', "line 2 has no label in 'y'"),
    "quotes in quotes": ('x,y\n1,"a,"b",c"\n2,d\n', "line 2: text follows a closing quote"),
    "quote after a tab": ('x,\t"y"\n1,0\n2,1\n', "line 1: '\"y\"' has a quote at its edge"),
    "quoted line break in a feature": ('x,y\n"1\n2",0\n3,1\n', "column 'x': '1\\n2' is not"),
    "ambiguous delimiters": ("a,b;y\n1,5;0\n2,5;1\n", "both ',' and ';' part the header into 2"),
    "data of words": ("5,3,setosa\n4,2,virginica\n6,1,setosa\n", "the file begins with data"),
    "data that count": ("1,2,setosa\n4,3,b\n5,1,setosa\n", "the file begins with data"),
    "data that count, with a label of their own": ("0,cat\n5,dog\n6,bird\n", "begins with data"),
    "data that count far": (
        "0,1,2,cat\n5,6,7,dog\n6,7,8,cat\n", "the file begins with data"),
    "data with a missing value": ("5,NA,setosa\n4,2,b\n", "the file begins with data"),
    "names that count, and no label": ("0,1,2\n1,2,0\n3,4,1\n", "the file begins with data"),
    "column without a name": ("a,,y\n1,2,0\n", "column 2 has no name in the header"),
    "unnamed column that does not count": (
        ",a,y\n5,1,0\n3,2,1\n", "column 1 (no name) does not count the rows: name it"),
    "unnamed column of words": (
        ",a,y\nu,1,0\nv,2,1\n", "line 2, column 1 (no name): 'u' is not a finite number"),
    "trailing column that holds something": (
        "a,y,\n1,0,\n2,1,5\n", "line 3, column 3 (no name): '5' has no name in the header"),
    "delimiter at the end of rows alone": (
        "a,y\n1,0,\n2,1,\n", "line 2 has 3 columns, expected 2; the line ends in a delimiter"),
    "delimiter at the end of the header alone": ("a,y,\n1,0\n", "line 2 has 2 columns, expected 3"),
    "ragged": ("a,b,y\n1,2,0\n\n1,2\n", "line 4 has 2 columns, expected 3"),
    "ragged after quotes": ('a,b,y\n1,2,"0"\n\n1,2\n', "line 4 has 2 columns, expected 3"),
    "row of delimiters": ("a,y\n1,0\n,\n", "line 3, column 'a': '' is not a finite number; fill"),
    "comment before the header": ("# mine\na,y\n1,0\n", "begins with a comment, '# mine'"),
    "comment among rows": ("a,y\n1,0\n# x\n2,1\n", "line 3 has 1 columns, expected 2; remove comm"),
    "comment with delimiters": ("a,y\n# 1,0\n2,1\n", "line 2, column 'a': '# 1' is not a finite"),
    "blank alone": (" \n\n", "the table needs a header of two columns or more, got ''"),
    "delimiters alone": (",,\n,,\n", "the table needs a header of two columns or more"),
    "an id as the last column": (
        "a,y\n" + "".join(f"{k},{k}\n" for k in range(200)),
        "200 different labels in 'y' of 200 rows: is it the label?"),
    "a quantity as the last column": ("a,y\n1,0\n2,1.5\n", "line 3: 1.5 in 'y' is not a class"),
    "minus alone": ("a,y\n1,0\n2,-\n", "line 3, column 'y': '-' stands for a missing label"),
    "label with NUL": ("a,y\n1,b\x00\n", "line 2, column 'y': 'b\\x00' has a line break or"),
    "label with a mark": ("label,a\n\ufeffb,1\n", "line 2, column 'label': '\\ufeffb' has"),
    "NUL": (row("4\x00"), "line 4, column 'b': '4\\x00' is not a finite number"),
    "decimal comma": ("a;b;y\n1;2,5;0\n", f"column 'b': '2,5' is not a finite number; {DECIMAL}"),
    "thousands": (row('"1,000"'), f"line 4, column 'b': '1,000' is not a finite number; {DECIMAL}"),
    "thousands of dots": (row("1.000.000"), DECIMAL),
    "thousands of spaces": (row("1\u202f000"), DECIMAL),
    "underscore": (row("1_2"), f"line 4, column 'b': '1_2' is not a finite number; {CODES}"),
    "underscore among quotes": (
        'a,y\n"1",b\n1_2,c\n', f"line 3, column 'a': '1_2' is not a finite number; {CODES}"),
    "digits of Unicode": (row("１"), "line 4, column 'b': '１' is not a finite number"),
    "digits of Unicode among quotes": ('a,y\n"１",b\n', "line 2, column 'a': '１' is not a finite"),
    "hexadecimal": (row("0x1A"), "line 4, column 'b': '0x1A' is not a finite number; write it"),
    "infinity": (row("-inf"), "line 4, column 'b': '-inf' is not a finite number; replace it"),
    "boolean": (row("True"), "line 4, column 'b': 'True' is not a finite number; write 1 and 0"),
    "date": (row("2024-05-01 10:00"), "not a finite number; write a time as a number"),
    "time": (row("10:00:00"), "not a finite number; write a time as a number"),
    "percent": (row("50%"), f"line 4, column 'b': '50%' is not a finite number; {CODES}"),
    "two numbers": (row("1 2"), f"line 4, column 'b': '1 2' is not a finite number; {CODES}"),
    "beyond float32": (row("-1e39"), "line 4, column 'b': '-1e39' is beyond float32, at most"),
    "beyond float64": (row("1e999"), "line 4, column 'b': '1e999' is beyond float32"),
    "ids that float32 merges": (
        "id,y\n16777216,0\n\n16777217,1\n",
        "line 4, column 'id': float32 keeps 1 of 2 different values; 16777216.0 and 16777217.0"),
    "times that float32 merges": (
        "at,y\n1700000000.25,0\n1700000000.75,1\n", "line 3, column 'at': float32 keeps 1 of 2"),
    "tiny values that float32 merges": ("a,y\n1e-50,0\n2e-50,1\n", "line 3, column 'a': float32"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_fault_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    text, message = REFUSED[case]
    found = of(tmp_path, text)
    assert isinstance(found, str)
    assert message in found


@pytest.mark.parametrize("spelling", sorted(MISSING))
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_missing_value_is_refused_in_every_spelling(
    tmp_path: Path, spelling: str, quote: str
) -> None:
    cell = f"{quote}{spelling}{quote}"
    label = of(tmp_path, f"a,y\n1,b\n2,{cell}\n3,c\n")
    assert isinstance(label, str)
    assert "line 3, column 'y'" in label or "line 3 has no label in 'y'" in label
    feature = of(tmp_path, f"a,y\n1,b\n{cell},b\n3,c\n")
    assert isinstance(feature, str)
    assert "line 3, column 'a'" in feature
    assert "fill in the value" in feature


PACKED = gzip.compress(b"a,y\n", mtime=0)
MARKED = "a,y\n1,é\n2,b\n"


@pytest.mark.parametrize(
    "raw",
    [
        MARKED.encode(),
        MARKED.encode("utf-8-sig"),
        *(
            mark + MARKED.encode(name)
            for mark, name in (
                (codecs.BOM_UTF16_LE, "utf-16-le"),
                (codecs.BOM_UTF16_BE, "utf-16-be"),
                (codecs.BOM_UTF32_LE, "utf-32-le"),
                (codecs.BOM_UTF32_BE, "utf-32-be"),
            )
        ),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_byte_order_mark_names_the_encoding(
    tmp_path: Path, raw: bytes, pack: Callable[[bytes], bytes]
) -> None:
    suffix = {gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}.get(pack, "")
    assert of(tmp_path, pack(raw), f"mine.csv{suffix}") == Right([[1], [2]], ["é", "b"])


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("mine.csv", b"a,y\n1,b\n2,\xe9\n", "line 3, column 'y': '\ufffd' has the byte 0xe9"),
        ("mine.csv", b"a,y\n1,b\n\xe9,c\n", "line 3, column 'a': '\ufffd' has the byte 0xe9"),
        ("mine.csv", b"\xe9,y\n1,b\n2,c\n", "line 1: '\ufffd' has the byte 0xe9"),
        ("mine.csv", MARKED.encode("utf-16-le"), "line 2, column 'a\\x00'"),
        ("mine.csv", codecs.BOM_UTF16_LE + b"a\0,\0y\0\n\0001", "begins as utf-16-le text"),
        ("mine.csv", PACKED, "compressed; its name must end in .csv.gz"),
        ("mine.csv", bz2.compress(b"a,y\n"), "compressed; its name must end in .csv.bz2"),
        ("mine.csv", lzma.compress(b"a,y\n"), "compressed; its name must end in .csv.xz"),
        ("mine.csv.gz", gzip.compress(PACKED, mtime=0), "compressed; its name must end"),
        ("mine.csv", b"PK\x03\x04\x14\0", "an archive or a workbook; save the table as CSV"),
        ("mine.csv.zst", b"(\xb5/\xfd\x04\0", "an archive or a workbook; save the table as CSV"),
        ("mine.csv.gz", b"a,y\n1,0\n", "cannot be read: Not a gzipped file"),
        ("mine.csv.gz", gzip.compress(b"a,y\n1,0\n", mtime=0)[:-9], "truncated or damaged"),
        ("mine.csv.bz2", bz2.compress(b"a,y\n1,0\n")[:-9], "truncated or damaged"),
        ("mine.csv.xz", lzma.compress(b"a,y\n1,0\n")[:-9], "truncated or damaged"),
        ("mine.csv.gz", b"", "a header of two columns or more, got ''"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_text_are_refused(
    tmp_path: Path, name: str, raw: bytes, message: str
) -> None:
    found = of(tmp_path, raw, name)
    assert isinstance(found, str)
    assert message in found


def test_tabs_part_a_file_of_their_name(tmp_path: Path) -> None:
    assert of(tmp_path, "a\ty,z\n1\t2\n2\t3\n", "mine.tsv") == Right([[1], [2]], ["2", "3"])


@pytest.mark.parametrize(
    ("text", "label", "features"),
    [
        ("0,1,2\n5,6,1\n7,8,0\n", "2", [[5, 6], [7, 8]]),
        ("0,cat\n5,dog\n6,bird\n", "cat", [[5], [6]]),
        ("Unnamed: 0,a\n5,0\n6,1\n", "Unnamed: 0", [[0], [1]]),
        ("a,y\n" + "".join(f"{k},{k}\n" for k in range(200)), "y", [[k] for k in range(200)]),
    ],
)
def test_a_label_that_the_user_names_settles_doubts(
    tmp_path: Path, text: str, label: str, features: list[list[float]]
) -> None:
    (tmp_path / "mine.csv").write_text(text)
    assert read(tmp_path / "mine.csv", label).batch.features.tolist() == features


def test_no_column_is_named_by_an_empty_word(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(",a,y\n0,5,0\n1,6,1\n")
    found = outcome(tmp_path / "mine.csv", "")
    assert isinstance(found, str)
    assert "no column ''; its columns are a, y" in found


@pytest.mark.parametrize("last", ["9,b", '"9","b"', "\n9,b", "9,b\n "])
@pytest.mark.parametrize("fault", ["", "x,b", "9,NA", "1e99,b", "9", '9,"b'])
def test_rows_beyond_the_first_block_are_read_alike(tmp_path: Path, last: str, fault: str) -> None:
    rows = CELLS // 2 + 5
    text = "a,y\n" + "\n".join([*("7,a" for _ in range(rows)), last, fault])
    found = of(tmp_path, text)
    if fault:
        assert isinstance(found, str)
        assert f"line {1 + rows + 1 + len(last.splitlines())}" in found
    else:
        assert isinstance(found, Right)
        assert found.features == [[7]] * rows + [[9]]
        assert found.labels == ["a"] * rows + ["b"]


CELL = st.one_of(
    st.floats(allow_nan=True).map(repr),
    st.integers().map(str),
    st.text(alphabet="0123456789eE+-._ \t\x1c\xa0１infax", max_size=6),
)


@given(st.lists(st.tuples(CELL, st.sampled_from(["b", "c", " b ", "é"])), min_size=1, max_size=6))
def test_quotes_around_labels_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    """Lines with quotes take another way than those without, and needed quotes another one yet."""
    folder = tmp_path_factory.mktemp("quotes")
    plain = "".join(f"{cell},{label}\n" for cell, label in [("1", "a_a"), *rows])
    found = of(folder, f"a,y\n{plain}")
    assert of(folder, "a,y\n" + plain.replace("a_a", '"a_a"')) == found
    needed = of(folder, "a,y\n" + plain.replace("a_a", '"a,a"'))
    if isinstance(needed, Right):
        needed = needed._replace(labels=[one.replace(",", "_") for one in needed.labels])
    assert needed == found


def test_of_many_columns_that_float32_rounds_a_few_are_named(tmp_path: Path) -> None:
    names = ",".join("abcdef")
    rows = [f"{','.join([text] * 6)},{k}" for k, text in enumerate(("0.3", "0.30000000000000004"))]
    found = of(tmp_path, "\n".join([f"{names},y", *rows]))
    assert isinstance(found, Right)
    assert [f"column '{name}'" in found.note for name in "abcdef"] == [True] * 3 + [False] * 3
    assert found.note.endswith("; float32 keeps fewer values of 3 more columns")


def test_numbers_keep_the_bits_of_their_nearest_float32(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).normal(size=(500, 3)) * [1e-30, 1, 1e30]
    lines = [f"{a!r},{b!r},{c!r},{k % 2}" for k, (a, b, c) in enumerate(drawn.tolist())]
    for ending in ("", ',"0"'):
        text = "\n".join(["a,b,c,y", *lines, *(["0,0,0" + ending] if ending else [])])
        (tmp_path / "mine.csv").write_text(text)
        found: Table = read(tmp_path / "mine.csv")
        np.testing.assert_array_equal(found.batch.features[:500], drawn.astype(np.float32))


def test_a_line_that_names_the_delimiter_is_skipped(tmp_path: Path) -> None:
    text = "a;b;label\n1;2.5;x\n3;4;y\n"
    assert not isinstance(of(tmp_path, text), str)
    assert of(tmp_path, "sep=;\r\n" + text) == of(tmp_path, text)
    fault = of(tmp_path, "sep=;\n" + text + "5;q;y\n")
    assert isinstance(fault, str)
    assert "line 5" in fault


def test_a_comment_in_place_of_the_header_is_refused_with_what_to_do(tmp_path: Path) -> None:
    fault = of(tmp_path, "# by hand\na,b,label\n1,2,x\n3,4,y\n")
    assert isinstance(fault, str)
    assert "begins with a comment" in fault
