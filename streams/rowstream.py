"""A stream of labelled rows with names: a file of them, or one that is made while it is read."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streams.rows.rows import Rows, join
from streams.sources.catalog import Shift


@dataclass(frozen=True)
class RowStream:
    """A stream of labelled rows, whose examples do not depend on how it is cut into batches."""

    name: str
    label: str
    """Name of the column that holds the labels in a file."""
    labels: tuple[str, ...]
    """Every label that may occur."""
    examples: int
    shifts: tuple[Shift, ...]
    blocks: Callable[[int], Iterator[Rows]]
    """Yields the rows of a seed in blocks of any size, at least ``examples`` of them."""
    is_drawn: bool = False
    """True if another seed gives other rows."""
    waits: npt.NDArray[np.float64] | None = None
    """Examples from each row until its label comes, [examples]; None if it is known with the row.
    """

    def batches(self, size: int, seed: int = 0) -> Iterator[Rows]:
        """Yield the rows in batches of ``size``; the last may be smaller."""
        held, left = Rows(()), self.examples
        for block in self.blocks(seed):
            taken = block.part(0, left)
            left -= len(taken)
            held = join([held, taken])
            while len(held) >= size or (len(held) and not left):
                yield held.part(0, size)
                held = held.part(size, sys.maxsize)
            if not left:
                return
