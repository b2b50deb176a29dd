"""``application/octet-stream``: a safetensors file, the format of the log."""

from typing import Any

from service.http.codecs.codec import Codec, Examples, Unlabelled, checked, checked_features
from streams.batch import Features, decode, decode_questions

MEDIA_TYPE = "application/octet-stream"
MAX_AT_ONCE = 1 << 20
"""Larger than of other formats: these bodies are only copied and looked through."""
TENSORS = "safetensors: features [n, d] uint8, float16 or float32"


def _decode_examples(
    body: bytes, features: int, classes: int, expects_bytes: bool = False
) -> Examples:
    return checked(decode(body, expects_bytes), features, classes, payload=body)


def _decode_features(
    body: bytes, features: int, _: int, expects_bytes: bool = False
) -> Unlabelled[Features]:
    found, ids = decode_questions(body, expects_bytes)
    return checked_features(found, features, ids)


def _content(description: str) -> dict[str, Any]:
    return {"schema": {"type": "string", "format": "binary", "description": description}}


EXAMPLES = Codec(
    MEDIA_TYPE,
    _decode_examples,
    _content(f"{TENSORS}; labels [n] int64, or floats to predict; weights [n], if any"),
    MAX_AT_ONCE,
)
FEATURES = Codec(
    MEDIA_TYPE,
    _decode_features,
    _content(f"{TENSORS}; ids [n, bytes] uint8, UTF-8 filled up with zeros, if any"),
    MAX_AT_ONCE,
)
