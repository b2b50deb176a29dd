"""How long learning stops for a renewal: a part of `tests.benchmarks.service`, in this process.

The table has a million rows of the default pool with two classes.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from funnel import Pool
from funnel.pool.expert import for_width
from funnel.pool.tables.table import Table
from tests.benchmarks.measure import Plan, show, table

ROWS, DENSE, BITS = 1_000_000, 13, 20
THREE = torch.tensor([True, True, True, False, False, False])


def milliseconds(act: Callable[[], object]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    act()
    return 1e3 * (time.perf_counter() - began)


def run(plan: Plan) -> str:
    """Measure, and return the table."""
    torch.set_num_threads(1)
    learner = Table(Pool(nn.Linear(DENSE, 2), DENSE, for_width(39)), BITS, active=39)
    rows, few = learner.rows, torch.arange(0, ROWS, 50)
    rows.use(ROWS)
    rows.weights.normal_()
    learner.published()
    weights = learner.pool.mixing.log_weights
    acts: dict[str, Callable[[], object]] = {
        "three experts renewed": lambda: rows.from_the_start(THREE),
        "then a copy for predictions": learner.published,
        "one expert a copy of the best": lambda: rows.from_best(torch.arange(6) == 2, weights),
        f"then {len(few):,} rows read and written": lambda: rows.write(few, *rows.read(few)),
        "then all rows, as for a checkpoint": lambda: rows.copied(torch.arange(ROWS)),
        "all rows once more": lambda: rows.copied(torch.arange(ROWS)),
    }
    found: dict[str, list[float]] = {name: [] for name in acts}
    for _ in plan.rounds("renewal"):
        learner.published()
        for name, act in acts.items():
            found[name].append(milliseconds(act))
    assert np.isfinite(rows.weights[:ROWS].numpy()).all()
    lines = [(name, show(times, ",.1f")) for name, times in found.items()]
    return table((f"{ROWS:,} rows", "ms"), lines)
