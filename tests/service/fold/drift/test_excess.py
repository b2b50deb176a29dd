"""The test of the excess loss: quick, seldom wrong, and exact after a restart."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from service.fold.drift.excess import BLOCK, GRACE, ExcessLoss
from service.fold.drift.monitor import EXCESS_TENSOR, Monitor
from service.fold.report import Report
from service.fold.state import State
from service.fold.step import Fold
from service.log.position import EntryId, Position
from service.settings import Settings, load_settings
from streams.made import churn
from tests.support.named import a_row_state
from tests.support.states import CPU, same_tensors

Numbers = npt.NDArray[np.float64]
Noise = Callable[[np.random.Generator, int], Numbers]


def correlated(rng: np.random.Generator, n: int) -> Numbers:
    found, x = np.empty(n), 0.0
    for k, noise in enumerate(rng.normal(size=n)):
        x = 0.5 * x + noise
        found[k] = x
    return found


NOISES: dict[str, Noise] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_t(2.1, n),
    "skew": lambda rng, n: np.exp(1.5 * rng.normal(size=n)),
    "correlated": correlated,
}


def alarms(excess: Numbers, size: int = BLOCK) -> list[int]:
    """Return the examples at which batches with this mean excess raise alarms."""
    test = ExcessLoss()
    return [
        size * (k + 1)
        for k, x in enumerate(excess.tolist())
        if test.update(x, size, size) is not None
    ]


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_noise_that_does_not_change_raises_less_than_an_alarm_in_100_000_examples(
    noise: Noise,
) -> None:
    """One million examples of each, in blocks; `tests.benchmarks.drift` takes three."""
    rng = np.random.default_rng(0)
    assert len(alarms(noise(rng, 1_000_000 // BLOCK))) <= 5


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("size", [5, 50, 400])
def test_a_large_rise_is_seen_within_ten_blocks(noise: Noise, size: int) -> None:
    """Six deviations of a normal distribution; half as much again where outliers are as large."""
    rise = 9 if noise is NOISES["skew"] else 6
    for seed in range(5):
        rng = np.random.default_rng(seed)
        excess = noise(rng, 400_000 // size)
        at = len(excess) // 2
        scale = np.subtract(*np.quantile(excess, [0.75, 0.25])) / 1.35
        excess[at:] += rise * scale * np.sqrt(max(size, BLOCK) / BLOCK)
        found = [a for a in alarms(excess, size) if a > at * size]
        assert found[0] - at * size <= 10 * max(size, BLOCK)


def test_a_model_that_improves_raises_no_alarm() -> None:
    steps = np.arange(4_000)
    for seed in range(10):
        noise = np.random.default_rng(seed).normal(0, 0.05, len(steps))
        assert alarms(np.exp(-steps / 300) - steps / 4_000 + noise) == []


def test_nothing_is_tested_before_level_and_scale_are_known() -> None:
    excess = np.concatenate([np.zeros(GRACE - 3), np.full(3, 10.0)])
    assert alarms(excess) == []
    assert alarms(np.concatenate([np.zeros(GRACE), np.full(6, 10.0)]))


@pytest.mark.parametrize("seed", range(2))
def test_a_reversal_of_churn_is_seen_within_500_examples(seed: int) -> None:
    assert reversal_seen(100, seed)


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 100])
def test_a_reversal_of_churn_is_seen_in_9_of_10_seeds(size: int) -> None:
    assert sum(reversal_seen(size, seed) for seed in range(10)) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 5])
def test_a_reversal_is_seen_though_all_families_recover_from_it_at_once(seed: int) -> None:
    settings = load_settings({"model": "auto", "schema": "auto", "device": "cpu"})
    state = State(settings.spec, settings.hyperparameters, CPU)
    assert reversal_seen(100, seed, state=state)
    assert len(state.drift.events) == 1, "two tests are one detector"


def reversal_seen(size: int, seed: int, at: int = 8_000, state: State | None = None) -> bool:
    """Return whether the fold sees the reversal of `churn` within 500 examples, and nothing else
    before it."""
    if state is None:
        state = a_row_state(hyperparameters=Settings.model_construct().hyperparameters)
    fold, learned = Fold(state), 0
    for batch in churn.churn(at + 500, reversal=at).batches(size, seed):
        if changes := state.schema.changes_for(batch):
            state.reshape(changes)
        learned += len(batch)
        state.drift.note(fold.step(batch), len(batch), learned, Position(EntryId(1, 0)))
    found = [event for event in state.drift.events if event.detector == "excess_loss"]
    assert all(event.examples > at for event in found)
    return bool(found)


def feed(monitor: Monitor, excess: Numbers, start: int = 0, device: bool = False) -> None:
    """Give batches of 100 with a steady accuracy."""
    for k, x in enumerate(excess.tolist(), start):
        report = Report(k + 1, 0.92, 0.5 + x, True, 0.5)
        if device:
            report = replace(
                report, accuracy=torch.tensor(0.92), loss=torch.tensor(0.5 + x),
                floor=torch.tensor(0.5),
            )  # fmt: skip
        monitor.note(report, 100, 100 * (k + 1), Position(EntryId(1000 * (k + 1), 0)))


def test_the_test_of_linear_experts_goes_on_after_a_restart() -> None:
    whole, first = Monitor(), Monitor()

    def feed_both(monitor: Monitor, start: int, stop: int) -> None:
        for k in range(start, stop):
            linear = 0.5 + (0.3 if 150 <= k < 160 else 0.0) + 0.05 * math.sin(7.0 * k)
            report = Report(k + 1, 0.92, 0.5 + 0.05 * math.sin(7.0 * k), True, 0.5, linear)
            monitor.note(report, 100, 100 * (k + 1), Position(EntryId(1000 * (k + 1), 0)))

    feed_both(whole, 0, 200)
    feed_both(first, 0, 153)
    second = Monitor()
    second.load(first.tensors(), first.positions())
    feed_both(second, 153, 200)
    assert names(whole) == names(second) == ["excess_loss"]
    assert same_tensors(whole.tensors(), second.tensors())


def reversal() -> Numbers:
    noise = np.random.default_rng(0).normal(0, 0.05, 300)
    noise[150:160] += 0.3
    return np.round(noise, 6)


def names(monitor: Monitor) -> list[str]:
    return [event.detector for event in monitor.events]


def same(one: Monitor, other: Monitor) -> bool:
    mine, theirs = one.tensors(), other.tensors()
    return one.events == other.events and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_an_event_names_the_detector_and_its_direction() -> None:
    monitor = Monitor()
    feed(monitor, reversal())
    [event] = monitor.events
    assert (event.detector, event.direction) == ("excess_loss", "worse")
    assert 15_000 < event.examples <= 15_500
    assert monitor.counts["excess_loss", "worse"] == 1
    assert event.accuracy_before == pytest.approx(0.92)


def test_cuts_of_version_3_are_replayed_without_it() -> None:
    old = Monitor()
    old.set_version(3)
    feed(old, reversal())
    assert names(old) == []
    old.set_version(4)
    feed(old, reversal(), 300)
    assert names(old) == ["excess_loss"]


def test_a_report_without_a_floor_is_not_tested() -> None:
    monitor = Monitor()
    for k, x in enumerate(reversal().tolist()):
        monitor.note(
            Report(k + 1, 0.92, 0.5 + x, True), 100, 100 * (k + 1), Position(EntryId(1, 0))
        )
    assert names(monitor) == []


@pytest.mark.parametrize("at", [5, GRACE, 100, 151, 155])
def test_a_resumed_test_goes_on_exactly(at: int) -> None:
    whole, resumed, excess = Monitor(), Monitor(), reversal()
    feed(whole, excess[:at])
    resumed.load(whole.tensors(), whole.positions())
    assert same(whole, resumed)
    for monitor in (whole, resumed):
        feed(monitor, excess[at:], at)
    assert names(whole) == ["excess_loss"]
    assert same(whole, resumed)


def test_a_checkpoint_of_an_earlier_version_resumes_and_the_test_begins_then() -> None:
    old, resumed = Monitor(), Monitor()
    old.set_version(3)
    feed(old, reversal())
    saved = {k: v for k, v in old.tensors().items() if not k.startswith(EXCESS_TENSOR)}
    saved["drift.counts"] = saved["drift.counts"][:-2]
    resumed.load(saved, old.positions())
    feed(resumed, reversal(), 300)
    assert names(resumed) == ["excess_loss"]
    assert resumed.counts["excess_loss", "worse"] == 1


def test_reports_of_a_device_give_the_same() -> None:
    here, there = Monitor(), Monitor()
    excess = np.float32(0.5 + reversal()).astype(float) - 0.5
    feed(here, excess)
    feed(there, excess, device=True)
    there.settle()
    assert names(there) == ["excess_loss"]
    assert same(here, there)


@pytest.mark.parametrize("name", ["excess_loss", "excess_loss.blocks"])
@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.full((41, 3), 0.5, dtype=torch.float64)])
def test_foreign_tensors_are_refused_whole(name: str, wrong: torch.Tensor) -> None:
    monitor, other = Monitor(), Monitor()
    feed(monitor, reversal())
    with pytest.raises(ValueError, match="excess_loss"):
        other.load(monitor.tensors() | {f"drift.{name}": wrong}, monitor.positions())
    assert same(other, Monitor())
