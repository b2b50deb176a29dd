"""The batches that families of experts answer and learn, and a family that a user adds."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

LIMIT = 5.0
"""Standardized inputs are clamped to ±LIMIT."""
MOST_LAGS = 16
"""Most statistics of the latest labels that are inputs of trees."""
LEAST_ODDS = 1e-6
"""Least probability of a label when losses are compared."""


class Scaling(NamedTuple):
    """How inputs are standardized now."""

    mean: Tensor
    """fp32 [d]."""
    scale: Tensor
    """fp32 [d], above 0."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return inputs standardized, fp32 [n, d]; a missing one, which is not finite, is 0."""
        found = inputs.sub(self.mean).div_(self.scale).clamp_(-LIMIT, LIMIT)
        return found.masked_fill_(~torch.isfinite(inputs), 0.0)

    def copy(self) -> "Scaling":
        """Return a copy, which lasts."""
        return Scaling(*(tensor.clone() for tensor in self))


class Given(NamedTuple):
    """The inputs of a batch."""

    raw: Tensor
    """fp32 [n, d] as they came; a missing one is infinite."""
    scaling: Scaling
    """How they are standardized."""


class Examples(NamedTuple):
    """A batch that is learned."""

    given: Given
    """Its inputs."""
    labels: Tensor
    """[n]: classes, int64, or numbers, fp32."""
    weights: Tensor
    """fp32 [n], not below 0."""
    seed: tuple[int, ...]
    """It decides what is drawn: the same for the same step of a stream."""

    def generator(self, family: int) -> torch.Generator:
        """Return a source of draws for a family that has its own number."""
        text = ",".join(map(str, (*self.seed, family)))
        digest = blake2b(text.encode(), digest_size=4).digest()  # torch uses 32 bits of a seed
        return torch.Generator().manual_seed(int.from_bytes(digest))


@runtime_checkable
class Family(Protocol):
    """A family of experts that a user adds to the model ``auto``.

    ``FUNNEL_FAMILIES=linear,trees,shop:Centres`` names a factory, such as a class. It is called as
    ``Centres(features=d, classes=C)`` where classes are predicted, and as
    ``Centres(features=d, quantiles=(0.1, 0.5, 0.9))`` where numbers are; the quantiles are ``()``
    for a mean. A family has K experts, which answer A numbers each: C probabilities, one number, or
    a number for each quantile.

    Rows are fp32 [n, d]: inputs of examples, standardized, within ±5, unless FUNNEL_STANDARDIZE is
    false. A missing one is 0, its mean. Columns that are categories or words are not among them,
    and columns that may still come are 0.

    All state is in `tensors`, on the CPU: what another instance answers and learns once these were
    copied into its own is the same, bit for bit. Draw from nothing but the generator of `learn`.
    Calls run without gradients; use ``torch.enable_grad()`` in `learn` to differentiate.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the experts, at most 32, the same for every size."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the whole state by name, the tensors themselves: `learn` changes them in place."""
        ...

    def answer(self, rows: Tensor) -> Tensor:
        """Return the answers of the experts, fp32 [K, n, A], and change nothing.

        Probabilities sum to 1, and quantiles ascend. The answer to a row does not depend on the
        others, as predictions of several clients share a call. An answer that is not finite counts
        as one that knows nothing.

        Args:
            rows: fp32 [n, d].
        """
        ...

    def learn(
        self, rows: Tensor, labels: Tensor, weights: Tensor, generator: torch.Generator
    ) -> None:
        """Learn a batch, after it was answered.

        Args:
            rows: fp32 [n, d].
            labels: [n]: classes, int64, or numbers, fp32, standardized as those of the first batch
                are; that unit stays, and answers are in it. Where numbers jump so far that it says
                nothing about them, the family begins from nothing, in a new one.
            weights: how many examples each counts as, fp32 [n], not below 0.
            generator: the same draws come from it when the batch is learned again, by a replay.
        """
        ...


@runtime_checkable
class Growing(Family, Protocol):
    """A family that goes on where a model of rows gets columns or classes.

    The factory then makes a larger one. Without this method it begins from nothing.
    """

    def grow(self, smaller: Self) -> None:
        """Take what a smaller one has learned.

        The first columns and classes are its own; a column that is new was always missing, and a
        class that is new had no example.

        Args:
            smaller: of the same factory.
        """
        ...
