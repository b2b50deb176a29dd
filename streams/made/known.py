"""Rows of two classes whose true probabilities are known, and streams of them."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.rows.rows import Chunk, Rows, join
from streams.rowstream import RowStream
from streams.sources.catalog import Shift

NO, YES = "no", "yes"
LABELS = (NO, YES)

Numbers = npt.NDArray[np.float64]
Answers = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Known:
    """Labelled rows, and how likely the label ``yes`` was for each of them."""

    rows: Rows
    """n rows with the labels ``no`` and ``yes``."""
    chances: Numbers
    """float64 [n], in (0, 1)."""
    answers: Answers
    """bool [n], True where the label is ``yes``."""

    def __len__(self) -> int:
        return len(self.chances)

    def part(self, start: int, stop: int) -> "Known":
        """Return the rows from ``start`` up to ``stop``, without a copy."""
        own = slice(start, stop)
        return Known(self.rows.part(start, stop), self.chances[own], self.answers[own])

    def entropy(self) -> float:
        """Return the mean log loss of the true probabilities, in nats: no model has a lower one
        but by chance."""
        right = np.where(self.answers, self.chances, 1 - self.chances)
        return float(-np.log(right).mean())


Blocks = Callable[[int], Iterator[Known]]
"""Yields the rows of a seed in blocks, without an end."""


def drawn(columns: dict[str, pa.Array], odds: Numbers, rng: np.random.Generator) -> Known:
    """Draw the labels of rows.

    Args:
        columns: by name, n values each.
        odds: logarithms of the odds of ``yes``, float64 [n].
        rng: source of the draws.
    """
    chances = 1 / (1 + np.exp(-odds))
    answers = rng.random(len(odds)) < chances
    labels = pa.array(np.where(answers, YES, NO).tolist(), pa.string())
    return Known(Rows((Chunk(pa.RecordBatch.from_pydict(columns), labels),)), chances, answers)


def batches(blocks: Iterator[Known], size: int, examples: int) -> Iterator[Known]:
    """Yield rows in batches of ``size``; the last may be smaller.

    Args:
        blocks: at least so many rows.
        size: rows in a batch.
        examples: rows in all.
    """
    held, left = Known(Rows(()), np.empty(0), np.empty(0, np.bool_)), examples
    for block in blocks:
        taken = block.part(0, left)
        left -= len(taken)
        held = _joined(held, taken)
        while len(held) >= size or (len(held) and not left):
            yield held.part(0, size)
            held = held.part(size, sys.maxsize)
        if not left:
            return


def row_stream(
    name: str, label: str, blocks: Blocks, examples: int, shifts: tuple[Shift, ...]
) -> RowStream:
    """Return the stream without its probabilities.

    Args:
        name: of the stream.
        label: name of the column that holds the labels in a file.
        blocks: rows of a seed.
        examples: length of the stream.
        shifts: its changes.
    """

    def rows(seed: int) -> Iterator[Rows]:
        return (block.rows for block in blocks(seed))

    return RowStream(name, label, LABELS, examples, shifts, rows, is_drawn=True)


def _joined(one: Known, other: Known) -> Known:
    return Known(
        join([one.rows, other.rows]),
        np.concatenate([one.chances, other.chances]),
        np.concatenate([one.answers, other.answers]),
    )
