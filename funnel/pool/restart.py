"""Where experts go on from: as all began, or as copies of the best."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from funnel.inner.interface import StateLists
from funnel.pool.grouped import Grouped
from funnel.pool.stacked import column


class Restart:
    """Sets what some experts have learned to something else; nothing is read on the host.

    To be made while all experts are as they begin: it keeps a copy of the first.

    Args:
        shared: what every expert has, whatever its inner optimizer; each [K, …].
        inner: their inner optimizers.
        inner_state: the state of these.
    """

    def __init__(self, shared: Sequence[Tensor], inner: Grouped, inner_state: StateLists) -> None:
        self._shared, self._inner, self._inner_state = list(shared), inner, inner_state
        self._blank = [tensor[:1].clone() for tensor in shared]
        self._blank_inner = {k: [t[:1].clone() for t in own] for k, own in inner_state.items()}

    def begin(self, who: Tensor) -> None:
        """Let experts begin anew, as all did.

        Args:
            who: bool [K].
        """
        pairs = zip(self._shared, self._blank, strict=True)
        now = [torch.where(column(who, tensor), blank, tensor) for tensor, blank in pairs]
        torch._foreach_copy_(self._shared, now)
        for prefix, _, own in self._inner.slices():
            for tensor, blank in self._pairs(prefix):
                tensor.copy_(torch.where(column(who[own], tensor), blank, tensor))

    def from_best(self, who: Tensor, log_weights: Tensor) -> None:
        """Make experts copies of the best of the others.

        The inner optimizer's state is that of the best expert with the same one; if there is none
        among the others, it begins anew.

        Args:
            who: bool [K]; not all.
            log_weights: of the experts, fp32 [K].
        """
        log_weights = torch.where(who, -math.inf, log_weights)
        everyone = torch.arange(len(who), device=who.device)
        source = torch.where(who, log_weights.argmax(), everyone)
        torch._foreach_copy_(self._shared, [tensor[source] for tensor in self._shared])
        for prefix, _, own in self._inner.slices():
            bad = who[own]
            source = torch.where(bad, log_weights[own].argmax(), everyone[: len(bad)])
            for tensor, blank in self._pairs(prefix):
                tensor.copy_(torch.where(bad.all(), blank, tensor[source]))

    def _pairs(self, prefix: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tensors of an inner optimizer's state, and what each begins as."""
        for key in (key for key in self._inner_state if key.startswith(prefix)):
            yield from zip(self._inner_state[key], self._blank_inner[key], strict=True)
