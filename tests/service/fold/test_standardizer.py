"""Online standardization: wild values do not move it, and changes of unit or zero do."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from funnel.graphs.captured import Captured
from funnel.graphs.traced import Traced
from service.fold.standardizer import DEPTH, HORIZON, LIMIT, WINDOW, Standardizer, remedian
from service.trainer.formats import from_format_2
from tests.support.gpu import waiting_is_an_error

CPU = torch.device("cpu")
YES, NO = torch.tensor(True), torch.tensor(False)
SIZES = (1, 10, 100, 1_000)
WILD = (-9_999.0, 1e6, -1e9, 1e18)
SHIFTS = {
    "÷255": (1 / 255, 0.0), "÷1000": (1e-3, 0.0), "×1000": (1e3, 0.0), "+1000": (1.0, 1e3),
    "-1000000, ×100": (100.0, -1e6),
}  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fed(batches: Sequence[Tensor], standardizer: Standardizer | None = None) -> Standardizer:
    if standardizer is None:
        standardizer = Standardizer(batches[0].shape[1], batches[0].device)
        standardizer.start(batches[0])
    for batch in batches:
        standardizer.update(batch, YES)
    return standardizer


def assert_near(standardizer: Standardizer, mean: Tensor | float, scale: Tensor | float) -> None:
    """Check that the mean is within 0.6 of the scale, and the scale right within a factor of 2."""
    off = (standardizer.mean - mean).abs() / scale
    assert float(off.max()) < 0.6
    ratio = standardizer.scale / scale
    assert 0.5 < float(ratio.min()) <= float(ratio.max()) < 2.0


@given(st.lists(st.integers(WINDOW, 60), max_size=8).map(lambda sizes: [30, *sizes]))
def test_up_to_the_horizon_the_moments_are_those_of_all_examples(sizes: list[int]) -> None:
    inputs = torch.rand(sum(sizes), 3, generator=torch.Generator().manual_seed(1))
    inputs = inputs * torch.tensor([1.0, 100.0, 0.01]) + 7
    standardizer = fed(list(inputs.split(sizes)))
    torch.testing.assert_close(standardizer.mean, inputs.mean(0), rtol=1e-4, atol=1e-4)
    expected = inputs.double().std(0, correction=0).float()
    torch.testing.assert_close(standardizer.scale, expected, rtol=1e-2, atol=1e-6)


def test_behind_the_horizon_old_examples_fade() -> None:
    batches = [normal(100, 1, seed=k) + (2 if k >= 20 else 0) for k in range(40)]
    standardizer = fed(batches)
    share = (1 - 100 / (HORIZON + 100)) ** 20
    assert abs(float(standardizer.mean) - 2 * (1 - share)) < 0.2
    assert float(standardizer.statistics[2]) == HORIZON


def test_outputs_are_standardized_and_bounded() -> None:
    inputs = normal(800, 4) * torch.tensor([1e-3, 1.0, 1e6, 0.0]) + torch.tensor(
        [0.0, -5.0, 3e6, 42.0]
    )
    standardizer = fed([inputs])
    z = standardizer.standardized(inputs)
    np.testing.assert_allclose(z[:, :3].mean(0), 0, atol=0.02)
    np.testing.assert_allclose(z[:, :3].std(0), 1, atol=0.05)
    assert not z[:, 3].any()  # a constant says nothing
    wild = standardizer.standardized(torch.full((1, 4), 1e18))
    assert torch.equal(wild, torch.full((1, 4), LIMIT))


@pytest.mark.parametrize("value", WILD)
@pytest.mark.parametrize("size", SIZES)
def test_a_wild_first_example_is_forgotten_within_fifty(size: int, value: float) -> None:
    inputs = normal(max(50, size), 4)
    inputs[0] = value
    assert_near(fed(inputs.split(size)), 0.0, 1.0)


@pytest.mark.parametrize("value", WILD)
@pytest.mark.parametrize("size", SIZES)
def test_one_wild_value_moves_the_statistics_by_a_bounded_step(size: int, value: float) -> None:
    inputs = normal(1_500, 2)
    standardizer = fed(inputs.split(size))
    before = standardizer.statistics.clone()
    wild = normal(size, 2, seed=1)
    wild[size // 2, 0] = value
    standardizer.update(wild, YES)
    assert float((standardizer.mean - before[0]).abs().max()) < 0.1
    assert float((standardizer.statistics[1] / before[1] - 1).abs().max()) < 0.1
    assert float((standardizer.statistics[3] / before[3]).log().abs().max()) < 0.3


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("size", SIZES)
def test_a_new_unit_or_zero_is_known_within_a_few_batches(size: int, shift: str) -> None:
    factor, offset = SHIFTS[shift]
    standardizer = fed(normal(1_500, 4).split(size))
    after = {1: 60, 10: 8, 100: 3, 1_000: 2}[size]
    fed((normal(after * size, 4, seed=1) * factor + offset).split(size), standardizer)
    assert_near(standardizer, offset, factor)


@pytest.mark.parametrize("size", SIZES)
def test_a_changed_unit_for_a_while_leaves_nothing_behind(size: int) -> None:
    standardizer = fed(normal(1_500, 4).split(size))
    fed((normal(1_000, 4, seed=1) * 1_000).split(size), standardizer)
    fed(normal(1_000, 4, seed=2).split(size), standardizer)
    assert_near(standardizer, 0.0, 1.0)


@pytest.mark.parametrize("share", [0.01, 0.05])
@pytest.mark.parametrize("value", WILD)
@pytest.mark.parametrize("size", SIZES)
def test_sentinels_leave_mean_and_scale_near_those_of_the_others(
    size: int, value: float, share: float
) -> None:
    inputs = normal(2_000, 3)
    which = torch.rand(2_000, 3, generator=torch.Generator().manual_seed(1)) < share
    which[:, 2] = False
    inputs[which] = value
    standardizer = fed(inputs.split(size))
    assert_near(standardizer, 0.0, 1.0)
    assert float(standardizer.scale[2]) == pytest.approx(1.0, abs=0.1)


def test_a_batch_of_nothing_but_sentinels_is_forgotten_with_the_next_batch() -> None:
    standardizer = fed(normal(1_500, 2).split(100))
    fed([torch.full((100, 2), 1e18), normal(100, 2, seed=1)], standardizer)
    assert_near(standardizer, 0.0, 1.0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("power", [-59, -40, 40, 55])
def test_inputs_times_a_power_of_two_give_the_same_z(size: int, power: int) -> None:
    inputs = normal(2_000, 4) + 1
    plain, scaled = (fed(x.split(size)) for x in (inputs, inputs * 2.0**power))
    probe = normal(50, 4, seed=1)
    one, other = plain.standardized(probe), scaled.standardized(probe * 2.0**power)
    if size > 1:  # a first batch of one example shows no magnitude
        assert torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


SUBNORMAL = (1e-45, 1e-40, -1e-39)
"""Their reciprocals are not finite in fp32."""
VALUES = st.floats(width=32) | st.sampled_from([0.0, *SUBNORMAL, 1e-30, 1.0, -1e18, 1e18])


def test_a_mean_that_is_far_away_in_the_least_unit_stays_finite() -> None:
    """4 is 3e38 times the smallest normal number, which is the unit here."""
    batches = ([0.0, 1e-45], [4.0, 0.0, 4.0, 4.0, 0.0, 0.0, 0.0, 0.0], [4.0])
    standardizer = fed([torch.tensor(batch)[:, None] for batch in batches])
    assert torch.isfinite(standardizer.statistics).all()
    fed(normal(2_000, 1).split(10), standardizer)
    assert_near(standardizer, 0.0, 1.0)


@given(st.lists(st.lists(VALUES, min_size=1, max_size=12), min_size=1, max_size=12), st.booleans())
@settings(max_examples=500)
def test_whatever_comes_the_statistics_stay_finite(
    batches: list[list[float]], is_known: bool
) -> None:
    before = list(normal(60, 1).split(10)) if is_known else []
    wild = [torch.tensor(batch, dtype=torch.float32)[:, None] for batch in batches]
    standardizer = fed([*before, *wild])
    assert torch.isfinite(standardizer.statistics).all()
    assert float(standardizer.scale) > 0
    probe = torch.tensor([[0.0], [1e18], [-1e18], [float(standardizer.mean)]])
    z = standardizer.standardized(probe)
    assert torch.isfinite(z).all()
    assert float(z[3]) == 0
    after = fed(normal(8_000, 1, seed=1).split(500), standardizer)
    assert_near(after, 0.0, 1.0)


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("value", SUBNORMAL)
def test_values_that_underflow_do_not_end_learning(value: float, size: int) -> None:
    """As first values, they once made the statistics NaN for good."""
    wild = torch.zeros(100, 1)
    wild[2::3] = value
    standardizer = fed(wild.split(size))
    assert torch.isfinite(standardizer.statistics).all()
    assert_near(fed(normal(8_000, 1, seed=1).split(500), standardizer), 0.0, 1.0)
    back = fed(wild.split(size), standardizer)
    assert torch.isfinite(back.statistics).all()


def test_a_feature_with_a_nan_keeps_its_statistics_and_the_others_move() -> None:
    standardizer = fed(normal(300, 2).split(100))
    before = standardizer.statistics.clone()
    batch = normal(100, 2, seed=1)
    batch[7, 0] = torch.nan
    standardizer.update(batch, YES)
    assert torch.equal(standardizer.statistics[:, 0], before[:, 0])
    assert not torch.equal(standardizer.statistics[:, 1], before[:, 1])
    assert torch.isfinite(standardizer.recent).all()


def drawn(n: int, d: int, share: float, seed: int = 0) -> Tensor:
    """Return features that are 0 but for a share, which is between 0.5 and 1.5."""
    generator = torch.Generator().manual_seed(seed)
    shown = torch.rand(n, d, generator=generator) < share
    return (0.5 + torch.rand(n, d, generator=generator)) * shown


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_sparse_feature_is_scaled_by_its_standard_deviation(size: int, share: float) -> None:
    inputs = drawn(2_000 if size < 100 else 8_000, 6, share)
    standardizer = fed(inputs.split(size))
    assert_near(standardizer, inputs.mean(0), inputs.std(0))


def test_indicators_are_scaled_by_their_standard_deviation() -> None:
    inputs = (torch.rand(5_000, 3, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    standardizer = fed(inputs.split(100))
    torch.testing.assert_close(standardizer.scale, torch.full((3,), 0.24**0.5), rtol=0.05, atol=0)


@pytest.mark.parametrize("size", [1, 10, 100])
def test_a_feature_that_becomes_active_is_within_the_limit_after_500_examples(size: int) -> None:
    standardizer = fed(torch.zeros(2_000, 4).split(size))
    assert not standardizer.standardized(torch.zeros(1, 4)).any()
    active = drawn(500, 4, 0.3)
    fed(active.split(size), standardizer)
    z = standardizer.standardized(torch.full((1, 4), 1.0))
    assert float(z.min()) > 0.5
    assert float(z.max()) < LIMIT


def test_a_feature_that_is_rare_neither_explodes_nor_vanishes() -> None:
    standardizer = fed(drawn(50_000, 4, 0.001).split(100))
    least = 0.5 * DEPTH
    assert float(standardizer.scale.min()) > least
    assert torch.equal(standardizer.standardized(torch.ones(1, 4)), torch.full((1, 4), LIMIT))
    assert standardizer.standardized(torch.zeros(1, 4)).abs().max() < 0.2


@pytest.mark.parametrize("size", [1, 10])
def test_neighbours_that_are_alike_are_not_taken_for_a_change(size: int) -> None:
    """Ten examples of the same object, then ten of the next, as from a camera."""
    objects = normal(400, 6).repeat_interleave(10, dim=0)
    inputs = objects + 0.01 * normal(4_000, 6, seed=1)
    ratios = []
    standardizer = fed(inputs[:1_000].split(size))
    for batch in inputs[1_000:].split(size):
        standardizer.update(batch, YES)
        ratios.append(standardizer.scale.clone())
    scales = torch.stack(ratios)
    assert float(scales.min()) > 0.5
    assert float(scales.max()) < 2.0


def test_a_batch_that_is_not_kept_changes_nothing() -> None:
    standardizer = fed([normal(50, 2)])
    before = {k: v.clone() for k, v in standardizer.tensors().items()}
    standardizer.update(normal(50, 2, seed=1) * 1_000, NO)
    standardizer.update(normal(1, 2, seed=1), NO)
    assert all(torch.equal(before[k], v) for k, v in standardizer.tensors().items())


def hard(size: int) -> list[Tensor]:
    """Return batches with wild values and a change of unit."""
    inputs = normal(60 * size, 5)
    inputs[::37] = 1e6
    inputs[30 * size :] *= 1e-3
    return list(inputs.split(size))


@pytest.mark.parametrize("size", [1, 8, 9, 100])
def test_a_trace_has_the_bits_of_eager_execution(size: int) -> None:
    batches = hard(size)
    eager = fed(batches)
    traced = Standardizer(5, CPU)
    traced.start(batches[0])

    def observe(inputs: Tensor, keep: Tensor) -> tuple[Tensor]:
        prepared = traced.standardized(inputs)
        traced.update(inputs, keep)
        return (prepared,)

    step = Traced(observe, traced.tensors().values())
    for batch in batches:
        step(batch, YES)
    assert all(torch.equal(v, traced.tensors()[k]) for k, v in eager.tensors().items())


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 8, 9, 100])
def test_a_captured_graph_has_the_bits_of_eager_execution_and_waits_for_nothing(size: int) -> None:
    batches = [batch.cuda() for batch in hard(size)]
    eager = fed(batches)
    captured = Standardizer(5, torch.device("cuda"))
    captured.start(batches[0])
    keep = torch.tensor(True, device="cuda")

    def update(inputs: Tensor) -> tuple[Tensor]:
        captured.update(inputs, keep)
        return (captured.mean,)

    step = Captured(update)
    with torch.no_grad():
        for k, batch in enumerate(batches):
            if k < 10:  # while it is captured
                step(batch)
            else:
                with waiting_is_an_error():
                    step(batch)
    assert all(torch.equal(v, captured.tensors()[k]) for k, v in eager.tensors().items())


def test_the_remedian_is_the_value_of_an_example_and_bears_three_wild_ones() -> None:
    rows = normal(9, 50)
    rows[[0, 4, 8]] = 1e18
    found = remedian(rows)
    assert (rows == found).any(dim=0).all()
    assert float(found.abs().max()) < 4


@pytest.mark.parametrize("size", SIZES)
def test_statistics_of_format_2_go_on_as_they_were(size: int) -> None:
    old = {
        "standardizer.count": torch.tensor(1_000.0),
        "standardizer.mean": torch.tensor([5.0, 0.0, 42.0]),
        "standardizer.variance": torch.tensor([4.0, 0.01 * 0.99, 0.0]),
        "guard.level": torch.tensor(1.0),
    }
    found = from_format_2(old)
    assert found.keys() == {"standardizer.statistics", "standardizer.recent", "guard.level"}
    standardizer = Standardizer(3, CPU)
    for name, tensor in standardizer.tensors().items():
        tensor.copy_(found[f"standardizer.{name}"])
    means = torch.tensor([5.0, 0.0, 42.0])
    assert torch.equal(standardizer.mean, means)
    assert standardizer.scale[:2].tolist() == pytest.approx([2.0, 0.0995], rel=1e-3)
    inputs = torch.cat([5 + 2 * normal(1_500, 1), drawn(1_500, 1, 0.01)], dim=1)
    inputs = torch.cat([inputs, torch.full((1_500, 1), 42.0)], dim=1)
    for batch in inputs.split(size):
        standardizer.update(batch, YES)
        z = standardizer.standardized(torch.tensor([[5.0, 0.0, 42.0]]))
        assert float(z[0].abs().max()) < 1.0
        assert 1.0 < float(standardizer.scale[0]) < 3.0
