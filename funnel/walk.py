"""Experts whose inner optimizer walks: it takes several steps through the pieces of a batch.

From w, with the gains and the scale that Funnel has learned, it goes

    w_j+1 = w_j - s η p ⊙ g̃_j,    g̃_j from the gradient of piece j at w_j

and what Funnel gets from it is g̃ = Σ g̃_j, so that its own step, eq. (3), ends where the walk has
but for what it learns of p and s at this batch. It learns that from the gradient g of the whole
batch, which is less noisy than those of pieces, and once a batch, which costs less.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from funnel import tensorlists as lists
from funnel.backprop import expert_gradients
from funnel.clipping import NormCap
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
        self.lr = [each[own] for each in lr] if isinstance(lr, list) else lr
        self.inner = Grouped(runs_of(experts), first_run)
        self._prefixes = tuple(prefix for prefix, _, _ in self.inner.slices())

    def take(
        self,
        parameters: Sequence[Tensor],
        state: State,
        inner_state: StateLists,
        level: Tensor,
        inputs: Tensor,
        labels: Tensor,
        learns: Tensor,
        is_masked: bool,
    ) -> dict[str, list[Tensor]]:
        """Walk through a batch, and return g̃ of each run of experts, by its prefix.

        ``inner_state`` and ``level`` change, in place. An expert stays where it is for a piece of
        which its gradient is not finite.

        Args:
            parameters: of all experts of the pool, as is the state.
            state: Funnel's, not changed.
            inner_state: of all inner optimizers.
            level: of the cap on the norm, [K].
            inputs: fp32 [n, features].
            labels: int64 [n].
            learns: whether each expert learns the batch, bool [K].
            is_masked: whether any may not.
        """
        own = self.own
        start = [p[own] for p in parameters]
        scale = [s[own].exp() for s in state.log_scale]
        step_size = gained_step([p[own] for p in state.log_gain], scale, self.lr)
        mine = {k: v for k, v in inner_state.items() if k.startswith(self._prefixes)}
        taken = [t[own] * self.steps for t in state.step]
        cap, learns = NormCap(level[own]), learns[own]
        active = [learns.to(p.dtype).view([-1] + [1] * (p.dim() - 1)) for p in start] if is_masked else None
        weights, total = start, [torch.zeros_like(p) for p in start]
        pieces = zip(inputs.chunk(self.steps), labels.chunk(self.steps), strict=True)
        for number, (some, their_labels) in enumerate(pieces):
            found = expert_gradients(weights, some, their_labels)
            norm = norms_of(found)
            cut(found, cap.factor(norm))
            cap.update(norm, learns & torch.isfinite(norm))
            if is_masked:
                found = lists.mul(found, active)
            found = [g.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0) for g in found]
            precond = self.inner.precondition(found, mine, [t + number for t in taken], active)
            lists.add_(total, precond)
            weights = [torch.addcmul(w, r, g, value=-1) for w, r, g in zip(weights, step_size, precond, strict=True)]
        return {
            prefix: [t[run] for t in total] for prefix, _, run in self.inner.slices()
        }


def norms_of(gradients: Sequence[Tensor]) -> Tensor:
    """Return ‖g‖₂ of each expert, all tensors [K, …] together, [K]."""
    norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return norm


def cut(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply the gradients of each expert, [K, …], with its factor, [K], in place."""
    for gradient in gradients:
        gradient.mul_(factor.view([-1] + [1] * (gradient.dim() - 1)))
