"""Drift events: found, of the right direction, recovered from, kept exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from service.fold.drift import monitor as drift
from service.fold.drift.detectors import SEARCHED, SIDE
from service.fold.drift.monitor import Monitor
from service.fold.report import Report
from service.log.position import EntryId, Position
from streams.recovery import WINDOW


def feed(monitor: Monitor, rates: list[float], start: int = 0, device: bool = False) -> None:
    """Give batches of 100 with these accuracies."""
    for k, rate in enumerate(rates, start):
        report = Report(k + 1, rate, 0.5, True)
        if device:
            report = replace(report, accuracy=torch.tensor(rate), loss=torch.tensor(0.5))
        monitor.note(report, 100, 100 * (k + 1), Position(EntryId(1000 * (k + 1), 0)))


def accuracies(*levels: float, length: int = 100, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    return [float(rng.binomial(100, level)) / 100 for level in levels for _ in range(length)]


def same(one: Monitor, other: Monitor) -> bool:
    mine, theirs = one.tensors(), other.tensors()
    return one.events == other.events and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("seed", range(5))
def test_a_fall_is_seen_within_500_examples_and_the_recovery_measured(seed: int) -> None:
    monitor = Monitor()
    feed(monitor, accuracies(0.9, 0.5, 0.9, seed=seed))
    for name in ("adwin", "page_hinkley"):
        worse = [e for e in monitor.events if (e.detector, e.direction) == (name, "worse")]
        assert len(worse) == 1
        [event] = worse
        assert 10_000 < event.examples <= 10_500
        assert event.accuracy_before == pytest.approx(0.9, abs=0.05)
        assert event.accuracy_after == pytest.approx(0.5, abs=0.1)
        assert event.time == event.examples / 100
        assert event.recovery_examples is not None
        assert 19_000 < event.examples + event.recovery_examples <= 20_500
    better = [e for e in monitor.events if e.direction == "better"]
    assert better
    assert all(e.detector == "adwin" and 20_000 < e.examples <= 20_500 for e in better)
    assert [e.id for e in monitor.events] == list(range(1, len(monitor.events) + 1))


def test_steady_errors_raise_almost_no_alarm() -> None:
    found = 0
    for seed in range(10):
        monitor = Monitor()
        feed(monitor, accuracies(0.9, length=1000, seed=seed))
        found += len(monitor.events)
    assert found <= 1


@pytest.mark.parametrize("at", [3, 99, 101, 150, 299])
def test_a_resumed_monitor_goes_on_exactly(at: int) -> None:
    whole, resumed, rates = Monitor(), Monitor(), accuracies(0.9, 0.5, 0.9)
    feed(whole, rates[:at])
    resumed.load(whole.tensors(), whole.positions())
    assert same(whole, resumed)
    for monitor in (whole, resumed):
        feed(monitor, rates[at:], at)
    assert same(whole, resumed)


def test_a_monitor_that_saw_more_events_than_it_keeps_resumes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drift, "MAX_EVENTS", 3)
    monitor, resumed = Monitor(), Monitor()
    feed(monitor, accuracies(0.9, 0.5, 0.9, 0.5))
    assert sum(monitor.counts.values()) > 3
    assert len(monitor.events) == 3
    resumed.load(monitor.tensors(), monitor.positions())
    assert same(monitor, resumed)


def test_a_recovery_is_measured_on_a_whole_window_after_the_event() -> None:
    monitor = Monitor()
    feed(monitor, [0.9] * 100 + [0.0] * 3 + [1.0] * 30)
    worse = [e for e in monitor.events if e.direction == "worse"]
    assert min(e.recovery_examples for e in worse if e.recovery_examples is not None) == 0
    assert int(monitor.tensors()["drift.recent"][:, 1].sum()) == WINDOW


def test_steps_of_fold_version_1_are_replayed_with_its_definition_of_recovery() -> None:
    old, new = Monitor(), Monitor()
    old.set_version(1)
    for monitor in (old, new):
        feed(monitor, [0.9] * 100 + [0.5] * 30 + [0.9] * 30)
    taken = [
        (e.recovery_examples, f.recovery_examples)
        for e, f in zip(old.events, new.events, strict=True)
    ]
    assert [(a - WINDOW, b) for a, b in taken if a is not None] == [
        (b, b) for _, b in taken if b is not None
    ]
    assert any(a is not None for a, _ in taken)


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.01), (0.0, 0.02), (0.01, 0.03), (0.2, 0.3)])
def test_a_small_rise_of_the_error_is_for_the_worse(before: float, after: float) -> None:
    seen = 0
    for seed in range(20):
        monitor = Monitor()
        feed(monitor, accuracies(1 - before, 1 - after, length=500, seed=seed))
        events = [e for e in monitor.events if e.examples > 50_000]
        assert [e.direction for e in events] == ["worse"] * len(events)
        assert all(e.accuracy_after < e.accuracy_before for e in events)
        seen += len(events)
    assert seen >= 20


@pytest.mark.parametrize(("before", "after"), [(0.02, 0.01), (0.04, 0.02), (0.3, 0.2)])
def test_a_small_fall_of_the_error_is_for_the_better(before: float, after: float) -> None:
    seen = 0
    for seed in range(20):
        monitor = Monitor()
        feed(monitor, accuracies(1 - before, 1 - after, length=500, seed=seed))
        events = [e for e in monitor.events if e.examples > 50_000]
        assert [e.direction for e in events] == ["better"] * len(events)
        assert all(e.accuracy_after > e.accuracy_before for e in events)
        seen += len(events)
    assert seen >= 20


def test_steps_of_fold_version_2_are_replayed_with_its_directions() -> None:
    rates = accuracies(1.0, 0.99, length=500)
    old, new = Monitor(), Monitor()
    old.set_version(2)
    for monitor in (old, new):
        feed(monitor, rates)
    assert [(e.detector, e.examples) for e in old.events] == [
        (e.detector, e.examples) for e in new.events
    ]
    (change,) = (e for e in old.events if e.detector == "adwin")
    newest = np.array([1 - rate for rate in rates[: change.examples // 100]][-SEARCHED:])
    means = {
        (1 - float(newest[max(0, k - SIDE) : k].mean()), 1 - float(newest[k : k + SIDE].mean()))
        for k in range(1, SEARCHED)
    }
    assert any(
        (change.accuracy_before, change.accuracy_after) == pytest.approx(pair) for pair in means
    )


def test_a_fall_inside_a_dip_must_recover_to_the_accuracy_before_the_dip() -> None:
    monitor = Monitor()
    feed(monitor, [0.9] * 100 + [0.6] * 25 + [0.3] * 25 + [0.6] * 30)
    first, second = (e for e in monitor.events if (e.detector, e.is_fall) == ("adwin", True))
    assert second.accuracy_before < 0.65
    assert (first.recovery_examples, second.recovery_examples) == (None, None)
    feed(monitor, [0.9] * 30, 180)
    first, second = (e for e in monitor.events if (e.detector, e.is_fall) == ("adwin", True))
    assert first.recovery_examples is None
    assert second.recovery_examples is not None
    assert second.examples + second.recovery_examples >= 18_000 - 0.1 * WINDOW


def test_a_fall_from_a_level_that_has_settled_recovers_to_that_level() -> None:
    monitor = Monitor()
    feed(monitor, [0.9] * 100 + [0.6] * 250 + [0.3] * 25 + [0.6] * 30)
    falls = [e for e in monitor.events if (e.detector, e.is_fall) == ("adwin", True)]
    assert [e.recovery_examples is None for e in falls] == [True, False]


def test_a_learner_that_stays_three_points_below_has_not_recovered() -> None:
    monitor = Monitor()
    feed(monitor, [0.9] * 100 + [0.5] * 50 + [0.87] * 100)
    worse = [e for e in monitor.events if e.direction == "worse"]
    assert worse
    assert all(e.recovery_examples is None for e in worse)


def test_reports_of_a_device_wait_and_give_the_same() -> None:
    here, there, rates = Monitor(), Monitor(), accuracies(0.9, 0.5)
    feed(here, rates)
    feed(there, rates, device=True)
    assert there.events == ()
    there.settle()
    assert same(here, there)


def test_short_batches_are_put_together_and_those_not_finite_left_out() -> None:
    monitor = Monitor()
    for k in range(99):
        monitor.note(Report(k, 1.0, 0.5, True), 1, k + 1, Position(EntryId(1, 0)))
    assert len(monitor.tensors()["drift.adwin"]) == 0
    monitor.note(Report(99, 0.0, float("nan"), False), 100, 199, Position(EntryId(1, 0)))
    assert len(monitor.tensors()["drift.adwin"]) == 0
    monitor.note(Report(100, 0.0, 0.5, True), 1, 200, Position(EntryId(1, 0)))
    assert monitor.tensors()["drift.adwin"].tolist() == pytest.approx([0.01])


@pytest.mark.parametrize("name", ["events", "counts", "recent", "adwin", "page_hinkley"])
def test_foreign_tensors_are_refused_whole(name: str) -> None:
    monitor, other = Monitor(), Monitor()
    feed(monitor, accuracies(0.9, 0.5))
    saved = monitor.tensors()
    for wrong in (torch.zeros(2, 3, 4), torch.full((3,), 9.0, dtype=torch.float64), None):
        tensors = saved | ({f"drift.{name}": wrong} if wrong is not None else {"drift.x": saved})
        with pytest.raises(ValueError, match="drift"):
            other.load(tensors, monitor.positions())
    assert same(other, Monitor())
