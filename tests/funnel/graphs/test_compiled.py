"""The compiled step does what the eager one does, and is compiled once."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from funnel import Funnel

pytestmark = pytest.mark.slow


def walk(compiled: bool, scheduled: bool = False, **settings: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(4, dtype=torch.bfloat16))]
    opt = Funnel(params, lr=0.1, momentum=0.9, weight_decay=0.01, compiled=compiled, **settings)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9 if scheduled else 1.0)
    for _ in range(20):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        opt.step()
        scheduler.step()
    assert all(opt.state[p]["step"] == 20 for p in params)
    return [p.detach() for p in params]


def test_a_learning_rate_schedule_does_not_recompile_and_takes_effect() -> None:
    counters.clear()
    compiled = walk(True, scheduled=True)
    assert counters["stats"]["unique_graphs"] == 1
    for ours, eager in zip(compiled, walk(False, scheduled=True), strict=True):
        torch.testing.assert_close(ours, eager)


def test_a_tensor_learning_rate_does_not_recompile() -> None:
    w = nn.Parameter(torch.zeros(3))
    lr = torch.tensor(1.0)
    opt = Funnel([w], lr=lr, gain_lr=0.0, scale_lr=0.0, compiled=True)
    counters.clear()
    for value in (1.0, 0.5, 0.25):
        lr.fill_(value)
        w.grad = torch.ones(3)
        opt.step()
    assert counters["stats"]["unique_graphs"] == 1
    expected = 1.0 + 0.5 / 2**0.5 + 0.25 / 3**0.5
    torch.testing.assert_close(w.detach(), torch.full((3,), -expected))


def test_many_optimizers_in_one_process_do_not_use_up_each_others_recompilations() -> None:
    for n in range(1, 11):
        w = nn.Parameter(torch.zeros(n))
        opt = Funnel([w], compiled=True)
        w.grad = torch.ones(n)
        counters.clear()
        opt.step()
        assert counters["stats"]["unique_graphs"] == 1


def test_parameters_may_lose_and_regain_their_gradients() -> None:
    a, b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    opt = Funnel([a, b], compiled=True)
    for with_b in (True, False, True):
        a.grad = torch.ones(3)
        b.grad = torch.ones(2) if with_b else None
        opt.step()
    assert (int(opt.state[a]["step"]), int(opt.state[b]["step"])) == (3, 2)
