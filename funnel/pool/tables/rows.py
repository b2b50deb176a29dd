"""The rows of a table, as the experts of a pool have learned them.

A row is a column of the first layer: K · out weights, and their state in Funnel and in the inner
optimizers. All numbers of a row lie together, so that it is read and written at once. Memory
is reserved by doubling and taken when it is written, so it grows with the rows in use.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from funnel.pool.renewal import best_for
from funnel.pool.tables.index import GOLDEN, Numbers

CAPACITY = 1024
"""Rows that there is memory for at first."""
CHUNK = 4096
"""Rows that are published together."""

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
        self.touched = np.zeros(0, dtype=np.bool_)
        """Chunks that have changed since they were last published."""
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

    def use(self, count: int) -> None:
        """Have at least so many rows in use; new ones are fresh."""
        capacity = len(self.weights)
        while capacity < count:
            capacity *= 2
        self._allocate(capacity)
        if count > self.used:
            self.weights[self.used : count] = self.new_weights(np.arange(self.used, count))
            self.state[self.used : count] = self._blank
        self.touched[self.used // CHUNK : -(-count // CHUNK)] = True
        self.used = max(self.used, count)

    def start(self, count: int) -> None:
        """Have exactly so many rows in use, all fresh."""
        self.used = 0
        self.weights = torch.zeros(0, self._experts * self._out)
        self.state = self._blank.repeat(0, 1)
        self._allocate(CAPACITY)
        self.use(count)
        self.touched.fill(True)

    def write(self, rows: Tensor, weights: Tensor, state: Tensor) -> None:
        """Replace some rows.

        Args:
            rows: numbers, int64 [U], all different.
            weights: [U, K · out].
            state: [U, S].
        """
        self.weights.index_copy_(0, rows, weights)
        self.state.index_copy_(0, rows, state)
        self.touched[rows.numpy() // CHUNK] = True

    def named(self) -> dict[str, Tensor]:
        """Return the fields of the rows in use by name, [used, its experts, out], as views."""
        return {field.name: self._of(index) for index, field in enumerate(self.fields)}

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
            self.touched.fill(True)

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
        self.touched.fill(True)

    def _allocate(self, capacity: int) -> None:
        """Have memory for at least so many rows; the system gives what is written."""
        before = len(self.weights)
        if capacity <= before:
            return
        weights, state = self.weights[: self.used], self.state[: self.used]
        with torch.inference_mode(False), torch.no_grad():  # others change it outside of that mode
            self.weights = torch.empty(capacity, weights.shape[1])
            self.state = torch.empty(capacity, state.shape[1])
            self.weights[: self.used], self.state[: self.used] = weights, state
        chunks = np.ones(-(-capacity // CHUNK), dtype=np.bool_)
        chunks[: len(self.touched)] = self.touched
        self.touched = chunks

    def _of(self, index: int) -> Tensor:
        """Return a field of the rows in use as a view, [used, its experts, out]."""
        if index == 0:
            return self.weights[: self.used].view(-1, self._experts, self._out)
        start = sum(field.fresh.numel() for field in self.fields[1:index])
        fresh = self.fields[index].fresh
        held = self.state[: self.used, start : start + fresh.numel()]
        split: Tensor = held.unflatten(1, fresh.shape)
        return split


def scale_of(active: float) -> float:
    """Return the bound of the even weights of a new row of a model with hidden layers.

    It is SHARE of the bound at which outputs have the variance of He et al. 2015. At zero, hidden
    units would never see an example without dense inputs; at the whole of it, keys that have not
    been learned disturb those that have. funnel/docs/pool.md has the figures.

    Args:
        active: number of inputs that are not zero in a typical example.
    """
    return SHARE * math.sqrt(6.0 / active)
