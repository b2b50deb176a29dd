"""Neighbours compare categories, too: in every new model of rows, exactly, and an old log or
checkpoint goes on as it began."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import Spec
from service.fold.state import State
from service.fold.step import Fold
from service.log.position import Progress
from service.settings import Settings
from service.trainer.checkpoint import Checkpoint, decode, encode
from tests.benchmarks.categories import learned as learned_by
from tests.support.named import a_row_spec, extend, some_rows
from tests.support.states import CPU, HYPERPARAMETERS, same_tensors

NEW = replace(a_row_spec(model="auto"), is_narrow=True, compares_codes=True)
OLD = replace(NEW, compares_codes=False)
WEIGHED = replace(NEW, weighs_families=True)
ALONE = ("linear", "neighbours")


def learned(state: State, steps: range) -> State:
    """Let it learn rows; later ones have a column and a label more, and some batches are fast."""
    fold = Fold(state)
    for k in steps:
        rows = some_rows(k, 40, late=k > 8, classes=3 if k > 4 else 2)
        extend(state, rows)
        fold.step(rows, k % 5 == 3)
    return state


def restarted(state: State, spec: Spec) -> State:
    """Return the state of its checkpoint, in a service that begins new models with a spec."""
    copy = Checkpoint.of(state, Progress("log"))
    saved = decode(encode(copy, copy.sha256(), {})).copy
    again = State(spec, saved.hyperparameters, CPU)
    if saved.spec != spec:
        again.begin_as(saved.spec)
    again.load(saved.tensors, saved.version, saved.examples, saved.drifts, saved.byte_examples)
    return again


def test_every_new_model_auto_of_rows_compares_them_and_no_other() -> None:
    def spec(**settings: object) -> Spec:
        return Settings.model_validate(settings).spec

    assert spec(model="auto", schema="auto").compares_codes
    assert spec(model="auto", schema="auto", task="regression").compares_codes
    assert not spec(model="logistic", schema="auto").compares_codes
    assert not spec(model="auto", features=3).compares_codes


def test_a_spec_of_an_earlier_version_has_none() -> None:
    assert "compares_codes" not in OLD.fields()
    assert not Spec.of(OLD.fields()).compares_codes
    assert Spec.of(NEW.fields()) == NEW
    assert NEW.differences(OLD) == []


@pytest.mark.parametrize("spec", [OLD, NEW, WEIGHED], ids=["old", "new", "weighed"])
def test_a_state_goes_on_exactly_as_it_began(spec: Spec) -> None:
    whole = learned(State(spec, HYPERPARAMETERS, CPU), range(14))
    again = restarted(whole, NEW)
    learned(whole, range(14, 24))
    learned(again, range(14, 24))
    assert same_tensors(whole.tensors(), again.tensors())
    rows = some_rows(99, 50)
    answers = [Evaluator(s.served)(Snapshot.of(s), rows)[1] for s in (whole, again)]
    assert torch.equal(*answers)


def test_it_has_no_state_of_its_own_beyond_the_measure() -> None:
    old, new = (learned(State(spec, HYPERPARAMETERS, CPU), range(3)) for spec in (OLD, NEW))
    assert old.tensors().keys() == new.tensors().keys()
    scale = "families.ensemble.compared.scale"
    before, after = old.tensors()[scale], new.tensors()[scale]
    assert int((before != after).sum()) == new.size.used[0]
    trees = {k for k in old.tensors() if k.startswith(("families.ensemble.trees", "weight"))}
    assert same_tensors({k: old.tensors()[k] for k in trees}, {k: new.tensors()[k] for k in trees})


def test_a_snapshot_answers_as_the_step_scores_and_never_changes() -> None:
    state, kept = State(NEW, HYPERPARAMETERS, CPU), []
    fold, asked = Fold(state), some_rows(999, 30)
    for k in range(14):
        rows = some_rows(k, 40)
        if not extend(state, rows):
            labels, _ = Evaluator(state.served)(Snapshot.of(state), rows)
            found = [state.schema.labels[int(label)] for label in labels]
            wanted = [
                str(label)
                for chunk in rows.chunks
                if chunk.labels is not None
                for label in chunk.labels.to_pylist()
            ]
            accuracy = float(fold.step(rows).accuracy)
            assert accuracy == pytest.approx(np.mean(np.array(found) == np.array(wanted)))
        else:
            fold.step(rows)
        snapshot = Snapshot.of(state)
        kept.append((snapshot, Evaluator(state.served), Evaluator(state.served)(snapshot, asked)))
    for snapshot, evaluate, (_, answers) in kept[2:]:
        assert torch.equal(evaluate(snapshot, asked)[1], answers)


@pytest.mark.parametrize("families", [ALONE, ()], ids=["alone", "all"])
def test_categories_that_decide_are_found_and_others_cost_nothing(
    families: tuple[str, ...],
) -> None:
    old, new = (replace(spec, families=families) for spec in (OLD, NEW))
    before, after = (learned_by("categories", spec).accuracy for spec in (old, new))
    assert after > before + 0.08
    before, after = (learned_by("numbers", spec).accuracy for spec in (old, new))
    assert after > before - 0.01
