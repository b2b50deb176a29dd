"""A stream that tells its shifts while it is read, and that a user may shift if it has images."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from streams.batch import Batch
from streams.sources.catalog import IMAGE_STREAMS, Shift, Stream
from streams.sources.images import rotate

if TYPE_CHECKING:  # dense features need no pyarrow
    from streams.examples import AnyBatch
    from streams.rowstream import RowStream

NOISE = 0.3
"""Share of pixels that noise replaces."""

KINDS = {
    "rotate": "Turn by 90°",
    "pixels": "Permute pixels",
    "noise": "Noise on or off",
    "labels": "Permute labels",
}
"""Ways to shift a stream of images, with the labels of their buttons."""


@dataclass(frozen=True)
class _Hand:
    """Changes that are made to each example."""

    quarter_turns: int = 0
    order: npt.NDArray[np.int64] | None = None
    """Order of the pixels."""
    is_noisy: bool = False
    names: npt.NDArray[np.int64] | None = None
    """New labels by old label."""


class Steered:
    """A stream that runs as planned until the first `shift`, and then without end.

    One thread reads it; any thread may shift it.

    Args:
        stream: any; one of square uint8 images can be shifted.
        shifted: called in the reader's thread with each shift when the stream reaches it.
        seed: seed of the stream and of the shifts.
    """

    def __init__(
        self, stream: "Stream | RowStream", shifted: Callable[[Shift], object], seed: int = 0
    ) -> None:
        self.stream, self._shifted, self._seed = stream, shifted, seed
        self.images = None
        """The stream, if it can be shifted."""
        if isinstance(stream, Stream) and stream.name in IMAGE_STREAMS:
            self.images = stream
        self.is_steered = False
        self._hand = _Hand()
        self._waiting: list[str] = []
        """Descriptions of shifts that no example shows yet."""
        self._rng = np.random.default_rng([seed, 4])
        self._lock = threading.Lock()

    def shift(self, kind: str) -> str:
        """Shift all examples that are read from now on; return the shift in a few words.

        Args:
            kind: one of `KINDS`.
        """
        assert self.images is not None, "only streams of images can be shifted"
        with self._lock:
            self._hand, what = _shifted(self._hand, kind, self.images, self._rng)
            self._waiting.append(what)
            self.is_steered = True
            return what

    def batches(self, size: int) -> "Iterator[AnyBatch]":
        """Yield batches of ``size``; the last of a stream that was not shifted may be smaller.

        Rows come in one chunk each, so that a batch of them may be smaller, too.
        """
        made = 0
        planned = list(self.stream.shifts)
        for batch in self.stream.batches(size, self._seed):
            if self.is_steered:
                break
            while planned and planned[0].example < made + len(batch):
                self._shifted(planned.pop(0))
            if isinstance(batch, Batch):
                yield batch
            else:
                yield from batch.split()
            made += len(batch)
        if self.images is None or not self.is_steered:
            return
        for batch in self.images.held(size, self._seed, max(0, made - 1)):
            with self._lock:
                hand, waiting, self._waiting = self._hand, self._waiting, []
            for what in waiting:
                self._shifted(Shift(made, what))
            yield self._handled(hand, batch)
            made += len(batch)

    def _handled(self, hand: _Hand, batch: Batch) -> Batch:
        n, width = batch.features.shape
        side = round(width**0.5)
        turned = rotate(batch.features.reshape(n, side, side), 90 * hand.quarter_turns)
        pixels = turned.reshape(n, width)
        if hand.order is not None:
            pixels = pixels[:, hand.order]
        if hand.is_noisy:
            noise = self._rng.integers(256, size=pixels.shape, dtype=np.uint8)
            pixels = np.where(self._rng.random(pixels.shape) < NOISE, noise, pixels)
        labels = batch.labels if hand.names is None else hand.names[batch.labels]
        return Batch(np.ascontiguousarray(pixels), labels)


def _shifted(hand: _Hand, kind: str, stream: Stream, rng: np.random.Generator) -> tuple[_Hand, str]:
    if kind == "rotate":
        return replace(hand, quarter_turns=hand.quarter_turns + 1), "turned by 90°"
    if kind == "pixels":
        return replace(hand, order=rng.permutation(stream.width)), "pixels permuted"
    if kind == "noise":
        word = "off" if hand.is_noisy else "on"
        return replace(hand, is_noisy=not hand.is_noisy), f"noise {word}"
    return replace(hand, names=rng.permutation(stream.classes)), "labels permuted"
