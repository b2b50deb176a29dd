"""Forward and backward through linear layers with ReLU between them, written out.

The gradients are autograd's up to rounding, without its bookkeeping: a logistic model's step is a
third shorter, and is a plain function of tensors that can be traced.

K experts, models of one shape, all see the same inputs. So their first layers are one layer that is
K times as wide, and only deeper layers are batched products. Each expert's result is that of a
model alone; for one expert they agree bit for bit.

Inputs may be `funnel.pool.sparse.Sparse`; only the first layer's products differ then.

Outputs of layers are kept as [K, out, n], examples last: sums over few classes are then sums of
long rows, and no product needs a copy.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from funnel.pool.loss import CROSS_ENTROPY, Held, Loss
from funnel.pool.sparse import Inputs, gradient, product
from funnel.tensorlists import weighted

Layers = Sequence[tuple[Tensor, Tensor]]
"""Weight [K, out, in] and bias [K, out] of each layer in turn."""


class Differentiated(NamedTuple):
    """A batch, scored and differentiated by K experts."""

    outputs: Tensor
    """[K, n, out], such as logits."""
    answers: Tensor
    """[K, n, A], such as probabilities; see `funnel.pool.loss`."""
    losses: Tensor
    """Loss of each example, [K, n]."""
    training_losses: Tensor
    """The losses that were differentiated, [K]."""
    gradients: list[Tensor]
    """Gradients of each expert's training loss, shaped and ordered as the parameters."""
    summary: Tensor | None = None
    """The argument of `funnel.pool.loss.Loss.learn`."""


def is_perceptron(module: nn.Module) -> bool:
    """Return whether the module is linear layers with biases, ReLU between them, and nothing else.

    No layer or tensor may be used twice, and there may be no hooks.
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


def differentiate_experts(
    parameters: Sequence[Tensor],
    inputs: Inputs,
    labels: Tensor,
    importance: Tensor | None = None,
    loss: Loss = CROSS_ENTROPY,
    held: Held | None = None,
) -> Differentiated:
    """Score and differentiate a batch with K experts.

    Args:
        parameters: weight [K, out, in] and bias [K, out] of each layer in turn.
        inputs: n of them.
        labels: [n], as the loss takes them.
        importance: weights of the examples, fp32 [n]; None for 1.
        loss: what is differentiated.
        held: what the loss has learned.
    """
    layers = _layers(parameters)
    outputs = _forward(layers, inputs)
    last = outputs.pop()
    judged = loss.judge(held or {}, last, labels, importance)
    error = weighted(judged.error, importance)
    gradients = _backward(layers, inputs, outputs, error)
    training = weighted(judged.losses, importance).mean(dim=-1)
    return Differentiated(
        last.mT, judged.answers.mT, judged.losses, training, gradients, judged.summary
    )


def affine_gradients(
    layers: Sequence[Tensor],
    inputs: Inputs,
    share: Tensor,
    error_by_output: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Return only the gradients of K experts; biases are a column of the weights.

    Args:
        layers: weight and bias of each, concatenated, [K, out, in + 1].
        inputs: of features + 1 columns; the last is 1.
        share: factor of each expert's losses before they are summed, [K, 1, 1] or [K, 1, n].
        error_by_output: maps outputs [K, out, n], which it may overwrite, to the gradient of each
            example's loss by them.
    """
    first, *deeper = layers
    wide = first.flatten(0, 1)
    if isinstance(inputs, Tensor):
        outputs = (inputs @ wide.t()).t().unflatten(0, first.shape[:2])
    else:
        outputs = product(wide, inputs).unflatten(0, first.shape[:2])
    below = []
    for layer in deeper:
        below.append(F.pad(outputs.relu_(), (0, 0, 0, 1), value=1.0))
        outputs = layer @ below[-1]
    error = error_by_output(outputs).mul_(share)
    gradients = []
    for layer, hidden in zip(reversed(deeper), reversed(below), strict=True):
        gradients.append(error @ hidden.mT)
        error = (layer[:, :, :-1].mT @ error) * (hidden[:, :-1] > 0)
    by_first = gradient(error.flatten(0, 1), inputs, first.shape[2])
    gradients.append(by_first.unflatten(0, first.shape[:2]))
    return gradients[::-1]


def affine_outputs(layers: Sequence[Tensor], inputs: Inputs) -> Tensor:
    """Return the outputs of K experts, [K, out, n]; arguments as for `affine_gradients`."""
    first, *deeper = layers
    wide = first.flatten(0, 1)
    rows = (inputs @ wide.t()).t() if isinstance(inputs, Tensor) else product(wide, inputs)
    outputs: Tensor = rows.unflatten(0, first.shape[:2])
    for layer in deeper:
        outputs = layer @ F.pad(outputs.relu_(), (0, 0, 0, 1), value=1.0)
    return outputs


def expert_outputs(parameters: Sequence[Tensor], inputs: Inputs) -> Tensor:
    """Return the outputs of K experts, [K, n, out]; arguments as for `differentiate_experts`."""
    return _forward(_layers(parameters), inputs)[-1].mT


def _layers(parameters: Sequence[Tensor]) -> Layers:
    return list(zip(parameters[::2], parameters[1::2], strict=True))


def _forward(layers: Layers, inputs: Inputs) -> list[Tensor]:
    """Return the output of each layer, [K, out, n]; after ReLU, except for the last.

    ``addmm`` is not used: a trace would split it, and round differently.
    """
    (weight, bias), *deeper = layers
    wide = product(weight.flatten(0, 1), inputs) + bias.flatten()[:, None]
    outputs = [wide.unflatten(0, bias.shape)]
    for weight, bias in deeper:
        outputs.append(weight @ outputs[-1].relu_() + bias[:, :, None])
    return outputs


def _backward(
    layers: Layers, inputs: Inputs, hidden: Sequence[Tensor], error: Tensor
) -> list[Tensor]:
    """Return the gradients, from those by the outputs, ``error`` [K, out, n]."""
    gradients: list[Tensor] = []
    for (weight, _), below in zip(reversed(layers[1:]), reversed(hidden), strict=True):
        gradients += [error.sum(dim=2), error @ below.mT]
        error = (weight.mT @ error) * (below > 0)
    by_weight = gradient(error.flatten(0, 1), inputs, layers[0][0].shape[2])
    gradients += [error.sum(dim=2), by_weight.unflatten(0, error.shape[:2])]
    return gradients[::-1]
