"""A learner of one model with one optimizer: Funnel, or a plain one."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from funnel import Funnel
from funnel.inner.interface import Inner
from funnel.pool.backprop import differentiate
from funnel.pool.clipping import NormCap
from service.fold.learner import Evaluate, Found, Learner, LearnerTelemetry, weights
from service.fold.spec import Hyperparameters, Spec


class SingleLearner(Learner):
    """See `Learner`.

    Args:
        spec: what the model is.
        device: where everything lives.
        inner: the inner optimizer.
        learns: whether Funnel adapts its step sizes; else it is the inner optimizer with heavy-ball
            momentum, bit for bit.
        hyperparameters: all of them.
    """

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        inner: Inner,
        learns: bool,
        hyperparameters: Hyperparameters,
    ) -> None:
        super().__init__(spec, device)
        self.learns = learns
        self.parameters = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        on_host = device.type == "cpu"
        self.optimizer = Funnel(
            self.parameters.items(),
            inner,
            skip_nonfinite=not on_host,
            traced=on_host,
            **self._hyperparameters(hyperparameters),
        )
        self.optimizer.allocate()
        self.cap = NormCap.fresh((), device)

    def set_hyperparameters(self, hyperparameters: Hyperparameters) -> None:
        """See `Learner.set_hyperparameters`."""
        for group in self.optimizer.param_groups:
            group.update(self._hyperparameters(hyperparameters))

    def _hyperparameters(self, hyperparameters: Hyperparameters) -> dict[str, Any]:
        return {
            "lr": hyperparameters.lr,
            "momentum": hyperparameters.momentum,
            "gain_lr": hyperparameters.gain_lr if self.learns else 0.0,
            "scale_lr": hyperparameters.scale_lr if self.learns else 0.0,
        }

    def hyperparameters(self) -> dict[str, Any]:
        """See `Learner.hyperparameters`."""
        names = ("lr", "momentum", "gain_lr", "scale_lr")
        return {name: self.optimizer.param_groups[0][name] for name in names}

    def tensors(self) -> dict[str, Tensor]:
        """See `Learner.tensors`."""
        named = {f"model.{k}": v for k, v in weights(self.module).items()}
        named |= self._own_tensors() | {"norm_level": self.cap.level}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                if key == "inner":
                    named |= {f"optimizer.{name}.inner.{k}": v for k, v in value.items()}
                else:
                    named[f"optimizer.{name}.{key}"] = value
        return named

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See `Learner.load`."""
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

    def buffers(self) -> list[Tensor]:
        """See `Learner.buffers`."""
        return list(self.module.buffers())

    def _look(self, prepared: Tensor, labels: Tensor) -> Found:
        parameters = list(self.parameters.values())
        if self.is_plain:
            logits, losses, gradients = differentiate(parameters, prepared, labels)
            return self._found(logits, losses, losses.mean(), gradients)
        with evaluating(self.module):
            logits = self.module(prepared)
        losses = F.cross_entropy(logits, labels, reduction="none")
        with torch.enable_grad():
            loss = F.cross_entropy(self.module(prepared), labels)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return self._found(logits, losses, loss.detach(), found)

    def _failed(self, scores: Tensor) -> Found:
        gradients = [torch.zeros_like(p) for p in self.parameters.values()]
        return self._found(scores, scores[:, 0], scores[0, 0], gradients)

    def _found(
        self,
        logits: Tensor,
        losses: Tensor,
        training_loss: Tensor,
        gradients: Sequence[Tensor | None],
    ) -> Found:
        given = [g for g in gradients if g is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(given)))
        finite = torch.isfinite(norm + training_loss) & torch.isfinite(losses).all()
        return Found(logits, losses, finite, (norm, gradients))

    def _ready(self, found: Found, keep: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients. Funnel leaves a tensor with a NaN in its gradient as it is, so NaN
        in all leaves all."""
        norm, gradients = found.rest
        factor = torch.where(keep, self.cap.factor(norm), torch.nan)
        torch._foreach_mul_([g for g in gradients if g is not None], factor)
        self.cap.update(norm, keep)
        return tuple(gradients)

    def step(self, readied: Sequence[Tensor | None]) -> None:
        """See `Learner.step`."""
        for parameter, gradient in zip(self.parameters.values(), readied, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def frozen(self) -> dict[str, Tensor]:
        """See `Learner.frozen`."""
        return {k: v.detach().clone() for k, v in weights(self.module).items()}

    def evaluator(self) -> Evaluate:
        """See `Learner.evaluator`."""
        module = copy.deepcopy(self.module).eval()

        def evaluate(frozen: dict[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
            logits = functional_call(module, frozen, (inputs,))
            return logits.argmax(dim=1), logits.softmax(dim=1)

        return evaluate

    def telemetry(self) -> LearnerTelemetry:
        """See `Learner.telemetry`."""
        state = {name: self.optimizer.state[p] for name, p in self.parameters.items()}
        lr = self.optimizer.param_groups[0]["lr"]
        return LearnerTelemetry(
            tensors={str(name): found for name, found in self.optimizer.telemetry().items()},
            log_gains={name: own["log_gain"] for name, own in state.items()},
            step_sizes={name: lr * own["log_scale"].exp() for name, own in state.items()},
            expert_weights={},
            expert_ages={},
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off for a while."""
    module.eval()
    try:
        yield
    finally:
        module.train()
