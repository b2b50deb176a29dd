"""The examples of the memory as neighbours compare them, kept as they come.

Inputs are standardized as they were when the quantiles of the memory were last taken, so that an
example is standardized once, not at each batch. Few inputs are kept in fp32, with their ranks. Many
inputs are kept as integers of 8 bits, 24 of which are a standard deviation: sums of their products
are exact in any order, and a fraction of the cost. There, the inputs of largest gain are
kept once more, times the roots of their gains at that time.

Codes of categories are equal or they differ [D. R. Wilson, T. R. Martinez, 'Improved heterogeneous
distance functions', JAIR 6, 1997: the overlap metric of HEOM]. Two that differ are 2 / p apart,
squared, where p is the share of pairs of examples that differ: so the mean over all pairs is 2, as
it is of a standardized number. It is at most FARTHEST.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from funnel.families.forests.growing import bins_of
from funnel.families.interface import LIMIT, Scaling
from funnel.families.memory import Memory, Moved

LEVELS = 24.0
"""Integers of a standard deviation, beyond MOST_RANKED inputs."""
MOST_GAINS = 256
"""Inputs of largest gain that the metric *gain* looks at, beyond MOST_RANKED inputs."""
RANGE = 1.7
"""Ranks are from -RANGE to RANGE, which has about the variance of standardized inputs."""
MOST_NUMBERS = 1 << 18
"""Numbers that are standardized at once."""
PIECE = 1_024
"""Examples that are copied together for a snapshot."""
FARTHEST = LIMIT**2
"""Squared distance of a number at its limit from the mean; two codes are at most as far apart."""


class Piece(NamedTuple):
    """Some examples; their numbers are compared as they are."""

    numbers: Tensor
    """Standardized, fp32 [., d], or int8 [., d]."""
    others: Tensor
    """Ranks among quantiles, fp32 [., d]; or int8 [., gains], those of largest gain."""
    norms: Tensor
    """Sums of the squares of both, int32 [2, .]; none of fp32."""
    codes: Tensor
    """Codes of categories, fp32 [c, .]."""


class Measure(NamedTuple):
    """How inputs are compared: the state. The first of the D columns are no inputs."""

    mean: Tensor
    """fp32 [D]."""
    scale: Tensor
    """fp32 [D]; 0 where it was never taken. That of a code which is compared is 1 / the squared
    distance of two that differ."""
    importances: Tensor
    """Importances of the columns in trees, fp32 [D]."""


class Compared:
    """Examples in slots.

    Args:
        memory: holds the numbers.
        lags: how many of its columns are no inputs.
        numbers: the inputs that are compared.
        has_ranks: whether inputs are few: they are kept in fp32, with their ranks.
        codes: the inputs that are codes of categories and are compared, too.
    """

    def __init__(
        self, memory: Memory, lags: int, numbers: slice, has_ranks: bool, codes: slice
    ) -> None:
        self.memory, self.lags, self.has_ranks = memory, lags, has_ranks
        width, slots = memory.columns.shape
        device, inputs = memory.columns.device, numbers.stop - numbers.start
        self.measure = Measure(*torch.zeros(3, width, device=device))
        self._own = slice(lags + numbers.start, lags + numbers.stop)
        """The columns of the memory that are compared as numbers."""
        self._codes = slice(lags + codes.start, lags + codes.stop)
        """The columns that are compared as categories."""
        kind = torch.float32 if has_ranks else torch.int8
        second = inputs if has_ranks else min(inputs, MOST_GAINS)
        self._whole = Piece(
            torch.zeros(slots, inputs, dtype=kind, device=device),
            torch.zeros(slots, second, dtype=kind, device=device),
            torch.zeros(2, 0 if has_ranks else slots, dtype=torch.int32, device=device),
            memory.columns[self._codes],
        )
        self._copies: list[Piece | None] = [None] * -(-slots // PIECE)
        """Copies that snapshots share; None where examples are newer."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return self.measure._asdict()

    @property
    def scaling(self) -> Scaling:
        """How inputs are standardized, the tensors themselves."""
        return Scaling(self.measure.mean[self._own], self.measure.scale[self._own])

    @property
    def importances(self) -> Tensor:
        """Importances of what is compared as numbers, the tensor itself."""
        return self.measure.importances[self._own]

    @property
    def edges(self) -> Tensor:
        """Quantiles of what is compared as numbers, the tensor itself."""
        return self.memory.edges[self._own]

    @property
    def apart(self) -> Tensor:
        """Squared distances of two codes that differ, fp32 [c]."""
        return self.measure.scale[self._codes].reciprocal()

    def follow(self, moved: Moved, rows: Tensor, scaling: Scaling, importances: Tensor) -> None:
        """Take the examples that came into the memory.

        Args:
            moved: what they moved there.
            rows: their numbers, fp32 [n, D].
            scaling: how inputs are standardized now.
            importances: of the columns in trees, fp32 [D].
        """
        if moved.is_measured:
            self.measure.mean[self.lags :] = scaling.mean
            self.measure.scale.fill_(1.0)[self.lags :] = scaling.scale
            differ = shares_that_differ(self._whole.codes[:, : self.memory.used])
            self.measure.scale[self._codes] = differ.div(2.0).clamp(min=1.0 / FARTHEST)
            self.measure.importances.copy_(importances)
            self.loaded()
            return
        numbers, others, norms = self._compare(rows[:, self._own])
        moved.follow(self._whole.numbers, numbers)
        moved.follow(self._whole.others, others)
        if not self.has_ranks:
            moved.follow(self._whole.norms.t(), norms.t())
        for piece in {slot // PIECE for slot in (*moved.targets.tolist(), *moved.slots.tolist())}:
            self._copies[piece] = None

    def loaded(self) -> None:
        """Compute what follows from the memory and the state, after they were loaded."""
        used = self.memory.used
        if used and not bool(self.measure.scale.any()):  # the checkpoint of an earlier version
            self._measure(self.memory.rows[: self.memory.used])
        self._copies = [None] * len(self._copies)
        most = max(1, MOST_NUMBERS // self._whole.numbers.shape[1])
        for first in range(0, used, most):
            raw = self.memory.rows[first : min(used, first + most), self._own]
            kept = self.present(first, first + most)[:3]  # the codes are those of the memory
            for mine, new in zip(kept, self._compare(raw), strict=True):
                mine.copy_(new)

    def _measure(self, rows: Tensor) -> None:
        """Take the measure from examples."""
        is_there = torch.isfinite(rows)
        numbers, count = torch.where(is_there, rows, 0.0), is_there.sum(dim=0).clamp(min=1)
        self.measure.mean.copy_(numbers.sum(dim=0) / count)
        numbers = torch.where(is_there, numbers - self.measure.mean, 0.0)
        deviation = (numbers.square().sum(dim=0) / count).sqrt()
        self.measure.scale.copy_(torch.where(deviation > 0, deviation, 1.0))
        self.measure.importances.fill_(1.0 / len(self.measure.importances))

    def _compare(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, fp32 [n, d], as they are compared, and their norms, as a `Piece` does."""
        importances = None if self.has_ranks else self.importances
        both = compared(raw, self.scaling, self.edges, importances)
        if self.has_ranks:
            return *both, self._whole.norms
        norms = torch.stack([part.int().square().sum(dim=1) for part in both]).int()
        return *both, norms

    def present(self, begin: int = 0, end: int | None = None) -> Piece:
        """Return the examples of slots, by default of all that hold one, the tensors themselves."""
        own = slice(begin, min(end or self.memory.used, self.memory.used))
        numbers, others, norms, codes = self._whole
        return Piece(numbers[own], others[own], norms[:, own], codes[:, own])

    def copies(self) -> tuple[Piece, ...]:
        """Return copies of all examples, in pieces; those that did not change are shared."""
        found = []
        for number, first in enumerate(range(0, self.memory.used, PIECE)):
            piece, copy = self.present(first, first + PIECE), self._copies[number]
            if copy is None or len(copy.numbers) != len(piece.numbers):
                copy = self._copies[number] = Piece(*(part.clone() for part in piece))
            found.append(copy)
        return tuple(found)


def compared(
    raw: Tensor, scaling: Scaling, edges: Tensor, gains: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return inputs as they are compared: standardized, and their ranks or largest gains.

    Args:
        raw: fp32 [n, d]; a missing one is infinite.
        scaling: how they are standardized.
        edges: quantiles of the inputs, fp32 [d, BINS - 1].
        gains: importances of inputs, fp32 [d], where these are many; None for ranks.
    """
    numbers = scaling(raw)
    if gains is None:
        return numbers, ranks(raw, edges)
    root = gains.sqrt()
    order = root.sort(descending=True, stable=True).indices[:MOST_GAINS]
    best = numbers[:, order].mul_(root[order] * (LEVELS / root.max().clamp(min=1e-30)))
    return numbers.mul_(LEVELS).round_().to(torch.int8), best.round_().to(torch.int8)


def ranks(inputs: Tensor, edges: Tensor) -> Tensor:
    """Return where inputs lie among quantiles, fp32 [n, d] within ±RANGE; 0 where one is missing.

    Between two quantiles it is linear.

    Args:
        inputs: fp32 [n, d].
        edges: ascending, fp32 [d, BINS - 1].
    """
    last = edges.shape[1] - 1
    columns = inputs.t().contiguous()
    every = (torch.arange(part) for part in columns.t().shape)
    after = bins_of(columns, edges, *every).long().clamp_(1, last)
    low, high = edges.gather(1, after - 1), edges.gather(1, after)
    part = ((columns - low) / (high - low).clamp(min=1e-30)).clamp(0.0, 1.0).nan_to_num(0.5)
    found = (after - 1 + part) * (2 * RANGE / last) - RANGE
    return found.masked_fill_(~torch.isfinite(columns), 0.0).t()


def shares_that_differ(codes: Tensor) -> Tensor:
    """Return the share of pairs of examples whose codes differ, by column, fp32 [c].

    An example makes a pair with itself, too. Pairs are counted, so their order has no part in it.

    Args:
        codes: fp32 [c, m].
    """
    ascending = codes.sort(dim=1).values
    first = torch.searchsorted(ascending, ascending)
    after = torch.searchsorted(ascending, ascending, right=True)
    equal = (after - first).sum(dim=1)
    return (1.0 - equal.double() / max(1, codes.shape[1]) ** 2).float()
