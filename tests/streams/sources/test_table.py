"""A user's file is a stream, or the error says what is wrong with it, and where."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from service.cli import main
from streams.batch import check, concatenate
from streams.sources.catalog import get
from streams.sources.table import Table, TableError, read


def written(directory: Path, text: str, name: str = "mine.csv") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def table(directory: Path, text: str, label: str | None = None) -> Table:
    return read(written(directory, text), label)


def test_rows_keep_their_order_and_numbers_their_bits(tmp_path: Path) -> None:
    made = concatenate(list(get("rbf", 500).batches(100)))
    names = ",".join(f"x{k}" for k in range(10))
    rows = (
        ",".join([*map(repr, map(float, x)), str(y)])
        for x, y in zip(made.features, made.labels, strict=True)
    )
    found = table(tmp_path, "\n".join([f"{names},y", *rows]))
    stream = found.stream()
    assert (stream.width, stream.classes, stream.examples) == (10, 5, 500)
    batches = list(stream.batches(64, seed=7))
    whole = concatenate(batches)
    np.testing.assert_array_equal(whole.features, made.features)
    np.testing.assert_array_equal(whole.labels, made.labels)
    check(batches[0], stream.width, stream.classes)
    assert found.stream(120).examples == len(concatenate(list(found.stream(120).batches(50))))


@pytest.mark.parametrize("label", [None, "kind"])
def test_the_label_is_the_column_of_that_name_or_the_last(
    tmp_path: Path, label: str | None
) -> None:
    if label:
        found = table(tmp_path, "kind,a,label\nno,1,0\nyes,2,1\nno,3,1\n", label)
        assert found.label == label
        assert found.names == ("no", "yes")
        assert found.batch.labels.tolist() == [0, 1, 0]
        assert found.batch.features.tolist() == [[1, 0], [2, 1], [3, 1]]
        assert "3 examples, 2 features, 'kind' of 2 classes" in str(found)
        assert "numbered by this file alone: 0 = no, 1 = yes" in str(found)
    else:
        named = table(tmp_path, "a,label,b\n1,0,5\n1,1,5\n")
        assert (named.label, named.batch.features.tolist()) == ("label", [[1, 5], [1, 5]])
        last = table(tmp_path, "a,c,b\n1,0,5\n1,1,6\n")
        assert (last.label, last.batch.features.tolist()) == ("b", [[1, 0], [1, 1]])


@pytest.mark.parametrize(
    ("labels", "numbers", "names", "classes"),
    [
        (["0", "2", "1"], [0, 2, 1], (), 3),
        (["1.0", "0.0"], [1, 0], (), 2),
        (["3", "1", "3"], [3, 1, 3], (), 4),
        (["1", "-1"], [1, 0], ("-1", "1"), 2),
        (["+1", "-1"], [1, 0], ("-1", "+1"), 2),
        (["70000", "9", "1e12"], [1, 0, 2], ("9", "70000", "1e12"), 3),
        (["b ", '"a, b"', " b"], [1, 0, 1], ("a, b", "b"), 2),
        (["é", "e"], [1, 0], ("e", "é"), 2),
    ],
)
def test_labels_are_numbered_unless_they_are_numbers_from_0(
    tmp_path: Path, labels: list[str], numbers: list[int], names: tuple[str, ...], classes: int
) -> None:
    found = table(tmp_path, "\n".join(["x,y", *(f"1,{label}" for label in labels)]))
    assert found.batch.labels.tolist() == numbers
    assert (found.names, found.classes) == (names, classes)


def test_columns_may_be_named_by_their_numbers(tmp_path: Path) -> None:
    found = table(tmp_path, "0,1,label\n5,6,1\n7,8,0\n")
    assert found.batch.features.tolist() == [[5, 6], [7, 8]]
    assert found.batch.labels.tolist() == [1, 0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_compression_and_byte_order_marks_are_recognized(
    tmp_path: Path, delimiter: str
) -> None:
    text = "\ufeffa,b,y\r\n1,2,0\r\n\r\n3,4,1\r\n".replace(",", delimiter)
    path = tmp_path / "mine.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    for found in (read(path), read(written(tmp_path, text))):
        assert found.batch.features.tolist() == [[1, 2], [3, 4]]
        assert found.batch.labels.tolist() == [0, 1]
        assert found.label == "y"


def test_a_file_of_the_services_own_format_is_a_stream(tmp_path: Path) -> None:
    batch = next(get("stationary", 100, source="digits").batches(100))
    (tmp_path / "mine.safetensors").write_bytes(batch.to_bytes())
    found = read(tmp_path / "mine.safetensors")
    np.testing.assert_array_equal(next(found.stream().batches(100)).features, batch.features)
    assert found.batch.features.dtype == np.uint8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a header of two columns or more"),
        ("y\n1\n", "needs a header of two columns or more, got 'y'"),
        ("a,y\n", "has no examples"),
        ("1,2\n3,4\n", "begins with data; its first line must name the columns"),
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n", "begins with data"),
        ("0,0,five\n", "begins with data"),
        ("a,a\n1,1\n", "has several columns 'a'"),
        ("a,b,y\n1,2,0\n1,,0\n", "line 3, column 'b': '' is not a finite number"),
        ("a,b,y\n1,2,0\n\n1,red,0\n", "line 4, column 'b': 'red' is not a finite number"),
        ("a,b,y\n1,nan,0\n", "line 2, column 'b': 'nan'"),
        ("a,b,y\n1,1e39,0\n", "line 2, column 'b': '1e39' is beyond float32"),
        ("a,b,y\n1,2,0\n1,2\n", "line 3 has 2 columns, expected 3"),
        ("a,b,y\n1,2,0\n1,2,0,4\n", "line 3 has 4 columns, expected 3"),
        ("a,y\n1,0\n1,\n", "line 3 has no label in 'y'"),
        ("a,y\n1,0.5\n", "0.5 in 'y' is not a class"),
        ("a,y\n1,inf\n", "inf in 'y' is not a class"),
        ("a,y\n1,b\n2,b\n", "1 different labels in 'y'"),
        ("a" * 200_000 + ",y\n1,b\n", "field larger than field limit"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TableError) as caught:
        table(tmp_path, text)
    assert message in str(caught.value)
    assert "mine.csv" in str(caught.value)


def test_files_that_are_not_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"a table ends in \.csv"):
        read(written(tmp_path, "a,y\n1,0\n", "mine.parquet"))
    with pytest.raises(TableError, match=r"columns are a, y"):
        table(tmp_path, "a,y\n1,0\n", label="z")
    (tmp_path / "short.csv.gz").write_bytes(gzip.compress(b"a,y\n" + b"1,0\n" * 99)[:-9])
    whole = bytearray(gzip.compress(b"a,y\n" + b"1,0\n" * 99))
    whole[10] = 7  # no kind of block
    (tmp_path / "damaged.csv.gz").write_bytes(whole)
    for name in ("short.csv.gz", "damaged.csv.gz"):
        with pytest.raises(TableError, match="is truncated or damaged"):
            read(tmp_path / name)
    many = "\n".join(["a,y", *(f"1,{k}x" for k in range(10_001))])
    with pytest.raises(TableError, match="10,001 different labels"):
        table(tmp_path, many)
    save_file({"features": np.full((2, 3), np.nan, np.float32), "labels": np.zeros(2, np.int64)},
              tmp_path / "nan.safetensors")  # fmt: skip
    with pytest.raises(TableError, match=r"nan\.safetensors: example 0: features must be finite"):
        read(tmp_path / "nan.safetensors")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, -1]), r"example 1: label -1 is outside 0…9999"),
        (np.array([0, 2**53 + 1]), "example 1: label 9007199254740993 is outside"),
        (np.array([0]), r"labels have shape \[1\], expected \[2\]"),
        (np.array([0.0, 1.0]), "labels are float32, and this model predicts classes"),
        (np.array([False, True]), "labels have dtype BOOL, expected one of I64"),
    ],
)
def test_labels_in_safetensors_are_classes_or_refused(
    tmp_path: Path, labels: "np.ndarray[tuple[int], np.dtype[np.generic]]", message: str
) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({"features": np.zeros((2, 3), np.float32), "labels": labels}, path)
    with pytest.raises(TableError, match=message):
        read(path)


def test_a_file_compares_as_the_stream_that_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = concatenate(list(get("segments").batches(100)))
    (tmp_path / "mine.safetensors").write_bytes(whole.to_bytes())
    tables = []
    for stream in ("segments", str(tmp_path / "mine.safetensors")):
        assert main(["compare", stream, "--peers", "sgd", "--threads", "1"]) == 0
        out = capsys.readouterr().out
        tables.append(out[out.index("learner") :])
    assert tables[0] == tables[1]


def test_a_label_is_refused_for_a_stream(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "abrupt", "--label", "y"]) == 2
    assert "--label is for a file" in capsys.readouterr().err


def test_neither_a_stream_nor_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "abrubt"]) == 1
    shown = capsys.readouterr().err
    assert "no stream and no file 'abrubt' (did you mean abrupt?); there are abrupt" in shown
