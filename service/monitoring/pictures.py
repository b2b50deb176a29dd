"""Pictures for the live page of a model whose inputs are images: maps of gains, the newest inputs.

Inputs count as images if the number of features is the square of a number from 8 to 64.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import Spec
from service.fold.state import State
from service.process import Clock
from streams.batch import Batch, Features
from streams.examples import AnyBatch
from streams.rows.rows import Rows

MIN_SIDE, MAX_SIDE = 8, 64
MAX_MAPS = 16
"""Most classes with a map; further ones are not shown."""
SHOWN = 8
"""Examples shown at a time."""
EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Gains:
    """The gains of a tensor that has a weight for each class and pixel."""

    tensor: str
    log_gains: npt.NDArray[np.float32]
    """log p, fp32 [classes, pixels], rounded to two decimals."""


@dataclass(frozen=True)
class Seen:
    """Examples, and the predictions made before they were learned."""

    version: int
    """Version of the model that predicted."""
    pixels: npt.NDArray[np.uint8]
    """[n, side · side], from 0 for the darkest to 255 for the brightest."""
    labels: list[int]
    predicted: list[int]


def side(features: int) -> int | None:
    """Return the side in pixels of images with so many features; None if they are not images."""
    root = math.isqrt(features)
    return root if root * root == features and MIN_SIDE <= root <= MAX_SIDE else None


def read_gains(log_gains: Mapping[str, Tensor], spec: Spec) -> Gains | None:
    """Copy the first tensor with a weight for each class and pixel to the host, if there is one.

    Args:
        log_gains: log p by the names of the tensors.
        spec: of the model.
    """
    if side(spec.features) is None:
        return None
    for name, gains in log_gains.items():
        if gains.shape == (spec.classes, spec.features):
            return Gains(name, gains[:MAX_MAPS].float().cpu().numpy().round(2))
    return None


class Newest:
    """The last examples of a batch, about once a second, and the predictions for them.

    Args:
        state: its served model's architecture is copied.
        clock: says when a second has passed.
    """

    def __init__(self, state: State, clock: Clock) -> None:
        self._clock = clock
        self.side = side(state.spec.features)
        self._evaluator = Evaluator(state.served)
        self._held: tuple[Snapshot, Batch] | None = None
        self._seen: Seen | None = None
        self._due = 0.0
        self._lock = threading.Lock()

    def note(self, snapshot: Snapshot, batch: AnyBatch) -> None:
        """Keep copies of some examples, and a snapshot from before they were learned."""
        if self.side is None or isinstance(batch, Rows) or self._clock.monotonic() < self._due:
            return
        n = len(batch)
        few = batch.part(max(0, n - SHOWN), n)
        copied = Batch(few.features.copy(), few.labels.copy())
        self._held = snapshot, copied
        self._due = self._clock.monotonic() + EVERY_SECONDS

    def read(self) -> Seen | None:
        """Return the last examples with their predictions, or None before the first.

        May be called in any thread, but blocks: do not call it on an event loop.
        """
        with self._lock:
            if (held := self._held) is None:
                return None
            snapshot, batch = held
            if self._seen is None or self._seen.version != snapshot.version:
                labels, _ = self._evaluator(snapshot, batch.features)
                self._seen = Seen(
                    snapshot.version, _grey(batch.features), batch.labels.tolist(), labels.tolist()
                )
            return self._seen


def _grey(features: Features) -> npt.NDArray[np.uint8]:
    values = np.nan_to_num(features.astype(np.float32))
    if features.dtype != np.uint8:
        low = values.min(axis=1, keepdims=True)
        spread = np.maximum(values.max(axis=1, keepdims=True) - low, np.float32(1e-9))
        values = (values - low) / spread * 255
    return np.asarray(values, dtype=np.uint8)
