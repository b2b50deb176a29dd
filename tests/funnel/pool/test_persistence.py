"""Pools of classes that persist: the last known label is an answer that experts are mixed with."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from funnel import Pool
from funnel.pool import persistence
from funnel.pool.expert import DEFAULT_EXPERTS
from funnel.pool.growth import grown
from funnel.pool.loss import Binary, CrossEntropy
from funnel.pool.persistence import MEMORY, SHARE
from tests.funnel.pool.test_classes import OPEN, model
from tests.support.pools import FEATURES

CPU = torch.device("cpu")
KEEP = torch.tensor(True)
LOSS = CrossEntropy(no_change=True)
ONE = torch.zeros(1, 4)


def made(classes: int, opened: int | None = None) -> Pool:
    return Pool(model((), classes, classes if opened is None else opened), FEATURES, loss=LOSS)


def learn(pool: Pool, inputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the loss of each example before the batch is learned."""
    scored = pool.score(inputs, labels, weights)
    pool.update(inputs, labels, pool.decide(scored, KEEP))
    return scored.losses


def noise(n: int, seed: int) -> Tensor:
    return torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(seed))


def chain(n: int, classes: int, stays: float, seed: int = 0) -> Tensor:
    """Return labels each of which is the one before with this chance, and else any."""
    rng = np.random.default_rng(seed)
    found = [0]
    for _ in range(n - 1):
        found.append(found[-1] if rng.random() < stays else int(rng.integers(classes)))
    return torch.tensor(found)


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_chances_are_those_of_counts_that_fade(size: int, is_weighted: bool) -> None:
    held = persistence.fresh(CPU)
    right = wrong = 0.0
    last = 0
    rng = np.random.default_rng(1)
    for part in chain(70, 4, 0.7).split(size):
        row = persistence.chances(held["last"], ONE, can_close=True)
        top = float((right + 1) / (right + wrong + 2))
        expected = torch.full((4,), (1 - top) / 3)
        expected[last] = top
        torch.testing.assert_close(row, expected)
        assert torch.allclose(row, persistence.chances(held["last"], ONE, can_close=False))
        weights = rng.integers(0, 3, size=len(part)).astype(np.float32)
        importance = torch.from_numpy(weights) if is_weighted else None
        losses = torch.zeros(1, len(part))
        answers = torch.full((1, 4, len(part)), 0.25)
        found = persistence.joined(held, ONE, True, answers, losses, part, importance)
        torch.testing.assert_close(found.losses[1], -expected.log()[part])
        assert torch.equal(found.answers[1].T, row.expand(len(part), -1))
        assert found.summary is not None
        persistence.learn(held, found.summary, KEEP)
        own = weights if is_weighted else np.ones(len(part))
        fading = (1 - 1 / MEMORY) ** len(part)
        hits = (part == last).numpy()
        right, wrong = right * fading + own[hits].sum(), wrong * fading + own[~hits].sum()
        counted = part[torch.from_numpy(own > 0)]
        last = int(counted[-1]) if len(counted) else last


def test_no_open_class_gets_nothing_and_a_closed_one_does() -> None:
    """Also after a label that has never changed, whose opposite then comes."""
    pool = made(5, 3)
    for k in range(1000):
        learn(pool, noise(2, k), torch.full((2,), 2))
    row = persistence.chances(pool.held["last"], torch.tensor([[0.0, 0.0, 0.0, -1e4, -1e4]]), True)
    assert (row[:3] > 1.0 / (3 * (MEMORY + 2))).all()
    assert (row[3:] == 0.0).all()
    assert row.sum() == pytest.approx(1.0)
    inputs = noise(50, 5000)
    assert (pool.predict(inputs)[:, 3:] == 0.0).all()
    pool.open_classes(3, 4, -math.log(2001))
    each = pool.loss.answers(pool.held, pool.models.outputs(pool.parameters, {}, inputs))
    assert (each[-1, :, 3] > 1.0 / (4 * (MEMORY + 2))).all()
    assert (each[-1, :, 4] == 0.0).all()
    torch.testing.assert_close(pool.predict(inputs).sum(dim=1), torch.ones(50))


@pytest.mark.parametrize("loss", [LOSS, Binary(no_change=True)])
@pytest.mark.parametrize("size", [1, 2])
def test_it_wins_where_labels_persist_and_inputs_say_nothing(loss: CrossEntropy, size: int) -> None:
    outputs = 1 if isinstance(loss, Binary) else 2
    pool = Pool(nn.Linear(FEATURES, outputs), FEATURES, loss=loss)
    labels = chain(1200, 2, 0.9, seed=3)
    losses = [
        learn(pool, noise(size, k), labels[k : k + size]) for k in range(0, len(labels), size)
    ]
    assert pool.mixing.log_weights.argmax() == len(pool.experts)
    late = torch.cat(losses)[600:].mean()
    assert late < 0.8 * math.log(2)
    assert (pool.predict(noise(1, 9999)).argmax(dim=1) == labels[-1]).all()


def test_where_labels_do_not_persist_it_has_next_to_no_weight() -> None:
    pool, plain = made(4), Pool(model((), 4, 4), FEATURES)
    worse = []
    for k in range(60):
        inputs = noise(50, k)
        labels = inputs[:, :4].argmax(dim=1)
        found, other = learn(pool, inputs, labels), learn(plain, inputs, labels)
        worse.append(float((found - other).mean()))
    assert float(pool.mixing.log_weights[-1].exp()) < SHARE
    assert abs(np.mean(worse)) < 2e-3


def test_a_batch_that_is_not_learned_leaves_it_as_it_was() -> None:
    pool = made(3)
    learn(pool, noise(4, 0), torch.tensor([0, 1, 2, 2]))
    before = pool.held["last"].clone()
    scored = pool.score(noise(4, 1), torch.tensor([1, 1, 1, 1]))
    pool.decide(scored, ~KEEP)
    assert torch.equal(pool.held["last"], before)
    assert before[2] == 2.0
    scored = pool.score(noise(4, 1) * math.inf, torch.tensor([1, 1, 1, 1]))
    pool.decide(scored, KEEP)
    assert torch.equal(pool.held["last"], before)


def test_a_label_of_weight_0_is_not_the_last() -> None:
    pool = made(3)
    learn(pool, noise(3, 0), torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0, 0.0]))
    assert pool.held["last"][2] == 1.0
    learn(pool, noise(3, 0), torch.tensor([2, 2, 2]), torch.zeros(3))
    assert pool.held["last"][2] == 1.0


def test_a_single_expert_answers_alone() -> None:
    pool = Pool(nn.Linear(FEATURES, 3), FEATURES, DEFAULT_EXPERTS[:1], loss=LOSS)
    assert not pool.held
    assert pool.mixing.log_weights.tolist() == [0.0]


def test_a_grown_pool_knows_the_last_label() -> None:
    pool = made(OPEN, OPEN)
    for k in range(8):
        learn(pool, noise(3, k), torch.tensor([0, 1, 1]))
    larger = grown(pool, model((), OPEN + 2, OPEN), FEATURES)
    inputs = noise(9, 50)
    found = larger.predict(inputs)
    torch.testing.assert_close(found[:, :OPEN], pool.predict(inputs))
    assert (found[:, OPEN:] == 0.0).all()


@pytest.mark.parametrize("classes", [2, 4])
def test_a_module_of_any_kind_is_mixed_with_it(classes: int) -> None:
    """A module with tanh is not traced, and differentiated by autograd."""
    torch.manual_seed(0)
    outputs = 1 if classes == 2 else classes
    loss = Binary(no_change=True) if classes == 2 else LOSS
    module = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, outputs))
    pool = Pool(module, FEATURES, loss=loss)
    labels = chain(600, classes, 0.95, seed=1)
    for k in range(0, 600, 2):
        learn(pool, noise(2, k), labels[k : k + 2])
    assert pool.mixing.log_weights.argmax() == len(pool.experts)
    found = pool.predict(noise(5, 7))
    assert found.shape == (5, classes)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(5))


def test_a_pool_without_it_is_as_it_was() -> None:
    with_it, plain = made(4), Pool(model((), 4, 4), FEATURES, loss=CrossEntropy())
    assert set(with_it.tensors()) - set(plain.tensors()) == {"loss.last"}
    assert with_it.mixing.log_weights.shape == (len(with_it.experts) + 1,)
    weights = with_it.telemetry()
    assert weights["weights"].sum() == pytest.approx(1.0)
    assert weights["rivals"].tolist() == pytest.approx([SHARE])
    assert plain.telemetry()["rivals"].tolist() == []
