"""Experts that take several steps a batch."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from funnel import SGD, Adagrad, Adam, Expert, Inner, Pool
from funnel.pool.clipping import NormCap
from tests.support.pools import CLASSES, EXPERTS, FEATURES, KEEP, batches, learn, made

STEPS = 3  # of batches of 20: pieces of 7, 7 and 6


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("inner", [SGD(), Adagrad(), Adam()], ids=str)
@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_the_inner_optimizer_walks_and_funnel_learns_from_where_it_went(
    name: str, inner: Inner, on_host: bool
) -> None:
    expert = Expert(inner, 0.03, 0.1, 0.05, momentum=0.5, steps=STEPS)
    pool = Pool(made(name), FEATURES, [expert, expert])
    pool.execution = replace(pool.execution, on_host=on_host)
    twin = Twin(made(name), expert)
    for inputs, labels in batches(6):
        learn(pool, inputs, labels)
        twin.learn(inputs.double(), labels)
    for parameter, expected in zip(pool.parameters.values(), twin.weights, strict=True):
        torch.testing.assert_close(parameter[0], parameter[1])
        torch.testing.assert_close(parameter[0], expected.float(), rtol=2e-3, atol=2e-4)
    for mine, expected in zip(pool.state.log_scale, twin.log_scale, strict=True):
        torch.testing.assert_close(mine[0].squeeze(), expected.float(), rtol=1e-3, atol=1e-5)


class Twin:
    """The same in float64, with autograd, one parameter at a time."""

    def __init__(self, module: nn.Module, expert: Expert) -> None:
        self.module, self.expert = module.double(), expert
        self.weights = [p.detach().clone() for p in module.parameters()]
        self.log_gain, self.velocity, self.mean = (
            [torch.zeros_like(w) for w in self.weights] for _ in range(3)
        )
        self.log_scale = [torch.zeros((), dtype=torch.float64) for _ in self.weights]
        self.inner = [expert.inner.init_state(w, torch.float64) for w in self.weights]
        self.walked = 0
        self.cap = NormCap.fresh((), torch.device("cpu"))

    def gradients(self, weights: list[Tensor], inputs: Tensor, labels: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [w.clone().requires_grad_() for w in weights]
            named = dict(zip(dict(self.module.named_parameters()), leaves, strict=True))
            loss = F.cross_entropy(functional_call(self.module, named, (inputs,)), labels)
            return list(torch.autograd.grad(loss, leaves))

    @torch.no_grad()
    def learn(self, inputs: Tensor, labels: Tensor) -> None:
        expert, whole = self.expert, self.gradients(self.weights, inputs, labels)
        norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in whole])).float()
        factor = self.cap.factor(norm).double()
        self.cap.update(norm, KEEP)
        whole = [factor * g for g in whole]
        walk, total = list(self.weights), [torch.zeros_like(w) for w in self.weights]
        for some, theirs in zip(
            inputs.tensor_split(STEPS), labels.tensor_split(STEPS), strict=True
        ):
            for i, g in enumerate(self.gradients(walk, some, theirs)):
                (step,) = expert.inner.precondition(
                    [factor * g],
                    {key: [tensor] for key, tensor in self.inner[i].items()},
                    [torch.tensor(self.walked)],
                    None,
                )
                size = expert.lr * self.log_scale[i].exp() * self.log_gain[i].exp()
                walk[i] = walk[i] - size * step
                total[i] += step
            self.walked += 1
        for i, g in enumerate(whole):
            cosine = F.cosine_similarity(g.flatten(), self.velocity[i].flatten(), dim=0)
            self.log_gain[i] += expert.gain_lr * g.sign() * self.mean[i].sign()
            self.log_scale[i] += expert.scale_lr * cosine
            self.mean[i] = 0.9 * self.mean[i] + 0.1 * total[i]
            gained = expert.lr * self.log_gain[i].exp() * total[i]
            self.velocity[i] = expert.momentum * self.velocity[i] + gained
            self.weights[i] = self.weights[i] - self.log_scale[i].exp() * self.velocity[i]


def test_experts_beside_those_of_several_steps_are_what_they_are_alone() -> None:
    both = Pool(made("logistic"), FEATURES, [EXPERTS[0], replace(EXPERTS[0], steps=STEPS)])
    alone = Pool(made("logistic"), FEATURES, [EXPERTS[0]])
    for batch in batches(12):
        learn(both, *batch)
        learn(alone, *batch)
    for parameter, expected in zip(
        both.parameters.values(), alone.parameters.values(), strict=True
    ):
        torch.testing.assert_close(parameter[:1], expected)
        assert not torch.allclose(parameter[1:], expected)


def test_one_of_several_steps_behind_those_of_one_is_what_it_is_alone() -> None:
    walks = replace(EXPERTS[4], steps=STEPS)
    both = Pool(made("logistic"), FEATURES, [EXPERTS[0], EXPERTS[3], walks])
    alone = Pool(made("logistic"), FEATURES, [walks])
    for batch in batches(12):
        learn(both, *batch)
        learn(alone, *batch)
    for mine, expected in zip(both.parameters.values(), alone.parameters.values(), strict=True):
        torch.testing.assert_close(mine[2:], expected)


def test_a_batch_of_fewer_examples_than_steps_is_learned() -> None:
    pool = Pool(made("logistic"), FEATURES, [replace(EXPERTS[0], steps=STEPS)])
    before = pool.parameters["weight"].clone()
    learn(pool, torch.randn(2, FEATURES), torch.arange(2))
    assert not torch.equal(pool.parameters["weight"], before)


@pytest.mark.parametrize("name", ["tanh", "batchnorm"])
def test_modules_that_may_look_at_the_whole_batch_take_one_step(name: str) -> None:
    pool = Pool(made(name), FEATURES, [replace(EXPERTS[0], steps=STEPS)])
    whole = Pool(made(name), FEATURES, [EXPERTS[0]])
    batch = next(batches(1))
    learn(pool, *batch)
    learn(whole, *batch)
    for mine, theirs in zip(pool.parameters.values(), whole.parameters.values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("keep", [True, False])
def test_a_batch_that_is_not_learned_moves_nobody(keep: bool) -> None:
    pool = Pool(made("logistic"), FEATURES, [replace(EXPERTS[0], steps=STEPS)])
    pool.execution = replace(
        pool.execution, on_host=False
    )  # as on a GPU: the step is taken, masked
    learn(pool, *next(batches(1)))
    before = {name: p.clone() for name, p in pool.parameters.items()}
    inputs, labels = torch.randn(8, FEATURES), torch.arange(8) % CLASSES
    if keep:
        inputs[3, 0] = torch.nan
    seen = pool.score(inputs, labels)
    pool.update(inputs, labels, pool.decide(seen, KEEP & keep))
    for name, parameter in pool.parameters.items():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("on_host", [False, True])
def test_an_expert_that_overflows_on_its_walk_restarts_from_the_best(on_host: bool) -> None:
    wild = Expert(SGD(), 1e38, 0.1, 0.03, steps=STEPS)
    greedy = replace(EXPERTS[0], lr=1e38, steps=STEPS)
    pool = Pool(
        made("logistic"), FEATURES, [EXPERTS[0], replace(EXPERTS[0], pull=0.1), wild, greedy]
    )
    pool.execution = replace(pool.execution, on_host=on_host)
    before = pool.parameters["weight"].clone()
    for batch in batches(4):
        learn(pool, *batch)
    weight, best = pool.parameters["weight"], int(pool.mixing.log_weights.argmax())
    assert (weight != before).any(dim=-1).all()
    assert torch.equal(weight[2], weight[3])
    assert torch.equal(pool.state.log_gain[0][2], pool.state.log_gain[0][best])
    assert all(tensor.isfinite().all() for tensor in pool.tensors().values())


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_steps_are_a_whole_number_above_zero(steps: object) -> None:
    with pytest.raises(ValueError, match=r"Expert\.steps must be an integer of at least 1"):
        replace(EXPERTS[0], steps=steps)
