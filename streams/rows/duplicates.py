"""Keys that one JSON object has twice; parsers keep the last and lose the others.

A colon follows each key, with at most white space between. A document with as many colons after
quotes and white space as it has keys has no key twice. Texts may hold such colons too: then all
strings are parsed, and only a document with more keys than were kept is read again, to name one.
"""

import json
import re
from collections import Counter

import numpy as np

from streams.batch import InvalidBatchError
from streams.rows.bounds import SHOWN

STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?', re.DOTALL)
BEFORE = np.frombuffer(b'" \t\r\n', np.uint8)
"""Characters between a key and its colon."""


def check_duplicates(
    raw: bytes, kept: int, rows: int, is_lines: bool = False, has_pairs: bool = False
) -> None:
    """Check that no object has a key twice.

    Args:
        raw: a valid document with no objects but rows and one around them, or around each of them.
        kept: keys that the parser kept, in all objects.
        rows: how many there are.
        is_lines: whether each line is a document with one row.
        has_pairs: whether there is an object around each row, and none around them all.

    Raises:
        InvalidBatchError: an object has a key twice; the message names the key.
    """
    if raw.count(b":") == kept or _colons_after_keys(raw) == kept:
        return
    if key_count(raw) == kept:
        return
    name, place = _first_duplicate(raw.decode(), is_lines)
    index = place // 2 if is_lines or has_pairs else place
    raise InvalidBatchError(
        f"the key {name[:SHOWN]!r} occurs twice in one object; send it once",
        name,
        index if index < rows else None,
    )


def key_count(raw: bytes) -> int:
    """Return the number of keys of all objects in valid JSON."""
    after = STRING.findall(raw)
    return len(after) - after.count(b"")


def _first_duplicate(text: str, is_lines: bool) -> tuple[str, int]:
    """Return a key that an object has twice, and the index of the object.

    Objects count as they end: a row before the object around it.
    """
    objects: list[str | None] = []

    def see(pairs: list[tuple[str, object]]) -> None:
        times = Counter(name for name, _ in pairs)
        objects.append(next((name for name in times if times[name] > 1), None))

    decoder = json.JSONDecoder(object_pairs_hook=see, parse_int=len, parse_float=len)
    for document in text.split("\n") if is_lines else [text]:
        if document.strip():
            decoder.decode(document)
    return next((name, k) for k, name in enumerate(objects) if name is not None)


def _colons_after_keys(raw: bytes) -> int:
    """Return the number of colons after a quote or white space, which those after keys are."""
    text = np.frombuffer(raw, np.uint8)
    return int(np.isin(text[np.flatnonzero(text == ord(":")) - 1], BEFORE).sum())
