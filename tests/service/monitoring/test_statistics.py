"""Statistics of a state, which are read off the device once for each version of it."""

from dataclasses import replace

import pytest

from service.fold.state import State
from service.fold.step import Fold
from service.log.extent import Extent
from service.monitoring.statistics import read_statistics
from service.settings import load_settings
from tests.support.states import CPU, a_batch, a_state, statistics_of, step


@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_statistics_of_an_unchanged_state_are_what_reading_them_again_gives(model: str) -> None:
    state = a_state(model)
    for k in range(3):
        step(state, a_batch(k))
    before = statistics_of(state)
    longer = replace(Extent("log", 0, 0, before.progress.position.entry, None), added=7)
    read = read_statistics(state, before.progress, longer, 1_500)
    assert repr(before.at(longer, 1_500)) == repr(read)  # NaN differs from itself
    assert (read.entries_added, read.waiting_since) == (7, 1.5)


def test_calibration_is_known_before_and_after_it() -> None:
    settings = load_settings({"model": "logistic", "features": 6, "classes": 3})
    state = State(settings.spec, settings.hyperparameters, CPU)
    fold = Fold(state)
    for k in range(30):
        fold.step(a_batch(k))
    found = statistics_of(state)
    curves = found.calibrations("1000")
    assert list(curves) == ["served", "calibrated"]
    assert curves["served"] == found.served.scores.windows["1000"].calibration
    assert found.calibrated is not None
    assert curves["calibrated"] == found.calibrated.windows["1000"].calibration
    assert curves["served"] != curves["calibrated"]
