"""An eager step shares operators among tensors and cuts large ones, and no bit shows it."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from funnel import SGD, Adagrad, AdagradEMA, Adam, Funnel, RMSprop, update
from funnel.inner.interface import Flags, StateLists
from tests.benchmarks.step import Counted

SHAPES = [(7, 5), (), (33,), (2, 3, 4), (300,)]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"normalize_gain": False, "normalize_scale": False, "lr": torch.tensor(0.03)},
    {"skip_nonfinite": False, "maximize": True},
    *({"inner": inner} for inner in (SGD(), Adagrad(), AdagradEMA(), RMSprop(), Adam())),
]


def parameters(shapes: list[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradients(params: list[nn.Parameter], t: int, finite: bool = True) -> None:
    """Set the gradients of step t: each tensor lacks one now and then, or has one with NaN."""
    for i, p in enumerate(params):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * t + i))
        if (i + t) % 5 == 2:
            p.grad = None
        elif (i + t) % 7 == 4 and not finite:
            p.grad.view(-1)[0] = torch.nan


def bits(opt: Funnel, p: Tensor) -> list[Tensor]:
    state = opt.state[p]
    own = [value for value in state.values() if torch.is_tensor(value)]
    return [p.detach(), *own, *state["inner"].values()]


def assert_same(opt: Funnel, p: Tensor, other: Funnel, q: Tensor) -> None:
    for x, y in zip(bits(opt, p), bits(other, q), strict=True):
        assert torch.equal(x, y)
        assert torch.equal(x.signbit(), y.signbit())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_tensors_that_step_together_get_the_bits_of_each_alone(variant: dict[str, Any]) -> None:
    params, alone = parameters(), parameters()
    opt = Funnel(params, **variant)
    own = [Funnel([p], **variant) for p in alone]
    for t in range(12):
        for some in (params, alone):
            gradients(some, t, finite=not variant.get("skip_nonfinite", True))
        opt.step()
        for each in own:
            each.step()
    for number, (p, q, each) in enumerate(zip(params, alone, own, strict=True)):
        assert_same(opt, p, each, q)
        mine, its = opt.telemetry()[number], each.telemetry()[0]
        for key in ("alignment", "gradient_norm"):
            torch.testing.assert_close(mine[key], its[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_pieces_get_the_bits_of_whole_tensors(
    variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, whole = parameters(), parameters()
    opt, other = Funnel(params, **variant), Funnel(whole, **variant)
    for t in range(8):
        for some in (params, whole):
            gradients(some, t, finite=not variant.get("skip_nonfinite", True))
        other.step()
        with monkeypatch.context() as cut:
            cut.setattr(update, "BLOCK", 32)
            opt.step()
    for p, q in zip(params, whole, strict=True):
        assert_same(opt, p, other, q)


@dataclass(frozen=True)
class Largest(Adagrad):
    """Divides by the largest gradient of the whole tensor."""

    def precondition(
        self, grads: list[Tensor], state: StateLists, step: list[Tensor], active: Flags
    ) -> list[Tensor]:
        return [g / g.abs().max().clamp(min=1e-6) for g in grads]


def test_an_inner_optimizer_that_overrides_the_method_gets_whole_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Adagrad.is_coordinatewise()
    assert not Largest.is_coordinatewise()
    monkeypatch.setattr(update, "BLOCK", 32)
    [w] = parameters([(300,)])
    before = w.detach().clone()
    w.grad = torch.arange(300.0)
    Funnel([w], Largest(), lr=1.0).step()
    assert torch.allclose(before - w, w.grad / 299, atol=1e-6)


def test_a_copy_shares_no_numbers_with_its_original() -> None:
    params = parameters()
    opt = Funnel(params)
    gradients(params, 0)
    opt.step()
    before = opt.state[params[0]]["step"].clone()
    twin = copy.deepcopy(opt)
    for p in twin.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    twin.step()
    assert torch.equal(opt.state[params[0]]["step"], before)
    assert twin.state[twin.param_groups[0]["params"][0]]["step"] == before + 1


def test_fifty_tensors_cost_three_operators_each_and_fifty_others() -> None:
    params = parameters([(4, 4), (4,)] * 25)
    opt = Funnel(params)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    with Counted() as counted:
        opt.step()
    assert counted.found["aten.dot.default"] == counted.found["aten.where.self"] == 50
    assert counted.found["aten.view.default"] <= 50
    assert counted.found.total() - 150 <= 60
