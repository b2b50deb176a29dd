"""Which columns of rows drift now: recent rows tested against those before.

For each column up to five numbers are watched (KINDS): the share of rows without a value, the new
keys per row, of numbers the mean and the logarithm of the standard deviation, and of categories,
truth values and texts how far their values are spread otherwise than before. That last number is

    ((Σ (o - e)² / e) - (B - 1)) / k,

where o counts the block's k keys in the B buckets of their hashes, and e is expected of the shares
before: Pearson's χ² without its mean, an estimate of φ² that is 0 on average for any k.

The numbers are taken by *block*: what was learned between two statistics of the trainer, about a
second, but at least BLOCK_ROWS rows. So a fast stream is seen over minutes and a slow one over
enough rows, and a step costs next to nothing: the counts and the robust means are in the state
anyway.

Each number goes through two exponentially weighted averages of blocks, *recent* and *before*, the
reference. A column drifts while these differ by more than chance would explain, and by enough to
matter:

    |recent - before| > L · σ · √(λ / (2 - λ))   and   |recent - before| ≥ LEAST,

where σ is the deviation of the blocks from the mean before, and λ = 1 / RECENT. This is a control
chart of moving averages [S. W. Roberts, 'Control chart tests based on geometric moving averages',
Technometrics 1, 1959]. L is the quantile of the normal distribution at which all m numbers together
pass by chance in a share ALPHA of the blocks, by Bonferroni's correction: ALPHA / (2 m) on each
side of each. `tests.benchmarks.drift` counts the false alarms. σ is measured, as neighbouring
rows are alike in most streams, and a share of independent rows would deviate less; where blocks are
correlated by ρ ≥ 0, the averages deviate √((1 + ρ) / (1 - ρ)) times more. No block adds
more than WILD deviations to it, so that a change does not hide itself. LEAST silences what is
certain but small. New keys and other values only drift upwards: the former become fewer in any
healthy stream. A column that has changed for good counts as drifting until the average before has
come within LEAST of it, after some hundred blocks.

This is for people who watch: no decision of the fold depends on it, and it is not in the state. A
process that starts knows nothing of the blocks before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from service.fold.schema.kinds import Kind
from service.fold.state import KEY_BUCKETS, State

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

BLOCK_ROWS = 100
KINDS = ("missing", "new_keys", "mean", "scale", "values")
"""The numbers that are watched, as ``GET /drift`` names them."""
MISSING, NEW_KEYS, MEAN, SCALE, VALUES = range(len(KINDS))
RECENT = np.array([10, 10, 3, 3, 5])[:, None]
"""Blocks that the recent averages remember; a mean is an average of 1,000 rows already."""
BEFORE = 300
"""Blocks that the averages before remember."""
FIRST = 30
"""Blocks before a column can drift."""
ALPHA = 2e-4
"""Share of the blocks in which one of all numbers passes its limit by chance."""
WILD = 2.0
"""Deviations that a block counts at most, if they are more than LEAST."""
MOST_CORRELATION = 0.8
CORRELATED = 300
"""Blocks that the correlation of neighbours remembers: so few of a change cannot pass for it."""
DIGITS = 6
LEAST = np.array([0.05, 0.05, 0.25, 0.4, 0.05])[:, None]
"""Least differences: of a share of rows, of keys per row, of standard deviations, of the logarithm
of the standard deviation, of φ²."""
UPWARDS = (NEW_KEYS, VALUES)
LARGEST_SHIFT = 100.0
"""Standard deviations that are shown at most; a column that was always the same has none."""
LEAST_SHARE = 1e-3
"""Share that a bucket is expected to have at least."""
OF_KEYS = (Kind.CATEGORY, Kind.BOOL, Kind.TEXT)
"""Kinds of columns whose values are compared; hours and weekdays change all the time."""
NO = -1


@dataclass(frozen=True)
class ColumnChange:
    """One number of a column that drifts."""

    kind: str
    """One of KINDS."""
    since: int
    """Examples learned when this was first seen."""
    statistic: float
    """Difference of recent and before, in deviations of that difference by chance."""
    limit: float
    """The largest statistic that chance explains, L."""


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
    changes: tuple[ColumnChange, ...] = ()
    """The numbers of it that drift now."""

    @property
    def is_drifting(self) -> bool:
        """True while the recent rows differ from those before."""
        return bool(self.changes)


class Chart:
    """The averages of every number and column, as a control chart; arrays in, arrays out."""

    def __init__(self) -> None:
        self.blocks = np.zeros((len(KINDS), 0), np.int64)
        """By number and column: blocks that had one."""
        self.recent, self.before, self._variance = (np.zeros((len(KINDS), 0)) for _ in range(3))
        self._previous, self._covariance = np.zeros((2, len(KINDS), 0))
        """The last difference from before, and the mean product of neighbouring ones."""
        self.since = np.zeros((len(KINDS), 0), np.int64)
        """Examples learned when it began to drift; NO where it does not."""

    def widen(self, columns: int) -> None:
        """Watch more columns."""
        pad = ((0, 0), (0, columns - self.blocks.shape[1]))
        self.blocks = np.pad(self.blocks, pad)
        self.recent, self.before = np.pad(self.recent, pad), np.pad(self.before, pad)
        self._variance = np.pad(self._variance, pad)
        self._previous = np.pad(self._previous, pad)
        self._covariance = np.pad(self._covariance, pad)
        self.since = np.pad(self.since, pad, constant_values=NO)

    def take(self, values: Floats, units: Floats) -> None:
        """Take a block.

        Args:
            values: [numbers, columns]; NaN where there is none.
            units: of LEAST, as they are before this block, [numbers, columns].
        """
        known = ~np.isnan(values)
        values = np.where(known, values, self.before)
        self.blocks += known
        slow = known / np.clip(self.blocks, 1, BEFORE)
        fast = known / np.clip(self.blocks, 1, RECENT)
        off = values - self.before
        most = np.maximum(WILD**2 * self._variance, (LEAST * units) ** 2)
        square = np.where(self.blocks < FIRST, off**2, np.minimum(off**2, most))
        self.recent += fast * (values - self.recent)
        self.before += slow * off
        self._variance = (1 - slow) * (self._variance + slow * square)
        off = np.sign(off) * np.sqrt(square)
        self._covariance += known / CORRELATED * (off * self._previous - self._covariance)
        self._previous = np.where(known, off, self._previous)

    def test(self, units: Floats, examples: int) -> None:
        """Find what drifts after a block.

        Args:
            units: of LEAST, [numbers, columns].
            examples: examples learned.
        """
        moved = np.abs((self.recent - self.before) / units)
        drifts = (self.statistic() > self.limit) & (moved >= LEAST) & (self.blocks >= FIRST)
        for number in UPWARDS:
            drifts[number] &= self.recent[number] > self.before[number]
        began = drifts & (self.since == NO)
        self.since = np.where(began, examples, np.where(drifts, self.since, NO))

    def statistic(self) -> Floats:
        """Return the differences in their deviations by chance, [numbers, columns]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            rho = np.nan_to_num(self._covariance / self._variance).clip(0.0, MOST_CORRELATION)
        spread = self._variance / (2 * RECENT - 1) * (1 + rho) / (1 - rho)
        noise = np.sqrt(spread)
        moved = np.abs(self.recent - self.before)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(moved > 0, moved / noise, 0.0)

    @property
    def limit(self) -> float:
        """Largest statistic that chance explains, L: the more is watched, the larger."""
        watched = max(1, int((self.blocks >= FIRST).sum()))
        return NormalDist().inv_cdf(1 - ALPHA / (2 * watched))


class ColumnWindows:
    """The columns of a state, as its statistics show them; one thread notes, any may read."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 0), np.int64)
        """By column at the last block: rows without a value, all rows, new keys."""
        self._buckets = np.zeros((0, KEY_BUCKETS), np.int64)
        """By column at the last block: keys in each bucket."""
        self._shares = np.zeros((0, KEY_BUCKETS))
        """By column: shares of the buckets before."""
        self.chart = Chart()
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
        buckets = state.buckets.numpy().copy()
        self._widen(counts.shape[1])
        if self._is_new:
            self._is_new, self._counts, self._buckets = False, counts, buckets
        block = counts - self._counts
        is_full = block[1].max(initial=0) >= BLOCK_ROWS
        if is_full:
            keys = buckets - self._buckets
            self._counts, self._buckets = counts, buckets
            self._take(block, keys, state)
        if is_full or len(self._found) < len(state.schema.columns):
            self._found = self._described(state)

    def _widen(self, columns: int) -> None:
        more = columns - self._counts.shape[1]
        self._counts = np.pad(self._counts, ((0, 0), (0, more)))
        self._buckets = np.pad(self._buckets, ((0, more), (0, 0)))
        self._shares = np.pad(self._shares, ((0, more), (0, 0)))
        self._log_scale = np.pad(self._log_scale, (0, more))
        self.chart.widen(columns)

    def _take(self, block: Counts, keys: Counts, state: State) -> None:
        missing, rows, new_keys = block
        mean, log_scale = _means(state)
        per_row = np.where(rows > 0, 1 / np.maximum(rows, 1), np.nan)
        values = np.stack(
            [missing * per_row, new_keys * per_row, mean, log_scale, self._spread(keys, state)]
        )
        values[[MEAN, SCALE]] = np.where(missing == rows, np.nan, values[[MEAN, SCALE]])
        known = ~np.isnan(values[MEAN])  # otherwise it is that of the rows before these
        self.chart.take(values, self._units())
        slow = known / np.clip(self.chart.blocks[MEAN], 1, BEFORE)
        self._log_scale += slow * (np.where(known, values[SCALE], 0.0) - self._log_scale)
        self.chart.test(self._units(), state.examples)

    def _spread(self, keys: Counts, state: State) -> Floats:
        """Return how far a block's keys are spread otherwise than before, φ², [columns].

        NaN without keys, and for columns of other kinds.
        """
        kinds = [column.kind in OF_KEYS for column in state.schema.columns]
        total = keys.sum(axis=1)
        known = (total > 0) & np.array(kinds, np.bool_)
        shares = keys / np.maximum(total, 1)[:, None]
        blocks = self.chart.blocks[VALUES] + 1
        expected = np.maximum(self._shares, LEAST_SHARE) * total[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            chi = ((keys - expected) ** 2 / expected).sum(axis=1)
            found = (chi - (KEY_BUCKETS - 1)) / total
        is_first = known & (blocks == 1)
        slow = (known / np.clip(blocks, 1, BEFORE))[:, None]
        self._shares = self._shares + slow * (shares - self._shares)
        return np.where(known & ~is_first, found, np.where(is_first, 0.0, np.nan))

    def _units(self) -> Floats:
        """Return the units of LEAST, [numbers, columns]: of means the standard deviation before."""
        units = np.ones_like(self.chart.before)
        own = 1e-6 * np.abs(self.chart.before[MEAN])
        units[MEAN] = np.maximum(np.exp(self._log_scale), own)
        return units

    def _described(self, state: State) -> dict[str, ColumnDrift]:
        chart = self.chart
        recent, before = chart.recent, chart.before
        shift = ((recent - before) / self._units())[MEAN].clip(-LARGEST_SHIFT, LARGEST_SHIFT)
        known = chart.blocks > 0
        known[NEW_KEYS] &= state.served.table is not None
        values = np.stack(
            [recent[MISSING], before[MISSING], recent[NEW_KEYS], before[NEW_KEYS], shift]
        )
        of_values = known[[MISSING, MISSING, NEW_KEYS, NEW_KEYS, MEAN]]
        shown: npt.NDArray[np.object_] = values.round(DIGITS).astype(np.object_)
        shown[~of_values] = None
        statistic, limit, since = chart.statistic(), chart.limit, chart.since.tolist()
        found = {}
        for k, column in enumerate(state.schema.columns):
            changes = tuple(
                ColumnChange(kind, since[n][k], _rounded(statistic[n, k]), _rounded(limit))
                for n, kind in enumerate(KINDS)
                if since[n][k] != NO
            )
            missing, missing_before, new_keys, new_keys_before, own = shown[:, k].tolist()
            found[column.name] = ColumnDrift(
                missing, missing_before, new_keys, new_keys_before, own, changes
            )
        return found


def _rounded(deviations: float) -> float:
    return round(min(float(deviations), 1e6), 2)


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
