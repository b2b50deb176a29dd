"""A pool that grows keeps every bit that it has learned."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel import Pool
from funnel.pool.expert import for_width
from funnel.pool.growth import grown, grown_table
from funnel.pool.tables.table import Table
from tests.funnel.pool.test_classes import HIDDEN, OPEN, POOLS, batch, model
from tests.support.pools import FEATURES, learn, made
from tests.support.sparse import DENSE, learn_sparse, sparse_batches, state_of


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(HIDDEN),
    st.sampled_from(sorted(POOLS)),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 6),
)
def test_leading_coordinates_keep_their_bits_and_others_are_fresh(
    hidden: tuple[int, ...], name: str, inputs: int, classes: int, steps: int
) -> None:
    pool = Pool(model(hidden, OPEN, OPEN), FEATURES, POOLS[name])
    for seed in range(steps):
        learn(pool, *batch(seed))
    before = {key: tensor.clone() for key, tensor in pool.tensors().items()}
    width = FEATURES + inputs
    larger = grown(pool, model(hidden, OPEN + classes, OPEN, width), width)
    fresh = Pool(model(hidden, OPEN + classes, OPEN, width), width, POOLS[name])
    for key, tensor in larger.tensors().items():
        lead = tuple(slice(size) for size in before[key].shape)
        assert torch.equal(tensor[lead], before[key]), key
        expected = fresh.tensors()[key].clone()
        expected[lead] = before[key]
        assert torch.equal(tensor, expected), key
    for key, tensor in pool.tensors().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_a_grown_pool_predicts_what_it_did(hidden: tuple[int, ...]) -> None:
    pool = Pool(model(hidden, OPEN, OPEN), FEATURES)
    for seed in range(8):
        learn(pool, *batch(seed))
    larger = grown(pool, model(hidden, OPEN + 2, OPEN, FEATURES + 4), FEATURES + 4)
    inputs, _ = batch(50)
    found = larger.predict(torch.cat([inputs, torch.zeros(len(inputs), 4)], dim=1))
    torch.testing.assert_close(found[:, :OPEN], pool.predict(inputs))
    assert (found[:, OPEN:] == 0.0).all()


def test_a_renewed_expert_of_a_grown_pool_starts_as_it_started() -> None:
    pool = Pool(model((6,), OPEN, OPEN), FEATURES)
    learn(pool, *batch(0))
    larger = grown(pool, model((6,), OPEN + 1, OPEN, FEATURES + 2), FEATURES + 2)
    larger.restart.from_the_start(torch.ones(6, dtype=torch.bool))
    first = next(iter(model((6,), OPEN, OPEN).parameters())).detach()
    for weight in larger.parameters["0.weight"]:
        assert torch.equal(weight[:, :FEATURES], first)


def test_a_grown_pool_resumes_bit_for_bit() -> None:
    def make() -> Pool:
        pool = Pool(model((), OPEN, OPEN), FEATURES)
        for seed in range(5):
            learn(pool, *batch(seed))
        larger = grown(pool, model((), OPEN + 2, OPEN), FEATURES)
        larger.open_classes(OPEN, OPEN + 1, -1.0)
        return larger

    whole = make()
    resumed = Pool(model((), OPEN + 2, OPEN), FEATURES, whole.experts)
    for key, tensor in resumed.tensors().items():
        tensor.copy_(whole.tensors()[key])
    for seed in range(20):
        shift = int(seed > 12)  # experts are renewed
        for pool in (whole, resumed):
            learn(pool, *batch(seed, OPEN + 1, shift))
    for key, tensor in whole.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[key]), key


def test_a_pool_neither_shrinks_nor_changes_its_kind() -> None:
    pool = Pool(model((6,), OPEN, OPEN), FEATURES)
    with pytest.raises(ValueError, match=r"cannot shrink from \(6, 6, 12\)"):
        grown(pool, model((6,), OPEN, OPEN, FEATURES - 1), FEATURES - 1)
    with pytest.raises(ValueError, match="into a module with other layers"):
        grown(pool, model((), OPEN, OPEN), FEATURES)
    with pytest.raises(ValueError, match="only linear layers"):
        grown(Pool(made("tanh"), FEATURES), made("tanh"), FEATURES)


@pytest.mark.parametrize("cut", [0, 3, 9])
@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_a_table_that_grows_is_the_one_that_was_declared_large(
    hidden: tuple[int, ...], cut: int
) -> None:
    def declared() -> Table:
        return Table(Pool(model(hidden, 6, 4, DENSE), DENSE, for_width(8)), 12, 8)

    whole, growing = declared(), declared()
    found = list(sparse_batches(14))
    for number, examples in enumerate(found):
        if number == cut:
            pool = grown(growing.pool, model(hidden, 6, 4, DENSE), DENSE)
            growing = grown_table(growing, pool)
            for one in (whole, growing):
                one.pool.open_classes(4, 5, -1.0)
        learn_sparse(whole, examples)
        learn_sparse(growing, examples)
    for key, tensor in state_of(whole).items():
        assert torch.equal(tensor, state_of(growing)[key]), key


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_rows_keep_their_bits_when_classes_and_inputs_are_added(hidden: tuple[int, ...]) -> None:
    table = Table(Pool(model(hidden, 4, 4, DENSE), DENSE, for_width(8)), 12, 8)
    found = list(sparse_batches(8))
    for examples in found[:-1]:
        learn_sparse(table, examples)
    pool = grown(table.pool, model(hidden, 6, 4, DENSE + 2), DENSE + 2)
    larger = grown_table(table, pool)
    for key, old in table.rows.named().items():
        lead = tuple(slice(size) for size in old.shape)
        assert torch.equal(larger.rows.named()[key][lead], old), key
    last = found[-1]
    chosen = table.find(last.dense, last.examples, last.keys, last.values)
    expected = table.gather(chosen.rows).predict(chosen.inputs)
    dense = torch.cat([last.dense, torch.zeros(len(last.dense), 2)], dim=1)
    chosen = larger.find(dense, last.examples, last.keys, last.values)
    predicted = larger.gather(chosen.rows).predict(chosen.inputs)
    torch.testing.assert_close(predicted[:, :4], expected)
    assert (predicted[:, 4:] == 0.0).all()


def test_a_grown_table_resumes_bit_for_bit() -> None:
    def make() -> Table:
        table = Table(Pool(model((), 4, 4, DENSE), DENSE, for_width(8)), 12, 8)
        for examples in sparse_batches(5):
            learn_sparse(table, examples)
        return grown_table(table, grown(table.pool, model((), 6, 4, DENSE), DENSE))

    whole = make()
    resumed = Table(Pool(model((), 6, 4, DENSE), DENSE, for_width(8)), 12, 8)
    for key, tensor in resumed.pool.tensors().items():
        tensor.copy_(whole.pool.tensors()[key])
    resumed.load(whole.tensors())
    for examples in sparse_batches(12, seed=1, n=100):
        learn_sparse(whole, examples)
        learn_sparse(resumed, examples)
    for key, tensor in state_of(whole).items():
        assert torch.equal(tensor, state_of(resumed)[key]), key
