"""Features as a model takes them: brought to the device, and scaled.

Bytes travel as bytes, and copies to a GPU overlap the step before.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from funnel.families.interface import Given, Scaling
from service.fold.schema.encode import Encoded
from service.fold.standardizer import Standardizer
from streams.batch import Batch, Features
from streams.examples import AnyBatch

MAX_INPUT = 1e18
"""Inputs are clamped to ±MAX_INPUT, so that their squares stay finite in fp32."""


CODE_BITS = 24
"""Bits of a key that fp32 holds."""


class Upload:
    """Copies batches to one device; on a GPU from pinned memory, on a stream of its own.

    Args:
        device: where batches go.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return inputs, fp32 [n, d] with uint8 scaled to [0, 1], labels, [n], and weights, fp32
        [n], or None."""
        arrays = (batch.features, batch.labels, batch.weights)
        held = [torch.from_numpy(array) for array in arrays if array is not None]
        if self._stream is None:
            features, labels, *weights = (tensor.to(self.device) for tensor in held)
            return scaled(features), labels, weights[0] if weights else None
        with torch.cuda.stream(self._stream):
            copies = [tensor.pin_memory().to(self.device, non_blocking=True) for tensor in held]
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(current)
        features, labels, *weights = copies
        return scaled(features), labels, weights[0] if weights else None


def labelled(encoded: Encoded) -> Encoded:
    """Return the rows whose label the schema knows."""
    if encoded.is_whole:
        return encoded
    is_number = encoded.labels.dtype.kind == "f"
    known = np.isfinite(encoded.labels) if is_number else encoded.labels >= 0
    if known.all():
        return encoded
    kept = known[encoded.rows]
    return replace(
        encoded,
        dense=encoded.dense[known],
        rows=(known.cumsum() - 1)[encoded.rows[kept]].astype(np.int32),
        keys=encoded.keys[kept],
        values=encoded.values[kept],
        columns=encoded.columns[kept],
        labels=encoded.labels[known],
        weights=None if encoded.weights is None else encoded.weights[known],
    )


def filled(values: Tensor, standardizer: Standardizer) -> Tensor:
    """Return dense inputs whose missing values say nothing.

    A missing value is the mean of its feature, which is 0 once it is standardized. Where a feature
    never had a value before, it is the median of those that the batch has. A feature without any
    value in the batch stays NaN, at which its statistics stay as they are.

    Args:
        values: fp32 [n, features], NaN where missing.
        standardizer: holds the means.
    """
    is_missing = values.isnan()
    if not bool(is_missing.any()):
        return values
    absent, mean = is_missing.all(dim=0), standardizer.mean
    first = standardizer.is_blank & ~absent
    if bool(first.any()):
        mean = torch.where(first, values.nanmedian(dim=0).values, mean)
    mean = torch.where(absent, torch.nan, mean)
    return torch.where(is_missing, mean, values)


def completed(inputs: Tensor, width: int) -> Tensor:
    """Return the numbers of rows as a model takes them, fp32 [n, width].

    Args:
        inputs: standardized, fp32 [n, d]. A missing value is NaN and becomes 0, the mean.
        width: at least d; columns beyond are 0.
    """
    return pad(inputs.nan_to_num(), (0, width - inputs.shape[1]))


def given_of(inputs: Tensor, mean: Tensor | None, scale: Tensor | None) -> Given:
    """Return dense features as trees and neighbours take them.

    Args:
        inputs: fp32 [n, d].
        mean, scale: of a `Standardizer`; None if the inputs are not standardized.
    """
    one = torch.ones_like(inputs[0])
    if mean is None or scale is None:
        return Given(inputs, Scaling(torch.zeros_like(one), one))
    return Given(inputs, Scaling(mean, scale))


def given_of_rows(
    encoded: Encoded, codes: int, numbers: int, mean: Tensor | None, scale: Tensor | None
) -> Given:
    """Return rows as trees and neighbours take them, fp32 [n, codes + numbers].

    Args:
        encoded: the rows.
        codes: room for the keys of which every row has one: those of categories, truth values and
            parts of times. Their first 24 bits are their codes.
        numbers: room for dense inputs, which follow.
        mean, scale: of a `Standardizer`, for the dense inputs that there are; None if these are not
            standardized.
    """
    n, width = encoded.dense.shape
    raw = np.full((n, codes + numbers), np.inf, np.float32)
    dense = np.where(np.isnan(encoded.dense), np.float32(np.inf), encoded.dense)
    raw[:, codes : codes + width] = dense.clip(-MAX_INPUT, np.inf)
    first = np.searchsorted(encoded.rows, np.arange(n))
    singles = first[:, None] + np.arange(encoded.singles)
    raw[:, : encoded.singles] = encoded.keys[singles] >> np.uint64(64 - CODE_BITS)
    center, unit = torch.zeros(codes + numbers), torch.ones(codes + numbers)
    if mean is not None and scale is not None:
        center[codes : codes + width], unit[codes : codes + width] = mean, scale
    return Given(torch.from_numpy(raw), Scaling(center, unit))


def to_inputs(features: Features, device: torch.device) -> Tensor:
    """Return features as inputs, fp32 [n, d], on the device."""
    return scaled(torch.from_numpy(features).to(device))


def holds_bytes(batch: AnyBatch) -> bool:
    """Return whether the features of a batch are uint8, so that they stand for [0, 1]."""
    return isinstance(batch, Batch) and batch.features.dtype == np.uint8


def scaled(features: Tensor) -> Tensor:
    """Return fp32 in row-major order; uint8 0…255 becomes [0, 1], other dtypes keep their values.

    Sums would round differently in another layout; batches from HTTP have this one.
    """
    features = features.contiguous()
    if features.dtype == torch.uint8:
        return features.float().div_(255.0)
    return features.float().clamp(-MAX_INPUT, MAX_INPUT)
