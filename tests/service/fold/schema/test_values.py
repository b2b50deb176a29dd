"""Values are numbers, times, texts or truth values, however they were sent."""

import math
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.fold.schema.cells import Cells, cells_of
from service.fold.schema.values import age, numbers, texts, times, truths
from streams.rows.names import canonical
from tests.service.fold.schema.some_rows import Value, rows

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def one(value: Value) -> Cells:
    return cells_of(rows({"a": [value]}))["a"][0]


def micros(text: str) -> int:
    values, right = times(one(text))
    assert right.all()
    return int(values[0])


@given(FINITE | st.integers(-(1 << 62), 1 << 62))
def test_the_text_of_a_number_is_that_number(value: float) -> None:
    for sent in (value, repr(value)):
        found, right = numbers(one(sent))
        assert right.all()
        assert found[0] == float(value)


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "1_000", "nan", "inf", "1e999", "0x1", "٣", "1,5"]
)
def test_other_texts_are_no_numbers(text: str) -> None:
    found, right = numbers(one(text))
    assert not right.any()
    assert math.isnan(found[0])


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)))
def test_iso_texts_are_the_times_that_they_name(at: datetime) -> None:
    at = at.replace(tzinfo=UTC)
    expected = times(one(at))[0][0]
    for text in (
        at.isoformat(),
        at.isoformat(" ").replace("+00:00", "Z"),
        texts(one(at).values)[0],
    ):
        assert micros(text if isinstance(text, str) else text.decode()) == expected


def test_times_have_offsets_and_dates_are_midnight() -> None:
    assert micros("2026-01-02T03:04:05+01:30") == micros("2026-01-02T01:34:05Z")
    assert micros("2026-01-02T03:04:05-0130") == micros("2026-01-02 04:34:05")
    assert micros("2026-01-02") == micros("2026-01-02T00:00")
    assert micros("1970-01-01T00:00:00.1234567") == 123_456


@pytest.mark.parametrize(
    "value",
    ["", "2026-02-30", "2026-01-02T24:00", "2026-01-02T10:60", "20260102", "10:00",
     "0000-01-01", "2026-01-02T10:00:00+24:00", "2026-01-02T", 20260102, 1.5, True],
)  # fmt: skip
def test_other_values_are_no_times(value: Value) -> None:
    assert not times(one(value))[1].any()


def test_ages_are_days_since_2020() -> None:
    days = [age(np.array([micros(t)]))[0] for t in ("2020-01-01", "2020-01-02T12:00", "2019-12-31")]
    assert days == [0.0, 1.5, -1.0]


def test_times_far_from_now_have_texts_too() -> None:
    values = pa.array([-(1 << 63) + 1, (1 << 63) - 1, 0], pa.timestamp("us", "UTC"))
    assert texts(values)[1:] == [b"294247-01-10T04:00:54.775807Z", b"1970-01-01T00:00:00Z"]
    assert texts(values)[0].startswith(b"-290308-12-21T")


@given(st.booleans() | st.integers(-(1 << 62), 1 << 62) | FINITE | st.text())
def test_texts_are_canonical(value: bool | int | float | str) -> None:
    assert texts(one(value).values) == [canonical(value).encode()]


@pytest.mark.parametrize("value", [True, 1, 1.0, "1", "true", "True", "TRUE"])
def test_truth_has_many_texts(value: Value) -> None:
    found, right = truths(one(value))
    assert found.all()
    assert right.all()


@pytest.mark.parametrize("value", ["", "yes", 2, 0.5, datetime(2026, 1, 1, tzinfo=UTC)])
def test_other_values_are_no_truth_values(value: Value) -> None:
    assert not truths(one(value))[1].any()


def test_numbers_that_are_not_finite_are_missing() -> None:
    found = cells_of(rows({"a": [1.0, math.nan, math.inf, None]}))["a"]
    assert [cells.rows.tolist() for cells in found] == [[0]]
