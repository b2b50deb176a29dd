"""Linear experts of second order: they solve the equation of their module, and stay finite."""

import numpy as np
import torch

from funnel.families.linear.second_order import HORIZONS, ITERATIONS, MOST_INPUTS, SecondOrder

OPEN = torch.ones(3, dtype=torch.bool)


def a_batch(n: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return inputs, labels that are nearly linear in them, and weights of the examples."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, width, generator=generator)
    labels = (inputs[:, :3] + 0.3 * torch.randn(n, 3, generator=generator)).argmax(dim=1)
    return inputs, labels, torch.rand(n, generator=generator) * 2


def softmax(z: np.ndarray) -> np.ndarray:
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def test_batches_are_learned_as_the_equation_says() -> None:
    found = SecondOrder(4, OPEN)
    weights, curvature = np.zeros((4, 5, 3)), np.zeros((4, 5, 5))
    for seed in range(3):
        inputs, labels, importance = a_batch(40, 4, seed)
        assert bool(found.learn(inputs, labels, importance).all())
        x, w = np.c_[inputs.double().numpy(), np.ones(40)], importance.double().numpy()
        wanted = np.eye(3)[labels.numpy()]
        for k, horizon in enumerate(HORIZONS):
            trusted = curvature[k] * np.exp(-w.sum() / horizon) + np.eye(5)
            new = weights[k]
            for _ in range(ITERATIONS):
                missed = w[:, None] * (wanted - softmax(x @ new))
                downhill = x.T @ missed - trusted @ (new - weights[k])
                new = new + np.linalg.solve(trusted + 0.5 * (x.T * w) @ x, downhill)
            p = softmax(x @ new)
            bends = w * (2 * p * (1 - p)).max(axis=1)
            weights[k], curvature[k] = new, trusted - np.eye(5) + (x.T * bends) @ x
    np.testing.assert_allclose(found.weights.numpy(), weights, atol=1e-9)
    np.testing.assert_allclose(found.curvature.numpy(), curvature, atol=1e-9)


def test_one_batch_teaches_most_of_a_linear_rule() -> None:
    found = SecondOrder(8, OPEN)
    found.learn(*a_batch(100, 8, 0))
    inputs, labels, _ = a_batch(1_000, 8, 1)
    right = (found.answers(inputs).argmax(dim=2) == labels).float().mean(dim=1)
    assert float(right.min()) > 0.75


def test_it_grows_without_a_change_of_its_answers() -> None:
    small = SecondOrder(4, torch.tensor([True, True, False]))
    inputs, labels, weights = a_batch(60, 4, 0)
    small.learn(inputs, labels.clamp(max=1), weights)
    before = small.answers(inputs)
    assert float(before[..., 2].abs().max()) == 0.0
    wide = torch.nn.functional.pad(inputs, (0, 3))
    is_open = torch.tensor([True, True, False, False])
    torch.testing.assert_close(small.resized(7, is_open, 0.0).answers(wide)[..., :3], before)
    opened = small.resized(7, torch.tensor([True, True, True, False]), -50.0)
    assert 0.0 < float(opened.answers(wide)[..., 2].max()) < 1e-3
    assert bool(opened.learn(wide, labels, weights).all())


def test_inputs_beyond_the_first_do_not_count() -> None:
    found = SecondOrder(MOST_INPUTS + 9, OPEN)
    inputs, labels, weights = a_batch(50, MOST_INPUTS + 9, 0)
    found.learn(inputs, labels, weights)
    other = inputs.clone()
    other[:, MOST_INPUTS:] = 7.0
    assert torch.equal(found.answers(inputs), found.answers(other))


def test_what_has_no_finite_solution_changes_nothing() -> None:
    found = SecondOrder(4, OPEN)
    inputs, labels, weights = a_batch(50, 4, 0)
    found.learn(inputs, labels, weights)
    before = {k: v.clone() for k, v in found.tensors().items()}
    inputs[3, 1] = torch.nan
    assert not bool(found.learn(inputs, labels, weights).any())
    assert all(torch.equal(v, before[k]) for k, v in found.tensors().items())
    huge = torch.full((50, 4), 3e38) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    found.learn(huge, labels, weights)
    assert all(bool(torch.isfinite(v).all()) for v in found.tensors().values())
