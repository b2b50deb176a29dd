"""Scores on the device equal those of river and scikit-learn on the same stream."""

import math
from collections import deque
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from river import metrics, utils
from sklearn import metrics as oracles

from service.fold.scoring.classification import MOST_PENDING, RING, Scores
from service.fold.scoring.measures import CALIBRATION_BINS, MAX_CONFUSED, Measures
from streams.recovery import WINDOW

YES = torch.tensor(True)
CPU = torch.device("cpu")
EXACT, BINNED = 1e-6, 1e-3


def random_batch(n: int, classes: int, skill: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(classes, (n,))
    logits = torch.randn(n, classes)
    return logits + skill * torch.nn.functional.one_hot(labels, classes), labels


def update(scores: Scores, logits: torch.Tensor, labels: torch.Tensor, keep: bool = True) -> None:
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    probabilities = logits.softmax(dim=1)
    scores.update(probabilities, logits.argmax(1), labels, losses, torch.tensor(keep))


def learn_all(scores: Scores, logits: torch.Tensor, labels: torch.Tensor, size: int) -> None:
    """Score a stream in batches, as a fold does."""
    since = 0
    for some, few in zip(logits.split(size), labels.split(size), strict=True):
        update(scores, some, few)
        since += len(few)
        if since >= MOST_PENDING:
            scores.settle()
            since = 0


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


def calibration_error(probabilities: np.ndarray, hits: np.ndarray) -> float:
    """Return the ECE in bins of equal mass, from the examples themselves."""
    order = np.argsort(probabilities, kind="stable")
    parts = np.array_split(order, CALIBRATION_BINS)
    gaps = [len(own) * abs(probabilities[own].mean() - hits[own].mean()) for own in parts]
    return float(sum(gaps) / len(order))


def check(found: Measures, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Compare with scikit-learn."""
    p, y = logits.double().softmax(dim=1).numpy(), labels.numpy()
    classes = list(range(p.shape[1]))
    guess = p.argmax(axis=1)
    assert found.examples == len(y)
    assert found.accuracy == pytest.approx(oracles.accuracy_score(y, guess), abs=EXACT)
    assert found.log_loss == pytest.approx(oracles.log_loss(y, p, labels=classes), abs=EXACT)
    brier = ((p - np.eye(len(classes))[y]) ** 2).sum(axis=1).mean()
    assert found.brier == pytest.approx(brier, abs=EXACT)
    balanced = oracles.balanced_accuracy_score(y, guess)
    assert found.balanced_accuracy == pytest.approx(balanced, abs=EXACT)
    recall, precision = (
        score(y, guess, labels=classes, average=None, zero_division=np.nan)
        for score in (oracles.recall_score, oracles.precision_score)
    )
    assert found.recall == pytest.approx(recall, abs=EXACT, nan_ok=True)
    assert found.precision == pytest.approx(precision, abs=EXACT, nan_ok=True)
    if len(classes) <= MAX_CONFUSED:
        confusion = oracles.confusion_matrix(y, guess, labels=classes)
        assert found.confusion == tuple(map(tuple, confusion))
    if len(classes) == 2:
        assert found.brier == pytest.approx(2 * oracles.brier_score_loss(y, p[:, 1]), abs=EXACT)
        assert found.auc == pytest.approx(oracles.roc_auc_score(y, p[:, 1]), abs=BINNED)
        average = oracles.average_precision_score(y, p[:, 1])
        assert found.pr_auc == pytest.approx(average, abs=BINNED)
        trusted, hits = p[:, 1], y
    else:
        assert math.isnan(found.auc)
        assert math.isnan(found.pr_auc)
        trusted, hits = p.max(axis=1), guess == y
    assert found.ece == pytest.approx(calibration_error(trusted, hits), abs=BINNED)
    assert sum(point.examples for point in found.calibration) == len(y)
    assert [a.probability <= b.probability for a, b in pairwise(found.calibration)] == [True] * (
        len(found.calibration) - 1
    )


@pytest.mark.parametrize("size", [100, 1_500, 30_000])
@pytest.mark.parametrize(
    ("classes", "skill"), [(2, 1.0), (2, 0.05), (3, 2.0), (10, 4.0), (70, 5.0)]
)
def test_measures_equal_those_of_scikit_learn(classes: int, skill: float, size: int) -> None:
    torch.manual_seed(classes)
    logits, labels = random_batch(30_000, classes, skill)
    if classes == 2:  # sure of a rare class 1, as of clicks
        logits[:, 0] += 3.0
    scores = Scores(classes, CPU)
    learn_all(scores, logits, labels, size)
    windows = scores.measure().windows
    assert set(windows) == {"total", "1000", "10000"}
    check(windows["total"], logits, labels)
    check(windows["10000"], logits[-10_000:], labels[-10_000:])
    recent = windows["1000"]
    assert recent.accuracy == pytest.approx(
        float((logits[-1_000:].argmax(1) == labels[-1_000:]).float().mean()), abs=EXACT
    )


def test_auc_of_probabilities_in_a_narrow_range_is_that_of_river() -> None:
    logits = torch.zeros(4_000, 2)
    labels = (torch.rand(4_000) < 0.08).long()
    logits[:, 1] = -2.4 + 0.05 * torch.randn(4_000) + 0.03 * labels
    scores = Scores(2, CPU)
    learn_all(scores, logits, labels, 50)
    exact = oracles.roc_auc_score(labels, logits[:, 1])
    assert scores.measure().windows["total"].auc == pytest.approx(exact, abs=BINNED)


def test_even_odds_say_nothing_of_the_label_however_they_are_rounded() -> None:
    scores = Scores(2, CPU)
    labels = torch.arange(1_000) % 2
    for half in (0.49999997, 0.5, 0.50000006):
        answers = torch.full((1_000, 2), half)
        losses = torch.full((1_000,), -math.log(half))
        scores.update(answers, torch.zeros_like(labels), labels, losses, torch.tensor(True))
    total = scores.measure().windows["total"]
    assert total.auc == 0.5
    assert total.ece == pytest.approx(0.0, abs=1e-3)


def test_certain_predictions_are_finite_and_scored() -> None:
    scores = Scores(2, CPU)
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [200.0, 0.0]])
    update(scores, logits, torch.tensor([0, 1, 1]))
    total = scores.measure().windows["total"]
    assert (total.accuracy, total.auc) == (pytest.approx(2 / 3), pytest.approx(0.75))
    assert total.brier == pytest.approx(2 / 3)
    assert total.ece == pytest.approx(1 / 3, abs=1e-3)


@given(st.lists(st.integers(1, 1500), min_size=1, max_size=6))
def test_how_examples_are_batched_does_not_change_the_scores(sizes: list[int]) -> None:
    logits, labels = random_batch(sum(sizes), 4)
    parts, one = Scores(4, CPU), Scores(4, CPU)
    for some, few in zip(logits.split(sizes), labels.split(sizes), strict=True):
        update(parts, some, few)
    update(one, logits, labels)
    a, b = parts.measure(), one.measure()
    assert (a.scored, a.correct, a.rolling_accuracy) == (b.scored, b.correct, b.rolling_accuracy)
    assert a.rolling_loss == pytest.approx(b.rolling_loss)
    assert a.class_recall == pytest.approx(b.class_recall, nan_ok=True)
    for name, own in a.windows.items():
        assert own.confusion == b.windows[name].confusion
        assert own.scores() == pytest.approx(b.windows[name].scores())


def test_when_outcomes_are_settled_does_not_change_what_is_measured() -> None:
    often, never = Scores(3, CPU), Scores(3, CPU)
    for _ in range(20):
        batch = random_batch(50, 3)
        update(often, *batch)
        update(never, *batch)
        often.settle()
    mine, theirs = often.measure().windows["total"], never.measure().windows["total"]
    assert mine.confusion == theirs.confusion
    assert mine.calibration == theirs.calibration
    assert mine.scores() == pytest.approx(theirs.scores())


def test_a_batch_larger_than_the_ring_is_counted_whole() -> None:
    scores = Scores(3, CPU)
    update(scores, *random_batch(10, 3))
    update(scores, *random_batch(2 * RING + 7, 3))
    assert scores.measure().windows["total"].examples == 2 * RING + 17


def test_outcomes_that_were_not_settled_in_time_are_noticed() -> None:
    scores = Scores(3, CPU)
    for _ in range(6):
        update(scores, *random_batch(2_000, 3))
    with pytest.raises(AssertionError, match="settled"):
        scores.read()


@pytest.mark.parametrize("is_settled", [True, False])
def test_a_class_that_opens_keeps_what_was_measured(is_settled: bool) -> None:
    """Counts of two classes, by the probability of class 1, become counts by confidence."""
    torch.manual_seed(0)
    logits, labels = random_batch(3_000, 2, 1.0)
    closed = torch.cat([logits, torch.full((3_000, 2), -1e4)], dim=1)
    scores, three = Scores(2, CPU, room=4), Scores(3, CPU, room=4)
    update(scores, closed, labels)
    if is_settled:
        scores.settle()
    update(three, closed, labels)
    scores.resize(3, 4)
    mine, theirs = scores.measure().windows, three.measure().windows
    for name in mine:
        assert mine[name].confusion == theirs[name].confusion
        assert mine[name].scores() == pytest.approx(theirs[name].scores(), abs=1e-6)
    assert math.isnan(mine["total"].auc)
    assert len(mine["total"].recall) == 3


def test_the_second_class_makes_probabilities_those_of_class_1() -> None:
    scores = Scores(1, CPU, room=2)
    certain = torch.tensor([[0.0, -1e4]] * 20)
    update(scores, certain, torch.zeros(20, dtype=torch.int64))
    scores.resize(2, 2)
    update(scores, torch.tensor([[0.0, 1.0]] * 10), torch.ones(10, dtype=torch.int64))
    total = scores.measure().windows["total"]
    assert (total.auc, total.pr_auc) == (1.0, 1.0)


def test_more_classes_than_a_confusion_matrix_has_keep_their_recall() -> None:
    scores = Scores(60, CPU, room=MAX_CONFUSED)
    logits, labels = random_batch(2_000, 60, 3.0)
    logits = torch.nn.functional.pad(logits, (0, 4), value=-1e4)
    update(scores, logits, labels)
    before = scores.measure().windows["total"]
    scores.resize(65, 2 * MAX_CONFUSED)
    after = scores.measure().windows["total"]
    assert after.confusion == ()
    assert after.recall[:60] == pytest.approx(before.recall, nan_ok=True)
    assert after.precision[:60] == pytest.approx(before.precision, nan_ok=True)
    assert before.confusion != ()


def test_learners_that_are_scored_together_have_the_scores_that_each_has_alone() -> None:
    both = Scores(3, CPU, learners=2)
    alone = [Scores(3, CPU), Scores(3, CPU)]
    for _ in range(4):
        labels = torch.randint(3, (100,))
        rows = []
        for one in alone:
            logits = torch.randn(100, 3)
            update(one, logits, labels)
            p = logits.softmax(dim=1)
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            fields = [loss, p.norm(dim=1), p.amax(dim=1), labels.float(), p.argmax(1).float()]
            rows.append(torch.stack(fields, dim=-1))
        both.add(torch.stack(rows), YES)
        both.settle()
    for k, one in enumerate(alone):
        mine, theirs = both.measure(k), one.measure()
        assert mine.correct == theirs.correct
        assert mine.windows["total"].calibration == theirs.windows["total"].calibration
        assert mine.windows["total"].scores() == pytest.approx(theirs.windows["total"].scores())


def test_a_batch_that_is_not_kept_changes_nothing() -> None:
    scores = Scores(4, CPU)
    update(scores, *random_batch(30, 4))
    before = {k: v.clone() for k, v in scores.tensors().items()}
    logits, labels = random_batch(50, 4)
    logits[3, 2] = math.nan
    update(scores, logits, labels, keep=False)
    for name, tensor in scores.tensors().items():
        assert torch.equal(before[name].nan_to_num(-9), tensor.nan_to_num(-9)), name


def test_a_prediction_that_is_not_finite_is_wrong_with_certainty() -> None:
    for classes in (2, 3):
        scores = Scores(classes, CPU)
        labels, never = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool)
        p = torch.full((4, classes), math.nan)
        scores.update(p, labels, labels, torch.full((4,), 87.0), YES, never)
        total = scores.measure().windows["total"]
        assert (scores.read().correct, total.accuracy, total.recall[0]) == (0, 0.0, 0.0)
        assert total.brier == pytest.approx(2.0)
        assert total.ece == pytest.approx(1.0, abs=1e-3)


def test_before_the_first_example_there_is_nothing_to_say() -> None:
    read = Scores(3, CPU).measure()
    assert (read.scored, read.correct) == (0, 0)
    assert math.isnan(read.accuracy)
    assert math.isnan(read.rolling_loss)
    for measures in read.windows.values():
        assert measures.examples == 0
        assert measures.scores() == {}
        assert measures.calibration == ()


def test_a_loss_below_zero_by_rounding_is_shown_as_zero() -> None:
    scores = Scores(2, CPU)
    labels = torch.zeros(10, dtype=torch.int64)
    p = torch.tensor([[1.0, 0.0]] * 10)
    scores.update(p, labels, labels, torch.full((10,), -1e-7), YES)
    assert (scores.read().loss, scores.read().rolling_loss) == (0.0, 0.0)
    scores.settle()
    assert float(scores.counts.sums[0, 0]) < 0, "the state keeps what was added"
