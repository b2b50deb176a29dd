"""The floors predict what counting by hand predicts, and begin then in older checkpoints."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.fold.scoring.classification import LABEL
from service.fold.scoring.floors import FLOORS, Floors, Level, below, losses_of
from service.fold.spec import Hyperparameters, Spec
from service.fold.state import State
from service.fold.step import Fold
from streams.batch import Batch

CPU = torch.device("cpu")
YES, NO = torch.tensor(True), torch.tensor(False)
CLASSES = 4


def by_hand(batches: list[list[int]], classes: int = CLASSES) -> np.ndarray:
    """Return what the floors predict after batches, [2, classes]."""
    labels = np.concatenate([[], *batches]).astype(int)
    majority = (np.bincount(labels, minlength=classes) + 1) / (len(labels) + classes)
    known = [
        (before[-1], label) for before, after in pairwise(batches)
        for label in after
    ]  # fmt: skip
    rate = (sum(a == b for a, b in known) + 1) / (len(known) + 2)
    no_change = majority.copy()
    if len(labels):
        no_change[labels[-1]] = 0.0
        no_change *= (1 - rate) / no_change.sum()
        no_change[labels[-1]] = rate
    return np.stack([majority, no_change])


@given(st.lists(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=9), max_size=8))
def test_floors_predict_what_counting_by_hand_predicts(batches: list[list[int]]) -> None:
    floors = Floors(CLASSES, CPU)
    for labels in batches:
        floors.learn(torch.tensor(labels), YES)
    assert floors.probabilities().numpy() == pytest.approx(by_hand(batches), rel=1e-6)


def test_a_batch_that_is_not_kept_changes_no_floor() -> None:
    floors = Floors(CLASSES, CPU)
    floors.learn(torch.tensor([1, 2]), YES)
    before = {k: v.clone() for k, v in floors.tensors().items()}
    floors.learn(torch.tensor([3, 3]), NO)
    for name, tensor in floors.tensors().items():
        assert torch.equal(before[name].nan_to_num(-9), tensor.nan_to_num(-9)), name


def test_labels_that_persist_make_no_change_sure_of_itself() -> None:
    floors = Floors(2, CPU)
    for k in range(50):
        floors.learn(torch.full((20,), k // 10 % 2), YES)
    majority, no_change = losses_of(floors.probabilities(), torch.tensor([0])).flatten().tolist()
    assert majority == pytest.approx(np.log(1002 / 601))
    assert no_change < 0.2 * majority


def test_a_class_that_is_closed_has_no_probability_until_it_opens() -> None:
    floors = Floors(2, CPU, room=4)
    floors.learn(torch.tensor([0, 1, 1]), YES)
    assert (floors.probabilities()[:, 2:] == 0).all()
    floors.resize(3, 4)
    assert floors.probabilities()[0].tolist() == pytest.approx([2 / 6, 3 / 6, 1 / 6, 0])
    floors.resize(5, 8)
    assert floors.counts.tolist() == [2, 3, 1, 1, 1, 0, 0, 0]
    assert floors.probabilities().sum(dim=1).tolist() == pytest.approx([1, 1])


def test_a_single_class_is_certain() -> None:
    floors = Floors(1, CPU, room=2)
    floors.learn(torch.tensor([0, 0]), YES)
    assert floors.probabilities().tolist() == [[1, 0], [1, 0]]


def fold_of(state: State, batches: range) -> None:
    fold = Fold(state)
    for k in batches:
        random = np.random.default_rng(k)
        fold.step(Batch(random.random((20, 6), dtype=np.float32), random.integers(0, 3, 20)))


def fresh() -> State:
    return State(Spec("logistic", 6, 3, (), "adam", True, 0),
                 Hyperparameters(0.01, 0.0, 0.0, 0.0), CPU)  # fmt: skip


def test_a_state_without_floors_loads_and_its_floors_begin_then() -> None:
    older = fresh()
    fold_of(older, range(5))
    tensors = {k: v for k, v in older.tensors().items() if not k.startswith("floors.")}
    state = fresh()
    fold_of(state, range(2))
    state.load(tensors, older.version, older.examples)
    assert state.floors.tensors().keys() == fresh().floors.tensors().keys()
    assert state.floors.counts.tolist() == [1, 1, 1]
    assert int(state.floors.last) == -1
    fold_of(state, range(5, 7))
    assert int(state.floors.counts.sum()) == 43


def test_a_batch_that_is_not_finite_is_no_label_for_the_floors() -> None:
    state = fresh()
    fold_of(state, range(3))
    features = np.full((20, 6), np.nan, np.float32)
    Fold(state).step(Batch(features, np.zeros(20, np.int64)))
    assert int(state.floors.counts.sum()) == 63


def test_floors_are_scored_on_what_they_predicted_before_each_batch() -> None:
    torch.manual_seed(0)
    floors, seen = Floors(CLASSES, CPU), []
    losses, right = [], []
    for _ in range(6):
        labels = torch.randint(CLASSES, (15,))
        predicted = by_hand(seen)
        losses.append(-np.log(predicted[:, labels.numpy()]))
        right.append(predicted.argmax(axis=1)[:, None] == labels.numpy())
        assert floors.score(labels, YES).numpy() == pytest.approx(losses[-1], rel=1e-5)
        floors.learn(labels, YES)
        seen.append(labels.tolist())
    for k in range(len(FLOORS)):
        found = floors.scores.measure(k)
        assert found.loss == pytest.approx(np.concatenate(losses, axis=1)[k].mean(), rel=1e-6)
        assert found.accuracy == np.concatenate(right, axis=1)[k].mean()
        assert found.windows["total"].examples == 90


def test_floors_are_scored_on_the_examples_that_the_model_is_scored_on() -> None:
    state = fresh()
    fold_of(state, range(4))
    features = np.full((20, 6), np.nan, np.float32)
    Fold(state).step(Batch(features, np.zeros(20, np.int64)))
    fold_of(state, range(4, 6))
    served, floors = state.served.scores, state.floors.scores
    assert int(served.scored) == int(floors.scored) == 120
    assert torch.equal(served.ring[0, :120, LABEL], floors.ring[1, :120, LABEL])


def test_with_balanced_weights_only_balanced_accuracy_counts() -> None:
    rare = Level(0.85, 0.6, 0.8)
    floors = {"majority": Level(0.92, 0.28, 0.5), "no_change": Level(0.86, 0.4, 0.52)}
    assert len(below(rare, floors)) == 2
    assert below(rare, floors, is_balanced=True) == []
    assert below(rare._replace(balanced_accuracy=0.51), floors, is_balanced=True) == [
        "below the floor no_change: balanced accuracy 51.0% against 52.0%"
    ]
