"""Recoveries from known shifts, measured point by point while the learners learn."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.monitoring.recovery import Recoveries
from streams.recovery import recoveries

SERVED, ADAGRAD = "served", "adagrad"


def feed(measured: Recoveries, first: int, *levels: tuple[float, float]) -> None:
    """Add a point every 500 examples with the rolling accuracies of served and adagrad."""
    for k, (served, adagrad) in enumerate(levels):
        measured.add_point(first + 500 * k, {SERVED: served, ADAGRAD: adagrad})


def test_while_the_segment_lasts_the_goal_is_the_served_learners_accuracy_before() -> None:
    measured = Recoveries()
    measured.add_shift(0, "90°")
    measured.add_shift(2_000, "0°")
    feed(measured, 500, *[(0.8, 0.7)] * 4, (0.6, 0.5), (0.5, 0.4), (0.6, 0.5), (0.79, 0.6))
    first, second = measured.shifts
    assert (first.end, first.goal, first.recovery_examples) == (2_000, None, {
        SERVED: None, ADAGRAD: None,
    })  # fmt: skip
    assert (second.end, second.goal) == (None, 0.8)
    assert second.recovery_examples == {SERVED: 1_000, ADAGRAD: None}


def test_once_the_segment_ends_the_goal_is_the_best_learners_end() -> None:
    measured = Recoveries()
    for example, what in ((0, "90°"), (2_000, "0°"), (5_000, "45°")):
        measured.add_shift(example, what)
    feed(measured, 500, *[(0.8, 0.7)] * 4)
    feed(measured, 2_500, (0.6, 0.6), (0.5, 0.4), (0.6, 0.5), (0.7, 0.6), (0.7, 0.68), (0.69, 0.7))
    feed(measured, 5_500, (0.5, 0.5))
    shift = measured.shifts[1]
    assert (shift.end, shift.goal) == (5_000, 0.7)
    assert shift.recovery_examples == {SERVED: 1_000, ADAGRAD: 1_500}


def test_a_shift_inside_a_dip_keeps_the_goal_of_the_earlier_one() -> None:
    measured = Recoveries()
    measured.add_shift(2_000, "pixels permuted")
    feed(measured, 500, *[(0.8, 0.7)] * 4, (0.6, 0.5), (0.4, 0.3), (0.5, 0.4))
    measured.add_shift(3_500, "labels permuted")
    feed(measured, 4_000, (0.3, 0.3), (0.5, 0.3))
    first, second = measured.shifts
    assert (first.end, first.goal) == (3_500, None)  # shorter than two windows
    assert first.recovery_examples == {SERVED: None, ADAGRAD: None}
    assert (second.goal, second.recovery_examples[SERVED]) == (0.8, None)
    feed(measured, 5_000, (0.79, 0.5))
    assert measured.shifts[1].recovery_examples == {SERVED: 500, ADAGRAD: None}


def test_the_end_of_the_stream_ends_the_last_segment() -> None:
    measured = Recoveries()
    measured.add_shift(2_000, "0°")
    feed(measured, 1_000, (0.9, 0.9), (0.9, 0.9), (0.9, 0.9), *[(0.5, 0.6)] * 4)
    assert measured.shifts[0].recovery_examples == {SERVED: None, ADAGRAD: None}
    measured.finish()
    [shift] = measured.shifts
    assert (shift.end, shift.goal) == (4_000, 0.6)
    assert shift.recovery_examples == {SERVED: None, ADAGRAD: 0}


def test_learners_without_a_score_and_points_of_the_past_are_ignored() -> None:
    measured = Recoveries()
    measured.add_shift(1_000, "0°")
    measured.add_point(1_000, {SERVED: 0.9, ADAGRAD: math.nan})
    measured.add_point(2_000, {SERVED: 0.9, ADAGRAD: math.nan})
    measured.add_point(500, {SERVED: 0.1, ADAGRAD: 0.1})
    assert measured.shifts[0].recovery_examples == {SERVED: 0}


@given(st.integers(0, 10_000), st.lists(st.integers(1, 60), max_size=4), st.integers(1, 8))
def test_it_measures_what_the_whole_curves_give(seed: int, gaps: list[int], every: int) -> None:
    rng = np.random.default_rng(seed)
    shifts = [100 * int(k) for k in np.cumsum(gaps)]
    grid = range(100 * every, shifts[-1] + 6_000 if shifts else 6_000, 100 * every)
    walks = np.clip(0.5 + np.cumsum(rng.normal(0, 0.05, (2, len(grid))), axis=1), 0, 1)
    measured = Recoveries()
    for example in shifts:
        measured.add_shift(example, "shift")
    for examples, served, adagrad in zip(grid, *walks.tolist(), strict=True):
        measured.add_point(examples, {SERVED: served, ADAGRAD: adagrad})
    measured.finish()
    curves = [list(zip(grid, walk, strict=True)) for walk in walks.tolist()]
    expected = recoveries(curves, shifts, grid[-1])
    found = [shift.recovery_examples for shift in measured.shifts if shift.goal is not None]
    assert [[one[name] for one in found] for name in (SERVED, ADAGRAD)] == expected
