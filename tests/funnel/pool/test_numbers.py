"""Pools that predict numbers: steps that do not overshoot, units that move, the last number."""

import math

import pytest
import torch
from torch import Tensor, nn

from funnel import SGD, Expert, Pool
from funnel.pool.expert import NUMBER_EXPERTS, for_width
from funnel.pool.loss import HUBER, REACH, Gaussian, Loss, Pinball
from funnel.pool.walk import within

FEATURES = 6
LOSSES = {"mean": Gaussian(), "quantiles": Pinball((0.1, 0.5, 0.9))}
KEEP = torch.tensor(True)


def made(loss: Loss, hidden: int = 0, experts: tuple[Expert, ...] = ()) -> Pool:
    torch.manual_seed(0)
    outputs = len(getattr(loss, "quantiles", (0,)))
    layers = [nn.Linear(FEATURES, hidden), nn.ReLU()] if hidden else []
    module = nn.Sequential(*layers, nn.Linear(hidden or FEATURES, outputs))
    return Pool(module, FEATURES, experts or for_width(FEATURES, NUMBER_EXPERTS), loss=loss)


def learn(pool: Pool, inputs: Tensor, numbers: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the loss of each example before the batch is learned."""
    scored = pool.score(inputs, numbers, weights)
    decision = pool.decide(scored, KEEP)
    pool.update(inputs, numbers, decision)
    return scored.losses


def linear(n: int, seed: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, FEATURES, generator=drawn)
    numbers = inputs @ torch.linspace(-1.0, 1.0, FEATURES)
    return inputs, numbers + noise * torch.randn(n, generator=drawn)


@pytest.mark.parametrize("size", [1, 10, 100])
@pytest.mark.parametrize("hidden", [0, 8])
def test_a_relation_is_learned_whatever_the_size_of_batches(size: int, hidden: int) -> None:
    pool = made(Gaussian(), hidden)
    for k in range(min(500, 3_000 // size)):
        learn(pool, *linear(size, k))
    inputs, numbers = linear(500, 10_000)
    missed = (pool.predict(inputs)[:, 0] - numbers).abs().mean()
    assert missed < 0.35
    assert missed < 0.5 * numbers.abs().mean()


def test_steps_of_a_far_too_large_rate_do_not_diverge() -> None:
    pool = made(Gaussian(), experts=(Expert(SGD(), 100.0, 0.0, 0.0, steps=4),))
    for k in range(100):
        learn(pool, *linear(8, k))
    inputs, numbers = linear(500, 1_000)
    assert (pool.predict(inputs)[:, 0] - numbers).abs().mean() < 0.5


def test_a_step_is_taken_as_far_as_it_helps_and_never_further_than_it_is() -> None:
    error = torch.tensor([[[1.0, -2.0]], [[1.0, -2.0]], [[1.0, -2.0]]])
    moved = error * torch.tensor([4.0, 0.5, -1.0])[:, None, None]
    assert within(moved, error, None).flatten().tolist() == [0.25, 1.0, 0.0]
    weighed = within(torch.tensor([[[2.0, 9.0]]]), error[:1], torch.tensor([1.0, 0.0]))
    assert weighed.item() == 0.5


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("hidden", [0, 8])
def test_answers_stay_where_the_unit_moves(name: str, hidden: int) -> None:
    pool = made(LOSSES[name], hidden)
    for k in range(40):
        learn(pool, *linear(10, k))
    inputs, numbers = linear(50, 99)
    before, losses = pool.predict(inputs), pool.score(inputs, numbers).losses
    ratio, shift = torch.tensor(0.25), torch.tensor(-3.0)
    pool.rescale(ratio, shift)
    after = pool.predict(inputs)
    torch.testing.assert_close(after[:, 0], before[:, 0] * ratio + shift, rtol=1e-4, atol=1e-4)
    moved = pool.score(inputs, numbers * ratio + shift).losses
    more = math.log(0.25) if name == "mean" else 0.0  # a density in a larger unit is larger
    torch.testing.assert_close(moved, losses + more, rtol=1e-3, atol=1e-3)
    pool.rescale(torch.tensor(1.0), torch.tensor(0.0))
    assert torch.equal(pool.predict(inputs), after)


def test_the_last_number_wins_where_nothing_else_predicts() -> None:
    pool, drawn = made(Gaussian()), torch.Generator().manual_seed(1)
    level = torch.zeros(())
    missed = []
    for k in range(600):
        level = level + 0.3 * torch.randn((), generator=drawn)
        inputs, numbers = torch.randn(2, FEATURES, generator=drawn), level.expand(2)
        if k >= 200:
            missed.append(float((pool.predict(inputs)[:, 0] - numbers).abs().mean()))
        learn(pool, inputs, numbers)
    assert pool.mixing.log_weights.argmax() == len(pool.experts)
    assert sum(missed) / len(missed) < 0.3
    assert pool.log_weights.exp().sum() == pytest.approx(1.0)


def test_the_last_number_is_of_an_example_that_counts() -> None:
    pool = made(Gaussian())
    inputs, numbers = linear(4, 0)
    learn(pool, inputs, numbers, torch.tensor([1.0, 2.0, 0.0, 0.0]))
    assert pool.held["last"].item() == numbers[1].item()
    learn(pool, inputs, numbers, torch.zeros(4))
    assert pool.held["last"].item() == numbers[1].item()


def test_a_single_expert_answers_alone() -> None:
    pool = made(Gaussian(), experts=(NUMBER_EXPERTS[0],))
    assert "last" not in pool.held
    assert pool.mixing.log_weights.tolist() == [0.0]


def test_an_expert_that_went_astray_cannot_carry_the_mixture_away() -> None:
    pool = made(Gaussian())
    for k in range(40):
        learn(pool, *linear(10, k))
    inputs, _ = linear(50, 99)
    before = pool.predict(inputs)[:, 0]
    pool.parameters["0.bias"][3] = 1e20
    after = pool.predict(inputs)[:, 0]
    reach = REACH * float(pool.held["variance"][-1].sqrt())
    weight = float(pool.mixing.log_weights[3].exp())
    assert (after - before).abs().max() <= 2 * reach * weight * 1.01


def test_experts_are_judged_in_one_deviation() -> None:
    """An expert with small errors in the past does not win by them while it errs more now."""
    loss = Gaussian()
    held = loss.fresh(2, torch.device("cpu"))
    held["variance"].copy_(torch.tensor([0.01, 1.0, 1.0, 1.0]))
    outputs = torch.tensor([[[1.0]], [[0.5]]])
    found = loss.judge(held, outputs, torch.zeros(1))
    assert found.losses[0] > found.losses[1]


def test_a_wild_number_moves_an_expert_no_further_than_one_at_the_bound() -> None:
    loss = Gaussian()
    held = loss.fresh(1, torch.device("cpu"))
    gradients = [
        loss.judge(held, torch.zeros(1, 1, 1), torch.tensor([number])).error
        for number in (HUBER, 1e6)
    ]
    assert torch.equal(*gradients)


def test_a_saved_pool_of_numbers_continues_bit_for_bit() -> None:
    first, second = made(Gaussian()), made(Gaussian())
    for k in range(20):
        learn(first, *linear(10, k))
    for mine, theirs in zip(first.tensors().values(), second.tensors().values(), strict=True):
        theirs.copy_(mine)
    assert "loss.last" in first.tensors()
    for k in range(20, 40):
        learn(first, *linear(10, k))
        learn(second, *linear(10, k))
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name
