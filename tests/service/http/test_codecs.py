"""Every format of bodies yields the same checked examples."""

import json as plain_json

import numpy as np
import pytest
from safetensors.numpy import save

from service.http.codecs.codec import MAX_EXAMPLES
from service.http.codecs.table import LEARN, PREDICT, described
from streams.batch import InvalidBatchError, TooManyError, decode
from tests.support.states import a_batch

FEATURES, CLASSES = 6, 3
BATCH = a_batch(0, 4)
ROWS, LABELS = BATCH.features.tolist(), BATCH.labels.tolist()
EXAMPLES = {
    "application/json": plain_json.dumps({"features": ROWS, "labels": LABELS}).encode(),
    "application/x-ndjson": "\n".join(
        plain_json.dumps({"features": row, "label": label})
        for row, label in zip(ROWS, LABELS, strict=True)
    ).encode(),
    "application/octet-stream": BATCH.to_bytes(),
}
INPUTS = {
    "application/json": plain_json.dumps({"features": ROWS}).encode(),
    "application/octet-stream": save({"features": BATCH.features}),
}


def test_the_tables_have_every_format_once() -> None:
    assert LEARN.keys() == EXAMPLES.keys()
    assert PREDICT.keys() == INPUTS.keys()
    for codecs in (LEARN, PREDICT):
        assert all(codec.media_type == kind for kind, codec in codecs.items())
        assert described(codecs)["requestBody"]["content"].keys() == codecs.keys()


@pytest.mark.parametrize("kind", EXAMPLES)
def test_examples_become_the_payload_of_the_log(kind: str) -> None:
    examples = LEARN[kind].decode(EXAMPLES[kind], FEATURES, CLASSES)
    assert examples.count == len(BATCH)
    batch = decode(examples.payload)
    np.testing.assert_array_equal(batch.features, BATCH.features)
    np.testing.assert_array_equal(batch.labels, BATCH.labels)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_examples_of_another_model_are_refused(kind: str) -> None:
    with pytest.raises(InvalidBatchError, match="features"):
        LEARN[kind].decode(EXAMPLES[kind], FEATURES + 1, CLASSES)
    with pytest.raises(InvalidBatchError, match="is outside"):
        LEARN[kind].decode(EXAMPLES[kind], FEATURES, max(LABELS))


@pytest.mark.parametrize("kind", INPUTS)
def test_features_are_decoded_alike_and_checked(kind: str) -> None:
    features = PREDICT[kind].decode(INPUTS[kind], FEATURES, CLASSES)
    np.testing.assert_array_equal(features, BATCH.features)
    with pytest.raises(InvalidBatchError, match="features"):
        PREDICT[kind].decode(INPUTS[kind], FEATURES + 1, CLASSES)


def test_too_many_examples_are_refused() -> None:
    n = MAX_EXAMPLES + 1
    features, labels = np.zeros((n, 1), np.uint8), np.zeros(n, np.int64)
    with pytest.raises(TooManyError, match="send several requests"):
        LEARN["application/octet-stream"].decode(
            save({"features": features, "labels": labels}), 1, 2
        )
    with pytest.raises(TooManyError, match="send several requests"):
        PREDICT["application/octet-stream"].decode(save({"features": features}), 1, 2)
