"""Changes of a schema, and their JSON, which cuts store.

| change | JSON |
|---|---|
| `AddColumn` | ``{"add": "age", "kind": "number", "late": false}``; an undecided kind is null |
| `SetKind` | ``{"set": "age", "kind": "number"}`` |
| `AddLabels` | ``{"labels": ["stay", "churn"]}`` |
| `SetParts` | ``{"set": "at", "parts": ["hour"]}`` |
| `SetPolicies` | ``{"policies": {"new_columns": "reject", "crosses": [["plan", "city"]]}}`` |

These forms may not change: old cuts are read with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from service.fold.schema.kinds import Kind, Part


@dataclass(frozen=True)
class AddColumn:
    """A new column, after all others."""

    name: str
    kind: Kind | None
    """None is undecided: no value was seen yet."""
    late: bool = False
    """True if it came after the declared columns, or after those of the first batch."""


@dataclass(frozen=True)
class SetKind:
    """The kind of a column that exists: the first one, or another (an operator's decision)."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class AddLabels:
    """New labels, as canonical texts, after all others."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class SetParts:
    """Other parts of a time (an operator's decision)."""

    name: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class SetPolicies:
    """Other values of the fields `service.fold.schema.schema.POLICIES` (an operator's decision)."""

    values: Mapping[str, Any]
    """As JSON shows them, by field."""


Change = AddColumn | SetKind | AddLabels | SetParts | SetPolicies


def to_json(change: Change) -> dict[str, Any]:
    """Return the JSON object of a change."""
    match change:
        case AddColumn(name, kind, late):
            return {"add": name, "kind": kind and kind.value, "late": late}
        case SetKind(name, kind):
            return {"set": name, "kind": kind.value}
        case AddLabels(names):
            return {"labels": list(names)}
        case SetParts(name, parts):
            return {"set": name, "parts": [part.value for part in parts]}
        case SetPolicies(values):
            return {"policies": dict(values)}


def from_json(found: Mapping[str, Any]) -> Change:
    """Return the change in a JSON object.

    Raises:
        ValueError: it has another form than those above.
    """
    match found:
        case {"add": str(name), "kind": None | str() as kind, "late": bool(late), **rest} if (
            not rest
        ):
            return AddColumn(name, None if kind is None else _kind(kind), late)
        case {"set": str(name), "kind": str(kind), **rest} if not rest:
            return SetKind(name, _kind(kind))
        case {"labels": [*names], **rest} if not rest and all(isinstance(n, str) for n in names):
            return AddLabels(tuple(names))
        case {"set": str(name), "parts": [*parts], **rest} if not rest:
            return SetParts(name, tuple(map(Part, parts)))
        case {"policies": {**values}, **rest} if not rest:
            return SetPolicies({str(name): value for name, value in values.items()})
    text = orjson.dumps(found, default=repr).decode()
    raise ValueError(f"{text[:200]} is no change of a schema")


def _kind(text: str) -> Kind:
    try:
        return Kind(text)
    except ValueError:
        raise ValueError(f"unknown kind {text!r}; choose one of {', '.join(Kind)}") from None
