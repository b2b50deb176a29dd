"""Recovery: one goal for all learners, measured from shift to shift."""

import pytest

from streams.recovery import SETTLED, WINDOW, best_end, goal_so_far, recoveries, recovery


def curve(*levels: tuple[int, float], every: int = 100) -> list[tuple[int, float]]:
    """Return the rolling accuracy of a learner that has each accuracy up to an example."""
    outcomes: list[float] = []
    for until, level in levels:
        outcomes += [level] * ((until - every * len(outcomes)) // every)
    window = WINDOW // every
    means = [sum(w) / len(w) for k in range(len(outcomes)) if (w := outcomes[: k + 1][-window:])]
    return [(every * k, mean) for k, mean in enumerate(means, 1)]


FALL = curve((6_000, 0.9), (8_000, 0.5), (12_000, 0.9))


def test_it_counts_the_examples_after_the_shift_and_not_the_window() -> None:
    assert recovery(FALL, 6_000, 12_000, 0.9) == 2_000


def test_a_learner_that_the_shift_does_not_hurt_takes_nothing() -> None:
    assert recovery(curve((12_000, 0.9)), 6_000, 12_000, 0.9) == 0


def test_windows_that_hold_examples_before_the_shift_do_not_count() -> None:
    assert FALL[59] == (6_000, pytest.approx(0.9))
    assert recovery(FALL, 6_000, 8_000, 0.9) is None


def test_two_points_below_the_goal_is_recovered_and_three_are_not() -> None:
    assert recovery(curve((12_000, 0.88)), 6_000, 12_000, 0.9) == 0
    assert recovery(curve((12_000, 0.87)), 6_000, 12_000, 0.9) is None


def test_the_end_of_the_segment_ends_a_recovery_that_has_not_completed() -> None:
    assert recovery(FALL, 6_000, 8_900, 0.9) is None
    assert recovery(FALL, 6_000, 9_000, 0.9) == 2_000


def test_all_learners_must_reach_the_best_ones_end() -> None:
    weak = curve((6_000, 0.6), (8_000, 0.3), (12_000, 0.6))
    assert best_end([FALL, weak], 6_000, 12_000) == pytest.approx(0.9)
    assert recoveries([FALL, weak], [0, 6_000], 12_000) == [[2_000], [None]]
    assert recoveries([weak], [0, 6_000], 12_000) == [[2_000]]


def test_each_shift_is_measured_against_the_end_of_its_own_segment() -> None:
    again = curve((6_000, 0.9), (8_000, 0.5), (12_000, 0.9), (13_000, 0.2), (16_000, 0.6))
    assert recoveries([again], [0, 6_000, 12_000], 16_000) == [[2_000, 1_000]]


def test_a_stream_without_shifts_has_no_recovery() -> None:
    assert recoveries([FALL], [0], 12_000) == [[]]


def test_a_segment_of_fewer_than_two_windows_is_not_measured() -> None:
    assert best_end([FALL], 10_001, 12_000) is None
    assert recoveries([FALL], [6_000, 10_001], 12_000) == [[2_000]]
    assert recoveries([FALL], [6_000, 10_000], 12_000) == [[2_000, 0]]


def test_a_shift_between_two_points_is_measured_from_its_own_example() -> None:
    assert recoveries([curve((6_000, 0.9), (9_000, 0.8))], [6_050], 9_000) == [[50]]


def test_in_the_dip_of_an_earlier_shift_the_goal_stays() -> None:
    assert goal_so_far(0.6, None, 3_000) == 0.6
    assert goal_so_far(0.6, 0.9, 3_000) == 0.9
    assert goal_so_far(0.6, 0.9, SETTLED) == 0.6
