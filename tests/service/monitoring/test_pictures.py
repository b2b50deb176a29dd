"""Pictures show the model's gains and inputs; making them changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from service.fold.snapshot import Snapshot
from service.fold.spec import Spec
from service.fold.state import State
from service.monitoring.pictures import SHOWN, Newest, side
from service.process import SystemClock
from streams.batch import Batch
from streams.sources.catalog import get
from tests.support.harness import SAFETENSORS, serving, wait_for
from tests.support.states import CPU, HYPERPARAMETERS, same_tensors, statistics_of, step


def an_image_state(model: str = "logistic") -> State:
    return State(Spec(model, 784, 10, (), "funnel", True, 0, 0), HYPERPARAMETERS, CPU)


def digits(number: int = 10) -> list[Batch]:
    return list(get("stationary", 100 * number, "digits").batches(100))


@pytest.mark.parametrize(
    ("features", "expected"),
    [(784, 28), (64, 8), (4096, 64), (9, None), (783, None), (10_000, None)],
)
def test_squares_of_a_sensible_size_are_images(features: int, expected: int | None) -> None:
    assert side(features) == expected


def test_maps_are_the_gains_of_the_weights() -> None:
    state = an_image_state()
    for batch in digits():
        step(state, batch)
    gains = statistics_of(state).gains
    assert gains is not None
    assert gains.tensor == "weight"
    expected = state.served.pool.telemetry()["log_gains"]["weight"]
    np.testing.assert_allclose(gains.log_gains, expected.numpy(), atol=0.0051)
    assert np.ptp(gains.log_gains) > 0.1


def test_inputs_are_shown_as_predicted_before_they_were_learned() -> None:
    state = an_image_state()
    newest = Newest(state, SystemClock())
    assert newest.read() is None
    [batch] = digits(1)
    newest.note(Snapshot.of(state), batch)
    step(state, batch)
    seen = newest.read()
    assert seen is not None
    assert seen.version == 0
    assert seen.labels == batch.labels[-SHOWN:].tolist()
    assert seen.predicted == [0] * SHOWN  # a fresh model finds all classes alike
    np.testing.assert_array_equal(seen.pixels, batch.features[-SHOWN:])


def test_taking_pictures_changes_no_bit() -> None:
    watched, alone = an_image_state(), an_image_state()
    newest = Newest(watched, SystemClock())
    for batch in digits():
        newest._due = 0.0
        newest.note(Snapshot.of(watched), batch)
        newest.read()
        statistics_of(watched)
        step(watched, batch)
        step(alone, batch)
    assert same_tensors(watched.tensors(), alone.tensors())


def test_the_routes_show_the_newest_digits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with serving(tmp_path, max_wait_ms=50) as service, service.client() as client:
        for batch in digits(5):
            client.post("/learn?wait=applied", content=batch.to_bytes(), headers=SAFETENSORS)
        wait_for(lambda: client.get("/optimizer/gains").json()["model_version"] == 5)
        gains, newest = client.get("/optimizer/gains").json(), client.get("/newest").json()
    assert (gains["side"], gains["tensor"]) == (28, "weight")
    assert np.array(gains["log_gains"]).shape == (10, 784)
    assert (newest["side"], len(newest["examples"])) == (28, SHOWN)
    pixels = [example["pixels"] for example in newest["examples"]]
    assert any(
        pixels == batch.features[-SHOWN:].tolist() for batch in digits(5)
    )  # of one batch of those that were sent
