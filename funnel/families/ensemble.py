"""All families that are no networks, as one: they share a memory."""

from typing import NamedTuple

import torch
from torch import Tensor

from funnel.families.compared import Compared, Measure, Piece
from funnel.families.forests.forest import forest_logits
from funnel.families.frequencies import Frequencies, Recent
from funnel.families.interface import MOST_LAGS, Examples, Given, Scaling
from funnel.families.memory import MOST_ADDED, Memory, Waiting
from funnel.families.neighbours import MOST_RANKED, NEAR, Coded, Remembered, names_of
from funnel.families.numbers import Numbers
from funnel.families.outcomes import Classes, Outcome
from funnel.families.trees import Trees, with_lags

COMPARED = "compared"
OF_COLUMNS = ("memory.rows", "trees.importances", *(f"{COMPARED}.{k}" for k in Measure._fields))
WAITING = "waiting"
INPUTS_WAITING = f"{WAITING}.rows"
EDGES, SPLITS = "memory.edges", ".features"
"""Names of tensors with columns, of that with a row for each, and how the names of those end that
hold numbers of columns."""


TREES, NEIGHBOURS, FREQUENCIES = "trees", "neighbours", "frequencies"
ALL = (TREES, NEIGHBOURS, FREQUENCIES)


class Layout(NamedTuple):
    """The numbers of an example: room for codes of categories, then for numbers."""

    codes: int
    numbers: int
    used_codes: int
    """Codes that there are by now; the rest is missing."""
    used_numbers: int
    compares_codes: bool = False
    """True if codes have a distance, too: they are equal, or they differ."""

    @property
    def width(self) -> int:
        """Numbers of an example, with room for more."""
        return self.codes + self.numbers

    def compared(self) -> slice:
        """Return which of them have a distance as numbers: those that there are, at least one."""
        return slice(self.codes, self.codes + max(1, self.used_numbers))

    def compared_codes(self) -> slice:
        """Return which of them have a distance as codes: those that there are, or none."""
        return slice(0, self.used_codes if self.compares_codes else 0)

    def used(self) -> Tensor:
        """Return which of them there are, int64."""
        codes, numbers = torch.arange(self.used_codes), torch.arange(self.used_numbers)
        return torch.cat([codes, numbers + self.codes])


class Answered(NamedTuple):
    """The answers of all experts to a batch."""

    answers: Tensor
    """fp32 [E, n, A]."""
    rows: Tensor
    """Inputs as the memory holds them, fp32 [n, D]."""
    logits: Tensor
    """Outputs of the forests, fp32 [3, n, A]."""


class Frozen(NamedTuple):
    """All that answering needs, at one version; nothing changes it."""

    shares: Tensor
    """Frequencies of the labels, or recent numbers, fp32 [4, A]."""
    forests: tuple[tuple[Tensor, Tensor, Tensor], ...]
    """Features, thresholds and leaves of each."""
    grown: tuple[int, ...]
    """Trees of each that were grown."""
    offsets: Tensor
    """Offsets of the forests, fp32 [3, A]."""
    remembered: Remembered
    """For the neighbours."""
    families: tuple[str, ...]
    """The families that answer."""

    def answers(self, given: Given) -> Answered:
        """Return the answers to inputs."""
        outcome = self.remembered.outcome
        rows = with_lags(given.raw, outcome.recent(self.shares))
        logits = rows.new_zeros(len(self.forests), len(rows), outcome.outputs)
        for own, forest, grown in zip(logits, self.forests, self.grown, strict=True):
            own.copy_(forest_logits(*forest, rows, grown))
        found = [outcome.answers(logits + self.offsets[:, None])]
        if NEIGHBOURS in self.families:
            found.append(self.remembered.answers(given))
        if FREQUENCIES in self.families:
            found.append(self.shares[:, None].expand(-1, len(rows), -1))
        return Answered(torch.cat(found), rows, logits)


class Ensemble:
    """Trees, neighbours and frequencies.

    Args:
        layout: of an example's numbers.
        outcome: of the labels.
        has_ranks: whether neighbours are also looked for by ranks; by default if there are few
            numbers.
        families: of ALL, those that learn and answer.
    """

    def __init__(
        self,
        layout: Layout,
        outcome: Outcome,
        has_ranks: bool | None = None,
        families: tuple[str, ...] = ALL,
    ) -> None:
        self.layout, self.outcome, self.families = layout, outcome, families
        self.has_ranks = layout.width <= MOST_RANKED if has_ranks is None else has_ranks
        self.memory = Memory(MOST_LAGS + layout.width, outcome)
        self.trees = Trees(self.memory, layout.used())
        self.frequencies = recent_of(outcome)
        each = self.trees.names, names_of(self.has_ranks), self.frequencies.names
        self.names = tuple(
            n for f, own in zip(ALL, each, strict=True) if f in families for n in own
        )
        kept = layout.compared(), self.has_ranks, layout.compared_codes()
        self.compared = Compared(self.memory, MOST_LAGS, *kept)
        self.waiting = Waiting(layout.width, outcome)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        parts = {
            "memory": self.memory.tensors(),
            WAITING: self.waiting.tensors(),
            FREQUENCIES: self.frequencies.tensors(),
        }
        if NEIGHBOURS in self.families:
            parts[COMPARED] = self.compared.tensors()
        if TREES in self.families:
            parts[TREES] = self.trees.tensors()
        return {f"{name}.{k}": v for name, part in parts.items() for k, v in part.items()}

    def resized(self, layout: Layout, outcome: Outcome) -> "Ensemble":
        """Return an ensemble with room for more numbers or classes that goes on.

        A number that is new was missing before, and a class that is new had no example.

        Args:
            layout: no smaller than its own.
            outcome: of no fewer classes than its own.
        """
        larger = Ensemble(layout, outcome, self.has_ranks, self.families)
        larger.memory.rows.fill_(torch.inf)
        larger.waiting.rows.fill_(torch.inf)
        larger.compared.measure.scale.fill_(1.0)
        old, shift = self.layout, layout.codes - self.layout.codes
        coded, columns = MOST_LAGS + old.codes, self.memory.rows.shape[1]
        place = torch.arange(columns)
        place[coded:] += shift
        for name, mine in self.tensors().items():
            theirs = larger.tensors()[name]
            if name == INPUTS_WAITING:
                theirs[:, place[MOST_LAGS:] - MOST_LAGS] = mine
            elif name in OF_COLUMNS:
                theirs[..., place] = mine
            elif name == EDGES:
                theirs[place] = mine
            else:
                theirs[tuple(map(slice, mine.shape))] = mine
            if name.endswith(SPLITS):
                theirs[theirs >= coded] += shift
        for prior in (larger.memory.prior, *(f.prior for f in larger.trees.forests.values())):
            prior.copy_(outcome.opened(prior))
        larger.loaded()
        return larger

    def loaded(self) -> None:
        """Notice that other values were copied into the tensors."""
        self.memory.loaded()
        if NEIGHBOURS in self.families:
            self.compared.loaded()

    def forget(self) -> None:
        """Be as at first."""
        fresh = Ensemble(self.layout, self.outcome, self.has_ranks, self.families).tensors()
        for name, tensor in self.tensors().items():
            tensor.copy_(fresh[name])
        self.loaded()

    def answers(self, given: Given) -> Answered:
        """Return the answers to a batch."""
        own = (self.compared.present(),) if NEIGHBOURS in self.families else ()
        return self._view(own).answers(given)

    def learn(self, examples: Examples, answered: Answered) -> None:
        """Learn a batch that is finite.

        Args:
            examples: the batch.
            answered: as `answers` returned it.
        """
        self._take(examples, answered.rows, answered.logits)

    @property
    def _lags(self) -> Tensor:
        """Statistics of the latest labels that trees see, fp32 [lags]."""
        return self.outcome.recent(self.frequencies.shares)

    def rescale(self, ratio: Tensor, shift: Tensor) -> None:
        """Continue with numbers in another unit, in which all answers stay what they are.

        Args:
            ratio: of the old unit to the new one, 0-dim.
            shift: what a number of 0 in the old unit is in the new one, 0-dim.
        """
        assert isinstance(self.frequencies, Recent), "only numbers have a unit"
        self.memory.rescale(ratio, shift)
        self.waiting.labels.mul_(ratio).add_(shift)
        self.trees.rescale(ratio, shift)
        self.frequencies.rescale(ratio, shift)
        self.loaded()

    def skip(self, examples: Examples) -> None:
        """Let a batch that is finite wait; `catch_up` remembers it, without growing trees."""
        n = len(examples.labels)
        if self.waiting.held + n > MOST_ADDED:
            self.catch_up(examples.given.scaling)
        if n > MOST_ADDED:
            self._take(examples, with_lags(examples.given.raw, self._lags), None)
            return
        self.waiting.add(examples.given.raw, examples.labels, examples.weights, examples.seed)

    def catch_up(self, scaling: Scaling) -> None:
        """Remember the examples that wait.

        Args:
            scaling: how inputs are standardized now.
        """
        held, *seed = self.waiting.counts.tolist()
        if not held:
            return
        raw, labels, weights = (
            part[:held] for part in (self.waiting.rows, self.waiting.labels, self.waiting.weights)
        )
        examples = Examples(Given(raw, scaling), labels, weights, tuple(seed))
        self._take(examples, with_lags(raw, self._lags), None)
        self.waiting.counts[0] = 0

    def _take(self, examples: Examples, rows: Tensor, logits: Tensor | None) -> None:
        """Take a batch.

        Args:
            examples: the batch.
            rows: its inputs as the memory holds them, fp32 [n, D].
            logits: of the forests, fp32 [3, n, A]; None if no trees are grown.
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
            new, learns = (rows[own], part.labels, part.weights), logits is not None
            moved = self.memory.add(*new, part.generator(0), measures=learns)
            if NEIGHBOURS in self.families:
                self.compared.follow(moved, rows[own], part.given.scaling, self.trees.importances)
            if TREES in self.families and logits is not None:
                # the trees of an earlier part answer the next one, too
                now = self.trees.logits(rows[own]) if begin else logits[:, own]
                self.trees.learn(part, moved, now)
            elif TREES in self.families:
                self.trees.skip(moved)
            self.frequencies.learn(part, self.memory)

    def frozen(self) -> Frozen:
        """Return a copy of the present; pieces of the memory that did not change are shared."""
        view = self._view(())
        return Frozen(
            view.shares.clone(),
            tuple((f.clone(), t.clone(), leaves.clone()) for f, t, leaves in view.forests),
            view.grown,
            view.offsets,
            view.remembered.copy(self.compared.copies() if NEIGHBOURS in self.families else ()),
            self.families,
        )

    def _view(self, pieces: tuple[Piece, ...]) -> Frozen:
        """Return what answering needs, over the tensors themselves."""
        memory, trees = self.memory, self.trees
        used, codes = memory.used, self.layout.compared_codes()
        gains = trees.importances if self.has_ranks else self.compared.measure.importances
        gains = gains[MOST_LAGS:]
        remembered = Remembered(
            pieces,
            memory.labels[:used],
            memory.weights[:used],
            memory.newest(NEAR),
            memory.prior,
            gains[self.layout.compared()],
            self.compared.edges,
            self.compared.scaling,
            self.has_ranks,
            self.outcome,
            self.layout.compared(),
            Coded(codes, self.compared.apart, gains[codes]) if codes.stop else None,
        )
        grow = list(trees.forests.values()) if TREES in self.families else []
        forests = [boosted.forest for boosted in grow]
        return Frozen(
            self.frequencies.shares,
            tuple((f.features, f.thresholds, f.leaves) for f in forests),
            tuple(boosted.grown for boosted in grow),
            trees.offsets[: len(grow)],
            remembered,
            self.families,
        )


def recent_of(outcome: Outcome) -> Frequencies | Recent:
    """Return the experts that know the latest labels alone."""
    if isinstance(outcome, Numbers):
        return Recent(outcome)
    assert isinstance(outcome, Classes), "labels are numbers or classes"
    return Frequencies(outcome)


def _those(examples: Examples, counts: Tensor) -> Examples:
    """Return the examples that count for something."""
    return examples._replace(
        given=examples.given._replace(raw=examples.given.raw[counts]),
        labels=examples.labels[counts],
        weights=examples.weights[counts],
    )
