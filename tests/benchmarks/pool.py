"""The cost of a pool: a step of K experts in the service, as a multiple of a single Funnel's.

    python -m tests.benchmarks.pool [--experts 1,3,6] [--batch 100] [--rounds 15] [--device cuda]

The model is logistic regression with 784 inputs and 10 classes, on one thread. A turn is all that
the service does with a batch: copy it to the device, standardize, score, differentiate, update. All
contenders take turns in each round, so that noise hits all equally. The table gives the median over
the rounds, the lowest and the highest, and the same of the ratios in each round.

What bounds the figures. On a CPU at batch 100, a sixth of the time goes to two products of the
inputs with the weights of all experts. The rest goes to some fifteen passes over the optimizer's
state, which no longer fits the L2 cache, and, for experts of several steps per batch, to
dispatching as many small products and updates. At batch 1,000 the products take most. On a GPU a
step is replayed as one CUDA graph and costs the latencies of its kernels, one after the other;
those of several steps per batch cannot overlap.
"""

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle

import torch

from funnel.pool.expert import DEFAULT_EXPERTS
from service.fold.state import State
from service.process import keep_freed_memory
from service.settings import Settings
from tests.benchmarks.measure import batches, progress, ratios, show, table
from tests.support.states import step

TURNS = 60
"""Batches per round."""


def turn(optimizer: str, count: int, batch_size: int, device: str) -> Callable[[], object]:
    """Return a function that takes a step in the service, with ``count`` of the default experts."""
    settings = Settings.model_construct(model="logistic")
    spec = replace(settings.spec, optimizer=optimizer, experts=count)
    state = State(spec, settings.hyperparameters, torch.device(device))
    found = cycle(batches(batch_size)[:100])
    return lambda: step(state, next(found))


def microseconds(turn: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    for _ in range(TURNS):
        turn()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / TURNS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experts", default=f"1,3,{len(DEFAULT_EXPERTS)}")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    counts = [int(count) for count in args.experts.split(",")]
    turns = {"one Funnel": turn("funnel", 1, args.batch, args.device)}
    turns |= {f"pool of {k}": turn("pool", k, args.batch, args.device) for k in counts}
    found: dict[str, list[float]] = {name: [] for name in turns}
    for contender in turns.values():
        microseconds(contender, args.device)
    for number in range(args.rounds):
        progress(f"round {number + 1} of {args.rounds}")
        for name, contender in turns.items():
            found[name].append(microseconds(contender, args.device))
    progress("")
    base = next(iter(found.values()))
    rows = [(name, show(times, ",.0f"), ratios(times, base)) for name, times in found.items()]
    chip = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor()
    print(f"{chip or 'cpu'}; torch {torch.__version__}; {args.rounds} rounds\n")
    print(table((f"batch {args.batch}", "µs per batch", "× one Funnel"), rows))


if __name__ == "__main__":
    main()
