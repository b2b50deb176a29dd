"""Charts of columns that are fed with noise."""

import numpy as np
import numpy.typing as npt

from service.monitoring.columns import KINDS, NO, Chart


def false_alarms(columns: int, blocks: int, seed: int = 0, correlation: float = 0.0) -> int:
    """Return how many drifts begin in numbers that do not change, however small they are.

    Args:
        columns: number of columns; each has all numbers.
        blocks: number of blocks.
        seed: of the noise.
        correlation: of neighbouring blocks.
    """
    random, chart, found = np.random.default_rng(seed), Chart(), 0
    chart.widen(columns)
    units: npt.NDArray[np.float64] = np.full((len(KINDS), columns), 1e-9)
    values = random.normal(size=units.shape)
    for k in range(blocks):
        noise = random.normal(size=units.shape)
        values = correlation * values + np.sqrt(1 - correlation**2) * noise
        before = chart.since
        chart.take(values, units)
        chart.test(units, k)
        found += int(((before == NO) & (chart.since != NO)).sum())
    return found
