"""Each family is a part of the mixture, and linear experts of second order learn. It is so in every
new model ``auto`` of classes, and an old log goes on as it began."""

from dataclasses import replace

import numpy as np
import torch

from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import Spec
from service.fold.state import State
from service.fold.step import Fold
from service.settings import Settings
from streams.batch import Batch
from tests.support.states import CPU, HYPERPARAMETERS


def spec_of(**settings: object) -> Spec:
    return Settings.model_validate(settings).spec


NEW = spec_of(model="auto", features=5, classes=3)
OLD = replace(NEW, weighs_families=False)


def a_batch(n: int, seed: int, width: int = 5) -> Batch:
    """Return examples of a linear rule."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, width)).astype(np.float32)
    return Batch(features, features[:, :3].argmax(axis=1))


def test_it_is_so_in_every_new_model_auto_of_classes_and_in_no_other() -> None:
    assert NEW.weighs_families
    assert not spec_of(model="auto", schema="auto").weighs_families
    assert not spec_of(model="auto", features=3, task="regression").weighs_families
    assert not spec_of(model="logistic", features=3, classes=2).weighs_families


def test_a_spec_of_an_earlier_version_goes_on_without() -> None:
    assert "weighs_families" not in OLD.fields()
    assert not Spec.of(OLD.fields()).weighs_families
    assert NEW.differences(OLD) == []
    state = State(NEW, HYPERPARAMETERS, CPU)
    state.begin_as(OLD)
    assert state.tensors().keys() == State(OLD, HYPERPARAMETERS, CPU).tensors().keys()


def test_a_snapshot_has_learned_the_rule_after_two_batches_where_an_old_model_has_not() -> None:
    right, rows = {}, a_batch(500, 99)
    for spec in (OLD, NEW):
        state = State(spec, HYPERPARAMETERS, CPU)
        fold = Fold(state)
        for seed in range(2):
            fold.step(a_batch(60, seed))
        labels, _ = Evaluator(state.served)(Snapshot.of(state), rows.features)
        right[spec] = float((labels.numpy() == rows.labels).mean())
    assert right[NEW] > right[OLD] + 0.02


def test_models_of_many_inputs_are_as_they_were() -> None:
    names = []
    for features in (64, 65):
        state = State(replace(NEW, features=features), HYPERPARAMETERS, CPU)
        Fold(state).step(a_batch(20, 0, features))
        families = state.served.families
        assert families is not None
        shares = families.mixture.weights.shares()
        assert len(shares) == len(families.names)
        torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
        names.append(sum("second-order" in name for name in families.names))
    assert names == [4, 0]
    many = replace(NEW, features=65), replace(OLD, features=65)
    new, old = (State(spec, HYPERPARAMETERS, CPU).tensors().keys() for spec in many)
    assert new == old
