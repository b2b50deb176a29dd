"""The compiled step of linear models, against the same step by operators: a part of
`tests.benchmarks.service`, in this process.

Contenders take turns in each round. The times are CPU time of the thread, so that they say little
about what else the machine does.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import torch

from service.fold.fused.rehearsal import rehearse
from service.fold.state import State
from service.fold.step import Fold
from service.process import keep_freed_memory
from service.settings import load_settings
from streams.batch import Batch
from tests.benchmarks.measure import Plan, batches, ratios, show, table

EXAMPLES = 6_000
"""Examples of a turn."""


class Contender:
    """A fold on a cycle of batches.

    Args:
        optimizer: of the model.
        size: of a batch.
        is_fused: whether compiled steps take the batches.
    """

    def __init__(self, optimizer: str, size: int, *, is_fused: bool) -> None:
        settings = load_settings({"model": "logistic", "optimizer": optimizer})
        spec = replace(settings.spec, is_fused=is_fused)
        self._fold = Fold(State(spec, settings.hyperparameters, torch.device("cpu")))
        self._batches: Iterator[Batch] = cycle(batches(size))
        self._count = EXAMPLES // size

    def turn(self) -> float:
        """Return microseconds of CPU time an example."""
        began = time.thread_time()
        for _ in range(self._count):
            self._fold.step(next(self._batches))
        return 1e6 * (time.thread_time() - began) / EXAMPLES


def run(plan: Plan) -> str:
    """Measure, and return the table."""
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"linear models run in {rehearse()}\n")
    cases = [(optimizer, size) for optimizer in ("pool", "funnel") for size in (100, 1000)]
    contenders = {
        (*case, is_fused): Contender(*case, is_fused=is_fused)
        for case in cases
        for is_fused in (False, True)
    }
    found = {key: list[float]() for key in contenders}
    for contender in contenders.values():
        contender.turn()
    for _ in plan.rounds("compiled"):
        for key, contender in contenders.items():
            found[key].append(contender.turn())
    rows = []
    for optimizer, size in cases:
        plain, compiled = (found[optimizer, size, is_fused] for is_fused in (False, True))
        times = (show(each, ".2f") for each in (plain, compiled))
        rows.append((optimizer, f"{size:,}", *times, ratios(plain, compiled)))
    head = ("optimizer", "batch", "operators, µs an example", "compiled", "operators ÷ compiled")
    return table(head, rows)
