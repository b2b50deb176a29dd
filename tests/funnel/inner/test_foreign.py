"""Any torch optimizer can be an inner optimizer, through zero proxies."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from funnel import Adagrad, Adam, ForeignInner, Funnel, Inner, RMSprop

FOREIGN = [
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    partial(torch.optim.AdamW, weight_decay=0.0),
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    partial(torch.optim.SGD, momentum=0.9),
]


def walk(dtype: torch.dtype, steps: int, make: Any) -> torch.Tensor:
    w = nn.Parameter(torch.ones(5, dtype=dtype))
    opt = make([w])
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        w.grad = torch.randn(5, generator=generator).to(dtype)
        opt.step()
    return w.detach()


@pytest.mark.parametrize("factory", FOREIGN, ids=str)
def test_without_meta_learning_one_step_is_the_foreign_optimizers_own_at_lr_one(
    factory: Any,
) -> None:
    ours = walk(torch.float32, 1, lambda ps: Funnel(ps, factory, lr=1.0, gain_lr=0.0, scale_lr=0.0))
    theirs = walk(torch.float32, 1, partial(factory, lr=1.0))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("factory", [torch.optim.Adagrad, torch.optim.Adam, torch.optim.NAdam])
def test_without_meta_learning_fifty_steps_are_the_foreign_optimizers_own(factory: Any) -> None:
    lr = 2.0**-6
    ours = walk(torch.float32, 50, lambda ps: Funnel(ps, factory, lr=lr, gain_lr=0.0, scale_lr=0.0))
    theirs = walk(torch.float32, 50, partial(factory, lr=lr))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("native", "foreign"),
    [
        (Adagrad(), torch.optim.Adagrad),
        (RMSprop(), torch.optim.RMSprop),
        (Adam(), torch.optim.Adam),
    ],
    ids=["Adagrad", "RMSprop", "Adam"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_native_and_foreign_of_the_same_kind_agree(
    native: Inner, foreign: Any, dtype: torch.dtype
) -> None:
    ours, theirs = (
        walk(dtype, 40, lambda ps, inner=inner: Funnel(ps, inner, momentum=0.5))
        for inner in (native, foreign)
    )
    torch.testing.assert_close(ours, theirs)


def test_each_group_has_its_own_foreign_optimizer() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    shared = ForeignInner(torch.optim.Adam)
    opt = Funnel([{"params": [a]}, {"params": [b]}], shared)
    first, second = (g["inner"] for g in opt.param_groups)
    assert first is not second is not shared
    a.grad = torch.ones(2)
    opt.step()
    assert first.optimizer.state
    assert not second.optimizer.state


def test_a_foreign_optimizer_sees_no_step_for_a_parameter_without_gradient() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    opt = Funnel([a, b], torch.optim.Adam)
    b.grad = torch.ones(2)
    opt.step()
    assert torch.equal(a.detach(), torch.ones(2))
    assert len(opt.param_groups[0]["inner"].optimizer.state) == 1


def test_no_bit_of_a_bf16_step_is_lost_to_the_size_of_the_weight() -> None:
    """The difference of the weight before and after would be 0 in every coordinate here."""
    w = nn.Parameter(torch.full((4,), 1000.0, dtype=torch.bfloat16))
    opt = Funnel([w], torch.optim.Adagrad, lr=1e-3)
    w.grad = torch.ones(4, dtype=torch.bfloat16)
    opt.step()
    torch.testing.assert_close(opt.state[w]["velocity"], torch.full((4,), 1e-3))


@pytest.mark.slow
def test_a_foreign_inner_works_in_the_compiled_step() -> None:
    eager, compiled = (
        walk(
            torch.float32,
            10,
            lambda ps, c=c: Funnel(ps, torch.optim.NAdam, momentum=0.5, compiled=c),
        )
        for c in (False, True)
    )
    torch.testing.assert_close(eager, compiled)
