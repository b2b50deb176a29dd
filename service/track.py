"""One learner on the stream: a model, its optimizer and its scores; served, or a shadow beside it.

All learners see the same batches through the same standardization, and no learner sees another.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from service import models
from service.optimizers import make_optimizer, optimizer_rates
from service.scoring import Scores
from service.spec import Rates, Spec


class Track:
    """What one learner has learned, and how well it predicted.

    Args:
        spec: what the model is.
        optimizer: one of `service.optimizers.OPTIMIZERS`.
        rates: its hyperparameters.
        device: where everything lives.

    Raises:
        service.models.ModelError: the model cannot be built.
    """

    def __init__(self, spec: Spec, optimizer: str, rates: Rates, device: torch.device) -> None:
        self.kind, self.device = optimizer, device
        self.is_plain = models.is_plain(spec.model)
        module = models.build(spec.model, spec.features, spec.classes, spec.hidden, spec.seed)
        self.module = module.to(device).train()
        self.parameters = dict(self.module.named_parameters())
        self.optimizer = make_optimizer(optimizer, rates, self.module, device.type == "cpu")
        self.optimizer.allocate()
        self.scores = Scores(spec.classes, device)
        self.norm_level = torch.full((), math.inf, device=device)
        """Log of the gradient norm that nearly all recent ones stay under; inf before the first."""
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        """Batches left out because loss or gradient was not finite."""

    def set_rates(self, rates: Rates) -> None:
        """Go on with other hyperparameters."""
        for group in self.optimizer.param_groups:
            group.update(optimizer_rates(self.kind, rates))

    def step(self, gradients: list[Tensor | None]) -> None:
        """Take one update along a gradient for each parameter."""
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, the tensors themselves."""
        named = {f"model.{k}": v for k, v in weights(self.module).items()}
        named |= {f"scores.{k}": v for k, v in self.scores.tensors().items()}
        named |= {"norm_level": self.norm_level, "nonfinite": self.nonfinite}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                if key == "inner":
                    named |= {f"optimizer.{name}.inner.{k}": v for k, v in value.items()}
                else:
                    named[f"optimizer.{name}.{key}"] = value
        return named

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over saved tensors, of the names, shapes and dtypes of `tensors`."""
        state = self.optimizer.state_dict()
        state["state"] = self._optimizer_state(tensors)
        self.optimizer.load_state_dict(state)
        mine = self.tensors()
        for name, tensor in tensors.items():
            if not name.startswith("optimizer."):
                mine[name].copy_(tensor)

    def _optimizer_state(self, tensors: dict[str, Tensor]) -> dict[int, dict[str, Any]]:
        state: dict[int, dict[str, Any]] = {}
        for index, name in enumerate(self.parameters):
            prefix = f"optimizer.{name}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            inner = {k.removeprefix("inner."): v for k, v in own.items() if "inner." in k}
            state[index] = {k: v for k, v in own.items() if "inner." not in k} | {"inner": inner}
        return state


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, those left out of ``state_dict`` too."""
    return dict(module.named_parameters()) | dict(module.named_buffers())
