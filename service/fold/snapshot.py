"""Snapshots: immutable, versioned copies of what prediction needs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from service.fold.inputs import to_inputs
from service.fold.learner import Learner
from service.fold.standardizer import standardized
from service.fold.state import State
from streams.batch import Features

QUICK_PRODUCTS = 1 << 18
"""Multiplications that take about 0.1 ms."""
MOST_ROWS = 4_096
MOST_NUMBERS = 1 << 22
"""Outputs of its widest layer that a pass may hold, of all experts: 16 MB in fp32."""


@dataclass(frozen=True)
class Snapshot:
    """The model at one version; it never changes."""

    version: int
    weights: dict[str, Tensor]
    mean: Tensor | None
    """Mean of the inputs, fp32 [d]; None if they are not standardized."""
    scale: Tensor | None
    """The difference of inputs that standardizing makes 1, fp32 [d]; None if they are not."""

    @classmethod
    def of(cls, state: State) -> "Snapshot":
        """Copy what prediction needs, on the device, without waiting for it."""
        keeps = state.spec.standardize
        return cls(
            state.version,
            state.served.frozen(),
            state.standardizer.mean.clone() if keeps else None,
            state.standardizer.scale if keeps else None,
        )


class Evaluator:
    """Computes predictions from snapshots with a module of its own; for one thread.

    Args:
        learner: the learner of the snapshots; its architecture is copied.
    """

    def __init__(self, learner: Learner) -> None:
        self.device, self._evaluate = learner.device, learner.evaluator()
        layers = [tensor for tensor in learner.frozen().values() if tensor.dim() > 1]
        self._products = sum(layer.numel() for layer in layers)
        self._may_be_quick = learner.is_plain and learner.device.type == "cpu"
        widths = [layer.shape[1] for layer in layers] if learner.is_plain else []
        widest = len(learner.pool.experts) * max([learner.spec.classes, *widths])
        self.most_rows = min(MOST_ROWS, max(1, MOST_NUMBERS // widest))
        """Rows that a pass may have, so that its memory is bounded."""

    def is_quick(self, rows: int) -> bool:
        """Return whether a pass takes less time than handing it to another thread.

        A user's module may take any time.
        """
        return self._may_be_quick and rows * self._products <= QUICK_PRODUCTS

    @torch.inference_mode()
    def __call__(self, snapshot: Snapshot, features: Features) -> tuple[Tensor, Tensor]:
        """Return the labels, int64 [n], and the probabilities, fp32 [n, classes], on the host."""
        inputs = to_inputs(features, self.device)
        if snapshot.mean is not None and snapshot.scale is not None:
            inputs = standardized(inputs, snapshot.mean, snapshot.scale)
        labels, probabilities = self._evaluate(snapshot.weights, inputs)
        return labels.cpu(), probabilities.cpu()
