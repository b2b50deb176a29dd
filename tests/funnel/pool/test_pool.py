"""A pool of one is a Funnel, bit for bit; K experts are K Funnels."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import profile

from funnel import SGD, Expert, Funnel, Pool
from funnel.graphs.repeated import CALLS_BEFORE
from funnel.pool.backprop import differentiate_experts, is_perceptron
from funnel.pool.clipping import NormCap
from funnel.pool.expert import DEFAULT_EXPERTS, WIDTH, for_width
from funnel.pool.renewal import UNKNOWN
from tests.support.pools import EXPERTS, FEATURES, KEEP, MODULES, batches, learn, made


class Single:
    """A Funnel with the cap on its gradient, as the service runs it."""

    def __init__(self, module: nn.Module, expert: Expert) -> None:
        self.module, self.cap = module, NormCap.fresh((), torch.device("cpu"))
        self.learned = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.opt = Funnel(
            self.learned.items(),
            expert.inner,
            lr=expert.lr,
            momentum=expert.momentum,
            gain_lr=expert.gain_lr,
            scale_lr=expert.scale_lr,
        )

    def learn(self, inputs: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
        torch.manual_seed(seed)
        parameters = list(self.learned.values())
        with torch.no_grad():
            losses = F.cross_entropy(self.module.eval()(inputs), labels, reduction="none")
        if is_perceptron(self.module):
            with torch.no_grad():
                stacked = [p[None] for p in parameters]
                found = differentiate_experts(stacked, inputs, labels)
            losses, gradients = found.losses[0], [g[0] for g in found.gradients]
        else:
            loss = F.cross_entropy(self.module.train()(inputs), labels)
            gradients = list(torch.autograd.grad(loss, parameters))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, self.cap.factor(norm))
        self.cap.update(norm, KEEP)
        self.opt.step()
        return losses

    def tensors(self) -> dict[str, Tensor]:
        named = {f"model.{k}": v.detach() for k, v in self.module.named_parameters()}
        named |= {f"model.{k}": v for k, v in self.module.named_buffers()}
        named["norm_level"] = self.cap.level
        named["excess"] = torch.tensor(UNKNOWN)
        for name, p in self.learned.items():
            state = self.opt.state[p]
            named |= {f"optimizer.{name}.{k}": v for k, v in state.items() if k != "inner"}
            named |= {f"optimizer.{name}.inner.{k}": v for k, v in state["inner"].items()}
        return named


def of_expert(pool: Pool, k: int) -> dict[str, Tensor]:
    """Return one expert's tensors, named as `Single` names them."""
    named: dict[str, Tensor] = {}
    runs = [(prefix, own) for prefix, _, own in pool.inner.slices]
    for name, tensor in pool.tensors().items():
        stem, _, key = name.partition(".inner.")
        if not key and not name.startswith("mixing."):
            named[name] = tensor[k]
        for prefix, own in runs:
            if key.startswith(prefix) and own.start <= k < own.stop:
                named[f"{stem}.inner.{key.removeprefix(prefix)}"] = tensor[k - own.start]
    return named


@pytest.mark.parametrize("expert", EXPERTS, ids=lambda e: f"{type(e.inner).__name__}-{e.lr}")
@pytest.mark.parametrize("name", MODULES)
def test_a_pool_of_one_is_the_single_funnel_bit_for_bit(name: str, expert: Expert) -> None:
    pool, single = Pool(made(name), FEATURES, [expert]), Single(made(name), expert)
    for seed, batch in enumerate(batches(12)):
        assert torch.equal(learn(pool, *batch, seed), single.learn(*batch, seed))
    expected = single.tensors()
    own = of_expert(pool, 0)
    assert own.keys() == expected.keys()
    for key, tensor in own.items():
        assert torch.equal(tensor.flatten(), expected[key].flatten()), key
    inputs = torch.randn(5, FEATURES)
    with torch.no_grad():
        logits = pool.models.outputs(pool.parameters, pool.buffers, inputs)[0]
    assert torch.equal(pool.predict(inputs), logits.softmax(dim=1))


@pytest.mark.parametrize("name", MODULES)
def test_experts_side_by_side_are_as_many_funnels(name: str) -> None:
    pool = Pool(made(name), FEATURES, EXPERTS)
    singles = [Single(made(name), expert) for expert in EXPERTS]
    steps = 1 if name == "dropout" else 10  # each expert drops units of its own
    if name == "dropout":
        pool.models.module[1].p = 0.0
        for single in singles:
            single.module[1].p = 0.0
    for batch in batches(steps):
        learn(pool, *batch)
        for single in singles:
            single.learn(*batch)
    for k, single in enumerate(singles):
        expected = single.tensors()
        for key, tensor in of_expert(pool, k).items():
            other = expected[key].view(tensor.shape)
            torch.testing.assert_close(tensor, other, rtol=1e-3, atol=1e-5, msg=f"{k} {key}")


def test_modules_take_the_way_that_they_can() -> None:
    ways = {name: Pool(made(name), FEATURES, EXPERTS).models for name in MODULES}
    assert [n for n, m in ways.items() if m.is_plain] == ["logistic", "mlp"]
    assert [n for n, m in ways.items() if m.is_vectorized] == [
        "tanh", "dropout", "tempered", "frozen", "shared", "tied", "hooked",
    ]  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_a_pool_predicts_what_its_module_does(name: str) -> None:
    inputs, _ = next(batches(1))
    with torch.no_grad():
        expected = made(name).eval()(inputs).softmax(dim=1)
    torch.testing.assert_close(Pool(made(name), FEATURES, EXPERTS).predict(inputs), expected)


def test_what_requires_no_gradient_stays_as_it_is() -> None:
    pool, module = Pool(made("frozen"), FEATURES, EXPERTS), made("frozen")
    for batch in batches(12):
        learn(pool, *batch)
    for name, parameter in module.named_parameters():
        learned = name in pool.parameters
        assert learned == parameter.requires_grad
        for held in (pool.parameters if learned else pool.buffers)[name]:
            assert torch.equal(held, parameter) != learned
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        Pool(made("logistic").requires_grad_(False), FEATURES, EXPERTS)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pool: pickle.loads(pickle.dumps(pool))])
def test_a_copy_learns_on_by_itself(copied: Callable[[Pool], Pool]) -> None:
    pool, alone = (Pool(made("logistic"), FEATURES) for _ in range(2))
    found = list(batches(CALLS_BEFORE + 6))
    for batch in found[:-3]:
        learn(pool, *batch)
        learn(alone, *batch)
    other = copied(pool)
    kept = {name: tensor.clone() for name, tensor in pool.tensors().items()}
    for batch in found[-3:]:
        learn(other, *batch)
        learn(alone, *batch)
    for name, tensor in pool.tensors().items():
        assert torch.equal(tensor, kept[name]), name
        assert torch.equal(other.tensors()[name], alone.tensors()[name]), name


def test_experts_drop_units_of_their_own_and_the_same_again() -> None:
    first, again = (Pool(made("dropout"), FEATURES, EXPERTS[:1] * 2) for _ in range(2))
    for seed, batch in enumerate(batches(3)):
        for pool in (first, again):
            learn(pool, *batch, seed)
    weight = first.parameters["0.weight"]
    assert not torch.equal(weight[0], weight[1])
    assert torch.equal(weight, again.parameters["0.weight"])


@pytest.mark.parametrize("name", ["logistic", "mlp", "batchnorm"])
def test_a_pool_resumes_bit_for_bit(name: str) -> None:
    whole = Pool(made(name), FEATURES, EXPERTS)
    found = list(batches(14))
    for batch in found[:6]:
        learn(whole, *batch)
    saved = {key: tensor.clone() for key, tensor in whole.tensors().items()}
    for batch in found[6:]:
        learn(whole, *batch)
    resumed = Pool(made(name), FEATURES, EXPERTS)
    assert resumed.tensors().keys() == saved.keys()
    for key, tensor in resumed.tensors().items():
        assert tensor.dtype == saved[key].dtype
        tensor.copy_(saved[key])
    for batch in found[6:]:
        learn(resumed, *batch)
    for key, tensor in resumed.tensors().items():
        assert torch.equal(tensor, whole.tensors()[key]), key


def test_observing_and_weighing_read_no_element_on_the_host() -> None:
    pool = Pool(made("mlp"), FEATURES, EXPERTS)
    inputs, labels = next(batches(1))
    pool.execution = replace(pool.execution, on_host=False)  # as on a GPU
    with profile() as recorded:
        for _ in range(2):
            seen = pool.score(inputs, labels)
            pool.update(inputs, labels, pool.decide(seen, KEEP))
            pool.predict(inputs)
    reads = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal")
    events = {e.key: e.count for e in recorded.key_averages()}
    assert "aten::mul" in events
    assert [key for key in reads if events.get(key)] == []


def test_telemetry_of_a_pool_of_one_is_the_singles() -> None:
    pool, single = Pool(made("tanh"), FEATURES, EXPERTS[:1]), Single(made("tanh"), EXPERTS[0])
    for batch in batches(9):
        learn(pool, *batch)
        single.learn(*batch)
    mine, theirs = pool.telemetry()["tensors"], single.opt.telemetry()
    assert mine.keys() == theirs.keys()
    for name, report in mine.items():
        assert report.keys() == theirs[name].keys()
        for key, value in report.items():
            torch.testing.assert_close(value, theirs[name][key], msg=f"{name} {key}")


def test_telemetry_is_the_weighted_mean_over_experts() -> None:
    pool = Pool(made("logistic"), FEATURES, EXPERTS)
    for batch in batches(9):
        learn(pool, *batch)
    found, weights = pool.telemetry(), pool.mixing.log_weights.exp()
    torch.testing.assert_close(found["weights"].sum(), torch.tensor(1.0))
    assert found["best"] == weights.argmax()
    log_scale = pool.state.log_scale[0].flatten()
    lr = torch.tensor([e.lr for e in EXPERTS])
    torch.testing.assert_close(
        found["step_sizes"]["weight"], (weights * lr * log_scale.exp()).sum()
    )
    report = found["tensors"]["weight"]
    torch.testing.assert_close(report["scale"], (weights * log_scale).sum().exp())
    mean = (weights[:, None, None] * pool.state.log_gain[0]).sum(dim=0)
    torch.testing.assert_close(report["gain_quantiles"][-1], mean.max().exp())
    torch.testing.assert_close(pool.telemetry()["log_gains"]["weight"], mean)
    assert (report["step"], report["nonfinite_steps"]) == (9, 0)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"experts": ()}, "at least one expert"),
        ({"rate": 2.0}, "rate must be in"),
        ({"switch_rates": (1.0,)}, "switch_rates must be in"),
        ({"switch_rates": ()}, "switch_rates must hold at least one"),
    ],
)
def test_a_pool_refuses_what_makes_none(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Pool(made("logistic"), FEATURES, **arguments)


def test_experts_refuse_foreign_optimizers_and_other_precisions() -> None:
    with pytest.raises(TypeError, match=r"Expert.inner must be a funnel\.Inner"):
        Expert(torch.optim.NAdam, 0.1, 0.1, 0.1)
    with pytest.raises(ValueError, match=r"Expert\.lr must be in"):
        Expert(SGD(), -0.1, 0.1, 0.1)
    with pytest.raises(TypeError, match="experts need fp32 parameters"):
        Pool(made("logistic").double(), FEATURES)


def test_the_default_experts_take_longer_steps_where_inputs_are_narrower() -> None:
    assert for_width(WIDTH) == DEFAULT_EXPERTS
    experts = Pool(made("logistic"), FEATURES).experts
    assert experts == for_width(FEATURES)
    for expert, wide in zip(experts, DEFAULT_EXPERTS, strict=True):
        assert expert.lr == pytest.approx(wide.lr * (WIDTH / FEATURES) ** 0.5, rel=5e-3)
        assert replace(expert, lr=wide.lr) == wide
