"""Modules of a user's learn by every loss what linear layers learn by it."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from funnel import SGD, Adagrad, Expert, Pool
from funnel.pool.loss import REACH, Binary, Gaussian, Loss, Pinball
from funnel.pool.networks import Experts, InUnit, with_unit

FEATURES, N = 6, 40
LOSSES: dict[str, Loss] = {
    "binary": Binary(),
    "mean": Gaussian(),
    "quantiles": Pinball((0.1, 0.5, 0.9)),
}
NUMBERS = ("mean", "quantiles")
EXPERTS = (Expert(Adagrad(), 0.05, 0.01, 0.01), Expert(SGD(), 0.05, 0.01, 0.01))
KEEP = torch.tensor(True)


class Own(nn.Module):
    """Layers that do not look like a perceptron from outside."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.layers(inputs)
        return out


class Moving(Own):
    """It has a buffer that training changes, and that autograd keeps for the way back."""

    mean: Tensor

    def __init__(self, layers: nn.Module) -> None:
        super().__init__(layers)
        self.register_buffer("mean", torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.5).add_(0.5 * inputs.mean())
        return super().forward(inputs) * self.mean


def layers(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    outputs = len(getattr(LOSSES[name], "quantiles", (0,)))
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, outputs))


def a_pool(module: nn.Module, name: str) -> Pool:
    return Pool(module, FEATURES, EXPERTS, loss=LOSSES[name])


def batch(name: str, seed: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, FEATURES, generator=drawn)
    numbers = inputs @ torch.linspace(-1.0, 1.0, FEATURES)
    return inputs, (numbers > 0).long() if name == "binary" else numbers


def learn(pool: Pool, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the losses of the mixture before the batch is learned."""
    scored = pool.score(inputs, labels)
    pool.update(inputs, labels, pool.decide(scored, KEEP))
    return scored.losses


@pytest.mark.parametrize("weights", [None, torch.linspace(0.0, 2.0, N)])
@pytest.mark.parametrize("name", LOSSES)
def test_a_module_is_scored_and_differentiated_as_the_same_linear_layers(
    name: str, weights: Tensor | None
) -> None:
    plain, own = a_pool(layers(name), name), a_pool(Own(layers(name)), name)
    assert plain.models.is_plain
    assert own.models.is_vectorized
    inputs, labels = batch(name, 1)
    mine, theirs = own.score(inputs, labels, weights), plain.score(inputs, labels, weights)
    torch.testing.assert_close(mine.answers, theirs.answers)
    torch.testing.assert_close(mine.losses, theirs.losses)
    torch.testing.assert_close(mine.expert_losses, theirs.expert_losses)
    torch.testing.assert_close(mine.summary, theirs.summary)
    for gradient, expected in zip(mine.gradients, theirs.gradients, strict=False):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_experts_at_once_and_one_by_one_have_the_same_gradients(name: str) -> None:
    own = a_pool(Own(layers(name)), name)
    for k in range(5):
        learn(own, *batch(name, k))
    at_once = own.score(*batch(name, 9))
    own.models.is_vectorized = False
    one_by_one = own.score(*batch(name, 9))
    torch.testing.assert_close(one_by_one.losses, at_once.losses)
    for mine, theirs in zip(one_by_one.gradients, at_once.gradients, strict=True):
        assert mine.any()
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", LOSSES)
def test_a_buffer_that_training_changes_is_each_experts_own(name: str) -> None:
    pool = a_pool(Moving(layers(name)), name)
    assert not pool.models.is_vectorized
    losses = [float(learn(pool, *batch(name, k)).mean()) for k in range(30)]
    assert all(map(math.isfinite, losses))
    [mean] = pool.buffers.values()
    assert len(mean) == len(EXPERTS)
    assert (mean != 1.0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_module_learns(name: str) -> None:
    pool = a_pool(Own(nn.Sequential(*layers(name), nn.Identity())), name)
    first, *_, last = (float(learn(pool, *batch(name, k)).mean()) for k in range(80))
    assert last < 0.6 * first if name == "binary" else last < first - 0.3


@pytest.mark.parametrize("name", NUMBERS)
def test_answers_of_a_module_stay_where_the_unit_moves(name: str) -> None:
    pool = a_pool(Own(nn.Sequential(*layers(name), nn.Tanh())), name)
    for k in range(20):
        learn(pool, *batch(name, k))
    inputs, _ = batch(name, 99)
    before = pool.predict(inputs)
    pool.rescale(torch.tensor(0.5), torch.tensor(-1.0))
    after = pool.predict(inputs)
    if name == "mean":
        torch.testing.assert_close(after[:, 0], 0.5 * before[:, 0] - 1.0)
    else:
        torch.testing.assert_close(after, 0.5 * before - 1.0)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_module_that_is_bounded_reaches_numbers_of_any_unit(name: str) -> None:
    """The outputs of Tanh are within ±1; the factor and the offset take them further."""
    pool = a_pool(Own(nn.Sequential(*layers(name), nn.Tanh())), name)
    inputs, _ = batch(name, 0)
    for k in range(40):
        learn(pool, *batch(name, k))
    for _ in range(3):
        pool.rescale(torch.tensor(2.0), torch.tensor(0.0))
    assert pool.predict(inputs).abs().max() > 1.5
    pool.rescale(torch.tensor(1.0), torch.tensor(2.0 * REACH))
    weight, bias = list(pool.parameters.values())[-2:]
    assert not weight.any(), "what was learned of numbers out of reach says nothing"
    assert not bias.any()
    losses = [float(learn(pool, *batch(name, k)).mean()) for k in range(100, 180)]
    assert losses[-1] < losses[0] - 0.3


def test_only_what_predicts_numbers_and_is_no_perceptron_gets_a_unit_of_its_own() -> None:
    for name, loss in LOSSES.items():
        assert not isinstance(with_unit(layers(name), loss), InUnit)
        assert isinstance(with_unit(Own(layers(name)), loss), InUnit) == (name in NUMBERS)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_at_which_a_module_raises_changes_nothing(name: str) -> None:
    pool = a_pool(Own(layers(name)), name)
    for k in range(5):
        learn(pool, *batch(name, k))
    before = {key: tensor.clone() for key, tensor in pool.tensors().items()}
    inputs, labels = batch(name, 9)
    scored = pool.failed(labels, len(getattr(LOSSES[name], "quantiles", (0,))))
    assert scored.losses.isnan().all()
    assert scored.answers.shape == pool.score(inputs, labels).answers.shape
    pool.decide(scored, scored.healthy.any())
    for key, tensor in pool.tensors().items():
        assert torch.equal(tensor, before[key]), key


def test_all_experts_begin_alike() -> None:
    parameters, _ = Experts(Own(layers("mean")), 3, FEATURES, LOSSES["mean"]).stack()
    for tensor in parameters.values():
        assert all(torch.equal(one, other) for one, other in pairwise(tensor))
