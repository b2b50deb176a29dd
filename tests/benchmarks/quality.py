"""Prequential accuracy and recovery of the service's learner and its peers, on every stream.

    python -m tests.benchmarks.quality

Batches have 100 examples, and every model is logistic regression, except river's trees. The
service's learner runs with its defaults, and as `auto`, all families. The peers get inputs
standardized as the service does (the trees get raw inputs) and run with every setting of a grid.
Each stream shows the setting with the best mean over the seeds, an oracle that no user has; the
table of log loss and calibration error shows the one with the least log loss. A setting that is 2
points below its learner's best on the first seed is not run on the others. Intervals are 95 % of
the mean over seeds.

Each run becomes a line of --results when it ends, and is not run again. You can interrupt the
program and continue later, or run parts with --streams, --learners, --seeds and --seconds. To
repeat a learner, remove its lines.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import torch

from streams.peers.peers import PEERS
from streams.sources.catalog import Stream, get
from streams.sources.names import EXAMPLES, NAMES
from tests.benchmarks.accuracy.quality_runs import (
    OWN,
    Inputs,
    Key,
    Result,
    contenders,
    load,
    run,
    settings_of,
)
from tests.benchmarks.accuracy.quality_tables import (
    accuracy_table,
    best,
    grouped,
    lead_table,
    probability_table,
    recovery_table,
    settings_table,
)
from tests.benchmarks.accuracy.resumed import run_lacking


def lacking(
    found: Mapping[Key, Result], streams: Sequence[Stream], options: argparse.Namespace
) -> list[Key]:
    """Return the runs that are missing, as far as the results so far decide them."""
    keys = []
    for seed, stream, learner in product(options.seeds, streams, options.learners):
        if learner in OWN or not PEERS[learner].missing(stream):
            settings = settings_of(learner)
            if seed != options.seeds[0]:
                settings = contenders(found, stream, learner, options.seeds[0])
            keys += [Key(stream.name, learner, s, seed, stream.examples) for s in settings]
    return [key for key in keys if key not in found]


def run_all(options: argparse.Namespace) -> int:
    """Run what --results lacks for at most --seconds; return the number of runs left."""
    found = load(options.results)
    streams = {name: get(name, options.examples, options.source) for name in options.streams}
    return run_lacking(
        options.results,
        found,
        lambda: lacking(found, list(streams.values()), options),
        lambda key: Inputs(streams[key.stream], key.seed),
        run,
        lambda key: (key.stream, key.seed),
        options.seconds,
    )


def report(options: argparse.Namespace) -> str:
    """Return the tables as Markdown."""
    found = load(options.results)
    streams = [get(name, options.examples, options.source) for name in options.streams]
    taken = {
        (stream.name, learner): choice
        for stream in streams
        for learner in options.learners
        if (choice := best(found, stream, learner, options.seeds))
    }
    learners = [name for name in options.learners if any(n == name for _, n in taken)]
    parts = [accuracy_table(part, learners, taken) for part in grouped(streams)]
    by_loss = {
        (stream.name, learner): choice
        for stream in streams
        for learner in learners
        if (choice := best(found, stream, learner, options.seeds, by_loss=True))
    }
    parts += [probability_table(part, learners, by_loss) for part in grouped(streams)]
    parts += [lead_table(part, learners, taken) for part in grouped(streams)]
    shifting = [s for s in streams if any(shift.example for shift in s.shifts)]
    parts += [recovery_table(part, learners, taken) for part in grouped(shifting)]
    parts.append(settings_table(streams, learners, taken))
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*OWN, *PEERS]
    parser.add_argument("--results", type=Path, default=Path("quality.jsonl"), metavar="FILE")
    parser.add_argument("--streams", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--learners", nargs="+", default=known, choices=known, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N")
    parser.add_argument("--examples", type=int, default=EXAMPLES, metavar="N")
    parser.add_argument("--source", default="mnist", help="images: mnist or digits [mnist]")
    parser.add_argument("--seconds", type=float, default=math.inf, help="time to start runs in")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    left = 0 if options.report else run_all(options)
    print(f"{left} runs left" if left else report(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
