"""Scores on the device equal river's, example by example."""

import math
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from river import metrics, utils

from service.fold.scoring.classification import Scores
from streams.recovery import WINDOW

YES = torch.tensor(True)
CPU = torch.device("cpu")


def random_batch(n: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, classes), torch.randint(classes, (n,))


def update(scores: Scores, logits: torch.Tensor, labels: torch.Tensor, keep: bool = True) -> None:
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    scores.update(logits.argmax(1) == labels, losses, labels, torch.tensor(keep))


@pytest.mark.parametrize("size", [1, 7, 100, 999, 1000, 1001, 2500])
def test_scores_equal_rivers(size: int) -> None:
    classes = 5
    scores = Scores(classes, CPU)
    accuracy, entropy = metrics.Accuracy(), metrics.CrossEntropy()
    rolling = utils.Rolling(metrics.Accuracy, window_size=WINDOW)
    recent: deque[tuple[int, int]] = deque(maxlen=WINDOW)
    for _ in range(max(1, 3200 // size)):
        logits, labels = random_batch(size, classes)
        update(scores, logits, labels)
        probabilities = torch.softmax(logits.double(), dim=1)
        for row, guess, label in zip(
            probabilities.tolist(), logits.argmax(1).tolist(), labels.tolist(), strict=True
        ):
            accuracy.update(label, guess)
            rolling.update(label, guess)
            entropy.update(label, dict(enumerate(row)))
            recent.append((label, guess))
        read = scores.read()
        recall = metrics.MacroRecall()
        for label, guess in recent:
            recall.update(label, guess)

        assert read.accuracy == pytest.approx(accuracy.get(), abs=1e-12)
        assert read.rolling_accuracy == pytest.approx(rolling.get(), abs=1e-12)
        assert read.loss == pytest.approx(entropy.get(), rel=1e-5)
        for c in range(classes):
            support = recall.cm.sum_row[c]
            if support:
                assert read.class_recall[c] == pytest.approx(recall.cm[c][c] / support, abs=1e-12)
            else:
                assert math.isnan(read.class_recall[c])


@given(st.lists(st.integers(1, 1500), min_size=1, max_size=6))
def test_how_examples_are_batched_does_not_change_the_scores(sizes: list[int]) -> None:
    logits, labels = random_batch(sum(sizes), 4)
    parts, one = Scores(4, CPU), Scores(4, CPU)
    for some, few in zip(logits.split(sizes), labels.split(sizes), strict=True):
        update(parts, some, few)
    update(one, logits, labels)
    a, b = parts.read(), one.read()
    assert (a.scored, a.correct, a.rolling_accuracy) == (b.scored, b.correct, b.rolling_accuracy)
    assert a.rolling_loss == pytest.approx(b.rolling_loss)
    assert a.class_recall == pytest.approx(b.class_recall, nan_ok=True)


def test_a_batch_that_is_not_kept_changes_nothing() -> None:
    scores = Scores(4, CPU)
    update(scores, *random_batch(30, 4))
    before = {k: v.clone() for k, v in scores.tensors().items()}
    logits, labels = random_batch(50, 4)
    logits[3, 2] = math.nan
    update(scores, logits, labels, keep=False)
    assert all(torch.equal(before[k], v) for k, v in scores.tensors().items())


def test_before_the_first_example_there_is_nothing_to_say() -> None:
    read = Scores(3, CPU).read()
    assert (read.scored, read.correct) == (0, 0)
    assert math.isnan(read.accuracy)
    assert math.isnan(read.rolling_loss)


def test_a_loss_below_zero_by_rounding_is_shown_as_zero() -> None:
    scores = Scores(2, CPU)
    labels = torch.zeros(10, dtype=torch.int64)
    scores.update(labels == 0, torch.full((10,), -1e-7), labels, YES)
    assert (scores.read().loss, scores.read().rolling_loss) == (0.0, 0.0)
    assert float(scores.loss_sum) < 0, "the state keeps what was added"
