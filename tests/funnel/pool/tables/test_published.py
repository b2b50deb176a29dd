"""A published table predicts as the pool did, whatever is learned later."""

import numpy as np
import pytest
import torch
from torch import Tensor

from funnel.pool.tables.published import Published
from funnel.pool.tables.rows import CHUNK
from funnel.pool.tables.table import Table
from tests.support.sparse import DENSE, SparseBatch, learn_sparse, sparse_batches, table

HIDDEN: list[tuple[int, ...]] = [(), (6,)]


def by_pool(learner: Table, batch: SparseBatch) -> Tensor:
    rows, inputs = learner.find(batch.dense, batch.examples, batch.keys, batch.values)
    return learner.gather(rows).predict(inputs)


def by_view(view: Published, batch: SparseBatch) -> Tensor:
    return view.predict(batch.dense, batch.examples, batch.keys, batch.values)[1]


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_a_view_predicts_what_the_pool_does(hidden: tuple[int, ...]) -> None:
    learner = table(hidden, bits=16)
    for batch in sparse_batches(30, n=400):
        view, new = learner.published(), learner.index.used
        torch.testing.assert_close(by_view(view, batch), by_pool(learner, batch), rtol=0, atol=1e-6)
        learn_sparse(learner, batch)
        assert new < learner.index.used
    assert learner.index.used > CHUNK


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_a_view_does_not_change(hidden: tuple[int, ...]) -> None:
    learner = table(hidden)
    found = list(sparse_batches(12))
    for batch in found[:4]:
        learn_sparse(learner, batch)
    view = learner.published()
    expected = by_view(view, found[-1])
    for batch in found[4:]:
        learn_sparse(learner, batch)
        learner.published()
    assert torch.equal(by_view(view, found[-1]), expected)
    assert not torch.equal(by_view(learner.published(), found[-1]), expected)


def test_a_view_copies_only_the_rows_that_changed_since() -> None:
    learner = table(bits=16)
    for batch in sparse_batches(40, n=400):
        learn_sparse(learner, batch)
    before = learner.published()
    assert before.rows.kept == 0
    one = SparseBatch(
        torch.zeros(1, DENSE),
        np.zeros(1, dtype=np.int64),
        learner.index.keys[CHUNK : CHUNK + 1],
        np.ones(1, dtype=np.float32),
        torch.tensor([1]),
    )
    learn_sparse(learner, one)
    learn_sparse(learner, one)
    after = learner.published()
    assert before.rows.kept == 1
    assert after.rows.kept == 0
    torch.testing.assert_close(by_view(after, one), by_pool(learner, one), rtol=0, atol=1e-6)


def test_a_view_of_nothing_predicts_from_dense_inputs() -> None:
    learner = table()
    batch = next(sparse_batches(1))
    view = learner.published()
    learn_sparse(learner, batch)
    expected = torch.full((len(batch.labels), 4), 0.25)
    torch.testing.assert_close(by_view(view, batch), expected)
