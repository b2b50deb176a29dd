"""Experts of a pool that take equally many steps a batch, and how they take them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from funnel.backprop import differentiate_experts, is_perceptron
from funnel.clipping import NormCap
from funnel.expert import BETA, GAIN_BOUNDS, SCALE_BOUNDS, Expert
from funnel.grouped import Grouped, runs_of
from funnel.interface import Rate, StateLists
from funnel.update import Alignment, Rates, State, Variant, step_


class Stack(NamedTuple):
    """What learning changes of some experts, each tensor [K, …]."""

    parameters: list[Tensor]
    state: State
    inner_state: StateLists
    level: Tensor
    """Of their `funnel.clipping.NormCap`."""


class Cohort:
    """Some experts that stand together in a pool.

    Args:
        module: of which every expert is a copy.
        experts: theirs, all with the same ``steps``.
        start: how many of the pool's experts stand before them.
        first_run: how many runs of inner optimizers do.
        device: where they live.
    """

    def __init__(
        self,
        module: nn.Module,
        experts: Sequence[Expert],
        start: int,
        first_run: int,
        device: torch.device,
    ) -> None:
        self.experts, self.own = tuple(experts), slice(start, start + len(experts))
        self.inner = Grouped(runs_of(experts), first_run)
        self.prefixes = tuple(prefix for prefix, _, _ in self.inner.slices())
        """Of the keys of their inner state."""
        is_cut = experts[0].steps > 1 and is_perceptron(module)
        self.steps = experts[0].steps if is_cut else 1
        """Of a batch."""
        self.rates = self._rates([p.dim() for p in module.parameters()], device)

    def learn(
        self,
        stack: Stack,
        inputs: Tensor,
        labels: Tensor,
        gradients: list[Tensor],
        skip_nonfinite: bool,
    ) -> Alignment:
        """Take the steps of a batch, and return the alignment of the last.

        An expert whose gradient is not finite after one of several steps takes no more of them; it
        is restarted at the next batch.

        Args:
            stack: their tensors, changed in place.
            inputs: fp32 [n, features].
            labels: int64 [n].
            gradients: of the whole batch, capped, and NaN where an expert does not learn it.
            skip_nonfinite: see `funnel.update.step_`.
        """
        if self.steps == 1:
            return self._step(stack, gradients, skip_nonfinite)
        learns = torch.isfinite(norms_of(gradients))
        cap = NormCap(stack.level)
        pieces = zip(inputs.chunk(self.steps), labels.chunk(self.steps), strict=True)
        for some, their_labels in pieces:
            found = differentiate_experts(stack.parameters, some, their_labels).gradients
            norm = norms_of(found)
            cut(found, torch.where(learns, cap.factor(norm), math.nan))
            cap.update(norm, learns & torch.isfinite(norm))
            if not skip_nonfinite:
                for gradient in found:
                    gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            alignment = self._step(stack, found, skip_nonfinite)
        return alignment

    def _step(self, stack: Stack, gradients: list[Tensor], skip_nonfinite: bool) -> Alignment:
        return step_(
            stack.parameters,
            gradients,
            stack.state,
            self.inner,
            stack.inner_state,
            self.rates,
            Variant(
                nesterov=False,
                maximize=False,
                normalize_gain=True,
                normalize_scale=True,
                gain_bounds=GAIN_BOUNDS,
                scale_bounds=SCALE_BOUNDS,
                decay_weights=False,
                skip_nonfinite=skip_nonfinite,
                stacked=True,
            ),
        )

    def _rates(self, dimensions: Sequence[int], device: torch.device) -> Rates:
        def rate(name: str) -> Rate:
            """Return the number that all share, or for each parameter theirs, [K, 1, …, 1]."""
            values = [getattr(expert, name) for expert in self.experts]
            if len(set(values)) == 1:
                return float(values[0])
            each = torch.tensor(values, device=device)
            return [each.view([-1] + [1] * n) for n in dimensions]

        return Rates(
            lr=rate("lr"),
            momentum=rate("momentum"),
            beta=BETA,
            one_minus_beta=1.0 - BETA,
            gain_lr=rate("gain_lr"),
            scale_lr=rate("scale_lr"),
            weight_decay=0.0,
        )


def norms_of(gradients: Sequence[Tensor]) -> Tensor:
    """Return ‖g‖₂ of each expert, all tensors [K, …] together, [K]."""
    norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return norm


def cut(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply the gradients of each expert, [K, …], with its factor, [K], in place."""
    for gradient in gradients:
        gradient.mul_(factor.view([-1] + [1] * (gradient.dim() - 1)))
