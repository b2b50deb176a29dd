"""The worth of the expert `no_change`, the last known label: accuracy and log loss with it and
without.

    python -m tests.benchmarks.persistence --data FOLDER [--streams elec2:1 abrupt:100]

A stream is a name of `streams.sources.names`, or of a file NAME.csv.gz in FOLDER whose columns are
numbers and whose last one is the label; after a colon stands the size of a batch. The learner is
that of the service with its defaults. The floor is `no_change` alone.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from service.fold.scoring.classification import TOTAL
from service.fold.scoring.floors import FLOORS
from service.fold.scoring.measures import Measures
from service.fold.state import State
from service.fold.step import Fold
from service.process import keep_freed_memory
from service.settings import load_settings
from streams.batch import Batch, concatenate
from streams.sources.catalog import get
from streams.sources.names import NAMES
from tests.benchmarks.measure import table
from tests.support.states import CPU

FILES = (
    "elec2:1", "elec2:10", "elec2:100", "outdoor:1", "outdoor:10", "keystroke:1", "weather:100",
)  # fmt: skip
STREAMS = (
    "abrupt:100", "recurring:100", "gradual:100", "permuted:100", "labels:100", "stationary:100",
    "sea:100", "agrawal:100", "hyperplane:100", "rbf:100", "led:100", "bananas:100",
    "phishing:100", "segments:100", "shuttle:100",
)  # fmt: skip


HEAD = (
    "stream, batch", "examples", "`no_change` alone, %", "without, %", "with, %", "points",
    "log loss without", "with",
)  # fmt: skip


def examples_of(name: str, most: int, seed: int, data: Path | None) -> Batch:
    """Return at most so many examples of a stream, in their order."""
    if name in NAMES:
        return concatenate(list(get(name, most).batches(most, seed)))
    if data is None:
        raise SystemExit(f"--data must name the folder of {name}.csv.gz")
    rows = np.genfromtxt(data / f"{name}.csv.gz", delimiter=",", skip_header=1)[:most]
    _, labels = np.unique(rows[:, -1], return_inverse=True)
    return Batch(rows[:, :-1].astype(np.float32), labels.astype(np.int64))


def learned(examples: Batch, size: int, no_change: bool) -> State:
    """Return a state that has learned the examples in batches."""
    width, classes = examples.features.shape[1], int(examples.labels.max()) + 1
    settings = load_settings(
        {
            "model": "logistic",
            "features": width,
            "classes": max(2, classes),
            "batch_size": size,
            "device": "cpu",
        }
    )
    state = State(replace(settings.spec, no_change=no_change), settings.hyperparameters, CPU)
    fold = Fold(state)
    for first in range(0, len(examples), size):
        fold.step(examples.part(first, first + size))
    return state


def row(name: str, size: int, examples: Batch) -> tuple[str, ...]:
    """Return a row of the table."""
    plain, own = (learned(examples, size, no_change) for no_change in (False, True))

    def total(state: State) -> Measures:
        return state.served.scores.measure().windows[TOTAL]

    floor = own.floors.scores.measure(FLOORS.index("no_change")).windows[TOTAL]
    without, with_it = total(plain), total(own)
    gain = 100 * (with_it.accuracy - without.accuracy)
    return (
        f"{name}, {size}",
        f"{len(examples):,}",
        f"{100 * floor.accuracy:.2f}",
        f"{100 * without.accuracy:.2f}",
        f"{100 * with_it.accuracy:.2f}",
        f"{gain:+.2f}",
        f"{without.log_loss:.4f}",
        f"{with_it.log_loss:.4f}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", nargs="+", default=[*FILES, *STREAMS], metavar="NAME:BATCH")
    parser.add_argument("--examples", type=int, default=20_000, metavar="N", help="at most")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of the files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(table(HEAD, []), end="", flush=True)
    for given in options.streams:
        name, _, size = given.partition(":")
        found = examples_of(name, options.examples, options.seed, options.data)
        print(f"| {' | '.join(row(name, int(size or 100), found))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
