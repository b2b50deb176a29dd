"""``application/x-ndjson``: one ``{"features": […], "label": 3}`` a line."""

from service.http.codecs.codec import (
    EXAMPLES_WIRE,
    FEATURES_WIRE,
    Codec,
    Examples,
    Unlabelled,
    checked,
    checked_features,
)
from service.http.codecs.json import MAX_IN_PROCESS
from streams.batch import Features
from streams.json_batch import from_ndjson, questions_from_ndjson


def _decode(body: bytes, features: int, classes: int, expects_bytes: bool = False) -> Examples:
    batch = from_ndjson(body, features, expects_bytes, numeric_labels=not classes)
    return checked(batch, features, classes)


def _decode_features(
    body: bytes, features: int, _: int, expects_bytes: bool = False
) -> Unlabelled[Features]:
    found, ids = questions_from_ndjson(body, features, expects_bytes)
    return checked_features(found, features, ids)


EXAMPLES = Codec(
    "application/x-ndjson",
    _decode,
    {"schema": {"type": "string"}, "example": '{"features": [0.0, 0.5, 1.0], "label": 2}\n'},
    max_in_process=MAX_IN_PROCESS,
    wire=EXAMPLES_WIRE,
)
FEATURES = Codec(
    "application/x-ndjson",
    _decode_features,
    {"schema": {"type": "string"}, "example": '{"features": [0.0, 0.5, 1.0], "id": "order-17"}\n'},
    max_in_process=MAX_IN_PROCESS,
    wire=FEATURES_WIRE,
)
