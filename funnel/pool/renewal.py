"""Experts that predict worse than a model that knows nothing are renewed: Page's test.

After an abrupt shift, what was learned is in the way, not only useless: weights must be unlearned,
and AdaGrad's steps have grown short. A model that gives each of C classes the same probability
loses log C an example; a model of numbers that knows nothing gives each the distribution of all of
them (`funnel.pool.loss.Loss.ignorance`). Page's cumulative sum of an expert's losses beyond that,

    S ← max(0, S + Σ (ℓ - log C)),

is the log-likelihood ratio of the two since the moment at which it becomes largest [E. S. Page,
'Continuous inspection schemes', Biometrika 41, 1954]. While an expert knows anything, S stays near
0; an expert that is wrong and sure of it exceeds LIMIT within a batch. E. Hazan and C. Seshadhri,
'Efficient learning algorithms for changing environments', ICML 2009, show that a pool needs experts
that start after a shift; there one starts in every round.

Counting starts once a batch has shown that the expert knows something: an expert that has only just
started, from weights that may be worse than none, gets time to learn.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from funnel.inner.interface import StateLists
from funnel.pool.stacked import Grouped, column
from funnel.tensorlists import weighted

LIMIT = 30.0
"""Nats of S at which an expert is renewed: a chance of e^-30 if it knew nothing at all."""
UNKNOWN = -1.0
"""S of an expert that has shown nothing yet; below any S that is counted."""


class Renewal:
    """Tracks how much worse than knowing nothing each expert is; nothing is read on the host.

    Args:
        renews: which experts are renewed at all, bool [K].
    """

    def __init__(self, renews: Tensor) -> None:
        self.renews = renews
        self.is_idle = not bool(renews.any())
        """True if no expert is ever renewed; then no batch changes anything."""
        self.excess = torch.full((len(renews),), UNKNOWN, device=renews.device)
        """S, fp32 [K], in nats; UNKNOWN for experts that have shown nothing yet."""

    def due(self) -> Tensor:
        """Return which experts are due for renewal, bool [K]."""
        return self.excess > LIMIT

    def update(
        self,
        losses: Tensor,
        ignorance: Tensor | float,
        keep: Tensor,
        importance: Tensor | None = None,
    ) -> None:
        """Take the losses of a batch.

        Args:
            losses: of each expert and example, [K, n], in nats.
            ignorance: loss of a model that knows nothing, in nats; a tensor is [n], or [1] for
                all examples.
            keep: which experts' losses count, bool [K].
            importance: weights of the examples, fp32 [n]; None for 1.
        """
        worse = weighted(losses - ignorance, importance).sum(dim=1)
        counts = keep & self.renews & ((self.excess >= 0.0) | (worse < 0.0))
        moved = (self.excess + worse).clamp_(min=0.0)
        self.excess.copy_(torch.where(counts, moved, self.excess))

    def forget(self, which: Tensor) -> None:
        """Forget what some experts, bool [K], have shown."""
        self.excess.masked_fill_(which, UNKNOWN)


class Beyond(Protocol):
    """The part of experts that lies beyond the tensors of a pool; it is replaced with them."""

    def from_the_start(self, which: Tensor) -> None:
        """Set experts back, as `Restart.from_the_start` does, before it does."""

    def from_best(self, which: Tensor, log_weights: Tensor) -> None:
        """Make experts copies of the best, as `Restart.from_best` does, before it does."""


class Restart:
    """Replaces what some experts have learned; nothing is read on the host.

    It must be made while all experts are as they start: it keeps a copy of the first.

    Args:
        shared: what every expert has, whatever its inner optimizer; each [K, …].
        inner: the inner optimizers.
        inner_state: their state.
    """

    def __init__(self, shared: Sequence[Tensor], inner: Grouped, inner_state: StateLists) -> None:
        self._shared, self._inner, self._inner_state = list(shared), inner, inner_state
        self._blank = [tensor[:1].clone() for tensor in shared]
        self._beyond: Beyond | None = None
        self._blank_inner = {k: [t[:1].clone() for t in own] for k, own in inner_state.items()}

    def from_the_start(self, which: Tensor) -> None:
        """Set experts back to how all of them started.

        Args:
            which: bool [K].
        """
        if self._beyond is not None:
            self._beyond.from_the_start(which)
        pairs = zip(self._shared, self._blank, strict=True)
        now = [torch.where(column(which, tensor), blank, tensor) for tensor, blank in pairs]
        torch._foreach_copy_(self._shared, now)
        for prefix, _, own in self._inner.slices:
            for tensor, blank in self._pairs(prefix):
                tensor.copy_(torch.where(column(which[own], tensor), blank, tensor))

    def from_best(self, which: Tensor, log_weights: Tensor) -> None:
        """Make experts copies of the best of the others.

        The inner optimizer's state is that of the best expert with the same one; if there is none
        among the others, it starts blank.

        Args:
            which: bool [K]; not all.
            log_weights: of the experts, fp32 [K].
        """
        if self._beyond is not None:
            self._beyond.from_best(which, log_weights)
        source = best_for(which, log_weights)
        torch._foreach_copy_(self._shared, [tensor[source] for tensor in self._shared])
        for prefix, _, own in self._inner.slices:
            bad = which[own]
            source = best_for(bad, log_weights[own])
            for tensor, blank in self._pairs(prefix):
                tensor.copy_(torch.where(bad.all(), blank, tensor[source]))

    def with_columns(
        self, columns: Mapping[int, tuple[Tensor, Tensor]], beyond: "Beyond"
    ) -> "Restart":
        """Return one for other tensors of the first layer, which shares all others.

        Args:
            columns: what takes the place of a tensor, and its blank, [1, …], by the tensor's id.
            beyond: what else the experts have learned.
        """
        other = copy.copy(self)
        other._beyond = beyond
        pairs = zip(self._shared, self._blank, strict=True)
        both = [columns.get(id(tensor), (tensor, blank)) for tensor, blank in pairs]
        other._shared, other._blank = [t for t, _ in both], [b for _, b in both]
        other._inner_state, other._blank_inner = {}, {}
        for key, tensors in self._inner_state.items():
            pairs = zip(tensors, self._blank_inner[key], strict=True)
            both = [columns.get(id(tensor), (tensor, blank)) for tensor, blank in pairs]
            other._inner_state[key] = [tensor for tensor, _ in both]
            other._blank_inner[key] = [blank for _, blank in both]
        return other

    def blanks(self) -> list[Tensor]:
        """Return how every tensor starts, [1, …] each, the tensors themselves."""
        return [*self._blank, *chain.from_iterable(self._blank_inner.values())]

    def blank_of(self, tensor: Tensor) -> Tensor:
        """Return how a tensor starts, [1, …]."""
        held = [*self._shared, *chain.from_iterable(self._inner_state.values())]
        found = {id(t): blank for t, blank in zip(held, self.blanks(), strict=True)}
        return found[id(tensor)]

    def _pairs(self, prefix: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tensors of an inner optimizer's state, each with its blank."""
        for key in (key for key in self._inner_state if key.startswith(prefix)):
            yield from zip(self._inner_state[key], self._blank_inner[key], strict=True)


def best_for(which: Tensor, log_weights: Tensor) -> Tensor:
    """Return the expert that each becomes a copy of: the best of the others, or itself, int64 [K].

    Args:
        which: those that are replaced, bool [K].
        log_weights: of the experts, fp32 [K].
    """
    everyone = torch.arange(len(which), device=which.device)
    return torch.where(which, torch.where(which, -math.inf, log_weights).argmax(), everyone)
