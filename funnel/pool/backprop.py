"""Forward and backward through linear layers with ReLU between them, written out.

Autograd's gradients up to rounding, without its bookkeeping: a logistic model's step is a third
shorter, and is a plain function of tensors that can be traced.

K experts, models of one shape side by side, all see the same inputs. So their first layers are one
layer that is K times as wide, and only deeper ones are products in batches. Each expert's result is
that of a model alone; for one expert they agree bit for bit.

What a layer gives is kept as [K, out, n], examples last: sums over few classes are then sums of
long rows, and no product needs a copy.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layers = Sequence[tuple[Tensor, Tensor]]
"""Weight [K, out, in] and bias [K, out] of each layer in turn."""


class Differentiated(NamedTuple):
    """What K experts make of a batch."""

    probabilities: Tensor
    """[K, n, classes]."""
    losses: Tensor
    """Cross-entropy of each example [K, n], in nats."""
    training_losses: Tensor
    """What was differentiated, [K]."""
    gradients: list[Tensor]
    """Of each expert's training loss, shaped and ordered as the parameters."""


def is_perceptron(module: nn.Module) -> bool:
    """Say whether the module is linear layers with biases, and ReLU between them: no more.

    No layer or tensor may stand in two places, and no hook may have a say.
    """
    layers = list(module) if type(module) is nn.Sequential else [module]
    linear, between = layers[::2], layers[1::2]
    return (
        len(linear) == len(between) + 1
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in linear)
        and all(type(layer) is nn.ReLU for layer in between)
        and all(parameter.requires_grad for parameter in module.parameters())
        and len(list(module.parameters())) == 2 * len(linear)
        and not any(_has_hooks(part) for part in (module, *layers))
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def differentiate(
    parameters: Sequence[Tensor], inputs: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return logits, losses, and the gradients of the mean loss in the order of the parameters.

    Args:
        parameters: weight [out, in] and bias [out] of each layer in turn.
        inputs: fp32 [n, features].
        labels: int64 [n].

    Returns:
        Logits [n, classes]; cross-entropy of each example [n], in nats; gradients.
    """
    layers = _layers([p[None] for p in parameters])
    outputs = _forward(layers, inputs)
    logits = outputs.pop()
    log_odds = logits.log_softmax(dim=1)
    losses = _own_losses(log_odds, labels)
    gradients = _backward(layers, inputs, outputs, _error(log_odds.exp_(), labels))
    return logits[0].t(), losses[0], [g[0] for g in gradients]


def differentiate_experts(
    parameters: Sequence[Tensor], inputs: Tensor, labels: Tensor
) -> Differentiated:
    """Do the same for K experts.

    Args:
        parameters: weight [K, out, in] and bias [K, out] of each layer in turn.
        inputs: fp32 [n, features].
        labels: int64 [n].
    """
    layers = _layers(parameters)
    outputs = _forward(layers, inputs)
    log_odds = outputs.pop().log_softmax(dim=1)
    losses = _own_losses(log_odds, labels)
    probabilities = log_odds.exp_()
    gradients = _backward(layers, inputs, outputs, _error(probabilities.clone(), labels))
    return Differentiated(probabilities.mT, losses, losses.mean(dim=-1), gradients)


def affine_gradients(
    layers: Sequence[Tensor], inputs: Tensor, targets: Tensor, share: Tensor
) -> list[Tensor]:
    """Return the gradients of K experts, and nothing else; biases are a column of the weights.

    Args:
        layers: weight and bias of each, side by side, [K, out, in + 1].
        inputs: fp32 [n, features + 1]; the last is 1.
        targets: what `one_hot` makes of the labels, [classes, n].
        share: what the losses of each expert are multiplied with before they are summed, [K, 1, 1].
    """
    first, *deeper = layers
    outputs = (inputs @ first.flatten(0, 1).t()).t().unflatten(0, first.shape[:2])
    below = []
    for layer in deeper:
        below.append(F.pad(outputs.relu_(), (0, 0, 0, 1), value=1.0))
        outputs = layer @ below[-1]
    error = outputs.softmax(dim=1).sub_(targets).mul_(share)
    gradients = []
    for layer, hidden in zip(reversed(deeper), reversed(below), strict=True):
        gradients.append(error @ hidden.mT)
        error = (layer[:, :, :-1].mT @ error) * (hidden[:, :-1] > 0)
    gradients.append((error.flatten(0, 1) @ inputs).unflatten(0, first.shape[:2]))
    return gradients[::-1]


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return the probabilities of labels [n] that are certain, fp32 [classes, n]."""
    targets = torch.zeros(classes, len(labels), device=labels.device)
    return targets.scatter_(0, labels[None], 1.0)


def expert_logits(parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Return the logits of K experts, [K, n, classes]; arguments as above."""
    return _forward(_layers(parameters), inputs)[-1].mT


def _layers(parameters: Sequence[Tensor]) -> Layers:
    return list(zip(parameters[::2], parameters[1::2], strict=True))


def _forward(layers: Layers, inputs: Tensor) -> list[Tensor]:
    """Return what each layer gives, [K, out, n]; after ReLU, except for the last.

    Not by ``addmm``, which a trace would take apart, and round in another way.
    """
    (weight, bias), *deeper = layers
    wide = weight.flatten(0, 1) @ inputs.t() + bias.flatten()[:, None]
    outputs = [wide.unflatten(0, bias.shape)]
    for weight, bias in deeper:
        outputs.append(weight @ outputs[-1].relu_() + bias[:, :, None])
    return outputs


def _backward(
    layers: Layers, inputs: Tensor, hidden: Sequence[Tensor], error: Tensor
) -> list[Tensor]:
    """Return the gradients, from those by the logits, ``error`` [K, classes, n]."""
    gradients: list[Tensor] = []
    for (weight, _), below in zip(reversed(layers[1:]), reversed(hidden), strict=True):
        gradients += [error.sum(dim=2), error @ below.mT]
        error = (weight.mT @ error) * (below > 0)
    by_weight = error.flatten(0, 1) @ inputs
    gradients += [error.sum(dim=2), by_weight.unflatten(0, error.shape[:2])]
    return gradients[::-1]


def _own_losses(log_odds: Tensor, labels: Tensor) -> Tensor:
    return -log_odds.gather(1, _as_index(labels, log_odds))[:, 0]


def _error(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the mean loss by the logits, in the place of the probabilities."""
    targets = one_hot(labels, probabilities.shape[1])
    return probabilities.sub_(targets).div_(len(labels))


def _as_index(labels: Tensor, like: Tensor) -> Tensor:
    """Return the labels [n] as an index into the classes of [K, classes, n]."""
    return labels.expand(len(like), 1, -1)
