"""Coverage of the deviations that regression answers, while errors change their size at once.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.deviation [--batch 100] [--seeds 0 1 2 3 4]

The stream is a linear relation of ten inputs with normal noise, 20,000 examples of which the second
half has a tenth of the noise, or ten times as much. The table has the share of the numbers within
1.2816 deviations of the answer, which should be 80 %, by examples after the change: means over the
seeds, of the slow running mean of squares alone, as models before had it, of both, and of both as
they follow jumps (`funnel.pool.deviation`). In the last stream the numbers are all the same for
10,000 examples before they change as they did.
"""

import argparse
import statistics
from dataclasses import replace

import numpy as np
import torch

from service.fold.snapshot import Evaluator, Snapshot
from service.fold.state import State
from service.settings import Settings
from streams.batch import Batch
from tests.benchmarks.measure import progress, table
from tests.support.states import CPU, step

WITHIN = 1.2816
HALF = 10_000
SEGMENTS = ((-5_000, 0), (0, 500), (500, 1_000), (1_000, 2_000), (2_000, HALF))
CHANGES = {"a tenth": (1.0, 0.1), "ten times": (0.1, 1.0), "after a constant": (0.0, 1.0)}


MEANS = {"the slow one": (False, False), "both": (True, False), "both, with jumps": (True, True)}
"""Of the spec, `is_quick` and `follows_jumps`."""


def inside(
    noise: tuple[float, float], seed: int, size: int, is_quick: bool, follows_jumps: bool
) -> list[float]:
    """Return the share of the numbers within the deviations of the answers, by segment."""
    rng = np.random.default_rng(seed)
    inputs, weights = rng.normal(size=(2 * HALF, 10)).astype(np.float32), rng.normal(size=10)
    numbers = inputs @ weights + np.repeat(noise, HALF) * rng.normal(size=2 * HALF)
    if not noise[0]:
        numbers[:HALF] = 1.0
    settings = Settings.model_construct(model="logistic", task="regression")
    spec = replace(settings.spec, features=10, classes=0)
    spec = replace(spec, is_quick=is_quick, follows_jumps=follows_jumps)
    state, found = State(spec, settings.hyperparameters, CPU), []
    evaluator = Evaluator(state.served)
    for at in range(0, 2 * HALF, size):
        own, targets = inputs[at : at + size], numbers[at : at + size]
        if at:
            _, answers = evaluator(Snapshot.of(state), own)
            values, deviations = answers.numpy().T
            found.append(np.abs(values - targets) <= WITHIN * deviations)
        step(state, Batch(own, targets.astype(np.float32)))
    hits = np.concatenate([np.zeros(size, bool), *found])
    return [float(hits[HALF + start : HALF + stop].mean()) for start, stop in SEGMENTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for change, noise in CHANGES.items():
        for name, flags in MEANS.items():
            runs = []
            for seed in args.seeds:
                progress(f"{change}, {name}: seed {seed}")
                runs.append(inside(noise, seed, args.batch, *flags))
            means = [f"{statistics.mean(one):.1%}" for one in zip(*runs, strict=True)]
            rows.append((change, name, *means))
    progress("")
    print(table(("noise", "means", *(f"{a:,} to {b:,}" for a, b in SEGMENTS)), rows))


if __name__ == "__main__":
    main()
