"""Files of rows: every kind of file gives the same rows, and a fault names its place."""

import gzip
import io
import sys
from pathlib import Path

import pandas as pd
import pytest

from streams import rowfile
from streams.rows.rows import Rows
from streams.sources.faults import TableError

FRAME = pd.DataFrame(
    {
        "plan": ["basic", "vip", None, "pro"] * 3,
        "age": [41.5, None, 33.0, 7.0] * 3,
        "at": pd.to_datetime(["2026-05-01T08:30:00Z", "2026-05-02T09:00:00Z"] * 6),
        "label": ["stay", "go", "stay", "7"] * 3,
    }
)


def written(folder: Path, ending: str) -> str:
    path = folder / f"shop{ending}"
    match ending:
        case ".csv" | ".tsv" | ".csv.gz":
            FRAME.to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
        case ".ndjson":
            FRAME.to_json(path, orient="records", lines=True, date_format="iso")
        case ".parquet":
            FRAME.to_parquet(path)
        case _:
            FRAME.to_feather(path, compression="uncompressed")
    return str(path)


def cells(rows: Rows) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for chunk in rows.chunks:
        assert chunk.labels is not None
        for row, label in zip(chunk.columns.to_pylist(), chunk.labels.to_pylist(), strict=True):
            at = pd.Timestamp(row["at"]).isoformat()
            found.append(row | {"at": at, "label": label})
    return found


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz", ".ndjson", ".parquet", ".arrow"])
def test_every_kind_of_file_gives_the_same_rows(ending: str, tmp_path: Path) -> None:
    found = rowfile.read(written(tmp_path, ending))
    assert (found.label, found.labels) == ("label", ["stay", "go", "7"])
    assert cells(found.rows) == cells(rowfile.read(written(tmp_path, ".csv")).rows)


@pytest.mark.parametrize("ending", [".csv", ".ndjson", ".parquet", ".arrow"])
def test_rows_to_predict_keep_every_column_and_need_no_label(ending: str, tmp_path: Path) -> None:
    rows = rowfile.read_questions(written(tmp_path, ending))
    assert len(rows) == len(FRAME)
    assert all(chunk.labels is None for chunk in rows.chunks)
    assert {*rows.chunks[0].names} == {*FRAME.columns}
    assert {*rowfile.read_questions(written(tmp_path, ending), ["at"]).chunks[0].names} == {
        "plan", "age", "label",
    }  # fmt: skip
    with pytest.raises(TableError, match="there is no column 'x' to drop"):
        rowfile.read_questions(written(tmp_path, ending), ["x"])


@pytest.mark.parametrize("ending", [".csv", ".ndjson"])
def test_standard_input_is_read_by_what_it_holds(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = Path(written(tmp_path, ending)).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert cells(rowfile.read("-").rows) == cells(rowfile.read(written(tmp_path, ".csv")).rows)


def test_the_label_is_the_column_that_is_named_otherwise_the_last(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b,c\nx,1,u\ny,2,v\n")
    assert rowfile.read(str(path)).label == "c"
    assert rowfile.read(str(path), "a").labels == ["x", "y"]
    found = rowfile.read(str(path), drop=["b"])
    assert found.rows.chunks[0].columns.schema.names == ["a"]


def test_more_rows_than_a_request_may_have_are_read(tmp_path: Path) -> None:
    path = tmp_path / "many.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("a,label\n")
        file.writelines(f"{k % 7},{k % 3}\n" for k in range(140_000))
    found = rowfile.read(str(path))
    assert len(found.rows) == 140_000
    assert len(found.rows.part(139_000, 150_000)) == 1_000


FAULTS = {
    "ragged": ("a.csv", "a,label\n1,x\n2\n", "line 3"),
    "an open quote": ("a.csv", 'a,label\n1,x\n"2,y\n', "quote"),
    "no such label": ("a.ndjson", '{"a": 1, "label": "x"}\n{"a": 2}\n', "label is missing"),
    "not JSON": ("a.ndjson", '{"a": 1, "label": "x"}\n{"a": \n', "not JSON"),
    "nothing": ("a.ndjson", "\n", "no rows"),
    "another kind": ("a.xlsx", "", "ends in one of .csv"),
    "no Parquet": ("a.parquet", "PAR?", "cannot be read"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_file_that_is_no_table_is_refused_with_the_place(case: str, tmp_path: Path) -> None:
    name, text, message = FAULTS[case]
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(TableError, match=message):
        rowfile.read(str(path))


def test_a_column_to_drop_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no column 'plans' to drop, only age, at, plan"):
        rowfile.read(written(tmp_path, ".csv"), drop=["plans"])
