"""The traced step is the eager one, bit for bit."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from funnel import SGD, Adagrad, AdagradEMA, Adam, Funnel, Inner, RMSprop
from funnel.graphs.repeated import CALLS_BEFORE, MOST, WINDOW, Repeated, signature_of
from funnel.graphs.traced import Traced, TracedStep


def walk(
    traced: bool, inner: Inner | None = None, steps: int = 30, **settings: Any
) -> tuple[list[torch.Tensor], Funnel]:
    generator = torch.Generator().manual_seed(0)
    params = [
        nn.Parameter(torch.ones(5, 3)),
        nn.Parameter(torch.ones(4, dtype=torch.bfloat16)),
        nn.Parameter(torch.ones(2, dtype=torch.float64)),
    ]
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01} | settings
    opt = Funnel(params, inner, traced=traced, **options)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 2 * CALLS_BEFORE, gamma=0.5)
    for k in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        if k == CALLS_BEFORE + 4:
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
        for _ in range(CALLS_BEFORE + 4):
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
    for value in [1.0] * CALLS_BEFORE + [0.5]:
        lr.fill_(value)
        w.grad = torch.ones(3)
        opt.step()
    assert w.tolist() == [-CALLS_BEFORE - 0.5] * 3


def test_a_step_is_either_compiled_or_traced() -> None:
    with pytest.raises(ValueError, match="compiled or traced"):
        Funnel([nn.Parameter(torch.zeros(1))], compiled=True, traced=True)


def test_a_traced_function_sees_its_state_change_and_new_shapes() -> None:
    state = torch.zeros(2)

    def add(x: torch.Tensor) -> torch.Tensor:
        state.add_(x.sum())
        return state * len(x)

    traced, eager_state = Traced(add, [state]), torch.zeros(2)
    for n in [*range(1, MOST + 3)] * 2 + [3] * (CALLS_BEFORE + 6) + [4, 5, 3, 3]:
        eager_state += n
        assert torch.equal(traced(torch.ones(n)), eager_state * n)
    state.zero_()
    assert torch.equal(traced(torch.ones(3)), torch.full((2,), 9.0))


def test_ever_other_signatures_are_neither_traced_nor_remembered_without_end() -> None:
    made: Repeated[int] = Repeated()
    for n in range(20 * WINDOW):
        assert made.find(n) is None
        assert not made.is_due(n)
        assert len(made._calls) <= WINDOW
    for n in range(MOST + 5):
        if any(made.is_due(n) for _ in range(2 * WINDOW)):
            made.keep(n, n)
    assert len(made) == MOST
    assert [made.find(n) for n in (0, MOST)] == [0, None]


def test_batches_of_ever_other_sizes_are_traced_for_some_sizes_alone() -> None:
    traced = Traced(lambda x: x * 2)
    sizes = torch.randint(1, 40, (4_000,), generator=torch.Generator().manual_seed(0))
    for n in sizes.tolist():
        assert traced(torch.ones(n)).sum() == 2 * n
    assert len(traced._traces) <= MOST // 2
    for _ in range(3 * CALLS_BEFORE + 1):
        traced(torch.ones(100))
    assert traced._traces.find(signature_of([torch.ones(100)])), "full batches come one by one"


def test_a_rate_that_changes_at_every_step_is_never_traced() -> None:
    w = nn.Parameter(torch.zeros(3))
    opt = Funnel([w], SGD(), traced=True)
    for k in range(1, 3 * WINDOW):
        opt.param_groups[0]["lr"] = 1.0 / k
        w.grad = torch.ones(3)
        opt.step()
    assert isinstance(opt._run, TracedStep)
    assert len(opt._run._traces) == 0
    for _ in range(2 * CALLS_BEFORE):
        w.grad = torch.ones(3)
        opt.step()
    assert len(opt._run._traces) == 1, "it has come to rest"


def test_a_gradient_may_be_one_number_expanded() -> None:
    traced, eager = (Funnel([nn.Parameter(torch.ones(5))], traced=t) for t in (True, False))
    for opt in (traced, eager):
        (w,) = opt.param_groups[0]["params"]
        for _ in range(CALLS_BEFORE + 3):
            (w.grad,) = torch.autograd.grad(w.sum(), w)
            opt.step()
    mine, theirs = (opt.param_groups[0]["params"][0] for opt in (traced, eager))
    assert torch.equal(mine, theirs)
