"""Detectors of changes in a series of error rates.

ADWIN sees changes for worse and for better (A. Bifet, R. Gavaldà, 'Learning from time-changing
data with adaptive windowing', 2007); Page–Hinkley, one-sided, only for worse (E. S. Page,
'Continuous inspection schemes', 1954). Both are river's. River's objects do not expose their state,
so a detector keeps the numbers that it was given since its last reset. Feeding them to a new object
restores it.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

GRACE = 10
"""Numbers after a reset before a detector may detect again."""
MAX_NUMBERS, CARRIED = 10_000, 1_000
"""After so many numbers, a detector is reset, and given the newest CARRIED of them again."""
SIDE = 10
"""Numbers on either side of a change, at most, whose means are compared."""
SEARCHED = 4 * SIDE
"""A change is located among this many of the newest numbers."""
SCALE = 10.0
"""ADWIN's bound is for single outcomes in [0, 1]. The mean of 100 outcomes deviates √100 times
less; multiplied by SCALE, it deviates as one outcome does."""


class River(Protocol):
    """The part of river's detectors that is used here."""

    @property
    def drift_detected(self) -> bool:
        """True if the last number showed a change."""

    def update(self, x: float) -> object:
        """Take a number."""


def _adwin() -> River:
    from river import drift  # takes more than a second; `load` does it early

    detector: River = drift.ADWIN(delta=0.002, clock=1, min_window_length=2, grace_period=GRACE)
    return detector


def _page_hinkley() -> River:
    from river import drift

    detector: River = drift.PageHinkley(
        min_instances=GRACE, delta=0.05, threshold=0.4, alpha=1.0, mode="up"
    )
    return detector


MAKERS: dict[str, Callable[[], River]] = {"adwin": _adwin, "page_hinkley": _page_hinkley}


def load() -> None:
    """Import river, which takes more than a second the first time."""
    _adwin()


class Change(NamedTuple):
    """A change in the mean."""

    before: float
    after: float


class Detector:
    """A detector of MAKERS, with the numbers that determine its state.

    Args:
        name: a key of MAKERS.
        numbers: those that it was given since its last reset.
    """

    def __init__(self, name: str, numbers: list[float] | None = None) -> None:
        self.name = name
        self.numbers = numbers or []
        self._river: River | None = None

    def update(self, number: float) -> Change | None:
        """Take a number; if that shows a change, return it and reset."""
        if self._river is None or len(self.numbers) >= MAX_NUMBERS:
            self._begin()
        assert self._river is not None
        self.numbers.append(number)
        self._give(number)
        if not self._river.drift_detected:
            return None
        change = find_change(self.numbers)
        self.numbers, self._river = [], None
        return change

    def _begin(self) -> None:
        if len(self.numbers) >= MAX_NUMBERS:
            self.numbers = self.numbers[-CARRIED:]
        self._river = MAKERS[self.name]()
        for number in self.numbers:
            self._give(number)

    def _give(self, number: float) -> None:
        assert self._river is not None
        self._river.update(SCALE * number if self.name == "adwin" else number)


def find_change(numbers: list[float]) -> Change:
    """Return the means before and after the likeliest single change of the mean.

    The change is where √(n₀n₁/n)·|mean₁ − mean₀| is greatest (D. V. Hinkley, 'Inference about the
    change-point in a sequence of random variables', 1970).

    Args:
        numbers: two or more.

    >>> find_change([0.1, 0.1, 0.1, 0.6, 0.6])
    Change(before=0.1, after=0.6)
    """
    x = np.asarray(numbers[-SEARCHED:])
    n, sums = len(x), np.cumsum(x)
    n0 = np.arange(1, n)
    distance = np.abs((sums[-1] - sums[:-1]) / (n - n0) - sums[:-1] / n0)
    at = 1 + int(np.argmax(np.sqrt(n0 * (n - n0) / n) * distance))
    before, after = x[max(0, at - SIDE) : at], x[at : at + SIDE]
    return Change(round(float(before.mean()), 12), round(float(after.mean()), 12))
