"""The state: all that learning changes, as data. `service.fold.step` executes steps on it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from service.fold.drift import PREFIX as DRIFT
from service.fold.drift import Monitor
from service.fold.learner import Learner
from service.fold.loss_guard import LossGuard
from service.fold.spec import Hyperparameters, Shadow, Spec
from service.fold.standardizer import Standardizer
from service.log.position import Position

SERVED = "served"
"""Name of the learner that answers predictions."""


class State:
    """The learners, the standardizer, the loss guard, the drift events, and counters.

    Args:
        spec: that of the served model.
        hyperparameters: of the served model, and which baselines shadow it.
        device: where everything lives.

    Raises:
        service.fold.networks.ModelError: the model cannot be built.
    """

    def __init__(self, spec: Spec, hyperparameters: Hyperparameters, device: torch.device) -> None:
        self.spec, self.device = spec, device
        self.served = Learner(spec, spec.optimizer, hyperparameters, device)
        self.shadows: dict[str, Learner] = {}
        self.standardizer = Standardizer(spec.features, device)
        self.guard = LossGuard(device)
        self.version = 0
        """Batches folded in."""
        self.examples = 0
        """Examples folded in."""
        self.drift = Monitor()
        """The replica feeds it each step's report, with its log position."""
        self.set_hyperparameters(hyperparameters)

    def set_hyperparameters(self, hyperparameters: Hyperparameters) -> None:
        """Continue with other hyperparameters and baselines; a new baseline starts blank."""
        self.hyperparameters = hyperparameters
        self.served.set_hyperparameters(hyperparameters)
        shadows = {}
        for shadow in map(Shadow.parse, hyperparameters.shadow):
            own = shadow.hyperparameters(hyperparameters)
            learner = self.shadows.get(shadow.name)
            if learner is None:
                learner = Learner(self.spec, shadow.optimizer, own, self.device)
            learner.set_hyperparameters(own)
            shadows[shadow.name] = learner
        self.shadows = shadows

    def learners(self) -> dict[str, Learner]:
        """Return all learners by name, the served one first."""
        return {SERVED: self.served, **self.shadows}

    def shared(self) -> dict[str, Tensor]:
        """Return the tensors that belong to no learner, by name, the tensors themselves."""
        named = {f"standardizer.{k}": v for k, v in self.standardizer.tensors().items()}
        return named | {f"guard.{k}": v for k, v in self.guard.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state but `drift` by name, the tensors themselves."""
        named = self.shared() | self.served.tensors()
        for name, shadow in self.shadows.items():
            named |= {f"shadow.{name}.{k}": v for k, v in shadow.tensors().items()}
        return named

    @torch.no_grad()
    def load(
        self,
        tensors: dict[str, Tensor],
        version: int,
        examples: int,
        drifts: Sequence[Position] = (),
    ) -> None:
        """Load a saved state of the same spec and baselines.

        Args:
            tensors: those of `tensors`, and those of `drift`; copied into the tensors of this
                state, whose storage stays where it is.
            version: batches folded in.
            examples: examples folded in.
            drifts: positions of the drift events.

        Raises:
            ValueError: names, shapes or dtypes differ; nothing is changed then.
        """
        watched = {k: v for k, v in tensors.items() if k.startswith(DRIFT)}
        tensors = {k: v for k, v in tensors.items() if k not in watched}
        mine = self.tensors()
        if mine.keys() != tensors.keys():
            raise ValueError(f"tensors differ: {sorted(mine.keys() ^ tensors.keys())[:4]}")
        for name, tensor in tensors.items():
            if mine[name].shape != tensor.shape or mine[name].dtype != tensor.dtype:
                raise ValueError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}, "
                    f"expected {mine[name].dtype} {list(mine[name].shape)}"
                )
        self.drift.load(watched, drifts)
        for name, tensor in tensors.items():
            mine[name].copy_(tensor)
        self.version, self.examples = version, examples
