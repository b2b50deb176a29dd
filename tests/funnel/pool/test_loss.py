"""Losses of a pool: gradients, mixtures and the bounds that the docstrings promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_pinball_loss
from torch import Tensor, nn

from funnel.pool.loss import CROSS_ENTROPY, HUBER, Binary, Gaussian, Held, Loss, Pinball
from funnel.pool.pool import Pool

CPU = torch.device("cpu")
QUANTILES = (0.1, 0.5, 0.9)
EXPERTS, N = 3, 40
LOSSES: dict[str, tuple[Loss, int]] = {
    "cross-entropy": (CROSS_ENTROPY, 4),
    "binary": (Binary(), 1),
    "gaussian": (Gaussian(), 1),
    "quick": (Gaussian(is_quick=True), 1),
    "pinball": (Pinball(QUANTILES), 3),
}


def drawn(name: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return outputs [K, out, n] and labels [n]."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(EXPERTS, LOSSES[name][1], N, generator=generator)
    if name in ("gaussian", "quick", "pinball"):
        return outputs, torch.randn(N, generator=generator)
    classes = 2 if name == "binary" else 4
    return outputs, torch.randint(classes, (N,), generator=generator)


def summary_of(
    loss: Loss, held: Held, outputs: Tensor, labels: Tensor, importance: Tensor | None = None
) -> Tensor | None:
    """Return what `Loss.learn` takes, of a mixture of equal weights."""
    judged = loss.judge(held, outputs, labels, importance)
    answers = judged.answers.mT
    healthy = answers.isfinite().flatten(1).all(dim=1)
    mixed = loss.mixed(torch.zeros(len(answers)), answers, healthy, held)
    return loss.completed(held, judged.summary, mixed, labels, importance)


def learned(pool: Pool, inputs: Tensor, labels: Tensor, importance: Tensor | None = None) -> Tensor:
    """Learn a batch; return the mixture's answers before."""
    scored = pool.score(inputs, labels, importance)
    keep = scored.healthy.any()
    decision = pool.decide(scored, keep)
    if keep:
        pool.update(inputs, labels, decision)
    return scored.answers


@pytest.mark.parametrize("name", LOSSES)
def test_errors_of_pieces_are_those_of_the_whole_batch(name: str) -> None:
    loss, width = LOSSES[name]
    outputs, labels = drawn(name)
    held = loss.fresh(EXPERTS, CPU)
    whole = loss.judge(held, outputs.clone(), labels).error * N
    targets = loss.targets(labels, width)
    some = loss.error_(held, outputs[1:].clone(), targets, slice(1, EXPERTS))
    torch.testing.assert_close(some, whole[1:])


def test_the_gradient_of_a_number_is_its_error_within_three_of_the_experts_deviations() -> None:
    loss, (outputs, labels) = Gaussian(), drawn("gaussian")
    held = loss.fresh(EXPERTS, CPU)
    held["variance"][:EXPERTS] = torch.tensor([0.04, 1.0, 9.0])
    bound = HUBER * held["variance"][:EXPERTS].sqrt()[:, None]
    expected = torch.maximum(torch.minimum(outputs[:, 0] - labels, bound), -bound) / N
    torch.testing.assert_close(loss.judge(held, outputs, labels).error[:, 0], expected)


def test_a_wild_number_moves_an_expert_no_further_than_one_at_three_deviations() -> None:
    loss, held = Gaussian(), Gaussian().fresh(1, CPU)
    labels = torch.tensor([HUBER, 1e6])
    error = loss.judge(held, torch.zeros(1, 1, 2), labels).error
    assert error[0, 0, 0] == error[0, 0, 1]


def test_losses_within_the_knee_are_those_of_a_normal_density_in_the_best_deviation() -> None:
    loss, held = Gaussian(), Gaussian().fresh(2, CPU)
    held["variance"][:2] = torch.tensor([0.25, 4.0])
    outputs, labels = torch.tensor([[[0.4]], [[0.6]]]), torch.tensor([0.5])
    found = loss.judge(held, outputs, labels).losses[:2, 0]
    normal = torch.distributions.Normal(torch.tensor([0.4, 0.6]), torch.tensor(0.5))
    torch.testing.assert_close(found, -normal.log_prob(labels))


def test_a_wild_number_says_little_about_which_expert_is_better() -> None:
    loss, held = Gaussian(), Gaussian().fresh(2, CPU)
    held["variance"][:2] = torch.tensor([0.09, 0.1])
    outputs = torch.tensor([[[0.0]], [[0.5]]])
    losses = loss.judge(held, outputs, torch.tensor([1e6])).losses
    assert (losses[0] - losses[1]).abs() < 1.0


def test_the_last_number_of_a_batch_is_an_answer_for_the_next() -> None:
    loss, (outputs, labels) = Gaussian(), drawn("gaussian")
    held = loss.fresh(EXPERTS, CPU)
    learned_all = torch.ones(EXPERTS, dtype=torch.bool)
    loss.learn(held, summary_of(loss, held, outputs, labels), N, learned_all)
    answers = loss.judge(held, outputs, labels).answers
    assert answers.shape == (EXPERTS + 1, 2, N)
    assert (answers[-1, 0] == labels[-1]).all()


def test_a_mixture_of_numbers_is_as_sure_as_its_own_errors_are_small() -> None:
    weights = torch.tensor([0.2, 0.5, 0.3])
    answers = torch.tensor([[[0.0, 1.0]], [[2.0, 0.5]], [[-1.0, 2.0]]])
    held = Gaussian().fresh(EXPERTS, CPU)
    held["own"].fill_(0.25)
    found = Gaussian().mixed(weights.log(), answers, torch.ones(3, dtype=torch.bool), held)[0]
    torch.testing.assert_close(found, torch.tensor([0.7, 0.5]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_mixture_ignores_experts_that_are_not_healthy(name: str) -> None:
    loss, _ = LOSSES[name]
    outputs, _ = drawn(name)
    held = loss.fresh(EXPERTS, CPU)
    answers = loss.answers(held, outputs.mT)
    count = len(answers)
    log_weights = torch.tensor([0.2, 0.3, 0.5, 0.4])[:count].log()
    healthy = torch.tensor([True, False, True, True])[:count]
    broken = answers.clone()
    broken[1] = math.nan
    found = loss.mixed(log_weights, broken, healthy, held)
    assert found.isfinite().all()
    each = loss.mixed(log_weights, broken, healthy[:, None].expand(-1, N), held)
    torch.testing.assert_close(each, found)
    without = loss.mixed(log_weights[healthy], answers[healthy], healthy[healthy], held)
    torch.testing.assert_close(found, without)


@pytest.mark.parametrize("name", LOSSES)
def test_answers_of_no_healthy_expert_are_finite(name: str) -> None:
    loss, _ = LOSSES[name]
    outputs, _ = drawn(name)
    held = loss.fresh(EXPERTS, CPU)
    answers = loss.answers(held, outputs.mT) * math.nan
    nobody = torch.zeros(len(answers), dtype=torch.bool)
    for healthy in (nobody, nobody[:, None].expand(-1, N)):
        assert loss.mixed(torch.zeros(len(answers)), answers, healthy, held).isfinite().all()
        assert loss.mixed(torch.zeros(1), answers[:1], healthy[:1], held).isfinite().all()


def test_pinball_losses_are_those_of_scikit_learn() -> None:
    loss = Pinball(QUANTILES)
    outputs, labels = drawn("pinball")
    answers = outputs[0].sort(dim=0).values
    expected = np.mean(
        [mean_pinball_loss(labels, answers[k], alpha=level) for k, level in enumerate(QUANTILES)]
    )
    assert loss.pinball(answers, labels).mean().item() == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_ascending_quantiles_lose_no_more_than_the_outputs_as_they_are(seed: int) -> None:
    loss = Pinball(QUANTILES)
    outputs, labels = drawn("pinball", seed)
    ascending = outputs.sort(dim=1).values
    assert (loss.pinball(ascending, labels) <= loss.pinball(outputs, labels) + 1e-6).all()


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_quantiles_of_a_mixture_never_cross(seed: int) -> None:
    loss = Pinball(QUANTILES)
    outputs, _ = drawn("pinball", seed)
    weights = torch.rand(EXPERTS, generator=torch.Generator().manual_seed(seed)).log()
    held = loss.fresh(EXPERTS, CPU)
    answers = loss.answers(held, outputs.mT)
    found = loss.mixed(weights, answers, torch.ones(EXPERTS, dtype=torch.bool), held)
    assert (found.diff(dim=1) >= 0).all()


def zeroed(outputs: int) -> nn.Module:
    layer = nn.Linear(6, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def test_two_classes_from_one_output_take_the_steps_of_a_softmax() -> None:
    torch.manual_seed(0)
    binary, softmax = Pool(zeroed(1), 6, loss=Binary()), Pool(zeroed(2), 6)
    direction = torch.randn(6)
    for _ in range(60):
        inputs = torch.randn(50, 6)
        labels = (inputs @ direction + 0.5 * torch.randn(50) > 0).long()
        mine = learned(binary, inputs, labels)
        torch.testing.assert_close(mine, learned(softmax, inputs, labels), atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", ["gaussian", "pinball"])
def test_numbers_are_learned_and_their_spread_is_honest(name: str) -> None:
    torch.manual_seed(0)
    loss, width = LOSSES[name]
    pool, direction = Pool(zeroed(width), 6, loss=loss), torch.randn(6) / 3
    inside, errors = [], []
    for k in range(200):
        inputs = torch.randn(50, 6)
        labels = inputs @ direction + 0.3 * torch.randn(50)
        answers = learned(pool, inputs, labels)
        if k >= 100:
            if name == "gaussian":
                mean, deviation = answers.T
                inside.append((labels - mean).abs() < 1.2816 * deviation)
            else:
                low, mean, high = answers.T
                inside.append((low < labels) & (labels < high))
            errors.append((labels - mean).abs())
    assert torch.cat(errors).mean() < 0.3 * math.sqrt(2 / math.pi) * 1.1
    assert 0.76 < torch.cat(inside).float().mean() < 0.84


@pytest.mark.parametrize("name", ["gaussian", "pinball"])
def test_nothing_is_learned_from_a_batch_without_weight_or_without_an_expert(name: str) -> None:
    loss, _ = LOSSES[name]
    outputs, labels = drawn(name)
    held = loss.fresh(EXPERTS, CPU)
    before = {key: tensor.clone() for key, tensor in held.items()}
    nothing = summary_of(loss, held, outputs.clone(), labels, torch.zeros(N))
    loss.learn(held, nothing, torch.tensor(0.0), torch.ones(EXPERTS, dtype=torch.bool))
    assert all(torch.equal(held[key], before[key]) for key in held)
    summary = summary_of(loss, held, outputs * math.nan, labels)
    loss.learn(held, summary, N, torch.zeros(EXPERTS, dtype=torch.bool))
    assert all(torch.equal(held[key], before[key]) for key in held)


def test_an_expert_that_is_not_finite_leaves_no_trace_in_what_the_loss_has_learned() -> None:
    loss, (outputs, labels) = Gaussian(), drawn("gaussian")
    held = loss.fresh(EXPERTS, CPU)
    outputs[1] = math.nan
    loss.learn(
        held, loss.judge(held, outputs, labels).summary, N, torch.tensor([True, False, True])
    )
    assert all(tensor.isfinite().all() for tensor in held.values())
    assert held["variance"][1] == 1.0
