"""The mixture of all families: stacks, frequencies, and the Fixed Share above them."""

import math

import numpy as np
import torch

from funnel.families.frequencies import FORGOTTEN, HALF_LIVES, Frequencies
from funnel.families.interface import Examples, Given, Scaling
from funnel.families.memory import Memory
from funnel.families.mixture import Mixture
from funnel.families.outcomes import FLOOR, Classes
from funnel.families.stack import Stack

TRUE = torch.tensor(True)


def of_classes(classes: int, opened: int | None = None) -> Classes:
    return Classes(torch.arange(classes) < (classes if opened is None else opened))


def opinions(k: int, n: int, classes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, n, classes, generator=generator).mul_(2).softmax(dim=2)


def labels_of(n: int, classes: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def test_a_stack_takes_the_newton_step_of_its_equation() -> None:
    k, n, classes, horizon = 4, 30, 3, 500.0
    given, labels = opinions(k, n, classes), labels_of(n, classes)
    weights = torch.rand(n, generator=torch.Generator().manual_seed(2)) * 2
    outcome, prior = of_classes(classes), torch.tensor([0.4, 0.3, 0.2, 0.1])
    stack, seen = Stack(k, horizon, outcome), outcome.evidence(given, {})
    answers = outcome.stacked(stack.weights, seen, {})
    stack.learn(seen, answers, labels, weights, prior, {}, TRUE)

    x = np.log(np.maximum(given.double().numpy(), FLOOR)).transpose(1, 0, 2)
    x -= x.mean(axis=2, keepdims=True)
    a = np.full(k, 1 / k)
    z = np.exp(np.einsum("k,nkc->nc", a, x))
    p = z / z.sum(axis=1, keepdims=True)
    hessian, gradient = np.zeros((k, k)), np.zeros(k)
    for i in range(n):
        mean = x[i] @ p[i]
        w = float(weights[i])
        hessian += w * ((x[i] * p[i]) @ x[i].T - np.outer(mean, mean))
        gradient += w * (x[i][:, int(labels[i])] - mean)
    total = float(weights.sum())
    gradient += Classes.ridge * total / horizon * (prior.double().numpy() - a)
    step = np.clip(np.linalg.solve(hessian + Classes.ridge * np.eye(k), gradient), -0.5, 0.5)
    np.testing.assert_allclose(stack.weights.numpy(), a + step, atol=1e-5)
    np.testing.assert_allclose(stack.hessian.numpy(), hessian, atol=1e-3)


def test_a_batch_much_longer_than_the_horizon_pulls_weights_to_the_prior_and_no_further() -> None:
    k, n, horizon = 3, 100, 1_000.0
    same = opinions(1, n, 2).expand(k, -1, -1)  # only the pull tells these experts apart
    outcome, prior = of_classes(2), torch.tensor([0.5, 0.3, 0.2])
    stack, seen = Stack(k, horizon, outcome), outcome.evidence(same, {})
    far = []
    for step in range(6):
        answers = outcome.stacked(stack.weights, seen, {})
        labels, heavy = labels_of(n, 2, seed=step), torch.full((n,), 300.0)
        stack.learn(seen, answers, labels, heavy, prior, {}, TRUE)
        off = stack.weights - prior
        far.append(float((off - off.mean()).abs().max()))
    assert far[-1] < 1e-3


def test_closed_classes_have_no_probability() -> None:
    four, two = of_classes(4, 2), of_classes(2)
    given = opinions(5, 20, 2)
    padded = torch.cat([given, torch.zeros(5, 20, 2)], dim=2)
    mixture, small = Mixture(5, four), Mixture(5, two)
    for _ in range(5):
        labels = labels_of(20, 2)
        mixed = mixture.weights.mix(padded, four)
        assert bool((mixed.answers[:, 2:] == 0).all())
        mixture.learn(mixed, padded, labels, torch.ones(20), TRUE)
        other = small.weights.mix(given, two)
        small.learn(other, given, labels, torch.ones(20), TRUE)
        torch.testing.assert_close(mixed.answers[:, :2], other.answers)


def test_the_mixture_loses_little_to_its_best_part() -> None:
    n, classes, k = 50, 3, 6
    mixture = Mixture(k, of_classes(classes))
    totals = np.zeros(4)
    for step in range(200):
        labels, given = labels_of(n, classes, step), opinions(k, n, classes, step)
        if step < 100:  # then the good expert turns into the worst
            given[2] = given[2] * 0.2 + 0.8 * torch.nn.functional.one_hot(labels, classes)
        mixed = mixture.weights.mix(given, mixture.outcome)
        each = torch.cat([mixed.answers[None], mixed.parts])
        own = each.gather(2, labels.expand(4, -1)[:, :, None])[:, :, 0]
        totals += -own.log().sum(dim=1).double().numpy()
        mixture.learn(mixed, given, labels, torch.ones(n), TRUE)
    assert totals[0] <= totals[1:].min() + 0.01 * n * 200
    assert totals[0] < n * 200 * math.log(classes)


def test_a_family_that_is_a_part_answers_as_fixed_share_of_its_experts_alone() -> None:
    outcome, alone = of_classes(3), Mixture(2, of_classes(3))
    mixture = Mixture(5, outcome, None, [slice(0, 2), slice(3, 5)])
    for step in range(30):
        labels, given = labels_of(20, 3, step), opinions(5, 20, 3, step)
        mixed, own = mixture.weights.mix(given, outcome), alone.weights.mix(given[3:], outcome)
        assert torch.equal(mixed.parts[2], own.parts[0])
        mixture.learn(mixed, given, labels, torch.ones(20), TRUE)
        alone.learn(own, given[3:], labels, torch.ones(20), TRUE)
    shares = mixture.weights.shares()
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
    copied = mixture.weights.copy()
    assert torch.equal(copied.mix(given, outcome).answers, mixture.weights.mix(given, outcome)[0])


def test_a_batch_that_is_not_kept_changes_nothing() -> None:
    mixture = Mixture(4, of_classes(3), None, [slice(0, 2)])
    before = {k: v.clone() for k, v in mixture.tensors().items()}
    given = opinions(4, 10, 3)
    mixed = mixture.weights.mix(given, mixture.outcome)
    mixture.learn(mixed, given, labels_of(10, 3), torch.ones(10), torch.tensor(False))
    for name, tensor in mixture.tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_probabilities_of_zero_do_no_harm() -> None:
    mixture = Mixture(3, of_classes(2))
    given = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])[:, None].repeat(1, 8, 1)
    for _ in range(50):
        mixed = mixture.weights.mix(given, mixture.outcome)
        assert bool(torch.isfinite(mixed.answers).all())
        mixture.learn(mixed, given, torch.tensor([0, 1] * 4), torch.ones(8), TRUE)
    assert all(bool(torch.isfinite(t).all()) for t in mixture.tensors().values())


def test_frequencies_decay_example_by_example() -> None:
    labels = labels_of(40, 3)
    frequencies = Frequencies(of_classes(3))
    scaling = Scaling(torch.zeros(1), torch.ones(1))
    batch = Examples(Given(torch.zeros(40, 1), scaling), labels, torch.ones(40), (0, 0))
    frequencies.learn(batch, Memory(1, of_classes(3)))
    for place, half in enumerate(HALF_LIVES):
        expected = np.full(3, 1 / 3)
        for label in labels.tolist():
            kept = 0.5 ** (1 / half)
            expected = expected * kept + (1 - kept) * np.eye(3)[label]
        expected = expected * (1 - FORGOTTEN) + FORGOTTEN / 3
        np.testing.assert_allclose(frequencies.shares[place].numpy(), expected, atol=1e-5)
