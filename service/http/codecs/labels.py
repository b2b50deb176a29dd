"""``application/json``: ``{"ids": […], "labels": […]}``, labels of questions."""

from service.http.codecs.codec import Codec, check_count
from service.http.codecs.json import IDS, MEDIA_TYPE, WEIGHTS
from service.log.labels import Labels, read_labels


def _decode(body: bytes, features: int, classes: int, expects_bytes: bool = False) -> Labels:
    found = read_labels(body, classes if features else None)
    check_count(len(found))
    return found


CONTENT = {
    "schema": {
        "title": "Labels",
        "type": "object",
        "properties": {
            "ids": IDS,
            "labels": {"title": "Labels", "type": "array", "items": {}, "examples": [["stay"]]},
            "weights": WEIGHTS,
        },
        "required": ["ids", "labels"],
    }
}
LABELS: dict[str, Codec[Labels]] = {MEDIA_TYPE: Codec(MEDIA_TYPE, _decode, CONTENT)}
