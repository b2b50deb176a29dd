"""The state of the model and the step that folds one batch into it.

`step` is a function of (state, batch) alone: on one machine, with one number of threads, equal
states and equal batches give equal states, bit for bit. It never reads a GPU on the host.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from funnel import SGD, Adagrad, AdagradEMA, Adam, Funnel, Inner, RMSprop
from funnel.clipping import NormCap
from funnel.traced import Traced
from service import models
from service.lossguard import LossGuard
from service.observation import observe
from service.scoring import Scores
from service.standardizer import Standardizer
from service.upload import Upload
from streams.batch import Batch

logger = logging.getLogger("funnel")

INNER: dict[str, Inner] = {
    "sgd": SGD(),
    "adagrad": Adagrad(initial_accumulator_value=0.1),
    "adagrad-ema": AdagradEMA(initial_accumulator_value=0.1),
    "rmsprop": RMSprop(),
    "adam": Adam(),
}
OPTIMIZERS = ("funnel", *INNER)


@dataclass(frozen=True)
class Spec:
    """What the model is, for its whole life; a checkpoint of another spec is refused."""

    model: str
    features: int
    classes: int
    hidden: tuple[int, ...]
    optimizer: str
    standardize: bool
    seed: int

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Spec":
        """Return the spec that was written as JSON."""
        return cls(**fields | {"hidden": tuple(fields["hidden"])})


@dataclass(frozen=True)
class Rates:
    """Hyperparameters that an operator may change in a running model; the log records it."""

    lr: float
    momentum: float
    gain_lr: float
    scale_lr: float
    loss_guard: float = 0.0
    """See `service.lossguard`; 0 for none."""


@dataclass(frozen=True)
class Report:
    """What one step did: numbers where the host has them, else 0-dim device tensors.

    Thousands of reports are kept. Tensors of the host would lie scattered among the large ones of
    each step, and no hole between them would be large enough for the next.
    """

    version: int
    """Of the model after the step."""
    accuracy: float | Tensor
    """Of the predictions before the update, in [0, 1]."""
    loss: float | Tensor
    """Mean cross-entropy of the same, in nats."""
    kept: bool | Tensor
    """Whether it was learned."""


class State:
    """Everything that learning changes: weights, optimizer, standardizer, scores, counters.

    Args:
        spec: what the model is.
        rates: the optimizer's hyperparameters.
        device: where everything lives.

    Raises:
        service.models.ModelError: the model cannot be built.
    """

    def __init__(self, spec: Spec, rates: Rates, device: torch.device) -> None:
        self.spec, self.rates, self.device = spec, rates, device
        module = models.build(spec.model, spec.features, spec.classes, spec.hidden, spec.seed)
        self.module = module.to(device).train()
        self.parameters = dict(self.module.named_parameters())
        self.standardizer = Standardizer(spec.features, device)
        self.scores = Scores(spec.classes, device)
        self.guard = LossGuard(device)
        self.on_host = device.type == "cpu"
        """Whether a step may branch on a tensor: then it asks whether all is finite, and Funnel
        need not mask, which takes a third of its time."""
        self.optimizer = make_optimizer(spec.optimizer, rates, self.module, self.on_host)
        self.cap = NormCap((), device)
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        """Batches left out because loss or gradient was not finite."""
        self.version = 0
        """Batches folded in."""
        self.examples = 0
        """Examples folded in."""
        self.upload = Upload(device)
        self.observe = self._observer()

    def set_rates(self, rates: Rates) -> None:
        """Go on with other hyperparameters."""
        self.rates = rates
        self.observe = self._observer()
        for group in self.optimizer.param_groups:
            group.update(optimizer_rates(self.spec.optimizer, rates))

    def _observer(self) -> "Callable[..., tuple[Any, ...]]":
        if self.on_host and models.is_plain(self.spec.model):
            return Traced(partial(observe, self), self.tensors().values())
        return partial(observe, self)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, the tensors themselves."""
        named = {f"model.{k}": v for k, v in weights(self.module).items()}
        named |= {f"standardizer.{k}": v for k, v in self.standardizer.tensors().items()}
        named |= {f"scores.{k}": v for k, v in self.scores.tensors().items()}
        named |= {f"guard.{k}": v for k, v in self.guard.tensors().items()}
        named |= {"norm_level": self.cap.level, "nonfinite": self.nonfinite}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if key == "inner":
                    named |= {f"optimizer.{name}.inner.{k}": v for k, v in value.items()}
                else:
                    named[f"optimizer.{name}.{key}"] = value
        return named

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], version: int, examples: int) -> None:
        """Take over a saved state of the same spec.

        Raises:
            ValueError: names, shapes or dtypes differ; nothing is changed then.
        """
        mine = self._optimizer_tensors(tensors) | self.tensors()
        if mine.keys() != tensors.keys():
            raise ValueError(f"tensors differ: {sorted(mine.keys() ^ tensors.keys())[:4]}")
        for name, tensor in tensors.items():
            if mine[name].shape != tensor.shape or mine[name].dtype != tensor.dtype:
                raise ValueError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}, "
                    f"expected {mine[name].dtype} {list(mine[name].shape)}"
                )
        state = self.optimizer.state_dict()
        state["state"] = self._optimizer_state(tensors)
        self.optimizer.load_state_dict(state)
        for name, tensor in tensors.items():
            if not name.startswith("optimizer."):
                mine[name].copy_(tensor)
        self.version, self.examples = version, examples

    def _optimizer_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the optimizer's part of a state that has been stepped, if that one has been."""
        if not any(name.startswith("optimizer.") for name in tensors):
            return {}
        twin = State(self.spec, self.rates, self.device)
        blank = Batch(
            torch.zeros(2, self.spec.features).numpy(), torch.zeros(2, dtype=torch.int64).numpy()
        )
        step(twin, blank)
        return twin.tensors()

    def _optimizer_state(self, tensors: dict[str, Tensor]) -> dict[int, dict[str, Any]]:
        state: dict[int, dict[str, Any]] = {}
        for index, name in enumerate(self.parameters):
            prefix = f"optimizer.{name}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if own:
                inner = {k.removeprefix("inner."): v for k, v in own.items() if "inner." in k}
                state[index] = {k: v for k, v in own.items() if "inner." not in k}
                state[index]["inner"] = inner
        return state


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, those left out of ``state_dict`` too."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def make_optimizer(name: str, rates: Rates, module: nn.Module, on_host: bool = False) -> Funnel:
    """Return the optimizer called ``name``, one of OPTIMIZERS.

    ``funnel`` is Funnel(AdaGrad). The plain ones are Funnel at γp = γs = 0, which is the inner
    optimizer with heavy-ball momentum, bit for bit.
    """
    inner = INNER["adagrad" if name == "funnel" else name]
    return Funnel(
        module.named_parameters(),
        inner,
        skip_nonfinite=not on_host,
        traced=on_host,
        **optimizer_rates(name, rates),
    )


def optimizer_rates(name: str, rates: Rates) -> dict[str, Any]:
    """Return Funnel's arguments for the optimizer called ``name``."""
    learns = name == "funnel"
    return {
        "lr": rates.lr,
        "momentum": rates.momentum,
        "gain_lr": rates.gain_lr if learns else 0.0,
        "scale_lr": rates.scale_lr if learns else 0.0,
    }


@torch.no_grad()
def step(state: State, batch: Batch) -> Report:
    """Score the batch with the weights as they are, then take one Funnel update.

    A batch whose loss or gradient is not finite changes nothing but its count; one that the guard
    holds back is scored besides.

    Args:
        state: changed in place.
        batch: checked examples (see `streams.batch.check`).
    """
    inputs, labels = state.upload(batch)
    if state.spec.standardize and state.examples == 0:
        state.standardizer.start(inputs)
    keep, accuracy, loss, *gradients = state.observe(inputs, labels)
    for parameter, gradient in zip(state.parameters.values(), gradients, strict=True):
        parameter.grad = gradient
    if not state.on_host or keep:
        state.optimizer.step()
    state.version += 1
    state.examples += len(batch)
    if state.on_host:
        return Report(state.version, float(accuracy), float(loss), bool(keep))
    return Report(state.version, accuracy, loss, keep)
