"""Entries of the log: batches of examples, labels of questions, or what cannot be decoded."""

import logging
from typing import NamedTuple
from zlib import crc32

from service.log.errors import LogUnavailable
from service.log.keys import Field, Inputs
from service.log.labels import Join, Labels, read_labels
from service.log.position import EntryId
from streams.batch import Batch, InvalidBatchError, check, decode
from streams.examples import AnyBatch
from streams.json_batch import from_json
from streams.rows.fields import from_fields
from streams.rows.labels import has_fractions
from streams.rows.rows import Rows

MAX_JSON = 32 << 20
"""Longest JSON document in an entry, in bytes: while the parser reads one of 200 MB, no other
thread runs for longer than a lease lasts."""
logger = logging.getLogger("funnel")

BATCH, JSON, SOURCE = Field.BATCH.encode(), Field.JSON.encode(), Field.SOURCE.encode()
ARROW, ROWS, ROW = Field.ARROW.encode(), Field.ROWS.encode(), Field.ROW.encode()
LABELS, CRC32 = Field.LABELS.encode(), Field.CRC32.encode()
FAULT = Field.FAULT.encode()
DENSE, NAMED = (BATCH, JSON), (ARROW, ROWS, ROW)
"""Fields that hold the examples of a model of dense features, and of one of named rows."""
Shape = tuple[int, int]
"""Numbers of features and classes of a model of dense features; of classes, 0 where labels are
numbers."""
DAMAGED = "its CRC-32 does not match: the log was damaged after the entry was written"
"""The reason of a damaged entry."""

Fields = dict[bytes, bytes]
RawEntry = tuple[EntryId, Fields]
"""An entry as the server returns it."""


class Entry(NamedTuple):
    """An entry as read: its examples, labels of questions, or the reason why it has none."""

    id: EntryId
    batch: AnyBatch | None
    source: str
    examples: int
    """Number of examples."""
    reason: str = ""
    is_damaged: bool = False
    """True if it is not what was written."""
    labels: Labels | None = None
    """Labels of questions; which examples they give is a decision."""
    joins: tuple[Join, ...] | None = None
    """Results of its labels, or of the first of them; None before they are decided."""


def is_damaged(fields: Fields, name: bytes) -> bool:
    """Return whether a field does not match its checksum; without one, it is trusted."""
    return CRC32 in fields and fields[CRC32] != b"%d" % crc32(fields[name])


def inputs_of(fields: Fields) -> str:
    """Return what an entry holds, as `service.log.log.Log.claim` takes it; nothing if that is no
    example.

    Labels are numbers to predict if they are no integers: floats in safetensors, a number with a
    point in JSON; in rows, if all are numbers and one has a fraction.
    """
    try:
        if any(name in fields for name in DENSE):
            raw = fields.get(BATCH)
            batch = from_json(fields[JSON], numeric_labels=True) if raw is None else decode(raw)
            are_numbers = batch.labels.dtype.kind == "f"
            return Inputs.FEATURES + (Inputs.OF_NUMBERS if are_numbers else "")
        if any(name in fields for name in NAMED):
            are_numbers = has_fractions(from_fields(fields))
            return Inputs.ROWS + (Inputs.OF_NUMBERS if are_numbers else "")
    except Exception as error:  # `read_entry` reports it
        logger.debug("an entry that cannot be decoded claims nothing: %r", error)
    return ""


def read_entry(
    entry: EntryId, fields: Fields, shape: Shape | None, expects_bytes: bool = False
) -> Entry:
    """Decode and check an entry; what is wrong with it becomes its reason.

    Whatever a decoder raises makes the entry a dead letter, so that no entry can stop learning.
    Only what the machine lacks is no fault of the entry, except that a document may be too long
    for the memory there is.

    Args:
        entry: its id.
        fields: its content.
        shape: of the model's examples; None if they are rows with named columns.
        expects_bytes: whether the model has learned uint8 features alone, so that a producer's
            integers are refused (see `streams.batch.refuse_integers`).

    Raises:
        LogUnavailable: the entry may be good; try again later.
    """
    source = "http" if fields.get(SOURCE) == b"http" else "redis"
    content = next((name for name in (*DENSE, *NAMED, LABELS) if name in fields), None)
    if content is not None and is_damaged(fields, content):
        return Entry(entry, None, source, 0, DAMAGED, is_damaged=True)
    if content is None and FAULT in fields:
        return Entry(entry, None, source, 0, fields[FAULT].decode(errors="replace")[:500])
    try:
        if content == LABELS:
            _check_length(fields[LABELS])
            labels = read_labels(fields[LABELS], None if shape is None else shape[1])
            return Entry(entry, None, source, 0, labels=labels)
        expects_bytes = expects_bytes and source == "redis"  # HTTP has refused its own
        batch = _rows(fields) if shape is None else _dense(fields, *shape, expects_bytes)
    except InvalidBatchError as error:
        where = "" if error.index is None else f" (example {error.index})"
        return Entry(entry, None, source, 0, f"{error}{where}"[:500])
    except Exception as error:
        is_too_long = isinstance(error, MemoryError) and content not in (BATCH, ARROW)
        if isinstance(error, (MemoryError, OSError)) and not is_too_long:
            raise LogUnavailable(f"entry {entry} cannot be decoded now: {error!r}") from error
        logger.exception("a decoder failed on entry %s, which is discarded", entry)
        return Entry(entry, None, source, 0, f"a decoder failed: {error!r}"[:500])
    return Entry(entry, batch, source, len(batch))


def _dense(fields: Fields, width: int, classes: int, expects_bytes: bool) -> Batch:
    if BATCH in fields:
        batch = decode(fields[BATCH], expects_bytes)
    elif JSON in fields:
        _check_length(fields[JSON])
        batch = from_json(fields[JSON], width, expects_bytes, numeric_labels=not classes)
    elif any(name in fields for name in NAMED):
        raise InvalidBatchError(
            f"rows with named columns, but this model takes {width} dense features"
        )
    else:
        raise InvalidBatchError(f"no field 'batch' or 'json', only {_names(fields)}")
    check(batch, width, classes)
    return batch


def _rows(fields: Fields) -> Rows:
    if any(name in fields for name in NAMED):
        _check_length(fields.get(ROWS, fields.get(ROW, b"")))
        return from_fields(fields)
    if any(name in fields for name in DENSE):
        raise InvalidBatchError("dense features, but this model takes rows with named columns")
    raise InvalidBatchError(f"no field 'arrow', 'rows' or 'row', only {_names(fields)}")


def _names(fields: Fields) -> str:
    """Return the names of the first fields of an entry, in words."""
    names = [repr(name.decode(errors="replace")[:40]) for name in sorted(fields)[:4]]
    return ", ".join(names) or "none"


def _check_length(document: bytes) -> None:
    if (size := len(document)) > MAX_JSON:
        raise InvalidBatchError(f"{size} bytes of JSON, more than {MAX_JSON}")
