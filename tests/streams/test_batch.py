"""The byte format of a batch, and what is refused."""

import contextlib
import json
import math
import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from streams.batch import (
    EXACT,
    FEATURE_TYPES,
    HEADER_BYTES,
    LABEL_TYPES,
    Batch,
    InvalidBatchError,
    check,
    check_features,
    concatenate,
    decode,
    decode_features,
)


def a_batch(n: int = 3, d: int = 4, dtype: Any = np.float32) -> Batch:
    rng = np.random.default_rng(n)
    return Batch(rng.integers(0, 200, (n, d)).astype(dtype), rng.integers(0, 5, n))


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_a_batch_survives_its_bytes(dtype: Any) -> None:
    batch = a_batch(dtype=dtype)
    again = decode(batch.to_bytes())
    assert again.features.dtype == dtype
    np.testing.assert_array_equal(again.features, batch.features)
    np.testing.assert_array_equal(again.labels, batch.labels)
    np.testing.assert_array_equal(
        decode_features(save({"features": batch.features})), batch.features
    )


def test_weights_survive_the_bytes_the_parts_and_the_join() -> None:
    one, plain = replace(a_batch(), weights=np.array([0, 0.5, 1e6], np.float32)), a_batch(2)
    again = decode(one.to_bytes())
    np.testing.assert_array_equal(again.weights, one.weights)
    np.testing.assert_array_equal(again.part(1, 3).weights, [0.5, 1e6])
    np.testing.assert_array_equal(concatenate([one, plain]).weights, [0, 0.5, 1e6, 1, 1])
    assert concatenate([plain, plain]).weights is None
    assert decode(plain.to_bytes()).weights is None


@pytest.mark.parametrize("kind", ["f8", "f2", "i8", "u1"])
def test_weights_of_other_types_become_float32(kind: str) -> None:
    batch = a_batch()
    raw = save({"weights": np.array([0, 1, 2], kind), **vars_of(batch)})
    found = decode(raw).weights
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [0, 1, 2])


@pytest.mark.parametrize(
    ("weights", "index"),
    [
        ([1, -1, 1], 1),
        ([1, 1, math.nan], 2),
        ([math.inf, 1, 1], 0),
        ([1e300, 1, 1], 0),
        ([1], None),
    ],
)
def test_a_weight_that_cannot_be_learned_is_named(weights: list[float], index: int | None) -> None:
    batch = decode(save({"weights": np.array(weights), **vars_of(a_batch())}))
    with pytest.raises(InvalidBatchError) as caught:
        check(batch, 4, 5)
    assert (caught.value.field, caught.value.index) == ("weights", index)


def vars_of(batch: Batch) -> dict[str, Any]:
    return {"features": batch.features, "labels": batch.labels}


OTHERS = ["f8", "i8", "i4", "i2", "i1", "u8", "u4", "u2"]


@pytest.mark.parametrize("kind", OTHERS)
def test_features_of_other_types_become_float32(kind: str) -> None:
    numbers = np.array([[0, 1, 100], [127, 3, 5]]).astype(kind)
    raw = save({"features": numbers, "labels": np.array([0, 1])})
    for found in (decode(raw).features, decode_features(save({"features": numbers}))):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, numbers)


@pytest.mark.parametrize("kind", ["i4", "i2", "i1", "u1", "u2", "u4"])
def test_labels_of_other_integers_become_int64(kind: str) -> None:
    labels = np.array([0, 3, 100]).astype(kind)
    found = decode(save({"features": np.zeros((3, 2), np.float32), "labels": labels})).labels
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (np.array(1e39), r"feature 2 of this example, 1e\+39, is too large for float32"),
        (np.array(-1e300), "is too large for float32"),
        (np.array(EXACT + 1), "feature 2 of this example, 16777217, is an integer beyond"),
        (np.array(-EXACT - 1, np.int32), "-16777217, is an integer beyond"),
        (np.array(2**64 - 1, np.uint64), "18446744073709551615, is an integer beyond"),
        (np.array(2**32 - 1, np.uint32), "4294967295, is an integer beyond"),
    ],
)
def test_a_number_that_float32_loses_is_refused_by_name(
    number: "np.ndarray[tuple[()], np.dtype[Any]]", message: str
) -> None:
    features = np.zeros((3, 4), number.dtype)
    features[1, 2] = number
    with pytest.raises(InvalidBatchError, match=message) as caught:
        decode_features(save({"features": features}))
    assert (caught.value.field, caught.value.index) == ("features", 1)


def test_doubles_that_are_not_finite_are_left_to_the_check_of_values() -> None:
    features = decode_features(save({"features": np.array([[1.0], [np.nan], [np.inf]])}))
    with pytest.raises(InvalidBatchError, match="finite") as caught:
        check_features(features, 1)
    assert caught.value.index == 1


@given(st.integers(-EXACT, EXACT))
def test_every_integer_within_the_bound_is_exact(number: int) -> None:
    assert decode_features(save({"features": np.array([[number]])}))[0, 0] == number


def test_a_file_cut_short_anywhere_is_refused() -> None:
    raw = a_batch().to_bytes()
    for length in range(len(raw)):
        with pytest.raises(InvalidBatchError):
            decode(raw[:length])


TENSOR = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
LABELS = {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]}
LYING: dict[str, bytes] = {
    "empty": b"",
    "header longer than the file": struct.pack("<Q", 1 << 62),
    "header that is no JSON": with_header(b"{nothing"),
    "header that is a list": with_header([]),
    "shape larger than the data": with_header(
        {"features": TENSOR | {"shape": [1 << 40, 2]}, "labels": LABELS}, bytes(16)
    ),
    "shape that overflows": with_header(
        {"features": TENSOR | {"shape": [1 << 63, 1 << 63]}, "labels": LABELS}, bytes(16)
    ),
    "negative shape": with_header(
        {"features": TENSOR | {"shape": [-1, -2]}, "labels": LABELS}, bytes(16)
    ),
    "offsets past the end": with_header(
        {"features": TENSOR, "labels": LABELS | {"data_offsets": [8, 1 << 50]}}, bytes(16)
    ),
    "offsets that overlap": with_header(
        {"features": TENSOR, "labels": LABELS | {"data_offsets": [0, 8]}}, bytes(16)
    ),
    "unknown dtype": with_header(
        {"features": TENSOR | {"dtype": "F31"}, "labels": LABELS}, bytes(16)
    ),
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os",
}


def test_a_header_is_read_up_to_its_limit_and_no_further() -> None:
    fine = {"features": TENSOR, "labels": LABELS, "__metadata__": {"note": ""}}
    fine["__metadata__"] = {"note": "x" * (HEADER_BYTES - len(json.dumps(fine)))}
    assert len(decode(with_header(fine, bytes(16)))) == 1
    nothing = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    for header in ({str(k): nothing for k in range(2_000)}, fine | {"x": nothing}):
        with pytest.raises(InvalidBatchError, match="its header has"):
            decode(with_header(header, bytes(16)))


@pytest.mark.parametrize("raw", LYING.values(), ids=LYING)
def test_a_lying_file_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidBatchError):
        decode(raw)


@given(st.binary(max_size=200))
def test_no_bytes_get_past_the_decoder_but_a_batch(raw: bytes) -> None:
    with pytest.raises(InvalidBatchError):
        decode(raw)


def comes_back_or_is_refused(raw: bytes) -> None:
    """Decode: memory as there are bytes, and what is accepted can be written again."""
    tracemalloc.start()
    try:
        batch = decode(raw)
    except InvalidBatchError:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12 * len(raw) + 100_000
    assert batch.features.nbytes + batch.labels.nbytes <= 8 * len(raw)
    again = decode(batch.to_bytes())
    for was, became in ((batch.features, again.features), (batch.labels, again.labels)):
        assert became.dtype == was.dtype
        assert became.tobytes() == was.tobytes()
        assert became.shape == was.shape
    assert len(again) == len(batch)
    with contextlib.suppress(InvalidBatchError):
        check(batch, 4, 5)


DTYPES = [np.uint8, np.float16, np.float32]
TOKENS = [b"F32", b"F16", b"U8", b"I64", b"BOOL", b"F64", b"0", b"-1", b"9" * 20, b"[]", b"{}"]
TOKENS += [b"null", b'"labels"', b'"features"', b'"__metadata__":{},', b"\xff", b"\x00" * 8]


@given(st.sampled_from(DTYPES), st.data())
def test_mutated_bytes_give_a_batch_or_a_refusal(dtype: Any, data: st.DataObject) -> None:
    raw = a_batch(dtype=dtype).to_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        piece = data.draw(st.sampled_from(TOKENS) | st.binary(max_size=9))
        start = data.draw(st.integers(0, len(raw)))
        stop = start + data.draw(st.just(len(piece)) | st.integers(0, 12))
        raw = raw[:start] + piece + raw[stop:]
    comes_back_or_is_refused(raw)


sizes = st.integers(0, 4) | st.sampled_from([-1, 8, 24, 32, 1 << 31, 1 << 62, (1 << 64) - 1])
tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F16", "F32", "I64", "F64", "BF16", "BOOL", "F4", "x"]),
        "shape": st.lists(sizes, max_size=3),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2),
    }
)
headers = st.fixed_dictionaries(
    {"features": tensors, "labels": tensors},
    optional={
        "weights": tensors,
        "more": tensors,
        "__metadata__": st.dictionaries(st.text(), st.text() | sizes),
    },
)


@given(headers, st.binary(max_size=64), st.integers(-9, 9) | sizes)
def test_a_header_that_says_anything_gives_a_batch_or_a_refusal(
    header: dict[str, Any], data: bytes, lie: int
) -> None:
    raw = with_header(header, data)
    length = struct.pack("<Q", (struct.unpack("<Q", raw[:8])[0] + lie) % (1 << 64))
    comes_back_or_is_refused(raw)
    comes_back_or_is_refused(length + raw[8:])


@st.composite
def consistent_files(draw: st.DrawFn) -> bytes:
    """Valid safetensors files, of shapes and dtypes that need not be those of a batch."""
    size = {"BOOL": 1} | {name: kind.itemsize for name, kind in FEATURE_TYPES.items()}
    right = {"features": (sorted(FEATURE_TYPES), 2), "labels": (sorted(LABEL_TYPES), 1)}
    header, end = {}, 0
    for name in draw(st.permutations(["features", "labels"])):
        dtypes, dimensions = right[name]
        dtype = draw(st.sampled_from(dtypes) | st.sampled_from(sorted(size)))
        length = draw(st.just(dimensions) | st.integers(0, 3))
        shape = draw(st.lists(st.integers(0, 4), min_size=length, max_size=length))
        start, end = end, end + size[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return with_header(header, draw(st.binary(min_size=end, max_size=end)))


@given(consistent_files())
def test_a_consistent_file_of_any_shape_gives_a_batch_or_a_refusal(raw: bytes) -> None:
    comes_back_or_is_refused(raw)


def wrong_tensors() -> dict[str, tuple[dict[str, Any], str | None]]:
    good = {"features": np.zeros((2, 4), np.float32), "labels": np.zeros(2, np.int64)}
    return {
        "boolean features": (good | {"features": np.zeros((2, 4), bool)}, "features"),
        "uint64 labels": (good | {"labels": np.zeros(2, np.uint64)}, "labels"),
        "boolean labels": (good | {"labels": np.zeros(2, bool)}, "labels"),
        "no labels": ({"features": good["features"]}, "labels"),
        "features that are one number": (good | {"features": np.array(1, np.float32)}, "features"),
        "labels that are one number": (good | {"labels": np.array(1)}, "labels"),
        "labels in a column": (good | {"labels": np.zeros((2, 1), np.int64)}, "labels"),
        "another tensor": (good | {"others": np.zeros(1)}, None),
    }


@pytest.mark.parametrize("name", wrong_tensors())
def test_tensors_of_other_names_or_types_are_refused(name: str) -> None:
    tensors, field = wrong_tensors()[name]
    with pytest.raises(InvalidBatchError) as caught:
        decode(save(tensors))
    assert caught.value.field == field


def test_an_example_that_cannot_be_learned_is_named_with_its_index() -> None:
    fine = np.zeros((3, 4), np.float32)
    bad = fine.copy()
    bad[1, 2] = np.nan
    worse = fine.copy()
    worse[2, 0] = -np.inf
    labels = np.zeros(3, np.int64)
    cases: list[tuple[Batch, str, int | None]] = [
        (Batch(bad, labels), "features", 1),
        (Batch(worse, labels), "features", 2),
        (Batch(fine[:, :3], labels), "features", None),
        (Batch(fine[0], labels), "features", None),
        (Batch(fine[:0], labels[:0]), "features", None),
        (Batch(fine, labels[:2]), "labels", None),
        (Batch(fine, np.zeros((3, 1), np.int64)), "labels", None),
        (Batch(fine, np.array([0, 1, 5])), "labels", 2),
        (Batch(fine, np.array([0, -1, 5])), "labels", 1),
    ]
    for batch, field, index in cases:
        with pytest.raises(InvalidBatchError) as caught:
            check(batch, 4, 5)
        assert (caught.value.field, caught.value.index) == (field, index)
    check(Batch(fine, labels), 4, 5)


def test_uint8_and_float_join_as_the_numbers_they_stand_for() -> None:
    joined = concatenate([a_batch(2, 4, np.uint8), a_batch(3, 4, np.float16)])
    assert joined.features.dtype == np.float32
    np.testing.assert_array_equal(
        joined.features[:2], a_batch(2, 4, np.uint8).features.astype(np.float32) / np.float32(255)
    )
    np.testing.assert_array_equal(joined.features[2:], a_batch(3, 4, np.float16).features)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
def test_parts_join_to_the_whole(sizes: list[int], data: st.DataObject) -> None:
    whole = a_batch(sum(sizes), 2, np.uint8)
    ends = np.cumsum(sizes)
    joined = concatenate([whole.part(e - n, e) for e, n in zip(ends, sizes, strict=True)])
    np.testing.assert_array_equal(joined.features, whole.features)
    np.testing.assert_array_equal(joined.labels, whole.labels)


def test_features_without_labels_are_checked_alike() -> None:
    with pytest.raises(InvalidBatchError, match="finite"):
        check_features(np.full((1, 4), np.nan, np.float32), 4)
    with pytest.raises(InvalidBatchError, match="expected the tensors"):
        decode_features(a_batch().to_bytes())


def test_labels_that_are_floats_are_numbers_to_predict_and_no_classes() -> None:
    features, labels = np.zeros((2, 4), np.float32), np.array([0.5, 2.0])
    batch = decode(save({"features": features, "labels": labels}))
    assert (batch.labels.dtype, batch.labels.tolist()) == (np.float32, [0.5, 2.0])
    with pytest.raises(InvalidBatchError, match="FUNNEL_TASK=regression") as refused:
        check(batch, 4, 3)
    assert refused.value.field == "labels"
