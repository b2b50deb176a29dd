"""Prequential accuracy of pools on the six streams, which chose the default pool.

    python -m tests.benchmarks.poolselect [--seeds 100,101] [--pools NAME …] [--cache DIRECTORY]

The names are those in `tests.benchmarks.accuracy.pools`. Each pool learns 60,000 examples of each
stream in batches of 100 as the service does: standardized online, gradients capped, one pass.
Selection uses seeds 100 and 101 alone; reported figures use other seeds. Streams are generated once
and kept in ``--cache``.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from service.fold import networks as models
from service.fold.inputs import to_inputs
from streams.sources.catalog import IMAGE_STREAMS, get
from tests.benchmarks.accuracy.pooled import PoolLearner
from tests.benchmarks.accuracy.pools import POOLS, Candidate
from tests.benchmarks.measure import progress, table

BATCH = 100


def batches(name: str, seed: int, cache: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield inputs and labels of a stream."""
    file = cache / f"{name}-{seed}.npz"
    if not file.exists():
        stream = get(name)
        whole = next(stream.batches(stream.examples, seed))
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, features=whole.features, labels=whole.labels)
    held = np.load(file)
    features, labels = held["features"], torch.from_numpy(held["labels"])
    for k in range(0, len(labels), BATCH):
        yield to_inputs(features[k : k + BATCH], torch.device("cpu")), labels[k : k + BATCH]


def accuracy(candidate: Candidate, name: str, seed: int, cache: Path) -> float:
    """Return the share of correct predictions on the stream, in percent."""
    learner = PoolLearner(
        models.build("logistic", 784, 10, (), 0), 784, 10, candidate.experts, **candidate.mixing
    )
    for inputs, labels in batches(name, seed, cache):
        learner.step(inputs, labels)
    return 100 * learner.scores.read().accuracy


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="100,101")
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=list(POOLS), metavar="NAME")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/funnel-streams"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    rows = []
    for pool in args.pools:
        found = []
        for name in IMAGE_STREAMS:
            progress(f"{pool}: {name}")
            each = [accuracy(POOLS[pool], name, seed, args.cache) for seed in seeds]
            found.append(float(np.mean(each)))
        rows.append((pool, str(len(POOLS[pool].experts)), f"{np.mean(found):.2f}",
                     *(f"{a:.1f}" for a in found)))  # fmt: skip
    progress("")
    print(table(("pool", "K", "mean", *IMAGE_STREAMS), rows))


if __name__ == "__main__":
    main()
