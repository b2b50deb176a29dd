"""Experts whose inner optimizer walks: it takes several steps through the pieces of a batch.

From w, with the gains and the scale that Funnel has learned, it steps

    w_j+1 = w_j - s η p ⊙ g̃_j,    g̃_j from the gradient of piece j at w_j

and hands g̃ = Σ g̃_j to Funnel. So Funnel's own step, eq. (3), ends where the walk ended, except
for the change of p and s at this batch. Funnel learns p and s from the gradient g of the whole
batch, which is less noisy than those of pieces, and once a batch, which costs less.

Where the error is the distance to a number, which nothing bounds, a step that overshoots grows from
piece to piece. So g̃_j is multiplied by the share of the step that is best for piece j, but at most
by 1 (`within`). This is the safeguard of implicit updates [B. Kulis, P. Bartlett, 'Implicit online
learning', ICML 2010; N. Karampatziakis, J. Langford, 'Online importance weight aware updates', UAI
2011] for any inner optimizer.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from funnel import tensorlists as lists
from funnel.inner.interface import Inner, Rate, StateLists
from funnel.pool.backprop import affine_gradients, affine_outputs
from funnel.pool.expert import Expert
from funnel.pool.loss import CROSS_ENTROPY, Held, Loss
from funnel.pool.sparse import Inputs, pieces, with_ones
from funnel.pool.stacked import Grouped, column, norms_of, runs_of
from funnel.tensorlists import weighted
from funnel.update import State


class Walk:
    """Neighbouring experts of a pool that take equally many steps.

    `take` walks through a batch, in tensors of its own. `accept` and `precond` hand the results to
    the pool.

    Args:
        experts: those that walk, all with the same ``steps``.
        start: number of the pool's experts before them.
        first_run: number of runs of inner optimizers before them.
        lr: η of all experts of the pool.
        parameters: of all of them.
        state: Funnel's.
        inner_state: of the inner optimizers; `accept` changes it.
        loss: what is differentiated.
        held: what the loss has learned.
    """

    def __init__(
        self,
        experts: Sequence[Expert],
        start: int,
        first_run: int,
        lr: Rate,
        parameters: Sequence[Tensor],
        state: State,
        inner_state: StateLists,
        loss: Loss = CROSS_ENTROPY,
        held: Held | None = None,
    ) -> None:
        self._loss, self._held = loss, held or {}
        self._parameters, self._state, self._inner_state = parameters, state, inner_state
        self.own = own = slice(start, start + len(experts))
        self.steps = experts[0].steps
        self.lr: Rate = [each[own] for each in lr] if isinstance(lr, list) else lr
        self.inner = Grouped(runs_of(experts), first_run)
        self.weights = _affine([p[own] for p in parameters])
        self._features = self.weights[0].shape[2] - 1
        self.total = [torch.zeros_like(w) for w in self.weights]
        """Σ g̃."""
        prefixes = tuple(prefix for prefix, _, _ in self.inner.slices)
        self.moved = {
            key: _affine(tensors)
            for key, tensors in inner_state.items()
            if key.startswith(prefixes)
        }
        """The inner optimizers' state on the walk."""

    def tensors(self) -> list[Tensor]:
        """Return the tensors in which it walks."""
        return [*self.weights, *self.total, *chain.from_iterable(self.moved.values())]

    def take(
        self, inputs: Inputs, labels: Tensor, factor: Tensor, importance: Tensor | None = None
    ) -> Tensor:
        """Walk through a batch, and return which walks ended finite, bool [own experts].

        Args:
            inputs: n of them.
            labels: [n], as the loss takes them.
            factor: of the gradients of each expert, [K]; NaN where it does not learn the batch.
            importance: weights of the examples, fp32 [n]; None for 1.
        """
        own, state = self.own, self._state
        scaled = lists.mul([s[own].exp() for s in state.log_scale], self.lr)
        gains = [p[own].exp() for p in state.log_gain]
        step_size = _affine(lists.mul_(gains, scaled))
        _affine([p[own] for p in self._parameters], self.weights)
        for key, layers in self.moved.items():
            _affine(self._inner_state[key], layers)
        for total in self.total:
            total.zero_()
        n = len(labels)
        count = min(self.steps, n)  # of pieces, which differ in size by one example at most
        numbers = torch.arange(count, device=labels.device)
        taken = [step[own, ..., None] * self.steps + numbers for step in state.step[::2]]
        runs = [
            _Run(
                inner,
                part,
                weights=[w[part] for w in self.weights],
                total=[t[part] for t in self.total],
                step_size=[s[part] for s in step_size],
                state={
                    key.removeprefix(prefix): layers
                    for key, layers in self.moved.items()
                    if key.startswith(prefix)
                },
                taken=[step[part] for step in taken],
            )
            for prefix, inner, part in self.inner.slices
        ]
        shares = {s: (factor[own] / s).view(-1, 1, 1) for s in (n // count, -(-n // count))}
        parts = zip(
            pieces(with_ones(inputs, self._features), count),
            self._loss.targets(labels, self.weights[-1].shape[1]).tensor_split(count, dim=1),
            [None] * count if importance is None else importance.tensor_split(count),
            strict=True,
        )
        for number, (some, targets, own_importance) in enumerate(parts):
            share = weighted(shares[len(targets[0])], own_importance)
            by_output = partial(self._loss.error_, self._held, targets=targets, own=own)
            if not self._loss.limits_steps:
                gradients = affine_gradients(self.weights, some, share, by_output)
                for run in runs:
                    run.step([g[run.own] for g in gradients], number)
                continue
            kept = _Kept(by_output)
            gradients = affine_gradients(self.weights, some, share, kept)
            found = [run.direction([g[run.own] for g in gradients], number) for run in runs]
            steps = [
                torch.cat([r.step_size[i] * d[i] for r, d in zip(runs, found, strict=True)])
                for i in range(len(gradients))
            ]
            ends = affine_outputs([w - s for w, s in zip(self.weights, steps, strict=True)], some)
            factors = within(kept.outputs - ends, kept.error, own_importance)
            for run, direction in zip(runs, found, strict=True):
                run.go(lists.mul(direction, [factors[run.own]] * len(direction)))
        return torch.isfinite(norms_of(self.total))

    def precond(self) -> dict[str, list[Tensor]]:
        """Return g̃ of each run of experts, by its prefix."""
        found = _parts(self.total)
        return {prefix: [t[part] for t in found] for prefix, _, part in self.inner.slices}

    def accept(self, arrived: Tensor | None) -> None:
        """Set the state of the inner optimizers to that at the end of the walk.

        Args:
            arrived: which experts, bool [own experts]; g̃ of the others becomes zero. None for all.
        """
        if arrived is not None:
            for total in self.total:
                total.copy_(torch.where(column(arrived, total), total, 0.0))
        for prefix, _, part in self.inner.slices:
            for key in (key for key in self.moved if key.startswith(prefix)):
                ends = _parts(self.moved[key])
                for tensor, new in zip(self._inner_state[key], ends, strict=True):
                    if arrived is not None:
                        new = torch.where(column(arrived[part], tensor), new, tensor)
                    tensor.copy_(new)


def walks_of(
    experts: Sequence[Expert],
    lr: Rate,
    parameters: Sequence[Tensor],
    state: State,
    inner_state: StateLists,
    loss: Loss = CROSS_ENTROPY,
    held: Held | None = None,
) -> Iterator[Walk]:
    """Yield the walks of a pool: one for each row of experts that take equally many steps.

    Args:
        experts: all of them; `Walk` describes the other arguments.
    """
    start = first_run = 0
    for steps, group in groupby(experts, key=lambda expert: expert.steps):
        row = list(group)
        if steps > 1:
            yield Walk(row, start, first_run, lr, parameters, state, inner_state, loss, held)
        start, first_run = start + len(row), first_run + len(runs_of(row))


class _Run(NamedTuple):
    """Experts with one inner optimizer on their walk; each list has an entry a layer."""

    inner: Inner
    own: slice
    """Which of the walk's experts they are."""
    weights: list[Tensor]
    total: list[Tensor]
    """Σ g̃."""
    step_size: list[Tensor]
    """s η p."""
    state: StateLists
    taken: list[Tensor]
    """Steps taken before each step of the walk, [its experts, 1, 1, pieces]."""

    def step(self, gradients: list[Tensor], number: int) -> None:
        """Take the step of that number, in place."""
        self.go(self.direction(gradients, number))

    def direction(self, gradients: list[Tensor], number: int) -> list[Tensor]:
        """Return g̃ of the step of that number; the inner optimizer's state moves."""
        taken = [t[..., number] for t in self.taken]
        return self.inner.precondition(gradients, self.state, taken, None)

    def go(self, precond: list[Tensor]) -> None:
        """Step along g̃, in place."""
        lists.add_(self.total, precond)
        lists.sub_product_(self.weights, self.step_size, precond)


class _Kept:
    """Keeps the outputs of a pass and their errors, which the pass overwrites.

    Args:
        by_output: maps outputs, which it may overwrite, to errors.
    """

    def __init__(self, by_output: Callable[[Tensor], Tensor]) -> None:
        self._by_output = by_output
        self.outputs = self.error = torch.empty(0)

    def __call__(self, outputs: Tensor) -> Tensor:
        self.outputs = outputs.clone()
        self.error = self._by_output(outputs)
        return self.error.clone()


def within(moved: Tensor, error: Tensor, importance: Tensor | None) -> Tensor:
    """Return the shares of steps that do not overshoot, [K, 1, 1], within (0, 1].

    A whole step takes the error e of each example to about e - d. The share is that which is best
    for Σ (e - f d)², but at most 1.

    Args:
        moved: d, by how much a step moves the outputs, [K, out, n].
        error: e, [K, out, n].
        importance: weights of the examples, fp32 [n]; None for 1.
    """
    weighed = weighted(moved, importance)
    along = (weighed * error).sum(dim=(1, 2), keepdim=True)
    size = (weighed * moved).sum(dim=(1, 2), keepdim=True)
    return (along / size.clamp(min=1e-30)).clamp(0.0, 1.0)


def _affine(tensors: Sequence[Tensor], out: Sequence[Tensor | None] = ()) -> list[Tensor]:
    """Concatenate the weight [K, out, in] and the bias [K, out] of each layer."""
    pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
    return [
        torch.cat([weight, bias[:, :, None]], dim=2, out=into)
        for (weight, bias), into in zip(pairs, out or [None] * len(pairs), strict=True)
    ]


def _parts(layers: Sequence[Tensor]) -> list[Tensor]:
    """Undo `_affine`."""
    return [part for layer in layers for part in (layer[:, :, :-1], layer[:, :, -1])]
