"""Rows with named columns, as they are sent, stored in the log, learned and predicted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.batch import Weights, join_weights
from streams.rows.bounds import MAX_COLUMNS
from streams.rows.numbers import Numbers

TYPES = (
    pa.null(),
    pa.bool_(),
    pa.int64(),
    pa.float64(),
    pa.string(),
    pa.timestamp("us", "UTC"),
)
"""Types of columns; every reader converts to one of them. A missing value is null, never NaN."""


class _Coded:
    """Labels that are coded once, when they are first needed."""

    def __init__(self, labels: pa.StringArray | None) -> None:
        self._labels = labels

    @cached_property
    def found(self) -> tuple[list[str], npt.NDArray[np.int32]]:
        """Distinct labels, and the index of each."""
        assert self._labels is not None, "there are no labels"
        coded = self._labels.dictionary_encode()
        return coded.dictionary.to_pylist(), coded.indices.to_numpy()


class Chunk:
    """Rows whose columns have the same names and types, as one request or entry holds them.

    Args:
        columns: n rows; the names are unique and not empty, each type is one of TYPES.
        labels: n canonical texts (see `streams.rows.names.canonical`), none missing; None without
            labels.
        weights: how much each row counts when it is learned, float32 [n]; see
            `streams.batch.Batch`.
    """

    def __init__(
        self,
        columns: pa.RecordBatch | Numbers,
        labels: pa.StringArray | None = None,
        weights: Weights | None = None,
    ) -> None:
        self.own, self.labels, self.weights = columns, labels, weights
        self._coded, self._start = _Coded(labels), 0

    def __len__(self) -> int:
        """Return the number of rows, n."""
        return len(self.own) if isinstance(self.own, Numbers) else int(self.own.num_rows)

    @property
    def columns(self) -> pa.RecordBatch:
        """The columns; reading them takes more time than reading `numbers`."""
        return self.own.columns if isinstance(self.own, Numbers) else self.own

    @property
    def numbers(self) -> Numbers | None:
        """The columns if all are floats without a missing value, and are held as such."""
        own = self.own
        return own if isinstance(own, Numbers) and own.others is None else None

    @property
    def names(self) -> Sequence[str]:
        """Names of the columns."""
        if isinstance(self.own, Numbers):
            return self.own.names
        names: list[str] = self.own.schema.names
        return names

    @property
    def buffer_bytes(self) -> int:
        """Bytes of memory that the values hold, those of other rows in it included."""
        if isinstance(self.own, Numbers):
            return self.own.buffer_bytes
        return int(self.own.get_total_buffer_size())

    def part(self, start: int, stop: int) -> "Chunk":
        """Return the rows from ``start`` up to ``stop``, without a copy."""
        own, n = self.own, stop - start
        columns = own.part(start, stop) if isinstance(own, Numbers) else own.slice(start, n)
        labels = None if self.labels is None else self.labels.slice(start, n)
        found = Chunk(columns, labels, None if self.weights is None else self.weights[start:stop])
        found._coded, found._start = self._coded, self._start + start
        return found

    @property
    def coded_labels(self) -> tuple[list[str], npt.NDArray[np.int32]]:
        """Distinct labels, in order of first appearance, and the index of each row's own, [n].

        Rows that are a part of others share their list, and may lack some of it. Only rows with
        labels have them.
        """
        words, codes = self._coded.found
        return words, codes[self._start : self._start + len(self)]


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
        return sum(len(chunk) * len(chunk.names) for chunk in self.chunks)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of memory that the values hold, those of other rows in it included."""
        return sum(chunk.buffer_bytes for chunk in self.chunks)

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
                found.append(chunk.part(low, high))
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
