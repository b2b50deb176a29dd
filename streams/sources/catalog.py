"""Named streams whose distribution shifts.

The six streams of images are MNIST, drawn with replacement: 60,000 examples of 784 uint8 pixels,
10 classes. `abrupt` is the paper's (arXiv:2202.00145, §4.1). The synthetic ones come from river's
generators (https://riverml.xyz, `river.datasets.synth`), as float32; the others are the labelled
sets that river carries, in an order drawn by the seed, since their own order has no meaning.

    >>> stream = get("labels", examples=12_000)
    >>> stream.shifts[1].example, stream.width, stream.classes
    (6000, 784, 10)

A stream is a function of its name, seed and number of examples; how it is cut into batches does
not change the examples.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streams.batch import Batch, concatenate
from streams.errors import FunnelError
from streams.sources import mnist
from streams.sources.images import noisy_background, rotate
from streams.sources.names import EXAMPLES, NAMES

BLOCK = 100  # examples made at once
PHASE = 6_000
LONGEST = 200_000_000
"""Examples of an endless stream; at 500 a second they last 4 days."""
ANGLES = (90, 0, 45)
"""Angles of `abrupt`, in degrees."""

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Source = Callable[[], tuple[Images, Labels]]
Drift = Callable[[Images, Labels, int, int, np.random.Generator], tuple[Images, Labels]]


class UnknownStreamError(FunnelError, ValueError):
    """No stream has this name; the message lists the names."""


class Shift(NamedTuple):
    """A change of a stream's distribution."""

    example: int
    """Index of the first example after the change."""
    what: str
    """The change in a few words."""


@dataclass(frozen=True)
class Stream:
    """A stream of labelled examples, generated each time it is read."""

    name: str
    width: int
    classes: int
    examples: int
    shifts: tuple[Shift, ...]
    blocks: Callable[[int, int | None], Iterator[Batch]]
    """Yields the examples of a seed, in blocks of any size and without an end. With an index, all
    are as the stream is at that example."""
    names: tuple[str, ...] = ()
    """Names of the classes by number; empty if the classes are numbers."""

    def batches(self, size: int, seed: int = 0) -> Iterator[Batch]:
        """Yield the examples in batches of ``size``; the last may be smaller."""
        return self._cut(self.blocks(seed, None), size, self.examples)

    def held(self, size: int, seed: int, example: int) -> Iterator[Batch]:
        """Yield batches of ``size`` without end, all as the stream is at ``example``."""
        return self._cut(self.blocks(seed, example), size, sys.maxsize)

    def _cut(self, blocks: Iterator[Batch], size: int, left: int) -> Iterator[Batch]:
        held: list[Batch] = []
        ready = 0
        for block in blocks:
            block = block.part(0, left)
            left -= len(block)
            ready += len(block)
            held.append(block)
            while ready >= size or (ready and not left):
                joined = concatenate(held)
                yield joined.part(0, size)
                held = [joined.part(size, ready)]
                ready = len(held[0])
            if not left:
                return


def digits() -> tuple[Images, Labels]:
    """Return scikit-learn's bundled 1,797 digits of 8 × 8 pixels, enlarged to 28 × 28.

    They replace MNIST where it cannot be fetched; figures on them say nothing about MNIST.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    found = load_digits()
    small = np.rint(found.images * (255 / 16)).astype(np.uint8)
    nearest = np.arange(28) * 8 // 28
    return small[:, nearest][:, :, nearest], found.target.astype(np.int64)


def mnist_images() -> tuple[Images, Labels]:
    """Return MNIST's training images, uint8 [60000, 28, 28], and labels, int64 [60000]."""
    data = mnist.load()
    return data.train_images, data.train_labels.astype(np.int64)


SOURCES: dict[str, Source] = {"mnist": mnist_images, "digits": digits}


def get(name: str, examples: int = EXAMPLES, source: str = "mnist") -> Stream:
    """Return the stream of that name.

    Args:
        name: one of `streams.sources.names.NAMES`.
        examples: its length, at most that of a labelled set. Its shifts do not depend on the
            length, except those of `abrupt`, after each third.
        source: source of the images, ``mnist`` or ``digits``.

    Raises:
        UnknownStreamError: there is no such stream.
    """
    if name in IMAGE_STREAMS:
        drift, shifts = IMAGE_STREAMS[name](examples)
        blocks = partial(_drifting_images, SOURCES[source], drift)
        return Stream(name, 784, 10, examples, tuple(shifts), blocks)
    if name in SYNTHETIC:
        width, classes, every, make = SYNTHETIC[name]
        marks = _every(every, examples, "concept {}".format)
        shown = tuple(marks) if every < EXAMPLES else (Shift(0, "drifts all the time"),)
        return Stream(
            name, width, classes, examples, shown, partial(_synthetic, make, width, every)
        )
    if name in LABELLED:
        width, classes, length, _ = LABELLED[name]
        whole = (Shift(0, "in random order"),)
        return Stream(name, width, classes, min(examples, length), whole, partial(_labelled, name))
    raise UnknownStreamError(f"no stream {name!r}; there are {', '.join(NAMES)}")


def endless(name: str, every: int, source: str = "mnist") -> Stream:
    """Return a stream that nobody reads to its end.

    Args:
        name: one of `streams.sources.names.ENDLESS` of dense features.
        every: examples between the turns of `abrupt`, which come in a circle; `gradual` turns once
            around in eight times as many. The others do not depend on it.
        source: source of the images.
    """
    length = max(1, LONGEST // every) * every
    if name == "abrupt":
        drift, marks = partial(_turned, ANGLES, every), _every(every, length, _angle)
    elif name == "gradual":
        drift, marks = partial(_turning, 8 * every), [Shift(0, "turns all the time")]
    else:
        return get(name, length, source)
    blocks = partial(_drifting_images, SOURCES[source], drift)
    return Stream(name, 784, 10, length, tuple(marks), blocks)


def _drifting_images(source: Source, drift: Drift, seed: int, held: int | None) -> Iterator[Batch]:
    images, labels = source()
    rng = np.random.default_rng([seed, 0] if held is None else [seed, 2, held])
    start = 0 if held is None else held // BLOCK * BLOCK
    while True:
        drawn = rng.integers(len(images), size=BLOCK)
        drifted, named = drift(images[drawn], labels[drawn], start, seed, rng)
        yield Batch(drifted.reshape(BLOCK, -1), named)
        if held is None:
            start += BLOCK


def _turned(
    angles: tuple[int, ...], every: int, images: Images, labels: Labels, start: int, *context: Any
) -> tuple[Images, Labels]:
    """Turn to the next of ``angles`` after ``every`` examples; add noise to the background."""
    _, rng = context
    phases = (start + np.arange(len(images))) // every
    parts = [rotate(images[phases == k], angles[k % len(angles)]) for k in np.unique(phases)]
    return noisy_background(np.concatenate(parts), rng), labels


def _turning(
    examples: int, images: Images, labels: Labels, start: int, _: int, rng: np.random.Generator
) -> tuple[Images, Labels]:
    """Turn a little further at each example, once around in all; add noise."""
    angles = 360.0 * (start + np.arange(len(images))) / examples
    turned = [rotate(image[None], angle) for image, angle in zip(images, angles, strict=True)]
    return noisy_background(np.concatenate(turned), rng), labels


def _permuted_pixels(
    images: Images, labels: Labels, start: int, seed: int, _: np.random.Generator
) -> tuple[Images, Labels]:
    flat = images.reshape(len(images), -1)
    order = np.random.default_rng([seed, 1, start // PHASE]).permutation(flat.shape[1])
    return flat[:, order], labels


def _permuted_labels(
    images: Images, labels: Labels, start: int, seed: int, _: np.random.Generator
) -> tuple[Images, Labels]:
    return images, np.random.default_rng([seed, 1, start // PHASE]).permutation(10)[labels]


def _unchanged(images: Images, labels: Labels, *_: Any) -> tuple[Images, Labels]:
    return images, labels


def _every(step: int, examples: int, what: Callable[[int], str]) -> list[Shift]:
    return [Shift(i, what(k)) for k, i in enumerate(range(0, examples, step))]


def _abrupt(examples: int) -> tuple[Drift, list[Shift]]:
    third = -(-examples // (3 * BLOCK)) * BLOCK
    return partial(_turned, ANGLES, third), _every(third, examples, _angle)


def _angle(turn: int) -> str:
    return f"{ANGLES[turn % len(ANGLES)]}°"


def _recurring(examples: int) -> tuple[Drift, list[Shift]]:
    marks = _every(PHASE, examples, lambda k: f"{(0, 90)[k % 2]}°")
    return partial(_turned, (0, 90), PHASE), marks


IMAGE_STREAMS: dict[str, Callable[[int], tuple[Drift, list[Shift]]]] = {
    "abrupt": _abrupt,
    "recurring": _recurring,
    "gradual": lambda n: (partial(_turning, n), [Shift(0, "turns all the time")]),
    "permuted": lambda n: (_permuted_pixels, _every(PHASE, n, lambda k: f"permutation {k}")),
    "labels": lambda n: (_permuted_labels, _every(PHASE, n, lambda k: f"labels {k}")),
    "stationary": lambda n: (_unchanged, [Shift(0, "never changes")]),
}


def _synthetic(
    make: Callable[[Any, int, int], Any], width: int, every: int, seed: int, held: int | None
) -> Iterator[Batch]:
    """Yield from river's generators; the next concept begins after ``every`` examples."""
    from river.datasets import synth

    first = 0 if held is None else held // every
    concepts = (iter(make(synth, k, seed * 1000 + k)) for k in count(first))
    start, concept = 0, next(concepts)
    while True:
        drawn = [next(concept) for _ in range(BLOCK)]
        features = np.array([list(x.values()) for x, _ in drawn], dtype=np.float32)
        yield Batch(features.reshape(BLOCK, width), np.array([int(y) for _, y in drawn]))
        start += BLOCK
        if held is None and start % every == 0:
            concept = next(concepts)


# Features, classes, examples between concepts; from `river.datasets.synth`, concept and seed to the
# generator.
SYNTHETIC: dict[str, tuple[int, int, int, Callable[[Any, int, int], Any]]] = {
    "sea": (
        3, 2, 15_000,
        lambda synth, concept, seed: synth.SEA(variant=concept % 4, noise=0.1, seed=seed),
    ),
    "agrawal": (
        9, 2, PHASE,
        lambda synth, concept, seed: synth.Agrawal(
            classification_function=concept % 10, perturbation=0.05, seed=seed
        ),
    ),
    "hyperplane": (
        10, 2, sys.maxsize,
        lambda synth, _, seed: synth.Hyperplane(
            n_features=10, n_drift_features=5, mag_change=0.001, noise_percentage=0.05, seed=seed
        ),
    ),
    "rbf": (
        10, 5, sys.maxsize,
        lambda synth, _, seed: synth.RandomRBFDrift(
            n_features=10, n_classes=5, n_centroids=50, change_speed=0.001, seed_model=seed,
            seed_sample=seed,
        ),
    ),
    "led": (
        24, 10, 20_000,
        lambda synth, concept, seed: synth.LEDDrift(
            noise_percentage=0.1, irrelevant_features=True,
            n_drift_features=(0, 5, 7)[concept % 3], seed=seed,
        ),
    ),
}  # fmt: skip


def _labelled(name: str, seed: int, held: int | None) -> Iterator[Batch]:
    """Yield a whole set at once, shuffled; it does not shift."""
    del held
    from river import datasets

    found = list(getattr(datasets, LABELLED[name][3])())
    classes = sorted({label for _, label in found})
    features = np.array([list(x.values()) for x, _ in found], dtype=np.float32)
    labels = np.array([classes.index(label) for _, label in found], dtype=np.int64)
    order = np.random.default_rng([seed, 0]).permutation(len(found))
    yield Batch(features[order], labels[order])


# Features, classes, examples, name in `river.datasets`.
LABELLED: dict[str, tuple[int, int, int, str]] = {
    "bananas": (2, 2, 5_300, "Bananas"),
    "phishing": (9, 2, 1_250, "Phishing"),
    "segments": (18, 7, 2_310, "ImageSegments"),
    "shuttle": (9, 2, 49_097, "Shuttle"),
}
