"""Labels that come later: they name questions by the ids with which these were asked.

An entry of the log with the field ``labels`` and no examples holds such labels as JSON:
``{"ids": ["a", "b"], "labels": [3, 0], "weights": [1, 1]}``, where weights may be absent. Instead
of ``ids`` there may be ``hashes``, as HTTP writes them: the hexadecimal hashes of the ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple

import orjson

from service.log.position import EntryId
from streams.batch import InvalidBatchError
from streams.examples import AnyBatch
from streams.json_batch import labels_of, weights_of
from streams.rows.duplicates import check_duplicates
from streams.rows.labels import label_text
from streams.rows.records import BOM, check_containers, exactly_parsed, parsed
from streams.rows.values import InexactError, check_exact

HASH_BYTES = 16
MAX_ID = 1_024
"""Bytes of the longest id."""
KEYS = {"labels", "weights"}

Label = int | float | str
"""A class or a number of dense features; the canonical text of a label of rows."""


@dataclass(frozen=True)
class Labels:
    """Labels of questions."""

    hashes: tuple[bytes, ...]
    """Hash of each question's id, [n]."""
    labels: tuple[Label, ...]
    """[n]."""
    weights: tuple[float, ...] | None = None
    """How much each counts when it is learned, [n]; None for 1."""

    def __len__(self) -> int:
        """Return the number of labels, n."""
        return len(self.hashes)

    def after(self, n: int) -> "Labels":
        """Return the labels after the first n."""
        weights = None if self.weights is None else self.weights[n:]
        return Labels(self.hashes[n:], self.labels[n:], weights)

    def to_json(self) -> bytes:
        """Return the document that the log holds."""
        weights = {} if self.weights is None else {"weights": self.weights}
        hashes = [own.hex() for own in self.hashes]
        return orjson.dumps({"hashes": hashes, "labels": self.labels} | weights)


class Result(StrEnum):
    """The result of a label; the names are those on the wire."""

    JOINED = "joined"
    """Its question was open, and is learned with it."""
    DUPLICATE = "duplicate"
    """Its question has this label already."""
    CONFLICT = "conflict"
    """Its question has another label already."""
    WAITING = "waiting"
    """Its question is not known yet; it may come within FUNNEL_LABEL_GRACE."""
    UNKNOWN = "unknown"
    """There is no such question."""
    LATE = "late"
    """Its question was closed, FUNNEL_LABEL_TTL after it had been asked."""
    TIMEOUT = "timeout"
    """There was no label in FUNNEL_LABEL_TIMEOUT, and the question is learned with that of the
    setting."""
    INVALID = "invalid"
    """The model cannot learn its question with it."""
    ADDED = "added"
    """It is added to the others of its id; the question is learned with their sum."""
    ASSUMED = "assumed"
    """The question is learned at once with the label of FUNNEL_LABEL_TIMEOUT, and with a weight."""
    CORRECTED = "corrected"
    """It corrects the one that was assumed: its question is learned with it, and with a weight."""


class Place(NamedTuple):
    """A question: a row of an entry of the stream of questions."""

    entry: EntryId
    row: int


class Join(NamedTuple):
    """The decision on a label. A cut records result, place and factor; the rest can be read
    again."""

    result: Result
    place: Place | None = None
    """The question that is learned with the label; None if none is."""
    hash: bytes = b""
    """Hash of the question's id."""
    label: Label = 0
    weight: float = 1.0
    factor: float = 1.0
    """Importance weight, by which the label's own is multiplied; a cut records that of a label
    that corrects another."""
    source: str = "redis"
    """Source of the label's entry."""
    is_right: bool | None = None
    """True if the label is the one that was answered; None for numbers, and without a place."""
    example: AnyBatch | None = None
    """The question with its label, [1]; None without a place."""


def hash_of(text: str) -> bytes:
    """Return the hash by which an id is known."""
    return blake2b(text.encode(), digest_size=HASH_BYTES).digest()


def hashes_of(values: object, count: int | None = None) -> tuple[bytes, ...]:
    """Return the hashes of ids, [n].

    Args:
        values: of JSON: should be a list of texts or integers; an integer is its decimal text.
        count: n; None for any.

    Raises:
        InvalidBatchError: they are something else, an id has no bytes or more than MAX_ID, or there
            are more or fewer than ``count``.
    """
    if type(values) is not list:
        raise InvalidBatchError("ids must be a list of texts", "ids")
    if count is not None and len(values) != count:
        message = f"{len(values):,} ids for {count:,} examples; send one an example"
        raise InvalidBatchError(message, "ids")
    return tuple(hash_of(_text(value, index)) for index, value in enumerate(values))


def _text(value: object, index: int) -> str:
    if type(value) is int:
        return str(value)
    if type(value) is not str:
        message = "an id must be a text, or an integer of at most 64 bits"
        raise InvalidBatchError(message, "ids", index)
    if not 0 < len(value.encode()) <= MAX_ID:
        size = len(value.encode())
        message = f"an id must have 1 to {MAX_ID:,} bytes, and this one has {size:,}"
        raise InvalidBatchError(message, "ids", index)
    return value


def read_labels(raw: bytes, classes: int | None) -> Labels:
    """Return the labels in a document.

    Args:
        raw: the document.
        classes: number of classes; 0 where labels are numbers, None where they are those of rows.

    Raises:
        InvalidBatchError: the document holds no such labels; message, field and index say why.
        MemoryError: it is too large to parse.
    """
    raw = raw.removeprefix(BOM)
    check_containers(raw)
    document = _document(parsed(raw))
    if classes is None:
        try:
            check_exact(_list(document["labels"]))
        except InexactError:
            document = _document(exactly_parsed(raw))
    hashes = _hashes(document["hashes"]) if "hashes" in document else hashes_of(document["ids"])
    count = len(hashes)
    if not count:
        raise InvalidBatchError("there are no ids", "ids")
    labels = _labels(document["labels"], count, classes)
    weights = None
    if "weights" in document:
        weights = tuple(weights_of(document["weights"], count).tolist())
    check_duplicates(raw, len(document), 0)  # it expects no other objects in the document
    return Labels(hashes, labels, weights)


def _document(found: object) -> dict[str, object]:
    if type(found) is not dict:
        raise InvalidBatchError("expected an object with 'ids' and 'labels'")
    names = {"hashes" if "hashes" in found else "ids", "labels"}
    if missing := names - found.keys():
        field = min(missing)
        raise InvalidBatchError(f"the field {field!r} is missing", field)
    if unknown := found.keys() - names - KEYS:
        field = min(unknown)[:40]
        message = f"unknown field {field!r}, expected 'ids', 'labels' and perhaps 'weights'"
        raise InvalidBatchError(message, field)
    return found


def _list(found: object) -> list[object]:
    if type(found) is not list:
        raise InvalidBatchError("labels must be a list", "labels")
    return found


def _hashes(values: object) -> tuple[bytes, ...]:
    try:
        found = tuple(bytes.fromhex(str(value)) for value in _list(values))
    except (TypeError, ValueError):
        found = (b"",)
    if set(map(len, found)) - {HASH_BYTES}:
        message = f"hashes must be texts of {2 * HASH_BYTES} hexadecimal digits"
        raise InvalidBatchError(message, "hashes")
    return found


def _labels(values: object, count: int, classes: int | None) -> tuple[Label, ...]:
    if classes is None:
        texts = _list(values)
        if len(texts) != count:
            raise InvalidBatchError(f"{len(texts):,} labels for {count:,} ids", "labels")
        return tuple(label_text(value, index) for index, value in enumerate(texts))
    found: Sequence[int | float] = labels_of(values, count, not classes).tolist()
    for index, label in enumerate(found if classes else ()):
        if not 0 <= label < classes:
            message = f"label {label} is outside 0…{classes - 1}"
            raise InvalidBatchError(message, "labels", index)
    return tuple(found)
