"""Runs of many schedules."""

import gc
from collections import Counter
from collections.abc import Callable

from tests.simulation.plan import Plan
from tests.simulation.world import simulate
from tests.support.states import forget_traces

COLLECTED = 20
"""Runs after which garbage is collected."""


def failure(plan: Plan) -> str:
    """Run a plan; return how it failed, or nothing."""
    try:
        simulate(plan)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def run(
    first: int, count: int, plan_of: Callable[[int], Plan] = Plan.of
) -> tuple[Counter[str], dict[int, str]]:
    """Run some schedules; return the events and the failures by seed.

    Args:
        first: of the seeds.
        count: of the schedules.
        plan_of: returns the plan of a seed.
    """
    events: Counter[str] = Counter()
    broken: dict[int, str] = {}
    gc.disable()  # a run makes little garbage, and collections take a tenth of the time
    for seed in range(first, first + count):
        try:
            events += simulate(plan_of(seed)).events
        except Exception as error:
            broken[seed] = f"{type(error).__name__}: {error}"
        if seed % COLLECTED == 0:
            forget_traces()
    gc.enable()
    forget_traces()
    return events, broken
