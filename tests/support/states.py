"""Small states and batches for tests."""

import gc
import os
import time
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from service.fold.report import Report
from service.fold.spec import Hyperparameters, Spec
from service.fold.state import State
from service.fold.step import Fold
from service.log.log import Extent
from service.log.position import ORIGIN, Position, Progress
from service.monitoring.statistics import Statistics, read_statistics
from streams.batch import Batch

CPU = torch.device("cpu")
FEATURES, CLASSES = 6, 3
HYPERPARAMETERS = Hyperparameters(lr=0.03, momentum=0.0, gain_lr=0.03, scale_lr=0.03)


def a_spec(
    model: str = "logistic", optimizer: str = "funnel", standardize: bool = True, seed: int = 0
) -> Spec:
    hidden = (5, 4) if model == "mlp" else ()
    experts = 6 if optimizer == "pool" else 0
    return Spec(model, FEATURES, CLASSES, hidden, optimizer, standardize, seed, experts)


def a_state(
    model: str = "logistic",
    hyperparameters: Hyperparameters = HYPERPARAMETERS,
    device: torch.device = CPU,
) -> State:
    return State(a_spec(model), hyperparameters, device)


def forget_traces() -> None:
    """Free all traces: torch keeps those of states that are gone, 10 MB for each of them.

    Nothing may use a trace that was made before.
    """
    gc.collect()
    torch.jit._state._python_cu.drop_all_functions()


def step(state: State, batch: Batch) -> Report:
    """Fold a batch into a state, with the fold that the state has from its first step on."""
    held = vars(state)
    if "fold" not in held:
        held["fold"] = Fold(state)
    report: Report = held["fold"].step(batch)
    return report


def a_batch(seed: int, n: int = 20, shift: int = 0) -> Batch:
    """Gaussian classes in float32; at another shift they have other labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    centres = np.random.default_rng(0).normal(size=(CLASSES, FEATURES))
    features = centres[labels] + 0.5 * rng.normal(size=(n, FEATURES))
    return Batch(features.astype(np.float32), (labels + shift) % CLASSES)


def same_tensors(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Return whether names, types, shapes and bits agree."""
    return mine.keys() == theirs.keys() and all(
        mine[k].dtype == theirs[k].dtype
        and mine[k].shape == theirs[k].shape
        and bits(mine[k]) == bits(theirs[k])
        for k in mine
    )


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


class Fragile(nn.Module):
    """A model whose device fails in training while the file FRAGILE names exists."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and os.path.exists(os.environ.get("FRAGILE", "")):
            raise torch.OutOfMemoryError("the device is full")
        out: Tensor = self.layer(inputs)
        return out


class Hanging(nn.Module):
    """A model whose device hangs in training while the file HANGING names exists."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        while self.training and os.path.exists(os.environ.get("HANGING", "")):
            time.sleep(0.05)
        out: Tensor = self.layer(inputs)
        return out


class Sly(nn.Module):
    """A model whose parameters have names that look like markup."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        layer = nn.Linear(features, classes)
        self.weights = nn.ParameterDict({"<img src=x onerror=alert(1)>": layer.weight})
        self.register_parameter("<b>", layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        weight, bias = self.parameters()
        if weight.dim() == 1:
            weight, bias = bias, weight
        return torch.nn.functional.linear(inputs, weight, bias)


class Logarithm(nn.Module):
    """A model without a finite answer where the first feature is -5 or less."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear((inputs + 5.0).log())
        return logits


class Drawing(nn.Module):
    """A model that remembers what it drew in training."""

    drawn: ClassVar[list[float]] = []

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.drawn.append(float(torch.rand(())))
        out: Tensor = self.layer(inputs)
        return out


def statistics_of(state: State) -> Statistics:
    """Return the statistics of a state that has no log."""
    progress = Progress("log", 0, 0, Position(ORIGIN), 0, 0, 0, 0)
    return read_statistics(state, progress, Extent("log", 0, 0, ORIGIN, None))
