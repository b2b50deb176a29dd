"""Accuracy and cost of neighbours that compare categories, in turn with those that do not.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.categories [--seeds 0 1 2] [--streams led agrawal]

- *categories*: four categories of six values and four numbers; three of the categories decide the
  label, by a table of random bits. In *numbers* two of the numbers do, by an exclusive or.
- *led*, *agrawal*, *phishing*: streams of river, whose attributes of few values are sent as texts.
  The last one, of 1,250 rows, has no seed.

The others have 4,000 rows. Batches have 100 rows, or 25 where there are few. Accuracy and log loss
are those of the last two thirds of the batches, medians over the seeds and ranges. The ratio is
of the CPU time of all steps, of pairs of runs.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import orjson
import torch
from river import datasets
from river.datasets import synth

from service.fold.spec import Spec
from service.fold.state import State
from service.fold.step import Fold
from streams.rows.records import from_json
from tests.benchmarks.measure import progress, table
from tests.support.named import a_row_spec, extend
from tests.support.states import CPU, HYPERPARAMETERS

VALUES, COLUMNS, ROWS = 6, 4, 4_000
CATEGORIES = ("elevel", "car", "zipcode")
"""The attributes of *agrawal* that are categories."""
FAMILIES: dict[str, tuple[str, ...]] = {"linear and neighbours": ("linear", "neighbours")}
FAMILIES |= {"all families": ()}

Example = tuple[dict[str, object], str]


def of_kind(kind: str, seed: int) -> Iterator[Example]:
    """Yield rows in which the columns of a kind, categories or numbers, decide the label."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (VALUES,) * 3)
    for _ in range(ROWS):
        places, numbers = rng.integers(0, VALUES, COLUMNS), rng.normal(size=COLUMNS)
        label = bits[tuple(places[:3])] if kind == "categories" else numbers[0] * numbers[1] > 0
        row: dict[str, object] = {f"c{j}": f"value {v}" for j, v in enumerate(places)}
        yield row | {f"n{j}": float(v) for j, v in enumerate(numbers)}, ("no", "yes")[int(label)]


def led(seed: int) -> Iterator[Example]:
    """Yield digits of seven segments, some of them wrong, and 17 bits that say nothing."""
    found = synth.LED(seed=seed, noise_percentage=0.1, irrelevant_features=True)
    for row, label in itertools.islice(found, ROWS):
        yield {str(name): f"bit {value}" for name, value in row.items()}, str(label)


def agrawal(seed: int) -> Iterator[Example]:
    """Yield loans, which three categories and six numbers describe."""
    found = synth.Agrawal(classification_function=4, seed=seed)
    for row, label in itertools.islice(found, ROWS):
        own = {k: f"value {v}" if k in CATEGORIES else float(v) for k, v in row.items()}
        yield own, str(label)


def phishing(seed: int) -> Iterator[Example]:
    """Yield pages of the web, all of whose attributes have two or three values."""
    for row, label in datasets.Phishing():
        yield {name: f"value {value}" for name, value in row.items()}, str(label)


STREAMS: dict[str, Callable[[int], Iterator[Example]]] = {
    "categories": lambda seed: of_kind("categories", seed),
    "numbers": lambda seed: of_kind("numbers", seed),
    "led": led,
    "agrawal": agrawal,
    "phishing": phishing,
}


class Learned(NamedTuple):
    """How a model learned a stream."""

    accuracy: float
    loss: float
    """Mean log loss, nats."""
    seconds: float
    """CPU time of all steps."""


def learned(stream: str, spec: Spec, seed: int = 0) -> Learned:
    """Let a model learn a stream.

    Args:
        stream: one of STREAMS.
        spec: of the model.
        seed: of the stream.
    """
    examples = list(STREAMS[stream](seed))
    size = 100 if len(examples) >= ROWS else 25
    state, found, seconds = State(spec, HYPERPARAMETERS, CPU), [], 0.0
    fold = Fold(state)
    for first in range(0, len(examples), size):
        own, labels = zip(*examples[first : first + size], strict=True)
        rows = from_json(orjson.dumps({"rows": own, "labels": labels}), True)
        extend(state, rows)
        begin = time.process_time()
        report = fold.step(rows)
        seconds += time.process_time() - begin
        found.append((float(report.accuracy), float(report.loss)))
    accuracy, loss = np.mean(found[len(found) // 3 :], axis=0)
    return Learned(float(accuracy), float(loss), seconds)


def shown(values: list[float], digits: int = 3) -> str:
    """Return the median and the range."""
    least, most = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--streams", nargs="+", choices=list(STREAMS), default=list(STREAMS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for stream, (name, families) in itertools.product(args.streams, FAMILIES.items()):
        spec = replace(a_row_spec(model="auto"), is_narrow=True, families=families)
        pairs = []
        for seed in args.seeds if stream != "phishing" else [0]:
            progress(f"{stream}, {name}: seed {seed}")
            own = (replace(spec, compares_codes=compares) for compares in (False, True))
            pairs.append([learned(stream, one, seed) for one in own])
        for place, runs in enumerate(zip(*pairs, strict=True)):
            accuracy, loss = (shown([getattr(r, k) for r in runs]) for k in ("accuracy", "loss"))
            ratio = shown([b.seconds / a.seconds for a, b in pairs], 2) if place else ""
            what = ("numbers alone", "both")[place]
            rows.append((stream, name, what, accuracy, loss, ratio))
    progress("")
    print(table(("stream", "families", "compared", "accuracy", "log loss", "CPU time"), rows))


if __name__ == "__main__":
    main()
