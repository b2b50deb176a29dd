"""The rows of a table, as the experts of a pool have learned them.

A row is a column of the first layer: K · out weights, and their state in Funnel and in the inner
optimizers. All numbers of a row lie together, so that it is read and written at once. Memory
is reserved by doubling and taken when it is written, so it grows with the rows in use.

A change of all rows of an expert is not written to all of them at once, which would stop learning
for as long as copying the table takes: a row takes it when it is read, or when all are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import ref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from funnel.pool.renewal import best_for
from funnel.pool.tables.index import GOLDEN, Numbers
from funnel.pool.tables.pages import paged
from funnel.pool.tables.replacements import (
    MOST,
    NO_REPLACEMENTS,
    Epochs,
    Replacements,
    Sources,
    sources_of,
)
from funnel.pool.tables.version import Version

CAPACITY = 1024
"""Rows that there is memory for at first."""
CHUNK = 4096
"""Rows that take replacements together."""
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


@dataclass(frozen=True)
class NewWeights:
    """The weights that rows start with: a function of the numbers of row and unit.

    There is no draw, and the bits are the same everywhere.
    """

    experts: int
    """K, which start alike."""
    out: int
    """Units of each."""
    scale: float
    """Bound of the weights, which are even in ±scale; 0 for zero."""

    def __call__(self, rows: Numbers) -> npt.NDArray[np.float32]:
        """Return the weights of rows, [r, K · out], given their numbers, int64 [r]."""
        if self.scale == 0.0:
            return np.zeros((len(rows), self.experts * self.out), np.float32)
        units = np.arange(self.out, dtype=np.uint64)
        mixed = ((rows.astype(np.uint64)[:, None] << np.uint64(32)) + units + np.uint64(1)) * GOLDEN
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        even = (mixed >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
        return np.tile(even * np.float32(self.scale), (1, self.experts))


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
        self._all_changed = -1
        """The number of looks before all blocks changed last."""
        self._versions: list[ref[Version]] = []
        """Versions that may still be in use. Only the thread that learns changes the list."""
        self._set_replacements(NO_REPLACEMENTS)
        self.epochs = np.zeros(0, dtype=np.uint8)
        """By row, how many of them it has taken; uint8 [capacity]."""
        self.start(0)

    @property
    def blank(self) -> Tensor:
        """The state of a new row, [S]."""
        return self._blank

    def new_weights(self, rows: Numbers) -> Tensor:
        """Return the weights that rows start with, equal for all experts, [r, K · out].

        Args:
            rows: numbers, int64 [r].
        """
        return torch.from_numpy(self.start_of(rows))

    @property
    def start_of(self) -> NewWeights:
        """The weights that rows start with, as a function that does not change later."""
        return NewWeights(self._experts, self._out, self._scale)

    def set_scale(self, scale: float) -> None:
        """Let rows that are not in use yet start with weights in ±scale."""
        if scale != self._scale:
            self._forget_replacements()
        self._scale = scale

    def look(self) -> int:
        """Return a number by which `changed_since` tells later changes from those until now."""
        self._looks += 1
        return self._looks - 1

    def changed_since(self, look: int) -> Numbers:
        """Return the blocks that have changed since a look, int64, ascending; since -1, all.

        A block is the rows from BLOCK times its number on; the last one may be shorter.
        """
        if self._all_changed > look:
            return np.arange(-(-self.used // BLOCK))
        found: Numbers = (self._changed[: -(-self.used // BLOCK)] > look).nonzero()[0]
        return found

    def version(self) -> Version:
        """Return the weights and epochs of the rows in use, which later changes do not change."""
        found = Version(self.weights.numpy(), self.epochs, self.used)
        self._versions = [*map(ref, self._in_use()), ref(found)]
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
            self.epochs[self.used : count] = self.replacements.epoch
            self._changed[self.used // BLOCK : -(-count // BLOCK)] = self._looks
            self.used = count

    def start(self, count: int) -> None:
        """Have exactly so many rows in use, all fresh."""
        self._versions.clear()  # they go on reading the old memory, which nobody writes any more
        self.used = 0
        self.weights = torch.zeros(0, self._experts * self._out)
        self.state = self._blank.repeat(0, 1)
        self._changed, self.epochs = self._changed[:0], self.epochs[:0]
        self._set_replacements(NO_REPLACEMENTS)
        self._allocate(CAPACITY)
        self.use(count)
        self._changed.fill(self._looks)

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of the weights, [U, K · out], and the state, [U, S], of some rows.

        Args:
            rows: numbers, int64 [U].
        """
        weights, state = self.weights.index_select(0, rows), self.state.index_select(0, rows)
        numbers = rows.numpy()
        self._bring(weights, state, self.epochs[numbers], numbers)
        return weights, state

    def write(self, rows: Tensor, weights: Tensor, state: Tensor) -> None:
        """Replace some rows.

        Args:
            rows: numbers, int64 [U], ascending and different.
            weights: [U, K · out].
            state: [U, S].
        """
        numbers = rows.numpy()
        self._keep(numbers)
        _records(self.weights)[numbers] = _records(weights)
        _records(self.state)[numbers] = _records(state)
        self.epochs[numbers] = self.replacements.epoch
        self._changed[numbers // BLOCK] = self._looks

    def named(self) -> dict[str, Tensor]:
        """Return the fields of the rows in use by name, [used, its experts, out], as views.

        All rows take the replacements that they have not taken, in the thread that learns.
        """
        self.settle()
        return self._split(self.weights[: self.used], self.state[: self.used])

    def copied(self, rows: Tensor) -> dict[str, Tensor]:
        """Return copies of the fields of some rows by name, [r, its experts, out].

        Args:
            rows: numbers of rows in use, int64 [r], ascending and different.
        """
        if len(rows) == self.used:
            self.settle()
            return self._split(self.weights[: self.used].clone(), self.state[: self.used].clone())
        return self._split(*self.read(rows))

    def rescale(self, ratio: float) -> None:
        """Multiply the weights of all rows."""
        if self._scale or not 0.0 <= ratio < math.inf:  # otherwise new weights stay 0
            self._forget_replacements()
        self._keep(np.arange(self.used))
        self.weights[: self.used] *= ratio
        self._changed.fill(self._looks)

    def from_the_start(self, which: Tensor) -> None:
        """Set all rows of some experts, bool [K], back to how they started; read on the host."""
        moves: list[tuple[Sources, Sources | None]] = []
        for k in which.nonzero().flatten().tolist():
            for places in self._places(k).values():
                moves.append((places, None))
        self._replace(moves)

    def from_best(self, which: Tensor, log_weights: Tensor) -> None:
        """Make all rows of some experts copies of those of the best of the others.

        Args:
            which: bool [K], not all; read on the host.
            log_weights: of the experts, fp32 [K].
        """
        if not bool(which.any()):
            return
        moves: list[tuple[Sources, Sources | None]] = []
        for index, field in enumerate(self.fields):
            bad, first = which[field.experts], field.experts.start
            is_blank = bool(bad.all()) and field.of_run
            source = best_for(bad, log_weights[field.experts])
            for k in bad.nonzero().flatten().tolist():
                places = self._places(first + k)[index]
                of_best = self._places(first + int(source[k]))[index]
                moves.append((places, None if is_blank else of_best))
        self._replace(moves)

    def settle(self) -> None:
        """Let all rows take the replacements that they have not taken, in one pass."""
        epoch = self.replacements.epoch
        if not epoch:
            return
        for start in range(0, self.used, CHUNK):
            own = slice(start, min(start + CHUNK, self.used))
            if self.epochs[own].min() < epoch:
                numbers = np.arange(own.start, own.stop)
                self._keep(numbers)
                self._bring(self.weights[own], self.state[own], self.epochs[own], numbers)
        self.epochs[: self.used] = epoch

    def _replace(self, moves: Sequence[tuple[Sources, Sources | None]]) -> None:
        """Let all rows take a replacement, each when it is needed; see `sources_of`."""
        if not moves or not self.used:
            return
        if self.replacements.epoch == MOST:
            self._forget_replacements()
        width = self._experts * self._out + len(self._blank)
        self._set_replacements(self.replacements.and_then(sources_of(width, moves)))
        self._all_changed = self._looks

    def _set_replacements(self, replacements: Replacements) -> None:
        self.replacements = replacements
        """The replacements of all rows that some rows have still to take."""
        width = self._experts * self._out
        self.of_weights = replacements.part(slice(0, width))
        self._of_state = replacements.part(slice(width, width + len(self._blank)))

    def _forget_replacements(self) -> None:
        """Let all rows take the replacements, of which copies of rows lose count."""
        if self.replacements.epoch:
            self.settle()
            self._keep(np.arange(self.used))
            self._set_replacements(NO_REPLACEMENTS)
            self.epochs.fill(0)
            self._changed.fill(self._looks)

    def _keep(self, rows: Numbers) -> None:
        """Give versions in use the rows that are about to change, int64, ascending."""
        for version in self._in_use():
            version.keep(rows)

    def _in_use(self) -> list[Version]:
        found = [version() for version in self._versions]
        return [version for version in found if version is not None]

    def _bring(self, weights: Tensor, state: Tensor, epochs: Epochs, rows: Numbers) -> None:
        """Let some rows, which hold these numbers, take the replacements that they have not."""
        if not self.replacements.epoch:
            return
        blank = self._blank.numpy()[None]
        self.of_weights.bring(weights.numpy(), epochs, self.start_of, rows)
        self._of_state.bring(state.numpy(), epochs, lambda _: blank, rows)

    def _places(self, expert: int) -> dict[int, Sources]:
        """Return where a row has the numbers of an expert, by field."""
        found, start = {}, 0
        for index, field in enumerate(self.fields):
            out = field.fresh[0].numel()
            if field.experts.start <= expert < field.experts.stop:
                first = start + (expert - field.experts.start) * out
                found[index] = np.arange(first, first + out)
            start += field.fresh.numel()
        return found

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
        epochs = paged((capacity,), np.uint8)
        epochs[: len(self.epochs)] = self.epochs
        self._changed, self.epochs = changed, epochs
        for version in self._in_use():
            version.move(self.weights.numpy(), epochs)

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
