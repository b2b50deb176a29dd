"""Compiled loops for scores of numbers and the torch operators that are their twins give the same
bits."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.fold.scoring.regression import NumberFloors, fresh_scores
from service.fold.spec import Spec
from service.fold.state import State
from service.fold.step import Fold
from streams.batch import Batch
from tests.service.fold.scoring.test_loops import NO, YES, Tensors, copies, differing, seeds, twice
from tests.support.states import CPU, HYPERPARAMETERS

pytest.importorskip("numba")

QUANTILES = (0.1, 0.5, 0.9)
tasks = st.sampled_from([None, QUANTILES, (0.5,), tuple(k / 10 for k in range(1, 10))])
sizes = st.integers(1, 300)


def some_numbers(generator: torch.Generator, n: int) -> Tensor:
    """Return numbers of many sizes, of which some repeat."""
    found = torch.randn(n, generator=generator)
    found *= 10.0 ** torch.randint(-5, 6, (n,), generator=generator)
    found[::3] = found[::3].round()
    return found


@settings(max_examples=60, deadline=None)
@given(seeds, tasks, sizes)
def test_scores_have_the_bits_of_operators_round_the_ring(
    seed: int, quantiles: Sequence[float] | None, n: int
) -> None:
    def scored() -> Tensors:
        generator, scores = torch.Generator().manual_seed(seed), fresh_scores(quantiles, CPU)
        scores.tensors()["scored"].fill_(9_900 if seed % 2 else 0)
        for k in range(6):
            targets, values = (some_numbers(generator, n) for _ in range(2))
            if quantiles is not None:
                values = (values[:, None] + torch.tensor(quantiles)).contiguous()
            std = some_numbers(generator, n).abs()
            std[::5], std[1::5] = math.nan, math.inf
            std = std[:, None].expand(-1, 2)[:, 1] if k == 3 else std
            losses = (values.reshape(n, -1)[:, 0] - targets).abs()
            if k == 4:
                values[0], losses[0] = math.nan, math.nan
            scores.update(values, std, targets, losses, YES if k != 4 else NO)
        return copies(scores.tensors())

    fast, plain = twice(scored)
    assert int(fast["scored"]) == 5 * n + (9_900 if seed % 2 else 0)
    assert not differing(fast, plain)


@settings(max_examples=60, deadline=None)
@given(seeds, tasks, sizes)
def test_floors_have_the_bits_of_operators(
    seed: int, quantiles: Sequence[float] | None, n: int
) -> None:
    def scored() -> Tensors:
        generator, floors = torch.Generator().manual_seed(seed), NumberFloors(CPU, quantiles)
        for k in range(7):
            flags = YES if k not in (0, 2) else NO, YES if k not in (2, 4) else NO
            numbers = some_numbers(generator, n)
            if k == 2:
                numbers[0] = math.nan
            numbers = numbers if seed % 2 else numbers.mul(0.0).add(3.0)
            floors.observe(numbers, *flags, numbers.clamp(-1.0, 1.0) if seed % 3 else None)
        return copies(floors.tensors())

    fast, plain = twice(scored)
    assert int(fast["mean.scored"]) == 5 * n
    assert not differing(fast, plain)


@pytest.mark.parametrize("task", ["regression", "quantile:0.1,0.5,0.9"])
@pytest.mark.parametrize("loss_guard", [0.0, 2.0])
def test_a_fold_has_the_bits_of_operators(task: str, loss_guard: float) -> None:
    spec = Spec("logistic", 3, 0, (), "pool", True, 0, experts=6, task=task)
    rates = replace(HYPERPARAMETERS, loss_guard=loss_guard)

    def folded() -> Tensors:
        generator, state = torch.Generator().manual_seed(1), State(spec, rates, CPU)
        fold, reports = Fold(state), []
        for k in range(20):
            inputs = torch.randn(30, 3, generator=generator)
            numbers = inputs.sum(dim=1) * (100.0 if k == 15 else 1.0) + 5.0 * (k > 8)
            report = fold.step(Batch(inputs.numpy(), numbers.numpy()))
            reports.append(torch.tensor([report.loss, report.floor, report.accuracy]))
        return copies(state.tensors()) | {"reports": torch.stack(reports)}

    fast, plain = twice(folded)
    assert not differing(fast, plain)
