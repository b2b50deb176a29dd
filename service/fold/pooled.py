"""A learner of many: a pool of Funnel experts, mixed by Fixed Share (see `funnel.pool.pool`)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funnel.pool.expert import Expert
from funnel.pool.networks import Experts
from funnel.pool.pool import Observation, Pool, predicted
from service.fold.learner import Evaluate, Found, Learner, LearnerTelemetry
from service.fold.spec import Hyperparameters, Spec

WEIGHTS = "mixing.log_weights"


class PoolLearner(Learner):
    """See `Learner`. Every expert starts from the same weights.

    Args:
        spec: what the model is.
        device: where everything lives.
        experts: the pool.
    """

    def __init__(self, spec: Spec, device: torch.device, experts: Sequence[Expert]) -> None:
        super().__init__(spec, device)
        self.features = spec.features
        self.pool = Pool(self.module, spec.features, experts)

    def set_hyperparameters(self, hyperparameters: Hyperparameters) -> None:
        """Do nothing: experts keep the rates that they have."""

    def hyperparameters(self) -> dict[str, Any]:
        """See `Learner.hyperparameters`."""
        return {"experts": [expert_name(expert) for expert in self.pool.experts]}

    def tensors(self) -> dict[str, Tensor]:
        """See `Learner.tensors`."""
        return self.pool.tensors() | self._own_tensors()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See `Learner.load`."""
        mine = self.tensors()
        for name, tensor in tensors.items():
            mine[name].copy_(tensor)

    def buffers(self) -> list[Tensor]:
        """See `Learner.buffers`."""
        return list(self.pool.buffers.values())

    def _look(self, prepared: Tensor, labels: Tensor) -> Found:
        return self._found(self.pool.observe(prepared, labels), prepared, labels)

    def _failed(self, scores: Tensor) -> Found:
        nan = scores.new_full((len(self.pool.experts),), torch.nan)
        gradients = [torch.zeros_like(p) for p in self.pool.parameters.values()]
        healthy = torch.zeros_like(nan, dtype=torch.bool)
        losses = nan[:, None].expand(-1, len(scores))
        seen = Observation(scores, scores[:, 0], losses, nan, healthy, gradients)
        return self._found(seen, scores, scores[:, 0].long())

    def _found(self, seen: Observation, prepared: Tensor, labels: Tensor) -> Found:
        finite = seen.healthy.any() & torch.isfinite(seen.losses).all()
        return Found(seen.probabilities, seen.losses, finite, (seen, prepared, labels))

    def _ready(self, found: Found, keep: Tensor) -> tuple[Tensor | None, ...]:
        """Return the batch, what the gradients were multiplied with, then the gradients."""
        seen, prepared, labels = found.rest
        return prepared, labels, self.pool.weigh(seen, keep), *seen.gradients

    def step(self, readied: Sequence[Tensor | None]) -> None:
        """See `Learner.step`."""
        prepared, labels, factor, *gradients = [t for t in readied if t is not None]
        self.pool.step(prepared, labels, gradients, factor)

    def frozen(self) -> dict[str, Tensor]:
        """See `Learner.frozen`."""
        named = self.pool.parameters | self.pool.buffers | {WEIGHTS: self.pool.mixing.log_weights}
        return {k: v.detach().clone() for k, v in named.items()}

    def evaluator(self) -> Evaluate:
        """See `Learner.evaluator`."""
        models = Experts(self.module, len(self.pool.experts), self.features)
        parameters, buffers = list(self.pool.parameters), list(self.pool.buffers)

        def evaluate(frozen: dict[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
            logits = models.logits(
                {k: frozen[k] for k in parameters}, {k: frozen[k] for k in buffers}, inputs
            )
            probabilities = predicted(frozen[WEIGHTS], logits)
            return probabilities.argmax(dim=1), probabilities

        return evaluate

    def telemetry(self) -> LearnerTelemetry:
        """See `Learner.telemetry`."""
        found = self.pool.telemetry()
        names = [expert_name(expert) for expert in self.pool.experts]
        return LearnerTelemetry(
            tensors=found["tensors"],
            log_gains={name: self.pool.log_gain(name) for name in self.pool.parameters},
            step_sizes=found["step_sizes"],
            expert_weights=dict(zip(names, found["weights"], strict=True)),
            expert_ages=dict(zip(names, found["ages"], strict=True)),
        )


def expert_name(expert: Expert) -> str:
    """Return what tells an expert from the others.

    >>> from funnel import SGD
    >>> expert_name(Expert(SGD(), lr=0.1, gain_lr=0.01, scale_lr=0.03))
    'SGD lr=0.1 gain_lr=0.01 scale_lr=0.03'
    """
    names = ("lr", "gain_lr", "scale_lr", *(("steps",) if expert.steps > 1 else ()))
    rates = (f"{name}={getattr(expert, name):g}" for name in names)
    return f"{type(expert.inner).__name__} {' '.join(rates)}"
