"""What a batch does before the update: scores, gradient, and all statistics but the optimizer's."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from funnel.backprop import differentiate
from service import models
from service.standardizer import clamped

if TYPE_CHECKING:
    from service.fold import State

logger = logging.getLogger("funnel")


def observe(state: "State", inputs: Tensor, labels: Tensor) -> tuple[Tensor | None, ...]:
    """Score and differentiate a batch; let everything but the optimizer take it.

    Returns:
        Whether the batch is learned, bool; accuracy and mean loss; a gradient for each parameter,
        NaN if the batch is not learned, None where the loss does not depend on the parameter.
    """
    prepared = inputs
    if state.spec.standardize:
        deviations = state.standardizer.deviations(inputs)
        prepared = clamped(deviations)
    found = (_differentiate if models.is_plain(state.spec.model) else _differentiate_any)(
        state, prepared, labels
    )
    losses, loss = found.losses, found.losses.mean()
    given = [g for g in found.gradients if g is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(given)))
    finite = torch.isfinite(norm + found.training_loss) & torch.isfinite(losses).all()
    keep = finite
    if state.rates.loss_guard:
        keep = state.guard.judge(loss, finite, state.rates.loss_guard)
    _bound(state, given, norm, keep)
    correct = found.logits.argmax(dim=1) == labels
    state.scores.update(correct, losses, labels, finite)
    if state.spec.standardize:
        state.standardizer.update(deviations, keep)
    for buffer, before in found.buffers:
        buffer.copy_(torch.where(keep, buffer, before))
    state.nonfinite.add_(~finite)
    return keep, correct.float().mean(), loss, *found.gradients


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


def _differentiate(state: "State", prepared: Tensor, labels: Tensor) -> _Found:
    parameters = list(state.parameters.values())
    logits, losses, gradients = differentiate(parameters, prepared, labels)
    return _Found(logits, losses, losses.mean(), gradients)


def _differentiate_any(state: "State", prepared: Tensor, labels: Tensor) -> _Found:
    """Do the same for a user's module, which may hold randomness and buffers, and may fail.

    It is scored in evaluation mode and differentiated in training mode. Whatever it raises at its
    inputs, it raises again in replay, so the batch is left out as one that is not finite is.

    Raises:
        torch.OutOfMemoryError, torch.AcceleratorError, MemoryError, OSError: the machine failed,
            not the module; another try may succeed.
    """
    torch.manual_seed((state.spec.seed << 40) + state.version)  # so that replay draws the same
    before = [(buffer, buffer.clone()) for buffer in state.module.buffers()]
    parameters = list(state.parameters.values())
    try:
        with evaluating(state.module):
            logits = state.module(prepared)
        losses = F.cross_entropy(logits, labels, reduction="none")
        with torch.enable_grad():
            loss = F.cross_entropy(state.module(prepared), labels)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return _Found(logits, losses, loss.detach(), gradients, before)
    except (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError, OSError):
        for buffer, old in before:
            buffer.copy_(old)
        raise
    except Exception:  # a user's code may raise anything
        logger.exception("the model failed on a batch of %d, which is left out", len(labels))
        logits = torch.full((len(labels), state.spec.classes), math.nan, device=state.device)
        losses = logits[:, 0]
        return _Found(logits, losses, losses[0], [torch.zeros_like(p) for p in parameters], before)


def _bound(state: "State", gradients: list[Tensor], norm: Tensor, keep: Tensor) -> None:
    """Cut the gradient to the cap in place; make it NaN if the batch is not learned.

    Funnel leaves a tensor with a NaN in its gradient as it is, so NaN in all leaves all.
    """
    torch._foreach_mul_(gradients, torch.where(keep, state.cap.factor(norm), math.nan))
    state.cap.update(norm, keep)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off for a while."""
    module.eval()
    try:
        yield
    finally:
        module.train()
