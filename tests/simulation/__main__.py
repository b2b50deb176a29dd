"""Run many schedules of faults, or one: python -m tests.simulation --schedules 1000 --seed 0."""

import argparse
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context

from tests.simulation.plan import Plan, shrink
from tests.simulation.runs import failure, run
from tests.simulation.world import simulate

BLOCK = 50
"""Schedules that a worker runs at a time."""


def replay(plan: Plan, is_small: bool) -> int:
    """Run one schedule, and print all that happens."""
    if is_small and failure(plan):
        plan = shrink(plan, lambda smaller: bool(failure(smaller)))
    trace: list[str] = []
    error = ""
    try:
        simulate(plan, trace)
    except Exception:
        error = traceback.format_exc()
    print(plan, *trace, error or "every promise held", sep="\n")
    return 1 if error else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=1_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=1, help="processes that run them")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one, and print its trace")
    parser.add_argument("--shrink", action="store_true", help="replay a smaller one that fails")
    parser.add_argument("--labels", action="store_true", help="clients ask, and label later")
    parser.add_argument("--stored", action="store_true", help="checkpoints in object storage")
    options = parser.parse_args()
    plan_of = Plan.asking if options.labels else Plan.stored if options.stored else Plan.of
    if options.replay is not None:
        return replay(plan_of(options.replay), options.shrink)
    began, events, failed = time.monotonic(), Counter[str](), 0
    starts = range(options.seed, options.seed + options.schedules, BLOCK)
    sizes = [min(BLOCK, options.seed + options.schedules - start) for start in starts]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for found, broken in pool.map(run, starts, sizes, repeat(plan_of)):
            events += found
            for seed, how in broken.items():
                failed += 1
                more = " --labels" * options.labels or " --stored" * options.stored
                again = f"python -m tests.simulation --replay {seed} --shrink{more}"
                print(f"seed {seed}: {how}\n  {again}")
    seconds = time.monotonic() - began
    print(f"{options.schedules} schedules in {seconds:.1f} s; {dict(events.most_common())}")
    print(f"{failed} broke a promise" if failed else "every promise held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
