"""The content of a message as an entry of the log.

Contents are those of ``POST /learn`` and ``POST /labels``: JSON, NDJSON or safetensors. JSON may
also be one flat object, with its label among its columns, as a line of NDJSON in a file is.
"""

import io
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple
from zlib import crc32

import orjson

from service.commands.sources.reader import Message
from service.log.keys import Field
from streams import json_batch
from streams.batch import InvalidBatchError, decode
from streams.rowfile import LABEL
from streams.rows import delimited, records
from streams.rows.entry import to_bytes
from streams.rows.labels import labelled
from streams.rows.rows import Rows
from streams.sources.encodings import encoding
from streams.sources.faults import TableError

MAX_CONTENT = 32 << 20
"""Bytes of the longest content; the largest body of a request has as many by default."""
SHOWN = 4_096
"""Bytes of a message that cannot be read which its entry keeps, as a dead letter does."""
OF_MESSAGES = {"rows", "row", "features"}
"""Keys that no flat object has, unless the column of its label is named."""


class Content(NamedTuple):
    """An entry, and what it holds."""

    fields: dict[str, bytes | int]
    examples: int
    """Number of examples; 0 if the message cannot be read, or holds labels of questions."""
    fault: str = ""
    """The reason why the message cannot be read."""


def contents_of(messages: Sequence[Message], label: str | None = None) -> list[Content]:
    """Return the entries of messages, as `content_of` does of one; lines of CSV are read together.

    Args:
        messages: as they were read.
        label: name of the column of the label.
    """
    found: list[Content] = []
    for header, own in groupby(messages, key=lambda message: message.header):
        part = list(own)
        found += _lines(part, label) if header else [content_of(each, label) for each in part]
    return found


def _lines(messages: Sequence[Message], label: str | None) -> list[Content]:
    """Return the entries of lines of CSV with one header; a bad line is found by halves."""
    if len(messages) > 1:
        header, text = messages[0].header, b"".join(message.content for message in messages)
        with suppress(InvalidBatchError):
            rows = delimited.from_csv(header + text, label or _label_of(header), labelled=True)
            if len(rows) == len(messages):
                parts = (to_bytes(rows.part(k, k + 1)) for k in range(len(rows)))
                return [Content({Field.ARROW: own, Field.CRC32: crc32(own)}, 1) for own in parts]
        half = len(messages) // 2
        return _lines(messages[:half], label) + _lines(messages[half:], label)
    return [content_of(message, label) for message in messages]


def content_of(message: Message, label: str | None = None) -> Content:
    """Return the entry of a message; one that cannot be read becomes a dead letter.

    Args:
        message: as it was read.
        label: name of the column of the label. With it each JSON document is a flat object; without
            it a flat object has the column LABEL.
    """
    try:
        if len(message.content) > MAX_CONTENT:
            raise InvalidBatchError(f"{len(message.content):,} bytes, at most {MAX_CONTENT:,}")
        field, payload, examples = _entry(message, label)
    except InvalidBatchError as error:
        where = "" if error.index is None else f" (example {error.index})"
        fault = f"{error}{where}"[:500]
    except MemoryError:
        fault = "the document is too large to parse"
    else:
        return Content({field: payload, Field.CRC32: crc32(payload)}, examples)
    shown = message.content[:SHOWN]
    return Content({Field.FAULT: fault.encode(), Field.MESSAGE: shown}, 0, fault)


def _entry(message: Message, label: str | None) -> tuple[str, bytes, int]:
    """Return the field of an entry, what it holds, and the number of examples."""
    raw = message.content
    if message.header:
        own = label or _label_of(message.header)
        return _of_rows(delimited.from_csv(message.header + raw, own, labelled=True))
    if _is_safetensors(raw):
        return Field.BATCH, raw, len(decode(raw))
    if not raw.strip():
        raise InvalidBatchError("the message is empty")
    first, is_lines = _first(raw)
    keys = set(first) if isinstance(first, dict) else set()
    if label is not None or (keys and keys.isdisjoint(OF_MESSAGES) and "labels" not in keys):
        return _of_rows(_flat(raw, is_lines, label or LABEL))
    if "features" in keys:
        read = json_batch.from_ndjson if is_lines else json_batch.from_json
        batch = read(raw, numeric_labels=True)
        return Field.BATCH, batch.to_bytes(), len(batch)
    if keys.isdisjoint(OF_MESSAGES) and "labels" in keys:
        return Field.LABELS, raw, 0
    return _of_rows(records.from_ndjson(raw, True) if is_lines else records.from_json(raw, True))


def _of_rows(rows: Rows) -> tuple[str, bytes, int]:
    return Field.ARROW, to_bytes(rows), len(rows)


@lru_cache(maxsize=16)
def _label_of(header: bytes) -> str:
    """Return the column of the label: LABEL if it is there, otherwise the last.

    Raises:
        InvalidBatchError: the header is not clear.
    """
    text = header.decode(encoding(header[:4]), "surrogateescape")
    try:
        names = delimited.columns_of(io.StringIO(text, newline=""))
    except TableError as error:
        raise InvalidBatchError(str(error)) from error
    return LABEL if LABEL in names else names[-1]


def _is_safetensors(raw: bytes) -> bool:
    """Return whether content begins as a safetensors file does: with the length of its header."""
    return raw[8:9] == b"{" and int.from_bytes(raw[:8], "little") <= len(raw) - 8


def _first(raw: bytes) -> tuple[object, bool]:
    """Return the document, or the first of several lines, and whether there are several."""
    lines = raw.removeprefix(records.BOM).strip().split(b"\n", 1)
    if len(lines) > 1 and lines[1].strip():
        with suppress(orjson.JSONDecodeError):  # it may be a document that goes over several lines
            return orjson.loads(lines[0]), True
    return records.parsed(raw.removeprefix(records.BOM)), False


def _flat(raw: bytes, is_lines: bool, label: str) -> Rows:
    """Return rows of flat objects, whose label is one of the columns."""
    lines = raw.removeprefix(records.BOM).splitlines() if is_lines else [raw]
    joined = b",".join(line for line in lines if line.strip())
    return labelled(records.from_json(b'{"rows":[' + joined + b"]}", labelled=False), label)
