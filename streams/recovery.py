"""Recovery: how many examples a learner needs after a shift until it is as good as it can be.

A learner has recovered at the beginning of the first window of WINDOW examples that lies after the
shift and has an accuracy of at least the goal less WITHIN. The window itself is not counted: a
learner that a shift does not hurt takes 0. The goal is one accuracy for all learners that are
compared:

- If the end of the segment is known (the next shift, or the end of the stream), it is the accuracy
  with which the best learner ends the segment (`best_end`).
- Otherwise it is the served learner's accuracy before the shift. If the shift lies in the dip of an
  earlier one, the goal of the earlier shift stays (`goal_so_far`).

A learner that has not recovered from a shift before the next one never recovers from it. A segment
of fewer than two windows has no goal, since its end lies in the dip.
"""

from collections.abc import Sequence
from itertools import pairwise

WINDOW = 1_000
"""Examples of a rolling accuracy: its standard deviation is 1.3 points at an accuracy of 0.8."""
WITHIN = 0.02
"""How far below the goal an accuracy may be to count as recovered."""
SETTLED = 20 * WINDOW
"""Examples after which a learner that has not recovered is on a new level, and in no dip."""
ROUNDING = 1e-9

Points = Sequence[tuple[int, float]]
"""A learner's curve: examples, and the accuracy of the last WINDOW of them; by examples."""


def recovery(points: Points, shift: int, end: int, goal: float) -> int | None:
    """Return the examples that a learner takes to recover, at the resolution of its points.

    Args:
        points: its curve.
        shift: index of the first example after the shift.
        end: index of the first example after the segment, or the newest one there is.
        goal: accuracy in [0, 1].

    Returns:
        Examples from the shift to the beginning of the window; None if it has not recovered.

    >>> recovery([(1_500, 0.6), (2_000, 0.7), (2_500, 0.79)], shift=500, end=3_000, goal=0.8)
    1000
    """
    for examples, accuracy in points:
        if shift + WINDOW <= examples <= end and accuracy >= goal - WITHIN - ROUNDING:
            return examples - shift - WINDOW
    return None


def best_end(learners: Sequence[Points], shift: int, end: int) -> float | None:
    """Return the best of the accuracies with which learners end a segment; None if it is short.

    Args:
        learners: a curve each.
        shift: index of the first example of the segment.
        end: index of the first example after it.
    """
    if end - shift < 2 * WINDOW:
        return None
    within = ([a for n, a in points if shift + WINDOW <= n <= end] for points in learners)
    return max((accuracies[-1] for accuracies in within if accuracies), default=None)


def goal_so_far(accuracy: float, earlier: float | None, since: int) -> float:
    """Return the goal of a shift while the end of its segment is not known.

    Args:
        accuracy: the served learner's before the shift.
        earlier: goal of the shift before, if the served learner has not recovered from it.
        since: examples since that shift.
    """
    return accuracy if earlier is None or since >= SETTLED else earlier


def recoveries(
    learners: Sequence[Points], shifts: Sequence[int], end: int
) -> list[list[int | None]]:
    """Return the recoveries of each learner from each shift with a goal, once the stream has ended.

    Args:
        learners: a curve each, over the whole stream.
        shifts: index of the first example after each shift; an index of 0 is not a shift.
        end: examples of the stream.
    """
    taken: list[list[int | None]] = [[] for _ in learners]
    for shift, following in pairwise([*(shift for shift in shifts if shift > 0), end]):
        goal = best_end(learners, shift, following)
        if goal is not None:
            for found, points in zip(taken, learners, strict=True):
                found.append(recovery(points, shift, following, goal))
    return taken
