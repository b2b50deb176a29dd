"""Rows written as JSON or NDJSON: an object a row, a key a column."""

import json
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO

import orjson
import pyarrow as pa

from streams.batch import InvalidBatchError, TooManyError
from streams.json_batch import ids_of, weights_of
from streams.rows.bounds import (
    MAX_COLUMNS,
    MAX_ROWS,
    MAX_TEXT,
    SHOWN,
    check_names,
    check_size,
    check_texts,
)
from streams.rows.duplicates import STRING, check_duplicates, key_count
from streams.rows.labels import kind_name, label_texts
from streams.rows.rows import Chunk, Rows
from streams.rows.values import Digits, InexactError, check_exact, column

BOM = b"\xef\xbb\xbf"
TEXT = pa.string()
INT64_DIGITS = 18
"""Decimal digits that always fit int64."""
Loader = Callable[[bytes], object]
Read = tuple[list[object], list[object], object]
"""Rows, labels and weights of JSON; no weights are None."""


def from_json(raw: bytes, labelled: bool) -> Rows:
    """Read ``{"rows": [{…}, …], "labels": […]}``, or one row as ``{"row": {…}, "label": …}``.

    A list of the latter has the rows of the same objects as lines of `from_ndjson`.

    With labels there may be ``weights``, or one ``weight``. A value is null, a boolean, a number or
    a string; a key that a row lacks is null.

    Args:
        raw: the document, in UTF-8.
        labelled: whether there must be labels; otherwise there must be none.

    Raises:
        InvalidBatchError: the document does not hold such rows; message, field and index say why.
        MemoryError: the document is too large to parse.
    """
    return _from_json(raw, labelled, None)


def questions_from_json(raw: bytes) -> tuple[Rows, object]:
    """Read ``{"rows": [{…}, …], "ids": […]}``, or ``{"row": {…}, "id": …}``; ids may be absent.

    Args:
        raw: the document, in UTF-8.

    Returns:
        Rows as `from_json`, and the ids as they are; None without them.

    Raises:
        InvalidBatchError: as for `from_json`.
        MemoryError: the document is too large to parse.
    """
    ids: dict[str, object] = {}
    rows = _from_json(raw, False, ids)
    return rows, ids.get("ids")


def _from_json(raw: bytes, labelled: bool, ids: dict[str, object] | None) -> Rows:
    """Return the rows of a document, and add its ids; with None it may have none."""
    raw = raw.removeprefix(BOM)
    may_be_list = raw[:SHOWN].lstrip().startswith(b"[")
    check_containers(raw, has_pairs=may_be_list)
    has_weight: list[bool] = []

    def read(load: Loader) -> Read:
        document = load(raw)
        if isinstance(document, list) and document and _is_pair(document[0]):
            return _one_by_one(document, labelled, has_weight)
        is_one = _is_pair(document)
        names = ("row", "label", "weight") if is_one else ("rows", "labels", "weights")
        if ids is not None and isinstance(document, dict):
            name = "id" if is_one else "ids"
            if name in document:
                own = document.pop(name)
                ids["ids"] = [own] if is_one else own
        rows, labels, weights = _members(document, *names, labelled)
        if is_one:
            return [rows], [labels], None if weights is None else [weights]
        if not isinstance(rows, list):
            raise InvalidBatchError("rows must be a list of objects", "rows")
        if not isinstance(labels, list):
            raise InvalidBatchError("labels must be a list", "labels")
        return rows, labels, weights

    found, keys = rows_from(read, labelled)
    own = 1 + labelled + (found.weights is not None) + len(ids or ())
    if has_weight:  # a list of pairs
        own = len(found) * (1 + labelled) + sum(has_weight)
    check_duplicates(raw, keys + own, len(found), has_pairs=bool(has_weight))
    return found


def from_ndjson(raw: bytes, labelled: bool) -> Rows:
    """Read one ``{"row": {…}, "label": …}`` a line; blank lines are skipped.

    Arguments as for `from_json`.

    Raises:
        InvalidBatchError: as for `from_json`; the index counts rows.
    """
    return _from_ndjson(raw, labelled, None)


def questions_from_ndjson(raw: bytes) -> tuple[Rows, object]:
    """Read one ``{"row": {…}, "id": …}`` a line, where all ids may be absent.

    Args:
        raw: the lines, in UTF-8.

    Returns:
        Rows as `from_ndjson`, and the ids as they are; None without them.

    Raises:
        InvalidBatchError: as for `from_ndjson`, or some lines have an id and others have none.
        MemoryError: a line is too large to parse.
    """
    asked: list[dict[str, object]] = []
    rows = _from_ndjson(raw, False, asked)
    return rows, ids_of(asked)


def _from_ndjson(raw: bytes, labelled: bool, asked: list[dict[str, object]] | None) -> Rows:
    """Return the rows of lines, and add the ``id`` of each; with None they may have none."""
    raw = raw.removeprefix(BOM)
    has_weight: list[bool] = []

    def read(load: Loader) -> Read:
        documents = (load(line) for line in BytesIO(raw) if line.strip())
        if asked is not None:
            asked.clear()
            documents = (_without_id(document, asked) for document in documents)
        return _one_by_one(documents, labelled, has_weight)

    found, keys = rows_from(read, labelled)
    own = len(found) * (1 + labelled) + sum(has_weight) + sum(map(len, asked or ()))
    check_duplicates(raw, keys + own, len(found), is_lines=True)
    return found


def _without_id(document: object, asked: list[dict[str, object]]) -> object:
    """Return a document without its id, which is added to others."""
    has_id = isinstance(document, dict) and "id" in document
    asked.append({"id": document.pop("id")} if isinstance(document, dict) and has_id else {})
    return document


def _is_pair(document: object) -> bool:
    return isinstance(document, dict) and "row" in document


def _one_by_one(documents: Iterable[object], labelled: bool, has_weight: list[bool]) -> Read:
    """Return the rows, labels and weights of ``{"row": {…}, "label": …}`` each.

    Args:
        documents: of JSON.
        labelled: whether there are labels.
        has_weight: is replaced by whether each has a weight.

    Raises:
        InvalidBatchError: one is no such object; the index counts them.
    """
    rows: list[object] = []
    labels: list[object] = []
    weights: list[object] = []
    has_weight.clear()
    try:
        for document in documents:
            if len(rows) == MAX_ROWS:
                raise TooManyError(f"more than {MAX_ROWS:,} rows; send several requests")
            row, label, weight = _members(document, "row", "label", "weight", labelled)
            rows.append(row)
            labels.append(label)
            weights.append(1.0 if weight is None else weight)
            has_weight.append(weight is not None)
    except TooManyError:
        raise
    except InvalidBatchError as error:
        raise InvalidBatchError(str(error), error.field, len(rows)) from error
    return rows, labels, weights if any(has_weight) else None


def parsed(raw: bytes) -> object:
    """Return what a JSON document holds; integers beyond 64 bits become floats.

    Raises:
        InvalidBatchError: it is not JSON.
        MemoryError: it is too large to parse.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if str(error).startswith("Not enough memory"):
            raise MemoryError("a document could not be parsed") from error
        there = error.doc[error.pos : error.pos + 9].lstrip("-+").lower()
        if there.startswith(("nan", "inf")) or "infinity" in str(error):
            raise InvalidBatchError(
                "numbers must be finite; JSON has no NaN and no infinity; write null for a "
                f"missing value: {error}"
            ) from error
        raise InvalidBatchError(f"not JSON: {error}") from error


def exactly_parsed(raw: bytes) -> object:
    """Return what a JSON document that `parsed` accepts holds; long integers become `Digits`."""
    return json.loads(raw, parse_int=_integer)


def chunk(
    rows: Sequence[object],
    labels: Sequence[object] | None,
    weights: object = None,
    is_exact: bool = False,
) -> Chunk:
    """Return rows as columns, in the order in which their names occur first.

    Args:
        rows: objects of JSON, [n].
        labels: values of JSON, [n].
        weights: should be numbers of JSON, [n]; None for 1.
        is_exact: whether integers beyond 64 bits are `Digits`, not floats.

    Raises:
        InexactError: a float may have been an integer, and they are not exact.
        InvalidBatchError: a row is no object, or a value or a label is at fault.
    """
    kinds = set(map(type, rows))
    if kinds - {dict}:
        index = next(k for k, row in enumerate(rows) if type(row) is not dict)
        message = f"a row must be an object of names and values, not {kind_name(rows[index])}"
        raise InvalidBatchError(message, None, index)
    records: list[dict[str, object]] = [*rows]  # type: ignore[list-item]
    forms = dict.fromkeys(map(tuple, records))
    names = dict.fromkeys(name for form in forms for name in form)
    check_size(len(records), len(names))
    check_names([*names])
    columns: Sequence[Sequence[object]]
    if len(forms) == 1:
        columns = [*zip(*map(dict.values, records), strict=True)]
    else:
        columns = [[record.get(name) for record in records] for name in names]
    arrays = [column(name, each, is_exact) for name, each in zip(names, columns, strict=True)]
    for name, array in zip(names, arrays, strict=True):
        if array.type == TEXT and array.get_total_buffer_size() > MAX_TEXT:
            check_texts(name, array)
    texts = None
    if labels is not None:
        if not is_exact:
            check_exact(labels)
        texts = label_texts(labels, len(records))
    own = None if weights is None else weights_of(weights, len(records))
    return Chunk(pa.RecordBatch.from_arrays(arrays, [*names]), texts, own)


def rows_from(read: Callable[[Loader], Read], labelled: bool) -> tuple[Rows, int]:
    """Return rows, and the number of their keys.

    Args:
        read: returns rows, labels and weights, given what parses a document. It is called again if
            the digits of long integers may have been lost.
        labelled: whether there are labels.

    Raises:
        InvalidBatchError: as for `chunk`.
    """
    rows, labels, weights = read(parsed)
    try:
        found = chunk(rows, labels if labelled else None, weights)
    except InexactError:
        rows, labels, weights = read(exactly_parsed)
        found = chunk(rows, labels if labelled else None, weights, is_exact=True)
    return Rows((found,)), sum(len(row) for row in rows if isinstance(row, dict))


def _form(fields: Sequence[str]) -> str:
    """Return an object with these fields, in outline."""
    content = {"rows": "[{…}, …]", "row": "{…}", "labels": "[…]", "label": "…"}
    return "{" + ", ".join(f'"{name}": {content[name]}' for name in fields) + "}"


def _members(
    document: object, rows: str, labels: str, weights: str, labelled: bool
) -> tuple[object, object, object]:
    """Return the members of a document; without labels, they are an empty list.

    Weights are None if they are not there.
    """
    expected = [rows, labels] if labelled else [rows]
    shown = " and ".join(map(repr, expected))
    if not isinstance(document, dict):
        is_list = rows == "rows" and isinstance(document, list)
        hint = f"; send this list as {_form(expected)}" if is_list else ""
        raise InvalidBatchError(f"expected an object with {shown}{hint}")
    for name in expected:
        if name not in document:
            why = "; the model learns columns with names" if "features" in document else ""
            message = f"the field {name!r} is missing{why}; send {_form(expected)}"
            raise InvalidBatchError(message, name)
    allowed = [weights] if labelled else []
    if unknown := [name for name in document if name not in expected + allowed]:
        name = unknown[0][:SHOWN]
        may = f", and perhaps {weights!r}" if labelled else ""
        raise InvalidBatchError(f"unknown field {name!r}, expected {shown}{may}", name)
    if weights in document and document[weights] is None:
        raise InvalidBatchError("a weight must be a number, not null", weights)
    return document[rows], document[labels] if labelled else [], document.get(weights)


def check_containers(raw: bytes, has_pairs: bool = False) -> None:
    """Check that a document is not made of millions of lists and objects, or of keys.

    Args:
        raw: the document.
        has_pairs: whether there may be an object around each row.

    Raises:
        TooManyError: it has more than the most rows and columns have.
    """
    most = MAX_ROWS * (1 + has_pairs) + 3
    if len(raw) <= most:
        return
    objects = raw.count(b"{")
    if objects + raw.count(b"[") > most:
        bare = STRING.sub(b"", raw)
        if bare.count(b"{") + bare.count(b"[") > most:
            raise TooManyError(f"more than {MAX_ROWS:,} rows; send several requests")
    keys = MAX_COLUMNS * objects
    if raw.count(b":") > keys and key_count(raw) > keys:
        raise TooManyError(f"more than {MAX_COLUMNS:,} columns; send fewer")


def _integer(text: str) -> int | Digits:
    return int(text) if len(text) <= INT64_DIGITS else Digits(text)
