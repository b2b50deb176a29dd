"""Questions are read as they were written, whichever way their tensors lie."""

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from service.log import questions as own
from service.log.questions import Questions, read_questions
from streams.batch import InvalidBatchError
from tests.support.questions import fields_of

TYPES = st.sampled_from([np.uint8, np.float16, np.float32, np.float64, np.int64])


def a_question(n: int, width: int, kind: type[np.generic]) -> Questions:
    features = (np.arange(n * width) % 7).reshape(n, width).astype(kind)
    labels = np.arange(n) if kind != np.float16 else np.arange(n, dtype=np.float32)
    return Questions(features, bytes(16 * n), labels, np.ones((n, 3), np.float16), 5)


@given(st.integers(1, 5), st.integers(1, 9), TYPES)
def test_questions_are_read_as_they_were_written(
    n: int, width: int, kind: type[np.generic]
) -> None:
    asked = a_question(n, width, kind)
    found = read_questions(fields_of(asked), (width, 3))
    np.testing.assert_array_equal(found.inputs, asked.inputs)
    np.testing.assert_array_equal(found.labels, asked.labels)
    np.testing.assert_array_equal(found.answers, asked.answers)
    assert (found.labels.dtype, found.version) == (asked.labels.dtype, 5)
    kept = np.float32 if kind in (np.float64, np.int64) else kind
    assert found.inputs.dtype == kept
    assert isinstance(found.inputs, np.ndarray)
    assert found.inputs.flags.writeable, "torch shares its memory"


@given(st.integers(1, 3), st.integers(1, 5), TYPES)
def test_a_file_is_read_the_fast_way_as_the_strict_one_reads_it(
    n: int, width: int, kind: type[np.generic]
) -> None:
    fields = fields_of(a_question(n, width, kind))
    fast = read_questions(fields, (width, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "_plain", lambda raw: None)
        strict = read_questions(fields, (width, 3))
    np.testing.assert_array_equal(fast.inputs, strict.inputs)
    np.testing.assert_array_equal(fast.labels, strict.labels)
    np.testing.assert_array_equal(fast.answers, strict.answers)
    assert fast.inputs.dtype == strict.inputs.dtype


def _file(header: object, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else orjson.dumps(header)
    return len(raw).to_bytes(8, "little") + raw + data


def _features(**changes: object) -> dict[str, object]:
    plain = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    return {"features": plain | changes}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"short",
        _file(b"{", bytes(8)),
        _file(b"[]", bytes(8)),
        _file({"features": 3}, bytes(8)),
        _file(_features(), bytes(7)),
        _file(_features(), bytes(9)),
        _file(_features(shape=[1, 3]), bytes(8)),
        _file(_features(shape=[0, 2], data_offsets=[0, 0]), b""),
        _file(_features(shape=[-1, -2]), bytes(8)),
        _file(_features(data_offsets=[8, 16]), bytes(16)),
        _file(_features(data_offsets=[0]), bytes(8)),
        _file(_features(dtype="F99"), bytes(8)),
        _file(_features(dtype=[1]), bytes(8)),
        _file({"other": _features()["features"]}, bytes(8)),
        _file(_features() | {"labels": _features()["features"]}, bytes(8)),
        save({"features": np.full((1, 2), np.nan, np.float32)}),
        save({"features": np.zeros((1, 3), np.float32)}),
        save({"features": np.zeros((2, 2), np.float32)}),
        save({"features": np.zeros(2, np.float32)}),
    ],
)
def test_features_that_are_no_such_file_are_refused(
    raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = fields_of(a_question(1, 2, np.float32)) | {b"batch": raw}
    monkeypatch.setattr(own, "_checksum", lambda fields: int(fields[b"crc32"]))
    with pytest.raises(InvalidBatchError):
        read_questions(fields, (2, 3))
