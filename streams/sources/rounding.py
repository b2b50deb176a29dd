"""Different values of a column that become one number in float32."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHARE = 0.01
"""Part of a column's spread by which values may differ that become one."""
NOISE = 1e-14
"""Relative difference that the arithmetic of doubles makes, as between 0.3 and 0.1 + 0.2."""


@dataclass(frozen=True)
class Merged:
    """Different values of a column that are one number in float32."""

    low: float
    high: float
    """The two values furthest apart of those that become one."""
    different: int
    """Different values of the column."""
    kept: int
    """Different values that are left in float32, below ``different``."""
    is_harmful: bool
    """The two differ by more than SHARE of the range that the middle nine tenths of the column
    span (of all if these are one value), and by more than NOISE."""


def merged(column: npt.NDArray[np.float64]) -> Merged | None:
    """Return what float32 merges in a column of finite values [n], n > 0; None if nothing.

    >>> merged(np.array([0.0, 0.1, 1e6]))
    >>> merged(np.array([1.7e9, 1.7e9 + 0.5, 1.7e9 + 900]))
    Merged(low=1700000000.0, high=1700000000.5, different=3, kept=2, is_harmful=False)
    """
    ranked = np.sort(column)
    rounded = ranked.astype(np.float32)
    is_next = ranked[1:] != ranked[:-1]
    if np.count_nonzero(is_next) == np.count_nonzero(rounded[1:] != rounded[:-1]):
        return None
    starts = np.concatenate(([True], rounded[1:] != rounded[:-1])).nonzero()[0]
    lows, highs = ranked[starts], ranked[np.append(starts[1:], len(ranked)) - 1]
    widest = int((highs - lows).argmax())
    low, high = float(lows[widest]), float(highs[widest])
    tail = len(ranked) // 20
    spread = (ranked[-1 - tail] - ranked[tail]) or (ranked[-1] - ranked[0])
    is_harmful = high - low > max(SHARE * spread, NOISE * max(abs(low), abs(high)))
    different = 1 + int(np.count_nonzero(is_next))
    return Merged(low, high, different, len(starts), bool(is_harmful))
