"""Dense features: an array of numbers, sent as safetensors, or as JSON where there are ids."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from streams.batch import Batch
from streams.client.encoding import JSON, to_json
from streams.client.errors import InvalidExamples
from streams.client.examples import Body, Examples, fitting
from streams.client.values import Values, counted, list_of

SAFETENSORS = "application/octet-stream"
JSON_BYTES = 12
"""About the bytes of a number in JSON."""


@dataclass(frozen=True, eq=False)
class Dense:
    """Features, [n, d]."""

    features: npt.NDArray[Any]
    """uint8 0…255 stands for [0, 1]; other integers and floats stand for themselves."""
    labels: npt.NDArray[Any] | None = None
    """[n]: classes from 0, int64, or numbers to predict."""
    weights: npt.NDArray[Any] | None = None
    """[n]: how much each example counts; None for 1."""
    ids: list[object] | None = None

    @classmethod
    def of(cls, values: npt.ArrayLike) -> "Dense":
        """Return the examples in an array of numbers, [n, d], or of one example, [d].

        Raises:
            InvalidExamples: it holds other things than numbers, or has other dimensions.
        """
        found = _numbers(_array(values, "features"), "features")
        if found.ndim == 1:
            found = found[None]
        if found.ndim != 2:
            message = f"features have shape {list(found.shape)}, expected [n, d]"
            raise InvalidExamples(message, field="features")
        return cls(found)

    def __len__(self) -> int:
        """Return the number of examples, n."""
        return len(self.features)

    @property
    def most(self) -> int:
        """How many of them make about `streams.client.examples.REQUEST_BYTES`."""
        width = self.features.shape[1]
        return fitting(width * (self.features.itemsize if self.ids is None else JSON_BYTES))

    def labelled(self, labels: Values, weights: Values | None) -> Examples:
        """Return the same examples with their labels, as `Examples` demands."""
        found = replace(self, labels=self._numbers(labels, "labels"))
        if weights is None:
            return found
        return replace(found, weights=self._numbers(weights, "weights"))

    def identified(self, ids: Values) -> tuple[Examples, list[object]]:
        """Return the same examples with their ids, as `Examples` demands."""
        found = list_of(ids, len(self), "ids")
        return replace(self, ids=found), found

    def body(self, start: int, stop: int) -> Body:
        """Return the body of a request, as `Examples` demands."""
        features = self.features[start:stop]
        if self.labels is not None:
            weights = None if self.weights is None else self.weights[start:stop]
            batch = Batch(features, self.labels[start:stop], weights)
            return Body(batch.to_bytes(), SAFETENSORS)
        if self.ids is None:
            return Body(save({"features": np.ascontiguousarray(features)}), SAFETENSORS)
        if features.dtype == np.uint8:  # numbers of JSON stand for themselves
            features = features.astype(np.float32) / np.float32(255)
        content = {"features": features.tolist(), "ids": self.ids[start:stop]}
        return Body(to_json(content, "ids"), JSON)

    def _numbers(self, values: Values, use: str) -> npt.NDArray[Any]:
        if isinstance(values, np.ndarray):
            return _numbers(counted(values, len(self), use), use)
        return _numbers(_array(list_of(values, len(self), use), use), use)


def _array(values: npt.ArrayLike | list[object], use: str) -> npt.NDArray[Any]:
    """Return an array.

    Raises:
        InvalidExamples: the values have no common shape.
    """
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InvalidExamples(str(error), field=use) from error


def _numbers(array: npt.NDArray[Any], use: str) -> npt.NDArray[Any]:
    """Return numbers in a type that safetensors holds, and in this machine's order of bytes.

    Raises:
        InvalidExamples: they are no numbers.
    """
    kind = array.dtype.kind
    if kind not in "biuf":
        hint = ""
        if use == "labels":
            hint = " of classes from 0, or numbers to predict: words need rows with named columns"
        raise InvalidExamples(f"{use} of dense features must be numbers{hint}", field=use)
    if kind == "b" or array.dtype == np.longdouble:
        return array.astype(np.int64 if use == "labels" and kind == "b" else np.float64)
    if use == "labels" and kind in "iu":
        return array.astype(np.int64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
