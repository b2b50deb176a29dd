"""Functions on tensors in TorchScript's interpreter, without Python or its lock in between.

A small model's step is some hundred operators of a microsecond each, and Python costs as much again
for every one. A trace is the same operators in the same order, so its results are those of eager
execution, bit for bit.

torch.jit is deprecated. It is used in this module alone, so that another executor can take its
place.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from funnel.graphs.repeated import Repeated
from funnel.graphs.structure import Build, flat, signature_of, taken_apart

P = ParamSpec("P")
Result = TypeVar("Result")
Function = Callable[..., tuple[Tensor, ...]]


class Traced(Generic[P, Result]):
    """A function that is traced once it is called with the same signature again and again.

    Args:
        function: takes and returns values of `funnel.graphs.structure`, by position; it has no
            branches on what is in the tensors. It may change its arguments and ``state`` in place.
        state: other tensors that it reads or changes; their storage must stay where it is.
    """

    def __init__(self, function: Callable[P, Result], state: Iterable[Tensor] = ()) -> None:
        self.function, self._state = function, list(state)
        self._traces: Repeated[tuple[Function, Build]] = Repeated()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Result:
        """Return what the function returns."""
        tensors = flat(args)
        signature = signature_of(tensors)
        if found := self._traces.find(signature):
            traced, build = found
            result: Result = build(traced(*tensors))
            return result
        result = self.function(*args, **kwargs)
        if not is_tracing() and self._traces.is_due(signature):  # else it is part of that
            _, build = taken_apart(result)
            self._traces.keep(signature, (self._traced(args), build))
        return result

    def _traced(self, args: tuple[object, ...]) -> Function:
        tensors, build = taken_apart(args)
        call: Callable[..., Result] = self.function

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(flat(call(*build(tensors))))

        return trace(function, tensors, self._state)


def is_tracing() -> bool:
    """Return whether a function is being traced: only operators of torch get into the trace."""
    return torch._C._get_tracing_state() is not None


def trace(function: Function, tensors: Sequence[Tensor], state: Sequence[Tensor] = ()) -> Function:
    """Trace a call on the tensors' values, and undo its changes; see `Traced`.

    It is called once, as torch chooses its executor at the first call. It is traced in a thread of
    its own, as torch notes all callers of each operator: a deep stack doubles the time.
    """
    changed = [t for t in (*tensors, *state) if not _overlaps_itself(t)]
    before = [t.clone() for t in changed]
    holder, infers = _Holder(function, state), torch.is_inference_mode_enabled()

    def traced() -> Function:
        with (
            warnings.catch_warnings(),
            torch.inference_mode(infers),  # a mode is of one thread
            torch.no_grad(),
            _without_profiles(),
        ):
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and lengths become constants
            found: Function = torch.jit.trace(holder, tuple(tensors), check_trace=False)
            found(*tensors)
        return found

    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(traced).result()
    with torch.no_grad():
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
    return result


_one_at_a_time = Lock()
"""Held while traces run without profiles, which is a setting of the process."""


@contextmanager
def _without_profiles() -> Iterator[None]:
    """Let graphs that are first called inside run as they are.

    Otherwise torch records the shapes of a call and compiles a second time. That takes as long as
    50 steps, and saves nothing where nothing is fused.
    """
    with _one_at_a_time:
        before = torch._C._jit_set_profiling_mode(False)
        try:
            yield
        finally:
            torch._C._jit_set_profiling_mode(before)


def _overlaps_itself(tensor: Tensor) -> bool:
    """Return whether elements share memory; torch refuses to change such a tensor in place."""
    return any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))


class _Holder(nn.Module):
    """A module around a function: the tracer takes a module's tensors for variables."""

    def __init__(self, function: Function, state: Sequence[Tensor]) -> None:
        super().__init__()
        self._function = function
        for index, tensor in enumerate(state):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(f"tensor{index}", tensor)
            else:
                self.register_buffer(f"tensor{index}", tensor)

    def forward(self, *tensors: Tensor) -> Any:
        return self._function(*tensors)
