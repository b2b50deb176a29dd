"""Functions on tensors in TorchScript's interpreter: no Python between operators, nor its lock.

A small model's step is some hundred operators of a microsecond each, and Python costs as much again
for every one. A trace is the same operators in the same order, so its results are those of eager
execution, bit for bit.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from funnel.graphs.repeated import Repeated, signature_of
from funnel.inner.interface import Inner, StateLists
from funnel.update import Alignment, Rates, State, Variant, step_

Function = Callable[..., Any]


class Traced:
    """A function that is traced once it is called with the same signature again and again.

    Args:
        function: of tensors alone, without branches on what is in them; gives a tensor or a flat
            tuple of tensors. It may change its arguments and ``state`` in place.
        state: other tensors that it reads or changes; their storage must stay where it is.
    """

    def __init__(self, function: Function, state: Iterable[Tensor] = ()) -> None:
        self._function, self._state = function, list(state)
        self._traces: Repeated[Function] = Repeated()

    def __call__(self, *tensors: Tensor) -> Any:
        """Return what the function returns."""
        signature = signature_of(tensors)
        if traced := self._traces.find(signature):
            return traced(*tensors)
        result = self._function(*tensors)
        if self._traces.is_due(signature):
            self._traces.keep(signature, trace(self._function, tensors, self._state))
        return result


def trace(function: Function, tensors: Sequence[Tensor], state: Sequence[Tensor] = ()) -> Function:
    """Trace a call on the tensors' values, and put back what that changes; see `Traced`."""
    changed = [t for t in (*tensors, *state) if not _overlaps_itself(t)]
    before = [t.clone() for t in changed]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and lens become constants
        holder = _Holder(function, state)
        traced: Function = torch.jit.trace(holder, tuple(tensors), check_trace=False)
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
    return traced


def _overlaps_itself(tensor: Tensor) -> bool:
    """Say whether elements share memory; then torch lets nobody change it in place."""
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


class TracedStep:
    """Calls `funnel.update.step_` traced; a change of rates or variant makes another trace.

    Eager are rates in tensors, and state in fp64: TorchScript takes two constants for one if they
    differ in their last bits.
    """

    def __init__(self) -> None:
        self._traces: Repeated[Function] = Repeated()

    def __call__(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        state: State,
        inner: Inner,
        inner_state: StateLists,
        rates: Rates,
        variant: Variant,
    ) -> Alignment:
        """Take one step, as `funnel.update.step_` does, and equal to it."""
        is_double = state.velocity[0].dtype == torch.float64
        if is_double or any(isinstance(rate, Tensor) for rate in rates):
            return step_(params, grads, state, inner, inner_state, rates, variant)
        n, keys = len(params), tuple(inner_state)
        tensors = [*chain(params, grads, *state, *inner_state.values())]
        signature = (n, inner, keys, rates, variant, signature_of(tensors))
        if traced := self._traces.find(signature):
            return Alignment(*_split(traced(*tensors), n))
        alignment = step_(params, grads, state, inner, inner_state, rates, variant)
        if self._traces.is_due(signature):

            def step(*tensors: Tensor) -> tuple[Tensor, ...]:
                params, grads, *rest = _split(tensors, n)
                fields, own = rest[: len(State._fields)], rest[len(State._fields) :]
                alignment = step_(
                    params, grads, State(*fields), inner,
                    dict(zip(keys, own, strict=True)), rates, variant,
                )  # fmt: skip
                return tuple(chain.from_iterable(alignment))

            self._traces.keep(signature, trace(step, tensors))
        return alignment


def _split(tensors: Sequence[Tensor], n: int) -> list[list[Tensor]]:
    return [list(tensors[k : k + n]) for k in range(0, len(tensors), n)]
