"""A pool as the service runs it: standardize the inputs, score the predictions, take one step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from funnel.graphs.traced import Traced
from funnel.pool.expert import Expert
from funnel.pool.pool import Decision, Pool
from service.fold.scoring.classification import MOST_PENDING, Scores
from service.fold.standardizer import Standardizer


class PoolLearner:
    """Learns batches with a pool.

    Args:
        module: maps fp32 [n, features] to logits.
        features: width of the inputs.
        classes: width of the logits.
        experts, options: arguments of `funnel.pool.pool.Pool`.
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
        self.scores, self._pending = Scores(classes, self.pool.device), 0
        self._started = False
        self._observe = Traced(self.observe, self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that learning changes."""
        parts = (self.pool.tensors(), self.standardizer.tensors(), self.scores.tensors())
        return {name: tensor for part in parts for name, tensor in part.items()}

    @torch.no_grad()
    def step(self, inputs: Tensor, labels: Tensor) -> float:
        """Score fp32 inputs [n, features], learn them, and return the accuracy before learning."""
        if not self._started:
            self.standardizer.start(inputs)
            self._started = True
        keep, accuracy, prepared, decision = self._observe(inputs, labels)
        self._pending += len(labels)
        if self._pending >= MOST_PENDING:
            self.scores.settle()
            self._pending = 0
        if keep:
            self.pool.update(prepared, labels, decision)
        return float(accuracy)

    def observe(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Decision]:
        """Score and decide, as a function of tensors that can be traced."""
        prepared = self.standardizer.standardized(inputs)
        scored = self.pool.score(prepared, labels)
        keep = torch.isfinite(scored.losses).all()
        decision = self.pool.decide(scored, keep)
        correct = scored.labels == labels
        own = (scored.probabilities, scored.labels, labels, scored.losses)
        self.scores.update(*own, keep)
        self.standardizer.update(inputs, keep)
        return keep, correct.float().mean(), prepared, decision
