"""Prequential accuracy and recovery of the service's learner and its peers, on every stream.

    python -m tests.benchmarks.quality

Batches of 100; logistic regression, but for river's trees. The service's learner runs with its
defaults. The peers are given inputs standardized as the service does (the trees, the inputs as they
are), and every setting of a grid; the best in the mean over the seeds is shown for each stream, an
oracle that no user has. A setting that is 2 points behind its learner's best on the first seed is
out of the running, and not run on the others. Intervals are 95 %, of the mean over seeds.

Each run is a line of --results as soon as it is done, and is not run again: interrupt and go on, or
run parts with --streams, --learners, --seeds, --seconds. To run a learner anew, remove its lines.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from service.fold.spec import OPTIMIZERS
from streams.peers.peers import PEERS
from streams.sources.catalog import Stream, get
from streams.sources.names import EXAMPLES, NAMES
from tests.benchmarks.quality_runs import (
    OWN,
    Inputs,
    Key,
    Result,
    contenders,
    load,
    run,
    settings_of,
)
from tests.benchmarks.quality_tables import (
    accuracy_table,
    best,
    grouped,
    lead_table,
    recovery_table,
    settings_table,
)


def lacking(
    found: Mapping[Key, Result], streams: Sequence[Stream], options: argparse.Namespace
) -> list[Key]:
    """Return what is to be run yet, as far as can be said now."""
    keys = []
    for seed, stream, learner in product(options.seeds, streams, options.learners):
        if learner in OWN or not PEERS[learner].missing(stream):
            settings = settings_of(learner)
            if seed != options.seeds[0]:
                settings = contenders(found, stream, learner, options.seeds[0])
            keys += [Key(stream.name, learner, s, seed, stream.examples) for s in settings]
    return [key for key in keys if key not in found]


def run_lacking(options: argparse.Namespace) -> int:
    """Run what --results lacks, until --seconds are over; return how many runs are left."""
    began, found = time.monotonic(), load(options.results)
    streams = {name: get(name, options.examples, options.source) for name in options.streams}
    interval = 0.1 if sys.stderr.isatty() else 30.0
    with options.results.open("a") as out, tqdm(unit=" runs", mininterval=interval) as bar:
        while keys := lacking(found, list(streams.values()), options):
            bar.total = bar.n + len(keys)
            inputs = Inputs(streams[keys[0].stream], keys[0].seed)
            for key in keys:
                if (key.stream, key.seed) != (keys[0].stream, keys[0].seed):
                    break
                if time.monotonic() - began > options.seconds:
                    return len(keys)
                bar.set_postfix_str(f"{key.stream} {key.seed} {key.learner}", refresh=False)
                found[key] = run(key, inputs)
                out.write(json.dumps(key._asdict() | asdict(found[key])) + "\n")
                out.flush()
                bar.update()
    return 0


def report(options: argparse.Namespace) -> str:
    """Return the tables."""
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
    parts += [lead_table(part, learners, taken) for part in grouped(streams)]
    shifting = [s for s in streams if any(shift.example for shift in s.shifts)]
    parts += [recovery_table(part, learners, taken) for part in grouped(shifting)]
    parts.append(settings_table(streams, learners, taken))
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*(name for name in OWN if name in OPTIMIZERS), *PEERS]
    parser.add_argument("--results", type=Path, default=Path("quality.jsonl"), metavar="FILE")
    parser.add_argument("--streams", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--learners", nargs="+", default=known, choices=known, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N")
    parser.add_argument("--examples", type=int, default=EXAMPLES, metavar="N")
    parser.add_argument("--source", default="mnist", help="images: mnist or digits [mnist]")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run after these")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    left = 0 if options.report else run_lacking(options)
    print(f"{left} runs left" if left else report(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
