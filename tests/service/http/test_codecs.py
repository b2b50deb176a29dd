"""Every format of bodies yields the same checked examples."""

import json as plain_json
from collections.abc import Sequence

import numpy as np
import pytest
from safetensors.numpy import save

from service.http.codecs.codec import MAX_EXAMPLES
from service.http.codecs.rows import PREDICT_ROWS
from service.http.codecs.table import LEARN, PREDICT, described
from service.log.labels import MAX_ID, hash_of
from streams.batch import InvalidBatchError, TooManyError, decode
from tests.support.states import a_batch


def filled_up(ids: Sequence[str | bytes]) -> np.ndarray:
    """Return ids as safetensors hold them: UTF-8 filled up with zeros, uint8 [n, w]."""
    texts = [own if isinstance(own, bytes) else own.encode() for own in ids]
    return np.array(texts).view(np.uint8).reshape(len(texts), -1)


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
    "application/x-ndjson": "\n".join(plain_json.dumps({"features": row}) for row in ROWS).encode(),
    "application/octet-stream": save({"features": BATCH.features}),
}
IDS = ["a", "order-17", "ü", "7"]
QUESTIONS = {
    "application/json": plain_json.dumps({"features": ROWS, "ids": IDS}).encode(),
    "application/x-ndjson": "\n".join(
        plain_json.dumps({"features": row, "id": own}) for row, own in zip(ROWS, IDS, strict=True)
    ).encode(),
    "application/octet-stream": save({"features": BATCH.features, "ids": filled_up(IDS)}),
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
    np.testing.assert_array_equal(features.inputs, BATCH.features)
    with pytest.raises(InvalidBatchError, match="features"):
        PREDICT[kind].decode(INPUTS[kind], FEATURES + 1, CLASSES)


@pytest.mark.parametrize("kind", QUESTIONS)
def test_ids_are_the_same_in_every_format(kind: str) -> None:
    asked = PREDICT[kind].decode(QUESTIONS[kind], FEATURES, CLASSES)
    np.testing.assert_array_equal(asked.inputs, BATCH.features)
    assert asked.hashes == b"".join(map(hash_of, IDS))
    assert PREDICT[kind].decode(INPUTS[kind], FEATURES, CLASSES).hashes == b""


def test_questions_that_travel_between_processes_keep_their_ids() -> None:
    for kind in ("application/json", "application/x-ndjson"):
        codec = PREDICT[kind]
        asked = codec.decode(QUESTIONS[kind], FEATURES, CLASSES)
        assert codec.wire is not None
        count, packed = codec.wire.pack(asked, b"")
        again = codec.wire.unpack(count, bytearray(packed))
        np.testing.assert_array_equal(again.inputs, asked.inputs)
        assert again.hashes == asked.hashes


@pytest.mark.parametrize(
    ("ids", "index"),
    [
        (filled_up(["a", "b", "", "d"]), 2),
        (filled_up(["a", "b", b"\xff", "d"]), 2),
        (filled_up(["a", "b", "a", "d"]), 2),
        (filled_up(["a", "b", "c" * (MAX_ID + 1), "d"]), 2),
        (filled_up(["a", "b"]), None),
        (np.arange(4), None),
        (np.zeros(4, np.uint8), None),
    ],
)
def test_bad_ids_in_safetensors_are_refused(ids: np.ndarray, index: int | None) -> None:
    body = save({"features": BATCH.features, "ids": ids})
    with pytest.raises(InvalidBatchError) as found:
        PREDICT["application/octet-stream"].decode(body, FEATURES, CLASSES)
    assert (found.value.field, found.value.index) == ("ids", index)


def test_ids_are_in_all_lines_or_in_none() -> None:
    lines = QUESTIONS["application/x-ndjson"].splitlines()
    lines[2] = INPUTS["application/x-ndjson"].splitlines()[2]
    with pytest.raises(InvalidBatchError, match="has no id") as found:
        PREDICT["application/x-ndjson"].decode(b"\n".join(lines), FEATURES, CLASSES)
    assert found.value.index == 2
    rows = b'{"row": {"a": 1}}\n{"row": {"a": 2}, "id": "b"}\n'
    with pytest.raises(InvalidBatchError, match="has no id") as found:
        PREDICT_ROWS["application/x-ndjson"].decode(rows, 0, 0)
    assert found.value.index == 0


def test_lines_of_rows_have_ids() -> None:
    lines = b'{"row": {"a": 1}, "id": "x"}\n\n{"id": 7, "row": {"a": 12345678901234567890}}\n'
    asked = PREDICT_ROWS["application/x-ndjson"].decode(lines, 0, 0)
    assert asked.hashes == hash_of("x") + hash_of("7")
    twice = b'{"row": {"a": 1}, "id": "x", "id": "y"}\n'
    with pytest.raises(InvalidBatchError, match="occurs twice"):
        PREDICT_ROWS["application/x-ndjson"].decode(twice, 0, 0)


def test_too_many_examples_are_refused() -> None:
    n = MAX_EXAMPLES + 1
    features, labels = np.zeros((n, 1), np.uint8), np.zeros(n, np.int64)
    with pytest.raises(TooManyError, match="send several requests"):
        LEARN["application/octet-stream"].decode(
            save({"features": features, "labels": labels}), 1, 2
        )
    with pytest.raises(TooManyError, match="send several requests"):
        PREDICT["application/octet-stream"].decode(save({"features": features}), 1, 2)
