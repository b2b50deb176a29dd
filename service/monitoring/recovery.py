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
    """By learner, as `streams.recovery` defines it; null for one that has not recovered."""


class _Segment:
    """What is known from one shift to the next."""

    def __init__(self, number: int, example: int, what: str) -> None:
        self.shown = ShiftRecovery(id=number, example=example, what=what)
        self.curves: dict[str, list[tuple[int, float]]] = {}
        """By learner, the points that set a record, and the newest."""

    def add(self, examples: int, accuracies: Mapping[str, float]) -> None:
        for name, accuracy in accuracies.items():
            points = self.curves.setdefault(name, [])
            if examples < self.shown.example + WINDOW:
                continue  # the accuracy is partly of examples before the shift
            if len(points) > 1 and points[-1][1] <= points[-2][1]:
                points.pop()  # no goal is first reached there
            points.append((examples, accuracy))

    def measure(self, newest: int, end: int | None = None) -> None:
        """Measure up to the newest example; against the best learner's end if it is known."""
        example, goal = self.shown.example, self.shown.goal
        if end is not None and example > 0:
            goal = best_end(list(self.curves.values()), example, end)
        taken = {
            name: None if goal is None else recovery(points, example, end or newest, goal)
            for name, points in self.curves.items()
        }
        self.shown = self.shown.model_copy(
            update={"end": end, "goal": goal, "recovery_examples": taken}
        )


class Recoveries:
    """Measures recoveries; callers hold a lock."""

    def __init__(self) -> None:
        self._segments: deque[_Segment] = deque(maxlen=MAX_SHIFTS)
        """Those that have begun."""
        self._ahead: deque[_Segment] = deque(maxlen=MAX_SHIFTS)
        """Those whose first example has not been learned."""
        self._examples = self._added = 0
        self._accuracies: Mapping[str, float] = {}
        """At the newest point."""

    @property
    def shifts(self) -> list[ShiftRecovery]:
        """The newest shifts, in order."""
        return [segment.shown for segment in (*self._segments, *self._ahead)]

    def add_shift(self, example: int, what: str) -> None:
        """Add a shift, which comes after all that were added before."""
        self._added += 1
        self._ahead.append(_Segment(self._added, example, what))

    def add_point(self, examples: int, accuracies: Mapping[str, float]) -> None:
        """Add the learners' rolling accuracies, the served learner's first; NaN is none.

        Args:
            examples: learned so far; a point that is not ahead of the one before is ignored.
            accuracies: of the last WINDOW of them, in [0, 1], by learner.
        """
        if examples <= self._examples:
            return
        while self._ahead and self._ahead[0].shown.example < examples:
            self._begin(self._ahead.popleft())
        self._examples = examples
        self._accuracies = {n: a for n, a in accuracies.items() if not math.isnan(a)}
        if self._segments and self._segments[-1].shown.end is None:
            self._segments[-1].add(examples, self._accuracies)
            self._segments[-1].measure(examples)

    def finish(self) -> None:
        """End the newest segment at the newest point, since the stream has ended."""
        if self._segments:
            self._segments[-1].measure(self._examples, self._examples)

    def _begin(self, segment: _Segment) -> None:
        example, accuracy = segment.shown.example, self._accuracies.get(SERVED)
        earlier, since = None, 0
        if self._segments:
            before = self._segments[-1].shown
            if before.recovery_examples.get(SERVED) is None:
                earlier = before.goal
            since = example - before.example
            self._segments[-1].measure(self._examples, example)
        if example > 0 and accuracy is not None:
            segment.shown.goal = goal_so_far(accuracy, earlier, since)
        self._segments.append(segment)
