"""Checkpoints of a large table, in this process: a part of `tests.benchmarks.service`.

The table has the rows of the default pool of a logistic model with two classes, all of them
learned. Between two checkpoints one row in a hundred changes.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from funnel.pool.tables.index import Numbers
from funnel.pool.tables.table import Table
from service.fold.state import State
from service.log.position import Progress
from service.settings import load_settings
from service.trainer.checkpoint import Checkpoint
from service.trainer.disk import SystemDisk
from service.trainer.store import CheckpointStore
from tests.benchmarks.measure import Plan, show, table

ROWS, SHARE, BITS = 1_000_000, 0.01, 24
COUNT = 12
"""Checkpoints in a round, after the first of each side."""
MB = 1e6


class CountingDisk(SystemDisk):
    """The machine's, and how many bytes are written to it."""

    def __init__(self) -> None:
        self.written = 0

    def rename(self, old: Path, new: Path) -> None:
        self.written += old.stat().st_size
        super().rename(old, new)


def a_state(random: np.random.Generator) -> tuple[State, Table]:
    """Return a state with a table of ROWS rows."""
    settings = load_settings({"model": "logistic", "schema": "auto", "table_bits": BITS})
    state = State(settings.spec, settings.hyperparameters, torch.device("cpu"))
    found = state.served.table
    assert found is not None
    while (missing := ROWS - found.index.used) > 0:
        found.index.admit(random.integers(0, 2**63, missing).astype(np.uint64))
    found.rows.use(ROWS)
    learn(found, np.arange(ROWS))
    return state, found


def learn(table: Table, rows: Numbers) -> None:
    """Change rows as a batch does; they are ascending."""
    held = table.rows
    shapes = ((len(rows), each.shape[1]) for each in (held.weights, held.state))
    held.write(torch.from_numpy(rows), *(torch.rand(*shape) for shape in shapes))


def spread(random: np.random.Generator, count: int) -> Numbers:
    """Return rows from everywhere."""
    return np.sort(random.choice(ROWS, count, replace=False))


def together(random: np.random.Generator, count: int) -> Numbers:
    """Return rows that were new at one time."""
    first = random.integers(ROWS - count)
    return np.arange(first, first + count)


def measure(draw: Callable[[np.random.Generator, int], Numbers], is_whole: bool) -> list[float]:
    """Return means: milliseconds of the copy, seconds of writing, MB written; MB kept; and
    seconds of loading."""
    random, folder = np.random.default_rng(0), Path(tempfile.mkdtemp())
    state, rows = a_state(random)
    disk, found = CountingDisk(), []
    store = CheckpointStore(folder, {}, print, disk)
    with patch("service.trainer.blocks.LEAST_BYTES", 1 << 62) if is_whole else nullcontext():
        for cut in range(COUNT + 2):
            progress, before = replace(Progress("", 1), cut=cut), disk.written
            began = time.perf_counter()
            copy = Checkpoint.of(state, progress, None if is_whole else store.ledger)
            copied = time.perf_counter()
            store.write(copy)
            ended = time.perf_counter()
            found.append((1e3 * (copied - began), ended - copied, (disk.written - before) / MB))
            learn(rows, draw(random, int(SHARE * ROWS)))
        began = time.perf_counter()
        assert CheckpointStore(folder, {}, print).load() is not None
        loaded = time.perf_counter() - began
    kept = sum(path.stat().st_size for path in folder.iterdir()) / MB
    shutil.rmtree(folder)
    return [*np.mean(found[2:], axis=0).tolist(), kept, loaded]


def run(plan: Plan) -> str:
    """Measure checkpoints in one file and in chunks in turn in each round."""
    kinds = {
        "all in one file": partial(measure, spread, True),
        "chunks, rows from everywhere": partial(measure, spread, False),
        "chunks, rows that were new together": partial(measure, together, False),
    }
    results: dict[str, list[list[float]]] = {name: [] for name in kinds}
    for _ in plan.rounds("checkpoints"):
        for name, one in kinds.items():
            results[name].append(one())
    formats = (".0f", ".2f", ".0f", ",.0f", ".2f")
    lines = [
        (name, *map(show, zip(*rounds, strict=True), formats)) for name, rounds in results.items()
    ]
    head = ("checkpoint", "learning stops, ms", "writing, s", "MB written", "MB kept", "loading, s")
    return table(head, lines)
