"""K copies of a module: their tensors are stacked, [K, …], their batches shared.

Linear layers with ReLU between them go through `funnel.pool.backprop`. Any other module goes
through ``torch.func.vmap`` if that can run it, and one expert at a time otherwise. This is decided
when the copies are made, so that a replay takes the same path.
"""

import copy
import logging
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
from funnel.pool.loss import CROSS_ENTROPY, Held, Loss
from funnel.pool.sparse import Inputs
from funnel.tensorlists import weighted

logger = logging.getLogger("funnel")

Tensors = dict[str, Tensor]


class Experts:
    """Computes with K copies of a module; the tensors belong to the caller.

    Modules that are not plain may hold buffers, which training changes in place, and randomness,
    which is torch's global one: seed it beforehand to draw the same again. They are scored in
    evaluation mode and differentiated in training mode, each time on a copy of the inputs, which
    they may change in place. Parameters that require no gradient are
    kept with the buffers.

    Args:
        module: maps fp32 [n, features] to logits [n, classes]; it is copied.
        count: K.
        features: width of the inputs.

    Raises:
        TypeError: a parameter is not fp32.
        ValueError: none requires a gradient.
    """

    def __init__(self, module: nn.Module, count: int, features: int) -> None:
        for name, parameter in module.named_parameters():
            if parameter.dtype != torch.float32:
                raise TypeError(f"experts need fp32 parameters, {name!r} is {parameter.dtype}")
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ValueError("the module has no parameter that requires a gradient")
        self.module, self.count = copy.deepcopy(module), count
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
        loss: Loss = CROSS_ENTROPY,
        held: Held | None = None,
    ) -> Differentiated:
        """Score and differentiate n inputs; ``buffers`` may change.

        Args:
            parameters, buffers: of all experts.
            inputs: n of them.
            labels: [n], as the loss takes them.
            importance: weights of the examples, fp32 [n]; None for 1.
            loss: what is differentiated; the cross-entropy unless the module is plain.
            held: what the loss has learned.

        Raises:
            TypeError: the inputs are sparse, and the module is not plain.
        """
        if self.is_plain:
            return differentiate_experts(
                list(parameters.values()), inputs, labels, importance, loss, held
            )
        inputs = _written_out(inputs)
        logits = self.outputs(parameters, buffers, inputs)
        log_odds = logits.log_softmax(dim=-1)
        losses = -log_odds.gather(-1, labels[:, None].expand(*log_odds.shape[:-1], 1))[..., 0]
        self.module.train()
        if self.is_vectorized:
            training, gradients = self._vectorized(parameters, buffers, inputs, labels, importance)
        else:
            training, gradients = self._one_by_one(parameters, buffers, inputs, labels, importance)
        return Differentiated(logits, log_odds.exp_(), losses, training, gradients)

    def _vmap_can(self, features: int) -> bool:
        """Try it on blank inputs; buffers and a single expert are never vectorized."""
        if self.count == 1 or any(True for _ in self.module.buffers()):
            return False
        parameters, buffers = self.stack()
        inputs = next(iter(parameters.values())).new_zeros(2, features)
        labels = torch.zeros(2, dtype=torch.int64, device=inputs.device)
        for self._inputs_in in (None, 0):
            try:
                with torch.random.fork_rng():
                    self.module.eval()
                    self._call_all(parameters, buffers, inputs)
                    self.module.train()
                    self._vectorized(parameters, buffers, inputs, labels)
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
