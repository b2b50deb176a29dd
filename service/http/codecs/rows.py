"""Rows with named columns: JSON, NDJSON, CSV with a header, and Arrow IPC streams.

CSV and Arrow hold the labels as a column, which `streams.rows.labels.labelled` splits off once the
schema has named it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from struct import Struct
from typing import Any, TypeVar

import orjson
import pyarrow as pa

from service.http.codecs.codec import (
    MAX_EXAMPLES,
    Codec,
    Unlabelled,
    Wire,
    hashes,
    unlabelled_wire,
)
from service.http.codecs.json import IDS, MAX_IN_PROCESS, MEDIA_TYPE, WEIGHTS
from streams.batch import InvalidBatchError, TooManyError
from streams.rows import delimited, entry, records
from streams.rows.ipc import arrow
from streams.rows.labels import labelled, weighted
from streams.rows.rows import Rows

CSV = "text/csv"
NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
HELD_AS_COLUMN = (CSV, ARROW)
"""Formats in which the labels are a column."""
KEY = re.compile(rb'"(features|rows?)"\s*:')
"""The first of these keys is the body's own: what comes before it are labels and weights."""
LENGTH = Struct("<I")
MAX_ARROW = 256 << 10
"""Bytes of the longest Arrow stream that is decoded in this process: its numbers are arrays
already, and to hand them to another process and back takes longer than to read them."""
FEW_LABELS = 1_000
"""Most distinct labels that come back in a list."""


@dataclass(frozen=True)
class Named:
    """The columns that a request with labelled rows names."""

    label: str | None
    """Column of the labels, if the query names it."""
    weight: str | None
    """Column of the weights, if the query names it."""
    otherwise: str
    """Column of the labels that the schema names."""

    def apart(self, rows: Rows) -> Rows:
        """Return rows whose labels and weights are no columns.

        Raises:
            InvalidBatchError: a column is missing, holds no labels or weights, or is one too many.
        """
        if any(chunk.labels is None for chunk in rows.chunks):
            column = self.label or self.otherwise
            if column == self.weight:
                message = f"column {column!r} cannot hold both the labels and the weights"
                raise InvalidBatchError(f"{message}; name others with ?label= and ?weight=", column)
            rows = labelled(rows, column)
        elif self.label is not None:
            message = "labels are given twice, in the body and as a column; give one"
            raise InvalidBatchError(message, "label")
        return rows if self.weight is None else weighted(rows, self.weight)

    def to_bytes(self) -> bytes:
        """Return the names as options for `Wire.pack`."""
        return orjson.dumps(self)


@dataclass(frozen=True)
class Packed:
    """Labelled rows that another process decoded, as the log takes them."""

    count: int
    payload: bytes
    """Bytes of `streams.rows.entry`, which the process has read back."""
    types: dict[str, str]
    """The letter of each column's type, see `streams.rows.entry.LETTERS`."""
    labels: list[str] | None
    """The distinct labels; None if there are more than FEW_LABELS."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.count

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Type of each column."""
        return {name: entry.KINDS[letter] for name, letter in self.types.items()}


def _pack(found: Rows | Packed, options: bytes) -> tuple[int, bytes]:
    assert isinstance(found, Rows)
    rows = Named(**orjson.loads(options)).apart(found)
    payload = entry.to_bytes(rows)
    [chunk] = entry.from_bytes(payload).chunks
    assert chunk.labels is not None
    labels = chunk.labels.unique()
    facts = {
        "types": entry.letters_of(chunk),
        "labels": labels.to_pylist() if len(labels) <= FEW_LABELS else None,
    }
    written = orjson.dumps(facts)
    return len(rows), LENGTH.pack(len(written)) + written + payload


def _unpack(count: int, packed: bytearray) -> Rows | Packed:
    (length,) = LENGTH.unpack_from(packed)
    stop = LENGTH.size + length
    facts = orjson.loads(packed[LENGTH.size : stop])
    return Packed(count, bytes(memoryview(packed)[stop:]), facts["types"], facts["labels"])


LABELLED_WIRE = Wire[Rows | Packed](_pack, _unpack)
WIRE: Wire[Unlabelled[Rows]] = unlabelled_wire(
    entry.to_bytes, lambda count, raw: entry.from_bytes(raw)
)
T = TypeVar("T", Unlabelled[Rows], Rows | Packed)


def _checked(
    read: Callable[[bytes], T],
    body: bytes,
    features: int,
    classes: int,
    expects_bytes: bool = False,
) -> T:
    rows = read(body)
    if (count := len(rows)) > MAX_EXAMPLES:
        raise TooManyError(
            f"{count} rows in one request, at most {MAX_EXAMPLES}; send several requests"
        )
    if not count:
        raise InvalidBatchError("there are no rows", "rows")
    return rows


def _codec(
    media_type: str,
    read: Callable[[bytes], T],
    content: dict[str, Any],
    wire: Wire[T],
    max_in_process: int = MAX_IN_PROCESS,
) -> Codec[T]:
    return Codec(
        media_type, partial(_checked, read), content, max_in_process=max_in_process, wire=wire
    )


def _text(example: str) -> dict[str, Any]:
    return {"schema": {"type": "string"}, "example": example}


BINARY = {"schema": {"type": "string", "format": "binary", "description": "an Arrow IPC stream"}}
EXAMPLE = {"plan": "basic", "age": 41, "at": "2026-05-01T08:30:00Z"}


def _json(is_labelled: bool) -> dict[str, Any]:
    labels: dict[str, Any] = {
        "labels": {"type": "array", "items": {}, "examples": [["stay"]]},
        "weights": WEIGHTS,
    }
    properties: dict[str, Any] = {
        "rows": {"type": "array", "items": {"type": "object"}, "examples": [[EXAMPLE]]}
    }
    return {
        "schema": {
            "title": "Labelled rows" if is_labelled else "Rows",
            "type": "object",
            "properties": properties | (labels if is_labelled else {"ids": IDS}),
        }
    }


def _row(is_labelled: bool) -> dict[str, Any]:
    label = ', "label": "stay"' if is_labelled else ', "id": "order-17"'
    return _text('{"row": {"plan": "basic", "age": 41}' + label + "}\n")


def _from_csv(body: bytes) -> Rows:
    return delimited.from_csv(body, None, False)


def _from_ipc(body: bytes) -> Rows:
    return arrow.from_ipc(body, None, False)


def _labelled(read: Callable[[bytes], Rows]) -> Callable[[bytes], Rows | Packed]:
    return read


def _unlabelled(read: Callable[[bytes], Rows]) -> Callable[[bytes], Unlabelled[Rows]]:
    return partial(_without_ids, read)


def _without_ids(read: Callable[[bytes], Rows], body: bytes) -> Unlabelled[Rows]:
    return Unlabelled(read(body))


def _questions(body: bytes) -> Unlabelled[Rows]:
    rows, ids = records.questions_from_json(body)
    return Unlabelled(rows, hashes(ids, len(rows)))


def _line_questions(body: bytes) -> Unlabelled[Rows]:
    rows, ids = records.questions_from_ndjson(body)
    return Unlabelled(rows, hashes(ids, len(rows)))


def _from_json(body: bytes) -> Rows:
    return records.from_json(body, True)


def _from_ndjson(body: bytes) -> Rows:
    return records.from_ndjson(body, True)


def holds_rows(body: bytes) -> bool:
    """Return whether a body of JSON or NDJSON that holds either has rows, and no features."""
    found = KEY.search(body)
    return found is not None and found[1] != b"features"


def _by_type(*codecs: Codec[T]) -> dict[str, Codec[T]]:
    return {codec.media_type: codec for codec in codecs}


LEARN_ROWS: dict[str, Codec[Rows | Packed]] = _by_type(
    _codec(MEDIA_TYPE, _labelled(_from_json), _json(True), LABELLED_WIRE),
    _codec(NDJSON, _labelled(_from_ndjson), _row(True), LABELLED_WIRE),
    _codec(CSV, _labelled(_from_csv), _text("plan,age,label\nbasic,41,stay\n"), LABELLED_WIRE),
    _codec(ARROW, _labelled(_from_ipc), BINARY, LABELLED_WIRE, MAX_ARROW),
)
PREDICT_ROWS: dict[str, Codec[Unlabelled[Rows]]] = _by_type(
    _codec(MEDIA_TYPE, _questions, _json(False), WIRE),
    _codec(NDJSON, _line_questions, _row(False), WIRE),
    _codec(CSV, _unlabelled(_from_csv), _text("plan,age\nbasic,41\n"), WIRE),
    _codec(ARROW, _unlabelled(_from_ipc), BINARY, WIRE, MAX_ARROW),
)
