"""What float32 merges is counted, and is harmful where it blurs the column."""

import numpy as np
import pytest

from streams.sources.rounding import Merged, merged

DAY = 86_400.0
SECONDS = 1.7e9 + np.arange(1_000.0)


@pytest.mark.parametrize(
    "values",
    [[0.1, 0.2], [1.0, 2.0], [16777216.0], [1 / 3] * 9, [1.7e9, 1.7e9 + DAY], [1e-40, 2e-40]],
)
def test_values_that_stay_apart_are_not_merged(values: list[float]) -> None:
    assert merged(np.array(values)) is None


@pytest.mark.parametrize(
    ("values", "is_harmful"),
    [
        ([1.7e9 + 0.25, 1.7e9 + 0.75], True),
        ([16777216.0, 16777217.0], True),
        ([1e-50, 2e-50], True),
        ([*SECONDS], True),
        ([0.0, *SECONDS], True),  # an outlier widens the range, and does not help
        ([*(1.7e9 + np.arange(0, 300 * DAY, 60.5))], False),
        ([0.3, 0.1 + 0.2], False),
        ([0.3] * 99 + [0.1 + 0.2, 5.0], False),
        ([0.0, 1.0, 0.1, 0.1 + 1e-11], False),
    ],
)
def test_what_is_merged_is_harmful_where_it_is_a_part_of_the_spread(
    values: list[float], is_harmful: bool
) -> None:
    found = merged(np.array(values))
    assert found is not None
    assert found.is_harmful is is_harmful
    assert np.float32(found.low) == np.float32(found.high)
    assert found.low < found.high
    assert found.different == len(set(values))
    assert found.kept == len(set(np.float32(values).tolist()))


def test_the_two_that_are_furthest_apart_are_shown() -> None:
    found = merged(np.array([3e9 + 20, 5.0, 3e9, 3e9 + 30, 5.0]))
    assert found == Merged(3e9, 3e9 + 30, different=4, kept=2, is_harmful=False)
