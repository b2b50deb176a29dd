"""Rows written as an Arrow IPC stream, and the conversion of Arrow's columns."""

import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.batch import InvalidBatchError, TooManyError
from streams.rows.bounds import (
    EXACT,
    MAX_BYTES,
    SHOWN,
    check_size,
    check_texts,
)
from streams.rows.ipc.flatbuffer import FlatbufferError
from streams.rows.ipc.messages import check_stream
from streams.rows.labels import column_labels
from streams.rows.numbers import Numbers, Values
from streams.rows.rows import Chunk, Rows, join
from streams.rows.table import place_of_label, rows_of
from streams.rows.times import TIME, check_times

FLOAT, INTEGER = pa.float64(), pa.int64()
FLOATS = (pa.float32(), FLOAT)
PART = 10_000
"""Rows that are converted at once."""
INDEX = re.compile(r"__index_level_\d+__")
"""Names that pandas gives to its index, which is no column of the rows."""


def from_ipc(raw: bytes, label: str | None, labelled: bool) -> Rows:
    """Read an Arrow IPC stream; the rows of all its batches become one chunk.

    The function needs nothing but its arguments, so that it can run in a process of its own.

    Args:
        raw: the stream (https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format),
            not compressed. Columns may be of all integers and floats, booleans, strings, views and
            dictionaries of strings, dates, timestamps (without a zone, in UTC) and nulls.
        label: name of the column with the labels, which is no column of the rows; None if there is
            none.
        labelled: whether there must be labels; otherwise the column may be there, and is dropped.

    Raises:
        InvalidBatchError: the stream is damaged, too large, or has other types or numbers that are
            not finite.
    """
    try:
        check_stream(raw)
        with pa.ipc.open_stream(pa.py_buffer(raw)) as reader:
            names = reader.schema.names
            batches = [batch for batch in reader if len(batch)]
        for batch in batches:
            batch.validate(full=True)
        budget = _Budget()
        kept = [k for k, name in enumerate(names) if name == label or not INDEX.fullmatch(name)]
        names = [names[k] for k in kept]
        place = place_of_label(names, label, labelled)
        floats, values = _whole_floats(
            batches, kept if place is None else [*kept[:place], *kept[place + 1 :]]
        )
        columns = {
            name: _column(name, [budget.decoded(name, batch.column(k)) for batch in batches])
            for k, name in zip(kept, names, strict=True)
            if k not in floats
        }
    except InvalidBatchError:
        raise
    except (FlatbufferError, pa.ArrowException, OSError, ValueError) as error:
        raise InvalidBatchError(f"not an Arrow stream: {error}") from error
    labels = None
    if place is not None:
        found = columns.pop(names.pop(place))
        labels = column_labels(found) if labelled else None
    if not floats:
        return rows_of(names, [*columns.values()], labels)
    check_size(values.shape[1], len(names))
    others = pa.RecordBatch.from_pydict(columns) if columns else None
    return Rows((Chunk(Numbers(tuple(names), values, others), labels),))


def _whole_floats(
    batches: Sequence[pa.RecordBatch], places: Sequence[int]
) -> tuple[Collection[int], Values]:
    """Return which columns hold floats, all finite, and their values, [columns, n].

    A single column is not worth it: there are none then.

    Args:
        batches: of the stream.
        places: of columns that may be returned.
    """
    types = batches[0].schema.types
    floats = [k for k in places if types[k] in FLOATS]
    if len(floats) < 2:
        return (), np.empty((0, 0))
    parts = [
        batch.select(floats).to_tensor(null_to_nan=True, row_major=False).to_numpy().T
        for batch in batches
    ]
    values: Values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    is_finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(values))
    if is_finite.all():
        return frozenset(floats), values
    is_whole: npt.NDArray[np.bool_] = np.logical_and.reduce(is_finite, axis=1)
    whole = frozenset(k for k, fine in zip(floats, is_whole.tolist(), strict=True) if fine)
    return whole if len(whole) > 1 else (), values[is_whole]


class _Budget:
    """Counts the bytes of strings that are longer than the stream, as they repeat parts of it."""

    def __init__(self) -> None:
        self._left = MAX_BYTES

    def decoded(self, name: str, column: pa.Array) -> pa.Array:
        """Return strings as pa.string(), other columns as they are.

        Raises:
            TooManyError: all repeated strings so far are too long together.
        """
        kind = column.type
        if pa.types.is_large_string(kind):
            return column.cast(pa.string())
        if pa.types.is_dictionary(kind):
            words, places = column.dictionary.cast(pa.string()), column.indices
            self._spend(name, pc.binary_length(words).take(places))
            return words.take(places)
        if pa.types.is_string_view(kind):
            views = _without_garbage(column)
            self._spend(name, _view_lengths(views))
            return views.cast(pa.string())
        return column

    def _spend(self, name: str, lengths: pa.Array) -> None:
        self._left -= pc.sum(lengths.cast(pa.int64())).as_py() or 0
        if self._left < 0:
            raise TooManyError(
                f"the strings up to column {name[:SHOWN]!r} have more than {MAX_BYTES:,} bytes",
                name,
            )


def _without_garbage(column: pa.StringViewArray) -> pa.StringViewArray:
    """Return views that are empty where a value is missing.

    Validation does not look at those, and a cast follows them wherever they lead.
    """
    if not column.null_count:
        return column
    is_there, views, *texts = column.buffers()
    copied = np.frombuffer(views, np.int32, 4 * len(column)).reshape(-1, 4).copy()
    copied[column.is_null().to_numpy(zero_copy_only=False)] = 0
    buffers = [is_there, pa.py_buffer(copied), *texts]
    return pa.Array.from_buffers(pa.string_view(), len(column), buffers)


def _view_lengths(column: pa.StringViewArray) -> pa.Int32Array:
    """Return the length of each string of views, whose first four bytes hold it."""
    return pa.array(np.frombuffer(column.buffers()[1], np.int32, 4 * len(column))[::4])


def _column(name: str, parts: list[pa.Array]) -> pa.Array:
    """Return one column of one of `streams.rows.rows.TYPES`.

    Raises:
        InvalidBatchError: a number is not finite, a text too long or a time out of bounds.
    """
    column = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
    kind = column.type
    if pa.types.is_string(kind):
        check_texts(name, column)
    elif pa.types.is_integer(kind):
        column = _integers(column)
    elif pa.types.is_floating(kind):
        column = _floats(name, column)
    elif pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        column = _times(name, column)
    return column


def _integers(column: pa.Array) -> pa.Array:
    """Return int64, or texts if an integer is beyond ±2^53."""
    ends = pc.min_max(column)
    low, high = ends["min"].as_py(), ends["max"].as_py()
    if low is not None and (low < -EXACT or high > EXACT):
        return column.cast(pa.string())
    return column if column.type == INTEGER else column.cast(INTEGER)


def _floats(name: str, column: pa.Array) -> pa.Array:
    """Return float64 with null in place of NaN."""
    values = column.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    if np.isfinite(values).all():
        return column if column.type == FLOAT else pa.array(values)
    if (is_infinite := np.isinf(values)).any():
        index = int(is_infinite.argmax())
        raise InvalidBatchError(
            f"column {name[:SHOWN]!r} holds {values[index]}; numbers must be finite, and null "
            "where they are missing",
            name,
            index,
        )
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def _times(name: str, column: pa.Array) -> pa.Array:
    """Return times in microseconds, rounded down."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        nanoseconds = column.cast(pa.int64())
        micros = nanoseconds.fill_null(0).to_numpy() // 1_000
        is_missing = column.is_null().to_numpy(zero_copy_only=False)
        column = pa.array(micros, pa.int64(), mask=is_missing)
    try:
        times = column.cast(TIME)
    except pa.ArrowInvalid as error:
        raise InvalidBatchError(
            f"column {name[:SHOWN]!r} has a time outside the years 1 to 9999; is its unit right?",
            name,
        ) from error
    check_times(name, times)
    return times


def from_batches(batches: Iterable[pa.RecordBatch]) -> Rows:
    """Return batches of any types that `from_ipc` takes as rows, as many as there are.

    Raises:
        InvalidBatchError: as for `from_ipc`.
    """
    parts = []
    for batch in batches:
        for start in range(0, batch.num_rows, PART):
            part, sink = batch.slice(start, PART), pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, part.schema) as stream:
                stream.write_batch(part)
            parts.append(from_ipc(sink.getvalue().to_pybytes(), None, False))
    return join(parts)


def to_ipc(chunk: Chunk, ids: Sequence[str] | None = None) -> tuple[bytes, dict[str, str]]:
    """Return rows as an Arrow IPC stream, and the query that names its own columns.

    Args:
        chunk: with labels, if they are sent.
        ids: of questions whose labels come later, [n]; None without them.
    """
    batch, query = chunk.columns, {}
    own = (("label", chunk.labels), ("weight", chunk.weights), ("id", ids))
    for use, values in own:
        if values is not None:
            query[use] = free_name(use, batch.schema.names)
            batch = batch.append_column(query[use], pa.array(values))
    return stream_of(pa.Table.from_batches([batch])), query


def free_name(use: str, names: Collection[str]) -> str:
    """Return a name for a column that is added to others.

    >>> free_name("label", ["age", "label"])
    'label_'

    Args:
        use: what the column holds; the name begins with it.
        names: of the other columns.
    """
    return next(n for k in range(len(names) + 1) if (n := use + "_" * k) not in names)


def stream_of(table: pa.Table) -> bytes:
    """Return a table as an Arrow IPC stream, without compression and metadata of its own."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as stream:
        stream.write_table(table.replace_schema_metadata(None))
    raw: bytes = sink.getvalue().to_pybytes()
    return raw
