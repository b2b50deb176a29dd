"""What a batch does before the update: scores, gradients, statistics but the optimizer's."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.backprop import differentiate
from service.standardizer import clamped

if TYPE_CHECKING:
    from service.fold import State
    from service.track import Track

logger = logging.getLogger("funnel")

NORM_CAP = 10.0
"""A gradient may be this many times longer than nearly all of the recent ones; then it is cut."""
NORM_UP, NORM_DOWN = 0.45, 0.05
"""Steps of the tracked quantile of log ‖g‖; it rests where DOWN of UP + DOWN norms are above."""
WORST_LOSS = -math.log(torch.finfo(torch.float32).tiny)
"""Nats that a shadow is charged for a prediction that is not finite: the least odds of fp32."""


def observe(state: "State", inputs: Tensor, labels: Tensor) -> tuple[Tensor | None, ...]:
    """Let the served model score and differentiate a batch, and the standardizer take it.

    Returns:
        Whether the batch is learned, and whether it is finite, bool; accuracy and mean loss; what
        the model was given, fp32 [n, d]; a gradient for each parameter, NaN if the batch is not
        learned, None where the loss does not depend on the parameter.
    """
    prepared = inputs
    if state.spec.standardize:
        deviations = state.standardizer.deviations(inputs)
        prepared = clamped(deviations)
    track = state.served

    def judge(loss: Tensor, finite: Tensor) -> Tensor:
        width = state.rates.loss_guard
        return state.guard.judge(loss, finite, width) if width else finite

    found = _differentiate(track, prepared, labels)
    finite, keep = _admit(track, found, judge)
    correct = found.logits.argmax(dim=1) == labels
    track.scores.update(correct, found.losses, labels, finite)
    if state.spec.standardize:
        state.standardizer.update(deviations, keep)
    accuracy, loss = correct.float().mean(), found.losses.mean()
    return keep, finite, accuracy, loss, prepared, *found.gradients


def observe_shadow(
    track: "Track", prepared: Tensor, labels: Tensor, keep: Tensor, scored: Tensor
) -> tuple[Tensor | None, ...]:
    """Let a shadow score and differentiate a batch.

    Args:
        track: the shadow.
        prepared: what the served model was given, fp32 [n, d].
        labels: int64 [n].
        keep: whether the served model learns the batch, bool, 0-dim.
        scored: whether it is scored there; then it is scored here too, and a prediction that is
            not finite counts as wrong.

    Returns:
        Whether the batch is learned, bool; gradients as `observe` returns them.
    """
    found = _differentiate(track, prepared, labels)
    _, learns = _admit(track, found, lambda _, finite: finite & keep)
    correct = (found.logits.argmax(dim=1) == labels) & torch.isfinite(found.losses)
    losses = found.losses.nan_to_num(nan=WORST_LOSS, posinf=WORST_LOSS)
    track.scores.update(correct, losses, labels, scored)
    return learns, *found.gradients


class _Found(NamedTuple):
    """What a batch gives before anything has changed."""

    logits: Tensor
    """fp32 [n, classes]."""
    losses: Tensor
    """fp32 [n]."""
    training_loss: Tensor
    """What was differentiated, 0-dim."""
    gradients: Sequence[Tensor | None]
    buffers: Sequence[tuple[Tensor, Tensor]] = ()
    """The module's, and what they were before."""


def _admit(
    track: "Track", found: _Found, judge: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Say whether loss and gradient are finite, and whether the batch is learned, as ``judge`` says
    of mean loss and finiteness; ready gradients, buffers and counters for that."""
    given = [g for g in found.gradients if g is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(given)))
    finite = torch.isfinite(norm + found.training_loss) & torch.isfinite(found.losses).all()
    keep = judge(found.losses.mean(), finite)
    _bound(track, given, norm, keep)
    for buffer, before in found.buffers:
        buffer.copy_(torch.where(keep, buffer, before))
    track.nonfinite.add_(~finite)
    return finite, keep


def _differentiate(track: "Track", prepared: Tensor, labels: Tensor) -> _Found:
    if not track.is_plain:
        return _differentiate_any(track, prepared, labels)
    parameters = list(track.parameters.values())
    logits, losses, gradients = differentiate(parameters, prepared, labels)
    return _Found(logits, losses, losses.mean(), gradients)


def _differentiate_any(track: "Track", prepared: Tensor, labels: Tensor) -> _Found:
    """Do the same for a user's module, which may hold randomness and buffers, and may fail.

    It is scored in evaluation mode and differentiated in training mode. Whatever it raises at its
    inputs, it raises again in replay, so the batch is left out as one that is not finite is.

    Raises:
        torch.OutOfMemoryError, torch.AcceleratorError, MemoryError, OSError: the machine failed,
            not the module; another try may succeed.
    """
    before = [(buffer, buffer.clone()) for buffer in track.module.buffers()]
    parameters = list(track.parameters.values())
    try:
        with evaluating(track.module):
            logits = track.module(prepared)
        losses = F.cross_entropy(logits, labels, reduction="none")
        with torch.enable_grad():
            loss = F.cross_entropy(track.module(prepared), labels)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return _Found(logits, losses, loss.detach(), gradients, before)
    except (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError, OSError):
        for buffer, old in before:
            buffer.copy_(old)
        raise
    except Exception:  # a user's code may raise anything
        logger.exception("the model failed on a batch of %d, which is left out", len(labels))
        logits = torch.full((len(labels), track.scores.classes), math.nan, device=track.device)
        losses = logits[:, 0]
        return _Found(logits, losses, losses[0], [torch.zeros_like(p) for p in parameters], before)


def _bound(track: "Track", gradients: list[Tensor], norm: Tensor, keep: Tensor) -> None:
    """Cut the gradient to NORM_CAP in place; make it NaN if the batch is not learned.

    Funnel leaves a tensor with a NaN in its gradient as it is, so NaN in all leaves all.
    """
    log_norm = norm.log()
    level = track.norm_level
    factor = (level + math.log(NORM_CAP) - log_norm).clamp_(max=0.0).exp_()
    torch._foreach_mul_(gradients, torch.where(keep, factor, math.nan))
    moved = level + torch.where(log_norm > level, NORM_UP, -NORM_DOWN)
    moved = torch.where(level.isinf(), log_norm, moved)
    level.copy_(torch.where(keep & (norm > 0), moved, level))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off for a while."""
    module.eval()
    try:
        yield
    finally:
        module.train()
