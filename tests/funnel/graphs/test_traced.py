"""Traces: the eager function's results, for signatures that come again and again."""

from typing import NamedTuple

import torch
from torch import Tensor

from funnel.graphs.repeated import CALLS_BEFORE, MAX_SIGNATURES, WINDOW, Repeated
from funnel.graphs.structure import signature_of
from funnel.graphs.traced import Traced, trace


def test_a_traced_function_sees_its_state_change_and_new_shapes() -> None:
    state = torch.zeros(2)

    def add(x: Tensor) -> Tensor:
        state.add_(x.sum())
        return state * len(x)

    traced, eager_state = Traced(add, [state]), torch.zeros(2)
    counts = [*range(1, MAX_SIGNATURES + 3)] * 2 + [3] * (CALLS_BEFORE + 6) + [4, 5, 3, 3]
    for n in counts:
        eager_state += n
        assert torch.equal(traced(torch.ones(n)), eager_state * n)
    state.zero_()
    assert torch.equal(traced(torch.ones(3)), torch.full((2,), 9.0))


class Moments(NamedTuple):
    count: Tensor
    sums: list[Tensor]
    inner: tuple[Tensor, Tensor]


def test_a_traced_function_takes_and_returns_named_tuples_and_lists() -> None:
    def moments(x: Tensor, before: Moments) -> Moments:
        first, second = before.sums
        sums = [first + x.sum(), second + x.square().sum()]
        return Moments(before.count + 1, sums, (x.min(), x.max()))

    traced = Traced(moments)
    mine = theirs = Moments(torch.tensor(0), [torch.tensor(0.0)] * 2, (torch.ones(()),) * 2)
    for k in range(2 * CALLS_BEFORE):
        x = torch.arange(3.0) + k
        mine, theirs = traced(x, mine), moments(x, theirs)
        assert type(mine) is Moments
        assert mine == theirs
    assert len(traced._traces) == 1


def test_ever_other_signatures_are_neither_traced_nor_remembered_without_end() -> None:
    made: Repeated[int] = Repeated()
    for n in range(20 * WINDOW):
        assert made.find(n) is None
        assert not made.is_due(n)
        assert len(made._calls) <= WINDOW
    for n in range(MAX_SIGNATURES + 5):
        if any(made.is_due(n) for _ in range(2 * WINDOW)):
            made.keep(n, n)
    assert len(made) == MAX_SIGNATURES
    assert [made.find(n) for n in (0, MAX_SIGNATURES)] == [0, None]


def test_batches_of_ever_other_sizes_are_traced_for_some_sizes_alone() -> None:
    traced = Traced(lambda x: x * 2)
    sizes = torch.randint(1, 40, (4_000,), generator=torch.Generator().manual_seed(0))
    for n in sizes.tolist():
        assert traced(torch.ones(n)).sum() == 2 * n
    assert len(traced._traces) <= MAX_SIGNATURES // 2
    for _ in range(3 * CALLS_BEFORE + 1):
        traced(torch.ones(100))
    assert traced._traces.find(signature_of([torch.ones(100)])), "full batches come one by one"


def test_a_function_is_traced_in_the_mode_of_its_caller() -> None:
    modes = set[bool]()

    def add(x: Tensor, y: Tensor) -> Tensor:
        modes.add(torch.is_inference_mode_enabled())
        return x.add_(y)

    traced = Traced(add)
    with torch.inference_mode():
        sums = torch.zeros(2)
        for n in range(1, 2 * CALLS_BEFORE):
            assert traced(sums, torch.ones(2)).tolist() == [n, n]
        assert len(traced._traces) == 1
    assert modes == {True}


def test_a_trace_leaves_the_executor_of_other_programs_as_it_is() -> None:
    for is_on in (True, False, True):
        torch._C._jit_set_profiling_mode(is_on)
        trace(lambda x: (x + 1,), [torch.ones(2)])
        assert torch._C._jit_set_profiling_mode(True) == is_on


def test_a_traced_function_within_another_becomes_part_of_its_trace() -> None:
    inner = Traced(lambda x: x + 1)
    outer = Traced(lambda x: inner(x) * 2)
    for n in range(3 * CALLS_BEFORE):
        assert outer(torch.full((2,), float(n))).tolist() == [2.0 * (n + 1)] * 2
