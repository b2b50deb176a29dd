"""The history keeps the recent past in bounded memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from service.fold.spec import Spec
from service.fold.state import State
from service.monitoring import history
from service.monitoring.history import DRIFT, POINT, SHIFT, History
from streams.batch import Batch
from tests.support.harness import SAFETENSORS, ServiceProcess, serving, wait_for
from tests.support.states import CPU, HYPERPARAMETERS, a_batch, a_state, statistics_of, step

SMALL = {"features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 50, "shadow": "adagrad"}


class SimulatedClock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def time(self) -> float:
        return 1000.0 + self.seconds


def a_history(*versions: int, every: float = 1.0) -> History:
    clock, state = SimulatedClock(), a_state()
    made = History(clock)
    for version in versions:
        state.version, state.examples = version, 20 * version
        made.add_point(statistics_of(state), backlog=0, checkpoint_age=None)
        clock.seconds += every
    return made


def test_the_ring_is_bounded_and_refuses_numbers_before_its_floor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history, "MAX_ITEMS", 5)
    made = a_history(*range(1, 9))
    assert len(made.points()) == 5
    assert made.after(2) is None
    rest = made.after(3)
    assert rest is not None
    assert [item.version for item in rest] == [4, 5, 6, 7, 8]


def test_a_model_that_stands_still_has_two_points() -> None:
    made = a_history(1, 2, 2, 2, 2, 3)
    kept = made.after(0)
    assert kept is not None
    assert [item.version for item in kept] == [1, 2, 2, 3]
    assert [item.version for item in made.after(kept[-2].number) or ()] == [3]
    assert [item.version for item in made.after(3) or ()] == [2, 3]  # the third was replaced


def test_points_that_come_fast_are_thinned_to_about_one_a_second() -> None:
    made = a_history(*range(1, 14), every=0.25)
    assert [item.made for item in made.after(0) or ()] == [0, 1, 2, 3]
    assert [item.version for item in made.after(0) or ()] == [1, 5, 9, 13]
    assert [item.version for item in made.after(3) or ()] == [5, 9, 13]  # the third was replaced


def test_shifts_and_drifts_lie_among_the_points() -> None:
    made = a_history(1)
    made.add_shift(20, "turned by 90°")
    drift = {"id": 0, "examples": 40, "recovery_examples": None}
    made.note(DRIFT, [drift])
    made.note(DRIFT, [drift])
    made.note(DRIFT, [drift | {"recovery_examples": 100}])
    assert [item.kind for item in made.after(0) or ()] == [POINT, SHIFT, DRIFT, DRIFT]
    assert made.after(4) == []
    assert made.after(5) is None


def test_since_selects_newer_points() -> None:
    made = a_history(1, 2, 3)
    made.add_shift(60, "noise on")
    assert len(made.points()) == 3
    assert len(made.points(since=1)) == 2
    assert made.points(since=3) == []


def test_the_floors_of_numbers_have_their_mean_errors() -> None:
    spec = Spec("logistic", 2, 0, (), "pool", True, 0, experts=6, task="regression")
    state, made = State(spec, HYPERPARAMETERS, CPU), History(SimulatedClock())
    for k in range(3):
        features = np.full((10, 2), k, np.float32)
        step(state, Batch(features, np.arange(10 * k, 10 * k + 10, dtype=np.float32)))
    made.add_point(statistics_of(state), backlog=0, checkpoint_age=None)
    point = orjson.loads(made.points()[-1])
    assert list(point["floors"]) == ["mean", "no_change"]
    last = point["floors"]["no_change"]
    assert (last["accuracy"], last["rolling_accuracy"]) == (None, None)
    assert last["rolling_loss"] == pytest.approx(5.5)  # 1 to 10 from the end of the last batch
    assert point["floors"]["mean"]["loss"] > 5.5


def throughputs(batch: int, every: float, seconds: float, pause: float = 0.0) -> list[float | None]:
    """Learn a batch every so often, add a point each 0.25 s, and return what the points show."""
    clock, state, learned = SimulatedClock(), a_state(), 0
    made, shown = History(clock), []
    ticks = round(1000 * seconds)
    for tick in range(ticks + round(1000 * pause)):
        clock.seconds = tick / 1000
        if tick % round(1000 * every) == 0 and tick < ticks:
            learned += 1
            made.throughput.add(batch)
        if tick % 250 == 0:
            state.version, state.examples = learned, batch * learned
            made.add_point(statistics_of(state), backlog=0, checkpoint_age=None)
            shown.append(orjson.loads(made.points()[-1])["throughput"])
    return shown


@pytest.mark.parametrize(
    ("batch", "every"), [(100, 0.2), (100, 0.3), (64, 0.127), (1, 1.0), (100, 3.0), (7, 0.005)]
)
def test_a_steady_rate_is_shown_as_steady(batch: int, every: float) -> None:
    first, *rest = throughputs(batch, every, 20.0)
    assert first is None
    after_two_batches = rest[int(every / 0.25) + 1 :]
    assert after_two_batches == pytest.approx([batch / every] * len(after_two_batches), rel=1e-3)


def test_the_rate_falls_when_no_batch_ends() -> None:
    shown = throughputs(100, 0.2, 5.0, pause=10.0)
    falling = [rate for rate in shown[20:] if rate is not None]
    assert falling[0] == pytest.approx(500, rel=1e-3)
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] < 11


def test_a_listener_that_has_stopped_is_not_called() -> None:
    made, calls = History(SimulatedClock()), []
    stop = made.listen(lambda: calls.append("added"))
    made.add_shift(1, "one")
    stop()
    made.add_shift(2, "two")
    assert len(calls) == 1
    stop()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with serving(tmp_path_factory.mktemp("service"), **SMALL) as running:
        yield running


def learn(client: httpx.Client, batches: int) -> int:
    """Learn, and return the version when the history shows it."""
    for k in range(batches):
        client.post("/learn?wait=applied", content=a_batch(k).to_bytes(), headers=SAFETENSORS)
    version = int(client.get("/model").json()["model_version"])
    wait_for(lambda: points(client)[-1]["version"] == version)
    return version


def points(client: httpx.Client, **query: int) -> list[dict[str, Any]]:
    return list(client.get("/history", params=query).raise_for_status().json()["points"])


def test_points_agree_with_the_other_routes(service: ServiceProcess) -> None:
    with service.client() as client:
        learn(client, 20)
        last = points(client)[-1]
        optimizer = client.get("/optimizer").json()
        model = client.get("/model").json()
        assert list(last["learners"]) == ["served", "adagrad"]
        assert last["examples"] == model["examples_learned"]
        assert last["learners"]["served"]["accuracy"] == pytest.approx(model["accuracy"], rel=1e-4)
        for name, tensor in optimizer["tensors"].items():
            assert last["tensors"][name]["scale"] == pytest.approx(tensor["scale"], rel=1e-4)
            quantiles = list(tensor["gain_quantiles"].values())
            assert last["tensors"][name]["gain_quantiles"] == pytest.approx(quantiles, rel=1e-4)
        assert last["backlog"] == 0
        assert last["throughput"] > 0
        assert sum(last["expert_weights"].values()) == pytest.approx(1, rel=1e-3)


def test_the_route_shows_only_points_after_since(service: ServiceProcess) -> None:
    with service.client() as client:
        before = learn(client, 1)
        assert points(client, since=before) == []
        after = learn(client, 3)
        assert {p["version"] for p in points(client, since=before)} <= set(
            range(before + 1, after + 1)
        )
        assert client.get("/history?since=-1").status_code == 422


def test_a_model_of_many_tensors_has_small_points(tmp_path: Path) -> None:
    options = SMALL | {"model": "mlp", "hidden": "2," * 30 + "2", "optimizer": "funnel"}
    with serving(tmp_path, **options) as service, service.client() as client:
        learn(client, 1)
        assert len(points(client)[-1]["tensors"]) == history.MAX_TENSORS


def test_inputs_that_are_not_images_have_no_pictures(service: ServiceProcess) -> None:
    with service.client() as client:
        learn(client, 1)
        gains, newest = client.get("/optimizer/gains").json(), client.get("/newest").json()
    assert (gains["side"], gains["log_gains"]) == (None, [])
    assert (newest["side"], newest["examples"]) == (None, [])


def test_old_drift_events_are_discarded() -> None:
    made = History(SimulatedClock())
    for k in range(1_000):
        made.note(DRIFT, [{"id": n} for n in range(k, k + 10)])
    assert len(made._noted[DRIFT]) == 10
    (last,) = made.after(made._number - 1) or []
    assert last.json == b'{"id":1008}'
