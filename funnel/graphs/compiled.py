"""The step through ``torch.compile``: each tensor's update fused into two passes over memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from funnel.inner.interface import Inner, StateLists
from funnel.update import Alignment, Rates, State, Variant, step_

CACHED_RATES = 64


class CompiledStep:
    """Calls `funnel.update.step_` compiled; recompiles when shapes or the variant change.

    Rates reach the graph as tensors, so that a schedule does not recompile it, and every
    parameter tensor gets a copy of its own: Inductor's scheduler compares all loops that share an
    input, which makes compiling 50 tensors take half as long again and the result a fifth slower.
    """

    def __init__(self) -> None:
        # torch's stub for compile() misses some of its parameters.
        compile_: Callable[..., Callable[..., Alignment]] = torch.compile
        self._step = compile_(
            _packed_step,
            fullgraph=True,
            dynamic=False,
            isolate_recompiles=True,
            recompile_limit=64,
            options={"size_asserts": False},
        )
        self._packed: dict[Any, list[Tensor]] = {}

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
        """Take one step, as `funnel.update.step_` does, equal to it up to rounding."""
        packed = self._pack(rates, state.velocity)
        return self._step(params, grads, state, inner, inner_state, packed, variant)

    def _pack(self, rates: Rates, like: list[Tensor]) -> list[Tensor]:
        """Return for every tensor of ``like`` a copy of the rates, shape [len(Rates)]."""
        dtype, device = like[0].dtype, like[0].device
        if any(isinstance(rate, Tensor) for rate in rates):
            row = torch.empty(len(rates), dtype=dtype, device=device)
            for slot, rate in zip(row, rates, strict=True):
                slot.copy_(rate) if isinstance(rate, Tensor) else slot.fill_(rate)
            return [row.clone() for _ in like]
        key = (rates, len(like), dtype, device)
        if key not in self._packed:
            if len(self._packed) >= CACHED_RATES:
                self._packed.clear()
            self._packed[key] = [torch.tensor(rates, dtype=dtype, device=device) for _ in like]
        return self._packed[key]


def _packed_step(
    params: list[Tensor],
    grads: list[Tensor],
    state: State,
    inner: Inner,
    inner_state: StateLists,
    packed: list[Tensor],
    variant: Variant,
) -> Alignment:
    columns = zip(*(row.unbind() for row in packed), strict=True)
    rates = Rates(*(list(column) for column in columns))
    return step_(params, grads, state, inner, inner_state, rates, variant)
