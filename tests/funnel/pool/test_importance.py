"""Weights of examples: how much each counts when a pool learns it."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from funnel import Adagrad, Expert, Pool
from funnel.pool.expert import for_width
from tests.support.pools import KEEP

WALKS = Expert(Adagrad(), 0.1, 0.1, 0.03, steps=4)


class Own(nn.Module):
    """A module that is not plain."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs).tanh()


MODULES = {
    "logistic": nn.Linear(6, 3),
    "mlp": nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)),
    "a user's": Own(),
}


def a_pool(name: str, experts: tuple[Expert, ...] | None = None) -> Pool:
    return Pool(copy.deepcopy(MODULES[name]), 6, experts or for_width(6))


def batch(seed: int, n: int = 20) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return inputs, inputs[:, :3].argmax(dim=1)


def learn(pool: Pool, inputs: Tensor, labels: Tensor, importance: Tensor | None = None) -> Tensor:
    scored = pool.score(inputs, labels, importance)
    pool.update(inputs, labels, pool.decide(scored, KEEP))
    return scored.answers


def assert_equal(one: Pool, other: Pool) -> None:
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


@pytest.mark.parametrize("name", MODULES)
def test_weights_of_one_change_no_bit(name: str) -> None:
    weighted, plain = a_pool(name), a_pool(name)
    for seed in range(6):
        inputs, labels = batch(seed)
        learn(weighted, inputs, labels, torch.ones(20))
        learn(plain, inputs, labels)
    assert_equal(weighted, plain)


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_learned_from_an_example_of_weight_zero(name: str) -> None:
    one, other = a_pool(name), a_pool(name)
    importance = torch.ones(20)
    importance[[2, 7, 19]] = 0.0
    for seed in range(12):
        inputs, labels = batch(seed)
        scored = learn(one, inputs, labels, importance)
        assert scored.isfinite().all()
        changed = torch.where(importance == 0, (labels + 1) % 3, labels)
        learn(other, inputs, changed, importance)
    assert_equal(one, other)


@pytest.mark.parametrize("name", MODULES)
def test_a_batch_of_weights_zero_moves_no_weight(name: str) -> None:
    pool = a_pool(name, (Expert(Adagrad(), 0.1, 0.1, 0.03), WALKS))
    for seed in range(4):
        learn(pool, *batch(seed))
    before = {k: v.clone() for k, v in pool.parameters.items()}
    learn(pool, *batch(9), torch.zeros(20))
    for key, tensor in pool.parameters.items():
        assert torch.equal(tensor, before[key])


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=12).filter(any), st.sampled_from([*MODULES])
)
def test_a_weight_is_as_many_copies_of_an_example(counts: list[int], name: str) -> None:
    pool, n = a_pool(name), len(counts)
    inputs, labels = batch(3, n)
    copies = torch.tensor(counts)
    repeated = pool.score(inputs.repeat_interleave(copies, 0), labels.repeat_interleave(copies))
    weighted = pool.score(inputs, labels, copies.float())
    for mine, theirs in zip(weighted.gradients, repeated.gradients, strict=True):
        assert torch.allclose(n * mine, sum(counts) * theirs, rtol=1e-4, atol=1e-5)


def test_a_heavy_example_moves_the_mixture_as_its_copies_do() -> None:
    one, other = a_pool("logistic"), a_pool("logistic")
    for pool in (one, other):
        for seed in range(20):
            learn(pool, *batch(seed))
    losses = one.score(*batch(99, 4)).expert_losses
    healthy = torch.ones(6, dtype=torch.bool)
    weight = torch.tensor([3.0, 1.0, 0.0, 0.0])
    one.mixing.update(losses, healthy, KEEP, weight)
    other.mixing.update(losses[:, [0, 0, 0, 1]], healthy, KEEP)
    assert torch.allclose(one.mixing.log_weights, other.mixing.log_weights, atol=1e-4)


def test_traces_with_and_without_weights_are_apart() -> None:
    """A traced step is reused by the shapes of its tensors."""
    pool, eager = a_pool("logistic"), a_pool("logistic")
    for seed in range(30):  # more than a trace waits for
        inputs, labels = batch(seed)
        importance = torch.rand(20) if seed % 2 else None
        learn(pool, inputs, labels, importance)
        fresh = a_pool("logistic")
        for name, tensor in fresh.tensors().items():
            tensor.copy_(eager.tensors()[name])
        learn(fresh, inputs, labels, importance)
        eager = fresh
    assert_equal(pool, eager)
