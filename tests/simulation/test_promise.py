"""The promise holds under schedules of faults: kills, restarts, pauses, outages, lost answers."""

from collections import Counter

import pytest

from tests.simulation.world import FAULTS, Outcome, Plan, simulate

SCHEDULES = 150
PART = 50


@pytest.mark.parametrize("first", range(0, SCHEDULES, PART))
def test_no_acknowledged_example_is_lost_or_learned_twice(first: int) -> None:
    events: Counter[str] = Counter()
    for seed in range(first, first + PART):
        events += simulate(Plan.of(seed)).events
    for kind in FAULTS:
        assert events[kind] > 0, "the schedules hold every kind of fault"
    assert events["reply lost: append_cuts"] > 0


def test_a_seed_repeats_its_schedule() -> None:
    one, other = simulate(Plan.of(7)), simulate(Plan.of(7))
    assert isinstance(one, Outcome)
    assert one == other
