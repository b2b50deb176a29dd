"""Batches written as JSON or NDJSON, for people and for languages without safetensors."""

import re
from collections.abc import Mapping, Sequence, Set
from io import BytesIO
from struct import Struct
from struct import error as StructError
from typing import Any

import numpy as np
import orjson

from streams.batch import (
    Batch,
    Features,
    InvalidBatchError,
    Labels,
    TooManyError,
    Weights,
    check_weights,
    refuse_integers,
)

NUMBER = {int, float}
INT64 = range(-(1 << 63), 1 << 63)
KEY = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")\s*:', re.DOTALL)
"""A text before a colon, in valid JSON."""
WITH_ROWS = "start a service with FUNNEL_SCHEMA=auto for rows with names"
"""Advice for values that features cannot hold."""
MAX_LISTS = 1 << 17
"""Most lists and objects in a document. The parser would turn ten million empty ones, 32 MB, into
1 GB, and would block all other threads for seconds."""


def from_json(
    raw: bytes,
    width: int | None = None,
    expects_bytes: bool = False,
    numeric_labels: bool = False,
) -> Batch:
    """Read ``{"features": [[…], …], "labels": [3, …]}``; features become float32.

    One example may be ``{"features": […], "label": 3}``. ``weights``, or ``weight``, may be there
    too.

    Numbers are read strictly: no booleans, no strings, no NaN, nothing that float32 cannot hold.

    Args:
        raw: the document.
        width: features of an example; None takes that of the first example.
        expects_bytes: whether the model has learned uint8 features alone, so that integers are
            refused (see `streams.batch.refuse_integers`).
        numeric_labels: whether labels may be numbers with a fraction, which then become float32;
            otherwise they are integers.

    Raises:
        InvalidBatchError: the document is not a batch; message, field and index say why.
        MemoryError: the document is too large to parse.
    """
    many, one = {"features", "labels"}, {"features", "label"}
    document = _object(raw, many, one, {"weights"}, {"weight"})
    rows, labels, weights = document["features"], document.get("labels"), document.get("weights")
    if "labels" not in document:
        rows, labels = [rows], [document["label"]]
        weights = [document["weight"]] if "weight" in document else None
    features = _features(rows, _may_hold_booleans(raw), width, expects_bytes)
    labels = labels_of(labels, len(features), numeric_labels)
    has_weights = not document.keys().isdisjoint({"weights", "weight"})
    return Batch(features, labels, weights_of(weights, len(labels)) if has_weights else None)


def weights_of(values: object, examples: int) -> Weights:
    """Return weights of JSON, float32 [examples].

    Args:
        values: should be a list of numbers.
        examples: how many examples there are.

    Raises:
        InvalidBatchError: they are not numbers, or as for `streams.batch.check_weights`.
    """
    if type(values) is not list:
        raise InvalidBatchError("weights must be a list of numbers", "weights")
    for index, value in enumerate(values):
        if type(value) not in NUMBER:
            message = f"a weight must be a number, not {_json_name(type(value))}"
            raise InvalidBatchError(message, "weights", index)
    weights = np.array(values, np.float64)
    check_weights(weights, examples)
    return weights.astype(np.float32)


def labels_of(labels: object, count: int, are_numbers: bool) -> Labels:
    """Return labels of JSON, int64 [count], or float32 if they are numbers with fractions.

    Args:
        labels: should be a list of integers, or of numbers.
        count: how many examples there are.
        are_numbers: whether they may have fractions.

    Raises:
        InvalidBatchError: they are something else, or another number of them.
    """
    if not isinstance(labels, list):
        kind = "numbers" if are_numbers else "integers"
        raise InvalidBatchError(f"labels must be a list of {kind}", "labels")
    if len(labels) != count:
        raise InvalidBatchError(
            f"labels have shape [{len(labels)}], expected [{count}], one label an example", "labels"
        )
    if are_numbers:
        return _numbers(labels)
    for index, label in enumerate(labels):
        if type(label) is not int:
            raise _no_class(label, index)
        if label not in INT64:
            raise InvalidBatchError(f"label {label} does not fit int64", "labels", index)
    return np.array(labels, dtype=np.int64)


def features_from_json(
    raw: bytes, width: int | None = None, expects_bytes: bool = False
) -> Features:
    """Read ``{"features": [[…], …]}`` as float32 [n, d]; arguments as for `from_json`.

    One example may be ``{"features": […]}``.

    Raises:
        InvalidBatchError: as for `from_json`.
    """
    return _inputs(_object(raw, {"features"}), raw, width, expects_bytes)


def questions_from_json(
    raw: bytes, width: int | None = None, expects_bytes: bool = False
) -> tuple[Features, object]:
    """Read ``{"features": [[…], …], "ids": […]}``, where ids may be absent.

    Arguments as for `from_json`.

    Returns:
        Features as `features_from_json`, and the ids as they are; None without them.

    Raises:
        InvalidBatchError: as for `from_json`.
    """
    document = _object(raw, {"features"}, allowed={"ids"})
    return _inputs(document, raw, width, expects_bytes), document.get("ids")


def _inputs(
    document: dict[str, Any], raw: bytes, width: int | None, expects_bytes: bool
) -> Features:
    rows = document["features"]
    if type(rows) is list and rows and type(rows[0]) in NUMBER:
        rows = [rows]
    return _features(rows, _may_hold_booleans(raw), width, expects_bytes)


def from_ndjson(
    raw: bytes,
    width: int | None = None,
    expects_bytes: bool = False,
    numeric_labels: bool = False,
) -> Batch:
    """Read one ``{"features": […], "label": 3}`` a line; blank lines are skipped.

    A line may have a ``weight``, too; in the others it is 1. Arguments as for `from_json`.

    Raises:
        InvalidBatchError: as for `from_json`; the index counts examples.
    """
    examples, booleans = _lines(raw, {"features", "label"}, {"weight"})
    found = None
    if any("weight" in example for example in examples):
        weights = [example.get("weight", 1.0) for example in examples]
        found = weights_of(weights, len(examples))
    rows = [example["features"] for example in examples]
    features = _features(rows, booleans, width, expects_bytes)
    labels = [example["label"] for example in examples]
    return Batch(features, labels_of(labels, len(rows), numeric_labels), found)


def questions_from_ndjson(
    raw: bytes, width: int | None = None, expects_bytes: bool = False
) -> tuple[Features, object]:
    """Read one ``{"features": […], "id": …}`` a line, where all ids may be absent.

    Arguments as for `from_json`.

    Returns:
        Features as `features_from_json`, and the ids as they are; None without them.

    Raises:
        InvalidBatchError: as for `from_ndjson`, or some lines have an id and others have none.
    """
    examples, booleans = _lines(raw, {"features"}, {"id"})
    rows = [example["features"] for example in examples]
    features = _features(rows, booleans, width, expects_bytes)
    return features, ids_of(examples)


def ids_of(examples: Sequence[Mapping[str, object]]) -> list[object] | None:
    """Return the ``id`` of each example as it is; None if none has one.

    Raises:
        InvalidBatchError: some have one and others have none.
    """
    count = sum("id" in example for example in examples)
    if not count:
        return None
    if count < len(examples):
        index = next(k for k, example in enumerate(examples) if "id" not in example)
        raise InvalidBatchError("this example has no id, and others have one", "id", index)
    return [example["id"] for example in examples]


def _lines(raw: bytes, keys: set[str], allowed: Set[str]) -> tuple[list[dict[str, Any]], bool]:
    """Return the object of each line that is not blank, and whether booleans may be in them.

    Args:
        raw: the lines.
        keys, allowed: as for `_object`.

    Raises:
        InvalidBatchError: as for `_object`; the index counts examples.
    """
    examples: list[dict[str, Any]] = []
    booleans = False
    for line in BytesIO(raw):
        if not line.strip():
            continue
        if len(examples) == MAX_LISTS:
            raise TooManyError(f"more than {MAX_LISTS} examples; send several requests")
        try:
            examples.append(_object(line, keys, allowed=allowed))
        except InvalidBatchError as error:
            raise InvalidBatchError(str(error), error.field, len(examples)) from error
        booleans = booleans or _may_hold_booleans(line)
    return examples, booleans


def _object(
    raw: bytes,
    keys: set[str],
    of_one: set[str] | None = None,
    allowed: Set[str] = frozenset(),
    allowed_of_one: Set[str] = frozenset(),
) -> dict[str, Any]:
    """Return an object with these keys, or with those of one example if it has a ``label``.

    Args:
        raw: the document.
        keys, of_one: what it must have.
        allowed, allowed_of_one: what it may have.
    """
    if len(raw) > MAX_LISTS and _lists(raw) > MAX_LISTS:
        raise TooManyError(f"more than {MAX_LISTS} lists and objects; send several requests")
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if str(error).startswith("Not enough memory"):
            raise MemoryError("a document could not be parsed") from error
        raise _not_json(error) from error
    if type(document) is not dict:
        raise InvalidBatchError(f"expected an object with {_names(keys)}")
    if of_one is not None and "label" in document and "labels" not in document:
        keys, allowed = of_one, allowed_of_one
    if missing := keys - document.keys():
        field = min(missing)
        message = f"the field {field!r} is missing; expected {_names(keys)}"
        if "features" in missing and not document.keys().isdisjoint({"rows", "row"}):
            message += f"; {WITH_ROWS}"
        raise InvalidBatchError(message, field)
    if unknown := document.keys() - keys - allowed:
        field = min(unknown)
        may = f", and perhaps {_names(allowed)}" if allowed else ""
        message = f"unknown field {field[:40]!r}, expected {_names(keys)}{may}"
        raise InvalidBatchError(message, field[:40])
    if raw.count(b'"') != 2 * len(document):  # keys are the only texts of a good document
        _refuse_duplicate(raw, document)
    return document


def _refuse_duplicate(raw: bytes, document: dict[str, Any]) -> None:
    """Refuse a valid document that has one of its keys twice; the parser kept the last."""
    seen: set[str] = set()
    for found in KEY.finditer(raw):
        name = orjson.loads(found[1])  # it may be written with escapes
        if name in seen:
            message = f"the key {name!r} occurs twice in one object; send it once"
            raise InvalidBatchError(message, name)
        if name in document:
            seen.add(name)


def _not_json(error: orjson.JSONDecodeError) -> InvalidBatchError:
    """Return the error; it locates a number that is not finite, as some writers emit."""
    before, there = error.doc[: error.pos], error.doc[error.pos : error.pos + 9].lstrip(",+-")
    if not there.lower().startswith(("nan", "inf")) and "infinity" not in str(error):
        return InvalidBatchError(f"not JSON: {error}")
    rest, _, there = before.rpartition('"')  # only keys are text
    key = rest.rpartition('"')[2]
    index = {
        "features": there.count("[") - 2,
        "labels": there.count(","),
        "weights": there.count(","),
    }.get(key, -1)
    return InvalidBatchError(
        f"numbers must be finite; JSON has no NaN and no infinity: {error}",
        key[:40] or None,
        index if index >= 0 else None,
    )


def _features(rows: object, booleans: bool, width: int | None, expects_bytes: bool) -> Features:
    if type(rows) is not list:
        raise InvalidBatchError("features must be a list of lists of numbers", "features")
    if not rows:
        return np.zeros((0, 0), dtype=np.float32)
    features = _packed(rows, width)
    if features is None or booleans:
        _check_rows(rows, width)
    assert features is not None, "rows that cannot be packed are refused"
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise InvalidBatchError(
            "this example has a number too large for float32", "features", int(finite.argmin())
        )
    if expects_bytes:
        refuse_integers(features)
    return features


def _packed(rows: list[Any], width: int | None) -> Features | None:
    """Return rows as float32, or None if they are not lists of ``width`` numbers or booleans.

    `struct` takes a third of the time of `numpy.array`, which looks for a common dtype first.
    """
    if set(map(type, rows)) != {list} or len(rows[0]) != (width or len(rows[0])):
        return None
    pack = Struct(f"{len(rows[0])}f").pack
    try:
        packed = bytearray().join([pack(*row) for row in rows])
    except StructError:
        return None
    return np.frombuffer(packed, np.float32).reshape(len(rows), len(rows[0]))


def _check_rows(rows: list[Any], width: int | None) -> None:
    """Check that each row is a list of ``width`` numbers.

    Raises:
        InvalidBatchError: a row is not; the error names the first.
    """
    setting = "" if width is None else " (FUNNEL_FEATURES)"
    for index, row in enumerate(rows):
        if type(row) is not list:
            message = "an example must be a list of numbers"
            if type(row) is dict:
                message += f"; {WITH_ROWS}"
            raise InvalidBatchError(message, "features", index)
        width = len(row) if width is None else width
        if len(row) != width:
            message = f"this example has {len(row)} features, expected {width}{setting}"
            raise InvalidBatchError(message, "features", index)
        if other := set(map(type, row)) - NUMBER:
            kind = other.pop()
            message = f"features must be numbers, this example has a {_json_name(kind)}"
            if kind in (str, type(None)):
                message += f"; {WITH_ROWS}, which hold words and missing values"
            raise InvalidBatchError(message, "features", index)


def _lists(raw: bytes) -> int:
    """Return the most lists and objects that the document can hold."""
    openings = b"[{" if _recurs(raw, b"{") else b"["
    text = np.frombuffer(raw, np.uint8)
    return sum(int(np.count_nonzero(text == opening)) for opening in openings)


def _may_hold_booleans(raw: bytes) -> bool:
    """Return whether an object with the key ``features`` may also hold ``true`` or ``false``.

    The key itself has one u and one f, and escapes in it add further u's. Finding single bytes
    takes a fiftieth of the time that finding words takes.
    """
    return _recurs(raw, b"u") or _recurs(raw, b"f")


def _recurs(raw: bytes, letter: bytes) -> bool:
    return raw.find(letter) != raw.rfind(letter)


def _no_class(label: object, index: int) -> InvalidBatchError:
    """Return why a label is no class, and what to send."""
    if isinstance(label, str):
        advice = f"words are labels of rows: {WITH_ROWS}"
    elif isinstance(label, float) and (not label.is_integer() or int(label) not in INT64):
        advice = "a service with FUNNEL_TASK=regression predicts numbers"
    elif isinstance(label, (bool, float)):
        advice = f"send {int(label)}"
    else:
        advice = "send a number from 0"
    got = f"got {_json_name(type(label))} {str(label)[:40]}"
    return InvalidBatchError(f"a label must be an integer, {got}; {advice}", "labels", index)


def _numbers(labels: list[Any]) -> Labels:
    for index, label in enumerate(labels):
        if type(label) not in NUMBER:
            raise InvalidBatchError(
                f"a label must be a number, got {_json_name(type(label))} {str(label)[:40]}",
                "labels",
                index,
            )
    if all(type(label) is int and label in INT64 for label in labels):
        return np.array(labels, np.int64)
    with np.errstate(over="ignore"):
        found = np.array(labels, np.float64).astype(np.float32)
    is_finite = np.isfinite(found)
    if not is_finite.all():
        index = int(is_finite.argmin())
        raise InvalidBatchError(
            f"label {labels[index]} is too large for float32; rescale it", "labels", index
        )
    return found


def _names(keys: Set[str]) -> str:
    return " and ".join(repr(key) for key in sorted(keys))


def _json_name(kind: type) -> str:
    return {
        bool: "boolean", str: "string", dict: "object", list: "list", float: "number",
        type(None): "null",
    }.get(kind, kind.__name__)  # fmt: skip
