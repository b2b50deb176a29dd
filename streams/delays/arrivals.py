"""The order in which labels come that are delayed by numbers of examples.

Time is the number of examples that were asked. The label of example ``i`` with delay ``d`` comes at
``i + d``: before example ``j`` is asked, all labels that come at ``j`` or earlier are known, as in
river's ``stream.simulate_qa``. With ``d = 0`` a label is known before the next example.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from streams.batch import Batch, Labels, concatenate
from streams.delays.delay import Times

Indices = npt.NDArray[np.int64]
T = TypeVar("T")
Take = Callable[[Sequence[tuple[T, int, int]]], T]
"""Returns the examples from one index up to another of some batches, one after another."""


@dataclass(frozen=True)
class Arrivals:
    """The examples that are learned after each batch of a stream is predicted.

    Args:
        sizes: examples of each batch.
        order: for each batch the indices of the examples that are learned before the next one, in
            parts that are learned at once.
    """

    sizes: Sequence[int]
    order: Sequence[Sequence[Indices]]

    @classmethod
    def of(cls, delays: Times, sizes: Sequence[int], most: int) -> "Arrivals":
        """Return the order in which delayed labels are learned.

        Batches are asked whole: when one is predicted, the labels are known that come up to its
        first example. Labels are learned in the order in which they come.

        Args:
            delays: of each example's label, in examples, [n]; infinite if it never comes.
            sizes: examples of each batch; they add up to n.
            most: examples that are learned at once.
        """
        times = np.arange(len(delays)) + delays
        order = np.argsort(times, kind="stable")
        ordered = times[order]
        found: list[list[Indices]] = []
        begun = end = 0
        for size in sizes:
            end += size
            known = int(np.searchsorted(ordered, end, side="right"))
            while known > begun and order[known - 1] >= end:  # it is not asked yet
                known -= 1
            own = order[begun:known]
            found.append([own[k : k + most] for k in range(0, len(own), most)])
            begun = known
        return cls(sizes, found)

    @property
    def first(self) -> int:
        """Examples that are predicted before the first label comes; all if none comes."""
        found = 0
        for size, parts in zip(self.sizes, self.order, strict=True):
            found += size
            if parts:
                break
        return found

    @property
    def missing(self) -> int:
        """Examples whose labels do not come within the stream."""
        return sum(self.sizes) - sum(len(part) for parts in self.order for part in parts)

    def arranged(self, batches: Sequence[T], take: Take[T]) -> list[list[T]]:
        """Return the batches that are learned after each batch is predicted.

        Args:
            batches: of the stream.
            take: joins parts of batches.
        """
        starts = np.cumsum([0, *self.sizes])
        return [[take(_parts(batches, starts, own)) for own in parts] for parts in self.order]


def come_of(later: Arrivals | None, batches: Sequence[T], take: Take[T]) -> list[list[T]] | None:
    """Return what `Arrivals.arranged` does; None if each batch is learned before the next."""
    return None if later is None else later.arranged(batches, take)


def take_labels(parts: Sequence[tuple[Labels, int, int]]) -> Labels:
    """Return parts of the labels of batches, one after another."""
    return np.concatenate([labels[start:stop] for labels, start, stop in parts])


def take_dense(parts: Sequence[tuple[Batch, int, int]]) -> Batch:
    """Return parts of batches of dense features as one."""
    return concatenate([batch.part(start, stop) for batch, start, stop in parts])


def _parts(batches: Sequence[T], starts: Indices, indices: Indices) -> list[tuple[T, int, int]]:
    """Return where examples lie: runs of neighbours within a batch, in their order."""
    where = np.searchsorted(starts, indices, side="right") - 1
    ends = np.flatnonzero((np.diff(indices) != 1) | (np.diff(where) != 0)) + 1
    runs = zip([0, *ends.tolist()], [*ends.tolist(), len(indices)], strict=True)
    found = []
    for begin, end in runs:
        batch, first = int(where[begin]), int(indices[begin])
        start = first - int(starts[batch])
        found.append((batches[batch], start, start + end - begin))
    return found
