"""What a pool costs: observe and step of K experts, as a multiple of one expert.

    python -m tests.benchmarks.pool [--experts 1,4,12] [--batch 100] [--rounds 15]

Logistic regression, 784 inputs and 10 classes, one thread. A turn is observing (standardize, score,
differentiate, cap) and the update, both traced, as the service does for a plain model on a CPU.
All contenders take their turns within each round, so that noise hits all alike. Given are the
median over the rounds, the lowest and the highest, and the same of the ratios within each round.
"""

import argparse
import time
from collections.abc import Callable
from itertools import cycle

import torch

from funnel.expert import DEFAULT_EXPERTS
from service import models
from service.fold import State, step
from service.settings import Settings
from service.upload import Upload
from tests.benchmarks.measure import batches, progress, ratios, show, table
from tests.benchmarks.pooled import PoolLearner

TURNS = 60
"""Batches in a round."""


def single(batch_size: int) -> Callable[[], object]:
    """Return a turn of the service's single Funnel."""
    defaults = Settings.model_construct(optimizer="funnel")
    state = State(defaults.spec, defaults.rates, torch.device("cpu"))
    found = cycle(batches(batch_size)[:100])
    return lambda: step(state, next(found))


def pool(count: int, batch_size: int) -> Callable[[], object]:
    """Return a turn of a pool of the first experts of the default, over again if there are less."""
    experts = [DEFAULT_EXPERTS[k % len(DEFAULT_EXPERTS)] for k in range(count)]
    learner = PoolLearner(models.build("logistic", 784, 10, (), 0), 784, 10, experts)
    upload, found = Upload(torch.device("cpu")), cycle(batches(batch_size)[:100])
    return lambda: learner.step(*upload(next(found)))


def microseconds(turn: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(TURNS):
        turn()
    return (time.perf_counter() - began) / TURNS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experts", default=f"1,4,{len(DEFAULT_EXPERTS)}")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    turns = {"one Funnel, the service's step": single(args.batch)}
    counts = [int(count) for count in args.experts.split(",")]
    turns |= {f"pool of {count}": pool(count, args.batch) for count in counts}
    found: dict[str, list[float]] = {name: [] for name in turns}
    for turn in turns.values():
        microseconds(turn)
    for number in range(args.rounds):
        progress(f"round {number + 1} of {args.rounds}")
        for name, turn in turns.items():
            found[name].append(microseconds(turn))
    progress("")
    base = next(iter(found.values()))
    rows = [(name, show(times, ",.0f"), ratios(times, base)) for name, times in found.items()]
    print(table((f"batch {args.batch}", "µs a batch", "× one Funnel"), rows))


if __name__ == "__main__":
    main()
