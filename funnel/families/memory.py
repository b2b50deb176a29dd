"""The memory that trees and neighbours share: the newest examples, and a sample of older ones.

Slots 0 to NEWEST - 1 are a ring of the newest examples. An example that it loses goes through a
reservoir [J. S. Vitter, 'Random sampling with a reservoir', ACM TOMS 11, 1985] into the slots from
NEWEST on, so that these are a uniform sample of all examples before the newest.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from funnel.families.growing import BINS, bins_of, quantiles

NEWEST = 4_096
SAMPLED = 4_096
MOST_ADDED = 1_024
"""Most examples that are added at once."""
EDGE_ROWS = 2_000
"""Examples from which quantiles are taken."""
MOST_BINNED = 96
"""Numbers of an example whose bins are kept; of more, only some are ever asked for."""
PRIOR_HALF_LIFE = 2_000.0
"""Examples after which a label counts half in the prior of the classes."""


class Moved(NamedTuple):
    """The slots that adding examples changed; whatever is kept for each slot follows it."""

    sources: Tensor
    """Slots whose examples move into the sample first, int64 [m]."""
    targets: Tensor
    """Where they go, int64 [m], each once."""
    slots: Tensor
    """Slots of the new examples, int64 [n], in their order."""

    def follow(self, kept: Tensor, new: Tensor) -> None:
        """Let what is kept for each slot follow, in place.

        Args:
            kept: [slots, ...]; without slots for the sample, nothing moves there.
            new: that of the new examples, [n, ...].
        """
        if len(kept) > NEWEST:
            kept[self.targets] = kept[self.sources]
        kept[self.slots] = new


class Memory:
    """Examples in slots, the quantiles of their numbers, and how frequent their classes are.

    Args:
        width: numbers of an example, D.
        is_open: which classes there are, bool [C].
    """

    def __init__(self, width: int, is_open: Tensor) -> None:
        slots, device = NEWEST + SAMPLED, is_open.device
        self.rows = torch.zeros(slots, width, device=device)
        """fp32 [slots, D]; a missing number is infinite."""
        self.labels = torch.zeros(slots, dtype=torch.int64, device=device)
        """int64 [slots]."""
        self.weights = torch.zeros(slots, device=device)
        """fp32 [slots]."""
        self.edges = torch.zeros(width, BINS - 1, device=device)
        """Quantiles of the columns, ascending, fp32 [D, BINS - 1]."""
        self.prior = is_open.float()
        """Decayed counts of the labels, fp32 [C]; 0 where a class is closed."""
        self.counts = torch.zeros(5, dtype=torch.int64)
        """On the host: examples in the ring; the slot of the next one; examples that left it; all
        examples; at how many of these the quantiles are taken again."""
        self._bins: Tensor | None = None
        """Bins of all numbers, uint8 [D, slots]; they follow from rows and quantiles."""
        if width <= MOST_BINNED:
            self._bins = torch.zeros(width, slots, dtype=torch.uint8, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        names = ("rows", "labels", "weights", "edges", "prior", "counts")
        return {name: getattr(self, name) for name in names}

    @property
    def used(self) -> int:
        """Number of slots that hold an example: they are the first ones."""
        ring, _, gone = self.counts.tolist()[:3]
        return int(ring + min(gone, SAMPLED)) if ring == NEWEST else int(ring)

    def newest(self, count: int) -> Tensor:
        """Return the slots of the newest examples, at most so many, the newest first, int64."""
        ring, following = self.counts.tolist()[:2]
        slots: Tensor = following - 1 - torch.arange(min(count, ring))
        return slots.remainder(NEWEST)

    def add(
        self, rows: Tensor, labels: Tensor, weights: Tensor, generator: torch.Generator
    ) -> Moved:
        """Add at most MOST_ADDED examples, and return what that moved.

        Args:
            rows: fp32 [n, D].
            labels: int64 [n].
            weights: fp32 [n].
            generator: draws the sample.
        """
        ring, following, gone, seen, due = self.counts.tolist()
        n = len(labels)
        slots = (following + torch.arange(n)).remainder(NEWEST)
        leaving = slots[max(0, NEWEST - ring) :]
        numbers = gone + torch.arange(len(leaving))
        drawn = torch.rand(len(leaving), generator=generator, dtype=torch.float64)
        places = torch.where(numbers < SAMPLED, numbers, (drawn * (numbers + 1)).long())
        stays = places < SAMPLED
        moved = Moved(*_last_of_each(leaving[stays], places[stays]), slots)
        for kept, new in ((self.rows, rows), (self.labels, labels), (self.weights, weights)):
            moved.follow(kept, new)
        ring, seen, is_due = min(ring + n, NEWEST), seen + n, seen + n >= due
        if is_due:
            due = seen + NEWEST // 2 if seen >= NEWEST else max(int(1.5 * seen), seen + 1)
        counts = [ring, (following + n) % NEWEST, gone + len(leaving), seen, due]
        self.counts.copy_(torch.tensor(counts))
        self.prior.mul_(2.0 ** (-n / PRIOR_HALF_LIFE)).add_(self.counted(moved.slots))
        if is_due:
            newest = self.newest(NEWEST)
            if len(newest) > EDGE_ROWS:
                newest = newest[torch.randperm(len(newest), generator=generator)[:EDGE_ROWS]]
            self.edges.copy_(quantiles(self.rows[newest]))
            self.loaded()
        elif self._bins is not None:
            changed = torch.cat([moved.targets, moved.slots])
            self._bins[:, changed] = bins_of(self.rows[changed], self.edges).byte()
        return moved

    def loaded(self) -> None:
        """Compute what follows from the tensors, after other values were copied into them."""
        if self._bins is not None:
            used = self.used
            self._bins[:, :used] = bins_of(self.rows[:used], self.edges).byte()

    def bins(self, slots: Tensor, columns: Tensor) -> Tensor:
        """Return the bins of some numbers of some examples, int64 [columns, slots]."""
        if self._bins is None:
            return bins_of(self.rows[slots][:, columns], self.edges[columns])
        return self._bins[columns][:, slots].long()

    def counted(self, slots: Tensor) -> Tensor:
        """Return the weight of each class among examples, fp32 [C]."""
        shown = functional.one_hot(self.labels[slots], len(self.prior)).float()
        found: Tensor = self.weights[slots] @ shown
        return found


def _last_of_each(sources: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sources and slots of the sample, without those that a later one replaces."""
    order = torch.full((SAMPLED,), -1)
    order.scatter_reduce_(0, places, torch.arange(len(places)), "amax")
    targets = (order >= 0).nonzero()[:, 0]
    return sources[order[targets]], targets + NEWEST
