"""Test-then-train, rolling accuracy and recovery."""

import numpy as np
import pytest
from river import linear_model, metrics

from streams.batch import Batch, Features, Labels, concatenate
from streams.peers.library_learners import RiverLearner
from streams.prequential import BLOCK, WINDOW, curve, ends, prequential, recovery, rolling
from streams.sources.catalog import get


class Memory:
    """Knows exactly what it has been shown, and answers -1 to all else."""

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
    told: list[int] = []
    prequential(Memory(), get("sea", 250).batches(100), told.append)
    assert told == [100, 100, 50]


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


FALL = np.array([0.9] * 60 + [0.5] * 20 + [0.9] * 40)
"""Shifts at 6,000, and is back 2,000 examples later."""


def test_recovery_counts_the_examples_after_the_shift_not_the_window() -> None:
    assert recovery(FALL, [0, 6_000]) == [2_000]
    assert ends(FALL, [0, 6_000]) == [pytest.approx(0.9)]


def test_two_points_below_the_end_is_recovered_and_three_are_not() -> None:
    two = np.where(FALL == 0.5, 0.88, FALL)
    three = np.where(FALL == 0.5, 0.87, FALL)
    assert recovery(two, [6_000]) == [0]
    assert recovery(three, [6_000])[0] == 2_000 - 6 * BLOCK  # 4 blocks of 10 may be 3 points low


def test_a_goal_that_is_out_of_reach_is_never_reached() -> None:
    assert recovery(FALL, [6_000], [0.93]) == [None]
    assert recovery(FALL, [6_000], [0.5]) == [0]


def test_each_shift_is_judged_by_its_own_segment() -> None:
    again = np.concatenate([FALL, [0.2] * 10, [0.6] * 30])
    assert recovery(again, [0, 6_000, 12_000]) == [2_000, 1_000]


def test_a_stream_without_shifts_has_no_recovery() -> None:
    assert recovery(FALL, [0]) == []


def test_segments_too_short_to_judge_are_left_out() -> None:
    assert recovery(FALL, [0, 6_000, 10_500]) == [2_000]


def test_a_segment_of_two_windows_is_judged() -> None:
    assert recovery(np.ones(1 + 2 * WINDOW // BLOCK), [BLOCK]) == [0]


def test_a_block_that_holds_a_shift_belongs_to_no_segment() -> None:
    blocks = np.array([1.0, 0.0] + [1.0] * (2 * WINDOW // BLOCK))
    assert recovery(blocks, [BLOCK + BLOCK // 2]) == [0]


def test_blocks_that_are_not_whole_do_not_count_in_a_curve() -> None:
    outcomes = prequential(Memory(), [concatenate(distinct(150))])
    assert curve(outcomes).tolist() == [0.0]
