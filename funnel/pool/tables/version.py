"""The weights of a table's rows at one version, while the table goes on learning.

A version holds no copy of the rows. Before the table writes rows, it gives every version that is
still in use those that the version has not got yet. A reader takes the rows as they are now, and
then those that were kept, which replace what may have changed meanwhile. So a version costs as much
as has changed since, and making one costs nothing. When a quarter of its rows have changed, it
copies all, and is on its own.

The order matters, and needs no lock. The table keeps rows before it writes them, and a reader looks
at what was kept after it has read: whatever a write may have torn is replaced.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from funnel.pool.tables.index import Numbers
from funnel.pool.tables.pages import paged
from funnel.pool.tables.replacements import Epochs, Values

MOST_KEPT = 4
"""A version copies all of its rows when more than one in so many has changed."""


@dataclass(frozen=True, eq=False)
class Kept:
    """Rows as they were before a change."""

    rows: Numbers
    """Their numbers, int64 [r], ascending and different."""
    weights: Values
    """fp32 [r, w]."""
    epochs: Epochs
    """uint8 [r]."""

    def and_then(self, later: "Kept") -> "Kept":
        """Return these rows and others, which are different."""
        rows = np.concatenate([self.rows, later.rows])
        order = rows.argsort(kind="stable")
        weights = np.concatenate([self.weights, later.weights])[order]
        return Kept(rows[order], weights, np.concatenate([self.epochs, later.epochs])[order])


class Version:
    """Rows at one version; `read` may be called in any thread, the rest in the one that learns.

    Args:
        weights: of all rows, fp32 [capacity, w], to which the table goes on writing.
        epochs: of all rows, uint8 [capacity], in the same way.
        used: number of rows at this version.
    """

    def __init__(self, weights: Values, epochs: Epochs, used: int) -> None:
        self.used = used
        self._present = weights, epochs
        self._is_kept = np.zeros(used, dtype=np.bool_)
        self._kept: tuple[Kept, ...] = ()
        """Each has more than twice the rows of the next one, so there are few."""
        self._is_apart = False
        """True once it reads a copy of its own."""

    @property
    def kept(self) -> int:
        """Number of rows that were copied."""
        return self.used if self._is_apart else sum(len(part.rows) for part in self._kept)

    def keep(self, rows: Numbers) -> None:
        """Copy rows that are about to change, unless they have changed before.

        Args:
            rows: int64, ascending and different.
        """
        if self._is_apart:
            return
        rows = rows[: np.searchsorted(rows, self.used)]
        rows = rows[~self._is_kept[rows]]
        if not len(rows):
            return
        if self.kept + len(rows) > self.used // MOST_KEPT:
            self._part()
            return
        weights, epochs = self._present
        parts = [*self._kept, Kept(rows, weights.take(rows, axis=0), epochs.take(rows))]
        while len(parts) > 1 and len(parts[-2].rows) <= 2 * len(parts[-1].rows):
            last = parts.pop()
            parts[-1] = parts[-1].and_then(last)
        self._is_kept[rows] = True
        self._kept = tuple(parts)

    def move(self, weights: Values, epochs: Epochs) -> None:
        """Read rows elsewhere, where the table has copied them before it writes there.

        Args:
            weights: fp32 [capacity, w].
            epochs: uint8 [capacity].
        """
        if not self._is_apart:
            self._present = weights, epochs

    def read(self, rows: Numbers) -> tuple[Values, Epochs]:
        """Return copies of the weights, fp32 [r, w], and the epochs, uint8 [r], of rows.

        Args:
            rows: numbers below `used`, int64 [r].
        """
        while True:
            weights, epochs = present = self._present
            found, found_epochs = weights.take(rows, axis=0), epochs.take(rows)
            kept = self._kept  # only now, after the rows were read
            if self._present is present:
                break
        for part in kept:
            at = np.minimum(np.searchsorted(part.rows, rows), len(part.rows) - 1)
            own: npt.NDArray[np.intp] = (part.rows[at] == rows).nonzero()[0]
            found[own], found_epochs[own] = part.weights[at[own]], part.epochs[at[own]]
        return found, found_epochs

    def _part(self) -> None:
        """Copy all rows."""
        theirs, their_epochs = self._present
        weights = paged((self.used, theirs.shape[1]), np.float32)
        weights[:] = theirs[: self.used]
        epochs = their_epochs[: self.used].copy()
        for part in self._kept:
            weights[part.rows], epochs[part.rows] = part.weights, part.epochs
        self._is_apart = True
        self._present = weights, epochs
        self._kept, self._is_kept = (), self._is_kept[:0]
