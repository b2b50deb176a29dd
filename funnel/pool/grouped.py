"""Different inner optimizers for experts that are stacked on a leading dimension."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from funnel.inner.interface import Inner, StateLists
from funnel.pool.expert import Expert


@dataclass(frozen=True)
class Grouped(Inner):
    """g̃ of each run of experts from an inner optimizer of its own."""

    runs: tuple[tuple[Inner, int], ...]
    """Inner optimizers, and how many experts in a row each has."""
    first: int = 0
    """Number of the first run, in the keys of the state."""
    walked: Mapping[str, list[Tensor]] = field(default_factory=dict)
    """g̃ of runs that have it already, by prefix; see `funnel.pool.walk`."""

    def slices(self) -> Iterator[tuple[str, Inner, slice]]:
        """Yield the prefix of its state's keys, the inner optimizer, and its experts."""
        start = 0
        for number, (inner, count) in enumerate(self.runs, self.first):
            yield f"{number}.", inner, slice(start, start + count)
            start += count

    def init_state(self, param: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the state of each run, [its experts, …], its keys prefixed by its number."""
        return {
            prefix + key: tensor
            for prefix, inner, own in self.slices()
            for key, tensor in inner.init_state(param[own], dtype).items()
        }

    def precondition(
        self,
        grads: list[Tensor],
        state: StateLists,
        step: list[Tensor],
        active: list[Tensor] | None,
    ) -> list[Tensor]:
        """Precondition each run, and put the results side by side."""
        parts = [
            self.walked.get(prefix)
            or inner.precondition(
                [g[own] for g in grads],
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)},
                [t[own] for t in step],
                None if active is None else [a[own] for a in active],
            )
            for prefix, inner, own in self.slices()
        ]
        return [torch.cat(own) for own in zip(*parts, strict=True)] if parts[1:] else parts[0]


def runs_of(experts: Sequence[Expert]) -> tuple[tuple[Inner, int], ...]:
    """Return the inner optimizers of experts in a row, and how many in a row have each.

    Experts of other steps are another run."""
    return tuple(
        (inner, len(list(run))) for (inner, _), run in groupby((e.inner, e.steps) for e in experts)
    )
