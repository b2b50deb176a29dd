"""The speed of learning sparse inputs: a part of `tests.benchmarks.service`, in this process.

Examples have 13 dense inputs and 26 categories whose values follow Zipf's law, as in advertising
[Criteo]; the pool has its default experts and two classes. A step is all of it: the index, gather,
score, decide, update and scatter.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from funnel import Pool
from funnel.pool.expert import for_width
from funnel.pool.pool import Decision
from funnel.pool.sparse import Inputs
from funnel.pool.tables.table import Table
from tests.benchmarks.measure import Plan, show, table
from tests.support.pools import KEEP
from tests.support.sparse import SparseBatch

DENSE, CATEGORIES, BITS, EXPONENT = 13, 26, 20, 1.2
VALUES = 100_000
"""Different values of a category."""
PARTS = ("index", "gather", "score and decide", "update", "scatter")
Observe = Callable[[Inputs, Tensor], Decision]
WARM = 40
"""Batches that do not count: shapes recur, and traces are made."""


def batches(size: int, count: int, seed: int = 0) -> list[SparseBatch]:
    random = np.random.default_rng(seed)
    truth = random.normal(size=DENSE).astype(np.float32)
    found = []
    for _ in range(count):
        values = np.minimum(random.zipf(EXPONENT, (size, CATEGORIES)), VALUES).astype(np.uint64)
        keys = values * np.uint64(CATEGORIES) + np.arange(CATEGORIES, dtype=np.uint64)
        dense = random.normal(size=(size, DENSE)).astype(np.float32)
        found.append(
            SparseBatch(
                torch.from_numpy(dense),
                np.repeat(np.arange(size), CATEGORIES),
                keys.flatten() * np.uint64(0xD6E8FEB86659FD93),
                np.ones(size * CATEGORIES, dtype=np.float32),
                torch.from_numpy((dense @ truth > 0) ^ (values[:, 0] > 1)).long(),
            )
        )
    return found


class Steps:
    """Whole steps on a table, traced as the service traces them."""

    def __init__(self) -> None:
        module = nn.Linear(DENSE, 2)
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
        active = DENSE + CATEGORIES
        self.table = Table(Pool(module, DENSE, for_width(active)), BITS, active)
        self._observe: dict[int, Observe] = {}
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def take(self, batch: SparseBatch) -> None:
        times = [time.perf_counter()]
        rows, inputs = self.table.admit(batch.dense, batch.examples, batch.keys, batch.values)
        times.append(time.perf_counter())
        pool = self.table.gather(rows)
        times.append(time.perf_counter())
        decision = self._observer(pool)(inputs, batch.labels)
        times.append(time.perf_counter())
        pool.update(inputs, batch.labels, decision)
        times.append(time.perf_counter())
        self.table.scatter(rows, pool)
        times.append(time.perf_counter())
        for part, (began, ended) in zip(PARTS, pairwise(times), strict=True):
            self.seconds[part] += ended - began

    def _observer(self, pool: Pool) -> Observe:
        if id(pool) not in self._observe:
            tensors = pool.tensors().values()
            self._observe[id(pool)] = pool.execution.part(partial(_observed, pool), tensors)
        return self._observe[id(pool)]


def _observed(pool: Pool, inputs: Inputs, labels: Tensor) -> Decision:
    return pool.decide(pool.score(inputs, labels), KEEP)


def measure(size: int, threads: int, seconds: float) -> tuple[float, dict[str, float]]:
    """Return the rows per second, and the milliseconds of each part of a step."""
    torch.set_num_threads(threads)
    steps, found = Steps(), batches(size, 60)
    with torch.inference_mode():
        for batch in found[:WARM] * (1000 // size + 1 if size < 1000 else 1):
            steps.take(batch)
        steps.seconds = dict.fromkeys(PARTS, 0.0)
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for batch in found[WARM:]:
                steps.take(batch)
                count += 1
        spent = time.perf_counter() - began
    return size * count / spent, {k: 1000 * v / count for k, v in steps.seconds.items()}


def run(plan: Plan) -> str:
    """Measure batches of 1,000 and 100 with one and two threads, and return the table."""
    found: dict[tuple[int, int], list[tuple[float, dict[str, float]]]] = {
        (size, threads): [] for size in (1000, 100) for threads in (1, 2)
    }
    for _ in plan.rounds("table"):
        for (size, threads), results in found.items():
            results.append(measure(size, threads, plan.seconds))
    torch.set_num_threads(1)
    lines = [
        (
            f"{size:,}",
            str(threads),
            show([rate for rate, _ in results], ",.0f"),
            *(show([spent[part] for _, spent in results], ".2f") for part in PARTS),
        )
        for (size, threads), results in found.items()
    ]
    return table(("batch", "threads", "rows/s", *(f"{part}, ms" for part in PARTS)), lines)
