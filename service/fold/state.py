"""The state of the model and the step that folds one batch into it.

`step` is a function of (state, batch) alone: on one machine, with one number of threads, equal
states and equal batches give equal states, bit for bit. It never reads a GPU on the host.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from funnel.graphs.captured import Captured
from funnel.graphs.traced import Traced
from service.fold.drift import PREFIX as DRIFT
from service.fold.drift import Monitor
from service.fold.learner import Learner
from service.fold.loss_guard import LossGuard
from service.fold.observation import observe, observe_shadow
from service.fold.optimizers import make_learner
from service.fold.report import Report
from service.fold.spec import Hyperparameters, Shadow, Spec
from service.fold.standardizer import Standardizer
from service.fold.upload import Upload
from service.log.position import Position
from streams.batch import Batch

SERVED = "served"
"""Name of the learner that answers predictions."""

Observer = Callable[..., tuple[Any, ...]]


class State:
    """Everything that learning changes: the learners, the standardizer, the guard, counters.

    Args:
        spec: what the served model is.
        hyperparameters: of the served model, and which baselines shadow the served model.
        device: where everything lives.

    Raises:
        service.models.ModelError: the model cannot be built.
    """

    def __init__(self, spec: Spec, hyperparameters: Hyperparameters, device: torch.device) -> None:
        self.spec, self.device = spec, device
        self.served = make_learner(spec, spec.optimizer, hyperparameters, device)
        self.shadows: dict[str, Learner] = {}
        self.standardizer = Standardizer(spec.features, device)
        self.guard = LossGuard(device)
        self.is_plain = self.served.is_plain
        """Whether a step needs no autograd, as its gradients are written out."""
        self.on_host = device.type == "cpu"
        """Whether a step may branch on a tensor: then it asks whether all is finite, and Funnel
        need not mask, which takes a third of its time."""
        self.version = 0
        """Batches folded in."""
        self.examples = 0
        """Examples folded in."""
        self.drift = Monitor()
        """Given the report of each step by who knows where in the log the step is."""
        self.upload = Upload(device)
        self.set_hyperparameters(hyperparameters)

    def set_hyperparameters(self, hyperparameters: Hyperparameters) -> None:
        """Go on with other hyperparameters and baselines; a new baseline begins from the start."""
        self.hyperparameters = hyperparameters
        self.served.set_hyperparameters(hyperparameters)
        shadows = {}
        for shadow in map(Shadow.parse, hyperparameters.shadow):
            own = shadow.hyperparameters(hyperparameters)
            learner = self.shadows.get(shadow.name)
            if learner is None:
                learner = make_learner(self.spec, shadow.optimizer, own, self.device)
            learner.set_hyperparameters(own)
            shadows[shadow.name] = learner
        self.shadows = shadows
        self._record()

    def _record(self) -> None:
        """Trace or capture anew what may be: storage or constants have changed."""
        self.observe = self._traced(partial(observe, self), self._shared() | self.served.tensors())
        self.observe_shadow = {
            name: self._traced(partial(observe_shadow, learner), learner.tensors())
            for name, learner in self.shadows.items()
        }
        self.learn: Callable[..., tuple[Tensor, ...]] = partial(_learn, self)
        if self.is_plain and not self.on_host:
            self.learn = Captured(self.learn)

    def learners(self) -> dict[str, Learner]:
        """Return all learners by name, the served one first."""
        return {SERVED: self.served, **self.shadows}

    def _traced(self, function: Observer, tensors: dict[str, Tensor]) -> Observer:
        if self.on_host and self.is_plain:
            return Traced(function, tensors.values())
        return function

    def _shared(self) -> dict[str, Tensor]:
        named = {f"standardizer.{k}": v for k, v in self.standardizer.tensors().items()}
        return named | {f"guard.{k}": v for k, v in self.guard.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state but `drift` by name, the tensors themselves."""
        named = self._shared() | self.served.tensors()
        for name, learner in self.shadows.items():
            named |= {_prefix(name) + k: v for k, v in learner.tensors().items()}
        return named

    @torch.no_grad()
    def load(
        self,
        tensors: dict[str, Tensor],
        version: int,
        examples: int,
        drifts: Sequence[Position] = (),
    ) -> None:
        """Take over a saved state of the same spec and baselines.

        Args:
            tensors: those of `tensors`, and those of `drift`.
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
        for name, tensor in self._shared().items():
            tensor.copy_(tensors[name])
        self.served.load({k: v for k, v in tensors.items() if k in self.served.tensors()})
        for name, learner in self.shadows.items():
            prefix = _prefix(name)
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            learner.load(own)
        self.version, self.examples = version, examples
        self._record()


def _prefix(shadow: str) -> str:
    return f"shadow.{shadow}."


def step(state: State, batch: Batch) -> Report:
    """Score the batch with the weights as they are, then take one update.

    A batch whose loss or gradient is not finite changes nothing but its count; one that the guard
    holds back is scored besides. Shadows learn what the served model learns.

    Args:
        state: changed in place.
        batch: checked examples (see `streams.batch.check`).
    """
    with torch.inference_mode() if state.is_plain and state.on_host else torch.no_grad():
        return _step(state, batch)


def _step(state: State, batch: Batch) -> Report:
    inputs, labels = state.upload(batch)
    if state.spec.standardize and state.examples == 0:
        state.standardizer.start(inputs)
    keep, accuracy, loss = state.learn(inputs, labels)
    state.version += 1
    state.examples += len(batch)
    if state.on_host:
        return Report(state.version, float(accuracy), float(loss), bool(keep))
    return Report(state.version, accuracy.clone(), loss.clone(), keep.clone())


def _learn(state: State, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Let all learners take a batch; return whether it was learned, its accuracy and its loss."""
    _draw_the_same_in_replay(state)
    keep, finite, accuracy, loss, prepared, *gradients = state.observe(inputs, labels)
    if not state.on_host or keep:
        state.served.step(gradients)
    for name, shadow in state.shadows.items():
        _draw_the_same_in_replay(state)
        learns, *gradients = state.observe_shadow[name](prepared, labels, keep, finite)
        if not state.on_host or learns:
            shadow.step(gradients)
    return keep, accuracy, loss


def _draw_the_same_in_replay(state: State) -> None:
    """Seed what a user's module draws, such as dropout, by the step."""
    if not state.is_plain:
        torch.manual_seed((state.spec.seed << 40) + state.version)
