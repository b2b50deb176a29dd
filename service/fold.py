"""The state of the model and the step that folds one batch into it.

`step` is a function of (state, batch) alone: on one machine, with one number of threads, equal
states and equal batches give equal states, bit for bit. It never reads a GPU on the host.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from funnel import SGD, Adagrad, AdagradEMA, Adam, Funnel, Inner, RMSprop
from funnel.traced import Traced
from service import models
from service.backprop import differentiate
from service.scoring import Scores
from service.standardizer import Standardizer, clamped
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

NORM_CAP = 10.0
"""A gradient may be this many times longer than nearly all of the recent ones; then it is cut."""
NORM_UP, NORM_DOWN = 0.45, 0.05
"""Steps of the tracked quantile of log ‖g‖; it rests where DOWN of UP + DOWN norms are above."""


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


@dataclass(frozen=True)
class Report:
    """What one step did, as device tensors."""

    version: int
    """Of the model after the step."""
    accuracy: Tensor
    """Of the predictions before the update, in [0, 1], 0-dim."""
    loss: Tensor
    """Mean cross-entropy of the same, in nats, 0-dim."""


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
        self.on_host = device.type == "cpu"
        """Whether a step may branch on a tensor: then it asks whether all is finite, and Funnel
        need not mask, which takes a third of its time."""
        self.optimizer = make_optimizer(spec.optimizer, rates, self.module, self.on_host)
        self.norm_level = torch.full((), math.inf, device=device)
        """Log of the gradient norm that nearly all recent ones stay under; inf before the first."""
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        """Batches left out because loss or gradient was not finite."""
        self.version = 0
        """Batches folded in."""
        self.examples = 0
        """Examples folded in."""
        self.upload = Upload(device)
        self.observe: Callable[..., tuple[Any, ...]] = partial(_observe, self)
        if self.on_host and models.is_plain(spec.model):
            self.observe = Traced(self.observe, self.tensors().values())

    def set_rates(self, rates: Rates) -> None:
        """Go on with other hyperparameters."""
        self.rates = rates
        for group in self.optimizer.param_groups:
            group.update(optimizer_rates(self.spec.optimizer, rates))

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, the tensors themselves."""
        named = {f"model.{k}": v for k, v in weights(self.module).items()}
        named |= {f"standardizer.{k}": v for k, v in self.standardizer.tensors().items()}
        named |= {f"scores.{k}": v for k, v in self.scores.tensors().items()}
        named |= {"norm_level": self.norm_level, "nonfinite": self.nonfinite}
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

    A batch whose loss or gradient is not finite changes nothing but its count.

    Args:
        state: changed in place.
        batch: checked examples (see `streams.batch.check`).
    """
    inputs, labels = state.upload(batch)
    if state.spec.standardize and state.examples == 0:
        state.standardizer.start(inputs)
    finite, accuracy, loss, *gradients = state.observe(inputs, labels)
    for parameter, gradient in zip(state.parameters.values(), gradients, strict=True):
        parameter.grad = gradient
    if not state.on_host or finite:
        state.optimizer.step()
    state.version += 1
    state.examples += len(batch)
    return Report(state.version, accuracy, loss)


def _observe(state: State, inputs: Tensor, labels: Tensor) -> tuple[Tensor | None, ...]:
    """Score and differentiate a batch; let everything but the optimizer take it.

    Returns:
        Whether loss and gradient are finite, bool; accuracy and mean loss; a gradient for each
        parameter, NaN if not finite, None for one that the loss does not depend on.
    """
    prepared = inputs
    if state.spec.standardize:
        deviations = state.standardizer.deviations(inputs)
        prepared = clamped(deviations)
    gradients: Sequence[Tensor | None]
    if models.is_plain(state.spec.model):
        logits, losses, gradients = differentiate(list(state.parameters.values()), prepared, labels)
        finite = _bound(state, losses, gradients)
    else:
        logits, losses, gradients, finite = _differentiate_any(state, prepared, labels)
    correct = logits.argmax(dim=1) == labels
    state.scores.update(correct, losses, labels, finite)
    if state.spec.standardize:
        state.standardizer.update(deviations, finite)
    state.nonfinite.add_(~finite)
    return finite, correct.float().mean(), losses.mean(), *gradients


def _differentiate_any(
    state: State, prepared: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Sequence[Tensor | None], Tensor]:
    """Do the same for a user's module, which may hold randomness and buffers, and may fail.

    It is scored in evaluation mode and differentiated in training mode. Whatever it raises at its
    inputs, it raises again in replay, so the batch is left out as one that is not finite is.

    Returns:
        Logits, fp32 [n, classes]; losses, fp32 [n]; gradients as `_observe` returns them; and
        whether they are finite, bool, 0-dim.

    Raises:
        torch.OutOfMemoryError, torch.AcceleratorError, MemoryError, OSError: the machine failed,
            not the module; another try may succeed.
    """
    torch.manual_seed((state.spec.seed << 40) + state.version)  # so that replay draws the same
    before = [(buffer, buffer.clone()) for buffer in state.module.buffers()]
    gradients: Sequence[Tensor | None]
    try:
        with torch.no_grad(), evaluating(state.module):
            logits = state.module(prepared)
        losses = F.cross_entropy(logits, labels, reduction="none")
        with torch.enable_grad():
            training_loss = F.cross_entropy(state.module(prepared), labels)
            gradients = torch.autograd.grad(
                training_loss, list(state.parameters.values()), allow_unused=True
            )
    except (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError, OSError):
        raise
    except Exception:  # a user's code may raise anything
        logger.exception("the model failed on a batch of %d, which is left out", len(labels))
        logits = torch.full((len(labels), state.spec.classes), math.nan, device=state.device)
        losses = logits[:, 0]
        training_loss = losses.sum()
        gradients = [torch.zeros_like(p) for p in state.parameters.values()]
    finite = _bound(state, training_loss.detach(), gradients)
    for buffer, old in before:
        buffer.copy_(torch.where(finite, buffer, old))
    return logits, losses, gradients, finite


def _bound(state: State, losses: Tensor, gradients: Sequence[Tensor | None]) -> Tensor:
    """Cut the gradient to NORM_CAP in place; make it NaN if the batch is not finite.

    Funnel leaves a tensor with a NaN in its gradient as it is, so NaN in all leaves all.

    Returns:
        Whether loss and gradient are finite, bool, 0-dim.
    """
    given = [g for g in gradients if g is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(given)))
    finite = torch.isfinite(norm) & torch.isfinite(losses).all()
    log_norm = norm.log()
    level = state.norm_level
    factor = (level + math.log(NORM_CAP) - log_norm).clamp_(max=0.0).exp_()
    torch._foreach_mul_(given, torch.where(finite, factor, math.nan))
    moved = level + torch.where(log_norm > level, NORM_UP, -NORM_DOWN)
    moved = torch.where(level.isinf(), log_norm, moved)
    level.copy_(torch.where(finite & (norm > 0), moved, level))
    return finite


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off for a while."""
    module.eval()
    try:
        yield
    finally:
        module.train()
