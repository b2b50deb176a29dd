"""The traced step is the eager one, bit for bit."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from funnel import SGD, Adagrad, AdagradEMA, Adam, Funnel, Inner, RMSprop
from funnel.traced import KEPT, Traced


def walk(
    traced: bool, inner: Inner | None = None, steps: int = 12, **settings: Any
) -> tuple[list[torch.Tensor], Funnel]:
    generator = torch.Generator().manual_seed(0)
    params = [
        nn.Parameter(torch.ones(5, 3)),
        nn.Parameter(torch.ones(4, dtype=torch.bfloat16)),
        nn.Parameter(torch.ones(2, dtype=torch.float64)),
    ]
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01} | settings
    opt = Funnel(params, inner, traced=traced, **options)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 5, gamma=0.5)
    for k in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        if k == 6:
            params[0].grad[0, 0] = torch.nan
        opt.step()
        scheduler.step()
    found = [p.detach() for p in params]
    for p in params:
        inner_state = opt.state[p]["inner"]
        found += [v for k, v in opt.state[p].items() if k != "inner"] + list(inner_state.values())
    for telemetry in opt.telemetry().values():
        found += [telemetry["alignment"], telemetry["gradient_norm"]]
    return found, opt


@pytest.mark.parametrize("settings", [
    {}, {"nesterov": True}, {"normalize_gain": False, "normalize_scale": False},
    {"skip_nonfinite": False, "weight_decay": 0.0, "momentum": 0.0}, {"maximize": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize(
    "inner", [SGD(), Adagrad(), AdagradEMA(), Adam(), RMSprop()], ids=lambda i: type(i).__name__
)
def test_traced_steps_are_the_eager_ones_bit_for_bit(
    inner: Inner, settings: dict[str, Any]
) -> None:
    for mine, theirs in zip(
        walk(True, inner, **settings)[0], walk(False, inner, **settings)[0], strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def test_it_goes_on_after_loading_and_copying() -> None:
    _, one = walk(True)
    _, eager = walk(False)
    loaded = Funnel([nn.Parameter(p.detach().clone()) for p in eager.param_groups[0]["params"]],
                    lr=0.1, momentum=0.9, weight_decay=0.01, traced=True)  # fmt: skip
    loaded.load_state_dict(one.state_dict())
    copied = copy.deepcopy(one)
    assert copied.traced
    for opt in (eager, loaded, copied):
        for _ in range(4):
            for p in opt.param_groups[0]["params"]:
                p.grad = torch.full_like(p, 0.3)
            opt.step()
    for mine, copies, theirs in zip(
        *(o.param_groups[0]["params"] for o in (loaded, copied, eager)), strict=True
    ):
        assert torch.equal(mine, theirs)
        assert torch.equal(copies, theirs)


def test_a_tensor_learning_rate_takes_effect() -> None:
    w, lr = nn.Parameter(torch.zeros(3)), torch.tensor(1.0)
    opt = Funnel([w], SGD(), lr=lr, gain_lr=0.0, scale_lr=0.0, traced=True)
    for value in (1.0, 1.0, 1.0, 0.5):
        lr.fill_(value)
        w.grad = torch.ones(3)
        opt.step()
    assert w.tolist() == [-3.5] * 3


def test_a_step_is_either_compiled_or_traced() -> None:
    with pytest.raises(ValueError, match="compiled or traced"):
        Funnel([nn.Parameter(torch.zeros(1))], compiled=True, traced=True)


def test_a_traced_function_sees_its_state_change_and_new_shapes() -> None:
    state = torch.zeros(2)

    def add(x: torch.Tensor) -> torch.Tensor:
        state.add_(x.sum())
        return state * len(x)

    traced, eager_state = Traced(add, [state]), torch.zeros(2)
    for n in [*range(1, KEPT + 3)] * 2 + [3] * 6:
        eager_state += n
        assert torch.equal(traced(torch.ones(n)), eager_state * n)
    state.zero_()
    assert torch.equal(traced(torch.ones(3)), torch.full((2,), 9.0))
