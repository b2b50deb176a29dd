"""Examples of bodies in the shape of the model that is served, which work when they are tried."""

import copy
from typing import Any

import orjson

from service.fold.schema.kinds import Kind
from service.http.codecs.json import MEDIA_TYPE
from service.http.codecs.rows import NDJSON
from service.model import Model
from streams.rows.names import answered

VALUES = {
    Kind.NUMBER: 41,
    Kind.CATEGORY: "basic",
    Kind.TIME: "2026-05-01T08:30:00Z",
    Kind.TEXT: "two words",
    Kind.BOOL: True,
}
"""A value of each kind of column."""
ANY_ROW = {"plan": "basic", "age": 41}
"""A row for a model that has no columns yet."""
MOST_FEATURES = 10_000
"""A model with more has no examples of its own: nobody would read them."""
NUMBER, WORD = 1.5, "stay"
"""Labels of models that predict numbers, and of those that know no label yet."""


def with_examples(document: dict[str, Any], model: Model) -> dict[str, Any]:
    """Return an OpenAPI document whose bodies of ``/learn`` and ``/predict`` have examples.

    Args:
        document: of the service; it stays as it is.
        model: that is served.
    """
    if model.spec.shape is not None and model.spec.shape[0] > MOST_FEATURES:
        return document
    found = copy.deepcopy(document)
    example, label, one = _example(model)
    bodies = {"/learn": {one: [example], "labels": [label]}, "/predict": {one: [example]}}
    for path, body in bodies.items():
        content = found["paths"][path]["post"]["requestBody"]["content"]
        content[MEDIA_TYPE]["example"] = body
    line = {one.removesuffix("s") if one == "rows" else one: example, "label": label}
    learned = found["paths"]["/learn"]["post"]["requestBody"]["content"]
    learned[NDJSON]["example"] = orjson.dumps(line).decode() + "\n"
    return found


def _example(model: Model) -> tuple[object, object, str]:
    """Return an example, its label, and the field of a body that holds examples."""
    is_numeric = model.spec.predicts.is_numeric
    if model.spec.shape is not None and not model.is_open:
        return [0.5] * model.spec.shape[0], NUMBER if is_numeric else 0, "features"
    schema = model.schema
    row = {column.name: VALUES[column.kind] for column in schema.columns if column.kind}
    label = answered(schema.labels[0]) if schema.labels else WORD
    return row or ANY_ROW, NUMBER if is_numeric else label, "rows"
