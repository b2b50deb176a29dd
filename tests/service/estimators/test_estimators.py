"""The estimators are the service's model, and take what Python programs hold."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from funnel import Classifier, Regressor
from service.commands.comparisons.row_comparison import ServedRows, outcomes_of, prepared
from service.estimators.base import Table
from service.estimators.tables import rows_of_table
from service.fold.schema.schema import Schema
from service.settings import Settings
from streams.rowfile import RowFile
from streams.rows.labels import labelled
from tests.support.harness import serving


def frame(n: int, seed: int = 0) -> pd.DataFrame:
    """Return customers who leave or stay, by plan and age, with times and missing values."""
    random = np.random.default_rng(seed)
    plan = random.choice(["basic", "pro", "vip"], n)
    age = random.normal(40, 12, n)
    leaves = (plan == "basic") & (age < 42)
    age[random.random(n) < 0.1] = np.nan
    return pd.DataFrame(
        {
            "plan": plan,
            "age": age,
            "at": pd.Timestamp("2026-05-01") + pd.to_timedelta(np.arange(n), "h"),
            "label": np.where(leaves, "leave", "stay"),
        }
    )


def parts(found: pd.DataFrame, size: int) -> list[pd.DataFrame]:
    return [found[start : start + size] for start in range(0, len(found), size)]


def apart(found: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    return found.drop(columns="label"), found["label"]


@pytest.mark.parametrize("model", ["auto", "logistic"])
def test_its_figures_are_those_of_compare(model: str) -> None:
    found = frame(1_000)
    rows = labelled(rows_of_table(found), "label")
    stream = RowFile("customers", rows, "label").stream()
    batches = prepared(list(stream.batches(100)), Schema(), stream.labels)
    served = ServedRows(
        Settings.model_validate({"model": model, "schema": "auto"}), Schema(), stream.labels
    )
    expected = outcomes_of(served, batches, lambda _: None)
    own, estimator = [], Classifier(model=model)
    for k, part in enumerate(parts(found, 100)):
        X, y = apart(part)
        own.append((estimator.predict(X) == y).to_numpy() if k else expected[:100])
        estimator.partial_fit(X, y)
    assert np.array_equal(np.concatenate(own), expected)
    assert 0.75 < expected[500:].mean() < 1.0


def test_its_answers_are_those_of_the_service(tmp_path: Path) -> None:
    X, y = apart(frame(500))
    estimator = Classifier(model="logistic").partial_fit(X, y)
    table = pa.Table.from_pandas(X.assign(label=y), preserve_index=False)
    asked = X[:50].assign(at=X["at"][:50].astype(str))
    with serving(tmp_path, schema="auto") as service, service.client() as client:
        for start in range(0, 500, 100):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table.slice(start, 100))
            client.post(
                "/learn?wait=applied",
                content=sink.getvalue().to_pybytes(),
                headers={"Content-Type": "application/vnd.apache.arrow.stream"},
            ).raise_for_status()
        rows = asked.replace({np.nan: None}).to_dict("records")
        answer = client.post("/predict", json={"rows": rows}).json()
    assert answer["labels"] == estimator.predict(X[:50]).tolist()
    names = sorted({*y})
    own = pd.DataFrame(estimator.predict_proba(X[:50]), columns=names)
    shown = pd.DataFrame(answer["probabilities"], columns=list(dict.fromkeys(y)))[names]
    assert np.allclose(own, shown, atol=1e-5)


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow", "dicts"])
def test_a_table_gives_the_same_model_however_it_is_held(kind: str) -> None:
    X, y = apart(frame(400))
    held: Table = X
    if kind == "polars":
        held = pl.from_pandas(X)
    elif kind == "arrow":
        held = pa.Table.from_pandas(X, preserve_index=False)
    elif kind == "dicts":
        records = X.assign(at=X["at"].astype(str)).to_dict("records")
        held = [{str(name): value for name, value in record.items()} for record in records]
    first = Classifier(model="logistic").fit(X, y)
    other = Classifier(model="logistic").fit(held, list(y))
    assert np.array_equal(first.predict_proba(X), other.predict_proba(held))


def test_one_row_after_the_other_is_learned_as_they_are_together() -> None:
    X, y = apart(frame(250))
    X = X.drop(columns="at")
    together, apart_ = Classifier(model="logistic"), Classifier(model="logistic")
    for row, label in zip(X.to_dict("records"), y, strict=True):
        apart_.learn_one({str(name): value for name, value in row.items()}, label)
    together.learn_many(X[:30], y[:30])
    together.learn_many(X[30:], y[30:])
    assert apart_.n_learned_ == together.n_learned_ == 200
    assert apart_.flush().n_learned_ == together.flush().n_learned_ == 250
    assert np.allclose(apart_.predict_proba(X), together.predict_proba(X), atol=1e-6)


def test_labels_may_be_new_and_columns_may_come_and_go() -> None:
    model = Classifier(model="logistic", batch_size=10)
    for k in range(60):
        model.learn_one({"a": float(k % 2)}, "even" if k % 2 == 0 else "odd")
    assert model.predict_one({"a": 1.0}) == "odd"
    for k in range(200):
        model.learn_one({"b": "x", "a": float(k % 2)}, "new")
    assert model.classes_.tolist() == ["even", "new", "odd"]
    assert model.predict_one({"b": "x", "a": 1.0}) == "new"
    assert sum(model.predict_proba_one({}).values()) == pytest.approx(1.0)


@pytest.mark.parametrize("model", ["auto", "logistic"])
def test_a_pickle_goes_on_bit_for_bit(model: str) -> None:
    X, y = apart(frame(600))
    whole = Classifier(model=model).partial_fit(X[:330], y[:330])
    whole.learn_many(X[330:370], y[330:370])
    resumed: Classifier = pickle.loads(pickle.dumps(whole))
    for one in (whole, resumed):
        one.learn_many(X[370:], y[370:])
    mine, theirs = whole.state_dict(), resumed.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert np.array_equal(whole.predict_proba(X), resumed.predict_proba(X))
    assert whole.n_learned_ == resumed.n_learned_ == 530


def test_a_clone_has_learned_nothing() -> None:
    X, y = apart(frame(200))
    model = Classifier(model="logistic", batch_size=50).fit(X, y)
    for copy in (clone(model), model.clone()):
        assert copy.get_params() == model.get_params()
        with pytest.raises(NotFittedError, match="not fitted yet"):
            copy.predict(X)
    assert np.array_equal(model.fit(X, y).predict_proba(X), clone(model).fit(X, y).predict_proba(X))


def test_families_are_chosen_and_are_those_of_the_service() -> None:
    X, y = apart(frame(300))
    model = Classifier(families=["trees", "tests.service.fold.own_families:Centres"]).fit(X, y)
    assert model._offline.state.spec.families == (
        "linear", "trees", "tests.service.fold.own_families:Centres",
    )  # fmt: skip
    resumed: Classifier = pickle.loads(pickle.dumps(model))
    assert np.array_equal(model.predict_proba(X), resumed.predict_proba(X))
    assert clone(model).get_params() == model.get_params()
    few = Regressor(families=[]).fit(X, np.arange(len(X)))
    assert few._offline.state.spec.families == ("linear",)
    with pytest.raises(ValueError, match="model='logistic' has none"):
        Classifier(model="logistic", families=["trees"]).fit(X, y)
    with pytest.raises(ValueError, match="'forests' is none of linear"):
        Classifier(families=["forests"]).fit(X, y)


def test_it_works_in_pipelines_and_searches() -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(400, 3))
    y = (X[:, 0] > 0).astype(int)
    pipeline = make_pipeline(StandardScaler(), Classifier(model="logistic"))
    search = GridSearchCV(pipeline, {"classifier__batch_size": [20, 100]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.9


def weights_of(labels: Sequence[int], rare: float) -> np.ndarray:
    return np.where(np.array(labels) == 1, rare, 1.0)


def test_class_weights_are_weights_of_rows() -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(1_000, 2))
    y = (X[:, 0] + random.normal(size=1_000) > 1.5).astype(int)
    by_class = Classifier(model="logistic", class_weight={1: 5.0}).partial_fit(X, y)
    by_row = Classifier(model="logistic").partial_fit(X, y, sample_weight=weights_of(y, 5.0))
    plain = Classifier(model="logistic").partial_fit(X, y)
    balanced = Classifier(model="logistic", class_weight="balanced").partial_fit(X, y)
    assert np.array_equal(by_class.predict_proba(X), by_row.predict_proba(X))
    assert plain.predict(X).mean() < min(by_class.predict(X).mean(), balanced.predict(X).mean())
    with pytest.raises(ValueError, match="class_weight must be 'balanced'"):
        Classifier(model="logistic", class_weight="even").fit(X, y)


def test_numbers_have_a_mean_and_a_deviation_or_quantiles() -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(5_000, 3))
    y = 100 + 5 * X[:, 0] + random.normal(size=5_000)
    model = Regressor(model="logistic").partial_fit(X, y)
    assert model.score(X[-1_000:], y[-1_000:]) > 0.9
    assert 0.7 < np.median(model.predict_std(X)) < 1.5
    quantiles = Regressor(model="logistic", quantiles=(0.1, 0.5, 0.9)).partial_fit(X, y)
    found = quantiles.predict_quantiles(X)
    assert (np.diff(found, axis=1) >= 0).all()
    assert 0.7 < np.mean((found[:, 0] < y) & (y < found[:, 2])) < 0.9
    assert np.array_equal(quantiles.predict(X), found[:, 1])
    with pytest.raises(ValueError, match="no standard deviation"):
        quantiles.predict_std(X)
    with pytest.raises(ValueError, match="name the quantiles"):
        model.predict_quantiles(X)


@pytest.mark.parametrize(
    ("quantiles", "why"),
    [
        ((0.9, 0.1), "ascending order"),
        ((0.1, 1.5), "between 0 and 1"),
        ((), "no list of quantiles"),
    ],
)
def test_quantiles_that_cannot_be_are_refused_by_name(
    quantiles: tuple[float, ...], why: str
) -> None:
    with pytest.raises(ValueError, match=rf"^quantiles=.*{why}"):
        Regressor(quantiles=quantiles).partial_fit([[0.0], [1.0]], [0.0, 1.0])


def test_quantiles_may_be_of_numpy() -> None:
    levels = tuple(np.array([0.1, 0.9]))
    model = Regressor(model="logistic", quantiles=levels).partial_fit([[0.0], [1.0]], [0.0, 1.0])
    assert model.predict_quantiles([[0.0]]).shape == (1, 2)


def test_drift_is_found_as_the_service_finds_it() -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(6_000, 2))
    y = X[:, 0] > 0
    y[3_000:] = ~y[3_000:]
    model = Classifier(model="logistic").partial_fit(X, y)
    [*_, event] = [event for event in model.drift_events_ if event.direction == "worse"]
    assert 3_000 < event.examples < 3_600


def test_a_kind_may_be_named() -> None:
    X = pd.DataFrame({"code": [1, 2, 3, 4] * 100, "other": np.arange(400.0)})
    y = X["code"].isin([1, 4])
    model = Classifier(model="logistic", kinds={"code": "category"}).fit(X, y)
    assert model.score(X[-100:], y[-100:]) == 1.0
    with pytest.raises(ValueError, match="cannot be of the kind 'colour', only of number"):
        Classifier(kinds={"code": "colour"}).fit(X, y)


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ([{"a": [1]}], ["x"], "column 'a'"),
        ([{"a": 1.0}], ["x", "y"], "1 rows and 2 labels"),
        (pd.DataFrame({"a": [np.inf]}), ["x"], "'a' holds inf"),
        (pd.DataFrame({"a": [1 + 2j]}), ["x"], "frame cannot be read"),
    ],
)
def test_what_cannot_be_learned_is_refused_and_changes_nothing(
    rows: Table, labels: list[str], message: str
) -> None:
    X = pd.DataFrame({"a": np.arange(20.0)})
    model = Classifier(model="logistic").fit(X, X["a"] > 10)
    before = model.state_dict()
    with pytest.raises(ValueError, match=message):
        model.partial_fit(rows, labels)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
