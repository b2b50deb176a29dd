"""The formats of the bodies that each route takes, by media type."""

from collections.abc import Mapping
from typing import Any

from service.http.codecs import json, ndjson, safetensors
from service.http.codecs.codec import Codec, Examples, Unlabelled
from streams.batch import Features

LEARN: dict[str, Codec[Examples]] = {
    codec.media_type: codec for codec in (json.EXAMPLES, ndjson.EXAMPLES, safetensors.EXAMPLES)
}
PREDICT: dict[str, Codec[Unlabelled[Features]]] = {
    codec.media_type: codec for codec in (json.FEATURES, ndjson.FEATURES, safetensors.FEATURES)
}


def described(codecs: Mapping[str, Codec[Any]]) -> dict[str, Any]:
    """Return OpenAPI's description of a route that takes bodies in these formats."""
    content = {kind: codec.content for kind, codec in codecs.items()}
    return {"requestBody": {"required": True, "content": content}}
