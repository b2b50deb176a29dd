"""What a step of all families costs, next to that of the pool and of river's forest.

    python -m tests.benchmarks.families

All learn the same stream in one run, in turn: batches of 100 of the stream `hyperplane` (10
features, two classes) after the first 6,000 examples, so that the memory is full. Times are CPU
seconds of one thread. Snapshots and answers are measured apart: a row, asked of a snapshot that
has answered before.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import torch

from service.fold.snapshot import Evaluator, Snapshot
from service.fold.state import State
from service.fold.step import Fold
from service.settings import load_settings
from streams.batch import Batch
from streams.peers.peers import PEERS
from streams.sources.catalog import Stream, get
from tests.benchmarks.measure import ratios, show, table

STREAM, BATCH, BEFORE = "hyperplane", 100, 60
CPU = torch.device("cpu")
FOREST, FOREST_TITLE = "river-forest", "river ARFClassifier, 10 trees"


def own(model: str) -> tuple[State, Fold]:
    settings = load_settings({"model": model, "features": 10, "classes": 2, "device": "cpu"})
    state = State(settings.spec, settings.hyperparameters, CPU)
    return state, Fold(state)


def forest(stream: Stream) -> Callable[[Batch], object]:
    peer = PEERS[FOREST]
    learner = next(iter(peer.settings.values()))(stream, 0)

    def learn(batch: Batch) -> None:
        learner.predict(batch.features)
        learner.learn(batch)

    return learn


def rates(batches: Sequence[Batch], learn: Callable[[Batch], object], rounds: int) -> list[float]:
    """Return examples a CPU second, by round."""
    for batch in batches[:BEFORE]:
        learn(batch)
    rest = batches[BEFORE:]
    size, found = len(rest) // rounds, []
    for k in range(rounds):
        began = time.process_time()
        for batch in rest[k * size : (k + 1) * size]:
            learn(batch)
        found.append(size * BATCH / (time.process_time() - began))
    return found


def milliseconds(state: State, batch: Batch, times: int = 100) -> list[float]:
    """Return how long one row takes, in milliseconds."""
    evaluate, snapshot, found = Evaluator(state.served), Snapshot.of(state), []
    evaluate(snapshot, batch.features[:1])
    for _ in range(times):
        began = time.perf_counter()
        evaluate(snapshot, batch.features[:1])
        found.append(1e3 * (time.perf_counter() - began))
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stream = get(STREAM, BATCH * (BEFORE + 8 * options.rounds))
    batches = list(stream.batches(BATCH, 0))
    (auto, whole), (_, fast), (_, pool) = own("auto"), own("auto"), own("logistic")
    learners: dict[str, Callable[[Batch], object]] = {
        "all families": whole.step,
        "all families, effort fast": lambda batch: fast.step(batch, is_fast=True),
        "the pool (logistic)": pool.step,
        FOREST_TITLE: forest(stream),
    }
    found = {name: rates(batches, learn, options.rounds) for name, learn in learners.items()}
    base = found[FOREST_TITLE]
    rows = [[name, show(own, ",.0f"), ratios(own, base)] for name, own in found.items()]
    print(table(["learner", "examples/s of CPU time", "times the forest's"], rows))
    taken = milliseconds(auto, batches[-1])
    print(f"one row: median {taken[len(taken) // 2]:.2f} ms, p99 {taken[-2]:.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
