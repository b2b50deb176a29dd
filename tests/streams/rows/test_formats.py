"""Rows are the same whichever format they were sent in."""

import csv
import json
from collections.abc import Sequence
from io import BytesIO, StringIO
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from streams.rows.delimited import from_csv
from streams.rows.entry import from_bytes, to_bytes
from streams.rows.ipc.arrow import from_ipc
from streams.rows.names import canonical
from streams.rows.records import from_json, from_ndjson
from streams.rows.rows import Rows
from streams.sources.faults import MISSING

Table = dict[str, list[Any]]
words = st.text("abcxyzü ,;\"'\n|", min_size=1, max_size=8).map(str.strip)
kinds: list[st.SearchStrategy[Any]] = [
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-100, 100),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False, width=16),
    words.filter(lambda word: word not in MISSING and not word.startswith('"')),
    st.none(),
]

classes = kinds[5].filter(lambda word: not set(word) & set('"\n'))
"""Labels of CSV have no line breaks, and no quotes at their edges."""


@st.composite
def tables(draw: st.DrawFn) -> Table:
    n = draw(st.integers(1, 6))
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=5))
    columns = [
        draw(st.lists(st.none() | kind if draw(st.booleans()) else kind, min_size=n, max_size=n))
        for kind in chosen
    ]
    labels = draw(st.sampled_from([kinds[0], kinds[2], classes]))
    table = {f"c{k}": column for k, column in enumerate(columns)}
    return table | {"y": draw(st.lists(labels, min_size=n, max_size=n))}


def rows_of(table: Table) -> tuple[list[dict[str, Any]], list[Any]]:
    names = [name for name in table if name != "y"]
    values = zip(*(table[name] for name in names), strict=True)
    return [dict(zip(names, row, strict=True)) for row in values], table["y"]


def as_json(table: Table) -> Rows:
    rows, labels = rows_of(table)
    return from_json(json.dumps({"rows": rows, "labels": labels}).encode(), True)


def as_ndjson(table: Table) -> Rows:
    pairs = zip(*rows_of(table), strict=True)
    lines = (json.dumps({"row": row, "label": label}) for row, label in pairs)
    return from_ndjson("\n".join(lines).encode(), True)


def as_csv(table: Table, delimiter: str = ",") -> Rows:
    text = StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return from_csv(text.getvalue().encode(), "y", True)


def as_arrow(table: Table) -> Rows:
    batch = pa.record_batch({name: pa.array(column) for name, column in table.items()})
    sink = BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write(batch)
    return from_ipc(sink.getvalue(), "y", True)


def texts(rows: Rows) -> tuple[dict[str, list[str | None]], Sequence[str]]:
    """Return the canonical texts of all cells, and of the labels."""
    (chunk,) = rows.chunks
    assert chunk.labels is not None
    cells = {
        name: [None if value is None else canonical(value) for value in column]
        for name, column in chunk.columns.to_pydict().items()
    }
    return cells, chunk.labels.to_pylist()


@given(tables())
def test_all_formats_give_the_same_texts_of_all_cells(table: Table) -> None:
    expected = texts(as_json(table))
    assert texts(as_ndjson(table)) == expected
    assert texts(as_csv(table)) == expected
    assert texts(as_csv(table, "\t")) == expected
    assert texts(as_arrow(table)) == expected
    assert texts(from_bytes(to_bytes(as_json(table)))) == expected


@given(tables(), st.data())
def test_a_cell_has_the_same_text_alone_as_among_others(table: Table, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(table["y"]) - 1))
    alone = {name: [column[row]] for name, column in table.items()}
    for read in (as_json, as_ndjson, as_csv, as_arrow):
        cells, labels = texts(read(table))
        own, label = texts(read(alone))
        assert own == {name: [column[row]] for name, column in cells.items()}
        assert label == [labels[row]]
