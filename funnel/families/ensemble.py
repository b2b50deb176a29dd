"""All families that are no networks, as one: they share a memory."""

from typing import NamedTuple

import torch
from torch import Tensor

from funnel.families.forest import forest_logits
from funnel.families.frequencies import RECENT, Frequencies
from funnel.families.interface import Examples, Given
from funnel.families.memory import MOST_ADDED, NEWEST, SAMPLED, Memory
from funnel.families.neighbours import MOST_RANKED, NEAR, Remembered, names_of
from funnel.families.trees import MOST_LAGS, Trees, with_lags

OF_COLUMNS, EDGES, SPLITS = ("memory.rows", "trees.importances"), "memory.edges", ".features"
"""Names of tensors with columns, of that with a row for each, and how the names of those end that
hold numbers of columns."""
PIECE = 512
"""Rows of the memory that are copied together for a snapshot."""


class Layout(NamedTuple):
    """The numbers of an example: room for codes of categories, then for numbers."""

    codes: int
    numbers: int
    used_codes: int
    """Codes that there are by now; the rest is missing."""
    used_numbers: int

    @property
    def width(self) -> int:
        """Numbers of an example, with room for more."""
        return self.codes + self.numbers

    def used(self) -> Tensor:
        """Return which of them there are, int64."""
        codes, numbers = torch.arange(self.used_codes), torch.arange(self.used_numbers)
        return torch.cat([codes, numbers + self.codes])


class Answered(NamedTuple):
    """The answers of all experts to a batch."""

    probabilities: Tensor
    """fp32 [E, n, C]."""
    rows: Tensor
    """Inputs as the memory holds them, fp32 [n, D]."""
    logits: Tensor
    """Logits of the forests, fp32 [3, n, C]."""


class Frozen(NamedTuple):
    """All that answering needs, at one version; nothing changes it."""

    shares: Tensor
    """Frequencies of the labels, fp32 [4, C]."""
    forests: tuple[tuple[Tensor, Tensor, Tensor], ...]
    """Features, thresholds and leaves of each."""
    grown: tuple[int, ...]
    """Trees of each that were grown."""
    log_priors: Tensor
    """fp32 [3, C]."""
    remembered: Remembered
    """For the neighbours."""

    def answers(self, given: Given) -> Answered:
        """Return the answers to inputs."""
        rows = with_lags(given.raw, self.shares[RECENT])
        logits = torch.stack(
            [forest_logits(*f, rows, g) for f, g in zip(self.forests, self.grown, strict=True)]
        )
        trees = (logits + self.log_priors[:, None]).softmax(dim=2)
        shares = self.shares[:, None].expand(-1, len(rows), -1)
        found = torch.cat([trees, self.remembered.answers(given), shares])
        return Answered(found, rows, logits)


class Ensemble:
    """Trees, neighbours and frequencies.

    Args:
        layout: of an example's numbers.
        is_open: which classes there are, bool [C].
        has_ranks: whether neighbours are also looked for by ranks; by default if there are few
            numbers.
    """

    def __init__(self, layout: Layout, is_open: Tensor, has_ranks: bool | None = None) -> None:
        self.layout, self.is_open = layout, is_open
        self.has_ranks = layout.width <= MOST_RANKED if has_ranks is None else has_ranks
        self.memory = Memory(MOST_LAGS + layout.width, is_open)
        self.trees = Trees(self.memory, layout.used())
        self.frequencies = Frequencies(is_open)
        self.names = (*self.trees.names, *names_of(self.has_ranks), *self.frequencies.names)
        pieces = -(-(NEWEST + SAMPLED) // PIECE)
        self._copies: list[Tensor | None] = [None] * pieces
        """Copies of pieces of the memory that snapshots share; None where the memory is newer."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        parts = {
            "memory": self.memory.tensors(),
            "trees": self.trees.tensors(),
            "frequencies": self.frequencies.tensors(),
        }
        return {f"{name}.{k}": v for name, part in parts.items() for k, v in part.items()}

    def resized(self, layout: Layout, is_open: Tensor) -> "Ensemble":
        """Return an ensemble with room for more numbers or classes that goes on.

        A number that is new was missing before, and a class that is new had no example.

        Args:
            layout: no smaller than its own.
            is_open: bool [C], no shorter than its own.
        """
        larger = Ensemble(layout, is_open, self.has_ranks)
        larger.memory.rows.fill_(torch.inf)
        opened, old, shift = (
            larger.memory.prior.clone(),
            self.layout,
            layout.codes - self.layout.codes,
        )
        coded, columns = MOST_LAGS + old.codes, self.memory.rows.shape[1]
        place = torch.arange(columns)
        place[coded:] += shift
        for name, mine in self.tensors().items():
            theirs = larger.tensors()[name]
            if name in OF_COLUMNS:
                theirs[..., place] = mine
            elif name == EDGES:
                theirs[place] = mine
            else:
                theirs[tuple(map(slice, mine.shape))] = mine
            if name.endswith(SPLITS):
                theirs[theirs >= coded] += shift
        for prior in (larger.memory.prior, *(f.prior for f in larger.trees.forests.values())):
            prior.copy_(torch.where(prior > 0, prior, opened))
        larger.loaded()
        return larger

    def loaded(self) -> None:
        """Notice that other values were copied into the tensors."""
        self.memory.loaded()
        self._copies = [None] * len(self._copies)

    def answers(self, given: Given) -> Answered:
        """Return the answers to a batch."""
        used = self.memory.used
        pieces = self.memory.rows[:used].split(PIECE)
        return self._view(pieces).answers(given)

    def learn(self, examples: Examples, answered: Answered) -> None:
        """Learn a batch that is finite.

        Args:
            examples: the batch.
            answered: as `answers` returned it.
        """
        self._take(examples, answered.rows, answered.logits)

    def skip(self, examples: Examples) -> None:
        """Remember a batch that is finite, without growing trees."""
        self._take(examples, with_lags(examples.given.raw, self.frequencies.recent), None)

    def _take(self, examples: Examples, rows: Tensor, logits: Tensor | None) -> None:
        """Take a batch.

        Args:
            examples: the batch.
            rows: its inputs as the memory holds them, fp32 [n, D].
            logits: of the forests, fp32 [3, n, C]; None if no trees are grown.
        """
        counts = examples.weights > 0
        if not bool(counts.all()):
            examples, rows = _those(examples, counts), rows[counts]
            logits = None if logits is None else logits[:, counts]
        for begin in range(0, len(examples.labels), MOST_ADDED):
            own = slice(begin, begin + MOST_ADDED)
            part = examples._replace(
                labels=examples.labels[own],
                weights=examples.weights[own],
                seed=(*examples.seed, begin),
            )
            moved = self.memory.add(rows[own], part.labels, part.weights, part.generator(0))
            changed = torch.cat([moved.slots, moved.targets]).div(PIECE, rounding_mode="floor")
            for piece in changed.unique().tolist():
                self._copies[piece] = None
            if logits is None:
                self.trees.skip(moved)
            else:  # the trees of an earlier part answer the next one, too
                now = self.trees.logits(rows[own]) if begin else logits[:, own]
                self.trees.learn(part, moved, now)
            self.frequencies.learn(part)

    def frozen(self) -> Frozen:
        """Return a copy of the present; pieces of the memory that did not change are shared."""
        used = self.memory.used
        pieces = []
        for number, piece in enumerate(self.memory.rows[:used].split(PIECE)):
            copy = self._copies[number]
            if copy is None or len(copy) != len(piece):
                copy = self._copies[number] = piece.clone()
            pieces.append(copy)
        view = self._view(())
        return Frozen(
            view.shares.clone(),
            tuple((f.clone(), t.clone(), leaves.clone()) for f, t, leaves in view.forests),
            view.grown,
            view.log_priors,
            view.remembered.copy(tuple(pieces)),
        )

    def _view(self, pieces: tuple[Tensor, ...]) -> Frozen:
        """Return what answering needs, over the tensors themselves."""
        memory, trees = self.memory, self.trees
        used = memory.used
        remembered = Remembered(
            pieces,
            memory.labels[:used],
            memory.weights[:used],
            memory.newest(NEAR),
            memory.prior,
            trees.importances,
            memory.edges,
            self.has_ranks,
        )
        forests = [boosted.forest for boosted in trees.forests.values()]
        return Frozen(
            self.frequencies.shares,
            tuple((f.features, f.thresholds, f.leaves) for f in forests),
            tuple(boosted.grown for boosted in trees.forests.values()),
            trees.log_priors,
            remembered,
        )


def _those(examples: Examples, counts: Tensor) -> Examples:
    """Return the examples that count for something."""
    return examples._replace(
        given=examples.given._replace(raw=examples.given.raw[counts]),
        labels=examples.labels[counts],
        weights=examples.weights[counts],
    )
