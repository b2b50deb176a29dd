"""Neighbours are the nearest examples of the memory, and vote as the definition says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel.families.growing import quantiles
from funnel.families.interface import Given, Scaling
from funnel.families.neighbours import EXPERTS, Remembered, distances, names_of, ranks, smallest
from funnel.families.trees import MOST_LAGS


def remembered(m: int, d: int, classes: int = 3, missing: bool = False) -> Remembered:
    generator = torch.Generator().manual_seed(m)
    rows = torch.randn(m, MOST_LAGS + d, generator=generator)
    if missing:
        rows[::5, MOST_LAGS] = math.inf
    return Remembered(
        rows.split(512),
        torch.randint(classes, (m,), generator=generator),
        torch.ones(m),
        torch.arange(m).flip(0)[:1_000],
        torch.arange(1.0, classes + 1),
        torch.rand(MOST_LAGS + d, generator=generator),
        quantiles(rows) if m else torch.zeros(MOST_LAGS + d, 31),
        True,
    )


def given_of(n: int, d: int) -> Given:
    raw = torch.randn(n, d, generator=torch.Generator().manual_seed(n))
    return Given(raw, Scaling(torch.zeros(d), torch.ones(d), torch.ones(d)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1_500), st.integers(1, 12), st.integers(0, 99))
def test_the_smallest_are_those_of_a_sort(m: int, k: int, seed: int) -> None:
    values = torch.randn(3, m, generator=torch.Generator().manual_seed(seed))
    found, places = smallest(values, k)
    assert torch.equal(found, values.sort(dim=1).values[:, :k])
    assert torch.equal(values.gather(1, places), found)


def test_distances_are_weighted_squares() -> None:
    a, b, w = torch.randn(5, 4), torch.randn(1_100, 4), torch.rand(4)
    pieces = b.split(512)
    found = distances(a, pieces, [p.square() for p in pieces], w)
    expected = (w * (a[:, None] - b[None]).square()).sum(dim=2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("m", [1, 3, 700, 3_000])
def test_the_plain_metric_votes_as_defined(m: int) -> None:
    memory, asked = remembered(m, 4), given_of(20, 4)
    answers = memory.answers(asked)
    b = torch.cat(memory.rows)[:, MOST_LAGS:].clamp(-5, 5)
    prior = memory.prior / memory.prior.sum()
    for place, (k, newest) in enumerate(EXPERTS["plain"]):
        slots = memory.newest if newest else torch.arange(m)
        far = (asked.raw[:, None] - b[slots][None]).square().sum(dim=2)
        near, order = far.sort(dim=1)
        for i in range(20):
            r = near[i, :k].sqrt()
            votes = torch.zeros(3)
            for vote, slot in zip(1 / (r + 0.1 * r.mean() + 1e-6), order[i, :k], strict=True):
                votes[memory.labels[slots[slot]]] += vote
            expected = votes / votes.sum() * (1 - 1 / (k + 1)) + prior / (k + 1)
            torch.testing.assert_close(answers[place, i], expected, atol=2e-3, rtol=1e-3)


def test_answers_are_probabilities_even_with_missing_values() -> None:
    memory, asked = remembered(900, 5, missing=True), given_of(30, 5)
    asked.raw[::3, 1] = math.inf
    answers = memory.answers(asked)
    assert answers.shape == (len(names_of(True)), 30, 3)
    torch.testing.assert_close(answers.sum(dim=2), torch.ones(len(answers), 30))
    assert float(answers.min()) >= 0.0


def test_an_empty_memory_answers_the_prior() -> None:
    memory = remembered(0, 4)
    expected = (memory.prior / memory.prior.sum()).expand(len(names_of(True)), 7, -1)
    assert torch.equal(memory.answers(given_of(7, 4)), expected)


def test_a_weight_of_zero_has_no_vote() -> None:
    memory, asked = remembered(400, 4), given_of(10, 4)
    none = memory._replace(weights=torch.zeros(400))
    shrunk = none.answers(asked)
    assert bool(torch.isfinite(shrunk).all())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=2, max_size=200))
def test_ranks_rise_with_values_and_stay_in_range(values: list[float]) -> None:
    column = torch.tensor(values)[:, None]
    found = ranks(column, quantiles(column))[:, 0]
    order = column[:, 0].argsort()
    assert bool((found[order].diff() >= -1e-5).all())
    assert float(found.abs().max()) <= 1.7 + 1e-5
