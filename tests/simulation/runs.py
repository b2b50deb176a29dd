"""Runs of many schedules."""

from collections import Counter

from tests.simulation.plan import Plan
from tests.simulation.world import simulate


def failure(plan: Plan) -> str:
    """Run a plan; return how it failed, or nothing."""
    try:
        simulate(plan)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def run(first: int, count: int) -> tuple[Counter[str], dict[int, str]]:
    """Run some schedules; return the events and the failures by seed."""
    events: Counter[str] = Counter()
    broken: dict[int, str] = {}
    for seed in range(first, first + count):
        try:
            events += simulate(Plan.of(seed)).events
        except Exception as error:
            broken[seed] = f"{type(error).__name__}: {error}"
    return events, broken
