"""A pool that grows keeps every bit that it has learned."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel import Pool
from funnel.pool.growth import grown
from tests.funnel.pool.test_classes import HIDDEN, OPEN, POOLS, batch, model
from tests.support.pools import FEATURES, learn, made


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
