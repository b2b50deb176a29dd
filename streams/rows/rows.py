"""Rows with named columns, as they are sent, stored in the log, learned and predicted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from streams.batch import Weights, join_weights

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
