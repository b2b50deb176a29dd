"""Clicks as an advertiser sees them: 13 numbers and 26 categories, with a truth that drifts.

The values of categories follow Zipf's law [Criteo]. A click depends on half of the numbers, on a
third of the categories and on chance. Midway, the weights of the numbers change their signs, and
half of those categories get other effects.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.rows.rows import Chunk, Rows

NUMBERS, CATEGORIES, EXPONENT = 13, 26, 1.2
VALUES = 100_000
"""Different values of a category."""
TELLING = 8
"""Categories that tell something of the label; the others are noise."""
BIAS = -1.0
"""Log odds of a click without any effect."""


@dataclass(frozen=True)
class Clicks:
    """Rows and whether they were clicked."""

    numbers: npt.NDArray[np.float32]
    """float32 [n, NUMBERS]."""
    categories: npt.NDArray[np.int64]
    """int64 [n, CATEGORIES], from 1."""
    clicked: npt.NDArray[np.bool_]
    """bool [n]."""
    chances: npt.NDArray[np.float64]
    """float64 [n], the true probability of a click."""

    def __len__(self) -> int:
        return len(self.clicked)

    def parts(self, size: int) -> Iterator["Clicks"]:
        """Yield batches of one size."""
        for start in range(0, len(self), size):
            own = slice(start, start + size)
            yield Clicks(
                self.numbers[own], self.categories[own], self.clicked[own], self.chances[own]
            )

    def rows(self) -> Rows:
        """Return them as named rows with the labels 0 and 1."""
        columns = {f"n{k}": pa.array(self.numbers[:, k].astype(float)) for k in range(NUMBERS)}
        for k in range(CATEGORIES):
            columns[f"c{k}"] = pa.array(values()[self.categories[:, k]])
        labels = pa.array(np.where(self.clicked, "1", "0"))
        return Rows((Chunk(pa.RecordBatch.from_pydict(columns), labels),))

    def lines(self) -> list[str]:
        """Return them as Vowpal Wabbit's text."""
        names = values()
        return [
            ("1 |n " if clicked else "-1 |n ")
            + " ".join(f"n{k}:{x:.6g}" for k, x in enumerate(numbers))
            + " |c "
            + " ".join(f"c{k}={names[x]}" for k, x in enumerate(found))
            for numbers, found, clicked in zip(
                self.numbers.tolist(), self.categories.tolist(), self.clicked.tolist(), strict=True
            )
        ]

    def entropy(self) -> float:
        """Return the log loss of who knows the truth, in nats."""
        odds = np.where(self.clicked, self.chances, 1 - self.chances)
        return float(-np.log(odds).mean())


def clicks(count: int, seed: int = 0) -> Clicks:
    """Return rows of a stream; the drift is in their middle, and the truth is always the same."""
    random = np.random.default_rng(seed)
    truth = np.random.default_rng(1_000)
    weights = truth.normal(0, 0.3, NUMBERS) * (np.arange(NUMBERS) % 2)
    effects = truth.normal(0, 0.7, (2, TELLING, VALUES + 1))
    effects[1, ::2] = effects[0, ::2]
    numbers = random.normal(size=(count, NUMBERS)).astype(np.float32)
    found = np.minimum(random.zipf(EXPONENT, (count, CATEGORIES)), VALUES)
    late = (np.arange(count) >= count // 2).astype(np.int64)
    odds = BIAS + (1 - 2 * late) * (numbers @ weights)
    for k in range(TELLING):
        odds += effects[late, k, found[:, k]]
    chances = 1 / (1 + np.exp(-odds))
    return Clicks(numbers, found, random.random(count) < chances, chances)


@functools.cache
def values() -> npt.NDArray[np.str_]:
    """Return the texts of the values, which are as long as those of Criteo, by number."""
    mixed = np.arange(VALUES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.array([f"{x >> 32:08x}" for x in mixed.tolist()])
