"""``application/json``: ``{"features": [[…], …], "labels": […]}``, and predictions."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson
from starlette.responses import Response

from service.http.codecs.codec import (
    EXAMPLES_WIRE,
    FEATURES_WIRE,
    Codec,
    Examples,
    Unlabelled,
    checked,
    checked_features,
)
from streams.batch import MAX_WEIGHT, Features
from streams.json_batch import from_json, questions_from_json

MEDIA_TYPE = "application/json"
MAX_IN_PROCESS = 64 << 10
"""Bytes that are parsed in about 0.2 ms, during which no other thread runs."""


def answer(content: dict[str, Any]) -> Response:
    """Return a response whose content may hold arrays."""
    return Response(text(content), media_type=MEDIA_TYPE)


def text(content: object) -> bytes:
    """Return content that may hold arrays as JSON; parts of larger arrays are copied."""
    return orjson.dumps(content, default=_whole, option=orjson.OPT_SERIALIZE_NUMPY)


def _whole(found: object) -> object:
    """Return an array that orjson can write, for one that it hands back.

    Raises:
        TypeError: it is none, or one that orjson cannot write whole, either.
    """
    if isinstance(found, np.ndarray) and not found.flags.c_contiguous:
        return np.ascontiguousarray(found)
    raise TypeError(f"no JSON is known for {type(found).__name__}")


def _decode_examples(
    body: bytes, features: int, classes: int, expects_bytes: bool = False
) -> Examples:
    batch = from_json(body, features, expects_bytes, numeric_labels=not classes)
    return checked(batch, features, classes)


def _decode_features(
    body: bytes, features: int, _: int, expects_bytes: bool = False
) -> Unlabelled[Features]:
    found, ids = questions_from_json(body, features, expects_bytes)
    return checked_features(found, features, ids)


def _content(
    title: str,
    description: str,
    optional: Mapping[str, dict[str, Any]] = MappingProxyType({}),
    **properties: dict[str, Any],
) -> dict[str, Any]:
    schema = {
        "title": title,
        "description": description,
        "type": "object",
        "properties": properties | dict(optional),
        "required": list(properties),
    }
    return {"schema": schema}


def _array(title: str, items: dict[str, Any], example: object) -> dict[str, Any]:
    return {"title": title, "type": "array", "items": items, "examples": [example]}


ROWS = _array("Features", {"type": "array", "items": {"type": "number"}}, [[0.0, 0.5, 1.0]])
LABELS = _array("Labels", {"type": "number"}, [2])
WEIGHTS = _array("Weights", {"type": "number", "minimum": 0, "maximum": MAX_WEIGHT}, [1.0])
IDS = _array("Ids", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, ["order-17"])
EXAMPLES = Codec(
    MEDIA_TYPE,
    _decode_examples,
    _content("Examples", "Labelled examples.", {"weights": WEIGHTS}, features=ROWS, labels=LABELS),
    max_in_process=MAX_IN_PROCESS,
    wire=EXAMPLES_WIRE,
)
FEATURES = Codec(
    MEDIA_TYPE,
    _decode_features,
    _content("Inputs", "Examples without labels.", {"ids": IDS}, features=ROWS),
    max_in_process=MAX_IN_PROCESS,
    wire=FEATURES_WIRE,
)
