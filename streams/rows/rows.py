"""Rows with named columns, as they are sent, stored in the log, learned and predicted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streams.batch import Weights, join_weights
from streams.rows.bounds import MAX_COLUMNS

TYPES = (
    pa.null(),
    pa.bool_(),
    pa.int64(),
    pa.float64(),
    pa.string(),
    pa.timestamp("us", "UTC"),
)
"""Types of columns; every reader converts to one of them. A missing value is null, never NaN."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows whose columns have the same names and types, as one request or entry holds them."""

    columns: pa.RecordBatch
    """n rows; the names are unique and not empty, each type is one of TYPES."""
    labels: pa.StringArray | None = None
    """n canonical texts (see `streams.rows.names.canonical`), none missing; None without labels."""

    weights: Weights | None = None
    """How much each row counts when it is learned, float32 [n]; see `streams.batch.Batch`."""

    def __len__(self) -> int:
        """Return the number of rows, n."""
        return int(self.columns.num_rows)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows in chunks: columns of one name may differ in type and place between chunks."""

    chunks: tuple[Chunk, ...]

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(map(len, self.chunks))

    @property
    def cells(self) -> int:
        """Number of cells."""
        return sum(len(chunk) * chunk.columns.num_columns for chunk in self.chunks)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of memory that the values hold, those of other rows in it included."""
        return sum(int(chunk.columns.get_total_buffer_size()) for chunk in self.chunks)

    @property
    def weights(self) -> Weights | None:
        """Weights of all rows, float32; None if no chunk has any."""
        return join_weights([(chunk.weights, len(chunk)) for chunk in self.chunks])

    def part(self, start: int, stop: int) -> "Rows":
        """Return the rows from ``start`` up to ``stop``, without a copy."""
        found: list[Chunk] = []
        for chunk in self.chunks:
            n = len(chunk)
            low, high = max(start, 0), min(stop, n)
            if low < high:
                labels = None if chunk.labels is None else chunk.labels.slice(low, high - low)
                weights = None if chunk.weights is None else chunk.weights[low:high]
                found.append(Chunk(chunk.columns.slice(low, high - low), labels, weights))
            start, stop = start - n, stop - n
        return Rows(tuple(found))

    def split(self) -> Iterator["Rows"]:
        """Yield the rows of each chunk, as one request or entry can hold them."""
        for chunk in self.chunks:
            yield Rows((chunk,))


def join(parts: Sequence[Rows]) -> Rows:
    """Return rows after one another, without a copy."""
    return Rows(tuple(chunk for part in parts for chunk in part.chunks))


def merged(rows: Rows) -> Rows:
    """Return the same rows in fewer chunks, in the same order.

    Neighbours become one chunk if the types of their columns agree, or are integers here and floats
    there; in one that some of them lack, their values are missing. They stay apart if that would
    more than double their cells, or if labels or weights are in some of them only.
    """
    return Rows(_merged(rows.chunks))


def _merged(chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
    if len(chunks) < 2:
        return chunks
    if (whole := _whole(chunks)) is not None:
        return (whole,)
    middle = len(chunks) // 2
    return _merged(chunks[:middle]) + _merged(chunks[middle:])


def _whole(chunks: tuple[Chunk, ...]) -> Chunk | None:
    """Return the rows of all chunks in one, or None if they stay apart."""
    labels = [chunk.labels for chunk in chunks if chunk.labels is not None]
    weights = [chunk.weights for chunk in chunks if chunk.weights is not None]
    if len(labels) not in (0, len(chunks)) or len(weights) not in (0, len(chunks)):
        return None
    if (columns := _stacked([chunk.columns for chunk in chunks])) is None:
        return None
    return Chunk(
        columns,
        pa.concat_arrays(labels) if labels else None,
        np.concatenate(weights) if weights else None,
    )


def _stacked(batches: list[pa.RecordBatch]) -> pa.RecordBatch | None:
    first = batches[0].schema
    if all(batch.schema.equals(first) for batch in batches):
        table = pa.Table.from_batches(batches)
    else:
        try:
            schema = pa.unify_schemas([b.schema for b in batches], promote_options="permissive")
        except pa.ArrowException:
            return None
        cells = sum(batch.num_rows * batch.num_columns for batch in batches)
        width, n = len(schema), sum(batch.num_rows for batch in batches)
        if width > MAX_COLUMNS or n * width > 2 * cells or not {*schema.types} <= {*TYPES}:
            return None
        tables = [pa.Table.from_batches([batch]) for batch in batches]
        table = pa.concat_tables(tables, promote_options="permissive")
    [stacked] = table.combine_chunks().to_batches()
    return stacked
