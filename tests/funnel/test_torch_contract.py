"""Funnel keeps the contract of ``torch.optim.Optimizer``."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from funnel import SGD, Adagrad, Adam, Funnel, Inner


def model_and_loss() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(32, 6), torch.randint(3, (32,))
    return model, lambda: nn.functional.cross_entropy(model(x), y)


def train(opt: torch.optim.Optimizer, loss: Callable[[], torch.Tensor], steps: int) -> float:
    for _ in range(steps):
        opt.zero_grad()
        value = loss()
        value.backward()
        opt.step()
    return float(loss().detach())


def test_it_learns_a_small_problem() -> None:
    model, loss = model_and_loss()
    before = float(loss().detach())
    assert train(Funnel(model.parameters()), loss, 200) < 0.5 * before


def test_each_group_sets_every_hyperparameter_of_its_own() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    opt = Funnel(
        [
            {"params": [a], "lr": 0.5, "inner": SGD(), "gain_lr": 0.0, "scale_lr": 0.0},
            {"params": [b], "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        ],
        lr=0.1,
        inner=Adagrad(),
    )
    a.grad, b.grad = torch.full((3,), 2.0), torch.full((3,), 2.0)
    opt.step()
    assert torch.equal(a.detach(), torch.zeros(3))
    torch.testing.assert_close(b.detach(), torch.full((3,), 1 - 0.01 - 0.1 - 0.09))
    assert list(opt.state[a]["inner"]) == []
    assert list(opt.state[b]["inner"]) == ["sum"]


def test_a_group_can_join_at_any_step() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    opt = Funnel([a])
    a.grad = torch.ones(3)
    opt.step()
    opt.add_param_group({"params": [b], "lr": 0.5, "inner": Adam()})
    b.grad = torch.ones(3)
    opt.step()
    assert opt.state[a]["step"] == 2
    assert opt.state[b]["step"] == 1


def test_frozen_and_gradientless_parameters_do_not_change() -> None:
    moving, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3), requires_grad=False)
    idle = nn.Parameter(torch.ones(3))
    opt = Funnel([moving, frozen, idle], weight_decay=0.1)
    moving.grad = torch.ones(3)
    opt.step()
    assert torch.equal(frozen, torch.ones(3))
    assert torch.equal(idle.detach(), torch.ones(3))
    assert list(opt.telemetry()) == [0]
    idle.grad = torch.ones(3)
    opt.step()
    assert opt.state[idle]["step"] == 1


def test_a_step_without_any_gradient_does_nothing() -> None:
    opt = Funnel([nn.Parameter(torch.ones(3))])
    opt.step()
    assert not opt.state
    assert opt.telemetry() == {}


def test_the_closure_runs_once_with_autograd_on_and_its_loss_comes_back() -> None:
    w = nn.Parameter(torch.ones(3))
    opt = Funnel([w])
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        opt.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return float(loss.detach())

    with torch.no_grad():
        assert opt.step(closure) == 3.0
    assert calls == [True]
    assert opt.state[w]["step"] == 1


def test_autograd_is_as_it_was_after_an_exception_in_the_closure() -> None:
    opt = Funnel([nn.Parameter(torch.ones(3))])

    def closure() -> float:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        opt.step(closure)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("inner", [Adagrad(), torch.optim.Adam])
def test_every_hook_is_called_exactly_once_a_step(inner: Any) -> None:
    w = nn.Parameter(torch.ones(3))
    opt, calls = Funnel([w], inner), []
    handles = [
        opt.register_step_pre_hook(lambda *_: calls.append("pre")),
        opt.register_step_post_hook(lambda *_: calls.append("post")),
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    w.grad = torch.ones(3)
    try:
        opt.step()
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(calls) == ["global post", "global pre", "post", "pre"]


def test_learning_rate_schedulers_drive_the_groups() -> None:
    w = nn.Parameter(torch.zeros(1))
    opt = Funnel([w], SGD(), lr=1.0, gain_lr=0.0, scale_lr=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    for _ in range(3):
        w.grad = torch.ones(1)
        opt.step()
        scheduler.step()
    assert w.item() == -(1 + 0.5 + 0.25)


def test_a_cyclic_scheduler_may_also_set_the_momentum() -> None:
    w = nn.Parameter(torch.zeros(1))
    opt = Funnel([w], momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=10)
    seen = set()
    for _ in range(9):
        w.grad = torch.ones(1)
        opt.step()
        scheduler.step()
        seen.add(opt.param_groups[0]["momentum"])
    assert len(seen) > 3


def test_a_learning_rate_may_be_a_tensor() -> None:
    grads = [torch.randn(4) for _ in range(5)]
    weights = []
    for lr in (0.1, torch.tensor(0.1)):
        w = nn.Parameter(torch.ones(4))
        opt = Funnel([w], lr=lr)
        for g in grads:
            w.grad = g
            opt.step()
        weights.append(w.detach())
    torch.testing.assert_close(*weights)


def test_a_step_that_grad_scaler_skips_changes_nothing() -> None:
    w = nn.Parameter(torch.ones(3))
    opt = Funnel([w])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale((w**2).sum()).backward()
    scaler.step(opt)
    scaler.update()
    before, state = w.detach().clone(), copy.deepcopy(opt.state_dict())
    w.grad = torch.full((3,), torch.inf)
    scaler.scale(torch.tensor(1.0))
    scaler.step(opt)
    scaler.update()
    assert torch.equal(w.detach(), before)
    assert_same_state(opt.state_dict(), state)
    assert scaler.get_scale() == 2.0


def test_maximizing_equals_descending_the_negative() -> None:
    up, down = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    climber, descender = Funnel([up], maximize=True), Funnel([down])
    for _ in range(10):
        up.grad = torch.randn(4)
        down.grad = -up.grad
        climber.step()
        descender.step()
    assert torch.equal(up.detach(), down.detach())
    assert climber.telemetry()[0]["alignment"] == descender.telemetry()[0]["alignment"]


def test_a_step_changes_no_gradient() -> None:
    w = nn.Parameter(torch.ones(4))
    for inner in (SGD(), Adam(), torch.optim.Adam):
        opt = Funnel([w], inner, skip_nonfinite=False)
        g = torch.randn(4)
        w.grad = g.clone()
        opt.step()
        assert torch.equal(w.grad, g)


def duplicate(opt: Funnel, how: str) -> Funnel:
    if how == "deepcopy":
        return copy.deepcopy(opt)
    buffer = io.BytesIO(pickle.dumps(opt))
    return pickle.load(buffer)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("inner", [Adam(), torch.optim.NAdam], ids=["native", "foreign"])
def test_a_copy_continues_exactly_as_the_original(how: str, inner: Any) -> None:
    w = nn.Parameter(torch.ones(4))
    opt = Funnel([("w", w)], inner, momentum=0.9)
    w.grad = torch.randn(4)
    opt.step()
    twin = duplicate(opt, how)
    [v] = twin.param_groups[0]["params"]
    assert v is not w
    for _ in range(5):
        w.grad = torch.randn(4)
        v.grad = w.grad.clone()
        opt.step()
        twin.step()
    assert torch.equal(v.detach(), w.detach())
    assert_same_state(twin.state_dict(), opt.state_dict())
    assert list(twin.telemetry()) == ["w"]


def assert_same_state(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_state(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_state(x, y)
    else:
        assert a == b


def test_own_state_and_inner_state_are_separate() -> None:
    w = nn.Parameter(torch.ones(4))
    opt = Funnel([w], Adam())
    w.grad = torch.ones(4)
    opt.step()
    own = {"step", "log_gain", "log_scale", "velocity", "precond_ema", "nonfinite", "inner"}
    assert set(opt.state[w]) == own
    assert set(opt.state[w]["inner"]) == {"exp_avg", "exp_avg_sq"}


def test_scalars_empty_and_strided_parameters_work() -> None:
    scalar, empty = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.empty(0, 3))
    image = nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    opt = Funnel([scalar, empty, image])
    for p in (scalar, empty, image):
        p.grad = torch.ones_like(p)
    opt.step()
    image.grad = torch.ones(2, 3, 4, 4)  # its strides differ from those of the weights
    opt.step()
    assert opt.state[image]["velocity"].is_contiguous(memory_format=torch.channels_last)
    assert scalar.item() < 1.0
    assert all(t["scale"].isfinite() for t in opt.telemetry().values())


def test_tensors_of_several_dtypes_share_one_optimizer() -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    params = [nn.Parameter(torch.ones(4, dtype=d)) for d in dtypes]
    opt = Funnel(params, lr=0.125)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    for p in params:
        torch.testing.assert_close(p.detach(), torch.full_like(p, 0.875))
    state_dtypes = [opt.state[p]["log_gain"].dtype for p in params]
    assert state_dtypes == [torch.float32] * 3 + [torch.float64]


@dataclass(frozen=True)
class SignDescent(Inner):
    """g̃ = strength · sgn(g): an inner optimizer as a user might write it."""

    strength: float = 1.0

    def precondition(self, grads: Any, state: Any, step: Any, active: Any) -> list[torch.Tensor]:
        return [self.strength * g.sign() for g in grads]


def test_an_inner_optimizer_of_a_user_works_and_resumes() -> None:
    w, v = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    opt = Funnel([w], SignDescent(0.5), lr=1.0)
    w.grad = torch.tensor([3.0, -4.0])
    opt.step()
    assert w.tolist() == [-0.5, 0.5]
    twin = Funnel([v], SignDescent())
    twin.load_state_dict(opt.state_dict())
    assert twin.param_groups[0]["inner"] == SignDescent(0.5)
