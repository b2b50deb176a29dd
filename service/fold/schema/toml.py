"""A schema as a TOML file that a user writes, or that `funnel schema` drafts.

Every part is optional::

    label = "label"            # the column of labels in CSV and Arrow
    new_columns = "add"        # or "ignore", "reject"
    max_columns = 4096

    [columns]
    age = "number"             # or "category", "time", "text", "bool", "auto"
    plan = "category"
    at = { type = "time", parts = ["hour", "weekday"] }

    [cross]
    pairs = [["plan", "at:hour"]]   # or "*": all pairs of categories

    [labels]
    names = ["stay", "churn"]
    new = "grow"               # or "other", "reject"
    max = 1000
"""

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum
from typing import TypeVar

import orjson

from service.fold.schema.kinds import ColumnPolicy, Kind, LabelPolicy, Part
from service.fold.schema.schema import ALL, OTHER, Column, Schema
from streams.errors import FunnelError
from streams.rows.names import canonical

AUTO = "auto"
"""The kind of a column that is inferred from its first values."""
UNSUPPORTED = ("log", "bins", "min_count", "ttl")
"""Options of columns that other systems have and this one does not."""
BARE = re.compile(r"[A-Za-z0-9_-]+")
KINDS = (*(kind.value for kind in Kind), AUTO)
DRAFT = """\
# The schema of named rows.
label = {label}  # the column of labels in CSV and Arrow
new_columns = {new_columns}  # a column that is not below: "add", "ignore" or "reject"
max_columns = {max_columns}

[columns]  # "number", "category", "time", "text", "bool"; "auto" follows from the first values
{columns}
[cross]  # pairs of categories, such as [["plan", "at:hour"]]; "*" crosses all of them
pairs = {pairs}

[labels]  # a label that is not below: "grow" adds it, "other" takes it as other, or "reject"
names = {names}
new = {new_labels}
max = {max_classes}
"""

Choice = TypeVar("Choice", bound=StrEnum)


class SchemaError(FunnelError, ValueError):
    """A TOML file that is no schema; the message names the key and what is allowed."""


def from_toml(text: str) -> Schema:
    """Return the schema in a TOML file.

    A part of a time without its column, such as ``hour``, means that of the one TIME column.
    With names and ``new = "other"``, all other labels are ``other`` unless ``max`` is larger.

    Raises:
        SchemaError: it is not TOML, or a key or value is not allowed.
    """
    try:
        found: Mapping[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SchemaError(f"the schema is not TOML: {error}") from error
    _known("", found, ("label", "new_columns", "max_columns", "columns", "cross", "labels"))
    label = _text("label", found.get("label", "label"))
    columns = tuple(_column(*item) for item in _table(found, "columns").items())
    if label in (column.name for column in columns):
        raise SchemaError(f"columns.{label}: this is the column of labels; remove it here")
    cross = _table(found, "cross")
    _known("cross", cross, ("pairs",))
    new_columns = _choice("new_columns", found.get("new_columns", "add"), ColumnPolicy)
    closed = bool(columns) and new_columns is not ColumnPolicy.ADD
    labels = _table(found, "labels")
    _known("labels", labels, ("names", "new", "max"))
    names = _names(labels.get("names", []))
    new_labels = _choice("labels.new", labels.get("new", "grow"), LabelPolicy)
    if new_labels is LabelPolicy.REJECT and not names:
        raise SchemaError('labels.new: "reject" needs labels.names, or no label is allowed')
    least = max(len(names), 1)
    if new_labels is LabelPolicy.OTHER:
        least = len({*names, OTHER})
    default = least if new_labels is LabelPolicy.OTHER and names else max(least, 1_000)
    return Schema(
        columns,
        names,
        _crosses(cross.get("pairs", []), columns, closed),
        label,
        new_columns,
        new_labels,
        _integer("labels.max", labels.get("max", default), least),
        _integer("max_columns", found.get("max_columns", 4_096), max(len(columns), 1)),
    )


def to_toml(schema: Schema) -> str:
    """Return the TOML file of a schema, with comments; `from_toml` reads it.

    The file declares what the schema has by now. Places and the version are not in it.
    """
    pairs = ALL if schema.crosses == ((ALL, ALL),) else schema.crosses
    return DRAFT.format(
        label=_quoted(schema.label),
        new_columns=_quoted(schema.new_columns),
        max_columns=schema.max_columns,
        columns="".join(f"{_key(c.name)} = {_kind(c)}\n" for c in schema.columns),
        pairs=_quoted(pairs),
        names=_quoted(schema.labels),
        new_labels=_quoted(schema.new_labels),
        max_classes=schema.max_classes,
    )


def _column(name: str, value: object) -> Column:
    key = f"columns.{_key(name)}"
    if not name:
        raise SchemaError(f"{key}: the name of a column cannot be empty")
    options: Mapping[str, object] = value if isinstance(value, dict) else {"type": value}
    for option in UNSUPPORTED:
        if option in options:
            raise SchemaError(f"{key}.{option} is not supported; remove it")
    _known(key, options, ("type", "parts"))
    if "type" not in options:
        raise SchemaError(f"{key}.type is missing; choose one of {', '.join(KINDS)}")
    kind = None if options["type"] == AUTO else _choice(key, options["type"], Kind, KINDS)
    if "parts" not in options:
        return Column(name, kind)
    parts = options["parts"]
    if kind is not Kind.TIME or not isinstance(parts, list) or not parts:
        raise SchemaError(f"{key}.parts: a time has a list of {', '.join(Part)}; others have none")
    chosen = [_choice(f"{key}.parts", part, Part) for part in parts]
    return Column(name, kind, parts=tuple(dict.fromkeys(chosen)))


def _crosses(
    value: object, columns: tuple[Column, ...], closed: bool
) -> tuple[tuple[str, str], ...]:
    if value == ALL:
        return ((ALL, ALL),)
    if not isinstance(value, list):
        raise SchemaError(f'cross.pairs: {_shown(value)} is neither a list of pairs nor "*"')
    found: list[tuple[str, str]] = []
    for k, pair in enumerate(value):
        key = f"cross.pairs[{k}]"
        match pair:
            case [str(one), str(two)] if one != two:
                found.append((_side(key, one, columns, closed), _side(key, two, columns, closed)))
            case ["*", "*"]:
                found.append((ALL, ALL))
            case _:
                raise SchemaError(f"{key}: {_shown(pair)} is no pair of two columns")
    return tuple(found)


def _side(key: str, name: str, columns: tuple[Column, ...], closed: bool) -> str:
    """Return one side of a cross, a column or ``column:part``."""
    known = {column.name: column for column in columns}
    timed = {f"{c.name}:{part}": c for c in columns if c.kind is Kind.TIME for part in c.parts}
    if name in timed and name not in known:
        return name
    parts = [side for side in timed if side.endswith(f":{name}")]
    if name not in known and len(parts) == 1:
        return parts[0]
    kind = known[name].kind if name in known else None
    if kind in (Kind.NUMBER, Kind.TEXT):
        raise SchemaError(f"{key}: {name!r} is a {kind}; only category, bool and time cross")
    if name not in known and (closed or name == ALL):
        raise SchemaError(f"{key}: unknown column {name!r}{_close(name, [*known, *timed])}")
    return name


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise SchemaError(f"labels.names: {_shown(value)} is no list of labels")
    names: list[str] = []
    for k, name in enumerate(value):
        if not isinstance(name, bool | int | float | str):
            raise SchemaError(f"labels.names[{k}]: {_shown(name)} is neither a text nor a number")
        try:
            names.append(canonical(name))
        except ValueError as error:
            raise SchemaError(f"labels.names[{k}]: {error}") from error
        if names[-1] in names[:-1]:
            raise SchemaError(f"labels.names[{k}]: {names[-1]!r} is there twice")
    return tuple(names)


def _table(found: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = found.get(key, {})
    if not isinstance(value, dict):
        raise SchemaError(f"{key} is no table; write [{key}] and one key a line under it")
    return value


def _known(key: str, found: Mapping[str, object], allowed: Collection[str]) -> None:
    for name in found:
        if name not in allowed:
            where = f"{key}.{name}" if key else name
            raise SchemaError(
                f"unknown key {where!r}{_close(name, allowed)} Allowed are {', '.join(allowed)}"
            )


def _choice(
    key: str, value: object, choices: type[Choice], allowed: Collection[str] = ()
) -> Choice:
    if isinstance(value, str) and value in list(choices):
        return choices(value)
    shown = [*allowed] or [choice.value for choice in choices]
    close = _close(value, shown) if isinstance(value, str) else "."
    raise SchemaError(
        f"{key}: {_shown(value)} is not allowed{close} Choose one of {', '.join(shown)}"
    )


def _integer(key: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SchemaError(f"{key}: {_shown(value)} is not an integer of at least {least}")
    return value


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise SchemaError(f"{key}: {_shown(value)} is no name of a column")
    return value


def _close(name: str, known: Collection[str]) -> str:
    """Return the end of a sentence about an unknown name."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def _kind(column: Column) -> str:
    if column.kind is None:
        return f"{_quoted(AUTO)}  # no value was seen yet"
    if column.kind is Kind.TIME and column.parts != tuple(Part):
        return f"{{ type = {_quoted(column.kind)}, parts = {_quoted(column.parts)} }}"
    return _quoted(column.kind)


def _key(name: str) -> str:
    return name if BARE.fullmatch(name) else _quoted(name)


def _quoted(value: str | Sequence[str] | Sequence[Sequence[str]]) -> str:
    """Return a text or a list in TOML. JSON's texts are TOML's, but DEL needs an escape there."""
    if isinstance(value, str):
        return orjson.dumps(value).decode().replace("\x7f", "\\u007f")
    return f"[{', '.join(map(_quoted, value))}]"


def _shown(value: object) -> str:
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= 60 else f"{text[:60]}…"
