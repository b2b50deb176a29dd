"""Numbers and quantiles as outcomes: leaves, neighbours and stacks do what equations say."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from funnel.families.ensemble import Ensemble, Layout
from funnel.families.frequencies import NUMBER_HALF_LIVES, Recent
from funnel.families.interface import Examples, Given, Scaling
from funnel.families.memory import Memory
from funnel.families.mixture import Mixture
from funnel.families.numbers import BOUND, NARROW, WIDE, Numbers
from funnel.families.stack import Stack

CPU = torch.device("cpu")
TRUE = torch.tensor(True)
LEVELS = (0.1, 0.5, 0.9)
WIDTH = 4
BOTH = pytest.mark.parametrize("levels", [(), LEVELS])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_batch(step: int, n: int = 100, scale: float = 1.0, zero: float = 0.0) -> Examples:
    """Return a batch whose numbers no line explains, and whose noise grows with an input."""
    raw = drawn(n, WIDTH, seed=step)
    noise = drawn(n, seed=step + 10_000) * torch.where(raw[:, 2] > 0, 0.4, 0.05)
    numbers = (torch.sign(raw[:, 0]) * torch.sign(raw[:, 1]) + noise) * scale + zero
    scaling = Scaling(torch.zeros(WIDTH), torch.ones(WIDTH))
    return Examples(Given(raw, scaling), numbers, torch.ones(n), (0, step))


def an_ensemble(levels: tuple[float, ...]) -> Ensemble:
    return Ensemble(Layout(0, WIDTH, 0, WIDTH), Numbers(levels, CPU))


def taught(ensemble: Ensemble, steps: range) -> None:
    for step in steps:
        batch = a_batch(step)
        ensemble.learn(batch, ensemble.answers(batch.given))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-10, 10, width=32), st.integers(1, 8)), min_size=1, max_size=40)
)
def test_quantiles_of_weighted_numbers_ascend_within_their_range(
    pairs: list[tuple[float, int]],
) -> None:
    labels = torch.tensor([[number for number, _ in pairs]])
    weights = torch.tensor([[float(weight) for _, weight in pairs]])
    found = Numbers((0.05, 0.3, 0.5, 0.8), CPU).summary(labels, weights)[0]
    assert bool((found.diff() >= 0).all())
    assert float(labels.min()) <= float(found[0])
    assert float(found[-1]) <= float(labels.max())


def test_quantiles_of_many_equal_weights_are_those_of_numpy() -> None:
    labels = drawn(3, 801)
    found = Numbers(LEVELS, CPU).summary(labels, torch.ones(3, 801))
    expected = np.quantile(labels.numpy(), LEVELS, axis=1, method="hazen").T
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_a_mean_is_weighted() -> None:
    labels, weights = drawn(5, 30), drawn(5, 30, seed=1).abs()
    found = Numbers((), CPU).summary(labels, weights)[:, 0]
    torch.testing.assert_close(found, (labels * weights).sum(dim=1) / weights.sum(dim=1))


@BOTH
def test_slopes_weigh_residuals_as_the_tilted_huber_loss_does(levels: tuple[float, ...]) -> None:
    outcome = Numbers(levels, CPU)
    labels, outputs = drawn(200), drawn(200, outcome.outputs, seed=1)
    weights = drawn(200, seed=2).abs()
    found = outcome.slopes(labels, weights, outputs, torch.Generator())
    missed = labels.double()[:, None] - outputs.double()
    unit = missed.abs().mean(dim=0)
    tau = torch.tensor(levels or (0.5,), dtype=torch.float64)
    side = (tau - (missed < 0).double()).abs() * 2
    knee = WIDE if not levels else NARROW
    pulls = side * max(1.0, 1 / knee) * (knee * unit / missed.abs()).clamp(max=1.0)
    expected = pulls * weights[:, None]
    curvature, gradient = found.curvature.t().double(), found.gradient.t().double()
    torch.testing.assert_close(curvature, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient, expected * missed, atol=1e-4, rtol=1e-4)


def test_the_gradient_of_a_quantile_is_zero_at_the_quantile() -> None:
    outcome, labels = Numbers(LEVELS, CPU), drawn(20_001)
    at = torch.tensor(np.quantile(labels.numpy(), LEVELS), dtype=torch.float32)
    outputs = at.expand(len(labels), -1)
    slopes = outcome.slopes(labels, torch.ones(20_001), outputs, torch.Generator())
    steps = slopes.gradient.sum(dim=1) / slopes.curvature.sum(dim=1)
    assert float(steps.abs().max()) < 0.03  # the knee rounds the slope


@BOTH
def test_a_stack_takes_the_newton_step_of_its_equation(levels: tuple[float, ...]) -> None:
    outcome, k, n = Numbers(levels, CPU), 4, 30
    answers, labels = drawn(k, n, outcome.outputs), drawn(n, seed=1)
    importance, held = drawn(n, seed=2).abs(), outcome.fresh()
    stack, prior = Stack(k, 500.0, outcome), torch.tensor([0.4, 0.3, 0.2, 0.1])
    seen = outcome.evidence(answers, held)
    own = outcome.stacked(stack.weights, seen, held)
    stack.learn(seen, own, labels, importance, prior, held, TRUE)

    unit, total = float(held["unit"]), float(importance.sum())
    for q, tau in enumerate(levels or (0.5,)):
        given = answers[:, :, q].double().numpy()
        center = given.mean(axis=0)
        x = np.concatenate([(given - center) / unit, np.ones((1, n))]).T
        a = np.array([1 / k] * k + [0.0])
        missed = (labels.double().numpy() - center - unit * x @ a) / unit
        knee = outcome.knee
        side = np.abs(tau - (missed < 0)) * 2 * max(1.0, 1 / knee)
        pulls = side * np.minimum(1.0, knee / np.abs(missed)) * importance.double().numpy()
        hessian = (x * pulls[:, None]).T @ x
        toward = np.append(prior.double().numpy(), 0.0)
        gradient = x.T @ (pulls * missed) + outcome.ridge * total / 500.0 * (toward - a)
        step = np.linalg.solve(hessian + outcome.ridge * np.eye(k + 1), gradient)
        np.testing.assert_allclose(stack.weights[q], a + np.clip(step, -0.5, 0.5), atol=1e-4)
        np.testing.assert_allclose(stack.hessian[q], hessian, rtol=1e-4, atol=1e-3)


@BOTH
def test_the_mixture_loses_little_to_its_best_part(levels: tuple[float, ...]) -> None:
    outcome, n = Numbers(levels, CPU), 50
    mixture, totals = Mixture(6, outcome, 0), torch.zeros(5)
    for step in range(200):
        labels, answers = drawn(n, seed=step), drawn(6, n, outcome.outputs, seed=step + 500)
        answers[2 if step < 100 else 4] *= 0.2  # then a good expert turns bad, and another good
        answers = answers.sort(dim=2).values
        mixed = mixture.weights.mix(answers, outcome)
        each = torch.cat([mixed.answers[None], mixed.parts])
        totals += outcome.losses(each, labels, torch.ones(())).sum(dim=1)
        mixture.learn(mixed, answers, labels, torch.ones(n), TRUE)
        assert bool((mixed.answers.diff(dim=1) >= 0).all())
    assert float(totals[0]) <= 1.02 * float(totals[1:].min())


@pytest.mark.parametrize("spread", [0.1, 5.0])
def test_quantiles_hold_their_shares_however_sure_the_experts_are(spread: float) -> None:
    outcome, n = Numbers(LEVELS, CPU), 20
    mixture, below = Mixture(4, outcome, 0), torch.zeros(3)
    for step in range(600):
        labels = drawn(n, seed=step) * (1.0 if step < 400 else 2.0)
        answers = (outcome.normal * spread).expand(4, n, 3)
        mixed = mixture.weights.mix(answers, outcome)
        if step >= 100:
            below += (labels[:, None] <= mixed.answers).float().mean(dim=0)
        mixture.learn(mixed, answers, labels, torch.ones(n), TRUE)
    torch.testing.assert_close(below / 500, torch.tensor(LEVELS), atol=0.03, rtol=0.0)


@BOTH
def test_wild_numbers_leave_weights_finite_and_small(levels: tuple[float, ...]) -> None:
    outcome = Numbers(levels, CPU)
    mixture = Mixture(5, outcome, 0)
    for step in range(40):
        labels, answers = drawn(20, seed=step), drawn(5, 20, outcome.outputs, seed=step + 99)
        labels[::7] = 1e6 * (-1) ** step
        answers[1, ::3] = math.nan
        answers[3] = math.inf
        answers = outcome.known(answers)
        mixed = mixture.weights.mix(answers, outcome)
        assert float(mixed.answers.abs().max()) <= BOUND
        mixture.learn(mixed, answers, labels, torch.ones(20), TRUE)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in mixture.tensors().values())


@BOTH
def test_recent_numbers_decay_example_by_example(levels: tuple[float, ...]) -> None:
    outcome = Numbers(levels, CPU)
    memory, recent = Memory(1, outcome), Recent(outcome)
    labels, weights = drawn(60), drawn(60, seed=1).abs() + 0.1
    rows = torch.zeros(60, 1)
    memory.add(rows, labels, weights, torch.Generator().manual_seed(0))
    recent.learn(Examples(a_batch(0).given, labels, weights, (0, 0)), memory)
    for place, half in enumerate(NUMBER_HALF_LIVES):
        kept, left = torch.zeros(60), 1.0
        for i in reversed(range(60)):
            share = 0.5 ** (float(weights[i]) / half)
            kept[i], left = left * (1 - share), left * share
        expected = outcome.summary(labels[None], kept[None])[0]
        torch.testing.assert_close(recent.shares[place], expected, atol=1e-3, rtol=1e-3)


def test_trees_learn_quantiles_that_depend_on_the_inputs() -> None:
    ensemble = an_ensemble(LEVELS)
    taught(ensemble, range(80))
    batch = a_batch(999, 4_000)
    memory = ensemble.answers(batch.given).answers[2]
    noisy = batch.given.raw[:, 2] > 0
    width = memory[:, 2] - memory[:, 0]
    assert float(width[noisy].mean()) > 1.5 * float(width[~noisy].mean())
    inside = (memory[:, 0] <= batch.labels) & (batch.labels <= memory[:, 2])
    assert 0.6 < float(inside.float().mean()) < 0.95
    assert float((memory[:, 1] - batch.labels).abs().mean()) < 0.45


@BOTH
def test_an_ensemble_of_numbers_resumes_bit_for_bit(levels: tuple[float, ...]) -> None:
    one, other = an_ensemble(levels), an_ensemble(levels)
    taught(one, range(45))
    for name, tensor in one.tensors().items():
        other.tensors()[name].copy_(tensor)
    other.loaded()
    taught(one, range(45, 52))
    taught(other, range(45, 52))
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


@BOTH
def test_a_snapshot_of_numbers_never_changes(levels: tuple[float, ...]) -> None:
    ensemble, given = an_ensemble(levels), a_batch(999).given
    taught(ensemble, range(10))
    frozen, before = ensemble.frozen(), ensemble.answers(given).answers
    taught(ensemble, range(10, 20))
    ensemble.rescale(torch.tensor(0.5), torch.tensor(1.0))
    assert torch.equal(frozen.answers(given).answers, before)


@BOTH
def test_another_unit_changes_no_answer(levels: tuple[float, ...]) -> None:
    ensemble, given = an_ensemble(levels), a_batch(999).given
    taught(ensemble, range(30))
    before = ensemble.answers(given)
    ensemble.rescale(torch.tensor(0.5), torch.tensor(-0.75))
    after = ensemble.answers(given)
    assert float((after.answers - (before.answers * 0.5 - 0.75)).abs().max()) < 1e-3
    for boosted in ensemble.trees.forests.values():
        slots = ensemble.memory.newest(int(boosted.counts[0]))
        kept, now = boosted.fitted[slots], boosted.logits(ensemble.memory.rows[slots])
        torch.testing.assert_close(kept, now, rtol=0.0, atol=1e-4)


def test_numbers_learned_in_another_unit_are_learned_alike() -> None:
    one, other = an_ensemble(()), an_ensemble(())
    taught(one, range(20))
    taught(other, range(20))
    other.rescale(torch.tensor(0.25), torch.tensor(0.5))
    for step in range(20, 30):
        batch, scaled = a_batch(step), a_batch(step, scale=0.25, zero=0.5)
        one.learn(batch, one.answers(batch.given))
        other.learn(scaled, other.answers(scaled.given))
    given = a_batch(999).given
    mine, theirs = one.answers(given).answers, other.answers(given).answers
    assert float((theirs - (mine * 0.25 + 0.5)).abs().mean()) < 0.03


@BOTH
def test_an_ensemble_of_numbers_grows_without_a_change_of_its_answers(
    levels: tuple[float, ...],
) -> None:
    small, batch = an_ensemble(levels), a_batch(999)
    for step in range(20):
        low = a_batch(step, zero=-2.0)  # sums of numbers may be below 0
        small.learn(low, small.answers(low.given))
    large = small.resized(Layout(2, 2 * WIDTH, 0, WIDTH), small.outcome)
    wide = torch.full((100, 2 + 2 * WIDTH), math.inf)
    wide[:, 2 : 2 + WIDTH] = batch.given.raw
    unit = torch.ones(2 + 2 * WIDTH)
    before = small.answers(batch.given)
    after = large.answers(Given(wide, Scaling(0 * unit, unit)))
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(after.answers[:3], before.answers[:3])
