"""A pool as the service runs it: inputs standardized, predictions scored, then one step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from funnel.graphs.traced import Traced
from funnel.pool.expert import Expert
from funnel.pool.pool import Pool
from service.fold.scores import Scores
from service.fold.standardizer import Standardizer, clamped


class PoolLearner:
    """Learns batches by a pool.

    Args:
        module: maps fp32 [n, features] to logits.
        features: width of the inputs.
        classes: width of the logits.
        experts: see `funnel.pool.pool.Pool`, as are further arguments.
    """

    def __init__(
        self,
        module: nn.Module,
        features: int,
        classes: int,
        experts: Sequence[Expert] | None = None,
        **options: Any,
    ) -> None:
        self.pool = Pool(module, features, experts, **options)
        self.standardizer = Standardizer(features, self.pool.device)
        self.scores = Scores(classes, self.pool.device)
        self._started = False
        self._observe = Traced(self.observe, self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that learning changes."""
        parts = (self.pool.tensors(), self.standardizer.tensors(), self.scores.tensors())
        return {name: tensor for part in parts for name, tensor in part.items()}

    @torch.no_grad()
    def step(self, inputs: Tensor, labels: Tensor) -> float:
        """Score fp32 inputs [n, d], learn them, and return the accuracy before."""
        if not self._started:
            self.standardizer.start(inputs)
            self._started = True
        keep, accuracy, _, prepared, factor, *gradients = self._observe(inputs, labels)
        if keep:
            self.pool.step(prepared, labels, gradients, factor)
        return float(accuracy)

    def observe(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Do what comes before the step; a function of tensors."""
        deviations = self.standardizer.deviations(inputs)
        prepared = clamped(deviations)
        seen = self.pool.observe(prepared, labels)
        keep = torch.isfinite(seen.losses).all()
        factor = self.pool.weigh(seen, keep)
        correct = seen.probabilities.argmax(dim=1) == labels
        self.scores.update(correct, seen.losses, labels, keep)
        self.standardizer.update(deviations, keep)
        return keep, correct.float().mean(), seen.losses.mean(), prepared, factor, *seen.gradients
