"""Functions on tensors as CUDA graphs: one launch instead of hundreds, and no Python between them.

A small model's step on a GPU takes as long as it takes to ask for its kernels. Replayed, they are
the same kernels in the same order, so results are those of eager execution, bit for bit.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from funnel.graphs.repeated import Repeated, signature_of

Tensors = tuple[Tensor, ...]


class Graph(NamedTuple):
    """A captured call."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    outputs: Tensors


class Captured:
    """A function that is captured once it is called with the same signature again and again.

    What it returns is overwritten by the next call.

    Args:
        function: of tensors of one CUDA device alone; gives tensors. It reads none on the host.
            What it changes in place, other than its arguments, must stay where it is.
    """

    def __init__(self, function: Callable[..., Tensors]) -> None:
        self._function = function
        self._graphs: Repeated[Graph] = Repeated()

    def __call__(self, *tensors: Tensor) -> Tensors:
        """Return what the function returns."""
        signature = signature_of(tensors)
        if found := self._graphs.find(signature):
            torch._foreach_copy_(found.inputs, tensors)
            found.graph.replay()
            return found.outputs
        result = self._function(*tensors)
        if self._graphs.is_due(signature):
            self._graphs.keep(signature, self._capture(tensors))
        return result

    def _capture(self, tensors: Tensors) -> Graph:
        """Record a call; nothing is computed, and other threads may use the device meanwhile."""
        inputs = tuple(t.clone() for t in tensors)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self._function(*inputs)
        return Graph(graph, inputs, outputs)
