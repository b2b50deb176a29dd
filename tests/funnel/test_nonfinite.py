"""A gradient that is not finite is counted and leaves its tensor's weights and state unchanged."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from funnel import SGD, Adagrad, AdagradEMA, Adam, Funnel, RMSprop

INNERS = [SGD(), Adagrad(), AdagradEMA(), RMSprop(), Adam(), torch.optim.NAdam]
POISON = [torch.nan, torch.inf, -torch.inf, 1e30]  # the square of the last is not finite in fp32


def snapshot(w: nn.Parameter, opt: Funnel) -> dict[str, Any]:
    saved = copy.deepcopy(opt.state_dict())
    for state in saved["state"].values():
        del state["nonfinite"]
    return {"w": w.detach().clone(), **saved}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("inner", INNERS, ids=str)
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
def test_a_nonfinite_gradient_changes_nothing_but_the_count(
    inner: Any, poison: float, first: bool
) -> None:
    w, healthy = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    opt = Funnel([w], inner, momentum=0.9, weight_decay=0.1, normalize_gain=False)
    if not first:
        for _ in range(3):
            w.grad = torch.randn(4)
            opt.step()
    before = snapshot(w, opt)
    del healthy
    w.grad = torch.tensor([1.0, poison, 2.0, 3.0])
    opt.step()
    after = snapshot(w, opt)
    if first:  # the state was allocated, as it is before any step
        assert torch.equal(after["w"], before["w"])
        assert opt.state[w]["step"] == 0
        assert not any(v.any() for v in after["state"][0].values() if isinstance(v, torch.Tensor))
    else:
        assert same(before, after)
    assert opt.telemetry()[0]["nonfinite_steps"] == 1


@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_a_nonfinite_gradient_has_no_effect_on_later_steps(inner: Any) -> None:
    grads = [torch.randn(4) for _ in range(6)]
    ends = []
    for poisoned in (False, True):
        w = nn.Parameter(torch.ones(4))
        opt = Funnel([w], inner, momentum=0.9)
        if poisoned:
            w.grad = torch.full((4,), torch.nan)
            opt.step()
        for i, g in enumerate(grads):
            w.grad = g.clone()
            opt.step()
            if poisoned and i == 2:
                w.grad = torch.full((4,), torch.inf)
                opt.step()
        ends.append(snapshot(w, opt))
    assert same(*ends)


def test_finite_tensors_of_the_same_step_are_updated() -> None:
    sick, healthy = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    opt = Funnel([sick, healthy], lr=0.25)
    sick.grad, healthy.grad = torch.full((4,), torch.nan), torch.ones(4)
    opt.step()
    assert torch.equal(sick.detach(), torch.ones(4))
    assert torch.equal(healthy.detach(), torch.full((4,), 0.75))
    counts = {k: (int(t["step"]), int(t["nonfinite_steps"])) for k, t in opt.telemetry().items()}
    assert counts == {0: (0, 1), 1: (1, 0)}


def test_a_bf16_gradient_beyond_fp32_squares_is_skipped_too() -> None:
    w = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    opt = Funnel([w], Adagrad())
    w.grad = torch.full((2,), 1e25, dtype=torch.bfloat16)
    opt.step()
    assert torch.equal(w.detach(), torch.ones(2, dtype=torch.bfloat16))
    assert not opt.state[w]["inner"]["sum"].any()


def test_without_skip_nonfinite_a_nan_reaches_the_weights() -> None:
    w = nn.Parameter(torch.ones(2))
    opt = Funnel([w], skip_nonfinite=False)
    w.grad = torch.tensor([torch.nan, 1.0])
    opt.step()
    assert w.detach().isnan().tolist() == [True, False]
    assert opt.telemetry()[0]["nonfinite_steps"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("inner", INNERS[:-1], ids=str)
def test_the_compiled_step_skips_exactly_too(inner: Any) -> None:
    w = nn.Parameter(torch.ones(4))
    opt = Funnel([w], inner, momentum=0.9, weight_decay=0.1, compiled=True)
    for _ in range(2):
        w.grad = torch.randn(4)
        opt.step()
    before = snapshot(w, opt)
    w.grad = torch.tensor([1.0, torch.nan, 2.0, 3.0])
    opt.step()
    assert same(before, snapshot(w, opt))
    assert opt.telemetry()[0]["nonfinite_steps"] == 1
