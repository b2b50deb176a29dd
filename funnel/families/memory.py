"""The memory that trees and neighbours share: the newest examples, and a sample of older ones.

Slots 0 to NEWEST - 1 are a ring of the newest examples. An example that it loses goes through a
reservoir [J. S. Vitter, 'Random sampling with a reservoir', ACM TOMS 11, 1985] into the slots from
NEWEST on, so that these are a uniform sample of all examples before the newest.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from funnel.compiled import loops
from funnel.families.forests.forest import LOOPS
from funnel.families.forests.growing import BINS, bins_of, quantiles
from funnel.families.outcomes import Outcome

NEWEST = 4_096
SAMPLED = 4_096
MOST_ADDED = 1_024
"""Most examples that are added at once."""
EDGE_ROWS = 2_000
"""Examples from which quantiles are taken."""
MOST_BINNED = 96
"""Numbers of an example whose bins are kept; of more, only some are ever asked for."""
PRIOR_HALF_LIFE = 2_000.0
"""Examples after which a label counts half in the statistics of the labels."""


class Moved(NamedTuple):
    """The slots that adding examples changed; whatever is kept for each slot follows it."""

    sources: Tensor
    """Slots whose examples move into the sample first, int64 [m]."""
    targets: Tensor
    """Where they go, int64 [m], each once."""
    slots: Tensor
    """Slots of the new examples, int64 [n], in their order."""
    counted: Tensor
    """Weight of each class among the new examples, fp32 [C]."""
    is_measured: bool = False
    """True if the quantiles were taken again."""

    def follow(self, kept: Tensor, new: Tensor) -> None:
        """Let what is kept for each slot follow, in place.

        Args:
            kept: [slots, ...]; without slots for the sample, nothing moves there.
            new: that of the new examples, [n, ...].
        """
        if len(kept) > NEWEST:
            kept[self.targets] = kept[self.sources]
        kept[self.slots] = new


class Waiting:
    """Examples that wait to come into the memory, in their order.

    Args:
        width: numbers of an example, D.
        outcome: of the labels.
    """

    def __init__(self, width: int, outcome: Outcome) -> None:
        device = outcome.device
        self.rows = torch.zeros(MOST_ADDED, width, device=device)
        """fp32 [MOST_ADDED, D]."""
        self.labels = torch.zeros(MOST_ADDED, dtype=outcome.label_type, device=device)
        """[MOST_ADDED]: classes, int64, or numbers, fp32."""
        self.weights = torch.zeros(MOST_ADDED, device=device)
        self.counts = torch.zeros(3, dtype=torch.int64)
        """On the host: how many wait, and two numbers of which the last batch is drawn."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {name: getattr(self, name) for name in ("rows", "labels", "weights", "counts")}

    @property
    def held(self) -> int:
        """How many wait."""
        return int(self.counts[0])

    def add(self, rows: Tensor, labels: Tensor, weights: Tensor, seed: tuple[int, ...]) -> None:
        """Add examples, for which there is room.

        Args:
            rows: fp32 [n, d]; they are the last d numbers.
            labels: [n].
            weights: fp32 [n].
            seed: two numbers.
        """
        held = self.held
        own = slice(held, held + len(labels))
        self.rows[own, -rows.shape[1] :] = rows
        self.labels[own], self.weights[own] = labels, weights
        self.counts.copy_(torch.tensor([held + len(labels), *seed]))


class Memory:
    """Examples in slots, the quantiles of their numbers, and statistics of their labels.

    Args:
        width: numbers of an example, D.
        outcome: of the labels.
    """

    def __init__(self, width: int, outcome: Outcome) -> None:
        slots, device = NEWEST + SAMPLED, outcome.device
        self.outcome = outcome
        self.columns = torch.zeros(width, slots, device=device)
        """fp32 [D, slots]; a missing number is infinite."""
        self.rows = self.columns.t()
        """The same numbers, fp32 [slots, D]."""
        self.labels = torch.zeros(slots, dtype=outcome.label_type, device=device)
        """[slots]: classes, int64, or numbers, fp32."""
        self.weights = torch.zeros(slots, device=device)
        """fp32 [slots]."""
        self.edges = torch.zeros(width, BINS - 1, device=device)
        """Quantiles of the columns, ascending, fp32 [D, BINS - 1]."""
        self.prior = outcome.prior()
        """Decayed statistics of the labels, fp32: the count of each class, 0 where it is closed; or
        count, sum and sum of squares of numbers."""
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
        self,
        rows: Tensor,
        labels: Tensor,
        weights: Tensor,
        generator: torch.Generator,
        measures: bool = True,
    ) -> Moved:
        """Add at most MOST_ADDED examples, and return what that moved.

        Args:
            rows: fp32 [n, D].
            labels: [n].
            weights: fp32 [n].
            generator: draws the sample.
            measures: whether the quantiles are taken again if they are due.
        """
        ring, following, gone, seen, due = self.counts.tolist()
        n = len(labels)
        slots = (following + torch.arange(n)).remainder(NEWEST)
        leaving = slots[max(0, NEWEST - ring) :]
        numbers = gone + torch.arange(len(leaving))
        drawn = torch.rand(len(leaving), generator=generator, dtype=torch.float64)
        places = torch.where(numbers < SAMPLED, numbers, (drawn * (numbers + 1)).long())
        stays = places < SAMPLED
        counted = self.outcome.counted(labels, weights)
        moved = Moved(*_last_of_each(leaving[stays], places[stays]), slots, counted)
        self._move(moved, rows)
        moved.follow(self.labels, labels)
        moved.follow(self.weights, weights)
        is_due = seen + n >= due and (measures or not seen)
        ring, seen = min(ring + n, NEWEST), seen + n
        if is_due:
            due = seen + NEWEST // 2 if seen >= NEWEST else max(int(1.5 * seen), seen + 1)
        counts = [ring, (following + n) % NEWEST, gone + len(leaving), seen, due]
        self.counts.copy_(torch.tensor(counts))
        self.prior.mul_(2.0 ** (-n / PRIOR_HALF_LIFE)).add_(counted)
        if is_due:
            newest = self.newest(NEWEST)
            if len(newest) > EDGE_ROWS:
                newest = newest[torch.randperm(len(newest), generator=generator)[:EDGE_ROWS]]
            self.edges.copy_(quantiles(self.columns[:, newest]))
            self.loaded()
        elif self._bins is not None:
            moved.follow(self._bins.t(), self._binned(moved.slots).t())
        return moved._replace(is_measured=is_due)

    def _move(self, moved: Moved, rows: Tensor) -> None:
        if (compiled := loops(LOOPS)) is None or rows.is_cuda:
            moved.follow(self.rows, rows)
            return
        places = (moved.sources, moved.targets, moved.slots)
        compiled.move(*(t.numpy() for t in (self.columns, *places, rows.contiguous())))

    def rescale(self, ratio: Tensor, shift: Tensor) -> None:
        """Continue with labels in another unit; those of late are inputs, too. Call `loaded`."""
        lags = self.outcome.lags
        self.labels.mul_(ratio).add_(shift)
        self.columns[:lags].mul_(ratio).add_(shift)
        self.edges[:lags].mul_(ratio).add_(shift)
        self.prior.copy_(self.outcome.rescaled(self.prior, ratio, shift))

    def loaded(self) -> None:
        """Compute what follows from the tensors, after other values were copied into them."""
        if self._bins is not None:
            used = torch.arange(self.used)
            self._bins[:, : len(used)] = self._binned(used)

    def _binned(self, slots: Tensor) -> Tensor:
        """Return the bins of all numbers of some examples, uint8 [D, slots]."""
        return bins_of(self.columns, self.edges, slots, torch.arange(len(self.columns)))

    def bins(self, slots: Tensor, columns: Tensor) -> Tensor:
        """Return the bins of some numbers of some examples, uint8 [columns, slots]."""
        if self._bins is None:
            return bins_of(self.columns, self.edges, slots, columns)
        if (compiled := loops(LOOPS)) is None or slots.is_cuda:
            return self._bins[columns].index_select(1, slots)
        found = torch.empty(len(columns), len(slots), dtype=torch.uint8)
        compiled.take(*(t.numpy() for t in (self._bins, slots, columns, found)))
        return found

    def counted(self, slots: Tensor) -> Tensor:
        """Return what examples add to the statistics of the labels, fp32."""
        return self.outcome.counted(self.labels[slots], self.weights[slots])


def _last_of_each(sources: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sources and slots of the sample, without those that a later one replaces."""
    order = torch.full((SAMPLED,), -1)
    order.scatter_reduce_(0, places, torch.arange(len(places)), "amax")
    targets = (order >= 0).nonzero()[:, 0]
    return sources[order[targets]], targets + NEWEST
