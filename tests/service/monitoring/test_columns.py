"""Columns that drift are found, and columns that stay as they are, or become known, are not."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import astuple

import numpy as np
import orjson
import pytest

from service.fold.schema.schema import Column, Schema
from service.fold.state import State
from service.monitoring import columns
from service.monitoring.columns import FIRST, Chart, ColumnDrift, ColumnWindows
from streams.rows.records import from_json
from tests.support.charts import false_alarms
from tests.support.named import a_row_spec, a_row_state, extend
from tests.support.states import a_state, step

Row = dict[str, object]
Change = Callable[[Row, np.random.Generator], object]
N = 100
LONG = 60


def drawn(random: np.random.Generator) -> Row:
    row: Row = {"plan": f"plan {random.integers(5)}", "city": f"city {random.zipf(1.5)}"}
    row["at"] = f"2026-05-01T{random.integers(24):02}:00:00Z"
    if random.random() < 0.8:
        row["age"] = float(random.normal(40, 10))
    row["price"] = float(random.lognormal(3, 1))
    return row


def stream(seed: int = 0, change: Change = lambda row, random: None) -> Iterator[list[Row]]:
    random = np.random.default_rng(seed)
    while True:
        rows = [drawn(random) for _ in range(N)]
        for row in rows:
            change(row, random)
        yield rows


class Watched:
    """A state whose columns are watched."""

    def __init__(self, state: State | None = None) -> None:
        self.state, self.windows = state or a_row_state(a_row_spec(bits=16)), ColumnWindows()
        self.windows.note(self.state)

    def learn(self, source: Iterator[list[Row]], blocks: int) -> dict[str, ColumnDrift]:
        for _ in range(blocks):
            found = next(source)
            labels = [str(row.get("age", 0.0)) > "40" for row in found]
            body = {"rows": found, "labels": [str(label) for label in labels]}
            rows = from_json(orjson.dumps(body), True)
            extend(self.state, rows)
            step(self.state, rows)
            self.windows.note(self.state)
        return dict(self.windows.read())

    @property
    def drifting(self) -> set[str]:
        return {name for name, found in self.windows.read().items() if found.is_drifting}


@pytest.fixture(scope="module")
def steady() -> Watched:
    """A state and windows that have seen a stream that stays as it is."""
    watched = Watched()
    watched.learn(stream(), LONG)
    return watched


def copied(watched: Watched) -> Watched:
    """Return windows that go on as others, over a state of their own."""
    state = a_row_state(watched.state.spec)
    state.load(watched.state.tensors(), watched.state.version, watched.state.examples)
    other = Watched(state)
    other.windows = deepcopy(watched.windows)
    return other


def test_a_stream_that_stays_as_it_is_drifts_nowhere(steady: Watched) -> None:
    other = copied(steady)
    source = stream(seed=1)
    for _ in range(4):
        found = other.learn(source, 10)
        assert other.drifting == set()
    assert found["age"].missing == pytest.approx(0.2, abs=0.05)
    assert found["plan"].new_keys == pytest.approx(0.0, abs=1e-4)
    assert 0.0 < (found["city"].new_keys or 0.0) < 0.2
    assert abs(found["age"].shift or 9.0) < 0.25
    assert found["plan"].shift is found["at"].shift is None


CHANGES: dict[str, tuple[str, Change]] = {
    "a column falls silent": ("plan", lambda row, _: row.pop("plan")),
    "half of the numbers are missing": (
        "age", lambda row, random: random.random() < 0.5 and row.pop("age", None)
    ),
    "missing numbers come back": ("age", lambda row, _: row.setdefault("age", 41.0)),
    "the mean moves by a deviation": (
        "age", lambda row, _: "age" in row and row.update(age=row["age"] + 10.0)
    ),
    "the unit changes": ("price", lambda row, _: row.update(price=row["price"] * 100)),
    "a value of few becomes the rule": (
        "plan", lambda row, random: random.random() < 0.5 and row.update(plan="plan 1")
    ),
    "numbers deviate three times as much": (
        "age", lambda row, _: "age" in row and row.update(age=40.0 + 3 * (row["age"] - 40.0))
    ),
    "the texts are other ones": (
        "plan", lambda row, random: row.update(plan=f"{row['plan']} of {random.integers(1_000)}")
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_column_that_changes_drifts_and_no_other(steady: Watched, what: str) -> None:
    column, change = CHANGES[what]
    other = copied(steady)
    other.learn(stream(2, change), 15)
    assert other.drifting == {column}


KINDS_OF = {
    "a column falls silent": "missing",
    "missing numbers come back": "missing",
    "the mean moves by a deviation": "mean",
    "a value of few becomes the rule": "values",
    "numbers deviate three times as much": "scale",
    "the texts are other ones": "new_keys",
}


@pytest.mark.parametrize("what", KINDS_OF)
def test_what_changed_is_named_with_its_first_example_and_its_statistic(
    steady: Watched, what: str
) -> None:
    column, change = CHANGES[what]
    other = copied(steady)
    found = other.learn(stream(2, change), 15)[column]
    named = {one.kind: one for one in found.changes}
    one = named[KINDS_OF[what]]
    assert LONG * N < one.since <= (LONG + 15) * N
    assert one.statistic > one.limit > 4.0


def test_the_limit_grows_with_the_numbers_that_are_watched() -> None:
    limits = []
    for width in (1, 10, 100):
        chart = Chart()
        chart.widen(width)
        for values in np.random.default_rng(0).normal(size=(FIRST, 5, width)):
            chart.take(values, np.ones_like(values))
        limits.append(chart.limit)
    assert limits == pytest.approx([4.11, 4.61, 5.07], abs=0.01)


@pytest.mark.parametrize("width", [1, 30])
def test_noise_seldom_drifts_however_many_columns_are_watched(width: int) -> None:
    """Without LEAST: 10,000 blocks, a million rows at least."""
    assert false_alarms(width, blocks=10_000) <= 10


def test_a_silent_column_drifts_within_three_blocks_and_keeps_its_mean(steady: Watched) -> None:
    other = copied(steady)
    mean = other.windows.read()["price"].shift
    found = other.learn(stream(3, lambda row, _: row.pop("price")), 3)["price"]
    assert found.is_drifting
    assert found.missing == pytest.approx(1 - 0.9**3)
    assert found.missing_before == pytest.approx(3 / (LONG + 3))
    assert found.shift == pytest.approx(mean, abs=1e-6)


def test_drift_ends_once_the_new_is_normal(
    steady: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "BEFORE", 20)
    other = copied(steady)
    source = stream(4, lambda row, _: row.pop("plan"))
    other.learn(source, 5)
    assert other.drifting == {"plan"}
    other.learn(source, 20)
    assert other.drifting == {"plan"}
    other.learn(source, 60)
    assert other.drifting == set()
    assert other.windows.read()["plan"].missing == pytest.approx(1.0, abs=0.01)


def test_wild_values_are_no_drift(steady: Watched) -> None:
    other = copied(steady)
    source = stream(5, lambda row, random: random.random() < 0.01 and row.update(price=1e30))
    other.learn(source, 20)
    assert other.drifting == set()


def test_new_keys_at_the_start_are_no_drift_and_nothing_drifts_before_enough_blocks() -> None:
    watched, source = Watched(), stream()
    watched.learn(source, FIRST - 5)
    watched.learn(stream(6, lambda row, _: row.pop("plan")), 4)
    assert watched.drifting == set()
    assert watched.windows.read()["plan"].missing_before == pytest.approx(4 / (FIRST - 1))


def test_a_column_that_comes_late_is_watched_from_then_on(steady: Watched) -> None:
    other = copied(steady)
    source = stream(7, lambda row, random: row.update(device=f"{random.integers(3)}"))
    found = other.learn(source, 8)
    assert other.drifting == set()
    assert (found["device"].missing, found["device"].missing_before) == (0.0, 0.0)


def test_few_rows_wait_for_more() -> None:
    watched = Watched()
    few = (rows[: N // 4] for rows in stream())
    watched.learn(few, 3)
    assert astuple(watched.windows.read()["plan"]) == (None,) * 5 + ((),)
    found = watched.learn(few, 1)
    assert found["plan"].missing == 0.0


def test_what_was_learned_before_the_first_look_is_not_counted(steady: Watched) -> None:
    later = Watched(steady.state)
    assert all(found.missing is None for found in later.windows.read().values())


def test_without_a_table_or_standardization_these_numbers_are_unknown() -> None:
    schema = Schema(columns=(Column("age"),))
    watched = Watched(a_row_state(a_row_spec(schema, bits=0)))
    found = watched.learn(stream(), 2)
    assert found["plan"].new_keys is None
    assert found["age"].shift is not None


def test_dense_features_have_no_columns() -> None:
    windows = ColumnWindows()
    windows.note(a_state())
    assert windows.read() == {}
