"""Forward and backward through linear layers with ReLU between them, written out.

Autograd's gradients up to rounding, without its bookkeeping: a logistic model's step is a third
shorter, and is a plain function of tensors that can be traced.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


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
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    outputs = [inputs]
    for depth, (weight, bias) in enumerate(layers):
        output = outputs[-1] @ weight.t() + bias
        outputs.append(output.relu_() if depth < len(layers) - 1 else output)
    logits = outputs.pop()
    log_odds = logits.log_softmax(dim=1)
    own = labels[:, None]
    losses = -log_odds.gather(1, own)[:, 0]
    error = log_odds.exp_()
    error.scatter_add_(1, own, torch.full_like(own, -1, dtype=error.dtype))
    error /= len(inputs)
    gradients: list[Tensor] = []
    for (weight, _), below in zip(reversed(layers), reversed(outputs), strict=True):
        gradients += [error.sum(dim=0), error.t() @ below]
        if below is not inputs:
            error = (error @ weight) * (below > 0)
    return logits, losses, gradients[::-1]
