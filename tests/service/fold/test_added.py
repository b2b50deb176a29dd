"""A user's family is refused at the start by name, or learned, frozen, grown and replayed right."""

import logging
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from funnel.families import Family
from service.fold import networks
from service.fold.networks import ModelError
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import FAMILIES, LINEAR
from service.fold.state import State
from service.fold.step import Fold
from service.settings import SettingsError, load_settings
from streams.batch import Batch
from streams.rows.numbers import Numbers
from streams.rows.rows import Chunk, Rows
from tests.service.fold import own_families
from tests.service.fold.test_families import a_state, checkers, heights, is_fast
from tests.support.named import a_row_spec
from tests.support.states import CPU, HYPERPARAMETERS, same_tensors

MODULE = "tests.service.fold.own_families"
QUANTILES = "quantile:0.1,0.5,0.9"
TASKS = ("multiclass", "binary", "regression", QUANTILES)

REFUSED = {
    "Unnormalized": "answers probabilities that sum to 3: divide them by their sum",
    "Negative": "answers probabilities below 0",
    "NotFinite": "answers numbers that are not finite",
    "Squeezed": "answers [16, 2], expected [experts, rows, outputs] [2, 16, 2]",
    "Listing": "answers a list, expected [experts, rows, outputs]",
    "Double": "answers torch.float64, expected float32: return answers.float()",
    "Counting": "changes its tensors as it answers: a prediction must change nothing",
    "Company": "answers a row otherwise when it comes with other rows",
    "Drawing": "draws random numbers as it answers",
    "Hidden": "holds state that is not in tensors()",
    "Projected": "holds state that is not in tensors()",
    "TorchNoise": "draw from the generator that learn is given",
    "NumpyNoise": "draws random numbers of its own",
    "PythonStart": "starts with other values of 'sums' each time it is made",
    "Replacing": "replaces the tensor 'sums' as it learns, where a checkpoint cannot follow",
    "Copying": "returns new tensors from each call of tensors()",
    "Views": "has 'first' and 'sums' in the same memory",
    "Complex": "has the tensor 'phase' of torch.complex128, which no checkpoint can hold",
    "Raises": "fails: RuntimeError: two lines (",
    "Exits": "fails: SystemExit: not on my watch",
    "Many": "has 33 names of experts, expected 1 to 32",
    "Spaced": "has an expert named 'near by': use at most 32 letters",
    "Alike": "names two experts alike",
    "Listed": "has the names ['near', 'far'], expected a tuple of texts",
    "Threads": "remove torch.set_num_threads",
    "a_class": "returned the class Centres; return one made of it",
    "nothing": "returned None without names, tensors, answer, learn",
    "half": "returned a Linear without names, tensors, answer, learn",
    "other_names": "it must take the parameters features and classes",
    "fails": "failed: RuntimeError: two lines",
    "number": "is of type int, expected a function",
    "gone": "has no 'gone'",
}
"""Families and factories of `own_families`, and what their refusal says."""
OF_NUMBERS = {
    "ForClasses": "it must take the parameters features and quantiles",
    "Descending": "answers quantiles that do not ascend",
}
"""The same where quantiles are predicted."""


def own(name: str, task: str = "multiclass", others: tuple[str, ...] = ()) -> State:
    return a_state(task, (LINEAR, *others, f"{MODULE}:{name}"))


def batch_of(task: str, seed: int) -> Batch:
    if task in ("multiclass", "binary"):
        return checkers(seed, weights=seed % 2 == 1)
    return heights(seed, zero=300.0 * (seed // 6), weights=seed % 2 == 1)  # the unit moves


def copied(state: State, task: str, name: str) -> State:
    other = own(name, task)
    other.load({k: v.clone() for k, v in state.tensors().items()}, state.version, state.examples)
    return other


def of_family(state: State) -> dict[str, Tensor]:
    """Return copies of the tensors of the family that was added."""
    return {k: v.clone() for k, v in state.tensors().items() if k.startswith("families.added.")}


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        *((name, "multiclass", message) for name, message in REFUSED.items()),
        *((name, QUANTILES, message) for name, message in OF_NUMBERS.items()),
    ],
)
def test_a_family_that_cannot_work_is_refused_by_name_in_one_line(
    name: str, task: str, message: str
) -> None:
    with pytest.raises(ModelError, match=re.escape(message)) as refused:
        own(name, task)
    assert f"{MODULE}:{name}" in str(refused.value) or name == "gone"
    assert "\n" not in str(refused.value)


def test_a_family_of_a_module_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"family 'gone\.away:Centres' cannot be imported: no mod"):
        a_state(families=(LINEAR, "gone.away:Centres"))


@pytest.mark.parametrize(
    ("name", "task"),
    [*(("Centres", task) for task in TASKS),
     *((name, "multiclass") for name in ("Differentiating", "Rings", "RaisesOnLarge", "GoesWild"))],
)  # fmt: skip
def test_a_family_learns_answers_and_resumes_bit_for_bit(name: str, task: str) -> None:
    mine = own(name, task)
    fold = Fold(mine)
    for k in range(12):
        fold.step(batch_of(task, k), is_fast(k))
    other = copied(mine, task, name)
    again = Fold(other)
    for k in range(12, 20):
        batch = batch_of(task, k)
        assert fold.step(batch, is_fast(k)) == again.step(batch, is_fast(k))
    assert of_family(mine)
    assert same_tensors(mine.tensors(), other.tensors())


@pytest.mark.parametrize("task", ["multiclass", "regression", QUANTILES])
def test_a_snapshot_answers_as_before_while_its_family_goes_on(task: str) -> None:
    state = own("Centres", task)
    fold, evaluate, inputs = Fold(state), Evaluator(state.served), checkers(99).features
    kept = []
    for k in range(8):
        fold.step(batch_of(task, k))
        snapshot = Snapshot.of(state)
        kept.append((snapshot, evaluate(snapshot, inputs)[1]))
    for snapshot, before in [*kept, *reversed(kept)]:
        assert torch.equal(evaluate(snapshot, inputs)[1], before)
    assert not torch.equal(kept[0][1], kept[-1][1])


def test_a_snapshot_answers_as_the_step_scores() -> None:
    state = own("Centres", others=FAMILIES)
    for k in range(12):
        batch = checkers(k)
        labels, _ = Evaluator(state.served)(Snapshot.of(state), batch.features)
        accuracy = float((labels.numpy() == batch.labels).mean())
        assert Fold(state).step(batch).accuracy == pytest.approx(accuracy)


def test_a_family_that_knows_more_carries_the_answer() -> None:
    state = own("Rings")
    rng, fold = np.random.default_rng(0), Fold(state)
    for _ in range(20):  # two rings around one centre, which a linear expert cannot tell apart
        labels = rng.integers(0, 2, 100)
        features = rng.normal(size=(100, 5))
        features *= (1.0 + 3.0 * labels[:, None]) / np.linalg.norm(features, axis=1, keepdims=True)
        report = fold.step(Batch(features.astype(np.float32), labels.astype(np.int64)))
    families = state.served.families
    assert families is not None
    shares = dict(zip(families.names, families.mixture.weights.shares().tolist(), strict=True))
    assert report.accuracy > 0.95
    assert shares["Rings/only"] > 0.5
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-4)


def test_fast_batches_are_never_learned_by_a_family() -> None:
    state = own("Centres")
    fold = Fold(state)
    fold.step(checkers(0))
    before = of_family(state)
    fold.step(checkers(1), is_fast=True)
    assert same_tensors(before, of_family(state))


def test_a_family_that_raises_on_a_batch_misses_it_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = own("RaisesOnLarge")
    fold = Fold(state)
    for k in range(4):
        fold.step(checkers(k))
    before, large = of_family(state), checkers(4)
    large.features[3, 4] = 1e6
    with caplog.at_level(logging.ERROR, "funnel"):
        report = fold.step(large)
    assert report.kept
    assert same_tensors(before, of_family(state))
    assert f"{MODULE}:RaisesOnLarge raised as it answered a batch of 100" in caplog.text
    assert (
        "raised as it learned a batch of 100: ArithmeticError('too large to learn')" in caplog.text
    )
    with pytest.raises(ArithmeticError, match="too large"):
        Evaluator(state.served)(Snapshot.of(state), large.features)
    fold.step(checkers(5))
    assert not same_tensors(before, of_family(state))


def test_a_failure_of_the_machine_ends_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    state = own("RaisesOnLarge")
    monkeypatch.setattr(networks, "is_of_machine", lambda error: True)
    large = checkers(4)
    large.features[3, 4] = 1e6
    Fold(state).step(checkers(0))
    with pytest.raises(ArithmeticError):
        Fold(state).step(large)


def test_answers_that_are_not_finite_never_reach_the_mixture() -> None:
    state = own("GoesWild")
    fold = Fold(state)
    for k in range(6):
        report = fold.step(checkers(k))
        _, answers = Evaluator(state.served)(Snapshot.of(state), checkers(99).features)
        assert bool(torch.isfinite(answers).all())
        assert np.isfinite(report.loss)
    assert all(
        bool(torch.isfinite(tensor).all())
        for name, tensor in state.tensors().items()
        if name.startswith("families.mixture.")
    )


@pytest.mark.parametrize("task", ["regression", QUANTILES])
def test_answers_follow_the_unit_of_numbers_and_labels_never_change_theirs(task: str) -> None:
    state = own("Centres", task)
    Fold(state).step(heights(0))
    assert state.served.families is not None
    [family] = state.served.families.added
    rows, ratio, shift = torch.zeros(3, 5), torch.tensor(0.25), torch.tensor(-5.0)
    before, learned = family.answer(rows), of_family(state)
    family.rescale(ratio, shift)
    torch.testing.assert_close(family.answer(rows), before * ratio + shift)
    after = of_family(state)
    assert {k for k in after if not torch.equal(after[k], learned[k])} == {
        "families.added.Centres.unit"
    }


def rows_of(seed: int, columns: int, labels: int) -> Rows:
    values = np.random.default_rng(seed).normal(size=(columns, 40)).astype(np.float32)
    names = pa.array([f"l{k % labels}" for k in range(40)])
    return Rows((Chunk(Numbers(tuple(f"n{k}" for k in range(columns)), values), names),))


def grown(name: str, until: int) -> State:
    spec = replace(a_row_spec(), model="auto", hidden=(), optimizer="pool", experts=6)
    spec = replace(spec, is_narrow=True, families=(LINEAR, f"{MODULE}:{name}"))
    state = State(spec, HYPERPARAMETERS, CPU)
    _go_on(state, range(until))
    return state


def _go_on(state: State, seeds: range) -> None:
    fold = Fold(state)
    for seed in seeds:
        batch = rows_of(seed, 3 + seed, 2 + seed // 2)
        state.reshape(state.schema.changes_for(batch))
        fold.step(batch)
        _, answers = Evaluator(state.served)(Snapshot.of(state), batch)
        torch.testing.assert_close(answers.sum(dim=1), torch.ones(40), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["Centres", "Growing"])
def test_a_family_grows_with_the_rows_and_resumes_bit_for_bit(name: str) -> None:
    mine, other = grown(name, 5), grown(name, 0)
    saved = {k: v.clone() for k, v in mine.tensors().items()}
    other.load(saved, mine.version, mine.examples)
    for state in (mine, other):
        _go_on(state, range(5, 8))
    assert same_tensors(mine.tensors(), other.tensors())


def test_a_family_that_can_grow_goes_on_and_another_begins_from_nothing() -> None:
    counts = {}
    for name in ("Centres", "Growing"):
        state = grown(name, 5)
        counts[name] = float(of_family(state)[f"families.added.{name}.state.counts"].sum())
    assert counts["Growing"] > 5 * 40 > counts["Centres"]


def test_a_family_whose_experts_go_by_its_size_is_refused_for_rows() -> None:
    own("Renamed")  # dense features never grow
    with pytest.raises(ModelError, match="make names the same for every size"):
        grown("Renamed", 0)


def test_families_that_a_user_adds_are_chosen_by_name_in_one_order() -> None:
    centres, growing = f"{MODULE}:Centres", f"{MODULE}:Growing"
    for text in (f"{growing}, trees,{centres}", f"{centres},{growing},trees"):
        settings = load_settings({"model": "auto", "families": text})
        assert settings.spec.families == (LINEAR, "trees", centres, growing)
    every = load_settings({"model": "auto", "families": ",".join((*FAMILIES, centres))})
    assert every.spec.families == (LINEAR, *FAMILIES, centres)
    differences = every.spec.differences(load_settings({"model": "auto"}).spec)
    assert ("families", (), (LINEAR, *FAMILIES, centres)) in differences


@pytest.mark.parametrize(
    ("families", "message"),
    [("shop.mine", "'shop.mine' is none of linear, mlp, trees, .* and no package.module:factory"),
     ("shop:Nearby,store:Nearby", "two families are called 'Nearby': rename one"),
     ("shop:trees", "two families are called 'trees'"),
     ("trees,shop:Near,shop:Near", "family 'shop:Near' is named twice"),
     ("linear,trees,trees", "family 'trees' is named twice"),
     ("shop:recent", "two families are called 'recent'"),
     (",".join(f"shop:F{k}" for k in range(9)), "at most 8 families of your own")],
)  # fmt: skip
def test_names_that_cannot_be_told_apart_are_refused(families: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"FUNNEL_FAMILIES: {message}"):
        load_settings({"model": "auto", "families": families})


def test_a_class_with_its_methods_is_a_family_without_a_base() -> None:
    assert isinstance(own_families.Centres(3, 2), Family)
    assert not isinstance(torch.nn.Linear(3, 2), Family)
