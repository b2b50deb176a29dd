"""A step never waits for the device, because it reads no element of a tensor on the host."""

import pytest
import torch
from torch import nn
from torch.profiler import profile

from funnel import SGD, Adagrad, AdagradEMA, Adam, Funnel, Inner, RMSprop

INNERS = [SGD(), Adagrad(), AdagradEMA(), RMSprop(), Adam()]


def host_reads(opt: Funnel, calls: int = 3) -> int:
    with profile() as recorded:
        for _ in range(calls):
            opt.step()
    events = recorded.key_averages()
    assert any("Funnel.step" in e.key for e in events)
    reads = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal")
    return sum(e.count for e in events if e.key in reads)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_a_step_reads_no_element_on_the_host(inner: Inner, normalized: bool) -> None:
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))]
    opt = Funnel(
        params,
        inner,
        lr=torch.tensor(0.1),
        momentum=0.9,
        nesterov=True,
        weight_decay=0.1,
        normalize_gain=normalized,
        normalize_scale=normalized,
    )
    for p in params:
        p.grad = torch.randn_like(p)
    assert host_reads(opt) == 0  # including the first step, which allocates
    params[0].grad.fill_(torch.nan)
    assert host_reads(opt) == 0


def test_the_count_finds_a_read() -> None:
    w = nn.Parameter(torch.ones(3))
    opt = Funnel([w])
    w.grad = torch.ones(3)
    opt.register_step_post_hook(lambda *_: w.sum().item())
    assert host_reads(opt, calls=1) == 1


@pytest.mark.slow
def test_a_compiled_step_reads_no_element_on_the_host() -> None:
    w = nn.Parameter(torch.ones(3))
    opt = Funnel([w], compiled=True)
    w.grad = torch.randn(3)
    opt.step()
    assert host_reads(opt) == 0
