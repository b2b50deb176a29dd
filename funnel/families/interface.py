"""The batches that families of experts answer and learn."""

from hashlib import blake2b
from typing import NamedTuple

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
