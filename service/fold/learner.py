"""One learner on the stream: model, optimizer and scores; the served one, or a shadow beside it.

All learners see the same batches through the same standardization, and no learner sees another. A
batch goes through `Learner.look`, which scores and differentiates it, `Learner.ready`, once it is
decided whether it is learned, and `Learner.step`.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from funnel.telemetry import TensorTelemetry
from service.fold import networks as models
from service.fold.scores import Scores
from service.fold.spec import Hyperparameters, Spec

logger = logging.getLogger("funnel")

Evaluate = Callable[[dict[str, Tensor], Tensor], tuple[Tensor, Tensor]]
"""From the tensors of `Learner.frozen` and inputs [n, d] to labels, int64 [n], and probabilities,
fp32 [n, classes]."""


class Found(NamedTuple):
    """What a batch gives before anything but buffers has changed."""

    scores: Tensor
    """Logits or probabilities, fp32 [n, classes]; the largest is what is predicted."""
    losses: Tensor
    """Cross-entropy of each example, fp32 [n], in nats."""
    finite: Tensor
    """Whether the batch can be learned: loss and gradient are finite; bool, 0-dim."""
    rest: Any
    """The learner's own."""
    buffers: Sequence[tuple[Tensor, Tensor]] = ()
    """The module's, and what they were before."""


class LearnerTelemetry(NamedTuple):
    """What an optimizer does with each parameter, by name; device tensors."""

    tensors: dict[str, TensorTelemetry]
    """Of a pool, of all experts together, weighted."""
    log_gains: dict[str, Tensor]
    """log p, of the parameter's shape; likewise."""
    step_sizes: dict[str, Tensor]
    """η s, 0-dim; likewise."""
    expert_weights: dict[str, Tensor]
    """Of a pool, by the experts' names, 0-dim; else empty."""
    expert_ages: dict[str, Tensor]
    """Likewise: batches learned since they began, int64."""


class Learner(ABC):
    """What one learner has learned, and how well it predicted.

    Args:
        spec: what the model is.
        device: where everything lives.

    Raises:
        service.models.ModelError: the model cannot be built.
    """

    def __init__(self, spec: Spec, device: torch.device) -> None:
        self.device = device
        self.is_plain = models.is_plain(spec.model)
        """Whether `look` and `ready` are functions of tensors that can be traced."""
        module = models.build(spec.model, spec.features, spec.classes, spec.hidden, spec.seed)
        self.module = module.to(device).train()
        self.scores = Scores(spec.classes, device)
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        """Batches left out because loss or gradient was not finite."""
        self._said: set[str] = set()

    @abstractmethod
    def set_hyperparameters(self, hyperparameters: Hyperparameters) -> None:
        """Go on with other hyperparameters."""

    @abstractmethod
    def hyperparameters(self) -> dict[str, Any]:
        """Return those of the optimizer, as JSON knows them."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, the tensors themselves."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over saved tensors, of the names, shapes and dtypes of `tensors`."""

    @abstractmethod
    def buffers(self) -> list[Tensor]:
        """Return the tensors that the forward pass in training may change."""

    @abstractmethod
    def _look(self, prepared: Tensor, labels: Tensor) -> Found:
        """Score in evaluation mode, differentiate in training mode."""

    @abstractmethod
    def _failed(self, scores: Tensor) -> Found:
        """Return what a batch gives at which the module failed; ``scores`` are NaN."""

    def look(self, prepared: Tensor, labels: Tensor) -> Found:
        """Score and differentiate a batch with the weights as they are.

        A user's module may hold randomness and buffers, and may fail. Whatever it raises at its
        inputs, it raises again in replay, so the batch is left out as one that is not finite is.

        Args:
            prepared: fp32 [n, d].
            labels: int64 [n].

        Raises:
            torch.OutOfMemoryError, torch.AcceleratorError, MemoryError, OSError: the machine
                failed, not the module; another try may succeed.
        """
        if self.is_plain:
            return self._look(prepared, labels)
        before = [(buffer, buffer.clone()) for buffer in self.buffers()]
        try:
            found = self._look(prepared, labels)
        except (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError, OSError):
            for buffer, old in before:
                buffer.copy_(old)
            raise
        except Exception as error:  # a user's code may raise anything
            self._say(error, len(labels))
            shape = (len(labels), self.scores.classes)
            found = self._failed(torch.full(shape, math.nan, device=self.device))
        return found._replace(buffers=before)

    def _say(self, error: Exception, examples: int) -> None:
        """Log what the model raised; where, once, as it may raise it at every batch."""
        text = repr(error)
        logger.error(
            "the model failed on a batch of %d, which is left out: %s", examples, text,
            exc_info=None if text in self._said else error,
        )  # fmt: skip
        self._said.add(text)

    def ready(self, found: Found, keep: Tensor) -> tuple[Tensor | None, ...]:
        """Ready buffers and counters for what was decided; return what `step` takes.

        Args:
            found: what `look` returned.
            keep: whether the batch is learned, bool, 0-dim.
        """
        for buffer, before in found.buffers:
            buffer.copy_(torch.where(keep, buffer, before))
        self.nonfinite.add_(~found.finite)
        return self._ready(found, keep)

    @abstractmethod
    def _ready(self, found: Found, keep: Tensor) -> tuple[Tensor | None, ...]:
        """Cut the gradients, and make them NaN where the batch is not learned."""

    @abstractmethod
    def step(self, readied: Sequence[Tensor | None]) -> None:
        """Take one update."""

    @abstractmethod
    def frozen(self) -> dict[str, Tensor]:
        """Return copies of what prediction needs, on the device."""

    @abstractmethod
    def evaluator(self) -> Evaluate:
        """Return what predicts from `frozen` tensors, with modules of its own; for one thread."""

    @abstractmethod
    def telemetry(self) -> LearnerTelemetry:
        """Return what the optimizer does; computed when called and only then."""

    def _own_tensors(self) -> dict[str, Tensor]:
        named = {f"scores.{k}": v for k, v in self.scores.tensors().items()}
        return named | {"nonfinite": self.nonfinite}


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, those left out of ``state_dict`` too."""
    return dict(module.named_parameters()) | dict(module.named_buffers())
