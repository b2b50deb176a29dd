"""The family of neighbours: the nearest examples of a memory vote, in several metrics.

| metric | distance |
|---|---|
| *plain* | Euclidean, of standardized inputs |
| *gain* | the same, with each input times the root of its importance in the trees |
| *rank* | of the ranks of inputs among quantiles, times the fourth root; up to MOST_RANKED inputs |

Where codes of categories are compared, each adds its squared distance where two differ
(`funnel.families.compared`), times its importance, to the metric *gain*. The others compare numbers
alone: so categories that say nothing cost them nothing before the trees have found that out.

A neighbour at distance r votes with 1 / (r + a tenth of the mean of those k). Votes for classes are
shrunk to their prior by 1 / (k + 1); of numbers the answer is the weighted mean, or the weighted
quantiles. If two are at one distance, that in the first slot counts as nearer.
`funnel.families.compared` says how inputs are kept.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from funnel.compiled import loops
from funnel.families.compared import LEVELS, Piece, compared
from funnel.families.forests.forest import LOOPS
from funnel.families.interface import Given, Scaling
from funnel.families.outcomes import Classes, Outcome

NEAR = 1_000
"""The newest examples among which some experts look."""
MOST_RANKED = 64
SEGMENT = 64
MOST_ASKED = 512
"""Inputs that are compared with the memory at once, which takes 16 MB for each metric."""
MOST_EXACT = 1_024
"""Products of two 8-bit integers up to 120 whose sum fp32 holds exactly."""
EXPERTS = {
    "plain": ((1, False), (3, False), (3, True), (10, True)),
    "gain": ((3, False), (10, False), (10, True)),
    "rank": ((3, False),),
}
"""By metric: k, and whether only the newest are asked."""
MOST_APART = 1 << 28
"""Bound on the sum of halves of squared distances of codes where numbers are integers: fp32 would
hold more, int32 would not."""


class Coded(NamedTuple):
    """How codes of categories are compared."""

    columns: slice
    """The inputs that are codes, c of them."""
    apart: Tensor
    """Squared distances of two that differ, fp32 [c]."""
    importances: Tensor
    """fp32 [c], of the same time as those of numbers."""

    def copy(self) -> "Coded":
        """Return a copy, which lasts."""
        return Coded(self.columns, self.apart.clone(), self.importances.clone())


@dataclass(frozen=True, eq=False)
class Remembered:
    """The examples that the experts look at; copies of it answer alike."""

    pieces: tuple[Piece, ...]
    """Examples, of equal number but in the last piece."""
    labels: Tensor
    """[m]."""
    weights: Tensor
    """fp32 [m]."""
    newest: Tensor
    """Slots of the newest, int64, at most NEAR."""
    prior: Tensor
    """Decayed statistics of the labels, as the memory has them, fp32."""
    importances: Tensor
    """Importances of inputs, fp32 [d]: the present ones, or with integers those of the pieces."""
    edges: Tensor
    """Quantiles of inputs, fp32 [d, BINS - 1]."""
    scaling: Scaling
    """How inputs are standardized in the pieces."""
    has_ranks: bool
    """True if the metric *rank* is there."""
    outcome: Outcome
    numbers: slice
    """The inputs that are compared as numbers, d of them."""
    coded: Coded | None = None
    """The inputs that are compared as categories; None for none."""
    _joined: list[Piece] = field(default_factory=list)
    """Once they were asked for, all examples in one piece."""
    _norms: list[Tensor] = field(default_factory=list)
    """Once they were asked for, the weighted squares of the examples, [3, m] or [2, m]."""

    def copy(self, pieces: tuple[Piece, ...]) -> "Remembered":
        """Return a copy.

        Args:
            pieces: copies of the pieces.
        """
        return replace(
            self,
            pieces=pieces,
            labels=self.labels.clone(),
            weights=self.weights.clone(),
            prior=self.prior.clone(),
            importances=self.importances.clone(),
            edges=self.edges.clone(),
            scaling=self.scaling.copy(),
            coded=None if self.coded is None else self.coded.copy(),
            _joined=[],
            _norms=[],
        )

    def answers(self, given: Given) -> Tensor:
        """Return the answers of each expert, fp32 [E, n, A].

        Args:
            given: inputs; they are standardized as the examples were.
        """
        if len(given.raw) > MOST_ASKED:
            parts = (given._replace(raw=raw) for raw in given.raw.split(MOST_ASKED))
            return torch.cat([self.answers(part) for part in parts], dim=1)
        if not len(self.labels):
            known = self.outcome.alone(self.prior)
            return known.expand(len(names_of(self.has_ranks)), len(given.raw), -1)
        gains = None if self.has_ranks else self.importances
        raw = given.raw[:, self.numbers]
        numbers, others = compared(raw, self.scaling, self.edges, gains)
        if not self.has_ranks:
            norms, found = self._whole().norms, list[Tensor]()
            for metric, mine, norm in zip(EXPERTS, (numbers, others), norms, strict=False):
                own = mine.int().square().sum(dim=1).int()
                products = self._products(mine, metric == "gain")
                if metric == "gain":
                    self._set_apart(products, given)
                found.append(self._voted(metric, products, norm, own))
            return torch.cat(found)
        found, weights = list[Tensor](), self._weights()
        for metric, norms, weight in zip(EXPERTS, self._squares(weights), weights, strict=True):
            mine = others if metric == "rank" else numbers
            weighted = mine * weight
            own = (weighted * mine).sum(dim=1)
            products = self._products(weighted, metric == "rank")
            if metric == "gain":
                self._set_apart(products, given)
            found.append(self._voted(metric, products, norms, own))
        return torch.cat(found)

    def _weights(self) -> tuple[Tensor, ...]:
        """Return the weight of each number by metric, fp32 [d]."""
        gain = self.importances / self._unit
        return torch.ones_like(gain), gain, gain.sqrt()

    @property
    def _unit(self) -> Tensor:
        """The importance that counts once in the metric *gain*, 0-dim."""
        if not self.has_ranks:
            return self.importances.max().clamp(min=1e-30)
        every = self.importances
        if self.coded is not None:
            every = torch.cat([every, self.coded.importances])
        return every.mean().clamp(min=1e-30)

    def _set_apart(self, products: Tensor, given: Given) -> None:
        """Let examples of other codes be as far apart as *gain* says, in its inner products."""
        if (coded := self.coded) is None:
            return
        halves = coded.apart * 0.5 * (coded.importances / self._unit)
        if not self.has_ranks:
            most = MOST_APART // len(halves)
            halves = halves.mul_(LEVELS**2).clamp_(max=most).round_().int()
        set_apart(products, given.raw[:, coded.columns], self._whole().codes, halves)

    def _squares(self, weights: tuple[Tensor, ...]) -> Tensor:
        """Return the weighted squares of the examples by metric, fp32 [3, m]."""
        if not self._norms:
            numbers, others, *_ = self._whole()
            both = numbers.square() @ torch.stack(weights[:2], dim=1)
            parts = [both, others.square() @ weights[2][:, None]]
            self._norms.append(torch.cat(parts, dim=1).t().contiguous())
        return self._norms[0]

    def _products(self, mine: Tensor, of_others: bool) -> Tensor:
        """Return the inner products with all examples, [n, m], fp32 or of integers int32."""
        theirs = self._whole().others if of_others else self._whole().numbers
        return integer_products(mine, theirs) if mine.dtype == torch.int8 else mine @ theirs.t()

    def _whole(self) -> Piece:
        """Return all examples in one piece."""
        if len(self.pieces) == 1:
            return self.pieces[0]
        if not self._joined:
            numbers, others, *wide = zip(*self.pieces, strict=True)
            norms, codes = (torch.cat(parts, dim=1) for parts in wide)
            self._joined.append(Piece(torch.cat(numbers), torch.cat(others), norms, codes))
        return self._joined[0]

    def _voted(self, metric: str, products: Tensor, norms: Tensor, own: Tensor) -> Tensor:
        """Return the answers of the experts of a metric, fp32 [experts, n, A].

        Args:
            metric: its name.
            products: inner products of inputs and examples, [n, m].
            norms: squares of the examples, [m].
            own: squares of the inputs, [n].
        """
        counts, is_newest = zip(*EXPERTS[metric], strict=True)
        asked = (products, norms, own, self.newest, self.weights)
        sizes = [
            min(k, len(self.newest) if newest else len(norms)) for k, newest in EXPERTS[metric]
        ]
        compiled = None if products.is_cuda else loops(LOOPS)
        if compiled is None:
            slots, votes = by_operators(*asked, EXPERTS[metric])
        else:
            shape = len(counts), len(products), max(sizes)
            slots, votes = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
            given = (*asked, torch.tensor(counts), torch.tensor(is_newest), slots, votes)
            compiled.nearest(*(tensor.numpy() for tensor in given))
        if compiled is not None and isinstance(self.outcome, Classes):
            prior = self.outcome.alone(self.prior)
            found = torch.zeros(len(counts), len(products), len(prior))
            votes_of = (self.labels, slots, votes, prior, torch.tensor(counts), found)
            compiled.tally(*(tensor.numpy() for tensor in votes_of))
            return found
        labels, parts = self.labels[slots], []
        for k, size, label, vote in zip(counts, sizes, labels, votes, strict=True):
            parts.append(self.outcome.voted(label[:, :size], vote[:, :size], self.prior, k))
        return torch.stack(parts)


def by_operators(
    products: Tensor,
    norms: Tensor,
    own: Tensor,
    newest: Tensor,
    weights: Tensor,
    experts: tuple[tuple[int, bool], ...],
) -> tuple[Tensor, Tensor]:
    """Return the nearest examples of each expert and their votes, by torch operators.

    A key is the squared distance, whose bits rise with it, and the slot, so that no two are equal.

    Args:
        products: inner products of inputs and examples, [n, m].
        norms: squares of the examples, [m].
        own: squares of the inputs, [n].
        newest: slots of the newest examples, int64.
        weights: of the examples, fp32 [m].
        experts: how many each asks, and whether of the newest alone.

    Returns:
        Slots, int64, and votes, fp32, [E, n, k] both, the nearest first; 0 where there are fewer.
    """
    far = products.mul(-2).add_(norms).add_(own[:, None])
    every = torch.arange(far.shape[1], device=far.device)
    keys = (far.view(torch.int32).clamp(min=0).long() << 32).add_(every)
    slots, votes = list[Tensor](), list[Tensor]()
    most = max(min(k, len(newest) if is_newest else far.shape[1]) for k, is_newest in experts)
    for k, is_newest in experts:
        nearest = smallest(keys[:, newest] if is_newest else keys, k)
        places, squared = nearest & 0xFFFFFFFF, (nearest >> 32).int()
        squared = squared.view(torch.float32) if far.is_floating_point() else squared.float()
        near = torch.from_numpy(np.sqrt(squared.cpu().numpy()))  # torch's may be a bit off
        near = near.to(far.device)
        total = torch.zeros_like(near[:, 0])
        for one in near.unbind(1):
            total = total + one
        part = (total / near.shape[1]).mul(0.1)
        vote = weights[places] / (near + part[:, None] + 1e-6)
        rest = (0, most - near.shape[1])
        slots.append(functional.pad(places, rest))
        votes.append(functional.pad(vote, rest))
    return torch.stack(slots), torch.stack(votes)


def set_apart(products: Tensor, mine: Tensor, theirs: Tensor, halves: Tensor) -> None:
    """Take half the squared distance of codes from the products of inputs and examples, in place.

    Args:
        products: fp32 or int32 [n, m].
        mine: codes of the inputs, fp32 [n, c].
        theirs: codes of the examples, fp32 [c, m].
        halves: half the squared distance of two that differ, [c], of the type of the products.
    """
    if (compiled := loops(LOOPS)) is not None and not products.is_cuda:
        given = products, mine.contiguous(), theirs.contiguous(), halves
        compiled.set_apart(*(tensor.numpy() for tensor in given))
        return
    for own, column, half in zip(mine.t(), theirs, halves, strict=True):
        products.sub_(half * (own[:, None] != column))


def integer_products(mine: Tensor, theirs: Tensor) -> Tensor:
    """Return the inner products of integers of at most 120 in magnitude, exactly, int32 [n, m].

    torch's product of integers is wrong where they have one number each.

    Args:
        mine: int8 [n, d].
        theirs: int8 [m, d].
    """
    if mine.shape[1] > 1 and loops(LOOPS) is not None and has_integer_products():
        return torch._int_mm(mine, theirs.t())
    found = torch.zeros(len(mine), len(theirs), dtype=torch.int32, device=mine.device)
    for a, b in zip(mine.split(MOST_EXACT, dim=1), theirs.split(MOST_EXACT, dim=1), strict=True):
        found += (a.float() @ b.float().t()).int()
    return found


@cache
def has_integer_products() -> bool:
    """Return whether torch multiplies matrices of 8-bit integers here, and exactly."""
    a = (torch.arange(40 * 96) % 241 - 120).to(torch.int8).view(40, 96)
    try:
        found = torch._int_mm(a, a.t())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.equal(found, (a.float() @ a.float().t()).int())


def names_of(has_ranks: bool) -> tuple[str, ...]:
    """Return the names of the experts, with or without those of ranks."""
    return tuple(
        f"neighbours/{metric}{k}{'-newest' if newest else ''}"
        for metric, own in EXPERTS.items()
        if metric != "rank" or has_ranks
        for k, newest in own
    )


def smallest(values: Tensor, k: int) -> Tensor:
    """Return the k smallest values of each row, ascending, [n, k]; no two are equal.

    Each segment's least is found first: the k smallest lie in the k segments whose least are
    smallest, so only these are sorted. Fewer than k values are all returned.
    """
    n, m = values.shape
    k = min(k, m)
    segments = m // SEGMENT
    if segments <= 2 * k:
        return values.topk(k, dim=1, largest=False).values
    whole = segments * SEGMENT
    parts = values[:, :whole].unflatten(1, (segments, SEGMENT))
    nearest = parts.amin(dim=2).topk(k, dim=1, largest=False).indices
    inside = torch.arange(SEGMENT, device=values.device)
    places = (nearest[:, :, None] * SEGMENT + inside).flatten(1)
    rest = torch.arange(whole, m, device=values.device).expand(n, -1)
    places = torch.cat([places, rest], dim=1)
    return values.gather(1, places).topk(k, dim=1, largest=False).values
