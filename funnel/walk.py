"""Experts whose inner optimizer walks: it takes several steps through the pieces of a batch.

From w, with the gains and the scale that Funnel has learned, it goes

    w_j+1 = w_j - s η p ⊙ g̃_j,    g̃_j from the gradient of piece j at w_j

and what Funnel gets from it is g̃ = Σ g̃_j, so that its own step, eq. (3), ends where the walk has
but for what it learns of p and s at this batch. It learns that from the gradient g of the whole
batch, which is less noisy than those of pieces, and once a batch, which costs less.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from funnel import tensorlists as lists
from funnel.backprop import expert_gradients, one_hot
from funnel.expert import Expert
from funnel.grouped import Grouped, runs_of
from funnel.interface import Rate, StateLists
from funnel.update import State, gained_step


class Walk:
    """Some experts of a pool that stand together and take equally many steps.

    Args:
        experts: theirs, all with the same ``steps``.
        start: how many of the pool's experts stand before them.
        first_run: how many runs of inner optimizers do.
        lr: η of all experts of the pool.
    """

    def __init__(
        self, experts: Sequence[Expert], start: int, first_run: int, lr: Rate
    ) -> None:
        self.own = own = slice(start, start + len(experts))
        self.steps = experts[0].steps
        self.lr: Rate = [each[own] for each in lr] if isinstance(lr, list) else lr
        self.inner = Grouped(runs_of(experts), first_run)
        self._prefixes = tuple(prefix for prefix, _, _ in self.inner.slices())

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
        mine = {k: v for k, v in inner_state.items() if k.startswith(self._prefixes)}
        before = {key: [t.clone() for t in tensors] for key, tensors in mine.items()}
        taken = [t[own] * self.steps for t in state.step]
        scale = [s[own].exp() for s in state.log_scale]
        step_size = gained_step([p[own] for p in state.log_gain], scale, self.lr)
        weights = [p[own].clone() for p in parameters]
        total = [torch.zeros_like(p) for p in weights]
        targets = one_hot(labels, weights[-1].shape[-1])
        pieces = zip(inputs.chunk(self.steps), targets.chunk(self.steps, dim=1), strict=True)
        for number, (some, theirs) in enumerate(pieces):
            gradients = expert_gradients(weights, some, theirs, factor[own])
            precond = self.inner.precondition(gradients, mine, [t + number for t in taken], None)
            lists.add_(total, precond)
            lists.sub_product_(weights, step_size, precond)
        arrived = torch.isfinite(norms_of(weights) + norms_of(total))
        for prefix, _, run in self.inner.slices():
            for key in (key for key in mine if key.startswith(prefix)):
                for tensor, old in zip(mine[key], before[key], strict=True):
                    tensor.copy_(torch.where(_column(arrived[run], tensor), tensor, old))
        total = [torch.where(_column(arrived, t), t, 0.0) for t in total]
        return {prefix: [t[run] for t in total] for prefix, _, run in self.inner.slices()}


def norms_of(gradients: Sequence[Tensor]) -> Tensor:
    """Return ‖·‖₂ of each expert, all tensors [K, …] together, [K]."""
    norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return norm


def _column(each: Tensor, like: Tensor) -> Tensor:
    return each.view([-1] + [1] * (like.dim() - 1))
