"""Functions on tensors as CUDA graphs: one launch instead of hundreds, and no Python between them.

A small model's step on a GPU takes as long as it takes to launch its kernels. A replay runs the
same kernels in the same order, so results are those of eager execution, bit for bit.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from funnel.graphs.repeated import Repeated
from funnel.graphs.structure import Build, flat, signature_of, taken_apart

P = ParamSpec("P")
Result = TypeVar("Result")


class Graph(NamedTuple):
    """A captured call."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]
    build: Build


class Captured(Generic[P, Result]):
    """A function that is captured once it is called with the same signature again and again.

    The next call overwrites what this one returned.

    Args:
        function: takes and returns values of `funnel.graphs.structure`, by position, all of one
            CUDA device. It reads no tensor on the host. Tensors that it changes in place, other
            than its arguments, must stay where they are.
    """

    def __init__(self, function: Callable[P, Result]) -> None:
        self.function = function
        self._graphs: Repeated[Graph] = Repeated()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Result:
        """Return what the function returns."""
        tensors = flat(args)
        signature = signature_of(tensors)
        if found := self._graphs.find(signature):
            torch._foreach_copy_(found.inputs, tensors)
            found.graph.replay()
            result: Result = found.build(found.outputs)
            return result
        result = self.function(*args, **kwargs)
        if self._graphs.is_due(signature):
            self._graphs.keep(signature, self._capture(args))
        return result

    def _capture(self, args: tuple[object, ...]) -> Graph:
        """Record a call; nothing is computed, and other threads may use the device meanwhile."""
        tensors, build = taken_apart(args)
        inputs = [t.clone() for t in tensors]
        call: Callable[..., Result] = self.function
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = call(*build(inputs))
        outputs, build = taken_apart(result)
        return Graph(graph, inputs, outputs, build)
