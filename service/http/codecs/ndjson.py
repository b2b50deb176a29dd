"""``application/x-ndjson``: one ``{"features": […], "label": 3}`` a line."""

from service.http.codecs.codec import EXAMPLES_WIRE, Codec, Examples, checked
from service.http.codecs.json import MAX_IN_PROCESS
from streams.json_batch import from_ndjson


def _decode(body: bytes, features: int, classes: int, expects_bytes: bool = False) -> Examples:
    batch = from_ndjson(body, features, expects_bytes, numeric_labels=not classes)
    return checked(batch, features, classes)


EXAMPLES = Codec(
    "application/x-ndjson",
    _decode,
    {"schema": {"type": "string"}, "example": '{"features": [0.0, 0.5, 1.0], "label": 2}\n'},
    max_in_process=MAX_IN_PROCESS,
    wire=EXAMPLES_WIRE,
)
