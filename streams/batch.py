"""A batch of labelled examples and its byte format.

The bytes are a safetensors file with the tensors ``features`` and ``labels``, and perhaps
``weights`` (https://github.com/huggingface/safetensors#format): on the wire, in the log and in
files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from streams.errors import FunnelError

Types = dict[str, np.dtype[Any]]

INTEGERS: Types = {
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U32": np.dtype("<u4"), "U16": np.dtype("<u2"),
}  # fmt: skip
FEATURE_TYPES: Types = INTEGERS | {
    "U8": np.dtype("u1"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"),
    "U64": np.dtype("<u8"),
}  # fmt: skip
LABEL_TYPES: Types = INTEGERS | {
    "U8": np.dtype("u1"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"),
}  # fmt: skip
ID_TYPES: Types = {"U8": np.dtype("u1")}
KEPT = {
    "features": {"U8", "F16", "F32"}, "labels": {"I64", "F32"}, "weights": {"F32"}, "ids": {"U8"},
}  # fmt: skip
"""Types that stay as they are; other features, weights and labels that are no integers become
float32, other integers as labels int64."""
EXACT = 1 << 24
"""Integers up to this magnitude are float32 too."""
SHAPES = {"features": "[n, d]", "labels": "[n]", "weights": "[n]"}
SHAPES_OF_ALL = SHAPES | {"ids": "[n, bytes]"}
BATCH = "batch"
"""Field of a log entry that holds the bytes."""
HEADER_BYTES = 64 << 10
"""Longest header; one of 32 MB would take seconds and 1 GB to read."""
MAX_DIMENSION = 1 << 31
"""Largest dimension of a tensor. A tensor without elements may claim any; numpy takes fewer."""

MAX_WEIGHT = 1e6
"""Largest weight of an example; losses times it stay finite in float32."""

Features = npt.NDArray[Any]
Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32]
Weights = npt.NDArray[np.float32]


DEFAULT_MODEL, FORMER_MODEL = "auto", "logistic"
"""The model of a service whose settings name none, now and in Funnel 0.1: there, the latter goes on
where its log is."""


def log_key(model: str) -> str:
    """Return the key of a model's log in Redis."""
    return f"funnel:{{{model}}}:log"


class InvalidBatchError(FunnelError, ValueError):
    """A batch that cannot be learned or predicted.

    Attributes:
        field: the part at fault, such as ``features`` or ``labels``, or None for the whole.
        index: the first example at fault, or None.
    """

    def __init__(self, message: str, field: str | None = None, index: int | None = None) -> None:
        super().__init__(message)
        self.field, self.index = field, index


class TooManyError(InvalidBatchError):
    """More examples than one document may hold."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Labelled examples."""

    features: Features
    """[n, d]; uint8 0…255 stands for [0, 1]; float16 and float32 stand for themselves."""
    labels: Labels
    """[n]: classes, int64, from 0; or numbers to predict, float32 or int64."""
    weights: Weights | None = None
    """How much each example counts when it is learned, float32 [n], in 0…MAX_WEIGHT; None for 1."""

    def __len__(self) -> int:
        """Return the number of examples, n."""
        return len(self.labels)

    def part(self, start: int, stop: int) -> "Batch":
        """Return the examples from ``start`` up to ``stop``, without a copy."""
        weights = None if self.weights is None else self.weights[start:stop]
        return Batch(self.features[start:stop], self.labels[start:stop], weights)

    def to_bytes(self) -> bytes:
        """Return the safetensors file."""
        found = {name: getattr(self, name) for name in SHAPES}
        return save({k: np.ascontiguousarray(v) for k, v in found.items() if v is not None})


def decode(raw: bytes, expects_bytes: bool = False) -> Batch:
    """Return the batch in a safetensors file; its values are not checked (`check` does that).

    Features of float64 and of integers other than uint8 become float32, as weights do. Labels
    become int64, or float32 if they are no integers.

    Args:
        raw: the bytes.
        expects_bytes: whether the model has learned uint8 features alone, so that other integers
            are refused (see `refuse_integers`).

    Raises:
        InvalidBatchError: the bytes are not such a file, or have other tensors, dtypes or numbers
            of dimensions, no elements, or a dimension above MAX_DIMENSION; or a feature is a finite
            number beyond float32, or an integer that float32 cannot hold; or a label is a finite
            number beyond float32.
    """
    expected = {"features": FEATURE_TYPES, "labels": LABEL_TYPES}
    tensors = _tensors(raw, expected, {"weights": FEATURE_TYPES}, expects_bytes)
    return Batch(tensors["features"], tensors["labels"], tensors.get("weights"))


def decode_features(raw: bytes, expects_bytes: bool = False) -> Features:
    """Return the features in a safetensors file with the one tensor ``features``.

    Arguments as for `decode`.

    Raises:
        InvalidBatchError: as for `decode`.
    """
    return _tensors(raw, {"features": FEATURE_TYPES}, expects_bytes=expects_bytes)["features"]


def decode_questions(raw: bytes, expects_bytes: bool = False) -> tuple[Features, object]:
    """Return the features in a safetensors file, and their ids; None without these.

    Ids are the tensor ``ids``, uint8 [n, w]: texts in UTF-8, each filled up with zeros. Arguments
    as for `decode`.

    Raises:
        InvalidBatchError: as for `decode`, or an id is no UTF-8.
    """
    tensors = _tensors(raw, {"features": FEATURE_TYPES}, {"ids": ID_TYPES}, expects_bytes)
    if "ids" not in tensors:
        return tensors["features"], None
    ids: list[str] = []
    for row in tensors["ids"]:
        try:
            ids.append(row.tobytes().rstrip(b"\0").decode())
        except UnicodeDecodeError as error:
            raise InvalidBatchError(f"an id is no UTF-8: {error}", "ids", len(ids)) from error
    return tensors["features"], ids


def questions_to_bytes(features: Features, ids: Sequence[str]) -> bytes:
    """Return the safetensors file that `decode_questions` reads.

    >>> decode_questions(questions_to_bytes(np.zeros((2, 3), np.float32), ["a", "order-7"]))[1]
    ['a', 'order-7']

    Args:
        features: [n, d].
        ids: texts without a zero at their end, [n].
    """
    texts = np.array([own.encode() for own in ids])
    filled_up = texts.view(np.uint8).reshape(len(texts), -1)
    return save({"features": np.ascontiguousarray(features), "ids": filled_up})


def refuse_integers(features: Features) -> None:
    """Refuse whole numbers for a model that has learned uint8 features alone.

    Bytes stand for [0, 1]. The same bytes as numbers would count 255 times as much.

    Args:
        features: of any shape.

    Raises:
        InvalidBatchError: all of them are whole, and one is above 1.
    """
    if not features.size or features.max() <= 1:
        return
    is_whole = (features[:1] == np.rint(features[:1])).all()  # most others differ in the first row
    if is_whole and (features == np.rint(features)).all():
        index = int(np.argwhere(features > 1)[0, 0])
        raise InvalidBatchError(
            "these features are whole numbers above 1, and this service has learned uint8 features "
            "alone, which stand for [0, 1]: such numbers would count 255 times as much. Divide "
            "them by 255, or send uint8 as safetensors",
            "features",
            index,
        )


def check(batch: Batch, width: int, classes: int) -> None:
    """Check that every example can be learned.

    Args:
        batch: the examples.
        width: of their features.
        classes: number of classes; 0 where labels are numbers.

    Raises:
        InvalidBatchError: features are not [n, width] and finite, labels not [n] integers in
            [0, classes), or finite numbers, weights not [n] in [0, MAX_WEIGHT], or n is 0.
    """
    check_features(batch.features, width)
    labels = batch.labels
    if labels.shape != (len(batch.features),):
        raise InvalidBatchError(
            f"labels have shape {list(labels.shape)}, expected [{len(batch.features)}], "
            "one label an example",
            "labels",
        )
    if labels.dtype.kind == "f":
        if classes:
            raise InvalidBatchError(
                f"labels are {labels.dtype}, and this model predicts classes: send integers from 0 "
                f"to {classes - 1}, or start a service with FUNNEL_TASK=regression to predict "
                "numbers",
                "labels",
            )
        is_finite = np.isfinite(labels)
        if not is_finite.all():
            index = int(is_finite.argmin())
            raise InvalidBatchError(f"label {labels[index]} is not finite", "labels", index)
    outside = (labels < 0) | (labels >= classes)
    if classes and outside.any():
        index = int(outside.argmax())
        raise InvalidBatchError(
            f"label {labels[index]} is outside 0…{classes - 1}", "labels", index
        )
    if batch.weights is not None:
        check_weights(batch.weights, len(labels))


def check_weights(weights: npt.NDArray[np.floating[Any]], examples: int) -> None:
    """Check weights.

    Args:
        weights: of any shape.
        examples: how many examples there are.

    Raises:
        InvalidBatchError: they are not [examples], or one is outside 0…MAX_WEIGHT.
    """
    if weights.shape != (examples,):
        raise InvalidBatchError(
            f"weights have shape {list(weights.shape)}, expected [{examples}], one an example",
            "weights",
        )
    is_fine = (weights >= 0) & (weights <= MAX_WEIGHT)
    if not is_fine.all():
        index = int(is_fine.argmin())
        raise InvalidBatchError(
            f"weight {weights[index]:g} is outside 0…{MAX_WEIGHT:,.0f}", "weights", index
        )


def check_features(features: Features, width: int) -> None:
    """Check that every example can be predicted.

    Raises:
        InvalidBatchError: features are not [n, width] and finite, or n is 0.
    """
    if not len(features):
        raise InvalidBatchError("the batch has no examples", "features")
    if features.ndim != 2 or features.shape[1] != width:
        raise InvalidBatchError(
            f"features have shape {list(features.shape)}, expected [n, {width}] (FUNNEL_FEATURES)",
            "features",
        )
    if features.dtype != np.uint8:
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise InvalidBatchError(
                "features must be finite; this example has a NaN or an infinity",
                "features",
                int(finite.argmin()),
            )


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Join batches of the same width; those of different dtypes become float32 (uint8 / 255)."""
    if len(batches) == 1:
        return batches[0]
    return Batch(
        join_features([b.features for b in batches]),
        np.concatenate([b.labels for b in batches]),
        join_weights([(b.weights, len(b)) for b in batches]),
    )


def join_weights(parts: Sequence[tuple[Weights | None, int]]) -> Weights | None:
    """Join weights of parts, or return None if no part has any.

    Args:
        parts: the weights of each, and its number of examples.
    """
    if all(weights is None for weights, _ in parts):
        return None
    return np.concatenate([np.ones(n, np.float32) if w is None else w for w, n in parts])


def join_features(parts: Sequence[Features]) -> Features:
    """Join features of the same width; those of different dtypes become float32 (uint8 / 255)."""
    if len({part.dtype for part in parts}) > 1:
        parts = [
            part.astype(np.float32) / np.float32(255) if part.dtype == np.uint8 else part
            for part in parts
        ]
        return np.concatenate(parts, dtype=np.float32)
    return np.concatenate(parts)


def _singles(features: Features) -> Features:
    """Return features as float32.

    Raises:
        InvalidBatchError: a finite number is beyond float32, or an integer is not exact in it.
    """
    if features.dtype == np.float64:
        with np.errstate(over="ignore"):
            singles = features.astype(np.float32)
        is_lost = np.isinf(singles) & np.isfinite(features)
        fault = "is too large for float32"
    else:
        singles = features.astype(np.float32)
        is_lost = (features > EXACT) | (features < -EXACT)
        fault = f"is an integer beyond ±{EXACT}, which float32 does not hold exactly"
    if is_lost.any():
        index, column = np.unravel_index(int(is_lost.argmax()), is_lost.shape)
        raise InvalidBatchError(
            f"feature {column} of this example, {features[index, column]}, {fault}; rescale it",
            "features",
            int(index),
        )
    return singles


def _plain_labels(labels: npt.NDArray[Any]) -> Labels:
    """Return labels as int64, or as float32 if they are no integers.

    Raises:
        InvalidBatchError: a finite number is beyond float32.
    """
    if labels.dtype.kind != "f":
        return labels.astype(np.int64)
    with np.errstate(over="ignore"):
        singles = labels.astype(np.float32)
    is_lost = np.isinf(singles) & np.isfinite(labels)
    if is_lost.any():
        index = int(is_lost.argmax())
        raise InvalidBatchError(
            f"label {labels[index]} is too large for float32; rescale it", "labels", index
        )
    return singles


def _single_weights(weights: npt.NDArray[Any]) -> Weights:
    """Return weights as float32; one that is too large becomes infinite, which is refused."""
    with np.errstate(over="ignore"):
        return weights.astype(np.float32)


CONVERSIONS: dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    "features": _singles,
    "labels": _plain_labels,
    "weights": _single_weights,
}
"""From the other types to those that are kept."""


def _tensors(
    raw: bytes,
    expected: dict[str, Types],
    optional: dict[str, Types] | None = None,
    expects_bytes: bool = False,
) -> dict[str, npt.NDArray[Any]]:
    if (length := int.from_bytes(raw[:8], "little")) > HEADER_BYTES:
        raise InvalidBatchError(
            f"not a safetensors file of a batch: its header has {length} bytes, at most "
            f"{HEADER_BYTES}"
        )
    try:
        found = dict(deserialize(raw))
    except (SafetensorError, ValueError, OverflowError) as error:
        raise InvalidBatchError(f"not a safetensors file: {error}") from error
    expected = expected | {k: types for k, types in (optional or {}).items() if k in found}
    if found.keys() != expected.keys():
        message = f"expected the tensors {sorted(expected)}, got {sorted(found)[:8]}"
        raise InvalidBatchError(message, min(expected.keys() - found.keys(), default=None))
    tensors = {}
    for name, types in expected.items():
        tensor = found[name]
        kind, shape = tensor["dtype"], tensor["shape"]
        if kind not in types:
            raise InvalidBatchError(
                f"{name} have dtype {kind}, expected one of {', '.join(types)}", name
            )
        if len(shape) != len((expected_shape := SHAPES_OF_ALL[name]).split()):
            message = f"{name} have shape {shape[:8]}, expected {expected_shape}"
            raise InvalidBatchError(message, name)
        if max(shape) > MAX_DIMENSION:
            raise InvalidBatchError(
                f"{name} have shape {shape}, and no dimension may exceed {MAX_DIMENSION}",
                name,
            )
        if 0 in shape:
            raise InvalidBatchError(f"the batch has no examples: {name} have shape {shape}", name)
        array = np.frombuffer(tensor["data"], types[kind]).reshape(shape)
        if expects_bytes and name == "features" and array.dtype.kind in "iu" and kind != "U8":
            refuse_integers(array)
        if kind not in KEPT[name]:
            array = CONVERSIONS[name](array)
        tensors[name] = array
    return tensors
