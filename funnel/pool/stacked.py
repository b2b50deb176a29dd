"""Experts stacked on a leading dimension: the arguments of `funnel.update.step_` for K of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby

import torch
from torch import Tensor

from funnel.inner.interface import Inner, Rate, StateLists
from funnel.pool.expert import BETA, GAIN_BOUNDS, SCALE_BOUNDS, Expert
from funnel.update import Rates, State, Variant

VARIANT = Variant(
    nesterov=False,
    maximize=False,
    normalize_gain=True,
    normalize_scale=True,
    gain_bounds=GAIN_BOUNDS,
    scale_bounds=SCALE_BOUNDS,
    decay_weights=False,
    skip_nonfinite=False,
    stacked=True,
)


@dataclass(frozen=True)
class Grouped(Inner):
    """The inner optimizers of all experts as one: each run of experts has its own."""

    runs: tuple[tuple[Inner, int], ...]
    """Inner optimizers, and how many experts in a row have each."""
    first: int = 0
    """Number of the first run, in the keys of the state."""
    walked: Mapping[str, list[Tensor]] = field(default_factory=dict)
    """g̃ of the runs that have it already, by prefix; see `funnel.pool.walk`."""

    @cached_property
    def slices(self) -> tuple[tuple[str, Inner, slice], ...]:
        """The prefix of each run's keys, its inner optimizer, and its experts."""
        ends = list(accumulate(count for _, count in self.runs))
        return tuple(
            (f"{number}.", inner, slice(end - count, end))
            for number, ((inner, count), end) in enumerate(
                zip(self.runs, ends, strict=True), self.first
            )
        )

    def init_state(self, param: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the state of each run, [its experts, …], its keys prefixed by its number."""
        return {
            prefix + key: tensor
            for prefix, inner, own in self.slices
            for key, tensor in inner.init_state(param[own], dtype).items()
        }

    def precondition(
        self,
        grads: list[Tensor],
        state: StateLists,
        step: list[Tensor],
        active: list[Tensor] | None,
    ) -> list[Tensor]:
        """Precondition each run, and concatenate the results."""
        parts = [
            self.walked.get(prefix)
            or inner.precondition(
                [g[own] for g in grads],
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)},
                [t[own] for t in step],
                None if active is None else [a[own] for a in active],
            )
            for prefix, inner, own in self.slices
        ]
        return [torch.cat(own) for own in zip(*parts, strict=True)] if parts[1:] else parts[0]


def runs_of(experts: Sequence[Expert]) -> tuple[tuple[Inner, int], ...]:
    """Return the runs of experts in a row with equal inner optimizers and equal steps."""
    return tuple(
        (inner, len(list(run))) for (inner, _), run in groupby((e.inner, e.steps) for e in experts)
    )


def fresh_state(parameters: Sequence[Tensor]) -> State:
    """Return Funnel's state of experts that have seen nothing.

    Args:
        parameters: of all experts, each [K, …].
    """
    scalars = [column(p.new_zeros(len(p)), p) for p in parameters]
    return State(
        step=[s.long() for s in scalars],
        log_gain=[torch.zeros_like(p) for p in parameters],
        log_scale=[s.clone() for s in scalars],
        velocity=[torch.zeros_like(p) for p in parameters],
        precond_ema=[torch.zeros_like(p) for p in parameters],
        nonfinite=[s.long() for s in scalars],
    )


def rates_of(experts: Sequence[Expert], parameters: Sequence[Tensor]) -> Rates:
    """Return η, μ, γp and γs: one number if all experts share it, otherwise one per parameter.

    Args:
        experts: K of them.
        parameters: each [K, …]; rates are [K, 1, …, 1].
    """

    def rate(name: str) -> Rate:
        values = [getattr(expert, name) for expert in experts]
        if len(set(values)) == 1:
            return float(values[0])
        each = torch.tensor(values, device=parameters[0].device)
        return [column(each, p) for p in parameters]

    return Rates(
        lr=rate("lr"),
        momentum=rate("momentum"),
        beta=BETA,
        one_minus_beta=1.0 - BETA,
        gain_lr=rate("gain_lr"),
        scale_lr=rate("scale_lr"),
        weight_decay=0.0,
    )


def column(each: Tensor, like: Tensor) -> Tensor:
    """Return one value per expert, [K], as [K, 1, …, 1], to go with a tensor [K, …]."""
    return each.view([-1] + [1] * (like.dim() - 1))


def norms_of(gradients: Sequence[Tensor]) -> Tensor:
    """Return ‖·‖₂ of each expert, all tensors [K, …] together, [K]."""
    norms = [torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in gradients]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return norm
