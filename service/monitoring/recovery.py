"""How the learners recover from known shifts of the stream, measured while they learn."""

import math
from collections import deque
from collections.abc import Mapping

from pydantic import BaseModel

from streams.recovery import WINDOW, best_end, goal_so_far, recovery

MAX_SHIFTS = 100
SERVED = "served"


class ShiftRecovery(BaseModel):
    """A known shift of the stream, and how each learner recovered from it."""

    id: int
    """1, 2, …, in the order of the stream."""
    example: int
    """Index of the first example after the shift."""
    what: str
    """The shift in a few words."""
    end: int | None = None
    """Index of the first example after the segment; null while it lasts."""
    goal: float | None = None
    """A learner recovers within 2 points of this accuracy; null if the shift is not measured."""
    recovery_examples: dict[str, int | None] = {}
    """Recovery by learner (`streams.recovery`); null for a learner that has not recovered."""


class Recoveries:
    """Measures recoveries; callers hold a lock."""

    def __init__(self) -> None:
        self._begun: deque[ShiftRecovery] = deque(maxlen=MAX_SHIFTS)
        self._ahead: deque[ShiftRecovery] = deque(maxlen=MAX_SHIFTS)
        """Shifts whose first example has not been learned."""
        self._curves: dict[str, list[tuple[int, float]]] = {}
        """Points by learner: those since the newest shift that set a record, and the newest."""
        self._added = self._examples = 0
        self._served: float | None = None
        """The served learner's accuracy at the newest point."""

    @property
    def shifts(self) -> list[ShiftRecovery]:
        """The newest shifts, in order."""
        return [*self._begun, *self._ahead]

    def add_shift(self, example: int, what: str) -> None:
        """Add a shift, which comes after all that were added before."""
        self._added += 1
        self._ahead.append(ShiftRecovery(id=self._added, example=example, what=what))

    def add_point(self, examples: int, accuracies: Mapping[str, float]) -> None:
        """Add the learners' rolling accuracies; NaN is none.

        Args:
            examples: learned so far; a point that is not ahead of the one before is ignored.
            accuracies: of the last WINDOW of them, in [0, 1], by learner.
        """
        if examples <= self._examples:
            return
        while self._ahead and self._ahead[0].example < examples:
            self._begin(self._ahead.popleft())
        self._examples = examples
        known = {name: a for name, a in accuracies.items() if not math.isnan(a)}
        self._served = known.get(SERVED)
        if self._begun and self._begun[-1].end is None:
            self._extend(examples, known)
            self._measure()

    def finish(self) -> None:
        """End the newest segment at the newest point, since the stream has ended."""
        self._measure(self._examples)

    def _begin(self, shift: ShiftRecovery) -> None:
        """Begin the segment of a shift, and end the one before."""
        earlier, since = None, 0
        if self._begun:
            before = self._begun[-1]
            if before.recovery_examples.get(SERVED) is None:
                earlier = before.goal
            since = shift.example - before.example
            self._measure(shift.example)
        if shift.example > 0 and self._served is not None:
            shift.goal = goal_so_far(self._served, earlier, since)
        self._begun.append(shift)
        self._curves = {}

    def _extend(self, examples: int, accuracies: Mapping[str, float]) -> None:
        for name, accuracy in accuracies.items():
            points = self._curves.setdefault(name, [])
            if examples < self._begun[-1].example + WINDOW:
                continue  # the accuracy is partly of examples before the shift
            if len(points) > 1 and points[-1][1] <= points[-2][1]:
                points.pop()  # no goal is first reached there
            points.append((examples, accuracy))

    def _measure(self, end: int | None = None) -> None:
        """Measure the newest shift up to the newest point; against the best end if it is known."""
        if not self._begun:
            return
        shift = self._begun[-1]
        if end is not None and shift.example > 0:
            shift.goal = best_end(list(self._curves.values()), shift.example, end)
        shift.end, until, goal = end, end or self._examples, shift.goal
        shift.recovery_examples = {
            name: None if goal is None else recovery(points, shift.example, until, goal)
            for name, points in self._curves.items()
        }
