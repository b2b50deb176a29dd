"""Weighted negatives keep probabilities true although clicks come late."""

from tests.benchmarks.accuracy.late_clicks import compare


def test_weighted_negatives_beat_a_time_out_that_is_shorter_than_many_delays() -> None:
    """Of the clicks, 61 % come after the time-out, and it learns them as negatives."""
    short, weighted = compare(("1000", "weighted"), "exp:2000", 8_000)
    assert weighted.log_loss < short.log_loss - 0.02
    assert abs(weighted.bias - 1) < 0.1 < 0.4 < abs(short.bias - 1)
