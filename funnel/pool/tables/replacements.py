"""Replacements of all rows of some experts, which each row takes when it is needed next.

A renewal, or a restart from the best, concerns every row of a table. It draws nothing and computes
nothing: each number of a row becomes another number of the same row, or one of a row that has seen
nothing. So a row that was not touched since can take any number of them later, in one step, with
the same bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Sources = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]
Epochs = npt.NDArray[np.uint8]

MOST = 64
"""Replacements that are remembered; epochs are uint8."""


def same(width: int) -> Sources:
    """Return the replacement that leaves rows of so many numbers as they are."""
    return np.arange(width)


def after(first: Sources, second: Sources) -> Sources:
    """Return what two replacements do, one after the other.

    Args:
        first, second: int64 [w]: for each number, which of the row's numbers it becomes, or w plus
            the place of a number of a new row.
    """
    width = len(first)
    return np.where(second < width, first[second % width], second)


@dataclass(frozen=True, eq=False)
class Replacements:
    """All replacements since some moment; they never change.

    The *epoch* of a row is how many of them it has taken.
    """

    until_now: tuple[Sources, ...] = field(default=())
    """By epoch, what rows of that epoch have still to take, in one replacement each."""

    @property
    def epoch(self) -> int:
        """Epoch of the rows that have taken all."""
        return len(self.until_now)

    def and_then(self, sources: Sources) -> "Replacements":
        """Return these with one more."""
        return Replacements((*(after(before, sources) for before in self.until_now), sources))

    def part(self, columns: slice) -> "Replacements":
        """Return these for some numbers of the rows, which come from among themselves."""
        found = []
        for sources in self.until_now:
            own, width = sources[columns], len(sources)
            size = columns.stop - columns.start
            is_new = own >= width
            found.append(own - columns.start + np.where(is_new, size - width, 0))
        return Replacements(tuple(found))

    def bring(
        self, values: Values, epochs: Epochs, new: Callable[[Sources], Values], rows: Sources
    ) -> None:
        """Let rows take all that they have not taken yet.

        Args:
            values: of the rows, fp32 [r, w]; changed in place.
            epochs: of the rows, [r]; they do not change.
            new: returns the numbers with which rows start, fp32 [k, w] or [1, w], given theirs.
            rows: numbers of the rows, int64 [r].
        """
        if not self.until_now or (len(epochs) and epochs.min() == self.epoch):
            return
        for epoch in np.unique(epochs).tolist():
            if epoch == self.epoch:
                continue
            sources, own = self.until_now[epoch], (epochs == epoch).nonzero()[0]
            changed = (sources != np.arange(len(sources))).nonzero()[0]
            width = len(sources)
            of_row, of_new = (changed[sources[changed] < width], changed[sources[changed] >= width])
            at: slice | npt.NDArray[np.int64] = own
            if len(own) == len(values):
                at = slice(None)
            taken = values[at]
            moved = taken[:, sources[of_row]]
            taken[:, of_row] = moved
            if len(of_new):
                taken[:, of_new] = new(rows[own])[:, sources[of_new] - width]
            if not isinstance(at, slice):
                values[at] = taken


NO_REPLACEMENTS = Replacements()


def sources_of(width: int, moves: Sequence[tuple[Sources, Sources | None]]) -> Sources:
    """Return a replacement.

    Args:
        width: numbers in a row.
        moves: places of numbers that change, and of those that they become; None for those of a new
            row at the same places.
    """
    found = same(width)
    for places, sources in moves:
        found[places] = width + places if sources is None else sources
    return found
