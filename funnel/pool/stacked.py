"""What `funnel.update.step_` takes of K experts that are stacked on a leading dimension."""

from collections.abc import Sequence

import torch
from torch import Tensor

from funnel.inner.interface import Rate
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


def fresh_state(parameters: Sequence[Tensor]) -> State:
    """Return Funnel's state of experts that have seen nothing.

    Args:
        parameters: of all of them, each [K, …].
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
    """Return η, μ, γp and γs: a number if all experts share it, else for each parameter theirs.

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
    """Return what each expert has one of, [K], as [K, 1, …, 1], to go with a tensor [K, …]."""
    return each.view([-1] + [1] * (like.dim() - 1))
