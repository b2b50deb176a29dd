"""Labels as canonical texts, from values of JSON and from columns of Arrow."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from streams.batch import InvalidBatchError
from streams.rows.bounds import MAX_TEXT
from streams.rows.names import canonical
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
        names = chunk.columns.schema.names
        if column not in names:
            raise InvalidBatchError(
                f"the rows have no column {column!r} that holds their labels, only "
                f"{', '.join(map(repr, names[:20]))}; name it with ?label=COLUMN",
                column,
            )
        place = names.index(column)
        labels = column_labels(chunk.columns.column(place))
        chunks.append(Chunk(chunk.columns.remove_column(place), labels))
    return Rows(tuple(chunks))


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
