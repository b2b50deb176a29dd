"""Neighbours are the nearest examples of the memory, and vote as the definition says."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel.families.compared import Piece, compared, ranks, shares_that_differ
from funnel.families.forests.growing import quantiles
from funnel.families.interface import Given, Scaling
from funnel.families.neighbours import EXPERTS, Coded, Remembered, names_of, smallest
from funnel.families.outcomes import Classes


def remembered(
    m: int,
    d: int,
    classes: int = 3,
    missing: bool = False,
    has_ranks: bool = True,
    codes: int = 0,
) -> Remembered:
    """Return examples of d numbers, and of codes, which are the first inputs."""
    generator = torch.Generator().manual_seed(m)
    rows = torch.randn(m, d, generator=generator)
    if missing:
        rows[::5, 0] = math.inf
    edges = quantiles(rows.t()) if m else torch.zeros(d, 31)
    importances = torch.rand(d, generator=generator)
    scaling = given_of(1, d).scaling
    numbers, others = compared(rows, scaling, edges, None if has_ranks else importances)
    norms = torch.zeros(2, 0, dtype=torch.int32)
    if not has_ranks:
        norms = torch.stack([p.int().square().sum(dim=1) for p in (numbers, others)]).int()
    own = torch.randint(3, (codes, m), generator=generator).float()
    coded = Coded(slice(0, codes), *torch.rand(2, codes, generator=generator))
    split = (512 * k for k in range(-(-m // 512)))
    pieces = [
        Piece(
            *(p[k : k + 512] for p in (numbers, others)), *(p[:, k : k + 512] for p in (norms, own))
        )
        for k in split
    ]
    return Remembered(
        tuple(pieces),
        torch.randint(classes, (m,), generator=generator),
        torch.ones(m),
        torch.arange(m).flip(0)[:1_000],
        torch.arange(1.0, classes + 1),
        importances,
        edges,
        scaling,
        has_ranks,
        Classes(torch.ones(classes, dtype=torch.bool)),
        slice(codes, codes + d),
        coded if codes else None,
    )


def given_of(n: int, d: int) -> Given:
    raw = torch.randn(n, d, generator=torch.Generator().manual_seed(n))
    return Given(raw, Scaling(torch.zeros(d), torch.ones(d)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1_500), st.integers(1, 12), st.integers(0, 99))
def test_the_smallest_are_those_of_a_sort(m: int, k: int, seed: int) -> None:
    values = torch.randn(3, m, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(smallest(values, k), values.sort(dim=1).values[:, :k])


@pytest.mark.parametrize("has_ranks", [True, False])
@pytest.mark.parametrize("m", [1, 3, 700, 3_000])
def test_the_plain_metric_votes_as_defined(m: int, has_ranks: bool) -> None:
    memory, asked = remembered(m, 4, has_ranks=has_ranks), given_of(20, 4)
    answers = memory.answers(asked)
    b = torch.cat([piece.numbers for piece in memory.pieces]).float()
    if not has_ranks:  # integers, 24 of which are a standard deviation
        asked = asked._replace(raw=asked.raw.mul(24).round())
    prior = memory.prior / memory.prior.sum()
    for place, (k, newest) in enumerate(EXPERTS["plain"]):
        slots = memory.newest.sort().values if newest else torch.arange(m)
        far = (asked.raw[:, None] - b[slots][None]).square().sum(dim=2)
        near, order = far.sort(dim=1, stable=True)  # the first of those at one distance
        for i in range(20):
            r = near[i, :k].sqrt()
            votes = torch.zeros(3)
            for vote, slot in zip(1 / (r + 0.1 * r.mean() + 1e-6), order[i, :k], strict=True):
                votes[memory.labels[slots[slot]]] += vote
            expected = votes / votes.sum() * (1 - 1 / (k + 1)) + prior / (k + 1)
            torch.testing.assert_close(answers[place, i], expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("has_ranks", [True, False])
@pytest.mark.parametrize("m", [3, 700, 3_000])
def test_codes_that_differ_are_apart_in_the_metric_gain_alone(m: int, has_ranks: bool) -> None:
    memory, asked = remembered(m, 4, has_ranks=has_ranks, codes=2), given_of(20, 6)
    asked.raw[:, :2] = torch.randint(4, (20, 2), generator=torch.Generator().manual_seed(1))
    coded, codes = memory.coded, torch.cat([piece.codes for piece in memory.pieces], dim=1)
    assert coded is not None
    mine = asked.raw[:, 2:]
    every = torch.cat([memory.importances, coded.importances])
    unit = every.mean() if has_ranks else memory.importances.max()
    theirs = torch.cat([piece.numbers for piece in memory.pieces]).float()
    weights = memory.importances / unit
    if not has_ranks:  # of largest gain first, times the roots of the gains, in 24ths
        order = memory.importances.sort(descending=True, stable=True).indices
        mine = (mine[:, order] * (weights[order].sqrt() * 24)).round() / 24
        theirs = torch.cat([piece.others for piece in memory.pieces]).float() / 24
        weights = torch.ones(4)
    far = ((mine[:, None] - theirs).square() * weights).sum(dim=2)
    differ = asked.raw[:, :2, None] != codes
    far += (differ * (coded.apart * coded.importances / unit)[:, None]).sum(dim=1)
    near, order = far.sort(dim=1, stable=True)
    answers, plain = (one.answers(asked) for one in (memory, replace(memory, coded=None)))
    prior = memory.prior / memory.prior.sum()
    for i in range(20):
        r = near[i, :3].sqrt()
        votes = torch.zeros(3)
        for vote, slot in zip(1 / (r + 0.1 * r.mean() + 1e-6), order[i, :3], strict=True):
            votes[memory.labels[slot]] += vote
        expected = votes / votes.sum() * 3 / 4 + prior / 4
        torch.testing.assert_close(answers[4, i], expected, atol=2e-3, rtol=1e-3)
    assert torch.equal(answers[:4], plain[:4]), "the metric plain compares numbers alone"
    assert torch.equal(memory.copy(memory.pieces).answers(asked), answers)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 3.0, 16_777_215.0, math.inf]), min_size=1, max_size=60))
def test_the_share_of_pairs_that_differ_is_that_of_all_pairs(codes: list[float]) -> None:
    column = torch.tensor(codes)
    expected = (column[:, None] != column).double().mean().float()
    found = shares_that_differ(torch.stack([column, torch.zeros(len(codes))]))
    assert found.tolist() == pytest.approx([float(expected), 0.0])


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
    none = replace(memory, weights=torch.zeros(400))
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
