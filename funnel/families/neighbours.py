"""The family of neighbours: the nearest examples of a memory vote, in several metrics.

| metric | distance |
|---|---|
| *plain* | Euclidean, of standardized inputs |
| *gain* | the same, with each input times the root of its importance in the trees |
| *rank* | of the ranks of inputs among quantiles, times the fourth root; up to MOST_RANKED inputs |

A neighbour at distance r votes with 1 / (r + a tenth of the mean of those k), and the votes are
shrunk to the prior of the classes by 1 / (k + 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from funnel.families.interface import Given, Scaling
from funnel.families.trees import MOST_LAGS

NEAR = 1_000
"""The newest examples among which some experts look."""
MOST_RANKED = 64
SEGMENT = 64
MOST_ASKED = 512
"""Inputs that are compared with the memory at once, which takes 16 MB for each metric."""
RANGE = 1.7
"""Ranks are from -RANGE to RANGE, which has about the variance of standardized inputs."""
EXPERTS = {
    "plain": ((1, False), (3, False), (3, True), (10, True)),
    "gain": ((3, False), (10, False), (10, True)),
    "rank": ((3, False),),
}
"""By metric: k, and whether only the newest are asked."""


class Prepared(NamedTuple):
    """Examples of the memory as the metrics compare them, in pieces."""

    numbers: list[Tensor]
    """Standardized, fp32 [., d]."""
    squares: list[Tensor]
    ranks: list[Tensor]
    """Ranks among quantiles, fp32 [., d]; none without that metric."""
    rank_squares: list[Tensor]


@dataclass(frozen=True, eq=False)
class Remembered:
    """The examples that the experts look at; copies of it answer alike."""

    rows: tuple[Tensor, ...]
    """Examples, fp32 [m, MOST_LAGS + d] (see `funnel.families.trees`), in pieces of equal length
    but the last."""
    labels: Tensor
    """int64 [m]."""
    weights: Tensor
    """fp32 [m]."""
    newest: Tensor
    """Slots of the newest, int64, at most NEAR."""
    prior: Tensor
    """Decayed counts of the classes, fp32 [C]; 0 where a class is closed."""
    importances: Tensor
    """Importances of the columns of ``rows``, fp32."""
    edges: Tensor
    """Quantiles of these columns, fp32 [., BINS - 1]."""
    has_ranks: bool
    """True if the metric *rank* is there."""
    _prepared: list[Prepared] = field(default_factory=list)
    """Once they were asked for, the examples as the metrics compare them."""

    def copy(self, rows: tuple[Tensor, ...]) -> "Remembered":
        """Return a copy.

        Args:
            rows: copies of the rows.
        """
        return Remembered(
            rows,
            self.labels.clone(),
            self.weights.clone(),
            self.newest,
            self.prior.clone(),
            self.importances.clone(),
            self.edges.clone(),
            self.has_ranks,
        )

    def answers(self, given: Given) -> Tensor:
        """Return the probabilities of each expert, fp32 [E, n, C].

        Args:
            given: inputs, with the same scaling at every call.
        """
        if len(given.raw) > MOST_ASKED:
            parts = (given._replace(raw=raw) for raw in given.raw.split(MOST_ASKED))
            return torch.cat([self.answers(part) for part in parts], dim=1)
        n, prior = len(given.raw), self.prior / self.prior.sum()
        if not len(self.labels):
            return prior.expand(len(names_of(self.has_ranks)), n, -1)
        importance = self.importances[MOST_LAGS:]
        importance = importance / importance.mean().clamp(min=1e-30)
        others, mine = self._as_compared(given.scaling), given.scaling(given.raw)
        plain = given.scaling.is_number
        found = self._of_metric(
            "plain", prior, distances(mine, others.numbers, others.squares, plain)
        )
        gain = importance * plain
        found += self._of_metric(
            "gain", prior, distances(mine, others.numbers, others.squares, gain)
        )
        if self.has_ranks:
            mine, root = ranks(given.raw, self.edges[MOST_LAGS:]), gain.sqrt()
            found += self._of_metric(
                "rank", prior, distances(mine, others.ranks, others.rank_squares, root)
            )
        return torch.stack(found)

    def _as_compared(self, scaling: Scaling) -> Prepared:
        if not self._prepared:
            theirs = [piece[:, MOST_LAGS:] for piece in self.rows]
            numbers, edges = [scaling(piece) for piece in theirs], self.edges[MOST_LAGS:]
            ranked = [ranks(piece, edges) for piece in theirs] if self.has_ranks else []
            squares = [piece.square() for piece in numbers]
            self._prepared.append(
                Prepared(numbers, squares, ranked, [piece.square() for piece in ranked])
            )
        return self._prepared[0]

    def _of_metric(self, metric: str, prior: Tensor, far: Tensor) -> list[Tensor]:
        """Return the probabilities of the experts of a metric, [n, C] each.

        Args:
            metric: its name.
            prior: probabilities of the classes, [C].
            far: squared distances, [n, m].
        """
        found: dict[bool, tuple[Tensor, Tensor]] = {}
        for is_newest in (False, True):
            wanted = [k for k, newest in EXPERTS[metric] if newest == is_newest]
            if not wanted:
                continue
            among = far[:, self.newest] if is_newest else far
            nearest, places = smallest(among, max(wanted))
            found[is_newest] = nearest, self.newest[places] if is_newest else places
        return [self._voted(k, prior, *found[is_newest]) for k, is_newest in EXPERTS[metric]]

    def _voted(self, k: int, prior: Tensor, far: Tensor, slots: Tensor) -> Tensor:
        """Return what the first k neighbours say, fp32 [n, C]."""
        near = far[:, :k].clamp(min=0.0).sqrt()
        votes = self.weights[slots[:, :k]] / (near + 0.1 * near.mean(dim=1, keepdim=True) + 1e-6)
        shown = functional.one_hot(self.labels[slots[:, :k]], len(prior)).float()
        said = torch.einsum("nk,nkc->nc", votes, shown)
        said = said / votes.sum(dim=1, keepdim=True).clamp(min=1e-30)
        return torch.lerp(said, prior.expand_as(said), 1.0 / (k + 1))


def distances(
    mine: Tensor, theirs: Sequence[Tensor], squares: Sequence[Tensor], weights: Tensor
) -> Tensor:
    """Return Σ_j w_j (a_j - b_j)² of each pair, fp32 [n, m], up to rounding.

    Args:
        mine: a, fp32 [n, d].
        theirs: b, fp32 [., d], in pieces.
        squares: b², as these.
        weights: w, fp32 [d].
    """
    weighted = mine * weights
    found = [
        torch.addmm(square @ weights, weighted, piece.t(), alpha=-2.0)
        for piece, square in zip(theirs, squares, strict=True)
    ]
    return torch.cat(found, dim=1).add_((weighted * mine).sum(dim=1, keepdim=True))


def names_of(has_ranks: bool) -> tuple[str, ...]:
    """Return the names of the experts, with or without those of ranks."""
    return tuple(
        f"neighbours/{metric}{k}{'-newest' if newest else ''}"
        for metric, own in EXPERTS.items()
        if metric != "rank" or has_ranks
        for k, newest in own
    )


def smallest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest values of each row, ascending, and where they are, [n, k] both.

    Each segment's least is found first: the k smallest lie in the k segments whose least are
    smallest, so only these are sorted. Fewer than k values are all returned.
    """
    n, m = values.shape
    k = min(k, m)
    segments = m // SEGMENT
    if segments <= 2 * k:
        found = values.topk(k, dim=1, largest=False)
        return found.values, found.indices
    whole = segments * SEGMENT
    parts = values[:, :whole].unflatten(1, (segments, SEGMENT))
    nearest = parts.amin(dim=2).topk(k, dim=1, largest=False).indices
    inside = torch.arange(SEGMENT, device=values.device)
    places = (nearest[:, :, None] * SEGMENT + inside).flatten(1)
    rest = torch.arange(whole, m, device=values.device).expand(n, -1)
    places = torch.cat([places, rest], dim=1)
    found = values.gather(1, places).topk(k, dim=1, largest=False)
    return found.values, places.gather(1, found.indices)


def ranks(inputs: Tensor, edges: Tensor) -> Tensor:
    """Return where inputs lie among quantiles, fp32 [n, d] within ±RANGE; 0 where one is missing.

    Between two quantiles it is linear.

    Args:
        inputs: fp32 [n, d].
        edges: ascending, fp32 [d, BINS - 1].
    """
    last = edges.shape[1] - 1
    columns = inputs.t().contiguous()
    after = torch.searchsorted(edges, columns).clamp_(1, last)
    low, high = edges.gather(1, after - 1), edges.gather(1, after)
    part = ((columns - low) / (high - low).clamp(min=1e-30)).clamp(0.0, 1.0).nan_to_num(0.5)
    found = (after - 1 + part) * (2 * RANGE / last) - RANGE
    return found.masked_fill_(~torch.isfinite(columns), 0.0).t()
