"""Labels that are delayed by examples come in the order of river's ``simulate_qa``."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river.stream import simulate_qa

from streams.batch import Batch, Features, Labels
from streams.delays.arrivals import Arrivals, come_of, take_dense, take_labels
from streams.delays.delay import Delay
from streams.prequential import prequential

AMOUNTS = st.floats(0, 60) | st.integers(0, 60).map(float) | st.just(math.inf)


def sizes_of(n: int, size: int) -> list[int]:
    return [min(size, n - k) for k in range(0, n, size)]


@given(st.lists(AMOUNTS, min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 9))
def test_before_each_batch_exactly_the_labels_that_have_come_are_learned(
    delays: list[float], size: int, most: int
) -> None:
    n = len(delays)
    later = Arrivals.of(np.array(delays), sizes_of(n, size), most)
    known: list[int] = []
    for batch, parts in enumerate(later.order):
        end = min(n, (batch + 1) * size)
        assert all(0 < len(part) <= most for part in parts)
        assert all(len(part) == most for part in parts[:-1])
        known += [int(k) for part in parts for k in part]
        assert set(known) == {k for k in range(end) if k + delays[k] <= end}
    assert len(known) == len(set(known)) == n - later.missing
    moments = [k + delays[k] for k in known]
    assert moments == sorted(moments)
    assert all(a < b for a, b in pairwise(known) if a + delays[a] == b + delays[b])


@pytest.mark.parametrize("delay", [1, 4, 20, 100])
def test_the_order_is_that_of_river(delay: int) -> None:
    data = [({"k": k}, k) for k in range(50)]
    asked, found = 0, []
    for number, _, truth, *_ in simulate_qa(data, None, delay):
        if truth is None:
            asked = number
        elif asked < 49:
            found.append((number, asked + 1))
    later = Arrivals.of(np.full(50, float(delay)), [1] * 50, 1)
    own = [(int(k), at) for at, parts in enumerate(later.order, 1) for part in parts for k in part]
    assert [pair for pair in own if pair[1] < 50] == found


def test_without_a_delay_each_batch_is_learned_as_it_is() -> None:
    batches = [a_batch(0, 7), a_batch(7, 7), a_batch(14, 3)]
    later = Arrivals.of(np.zeros(17), [7, 7, 3], 7)
    come = come_of(later, batches, take_dense)
    assert come is not None
    for batch, (own,) in zip(batches, come, strict=True):
        np.testing.assert_array_equal(own.features, batch.features)
        np.testing.assert_array_equal(own.labels, batch.labels)
    assert (later.first, later.missing) == (7, 0)
    assert come_of(None, batches, take_dense) is None


def a_batch(start: int, n: int) -> Batch:
    numbers = np.arange(start, start + n)
    return Batch(numbers[:, None].astype(np.float32), numbers, numbers.astype(np.float32))


def test_examples_of_many_batches_are_learned_in_the_order_in_which_their_labels_come() -> None:
    batches = [a_batch(0, 4), a_batch(4, 4), a_batch(8, 4)]
    delays = np.array([6.5, 0, math.inf, 4, 0, 0, 0, 0, 3, 2, 1, 0])
    later = Arrivals.of(delays, [4, 4, 4], 4)
    come = later.arranged(batches, take_dense)
    shown = [[own.labels.tolist() for own in parts] for parts in come]
    assert shown == [[[1]], [[4, 5, 6, 0], [3, 7]], [[8, 9, 10, 11]]]
    for own in (own for parts in come for own in parts):
        assert own.features[:, 0].tolist() == own.labels.tolist()
        assert own.weights is not None
        assert own.weights.tolist() == own.labels.tolist()
    labels = [batch.labels for batch in batches]
    known = later.arranged(labels, take_labels)
    assert [[own.tolist() for own in parts] for parts in known] == shown
    assert (later.first, later.missing) == (4, 1)


class Last:
    """Answers with the last label that it has learned, and -1 before the first."""

    def __init__(self) -> None:
        self.last, self.learned = -1, 0

    def predict(self, features: Features) -> Labels:
        return np.full(len(features), self.last)

    def learn(self, batch: Batch) -> None:
        self.last, self.learned = int(batch.labels[-1]), self.learned + len(batch)


def test_a_learner_answers_from_the_labels_that_have_come() -> None:
    batches = [a_batch(k, 1) for k in range(20)]
    later = Arrivals.of(Delay.parse("5").draws(0).next([""] * 20), [1] * 20, 1)
    answers: list[int] = []
    learner = Last()
    prequential(
        learner, batches, observe=lambda own, *_: answers.extend(own.tolist()),
        come=come_of(later, batches, take_dense),
    )  # fmt: skip
    assert answers == [-1] * 5 + list(range(15))
    assert learner.learned == 16
