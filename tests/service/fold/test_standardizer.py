"""Online standardization."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.fold.inputs import HORIZON, LIMIT, STATISTICS_LIMIT, Standardizer, standardize

CPU = torch.device("cpu")
YES, NO = torch.tensor(True), torch.tensor(False)


def fed(batches: list[torch.Tensor]) -> Standardizer:
    standardizer = Standardizer(batches[0].shape[1], CPU)
    standardizer.start(batches[0])
    for batch in batches:
        standardizer.update(standardizer.deviations(batch), YES)
    return standardizer


@given(st.lists(st.integers(1, 60), max_size=8).map(lambda sizes: [30, *sizes]))
def test_up_to_the_horizon_the_statistics_are_those_of_all_examples(sizes: list[int]) -> None:
    inputs = torch.randn(sum(sizes), 3) * torch.tensor([1.0, 100.0, 0.01]) + 7
    standardizer = fed(list(inputs.split(sizes)))
    torch.testing.assert_close(standardizer.mean, inputs.mean(0), rtol=1e-4, atol=1e-4)
    expected = inputs.double().var(0, correction=0).float()
    torch.testing.assert_close(standardizer.variance, expected, rtol=1e-2, atol=1e-6)


def test_behind_the_horizon_old_examples_fade() -> None:
    batches = [torch.randn(100, 1) for _ in range(20)] + [
        torch.randn(100, 1) + 9 for _ in range(20)
    ]
    standardizer = fed(batches)
    share = (1 - 100 / (HORIZON + 100)) ** 20
    assert abs(float(standardizer.mean) - 9 * (1 - share)) < 0.3
    assert float(standardizer.count) == HORIZON


def test_outputs_are_standardized_and_bounded() -> None:
    inputs = torch.randn(800, 4) * torch.tensor([1e-3, 1.0, 1e6, 0.0]) + torch.tensor(
        [0.0, -5.0, 3e6, 42.0]
    )
    standardizer = fed([inputs])
    z = standardize(inputs, standardizer.mean, standardizer.variance)
    np.testing.assert_allclose(z[:, :3].mean(0), 0, atol=0.02)
    np.testing.assert_allclose(z[:, :3].std(0), 1, atol=0.05)
    assert z[:, 3].abs().max() < 0.01  # a constant says nothing
    wild = standardize(torch.full((1, 4), 1e18), standardizer.mean, standardizer.variance)
    assert wild.abs().max() <= LIMIT


def test_one_wild_value_moves_the_statistics_no_more_than_a_bounded_one() -> None:
    batches = [torch.randn(100, 2) for _ in range(20)]
    standardizer = fed(batches)
    wild = torch.randn(100, 2)
    wild[3, 0] = 1e18
    standardizer.update(standardizer.deviations(wild), YES)
    assert float(standardizer.mean[0].abs()) < 2 * STATISTICS_LIMIT / HORIZON
    assert float(standardizer.variance[0]) < 2 * STATISTICS_LIMIT**2 / HORIZON + 2
    assert torch.isfinite(standardizer.variance).all()


def test_a_batch_that_is_not_kept_changes_nothing() -> None:
    standardizer = fed([torch.randn(50, 2)])
    before = {k: v.clone() for k, v in standardizer.tensors().items()}
    standardizer.update(torch.randn(50, 2), NO)
    assert all(torch.equal(before[k], v) for k, v in standardizer.tensors().items())
