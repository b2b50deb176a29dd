"""A forest that is boosted on a window of the stream: new trees come with every batch, old ones
fade.

A batch of 100 examples adds 2 trees; while there are few examples, so many more as cost the same.
Each fits the gradient on examples of the window, among them the newest, and lets the older trees
count a little less. The logits of the window's examples are kept, as each tree sees them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from funnel.families.forests.forest import Forest, Tree, replace_tree
from funnel.families.forests.growing import features_of_tree, grow
from funnel.families.memory import NEWEST, PRIOR_HALF_LIFE, Memory, Moved

TREES_PER_100 = 2.0
MOST_BOOST = 5.0
"""Most times as many trees as that while there are few examples."""
ROWS = 2_048
"""Most examples that a tree is grown on."""
MOST_DUE = 10.0
"""Most trees that skipped batches leave due."""
IMPORTANCE_KEPT, IMPORTANCE_OF_GAIN = 0.995, 0.1
"""How the importances of columns are averaged over trees."""


@dataclass(frozen=True)
class Window:
    """Which examples of the memory a forest is boosted on."""

    newest: int
    """The newest ones, at most so many."""
    remembers: bool = False
    """True if the sample of older ones belongs to it."""
    rows: int = ROWS
    trees: int = 100
    """Most trees."""
    fade: float = 0.02
    """Share by which older trees count less with each new one."""


class Boosted:
    """A forest on a window.

    Args:
        window: of the stream.
        memory: holds the examples.
        usable: columns of the memory that trees may look at, int64 [d].
    """

    def __init__(self, window: Window, memory: Memory, usable: Tensor) -> None:
        self.window, self.memory, self.usable = window, memory, usable
        device, outputs = memory.rows.device, memory.outcome.outputs
        self.forest = Forest(window.trees, outputs, device)
        slots = len(memory.rows) if window.remembers else NEWEST
        self.fitted = torch.zeros(slots, outputs, device=device)
        """Outputs for the examples in the memory as the forest gives them, fp32 [slots, A]."""
        self.prior = memory.outcome.prior()
        """Decayed statistics of the labels, as the memory has them, fp32."""
        self.counts = torch.zeros(2, dtype=torch.int64)
        """On the host: examples of the window, and trees that were grown."""
        self.credit = torch.zeros((), dtype=torch.float64)
        """Trees that are due."""
        self.seen = torch.zeros((), dtype=torch.int64)
        """Examples since it began."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        names = ("fitted", "prior", "counts", "credit", "seen")
        return self.forest.tensors() | {name: getattr(self, name) for name in names}

    @property
    def grown(self) -> int:
        """Trees that were grown since it began."""
        return int(self.counts[1])

    @property
    def offset(self) -> Tensor:
        """Outputs that say what the statistics of the labels say, fp32 [A]."""
        return self.memory.outcome.offset(self.prior)

    def logits(self, rows: Tensor) -> Tensor:
        """Return the outputs for examples without the offset, fp32 [n, A]."""
        return self.forest.logits(rows, self.grown)

    def learn(
        self, moved: Moved, logits: Tensor, importances: Tensor, generator: torch.Generator
    ) -> None:
        """Grow the trees that are due after a batch came into the memory.

        Args:
            moved: what the batch moved there.
            logits: of its examples, as `logits` gave them before, fp32 [n, A].
            importances: gains of the columns, fp32 [D]; those of the new trees are added.
            generator: draws.
        """
        self._note(moved, logits)
        slots = self._slots(int(self.counts[0]))
        stale = slots[self.fitted[slots, 0].isnan()]
        if len(stale):
            self.fitted[stale] = self.logits(self.memory.rows[stale])
        due = float(self.credit)
        while due >= 1.0:
            due -= 1.0
            self._add_tree(slots, len(moved.slots), importances, generator)
        self.credit.fill_(due)

    def skip(self, moved: Moved) -> None:
        """Note a batch that came into the memory; its trees are grown with a later one.

        Args:
            moved: what the batch moved there.
        """
        unknown = self.fitted.new_full((len(moved.slots), self.fitted.shape[1]), torch.nan)
        self._note(moved, unknown)
        self.credit.clamp_(max=MOST_DUE)

    def _note(self, moved: Moved, logits: Tensor) -> None:
        """Take a batch into the window, and count the trees that it makes due.

        Args:
            moved: what the batch moved in the memory.
            logits: of its examples, fp32 [n, A]; NaN if they are computed later.
        """
        n = len(moved.slots)
        moved.follow(self.fitted, logits)
        self.prior.mul_(2.0 ** (-n / PRIOR_HALF_LIFE)).add_(moved.counted)
        self.counts[0] = min(int(self.counts[0]) + n, self.window.newest)
        self.seen += n
        m = min(len(self._slots(int(self.counts[0]))), self.window.rows)
        often = 1.0 if n >= 100 else min(4.0, max(1.0, 1000 / int(self.seen)))
        boost = min(max(1.0, self.window.rows / m), MOST_BOOST)
        self.credit += n / 100 * often * TREES_PER_100 * boost

    def restart(self, newest: int) -> None:
        """Forget all trees, and all of the window except its newest examples."""
        slots = self.memory.newest(newest)
        self.fitted[slots] = 0.0
        self.forest.leaves.zero_()
        self.counts.copy_(torch.tensor([len(slots), 0]))
        self.seen.fill_(len(slots))
        self.prior.copy_(self.memory.outcome.prior() + self.memory.counted(slots))

    def become(self, other: "Boosted") -> None:
        """Take the window and the trees of another one, of no more trees and a shorter window."""
        slots = self.memory.newest(int(other.counts[0]))
        self.fitted[slots] = other.fitted[slots]
        for mine, theirs in zip(
            self.forest.tensors().values(), other.forest.tensors().values(), strict=True
        ):
            mine.copy_(theirs)
        self.prior.copy_(other.prior)
        self.counts.copy_(other.counts)
        self.seen.copy_(other.counts[0])

    def rescale(self, ratio: Tensor, shift: Tensor) -> None:
        """Continue with numbers in another unit; the newest ones are inputs, too."""
        outcome, forest = self.memory.outcome, self.forest
        forest.leaves.mul_(ratio)
        self.fitted.mul_(ratio)
        is_lag = forest.features < outcome.lags
        moved = forest.thresholds * ratio + shift
        forest.thresholds.copy_(torch.where(is_lag, moved, forest.thresholds))
        self.prior.copy_(outcome.rescaled(self.prior, ratio, shift))

    def _slots(self, held: int) -> Tensor:
        """Return the slots of the window, int64."""
        if self.window.remembers:
            return torch.arange(self.memory.used)
        return self.memory.newest(held)

    def _add_tree(
        self, slots: Tensor, new: int, importances: Tensor, generator: torch.Generator
    ) -> None:
        memory, forest, window = self.memory, self.forest, self.window
        rows = slots
        if len(slots) > window.rows:
            newest = memory.newest(min(new, window.rows // 4))
            drawn = torch.randint(len(slots), (window.rows - len(newest),), generator=generator)
            rows = torch.cat([newest, slots.index_select(0, drawn)])
        kept = 1.0 - window.fade * memory.outcome.fading
        forest.leaves.mul_(kept)
        self.fitted.mul_(kept)
        chosen = features_of_tree(self.usable, generator)
        weights = memory.weights.index_select(0, rows)
        outputs = self.fitted.index_select(0, rows).add_(self.offset)
        labels = memory.labels.index_select(0, rows)
        slopes = memory.outcome.slopes(labels, weights, outputs, generator)
        grown = grow(memory.bins(rows, chosen), slopes, weights, chosen, memory.edges[chosen])
        tree, count = Tree(grown.features, grown.thresholds, grown.leaves), self.grown
        place = forest.tree(count % window.trees)
        gone = place if count >= window.trees else None
        replace_tree(self.fitted, memory.columns, slots, gone, tree)
        for mine, theirs in zip(place, tree, strict=True):
            mine.copy_(theirs)
        self.counts[1] = count + 1
        importances.mul_(IMPORTANCE_KEPT)
        importances.index_add_(0, grown.features, IMPORTANCE_OF_GAIN * grown.gains)
