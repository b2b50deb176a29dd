"""Which columns of rows drift now: recent rows compared with those before.

For each column three numbers are watched: the share of rows without a value, the new keys per row,
and, of numbers, the mean. They are taken by *block*: what was learned between two statistics of the
trainer, about a second, but at least BLOCK_ROWS rows. So a fast stream is seen over minutes and a
slow one over enough rows, and a step costs nothing: the counts and the robust means are in the
state anyway.

Each number goes through two exponentially weighted averages of blocks, *recent* and *before*. A
column drifts while these differ by more than chance would explain, and by enough to matter:

    |recent - before| > LIMIT · σ · √(λ / (2 - λ))   and   |recent - before| ≥ LEAST,

where σ is the deviation of the blocks from the mean before, and λ = 1 / RECENT. This is a control
chart of moving averages [S. W. Roberts, 'Control chart tests based on geometric moving averages',
Technometrics 1, 1959]. σ is measured, as neighbouring rows are alike in most streams, and a share
of independent rows would deviate less. No block adds more than WILD deviations to it, so that a
change does not hide itself. LEAST silences what is certain but small. New keys only drift upwards:
they become fewer in any healthy stream. A column that has changed for good counts as drifting until
the average before has come within LEAST of it, after some hundred blocks.

This is for people who watch: no decision of the fold depends on it, and it is not in the state. A
process that starts knows nothing of the blocks before.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.fold.schema.kinds import Kind
from service.fold.state import State

Floats = npt.NDArray[np.float64]

BLOCK_ROWS = 100
RECENT = np.array([10, 10, 3])[:, None]
"""Blocks that the recent averages remember; a mean is an average of 1,000 rows already."""
BEFORE = 300
"""Blocks that the averages before remember."""
FIRST = 30
"""Blocks before a column can drift."""
LIMIT = 4.0
WILD = 2.0
"""Deviations that a block adds to σ at most, if they are more than LEAST."""
DIGITS = 6
LEAST = np.array([0.05, 0.05, 0.25])[:, None]
"""Least differences: of a share of rows, of keys per row, of standard deviations."""
LARGEST_SHIFT = 100.0
"""Standard deviations that are shown at most; a column that was always the same has none."""
MISSING, NEW_KEYS, MEAN = range(3)


@dataclass(frozen=True)
class ColumnDrift:
    """A column, recently and before; None where nothing was learned yet."""

    missing: float | None
    """Share of the recent rows without a usable value."""
    missing_before: float | None
    new_keys: float | None
    """Keys per recent row that got a row of the table; None without a table."""
    new_keys_before: float | None
    shift: float | None
    """From the mean before to the recent one, in standard deviations before; None unless it is a
    number and inputs are standardized."""
    is_drifting: bool


class ColumnWindows:
    """The columns of a state, as its statistics show them; one thread notes, any may read."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 0), np.int64)
        """By column at the last block: rows without a value, all rows, new keys."""
        self._blocks = np.zeros((3, 0), np.int64)
        """By number and column: blocks that had one."""
        self._recent, self._before, self._variance = (np.zeros((3, 0)) for _ in range(3))
        self._log_scale = np.zeros(0)
        """Logarithm of a number's standard deviation, on average before."""
        self._is_new = True
        self._found: dict[str, ColumnDrift] = {}

    def read(self) -> Mapping[str, ColumnDrift]:
        """Return what was found, by column; the mapping never changes."""
        return self._found

    def note(self, state: State) -> None:
        """Take a block in, if enough rows were learned since the last one.

        Args:
            state: not changed. The first only tells where to count from.
        """
        counts = np.concatenate([state.missing.numpy().T, state.new_keys.numpy()[None]])
        self._widen(counts.shape[1])
        if self._is_new:
            self._is_new, self._counts = False, counts
        block = counts - self._counts
        is_full = block[1].max(initial=0) >= BLOCK_ROWS
        if is_full:
            self._counts = counts
            self._take(block, state)
        if is_full or len(self._found) < len(state.schema.columns):
            self._found = self._described(state)

    def _widen(self, columns: int) -> None:
        more = columns - self._counts.shape[1]
        pad = ((0, 0), (0, more))
        self._counts, self._blocks = np.pad(self._counts, pad), np.pad(self._blocks, pad)
        self._recent, self._before = np.pad(self._recent, pad), np.pad(self._before, pad)
        self._variance = np.pad(self._variance, pad)
        self._log_scale = np.pad(self._log_scale, (0, more))

    def _take(self, block: npt.NDArray[np.int64], state: State) -> None:
        missing, rows, new_keys = block
        mean, log_scale = _means(state)
        per_row = np.where(rows > 0, 1 / np.maximum(rows, 1), np.nan)
        values = np.stack([missing * per_row, new_keys * per_row, mean])
        values[MEAN, missing == rows] = np.nan  # the mean of rows before these
        known = ~np.isnan(values)
        values = np.where(known, values, self._before)
        self._blocks += known
        slow = known / np.clip(self._blocks, 1, BEFORE)
        fast = known / np.clip(self._blocks, 1, RECENT)
        self._recent += fast * (values - self._recent)
        off = values - self._before
        self._before += slow * off
        most = np.maximum(WILD**2 * self._variance, (LEAST * self._units()) ** 2)
        square = np.where(self._blocks < FIRST, off**2, np.minimum(off**2, most))
        self._variance = (1 - slow) * (self._variance + slow * square)
        has_scale = known[MEAN]
        self._log_scale += slow[MEAN] * (np.where(has_scale, log_scale, 0.0) - self._log_scale)

    def _units(self) -> Floats:
        """Return the units of LEAST, [3, columns]: of means the standard deviation before."""
        scale = np.maximum(np.exp(self._log_scale), 1e-6 * np.abs(self._before[MEAN]))
        return np.stack([np.ones_like(scale), np.ones_like(scale), scale])

    def _described(self, state: State) -> dict[str, ColumnDrift]:
        unit = self._units()
        moved = (self._recent - self._before) / unit
        noise = np.sqrt(self._variance / (2 * RECENT - 1)) / unit
        drifts = (np.abs(moved) > LIMIT * noise) & (np.abs(moved) >= LEAST)
        drifts[NEW_KEYS] &= moved[NEW_KEYS] > 0
        drifts &= self._blocks >= FIRST
        shift = np.clip(moved[MEAN], -LARGEST_SHIFT, LARGEST_SHIFT)
        known = self._blocks > 0
        known[NEW_KEYS] &= state.served.table is not None
        recent, before = self._recent, self._before
        values = np.stack(
            [recent[MISSING], before[MISSING], recent[NEW_KEYS], before[NEW_KEYS], shift]
        )
        of_values = known[[MISSING, MISSING, NEW_KEYS, NEW_KEYS, MEAN]]
        shown: npt.NDArray[np.object_] = values.round(DIGITS).astype(np.object_)
        shown[~of_values] = None
        rows = np.vstack([shown, drifts.any(axis=0).astype(np.object_)]).T.tolist()
        names = [column.name for column in state.schema.columns]
        return {name: ColumnDrift(*row) for name, row in zip(names, rows, strict=True)}


def _means(state: State) -> tuple[Floats, Floats]:
    """Return the mean and the log standard deviation of each column of numbers, [columns].

    Both are those of the standardizer, which wild values hardly move, over the last 1,000 rows or
    so. NaN for other columns, and before there are any.
    """
    columns = state.schema.columns
    mean, log_scale = np.full(len(columns), np.nan), np.full(len(columns), np.nan)
    standardizer = state.standardizer
    blank = standardizer.is_blank.cpu().numpy()
    means, scales = standardizer.mean.cpu().numpy(), standardizer.scale.cpu().numpy()
    for index, place in state.schema.place.items():
        if columns[index].kind is Kind.NUMBER and not blank[place]:
            mean[index], log_scale[index] = means[place], np.log(scales[place])
    return mean, log_scale
