"""A user's own rows: a table in a file with strings, missing values, times and words as labels.

``.csv`` and ``.tsv`` (also ``.gz``, ``.bz2``, ``.xz``), ``.ndjson`` and ``.jsonl`` with an object a
line, ``.parquet``, and ``.arrow`` or ``.feather``. ``-`` is standard input: CSV, or NDJSON if it
begins with an object.
"""

import gzip
import io
import lzma
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from streams.batch import InvalidBatchError
from streams.rows.delimited import columns_of, from_file
from streams.rows.ipc.arrow import from_batches
from streams.rows.labels import labelled, weighted
from streams.rows.records import from_json
from streams.rows.rows import Chunk, Rows, join
from streams.rowstream import RowStream
from streams.sources.catalog import Shift
from streams.sources.delimited import opened
from streams.sources.faults import TableError
from streams.sources.names import ARROW, LINED, PARQUET, STANDARD_INPUT

LABEL = "label"
"""The column of the labels unless another is named; otherwise the last column."""
LINES = 10_000
"""Lines of NDJSON, and rows of Parquet and Arrow, that are read at once."""
TEXT = (".csv", ".tsv")


@dataclass(frozen=True)
class RowFile:
    """Labelled rows from a file."""

    name: str
    rows: Rows
    label: str
    """Name of the column that held the labels."""

    @property
    def labels(self) -> list[str]:
        """The different labels, in order of first appearance."""
        seen: dict[str, None] = {}
        for chunk in self.rows.chunks:
            assert chunk.labels is not None, "rows of a file are labelled"
            seen.update(dict.fromkeys(chunk.labels.unique().to_pylist()))
        return [*seen]

    def stream(self, examples: int | None = None) -> RowStream:
        """Return the rows as a stream; the first ``examples`` of them if that is given."""
        length = min(examples or len(self.rows), len(self.rows))
        order = (Shift(0, "in the order of the file"),)
        return RowStream(
            self.name, self.label, tuple(self.labels), length, order, lambda _: iter([self.rows])
        )

    def __str__(self) -> str:
        """Return a line that describes the file."""
        names = dict.fromkeys(n for chunk in self.rows.chunks for n in chunk.columns.schema.names)
        return (
            f"{self.name}: {len(self.rows):,} rows, {len(names)} columns, {self.label!r} of "
            f"{len(self.labels)} labels"
        )


def read(
    path: str, label: str | None = None, drop: Sequence[str] = (), weight: str | None = None
) -> RowFile:
    """Read a whole file.

    Args:
        path: of a file of one of the kinds that the module names, or ``-``.
        label: name of the column of the labels; by default LABEL, otherwise the last column.
        drop: columns to remove.
        weight: name of the column of the weights; None for no weights.

    Raises:
        TableError: the file cannot be read, or is no table of labelled rows.
    """
    with _faults(path) as name:
        rows, label = _read(path, label)
        rows = rows if weight is None else weighted(rows, weight)
        return RowFile(name, _without(rows, drop), label)


def read_questions(path: str, drop: Sequence[str] = ()) -> Rows:
    """Read a whole file of rows to predict; no column holds labels.

    Args:
        path: as for `read`.
        drop: columns to remove.

    Raises:
        TableError: the file cannot be read, or is no table of rows.
    """
    with _faults(path):
        return _without(_read(path, None, is_labelled=False)[0], drop)


@contextmanager
def _faults(path: str) -> Iterator[str]:
    """Give the name of a file, which errors of reading it begin with.

    Raises:
        TableError: in place of any of these.
    """
    name = "standard input" if path == STANDARD_INPUT else Path(path).name
    try:
        yield name
    except (TableError, InvalidBatchError) as error:
        index = getattr(error, "index", None)
        where = "" if index is None or "line" in str(error) else f"row {index + 1}: "
        raise TableError(f"{name}: {where}{error}") from error
    except (OSError, EOFError, lzma.LZMAError, gzip.BadGzipFile, pa.ArrowException) as error:
        raise TableError(f"{name} cannot be read: {error}") from error


def _read(path: str, label: str | None, is_labelled: bool = True) -> tuple[Rows, str]:
    if path == STANDARD_INPUT:
        raw = sys.stdin.buffer.read()
        if raw.lstrip()[:1] == b"{":
            return _labelled(_lined(raw.splitlines()), label, is_labelled)
        return _text(
            io.StringIO(raw.decode("utf-8-sig", "surrogateescape"), newline=""), label, is_labelled
        )
    kinds = [suffix.lower() for suffix in Path(path).suffixes[-2:]]
    if set(kinds) & set(TEXT):
        with opened(Path(path)) as file:
            return _text(io.StringIO(file.read(), newline=""), label, is_labelled)
    if set(kinds) & set(LINED):
        with opened(Path(path)) as file:
            return _labelled(_lined(line.encode() for line in file), label, is_labelled)
    if kinds[-1:] and kinds[-1] in ARROW:
        with pa.memory_map(path) as source:
            return _labelled(from_batches(_arrow(source)), label, is_labelled)
    if kinds[-1:] and kinds[-1] in PARQUET:
        with pa.parquet.ParquetFile(path) as table:
            return _labelled(from_batches(table.iter_batches(LINES)), label, is_labelled)
    ends = ", ".join((*TEXT, *LINED, *PARQUET, *ARROW))
    raise TableError(f"a file of rows ends in one of {ends}; .csv may be compressed")


def _text(file: io.StringIO, label: str | None, is_labelled: bool) -> tuple[Rows, str]:
    if not is_labelled:
        return from_file(file, None), ""
    names = columns_of(file)
    column = label or (LABEL if LABEL in names else names[-1])
    return from_file(file, column), column


def _lined(lines: Iterable[bytes]) -> Rows:
    """Return the objects of lines; blank lines are skipped."""
    found, parts = (line for line in lines if line.strip()), []
    while batch := list(islice(found, LINES)):
        parts.append(from_json(b'{"rows":[' + b",".join(batch) + b"]}", False))
    return join(parts)


def _arrow(source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        return
    for index in range(file.num_record_batches):
        yield file.get_batch(index)


def _labelled(rows: Rows, label: str | None, is_labelled: bool) -> tuple[Rows, str]:
    if not len(rows):
        raise TableError("there are no rows")
    if not is_labelled:
        return rows, ""
    names = rows.chunks[0].columns.schema.names
    column = label or (LABEL if LABEL in names else names[-1])
    return labelled(rows, column), column


def _without(rows: Rows, drop: Sequence[str]) -> Rows:
    """Return rows without some columns.

    Raises:
        TableError: one of them is not there.
    """
    names = {name for chunk in rows.chunks for name in chunk.columns.schema.names}
    if unknown := [name for name in drop if name not in names]:
        shown = ", ".join(sorted(names))
        raise TableError(f"there is no column {unknown[0]!r} to drop, only {shown}")
    if not drop:
        return rows
    kept = []
    for chunk in rows.chunks:
        stay = [name for name in chunk.columns.schema.names if name not in drop]
        kept.append(Chunk(chunk.columns.select(stay), chunk.labels, chunk.weights))
    return Rows(tuple(kept))


def bundled(name: str) -> RowFile:
    """Return one of the sets of `streams.sources.names.NUMBER_NAMES`, which river carries."""
    from river import datasets

    kind, label = NUMBERS[name]
    return replace(read(str(getattr(datasets, kind)().path), label), name=name)


NUMBERS = {
    "trump_approval": ("TrumpApproval", "five_thirty_eight"),
    "chick_weights": ("ChickWeights", "weight"),
    "water_flow": ("WaterFlow", "Water flow [l/s]"),
}
"""Names in `river.datasets`, and of the columns of labels."""
