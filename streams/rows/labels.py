"""Labels as canonical texts, from values of JSON and columns of Arrow; weights from columns."""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.batch import InvalidBatchError, Weights, check_weights
from streams.rows.bounds import MAX_TEXT
from streams.rows.names import canonical
from streams.rows.numbers import Numbers
from streams.rows.rows import Chunk, Rows


def label_text(value: object, index: int | None = None) -> str:
    """Return the canonical text of one label.

    >>> [label_text(value) for value in (True, 2.0, "churn")]
    ['true', '2', 'churn']

    Args:
        value: of JSON.
        index: of the row.

    Raises:
        InvalidBatchError: it is missing, nested, empty, too long or not finite.
    """
    if value is None:
        raise InvalidBatchError("the label is missing; send only rows with labels", "label", index)
    if not isinstance(value, (bool, int, float, str)):
        raise InvalidBatchError(
            f"a label must be a string, a number or a boolean, not {kind_name(value)}",
            "label",
            index,
        )
    if isinstance(value, str):
        if not value:
            raise InvalidBatchError("the label is an empty string", "label", index)
        if len(value) > MAX_TEXT or len(value.encode()) > MAX_TEXT:
            raise InvalidBatchError(f"the label has more than {MAX_TEXT:,} bytes", "label", index)
    try:
        return str(canonical(value))
    except ValueError as error:
        raise InvalidBatchError(f"the label {value} is not finite", "label", index) from error


def label_texts(values: Sequence[object], rows: int) -> pa.StringArray:
    """Return the canonical texts of labels, [rows].

    Args:
        values: of JSON, one a row.
        rows: how many there are.

    Raises:
        InvalidBatchError: their number differs, or as for `label_text`.
    """
    if len(values) != rows:
        raise InvalidBatchError(
            f"{len(values):,} labels for {rows:,} rows; send one a row", "labels"
        )
    return pa.array([label_text(value, k) for k, value in enumerate(values)], pa.string())


def column_labels(column: pa.Array) -> pa.StringArray:
    """Return the canonical texts of a column's values, [n].

    Args:
        column: of one of `streams.rows.rows.TYPES`, [n].

    Raises:
        InvalidBatchError: a value is missing or empty, or the column holds times.
    """
    if column.null_count:
        index = pc.index(column.is_null(), True).as_py()
        raise InvalidBatchError("the label is missing; send only rows with labels", "label", index)
    if pa.types.is_timestamp(column.type):
        raise InvalidBatchError("labels must not be times; send texts or numbers", "label")
    if pa.types.is_floating(column.type):
        coded = column.dictionary_encode()
        texts = pa.array([canonical(value) for value in coded.dictionary.to_pylist()], pa.string())
        return texts.take(coded.indices)
    if not pa.types.is_string(column.type):
        return column.cast(pa.string())
    check_not_empty(column)
    return column


def has_fractions(rows: Rows) -> bool:
    """Return whether all labels are numbers, and one of them is no integer.

    Args:
        rows: with labels, canonical texts.
    """
    found = [chunk.labels for chunk in rows.chunks if chunk.labels is not None]
    texts = pa.chunked_array(found, pa.string()).unique()
    if not pc.any(pc.match_substring_regex(texts, r"[.eE]")).as_py():
        return False
    try:
        values = pc.cast(texts, pa.float64())
    except pa.ArrowInvalid:
        return False
    return bool(pc.all(pc.is_finite(values)).as_py())


def labelled(rows: Rows, column: str) -> Rows:
    """Return rows whose labels are one of their columns until now, as in CSV and Arrow.

    Args:
        rows: without labels.
        column: its name.

    Raises:
        InvalidBatchError: the column is not there, or it does not hold a label in each row.
    """
    chunks = []
    for chunk in rows.chunks:
        found, rest = split_off(chunk, column, "label")
        chunks.append(Chunk(rest, column_labels(found), chunk.weights))
    return Rows(tuple(chunks))


def weighted(rows: Rows, column: str) -> Rows:
    """Return rows whose weights are one of their columns until now.

    Args:
        rows: without weights.
        column: its name.

    Raises:
        InvalidBatchError: the column is not there, or it does not hold a weight in each row.
    """
    chunks = []
    for chunk in rows.chunks:
        if chunk.weights is not None:
            raise InvalidBatchError(
                "weights are given twice, in the body and as a column; give one", "weights"
            )
        found, rest = split_off(chunk, column, "weight")
        chunks.append(Chunk(rest, chunk.labels, column_weights(column, found)))
    return Rows(tuple(chunks))


def identified(rows: Rows, column: str) -> tuple[Rows, list[str]]:
    """Return rows whose ids are one of their columns until now, and the ids as canonical texts.

    Args:
        rows: with that column.
        column: its name.

    Raises:
        InvalidBatchError: the column is not there, lacks a value, or holds times.
    """
    chunks, ids = [], list[str]()
    for chunk in rows.chunks:
        found, rest = split_off(chunk, column, "id")
        if found.null_count:
            index = len(ids) + pc.index(found.is_null(), True).as_py()
            raise InvalidBatchError("the id is missing", column, index)
        if pa.types.is_timestamp(found.type):
            raise InvalidBatchError("ids must not be times; send texts or integers", column)
        ids += [canonical(value) for value in found.to_pylist()]
        chunks.append(Chunk(rest, chunk.labels, chunk.weights))
    return Rows(tuple(chunks)), ids


def without(rows: Rows, names: Collection[str]) -> Rows:
    """Return rows without some columns, which need not be there."""
    chunks = []
    for chunk in rows.chunks:
        own = chunk.names
        if not names or set(names).isdisjoint(own) or set(own) <= set(names):
            chunks.append(chunk)
            continue
        stay = [name for name in own if name not in names]
        chunks.append(Chunk(chunk.columns.select(stay), chunk.labels, chunk.weights))
    return Rows(tuple(chunks))


def emptied(rows: Rows, name: str) -> Rows:
    """Return rows whose values of a column are missing; it need not be there."""
    chunks = []
    for chunk in rows.chunks:
        if name not in chunk.names:
            chunks.append(chunk)
            continue
        columns = chunk.columns
        place = columns.schema.get_field_index(name)
        nothing = pa.nulls(columns.num_rows, columns.schema.field(place).type)
        columns = columns.set_column(place, name, nothing)
        chunks.append(Chunk(columns, chunk.labels, chunk.weights))
    return Rows(tuple(chunks))


def split_off(chunk: Chunk, column: str, use: str) -> tuple[pa.Array, pa.RecordBatch | Numbers]:
    """Return a column, and the others.

    Args:
        chunk: with all columns.
        column: its name.
        use: the parameter that names it, ``label`` or ``weight``.

    Raises:
        InvalidBatchError: it is not there.
    """
    names = chunk.names
    if column not in names:
        raise InvalidBatchError(
            f"the rows have no column {column!r} that holds their {use}s, only "
            f"{', '.join(map(repr, names[:20]))}; name it with ?{use}=COLUMN",
            column,
        )
    if isinstance(chunk.own, Numbers):
        return chunk.own.split_off(column)
    place = names.index(column)
    return chunk.own.column(place), chunk.own.remove_column(place)


def column_weights(name: str, column: pa.Array) -> Weights:
    """Return the weights in a column, float32 [n].

    Args:
        name: of the column.
        column: of one of `streams.rows.rows.TYPES`, [n].

    Raises:
        InvalidBatchError: a value is missing, is no number, or as for `check_weights`.
    """
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InvalidBatchError(
            f"column {name!r} holds weights, which must be numbers, not {column.type}",
            name,
            _first_of_no_number(column),
        )
    if column.null_count:
        index = pc.index(column.is_null(), True).as_py()
        raise InvalidBatchError("the weight is missing", name, index)
    weights: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    check_weights(weights, len(column))
    return weights.astype(np.float32)


def _first_of_no_number(column: pa.Array) -> int | None:
    """Return the index of the first value that is no number, otherwise of the first value."""
    found = [(k, value) for k, value in enumerate(column.to_pylist()) if value is not None]
    wrong = (k for k, value in found if not (isinstance(value, str) and _is_decimal(value)))
    return next(wrong, found[0][0] if found else None)


def _is_decimal(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_not_empty(texts: pa.StringArray) -> None:
    """Check that no label is empty.

    Raises:
        InvalidBatchError: one is.
    """
    if (index := pc.index(pc.binary_length(texts), pa.scalar(0, pa.int32())).as_py()) >= 0:
        raise InvalidBatchError("the label is an empty string", "label", index)


def kind_name(value: object) -> str:
    """Return what JSON calls the kind of a value, with its article."""
    return {dict: "an object", list: "a list", type(None): "null"}.get(
        type(value), f"a {type(value).__name__}"
    )
