"""Questions with ids, and labels for them, on a log in memory."""

from collections.abc import Sequence

import numpy as np
import orjson

from service.log.entries import Fields
from service.log.labels import hash_of
from service.log.position import EntryId
from service.log.questions import Questions
from streams.examples import AnyInputs
from tests.support.memory_log import MemoryServer
from tests.support.states import CLASSES, FEATURES


def features_of(text: str) -> np.ndarray:
    """Return the features of the question with an id, float32 [FEATURES]."""
    seed = int.from_bytes(hash_of(text)[:4], "little")
    return np.random.default_rng(seed).normal(size=FEATURES).astype(np.float32)


def questions(
    ids: Sequence[str], inputs: AnyInputs | None = None, answers: Sequence[int] | None = None
) -> Questions:
    """Return questions whose answers are class 0 unless they are given."""
    if inputs is None:
        inputs = np.stack(list(map(features_of, ids)))
    hashes = b"".join(map(hash_of, ids))
    labels = np.array(answers or [0] * len(ids), np.int64)
    return Questions(inputs, hashes, labels, np.zeros((len(ids), CLASSES), np.float16), 1)


def fields_of(own: Questions) -> Fields:
    """Return the fields of their entry, as a server returns them."""
    fields = own.to_fields()
    return {
        name.encode(): value if isinstance(value, bytes) else str(value).encode()
        for name, value in fields.items()
    }


def ask(server: MemoryServer, *ids: str) -> EntryId:
    """Append questions of dense features."""
    return server.ask(fields_of(questions(ids)))


def label(server: MemoryServer, **labels: object) -> EntryId:
    """Append labels by id."""
    found = {"ids": [*labels], "labels": [*labels.values()]}
    return server.add({b"labels": orjson.dumps(found)})
