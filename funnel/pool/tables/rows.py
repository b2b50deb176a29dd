"""The rows of a table, as the experts of a pool have learned them.

A row is a column of the first layer: K · out weights, and their state in Funnel and in the inner
optimizers. All numbers of a row lie together, so that it is read and written at once. Memory
is reserved by doubling and taken when it is written, so it grows with the rows in use.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from funnel.pool.renewal import best_for
from funnel.pool.tables.index import GOLDEN, Numbers
from funnel.pool.tables.pages import paged

CAPACITY = 1024
"""Rows that there is memory for at first."""
CHUNK = 4096
"""Rows that are published together."""
BLOCK = 8
"""Rows of which it is known together whether they have changed. Half of the blocks stay as they
are if a batch names 8 % of the rows, evenly spread."""

SHARE = 0.1


class Field(NamedTuple):
    """One tensor of the first layer, as a row holds it."""

    name: str
    experts: slice
    """Which of the pool's experts have it."""
    fresh: Tensor
    """A column that has seen nothing, fp32 [its experts, out]."""
    of_run: bool
    """True if it belongs to a run of equal inner optimizers."""


class Rows:
    """Rows of K experts; all tensors are fp32.

    Args:
        fields: what a row holds; the first are the weights, of all experts.
        scale: bound of the weights of a new row, which are even in ±scale; 0 for zero.

    Attributes:
        used: number of rows in use; the others hold anything.
        weights: [capacity, K · out].
        state: [capacity, S], the other fields side by side.
    """

    def __init__(self, fields: Sequence[Field], scale: float) -> None:
        self.fields, self._scale = list(fields), scale
        self.used = 0
        self._blank = torch.cat([field.fresh.flatten() for field in fields[1:]])
        self._experts, self._out = fields[0].fresh.shape
        self._changed = np.zeros(0, dtype=np.int64)
        """By block, the number of looks before its last change."""
        self._looks = 0
        self.start(0)

    @property
    def blank(self) -> Tensor:
        """The state of a new row, [S]."""
        return self._blank

    def new_weights(self, rows: Numbers) -> Tensor:
        """Return the weights that rows start with, equal for all experts, [r, K · out].

        They are a function of the numbers of row and unit: no draw, and the same bits everywhere.

        Args:
            rows: numbers, int64 [r].
        """
        if self._scale == 0.0:
            return torch.zeros(len(rows), self._experts * self._out)
        units = np.arange(self._out, dtype=np.uint64)
        mixed = ((rows.astype(np.uint64)[:, None] << np.uint64(32)) + units + np.uint64(1)) * GOLDEN
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        even = (mixed >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
        return torch.from_numpy(even * np.float32(self._scale)).repeat(1, self._experts)

    def set_scale(self, scale: float) -> None:
        """Let rows that are not in use yet start with weights in ±scale."""
        self._scale = scale

    def look(self) -> int:
        """Return a number by which `changed_since` tells later changes from those until now."""
        self._looks += 1
        return self._looks - 1

    def changed_since(self, look: int) -> Numbers:
        """Return the blocks that have changed since a look, int64, ascending; since -1, all.

        A block is the rows from BLOCK times its number on; the last one may be shorter.
        """
        found: Numbers = (self._changed[: -(-self.used // BLOCK)] > look).nonzero()[0]
        return found

    def use(self, count: int) -> None:
        """Have at least so many rows in use; new ones are fresh."""
        capacity = len(self.weights)
        while capacity < count:
            capacity *= 2
        self._allocate(capacity)
        if count > self.used:
            self.weights[self.used : count] = self.new_weights(np.arange(self.used, count))
            self.state[self.used : count] = self._blank
            self._changed[self.used // BLOCK : -(-count // BLOCK)] = self._looks
            self.used = count

    def start(self, count: int) -> None:
        """Have exactly so many rows in use, all fresh."""
        self.used = 0
        self.weights = torch.zeros(0, self._experts * self._out)
        self.state = self._blank.repeat(0, 1)
        self._changed = self._changed[:0]
        self._allocate(CAPACITY)
        self.use(count)
        self._changed.fill(self._looks)

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of the weights, [U, K · out], and the state, [U, S], of some rows.

        Args:
            rows: numbers, int64 [U].
        """
        return self.weights.index_select(0, rows), self.state.index_select(0, rows)

    def write(self, rows: Tensor, weights: Tensor, state: Tensor) -> None:
        """Replace some rows.

        Args:
            rows: numbers, int64 [U], all different.
            weights: [U, K · out].
            state: [U, S].
        """
        numbers = rows.numpy()
        _records(self.weights)[numbers] = _records(weights)
        _records(self.state)[numbers] = _records(state)
        self._changed[numbers // BLOCK] = self._looks

    def named(self) -> dict[str, Tensor]:
        """Return the fields of the rows in use by name, [used, its experts, out], as views."""
        return self._split(self.weights[: self.used], self.state[: self.used])

    def copied(self, rows: Tensor) -> dict[str, Tensor]:
        """Return copies of the fields of some rows by name, [r, its experts, out].

        Args:
            rows: numbers of rows in use, int64 [r], ascending and different.
        """
        if len(rows) == self.used:
            return self._split(self.weights[: self.used].clone(), self.state[: self.used].clone())
        return self._split(self.weights.index_select(0, rows), self.state.index_select(0, rows))

    def rescale(self, ratio: float) -> None:
        """Multiply the weights of all rows."""
        self.weights[: self.used] *= ratio
        self._changed.fill(self._looks)

    def from_the_start(self, which: Tensor) -> None:
        """Set all rows of some experts, bool [K], back to how they started; read on the host."""
        for k in which.nonzero().flatten().tolist():
            for index, field in enumerate(self.fields):
                if field.experts.start <= k < field.experts.stop:
                    own = k - field.experts.start
                    self._of(index)[:, own] = field.fresh[own]
            if self._scale:
                new = self.new_weights(np.arange(self.used))
                self._of(0)[:, k] = new.view(self.used, self._experts, self._out)[:, k]
            self._changed.fill(self._looks)

    def from_best(self, which: Tensor, log_weights: Tensor) -> None:
        """Make all rows of some experts copies of those of the best of the others.

        Args:
            which: bool [K], not all; read on the host.
            log_weights: of the experts, fp32 [K].
        """
        if not bool(which.any()):
            return
        for index, field in enumerate(self.fields):
            bad, held = which[field.experts], self._of(index)
            if bool(bad.all()) and field.of_run:
                held.copy_(field.fresh)
                continue
            source = best_for(bad, log_weights[field.experts])
            for k in bad.nonzero().flatten().tolist():
                held[:, k] = held[:, int(source[k])]
        self._changed.fill(self._looks)

    def _allocate(self, capacity: int) -> None:
        """Have memory for at least so many rows."""
        before = len(self.weights)
        if capacity <= before:
            return
        weights, state = self.weights[: self.used], self.state[: self.used]
        with torch.inference_mode(False), torch.no_grad():  # others change it outside of that mode
            self.weights = torch.from_numpy(paged((capacity, weights.shape[1]), np.float32))
            self.state = torch.from_numpy(paged((capacity, state.shape[1]), np.float32))
            self.weights[: self.used], self.state[: self.used] = weights, state
        changed = np.zeros(-(-capacity // BLOCK), dtype=np.int64)
        changed[: len(self._changed)] = self._changed
        self._changed = changed

    def _of(self, index: int) -> Tensor:
        """Return a field of the rows in use as a view, [used, its experts, out]."""
        return self.named()[self.fields[index].name]

    def _split(self, weights: Tensor, state: Tensor) -> dict[str, Tensor]:
        """Return the fields of rows by name as views, [r, its experts, out].

        Args:
            weights: [r, K · out].
            state: [r, S].
        """
        sizes = [field.fresh.numel() for field in self.fields[1:]]
        parts = [weights, *state.split(sizes, dim=1)]
        return {
            field.name: part.unflatten(1, field.fresh.shape)
            for field, part in zip(self.fields, parts, strict=True)
        }


def scale_of(active: float) -> float:
    """Return the bound of the even weights of a new row of a model with hidden layers.

    It is SHARE of the bound at which outputs have the variance of He et al. 2015. At zero, hidden
    units would never see an example without dense inputs; at the whole of it, keys that have not
    been learned disturb those that have. funnel/docs/pool.md has the figures.

    Args:
        active: number of inputs that are not zero in a typical example.
    """
    return SHARE * math.sqrt(6.0 / active)


def _records(tensor: Tensor) -> npt.NDArray[np.void]:
    """Return the rows of a tensor, fp32 [r, numbers], as one element each: numpy writes such rows
    in half of the time that torch takes."""
    records: npt.NDArray[np.void] = tensor.numpy().view(f"V{4 * tensor.shape[1]}")[:, 0]
    return records
