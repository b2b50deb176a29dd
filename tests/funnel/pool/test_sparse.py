"""Sparse products are those of the inputs written out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel import Pool
from funnel.pool.sparse import Sparse, arranged, compacted, gradient, pieces, product, with_ones
from tests.support.pools import made


def drawn(seed: int, n: int, d: int, width: int, most: int) -> Sparse:
    """Return inputs whose numbers are small integers, so that all sums are exact."""
    random = np.random.default_rng(seed)
    counts = random.integers(0, most + 1, n)
    examples = np.repeat(np.arange(n), counts)
    columns = d + random.integers(0, width, len(examples))
    values = random.integers(-4, 5, len(examples)).astype(np.float32)
    dense = torch.from_numpy(random.integers(-4, 5, (n, d)).astype(np.float32))
    return arranged(dense, examples, columns, values, d + width - 1)


SIZES = {
    "seed": st.integers(0, 2**32 - 1),
    "n": st.integers(1, 12),
    "d": st.integers(0, 4),
    "width": st.integers(1, 9),
    "most": st.integers(0, 12),
}


@settings(deadline=None)
@given(**SIZES)
def test_products_are_exactly_those_of_the_inputs_written_out(
    seed: int, n: int, d: int, width: int, most: int
) -> None:
    inputs, features = drawn(seed, n, d, width, most), d + width
    written = compacted(inputs, features)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-8, 9, (5, features), generator=generator).float()
    error = torch.randint(-8, 9, (5, n), generator=generator).float()
    assert torch.equal(product(weight, inputs), product(weight, written))
    assert torch.equal(gradient(error, inputs, features), gradient(error, written, features))


@settings(deadline=None)
@given(**SIZES, count=st.integers(1, 5))
def test_pieces_and_ones_are_those_of_the_inputs_written_out(
    seed: int, n: int, d: int, width: int, most: int, count: int
) -> None:
    inputs, features = drawn(seed, n, d, width, most), d + width
    expected = pieces(with_ones(compacted(inputs, features), features), count)
    found = pieces(with_ones(inputs, features), count)
    for mine, theirs in zip(found, expected, strict=True):
        assert isinstance(mine, Sparse)
        assert isinstance(theirs, torch.Tensor)
        assert torch.equal(compacted(mine, features + 1), theirs)


@settings(deadline=None)
@given(**SIZES)
def test_products_have_the_same_bits_again(
    seed: int, n: int, d: int, width: int, most: int
) -> None:
    inputs, features = drawn(seed, n, d, width, most), d + width
    weight, error = torch.randn(5, features), torch.randn(5, n)
    for _ in range(3):
        assert torch.equal(product(weight, inputs), product(weight, inputs))
        again = gradient(error, inputs, features)
        assert torch.equal(gradient(error, inputs, features), again)


def test_a_user_module_takes_no_sparse_inputs() -> None:
    pool, inputs = Pool(made("tanh"), 12), drawn(0, 3, 2, 10, 4)
    with pytest.raises(TypeError, match="only linear layers with ReLU between them take sparse"):
        pool.predict(inputs)
    with pytest.raises(TypeError, match="only linear layers with ReLU between them take sparse"):
        pool.score(inputs, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("threads", [1, 2])
def test_large_products_have_the_same_bits_again_on_any_number_of_threads(threads: int) -> None:
    random = np.random.default_rng(0)
    n, width = 1000, 3000
    examples = np.repeat(np.arange(n), 26)
    columns = np.minimum(random.zipf(1.2, n * 26), width - 1).astype(np.int64)
    values = random.normal(size=n * 26).astype(np.float32)
    inputs = arranged(torch.randn(n, 0), examples, columns, values, width - 1)
    weight, error = torch.randn(12, width), torch.randn(12, n)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = {
            (
                product(weight, inputs).numpy().tobytes(),
                gradient(error, inputs, width).numpy().tobytes(),
            )
            for _ in range(10)
        }
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1
