"""Batches of sparse inputs, and pools and tables that learn them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from funnel import Pool
from funnel.pool.expert import Expert, for_width
from funnel.pool.pool import Scored
from funnel.pool.sparse import Sparse, compacted
from funnel.pool.tables.index import Keys
from funnel.pool.tables.table import Table
from service.fold import networks

DENSE, CLASSES, N = 3, 4, 40


class SparseBatch(NamedTuple):
    """n examples with dense inputs and keys."""

    dense: Tensor
    examples: npt.NDArray[np.int64]
    keys: Keys
    values: npt.NDArray[np.float32]
    labels: Tensor


def sparse_batches(
    count: int, seed: int = 0, dense: int = DENSE, categories: int = 5, n: int = N, shift: int = 0
) -> Iterator[SparseBatch]:
    """Yield batches whose labels depend on one input and one category."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        values = np.minimum(random.zipf(1.3, (n, categories)), 10_000).astype(np.uint64)
        keys = values * np.uint64(64) + np.arange(categories, dtype=np.uint64)
        inputs = random.normal(size=(n, dense)).astype(np.float32)
        own = (inputs[:, 0] > 0) if dense else np.zeros(n, dtype=np.int64)
        labels = (own + 2 * (values[:, 0] > 1) + shift) % CLASSES
        yield SparseBatch(
            torch.from_numpy(inputs),
            np.repeat(np.arange(n), categories),
            keys.flatten() * np.uint64(0xD6E8FEB86659FD93),
            np.ones(n * categories, dtype=np.float32),
            torch.from_numpy(labels.astype(np.int64)),
        )


def module(
    hidden: tuple[int, ...] = (), features: int = DENSE, classes: int = CLASSES
) -> nn.Module:
    return networks.build("mlp" if hidden else "logistic", features, classes, hidden, seed=3)


def table(
    hidden: tuple[int, ...] = (),
    experts: tuple[Expert, ...] | None = None,
    bits: int = 12,
    device: torch.device | str = "cpu",
) -> Table:
    chosen = for_width(8) if experts is None else experts
    return Table(Pool(module(hidden).to(device), DENSE, chosen), bits, active=8)


def learn_sparse(table: Table, batch: SparseBatch, written_out: bool = False) -> Scored:
    """Learn a batch; its inputs may be written out first, as they are on any device but a CPU."""
    device = table.pool.device
    dense, labels = batch.dense.to(device), batch.labels.to(device)
    rows, inputs = table.admit(dense, batch.examples, batch.keys, batch.values)
    pool = table.gather(rows)
    features = pool.columns()["weight"].shape[2]
    if written_out and isinstance(inputs, Sparse):
        inputs = compacted(inputs, features)
    scored = pool.score(inputs, labels)
    kept = scored._replace(answers=scored.answers.clone())
    pool.update(
        inputs, labels, pool.decide(scored, torch.ones((), dtype=torch.bool, device=device))
    )
    table.scatter(rows, pool)
    return kept


def state_of(table: Table) -> dict[str, Tensor]:
    """Return copies of all that has been learned."""
    return {k: v.clone() for k, v in (table.pool.tensors() | table.tensors()).items()}
