"""Statistics of a state, which are read off the device once for each version of it."""

from dataclasses import replace

import pytest

from service.log.extent import Extent
from service.monitoring.statistics import read_statistics
from tests.support.states import a_batch, a_state, statistics_of, step


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
