"""How steps run on a device: the one place that decides on tracing, capture and inference mode.

On a CPU the parts of a step that are functions of tensors alone are traced, and a step may branch
on a tensor between them. On a GPU a whole step is captured as a CUDA graph, and nothing in it reads
a tensor on the host. A user's module stays eager: it may hold randomness, and may raise.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from funnel.graphs.captured import Captured
from funnel.graphs.traced import Traced

P = ParamSpec("P")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Execution:
    """How the steps of one model run."""

    on_host: bool
    """True if a step may branch on a tensor. It then asks once whether all is finite, instead of
    masking what is not, which takes a third of a step's time."""
    is_plain: bool = True
    """True if the model is a function of tensors alone, with gradients that are written out."""

    @classmethod
    def of(cls, device: torch.device, is_plain: bool = True) -> "Execution":
        """Return how the steps of a model on this device run."""
        return cls(device.type == "cpu", is_plain)

    def part(self, function: Callable[P, Result], state: Iterable[Tensor]) -> Callable[P, Result]:
        """Return a part of a step that never runs a user's module; see `Traced`."""
        return Traced(function, state) if self.on_host else function

    def pass_of_model(
        self, function: Callable[P, Result], state: Iterable[Tensor]
    ) -> Callable[P, Result]:
        """Return a part of a step that runs the model; see `Traced`."""
        return self.part(function, state) if self.is_plain else function

    def whole(self, function: Callable[P, Result]) -> Callable[P, Result]:
        """Return a whole step; see `Captured`."""
        return Captured(function) if self.is_plain and not self.on_host else function

    def without_gradients(self) -> AbstractContextManager[object]:
        """Return the context that a step runs in.

        Inference mode takes a tenth off every step. A user's module may need autograd, and a CUDA
        graph needs tensors that outlive the mode.
        """
        return torch.inference_mode() if self.is_plain and self.on_host else torch.no_grad()
