"""Run many schedules of faults: python -m tests.simulation --seeds 1000 --first 0."""

import argparse
import sys
import time
import traceback
from collections import Counter

from tests.simulation.world import Plan, simulate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="number of schedules")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    began, events, broken = time.monotonic(), Counter[str](), []
    for seed in range(options.first, options.first + options.seeds):
        try:
            events += simulate(Plan.of(seed)).events
        except Exception:
            broken.append(seed)
            print(f"seed {seed}:\n{traceback.format_exc()}")
    print(f"{options.seeds} schedules in {time.monotonic() - began:.1f} s; {dict(events)}")
    print(f"broken: {broken}" if broken else "every promise held")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
