"""The stream of the golden files: whole numbers scaled, so that it is the same on every machine."""

import numpy as np
import numpy.typing as npt

FEATURES, CLASSES = 12, 4
BATCHES = 25
"""Batches before a golden checkpoint."""
MORE = 5
"""Batches learned after it."""
SHIFT_AT = 12
"""Number of the first batch whose labels are permuted."""
POISONED_AT = 22
"""Number of a batch whose labels are permuted further, which a loss guard holds back."""
WILD = {6: 1e30, 17: 3e38}
"""By the number of a batch, a value that some of its features take; its square overflows."""
SINGLE_AT = 9
"""Number of a batch of one example, at which batch normalization fails: it is not learned."""


def uniform(seed: int, n: int) -> npt.NDArray[np.float32]:
    """Return n multiples of 2⁻²⁴ in [0, 1), fp32, from splitmix64."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, n + 1, dtype=np.uint64) + np.uint64(seed << 24)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)


def examples(k: int, n: int, shift: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return features, fp32 [n, FEATURES], and labels, int64 [n], around one centre for each class.

    Args:
        k: number of the batch.
        n: examples in it.
        shift: added to the labels, modulo CLASSES.
    """
    labels = np.floor(uniform(2 * k + 1, n) * CLASSES).astype(np.int64)
    centres = uniform(0, CLASSES * FEATURES).reshape(CLASSES, FEATURES)
    noise = uniform(2 * k + 2, n * FEATURES).reshape(n, FEATURES)
    features = (centres[labels] * np.float32(2) + noise).astype(np.float32)
    return features, (labels + shift) % CLASSES


def golden_batch(k: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return batch k of the golden stream, with a shift in the middle and some wild values."""
    n = 1 if k == SINGLE_AT else 20 + 7 * k % 21
    features, labels = examples(k, n, (k >= SHIFT_AT) + 2 * (k == POISONED_AT))
    if k in WILD:
        features[1::5, k % FEATURES] = WILD[k]
    return features, labels
