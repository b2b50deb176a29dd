"""What a batch does before the update: scores, gradients, statistics but the optimizer's."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from service.fold.learner import Learner
from service.fold.standardizer import clamped

if TYPE_CHECKING:
    from service.fold.state import State

WORST_LOSS = -math.log(torch.finfo(torch.float32).tiny)
"""Nats that a shadow is charged for a prediction that is not finite: the least odds of fp32."""


def observe(state: "State", inputs: Tensor, labels: Tensor) -> tuple[Tensor | None, ...]:
    """Let the served model score and differentiate a batch, and the standardizer take it.

    Returns:
        Whether the batch is learned, and whether it is finite, bool; accuracy and mean loss; what
        the model was given, fp32 [n, d]; and what `Learner.step` takes.
    """
    prepared = inputs
    if state.spec.standardize:
        deviations = state.standardizer.deviations(inputs)
        prepared = clamped(deviations)
    found = state.served.look(prepared, labels)
    finite, loss, width = found.finite, found.losses.mean(), state.hyperparameters.loss_guard
    keep = state.guard.judge(loss, finite, width) if width else finite
    correct = found.scores.argmax(dim=1) == labels
    state.served.scores.update(correct, found.losses, labels, finite)
    if state.spec.standardize:
        state.standardizer.update(deviations, keep)
    readied = state.served.ready(found, keep)
    return keep, finite, correct.float().mean(), loss, prepared, *readied


def observe_shadow(
    learner: Learner, prepared: Tensor, labels: Tensor, keep: Tensor, scored: Tensor
) -> tuple[Tensor | None, ...]:
    """Let a shadow score and differentiate a batch.

    Args:
        learner: the shadow.
        prepared: what the served model was given, fp32 [n, d].
        labels: int64 [n].
        keep: whether the served model learns the batch, bool, 0-dim.
        scored: whether it is scored there; then it is scored here too, and a prediction that is
            not finite counts as wrong.

    Returns:
        Whether the batch is learned, bool; and what `Learner.step` takes.
    """
    found = learner.look(prepared, labels)
    learns = found.finite & keep
    correct = (found.scores.argmax(dim=1) == labels) & torch.isfinite(found.losses)
    losses = found.losses.nan_to_num(nan=WORST_LOSS, posinf=WORST_LOSS)
    learner.scores.update(correct, losses, labels, scored)
    return learns, *learner.ready(found, learns)
