"""Rows with named columns: JSON, NDJSON, CSV with a header, and Arrow IPC streams.

CSV and Arrow hold the labels as a column, which `streams.rows.labels.labelled` splits off once the
schema has named it.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from service.http.codecs.codec import MAX_EXAMPLES, Codec, Wire
from service.http.codecs.json import MAX_IN_PROCESS, MEDIA_TYPE, WEIGHTS
from streams.batch import InvalidBatchError, TooManyError
from streams.rows import delimited, entry, records
from streams.rows.ipc import arrow
from streams.rows.rows import Rows

CSV = "text/csv"
NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
HELD_AS_COLUMN = (CSV, ARROW)
"""Formats in which the labels are a column."""
KEY = re.compile(rb'"(features|rows?)"\s*:')
"""The first of these keys is the body's own: what comes before it are labels and weights."""
WIRE = Wire[Rows](
    lambda rows: (len(rows), entry.to_bytes(rows)),
    lambda count, packed: entry.from_bytes(bytes(packed)),
)


def _checked(
    read: Callable[[bytes], Rows],
    body: bytes,
    features: int,
    classes: int,
    expects_bytes: bool = False,
) -> Rows:
    rows = read(body)
    if (count := len(rows)) > MAX_EXAMPLES:
        raise TooManyError(
            f"{count} rows in one request, at most {MAX_EXAMPLES}; send several requests"
        )
    if not count:
        raise InvalidBatchError("there are no rows", "rows")
    return rows


def _codec(
    media_type: str, read: Callable[[bytes], Rows], content: dict[str, Any], in_process: float
) -> Codec[Rows]:
    return Codec(
        media_type,
        partial(_checked, read),
        content,
        max_in_process=in_process,
        wire=WIRE,
    )


def _text(example: str) -> dict[str, Any]:
    return {"schema": {"type": "string"}, "example": example}


BINARY = {"schema": {"type": "string", "format": "binary", "description": "an Arrow IPC stream"}}
EXAMPLE = {"plan": "basic", "age": 41, "at": "2026-05-01T08:30:00Z"}


def _json(labelled: bool) -> dict[str, Any]:
    labels: dict[str, Any] = {
        "labels": {"type": "array", "items": {}, "examples": [["stay"]]},
        "weights": WEIGHTS,
    }
    properties: dict[str, Any] = {
        "rows": {"type": "array", "items": {"type": "object"}, "examples": [[EXAMPLE]]}
    }
    return {
        "schema": {
            "title": "Labelled rows" if labelled else "Rows",
            "type": "object",
            "properties": properties | (labels if labelled else {}),
        }
    }


def _codecs(labelled: bool) -> dict[str, Codec[Rows]]:
    row = '{"row": {"plan": "basic", "age": 41}' + (', "label": "stay"' if labelled else "") + "}\n"
    table = "plan,age,label\nbasic,41,stay\n" if labelled else "plan,age\nbasic,41\n"
    found = (
        _codec(MEDIA_TYPE, partial(_from_json, labelled), _json(labelled), MAX_IN_PROCESS),
        _codec(NDJSON, partial(_from_ndjson, labelled), _text(row), MAX_IN_PROCESS),
        _codec(CSV, _from_csv, _text(table), MAX_IN_PROCESS),
        _codec(ARROW, _from_ipc, BINARY, MAX_IN_PROCESS),
    )
    return {codec.media_type: codec for codec in found}


def _from_json(labelled: bool, body: bytes) -> Rows:
    return records.from_json(body, labelled)


def _from_ndjson(labelled: bool, body: bytes) -> Rows:
    return records.from_ndjson(body, labelled)


def _from_csv(body: bytes) -> Rows:
    return delimited.from_csv(body, None, False)


def _from_ipc(body: bytes) -> Rows:
    return arrow.from_ipc(body, None, False)


def holds_rows(body: bytes) -> bool:
    """Return whether a body of JSON or NDJSON that holds either has rows, and no features."""
    found = KEY.search(body)
    return found is not None and found[1] != b"features"


LEARN_ROWS, PREDICT_ROWS = _codecs(labelled=True), _codecs(labelled=False)
