"""Prequential outcomes and rolling accuracy."""

import numpy as np
import pytest
from river import linear_model, metrics
from sklearn.metrics import roc_auc_score

from streams.batch import Batch, Features, Labels, concatenate
from streams.peers.library_learners import RiverLearner
from streams.prequential import BLOCK, curve, prequential, rolling, rolling_auc, rolling_points
from streams.recovery import WINDOW
from streams.sources.catalog import get


class Memory:
    """A learner that knows exactly the examples it has learned, and answers -1 to others."""

    def __init__(self) -> None:
        self.known: dict[bytes, int] = {}

    def predict(self, features: Features) -> Labels:
        return np.array([self.known.get(row.tobytes(), -1) for row in features])

    def learn(self, batch: Batch) -> None:
        rows = (row.tobytes() for row in batch.features)
        self.known |= dict(zip(rows, batch.labels.tolist(), strict=True))


def distinct(examples: int) -> list[Batch]:
    features = np.arange(examples, dtype=np.float32)[:, None]
    whole = Batch(features, np.arange(examples) % 3)
    return [whole.part(k, k + 10) for k in range(0, examples, 10)]


def test_no_label_is_known_before_it_is_predicted() -> None:
    once = distinct(100)
    assert not prequential(Memory(), once).any()
    assert prequential(Memory(), once + once).tolist() == [False] * 100 + [True] * 100


@pytest.mark.parametrize("size", [1, 7])
def test_accuracy_is_rivers_at_every_example(size: int) -> None:
    stream = get("agrawal", 700)
    outcomes = prequential(RiverLearner(linear_model.Perceptron()), stream.batches(size))
    model, metric, expected = linear_model.Perceptron(), metrics.Accuracy(), []
    for batch in stream.batches(size):
        examples = [
            (dict(enumerate(x)), y)
            for x, y in zip(batch.features.tolist(), batch.labels.tolist(), strict=True)
        ]
        for (_, label), guess in zip(
            examples, [model.predict_one(x) for x, _ in examples], strict=True
        ):
            metric.update(label, guess)
            expected.append(metric.get())
        for x, label in examples:
            model.learn_one(x, label)
    running = np.cumsum(outcomes) / np.arange(1, len(outcomes) + 1)
    np.testing.assert_allclose(running, expected)


def test_progress_adds_up_to_the_stream() -> None:
    counts: list[int] = []
    prequential(Memory(), get("sea", 250).batches(100), counts.append)
    assert counts == [100, 100, 50]


def test_a_learner_must_answer_for_each_example() -> None:
    class Mute(Memory):
        def predict(self, features: Features) -> Labels:
            return np.zeros(1, dtype=np.int64)

    with pytest.raises(ValueError, match=r"Mute predicted \[1\] labels for 10 examples"):
        prequential(Mute(), distinct(10))


def test_a_rolling_accuracy_is_the_mean_of_the_last_window() -> None:
    outcomes = np.random.default_rng(0).random(5_050) < 0.7
    found = rolling(curve(outcomes))
    assert len(found) == 50
    for k, value in enumerate(found):
        stop = (k + 1) * BLOCK
        assert value == pytest.approx(outcomes[max(0, stop - WINDOW) : stop].mean())


def test_points_are_at_the_end_of_each_block() -> None:
    assert rolling_points(np.array([0.0, 1.0])) == [(BLOCK, 0.0), (2 * BLOCK, 0.5)]


def test_a_rolling_auc_is_that_of_the_last_window() -> None:
    rng = np.random.default_rng(0)
    is_one = rng.random(2_550) < 0.1
    chances = (0.2 * is_one + rng.random(2_550)).round(2)
    found = rolling_auc(chances, is_one)
    assert len(found) == 25
    for k, value in enumerate(found):
        stop = (k + 1) * BLOCK
        own = slice(max(0, stop - WINDOW), stop)
        assert value == pytest.approx(roc_auc_score(is_one[own], chances[own]))
    assert rolling_auc(chances, np.zeros(2_550, np.bool_)).tolist() == [0.5] * 25


def test_blocks_that_are_not_whole_do_not_count_in_a_curve() -> None:
    outcomes = prequential(Memory(), [concatenate(distinct(150))])
    assert curve(outcomes).tolist() == [0.0]
