"""Rows from what Python programs hold: arrays, frames of pandas and polars, Arrow, and dicts."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from streams.batch import InvalidBatchError
from streams.rows.ipc.arrow import from_batches
from streams.rows.labels import column_labels, label_texts
from streams.rows.names import canonical
from streams.rows.numbers import Numbers
from streams.rows.records import from_json
from streams.rows.rows import Chunk, Rows

Record = Mapping[str, object]
"""A row: values by column. None and NaN are missing values."""


@runtime_checkable
class PandasFrame(Protocol):
    """A frame of pandas."""

    def to_records(self) -> object:
        """Return the rows as numpy has them; polars has no such method."""
        ...


@runtime_checkable
class PolarsFrame(Protocol):
    """A frame of polars."""

    def to_arrow(self) -> pa.Table:
        """Return the columns."""
        ...


def is_table(found: object) -> bool:
    """Return whether columns have names of their own: a frame, a table, or dicts."""
    if isinstance(found, Sequence) and not isinstance(found, str):
        return bool(found) and all(isinstance(row, Mapping) for row in found)
    return isinstance(found, pa.Table | pa.RecordBatch | PandasFrame | PolarsFrame)


def rows_of_table(found: object) -> Rows:
    """Return the rows of a frame, a table or dicts.

    Args:
        found: as `is_table` takes it.

    Raises:
        InvalidBatchError: a column is of a type that rows cannot have, or a number is infinite.
    """
    if isinstance(found, Sequence):
        return rows_of_records(found)
    try:
        if isinstance(found, pa.RecordBatch):
            table = pa.Table.from_batches([found])
        elif isinstance(found, pa.Table):
            table = found
        elif isinstance(found, PandasFrame):
            table = pa.Table.from_pandas(found, preserve_index=False)
        else:
            assert isinstance(found, PolarsFrame), "it is a table"
            table = found.to_arrow()
    except pa.ArrowException as error:
        raise InvalidBatchError(f"the frame cannot be read: {error}") from error
    return from_batches(table.combine_chunks().to_batches())


def rows_of_records(records: Sequence[Record]) -> Rows:
    """Return rows that are dicts, as JSON would hold them.

    Raises:
        InvalidBatchError: a value is nested, or a number is infinite.
    """
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    try:
        raw = orjson.dumps({"rows": records}, _plain, option=options)
    except TypeError as error:
        raise InvalidBatchError(f"a row cannot be read: {error}", "rows") from error
    return from_json(raw, False)


def row_of(record: Record) -> Rows:
    """Return a row; the order of its columns does not matter, as river promises."""
    return rows_of_records([dict(sorted(record.items(), key=lambda item: str(item[0])))])


def _plain(value: object) -> object:
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"values must be numbers, strings, booleans or times, not {type(value)}")


def rows_of_array(values: npt.NDArray[np.floating], names: Sequence[str]) -> Rows:
    """Return the rows of an array.

    Args:
        values: floats [n, columns], NaN where missing.
        names: of the columns.
    """
    if values.shape[1] > 1 and np.isfinite(values).all():
        floats = np.ascontiguousarray(values.T)
        return Rows((Chunk(Numbers(tuple(names), floats)),))
    columns = [pa.array(column, from_pandas=True) for column in values.T]
    return from_batches([pa.RecordBatch.from_arrays(columns, [*names])])


def labels_of(values: npt.NDArray[np.generic] | Sequence[object]) -> pa.StringArray:
    """Return labels as canonical texts, [n].

    Raises:
        InvalidBatchError: a label is missing, empty or not finite.
    """
    found = values if isinstance(values, np.ndarray) else np.asarray(values)
    if found.dtype.kind in "biuf" and found.dtype != np.float16:
        return column_labels(pa.array(found, from_pandas=True))
    return label_texts(found.tolist(), len(found))


def text_of(label: object) -> str:
    """Return the canonical text of a label.

    >>> [text_of(label) for label in (np.int64(3), 3.0, "churn", np.bool_(True))]
    ['3', '3', 'churn', 'true']
    """
    plain = label.item() if isinstance(label, np.generic) else label
    return str(canonical(plain)) if isinstance(plain, bool | int | float | str) else str(plain)


def with_labels(
    rows: Rows, labels: pa.StringArray, weights: npt.NDArray[np.float32] | None
) -> Rows:
    """Return rows with labels, and with weights if there are any.

    Args:
        rows: n of them, without labels.
        labels: canonical texts [n].
        weights: fp32 [n], or None.
    """
    chunks, start = [], 0
    for chunk in rows.chunks:
        stop = start + len(chunk)
        own = None if weights is None else weights[start:stop]
        chunks.append(Chunk(chunk.own, labels.slice(start, stop - start), own))
        start = stop
    return Rows(tuple(chunks))
