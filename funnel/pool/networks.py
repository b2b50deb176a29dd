"""K copies of a module: their tensors are stacked, [K, …], their batches shared.

Linear layers with ReLU between them go through `funnel.pool.backprop`. Any other module goes
through ``torch.func.vmap`` if that can run it, and one expert at a time otherwise. This is decided
when the copies are made, so that a replay takes the same path.

A module that predicts numbers may end in anything. So its outputs go through a factor and an offset
of their own (`InUnit`), which are learned, and which follow the unit of the numbers.
"""

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from funnel.pool.backprop import (
    Differentiated,
    differentiate_experts,
    expert_outputs,
    is_perceptron,
)
from funnel.pool.loss import CROSS_ENTROPY, CrossEntropy, Gaussian, Held, Loss, Pinball
from funnel.pool.sparse import Inputs
from funnel.tensorlists import weighted

logger = logging.getLogger("funnel")

Tensors = dict[str, Tensor]


class InUnit(nn.Sequential):
    """A module whose outputs u are answered as w u + c, with w and c learned like all else.

    `funnel.pool.pool.Pool.rescale` changes w and c where the unit of numbers moves, as it changes
    the last of several linear layers, so no answer changes then. They are the last parameters.

    Args:
        own: maps fp32 [n, features] to [n, outputs].
        outputs: their number.
    """

    def __init__(self, own: nn.Module, outputs: int) -> None:
        super().__init__(OrderedDict(own=own, unit=_Unit(outputs)))


class _Unit(nn.Module):
    """Maps outputs u, fp32 [n, outputs], to w u + c."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs * self.weight + self.bias


def with_unit(module: nn.Module, loss: Loss) -> nn.Module:
    """Return a module whose last two parameters scale and move its outputs, if these are numbers.

    Args:
        module: linear layers with ReLU between them end in such parameters.
        loss: by which it learns.
    """
    match loss:
        case Gaussian():
            outputs = 1
        case Pinball(quantiles):
            outputs = len(quantiles)
        case _:
            return module
    if is_perceptron(module):
        return module
    return InUnit(module, outputs).to(next(module.parameters()).device)


class Experts:
    """Computes with K copies of a module; the tensors belong to the caller.

    Modules that are not plain may hold buffers, which training changes in place, and randomness,
    which is torch's global one: seed it beforehand to draw the same again. They are scored in
    evaluation mode and differentiated in training mode, each time on a copy of the inputs, which
    they may change in place. Parameters that require no gradient are
    kept with the buffers.

    Args:
        module: maps fp32 [n, features] to the outputs that the loss takes, such as logits
            [n, classes]; it is copied.
        count: K.
        features: width of the inputs.
        loss: what is differentiated.

    Raises:
        TypeError: a parameter is not fp32.
        ValueError: none requires a gradient.
    """

    def __init__(
        self, module: nn.Module, count: int, features: int, loss: Loss = CROSS_ENTROPY
    ) -> None:
        for name, parameter in module.named_parameters():
            if parameter.dtype != torch.float32:
                raise TypeError(f"experts need fp32 parameters, {name!r} is {parameter.dtype}")
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ValueError("the module has no parameter that requires a gradient")
        self.module, self.count, self.loss = copy.deepcopy(module), count, loss
        self.unused = copy.deepcopy(module)
        """A copy that is never called, so that it holds on to nothing."""
        self._first_names = _first_names(self.module)
        self.is_plain = is_perceptron(module)
        """True if training and evaluation are the same function of tensors, which can be traced."""
        self._inputs_in: int | None = None
        """Dimension of the experts in the inputs of `_vectorized`; 0 for a module that changes its
        inputs in place, by what differs between experts."""
        self.is_vectorized = not self.is_plain and self._vmap_can(features)

    def stack(self) -> tuple[Tensors, Tensors]:
        """Return K copies of the parameters to learn, and of all other tensors of the module."""
        found = dict(self.module.named_parameters())
        learned: Tensors = {name: p for name, p in found.items() if p.requires_grad}
        frozen: Tensors = {name: p for name, p in found.items() if not p.requires_grad}
        held = frozen | dict(self.module.named_buffers())
        return _stacked(learned, self.count), _stacked(held, self.count)

    def outputs(self, parameters: Tensors, buffers: Tensors, inputs: Inputs) -> Tensor:
        """Return the outputs in evaluation mode, such as logits, [K, n, out].

        Raises:
            TypeError: the inputs are sparse, and the module is not plain.
        """
        if self.is_plain:
            return expert_outputs(list(parameters.values()), inputs)
        inputs = _written_out(inputs)
        self.module.eval()
        if self.is_vectorized:
            return self._call_all(parameters, buffers, inputs)
        each = [self._call(*self._of(k, parameters, buffers), inputs) for k in range(self.count)]
        return torch.stack(each)

    def differentiate(
        self,
        parameters: Tensors,
        buffers: Tensors,
        inputs: Inputs,
        labels: Tensor,
        importance: Tensor | None = None,
        held: Held | None = None,
    ) -> Differentiated:
        """Score and differentiate n inputs; ``buffers`` may change.

        Args:
            parameters, buffers: of all experts.
            inputs: n of them.
            labels: [n], as the loss takes them.
            importance: weights of the examples, fp32 [n]; None for 1.
            held: what the loss has learned.

        Raises:
            TypeError: the inputs are sparse, and the module is not plain.
        """
        if self.is_plain:
            return differentiate_experts(
                list(parameters.values()), inputs, labels, importance, self.loss, held
            )
        inputs = _written_out(inputs)
        if type(self.loss) is not CrossEntropy:
            return self._by_loss(parameters, buffers, inputs, labels, importance, held or {})
        logits = self.outputs(parameters, buffers, inputs)
        log_odds = logits.log_softmax(dim=-1)
        losses = -log_odds.gather(-1, labels[:, None].expand(*log_odds.shape[:-1], 1))[..., 0]
        self.module.train()
        if self.is_vectorized:
            training, gradients = self._vectorized(parameters, buffers, inputs, labels, importance)
        else:
            training, gradients = self._one_by_one(parameters, buffers, inputs, labels, importance)
        found = self.loss.joined(
            held or {}, logits[:, 0], log_odds.exp_().mT, losses, labels, importance
        )
        return Differentiated(
            logits, found.answers.mT, found.losses, training, gradients, found.summary
        )

    def _by_loss(
        self,
        parameters: Tensors,
        buffers: Tensors,
        inputs: Tensor,
        labels: Tensor,
        importance: Tensor | None,
        held: Held,
    ) -> Differentiated:
        """Score the outputs of evaluation mode, and differentiate those of training mode.

        The loss gives its gradient by the outputs, and autograd goes on from there. So a module
        learns from the same errors, bounded or smoothed, as linear layers do.
        """
        outputs = self.outputs(parameters, buffers, inputs)
        judged = self.loss.judge(held, _examples_last(outputs), labels, importance)
        self.module.train()
        trained, differentiate = self._in_training(parameters, buffers, inputs)
        found = self.loss.judge(held, _examples_last(trained), labels, importance)
        losses = weighted(found.losses[: self.count], importance).mean(dim=-1)
        gradients = differentiate(weighted(found.error, importance).mT)
        return Differentiated(
            outputs, judged.answers.mT, judged.losses, losses, gradients, judged.summary
        )

    def _in_training(
        self, parameters: Tensors, buffers: Tensors, inputs: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        """Return the outputs in training mode, [K, n, out], and what maps the gradient by them to
        the gradients by the parameters, [K, …] each."""
        with torch.enable_grad():
            leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
            if self.is_vectorized:
                if self._inputs_in is not None:
                    inputs = inputs.expand(self.count, *inputs.shape)
                dims = (0, 0, self._inputs_in)
                call = vmap(self._call, in_dims=dims, randomness="different")
                outputs: Tensor = call(leaves, buffers, inputs)
            else:
                each = {name: leaf.unbind() for name, leaf in leaves.items()}
                outputs = torch.stack([
                    self._call_one(k, {name: parts[k] for name, parts in each.items()}, buffers,
                                   inputs)
                    for k in range(self.count)
                ])  # fmt: skip

        def differentiate(error: Tensor) -> list[Tensor]:
            found: Sequence[Tensor] = torch.autograd.grad(
                outputs, list(leaves.values()), error, allow_unused=True, materialize_grads=True
            )
            return list(found)

        return outputs.detach(), differentiate

    def _call_one(self, k: int, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
        """Return the outputs of one expert, [n, out], by buffers that no other expert shares.

        Buffers of all experts are one tensor, and autograd refuses to go back through a tensor that
        has changed.
        """
        own = {name: buffer[k] for name, buffer in buffers.items()}
        changing = {name: own[name].clone() for name, _ in self.unused.named_buffers()}
        outputs = self._call(parameters, own | changing, inputs)
        for name, buffer in changing.items():
            own[name].copy_(buffer)
        return outputs

    def _vmap_can(self, features: int) -> bool:
        """Try it on blank inputs; buffers and a single expert are never vectorized."""
        if self.count == 1 or any(True for _ in self.module.buffers()):
            return False
        parameters, buffers = self.stack()
        inputs = next(iter(parameters.values())).new_zeros(2, features)
        labels = torch.zeros(2, dtype=torch.int64, device=inputs.device)
        is_of_classes = type(self.loss) is CrossEntropy
        self.is_vectorized = True
        for self._inputs_in in (None, 0):
            try:
                with torch.random.fork_rng():
                    self.module.eval()
                    self._call_all(parameters, buffers, inputs)
                    self.module.train()
                    if is_of_classes:
                        self._vectorized(parameters, buffers, inputs, labels)
                    else:
                        outputs, differentiate = self._in_training(parameters, buffers, inputs)
                        differentiate(torch.ones_like(outputs))
            except Exception as error:  # a user's code may raise anything
                logger.info("experts cannot be computed at once: %r", error)
            else:
                return True
            finally:  # it may hold on to tensors of vmap
                self.module = copy.deepcopy(self.unused)
        return False

    def _call(self, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
        held = parameters | buffers
        named = {name: held[first] for name, first in self._first_names.items()}
        logits: Tensor = functional_call(self.module, named, (inputs.clone(),), tie_weights=False)
        return logits

    def _call_all(self, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
        call = vmap(self._call, in_dims=(0, 0, None), randomness="different")
        logits: Tensor = call(parameters, buffers, inputs)
        return logits

    def _loss(
        self,
        parameters: Tensors,
        buffers: Tensors,
        inputs: Tensor,
        labels: Tensor,
        importance: Tensor | None = None,
    ) -> Tensor:
        logits = self._call(parameters, buffers, inputs)
        if importance is None:
            return F.cross_entropy(logits, labels)
        return weighted(F.cross_entropy(logits, labels, reduction="none"), importance).mean()

    def _vectorized(
        self,
        parameters: Tensors,
        buffers: Tensors,
        inputs: Tensor,
        labels: Tensor,
        importance: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        each = grad_and_value(self._loss)
        dims = (0, 0, self._inputs_in, None, None)
        of_all = vmap(each, in_dims=dims, randomness="different")
        if self._inputs_in is not None:
            inputs = inputs.expand(self.count, *inputs.shape)
        gradients, losses = of_all(parameters, buffers, inputs, labels, importance)
        return losses, list(gradients.values())

    def _one_by_one(
        self,
        parameters: Tensors,
        buffers: Tensors,
        inputs: Tensor,
        labels: Tensor,
        importance: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        losses, gradients = [], []
        for k in range(self.count):
            own, own_buffers = self._of(k, parameters, buffers)
            with torch.enable_grad():
                leaves = {name: p.detach().requires_grad_() for name, p in own.items()}
                loss = self._loss(leaves, own_buffers, inputs, labels, importance)
                found = torch.autograd.grad(
                    loss, list(leaves.values()), allow_unused=True, materialize_grads=True
                )
            losses.append(loss.detach())
            gradients.append(found)
        return torch.stack(losses), [torch.stack(of_one) for of_one in zip(*gradients, strict=True)]

    def _of(self, k: int, parameters: Tensors, buffers: Tensors) -> tuple[Tensors, Tensors]:
        """Return views of one expert's tensors."""
        return {n: p[k] for n, p in parameters.items()}, {n: b[k] for n, b in buffers.items()}


def _written_out(inputs: Inputs) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise TypeError("only linear layers with ReLU between them take sparse inputs")
    return inputs


def _examples_last(outputs: Tensor) -> Tensor:
    """Return outputs [K, n, out] as the loss takes and may overwrite them, [K, out, n]."""
    return outputs.mT.clone(memory_format=torch.contiguous_format)


def _stacked(named: Tensors, count: int) -> Tensors:
    return {name: torch.stack([t.detach()] * count) for name, t in named.items()}


def _first_names(module: nn.Module) -> dict[str, str]:
    """Return the names of all tensors of a module, each with the first name of the same tensor.

    A submodule that is used in two places is named once: `functional_call`, asked to tie weights
    itself, would put its tensors in twice and not restore the module's own.
    """
    found = {
        f"{place}.{name}" if place else name: tensor
        for place, part in module.named_modules()
        for name, tensor in chain(part._parameters.items(), part._buffers.items())
        if tensor is not None
    }
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in found.items()}
