"""One learner on the stream: network, optimizer and scores; served, or a shadow.

All learners see the same batches through the same standardization, and no learner sees another. A
batch goes through three methods: `Learner.score` scores and differentiates it, `Learner.decide` is
called once it is decided whether the batch is learned, and `Learner.update` learns it.
"""

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from funnel.pool.networks import Experts
from funnel.pool.pool import Decision, Pool, Scored, most_likely, predicted
from service.fold import networks
from service.fold.optimizers import expert_name, experts_of
from service.fold.scores import Scores
from service.fold.spec import Hyperparameters, Spec
from service.fold.trial import Trial

logger = logging.getLogger("funnel")

Evaluate = Callable[[dict[str, Tensor], Tensor], tuple[Tensor, Tensor]]
"""Maps the tensors of `Learner.frozen` and inputs [n, d] to labels, int64 [n], and probabilities,
fp32 [n, classes]."""

WEIGHTS = "mixing.log_weights"


class ScoredBatch(NamedTuple):
    """A batch that a learner has scored and differentiated."""

    scored: Scored
    finite: Tensor
    """True if the batch can be learned: loss and gradient are finite; bool, 0-dim."""
    buffers: list[Tensor]
    """The module's buffers as they were before the batch."""


class Learner:
    """A pool of experts and how well it predicted. Funnel and the plain optimizers have one expert.

    Args:
        spec: that of the served model.
        optimizer: the name of its optimizer, one of `service.fold.spec.OPTIMIZERS`.
        hyperparameters: its own.
        device: where everything lives.

    Raises:
        service.fold.networks.ModelError: the model cannot be built.
    """

    def __init__(
        self, spec: Spec, optimizer: str, hyperparameters: Hyperparameters, device: torch.device
    ) -> None:
        self.spec, self.optimizer, self.device = spec, optimizer, device
        module = networks.build(spec.model, spec.features, spec.classes, spec.hidden, spec.seed)
        experts = experts_of(spec, optimizer, hyperparameters)
        self.writes_inputs = False
        """True if the model is a user's module that changes its inputs in place."""
        if spec.model not in networks.BUILT_IN:
            trial = Trial(spec, module, device)
            trial.run(experts)
            self.writes_inputs = trial.writes_inputs
        self.pool = Pool(module.to(device).train(), spec.features, experts)
        self.hyperparameters = hyperparameters
        self.expert_names = list(map(expert_name, experts)) if optimizer == "pool" else []
        """Names of the pool's experts, which keep their own rates; none of another optimizer."""
        self.scores = Scores(spec.classes, device)
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        """Batches skipped because loss or gradient was not finite."""
        self._logged: set[str] = set()

    @property
    def is_plain(self) -> bool:
        """True if a step is a function of tensors alone; with a user's module it may not be."""
        return self.pool.models.is_plain

    def set_hyperparameters(self, hyperparameters: Hyperparameters) -> None:
        """Continue with other hyperparameters; a pool's experts keep their own rates."""
        self.hyperparameters = hyperparameters
        self.pool.set_experts(experts_of(self.spec, self.optimizer, hyperparameters))

    def shown_hyperparameters(self) -> dict[str, object]:
        """Return the hyperparameters of the optimizer as JSON shows them."""
        if self.optimizer == "pool":
            return {"experts": self.expert_names}
        names = ("lr", "momentum", "gain_lr", "scale_lr")
        return {name: getattr(self.pool.experts[0], name) for name in names}

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, the tensors themselves."""
        named = {f"scores.{k}": v for k, v in self.scores.tensors().items()}
        return self.pool.tensors() | named | {"nonfinite": self.nonfinite}

    def score(self, prepared: Tensor, labels: Tensor) -> ScoredBatch:
        """Score and differentiate a batch with the weights as they are.

        A user's module may hold randomness and buffers, and may raise. Whatever it raises for its
        inputs, it raises again in replay, so the batch is skipped like one that is not finite.

        Args:
            prepared: fp32 [n, d].
            labels: int64 [n].

        Raises:
            RuntimeError, MemoryError, OSError: the machine failed, not the module; another try may
                succeed.
        """
        if self.is_plain:
            return self._scored(self.pool.score(prepared, labels), [])
        before = [buffer.clone() for buffer in self.pool.buffers.values()]
        try:
            scored = self.pool.score(prepared, labels)
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            if networks.is_of_machine(error):
                for buffer, old in zip(self.pool.buffers.values(), before, strict=True):
                    buffer.copy_(old)
                raise
            self._log(error, len(labels))
            scored = self._failed(len(labels))
        return self._scored(scored, before)

    @staticmethod
    def _scored(scored: Scored, buffers: list[Tensor]) -> ScoredBatch:
        finite = scored.healthy.any() & torch.isfinite(scored.losses).all()
        return ScoredBatch(scored, finite, buffers)

    def _failed(self, n: int) -> Scored:
        """Return the scores of a batch on which the module raised: NaN."""
        experts = len(self.pool.experts)
        losses = torch.full((experts, n), math.nan, device=self.device)
        return Scored(
            probabilities=losses.new_full((n, self.spec.classes), math.nan),
            labels=torch.zeros(n, dtype=torch.int64, device=self.device),
            losses=losses[0],
            expert_losses=losses,
            norms=losses.new_full((experts,), math.nan),
            healthy=torch.zeros(experts, dtype=torch.bool, device=self.device),
            gradients=[torch.zeros_like(p) for p in self.pool.parameters.values()],
        )

    def _log(self, error: BaseException, examples: int) -> None:
        """Log what the model raised; its traceback only once, as every batch may raise the same."""
        origin = networks.origin_of(error)
        logger.error(
            "the model raised on a batch of %d, which is skipped: %r", examples, error,
            exc_info=None if origin in self._logged else error,
        )  # fmt: skip
        self._logged.add(origin)

    def decide(self, batch: ScoredBatch, keep: Tensor) -> Decision:
        """Restore buffers, count the batch, and cap its gradients.

        Args:
            batch: as `score` returned it.
            keep: whether the batch is learned, bool, 0-dim. Where it is False, the gradients become
                NaN, and nothing but counters changes.
        """
        for buffer, before in zip(self.pool.buffers.values(), batch.buffers, strict=True):
            buffer.copy_(torch.where(keep, buffer, before))
        self.nonfinite.add_(~batch.finite)
        return self.pool.decide(batch.scored, keep)

    def update(self, prepared: Tensor, labels: Tensor, decision: Decision) -> None:
        """Take one update; on a CPU this must only be called for a batch that is kept."""
        self.pool.update(prepared, labels, decision)

    def frozen(self) -> dict[str, Tensor]:
        """Return copies of what prediction needs, on the device."""
        named = self.pool.parameters | self.pool.buffers | {WEIGHTS: self.pool.mixing.log_weights}
        return {k: v.detach().clone() for k, v in named.items()}

    def evaluator(self) -> Evaluate:
        """Return a function that predicts from `frozen` tensors, with a module of its own.

        Call it in one thread. A single expert's probabilities are NaN where its answer is not
        finite. The mixture of several experts ignores experts whose answers are not finite.
        """
        count = len(self.pool.experts)
        models = Experts(self.pool.models.unused, count, self.spec.features)
        parameters, buffers = list(self.pool.parameters), list(self.pool.buffers)

        def evaluate(frozen: dict[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
            logits = models.logits(
                {k: frozen[k] for k in parameters}, {k: frozen[k] for k in buffers}, inputs
            )
            if count == 1:
                probabilities = logits[0].softmax(dim=1)
            else:
                probabilities = predicted(frozen[WEIGHTS], logits)
            return most_likely(logits, probabilities), probabilities

        return evaluate
