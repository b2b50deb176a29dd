"""Rows in the fields of an entry, as producers append it to the log."""

from collections.abc import Mapping

import pyarrow as pa

from streams.batch import InvalidBatchError
from streams.rows import cells, entry
from streams.rows.duplicates import check_duplicates
from streams.rows.ipc import arrow
from streams.rows.records import BOM, Loader, Read, check_containers, parsed, rows_from
from streams.rows.rows import Rows

ARROW, ROWS, LABELS, ROW, LABEL = b"arrow", b"rows", b"labels", b"row", b"label"
WEIGHTS, WEIGHT = b"weights", b"weight"


def from_fields(fields: Mapping[bytes, bytes], label: str | None = None) -> Rows:
    """Read labelled rows from the fields of an entry.

    These are ``arrow`` (the bytes of `streams.rows.entry`, or an Arrow IPC stream), ``rows`` and
    ``labels`` (a JSON list of objects, a JSON list), or ``row`` and ``label`` (a JSON object, a
    value of JSON or a plain text). With them there may be ``weights`` (a JSON list of numbers), or
    ``weight`` (a number).

    Args:
        fields: of the entry; others are ignored.
        label: name of the column of an Arrow IPC stream that holds the labels.

    Raises:
        InvalidBatchError: the fields hold no labelled rows; message, field and index say why.
        MemoryError: a document is too large to parse.
    """
    if (raw := fields.get(ARROW)) is not None:
        found = _from_arrow(raw, label)
    elif ROWS in fields:
        found = _from_records(_field(fields, ROWS), _field(fields, LABELS), fields.get(WEIGHTS))
    elif ROW in fields:
        found = _from_record(_field(fields, ROW), _field(fields, LABEL), fields.get(WEIGHT))
    else:
        raise InvalidBatchError("the entry has no field 'arrow', 'rows' or 'row'")
    return found


def _from_arrow(raw: bytes, label: str | None) -> Rows:
    if not raw.startswith(entry.MAGIC):
        return arrow.from_ipc(raw, label, labelled=True)
    found = entry.from_bytes(raw)
    if any(chunk.labels is None for chunk in found.chunks):
        raise InvalidBatchError("the rows of the entry have no labels", "labels")
    return found


def _from_records(raw: bytes, raw_labels: bytes, raw_weights: bytes | None) -> Rows:
    check_containers(raw)
    check_containers(raw_labels)
    check_containers(raw_weights or b"")

    def read(load: Loader) -> Read:
        rows, labels = load(raw), load(raw_labels)
        for name, value in (("rows", rows), ("labels", labels)):
            if not isinstance(value, list):
                raise InvalidBatchError(f"the field {name!r} must be a JSON list", name)
        assert isinstance(rows, list)
        assert isinstance(labels, list)
        return rows, labels, None if raw_weights is None else load(raw_weights)

    found, keys = rows_from(read, labelled=True)
    check_duplicates(raw, keys, len(found))
    return found


def _from_record(raw: bytes, raw_label: bytes, raw_weight: bytes | None) -> Rows:
    check_containers(raw)

    def read(load: Loader) -> Read:
        weights = None if raw_weight is None else [load(raw_weight)]
        return [load(raw)], [_label(load, raw_label)], weights

    found, keys = rows_from(read, labelled=True)
    check_duplicates(raw, keys, 1)
    return found


def _label(load: Loader, raw: bytes) -> object:
    """Return a label of JSON, or the text that it is.

    Raises:
        InvalidBatchError: the text is no label, as in a cell of CSV.
    """
    try:
        parsed(raw)
    except InvalidBatchError:
        try:
            text = pa.array([raw.decode()], pa.string())
        except UnicodeDecodeError as error:
            raise InvalidBatchError("the label is not UTF-8", "label") from error
        return cells.labels("label", text)[0].as_py()
    return load(raw)


def _field(fields: Mapping[bytes, bytes], name: bytes) -> bytes:
    if name not in fields:
        raise InvalidBatchError(f"the entry has no field {name.decode()!r}", name.decode())
    return fields[name].removeprefix(BOM)
