"""Detectors of changes in a series of error rates.

ADWIN sees changes for worse and for better (A. Bifet, R. Gavaldà, 'Learning from time-changing
data with adaptive windowing', 2007); Page–Hinkley, one-sided, only for worse (E. S. Page,
'Continuous inspection schemes', 1954). Both are river's. River's objects do not expose their state,
so a detector keeps the numbers that it was given since its last reset. Feeding them to a new object
restores it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from service.fold.spec import FOLD_VERSION

Numbers = npt.NDArray[np.float64]

GRACE = 10
"""Numbers after a reset before a detector may detect again."""
MAX_NUMBERS, CARRIED = 10_000, 1_000
"""After so many numbers, a detector is reset, and given the newest CARRIED of them again."""
SIDE = 10
"""Numbers on either side of a change whose means are shown, if they show its direction."""
SEARCHED = 4 * SIDE
"""Until version 2 of the fold, a change was located among so many of the newest numbers."""
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
ONE_SIDED = ("page_hinkley",)
"""Detectors that see only rises of the error."""


def load() -> None:
    """Import river, which takes more than a second the first time."""
    _adwin()


class Change(NamedTuple):
    """A change in the mean."""

    before: float
    after: float

    @property
    def rise(self) -> float:
        """By how much the mean grew."""
        return self.after - self.before


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

    def update(self, number: float, version: int = FOLD_VERSION) -> Change | None:
        """Take a number; if that shows a change, return it and reset.

        Args:
            number: the error rate of some examples.
            version: of the fold that took the steps.
        """
        if self._river is None or len(self.numbers) >= MAX_NUMBERS:
            self._begin()
        assert self._river is not None
        self.numbers.append(number)
        self._give(number)
        if not self._river.drift_detected:
            return None
        numbers, self.numbers, self._river = self.numbers, [], None
        if version < 3:
            return find_recent_change(numbers)
        return find_change(numbers, is_rise=self.name in ONE_SIDED)

    def _begin(self) -> None:
        if len(self.numbers) >= MAX_NUMBERS:
            self.numbers = self.numbers[-CARRIED:]
        self._river = MAKERS[self.name]()
        for number in self.numbers:
            self._give(number)

    def _give(self, number: float) -> None:
        assert self._river is not None
        self._river.update(SCALE * number if self.name == "adwin" else number)


def find_change(numbers: list[float], is_rise: bool = False) -> Change:
    """Return the means before and after the likeliest single change of the mean.

    The change is where √(n₀n₁/n)·|mean₁ − mean₀| is greatest (D. V. Hinkley, 'Inference about the
    change-point in a sequence of random variables', 1970). The means are those of SIDE numbers on
    either side; of more, where these few do not differ in the direction of the change.

    Args:
        numbers: all that the detector was given, two or more.
        is_rise: True if the detector sees rises only.

    >>> find_change([0.1, 0.1, 0.1, 0.6, 0.6])
    Change(before=0.1, after=0.6)
    """
    x = np.asarray(numbers)
    at = change_at(numbers, is_rise)
    sign, side = np.sign(_evidence(x)[at - 1]), SIDE
    while side < len(x) and np.sign(_means(x, at, side).rise) != sign:
        side *= 2
    return _means(x, at, side)


def change_at(numbers: Sequence[float], is_rise: bool = False) -> int:
    """Return the index of the first number after the likeliest single change of the mean.

    Args:
        numbers: two or more.
        is_rise: True if only a rise counts.

    >>> change_at([0.1, 0.1, 0.1, 0.6, 0.6])
    3
    """
    evidence = _evidence(np.asarray(numbers))
    return 1 + int(np.argmax(evidence if is_rise else np.abs(evidence)))


def means_at(numbers: Sequence[float], at: int) -> Change:
    """Return the means of SIDE numbers before and from an index on, of fewer at the ends."""
    return _means(np.asarray(numbers), at, SIDE)


def find_recent_change(numbers: list[float]) -> Change:
    """Return the likeliest change among the newest numbers, as version 2 of the fold did.

    Where the change lay before them, this was chance.
    """
    x = np.asarray(numbers[-SEARCHED:])
    return _means(x, 1 + int(np.argmax(np.abs(_evidence(x)))), SIDE)


def _evidence(x: Numbers) -> Numbers:
    """Return √(n₀n₁/n)·(mean₁ − mean₀) for a change before each number but the first, [n - 1]."""
    n, sums = len(x), np.cumsum(x)
    n0 = np.arange(1, n)
    rise = (sums[-1] - sums[:-1]) / (n - n0) - sums[:-1] / n0
    return np.asarray(np.sqrt(n0 * (n - n0) / n) * rise)


def _means(x: Numbers, at: int, side: int) -> Change:
    before, after = x[max(0, at - side) : at], x[at : at + side]
    return Change(round(float(before.mean()), 12), round(float(after.mean()), 12))
