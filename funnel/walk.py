"""Experts whose inner optimizer walks: it takes several steps through the pieces of a batch.

From w, with the gains and the scale that Funnel has learned, it goes

    w_j+1 = w_j - s η p ⊙ g̃_j,    g̃_j from the gradient of piece j at w_j

and what Funnel gets from it is g̃ = Σ g̃_j, so that its own step, eq. (3), ends where the walk has
but for what it learns of p and s at this batch. It learns that from the gradient g of the whole
batch, which is less noisy than those of pieces, and once a batch, which costs less.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from funnel import tensorlists as lists
from funnel.backprop import affine_gradients, one_hot
from funnel.expert import Expert
from funnel.grouped import Grouped, runs_of
from funnel.interface import Inner, Rate, StateLists
from funnel.update import State, gained_step


class Walk:
    """Some experts of a pool that stand together and take equally many steps.

    Args:
        experts: theirs, all with the same ``steps``.
        start: how many of the pool's experts stand before them.
        first_run: how many runs of inner optimizers do.
        lr: η of all experts of the pool.
    """

    def __init__(self, experts: Sequence[Expert], start: int, first_run: int, lr: Rate) -> None:
        self.own = own = slice(start, start + len(experts))
        self.steps = experts[0].steps
        self.lr: Rate = [each[own] for each in lr] if isinstance(lr, list) else lr
        self.inner = Grouped(runs_of(experts), first_run)

    def take(
        self,
        parameters: Sequence[Tensor],
        state: State,
        inner_state: StateLists,
        inputs: Tensor,
        labels: Tensor,
        factor: Tensor,
    ) -> dict[str, list[Tensor]]:
        """Walk through a batch, and return g̃ of each run of experts, by its prefix.

        An expert whose walk leads to what is not finite has not moved: its g̃ is zero, and the
        state of its inner optimizer as it was.

        Args:
            parameters: of all experts of the pool, as is the state.
            state: Funnel's, not changed.
            inner_state: of all inner optimizers; that of these is changed in place.
            inputs: fp32 [n, features].
            labels: int64 [n].
            factor: what the gradients of each expert are multiplied with, [K]; NaN where it does
                not learn the batch.
        """
        own = self.own
        scale = [s[own].exp() for s in state.log_scale]
        gains = [p[own] for p in state.log_gain]
        step_size = _affine(gained_step(gains, scale, self.lr))
        weights = _affine([p[own] for p in parameters])
        total = [torch.zeros_like(w) for w in weights]
        runs = {
            prefix: _Run(
                inner,
                part,
                weights=[w[part] for w in weights],
                total=[t[part] for t in total],
                step_size=[s[part] for s in step_size],
                state={
                    key.removeprefix(prefix): _affine(tensors)
                    for key, tensors in inner_state.items()
                    if key.startswith(prefix)
                },
                taken=[t[own][part] * self.steps for t in state.step[::2]],
            )
            for prefix, inner, part in self.inner.slices()
        }
        n = len(inputs)
        count = min(self.steps, n)  # of pieces, which differ in size by one example at most
        ones = inputs.new_ones(n, 1)
        pieces = zip(
            torch.cat([inputs, ones], dim=1).tensor_split(count),
            one_hot(labels, weights[-1].shape[1]).tensor_split(count, dim=1),
            strict=True,
        )
        for number, (some, targets) in enumerate(pieces):
            gradients = affine_gradients(weights, some, targets, factor[own])
            for run in runs.values():
                run.step([g[run.own] for g in gradients], number)
        arrived = torch.isfinite(norms_of(weights) + norms_of(total))
        for prefix, run in runs.items():
            for key, layers in run.state.items():
                for tensor, new in zip(inner_state[prefix + key], _parts(layers), strict=True):
                    tensor.copy_(torch.where(_column(arrived[run.own], tensor), new, tensor))
        found = _parts([torch.where(_column(arrived, t), t, 0.0) for t in total])
        return {prefix: [t[run.own] for t in found] for prefix, run in runs.items()}


def walks_of(experts: Sequence[Expert], lr: Rate) -> Iterator[Walk]:
    """Yield the walks of a pool's experts: of those in a row that take equally many steps.

    Args:
        experts: all of them.
        lr: their η.
    """
    start = first_run = 0
    for steps, group in groupby(experts, key=lambda expert: expert.steps):
        row = list(group)
        if steps > 1:
            yield Walk(row, start, first_run, lr)
        start, first_run = start + len(row), first_run + len(runs_of(row))


class _Run(NamedTuple):
    """Experts of one inner optimizer on their walk; each list has an entry a layer."""

    inner: Inner
    own: slice
    """Of the walk's experts."""
    weights: list[Tensor]
    total: list[Tensor]
    """Σ g̃."""
    step_size: list[Tensor]
    """s η p."""
    state: StateLists
    taken: list[Tensor]
    """Steps taken before the walk."""

    def step(self, gradients: list[Tensor], number: int) -> None:
        """Take the step of that number, in place."""
        taken = [t + number for t in self.taken]
        precond = self.inner.precondition(gradients, self.state, taken, None)
        lists.add_(self.total, precond)
        lists.sub_product_(self.weights, self.step_size, precond)


def _affine(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Put those of the weight [K, out, in] and the bias [K, out] of each layer side by side."""
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return [torch.cat([weight, bias[:, :, None]], dim=2) for weight, bias in pairs]


def _parts(layers: Sequence[Tensor]) -> list[Tensor]:
    """Undo `_affine`."""
    return [part for layer in layers for part in (layer[:, :, :-1], layer[:, :, -1])]


def norms_of(gradients: Sequence[Tensor]) -> Tensor:
    """Return ‖·‖₂ of each expert, all tensors [K, …] together, [K]."""
    norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return norm


def _column(each: Tensor, like: Tensor) -> Tensor:
    return each.view([-1] + [1] * (like.dim() - 1))
