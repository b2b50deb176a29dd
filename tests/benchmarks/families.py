"""What a step of all families costs, next to that of the pool and of river's forest.

    python -m tests.benchmarks.families [--only numbers images service]

All learn the same stream in one run, in turn, after the first 6,000 examples, so that the memory
is full. Times are CPU seconds of one thread.

- **numbers**: batches of 100 of the stream `hyperplane` (10 features, two classes). It is also
  learned as numbers, of 0.0 and 1.0.
- **images**: batches of 100 of the stream `abrupt` (784 features, ten classes); river's forest
  learns two of them.
- **service**: the same images over HTTP with every batch learned by all families, flat out.

*Operators* has the torch operators instead of compiled loops. Answers are measured apart, of one
row while the families learn: after each step a row is asked of a new snapshot, and 4 more of it.
CPU time, too.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from funnel.compiled import plainly
from funnel.families.rehearsal import rehearse
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.state import State
from service.fold.step import Fold
from service.settings import load_settings
from streams.batch import Batch
from streams.peers.peers import PEERS
from streams.sources.catalog import Stream, get
from tests.benchmarks.measure import batches as image_batches
from tests.benchmarks.measure import encoded, ratios, show, table
from tests.benchmarks.parts.learning import measured
from tests.benchmarks.parts.load import BYTES

BATCH, BEFORE, STEPS = 100, 60, 8
CPU = torch.device("cpu")
FOREST, FOREST_TITLE = "river-forest", "river ARFClassifier, 10 trees"
SECONDS = 20.0
BACKLOG = 20_000
"""Limit of waiting examples: what is left when senders stop is learned, too."""


def own(model: str, stream: Stream, task: str = "multiclass") -> tuple[State, Fold]:
    shape = {"classes": stream.classes} if task == "multiclass" else {}
    shape["features"] = stream.width
    settings = load_settings({"model": model, "device": "cpu", "task": task, **shape})
    state = State(settings.spec, settings.hyperparameters, CPU)
    return state, Fold(state)


def forest(stream: Stream) -> Callable[[Batch], object]:
    peer = PEERS[FOREST]
    learner = peer.settings["n_models 10"](stream, 0)

    def learn(batch: Batch) -> None:
        learner.predict(batch.features)
        learner.learn(batch)

    return learn


def by_operators(fold: Fold) -> Callable[[Batch], object]:
    def learn(batch: Batch) -> None:
        with plainly():
            fold.step(batch)

    return learn


def numeric(task: str, stream: Stream) -> Callable[[Batch], object]:
    _, fold = own("auto", stream, task)
    return lambda batch: fold.step(Batch(batch.features, batch.labels.astype(np.float32)))


def rates(
    batches: Sequence[Batch],
    learn: Callable[[Batch], object],
    rounds: int,
    before: int = BEFORE,
    steps: int = STEPS,
) -> list[float]:
    """Return examples a CPU second, by round."""
    for batch in batches[:before]:
        learn(batch)
    rest, found = batches[before:], []
    for k in range(rounds):
        began = time.process_time()
        for batch in rest[k * steps : (k + 1) * steps]:
            learn(batch)
        found.append(steps * BATCH / (time.process_time() - began))
    return found


def asked(batches: Sequence[Batch], state: State, fold: Fold) -> tuple[list[float], list[float]]:
    """Return how long one row takes, in milliseconds: the first of a snapshot, and others."""
    evaluate = Evaluator(state.served)
    first: list[float] = []
    others: list[float] = []
    for batch in batches:
        fold.step(batch)
        snapshot = Snapshot.of(state)
        for found in (first, others, others, others, others):
            began = time.process_time()
            evaluate(snapshot, batch.features[:1])
            found.append(1e3 * (time.process_time() - began))
    return sorted(first), sorted(others)


def percentiles(values: Sequence[float]) -> str:
    return f"median {values[len(values) // 2]:.2f} ms, p99 {values[int(0.99 * len(values))]:.2f} ms"


def offline(name: str, rounds: int, steps_of_forest: int) -> None:
    """Print the rates of all learners on a stream, and how long answers take."""
    stream = get(name, BATCH * (BEFORE + STEPS * rounds))
    batches = list(stream.batches(BATCH, 0))
    auto, whole = own("auto", stream)
    (_, fast), (_, plain), (_, pool) = (own(m, stream) for m in ("auto", "auto", "logistic"))
    learners: dict[str, Callable[[Batch], object]] = {
        "all families": whole.step,
        "all families, operators": by_operators(plain),
        "all families, effort fast": lambda batch: fast.step(batch, is_fast=True),
        "the pool (logistic)": pool.step,
    }
    if stream.classes == 2:
        learners["all families, a number"] = numeric("regression", stream)
        learners["all families, three quantiles"] = numeric("quantile:0.1,0.5,0.9", stream)
    found = {name: rates(batches, learn, rounds) for name, learn in learners.items()}
    few = {} if steps_of_forest == STEPS else {"before": 2}
    base = found[FOREST_TITLE] = rates(
        batches, forest(stream), rounds, steps=steps_of_forest, **few
    )
    rows = [[name, show(own, ",.0f"), ratios(own, base)] for name, own in found.items()]
    print(f"{name}, {stream.width} features, {stream.classes} classes")
    print(table(["learner", "examples/s of CPU time", "times the forest's"], rows))
    first, others = asked(batches[-40:], auto, whole)
    print(f"one row: {percentiles(others)}; the first of a snapshot: {percentiles(first)}\n")


def over_http(rounds: int) -> None:
    """Print the rate of the service."""
    bodies = encoded(image_batches(BATCH), BYTES)
    settings = {"model": "auto", "effort": "full", "batch_size": BATCH}
    found = [
        measured(bodies, BYTES, SECONDS, max_backlog=BACKLOG, **settings) for _ in range(rounds)
    ]
    print(f"service: {show([rate for rate, _ in found], ',.0f')} examples/s,")
    print(f"{show([spent for _, spent in found], ',.0f')} ms of CPU time for 1,000 examples")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("numbers", "images", "service")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    print(f"{rehearse()}, {time.process_time() - began:.1f} s of CPU time to start\n")
    if "numbers" in options.only:
        offline("hyperplane", options.rounds, STEPS)
    if "images" in options.only:
        offline("abrupt", options.rounds, 1)
    if "service" in options.only:
        over_http(options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
