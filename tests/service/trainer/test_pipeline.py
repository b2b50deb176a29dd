"""Learning as a pipeline: when a batch is cut, how far it reads ahead, how it ends."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from service.log.cuts import Cut, Promote
from service.settings import Settings, load_settings
from service.trainer import pipeline as pipelines
from service.trainer.orders import Orders, UnknownLearnerError
from service.trainer.pipeline import Pipeline
from service.trainer.replica import READ_ENTRIES
from service.trainer.worker import Worker
from streams.batch import Batch
from tests.support.clock import StillClock
from tests.support.memory_log import MemoryLog, MemoryServer
from tests.support.replicas import a_replica, fill, keep_lease

pytestmark = pytest.mark.anyio

BY_TWENTY = load_settings({"model": "logistic", "batch_size": 20, "max_wait_ms": 0})
HARDLY_EVER = load_settings({"model": "logistic", "batch_size": 1_000, "max_wait_ms": 600_000})


@asynccontextmanager
async def a_pipeline(
    log: MemoryLog, settings: Settings, clock: StillClock | None = None
) -> AsyncIterator[Pipeline]:
    replica, worker, clock = a_replica(), Worker("step"), clock or StillClock()
    pending = await replica.recover(log, False, keep_lease)
    pipeline = Pipeline(replica, log, pending, settings, worker, clock)
    try:
        yield pipeline
    finally:
        await pipeline.close()
        worker.end()


async def until(pipeline: Pipeline, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await pipeline.turn(asyncio.Event(), 0.02)


def hold(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let no batch be learned until the event is set."""
    released, apply = threading.Event(), pipeline.replica.apply

    def wait(cut: Cut, batch: Batch | None) -> None:
        assert batch is None or released.wait(10)
        apply(cut, batch)

    monkeypatch.setattr(pipeline.replica, "apply", wait)
    return released


async def test_a_rest_waits_from_its_first_entry_on_whatever_trickles_in(
    memory: MemoryServer, log: MemoryLog
) -> None:
    clock = StillClock()
    async with a_pipeline(log, HARDLY_EVER, clock) as pipeline:
        clock.now += 1_000
        for k in range(1, 4):
            fill(memory, 1)
            await until(pipeline, lambda k=k: pipeline.pending.examples == 20 * k)
            assert pipeline.replica.progress.cut == 0
            clock.now += 200
        await until(pipeline, lambda: pipeline.replica.state.version == 1)
        assert pipeline.replica.state.examples == 60


async def test_dead_entries_alone_do_not_wait(memory: MemoryServer, log: MemoryLog) -> None:
    async with a_pipeline(log, HARDLY_EVER) as pipeline:
        memory.add({b"batch": b"poison"})
        await until(pipeline, lambda: pipeline.replica.progress.dead == 1)


async def test_it_knows_since_when_entries_wait(memory: MemoryServer, log: MemoryLog) -> None:
    async with a_pipeline(log, HARDLY_EVER) as pipeline:
        assert pipeline.waiting_since_ms is None
        [entry] = fill(memory, 1)
        await until(pipeline, lambda: pipeline.pending.examples == 20)
        assert pipeline.waiting_since_ms == entry.milliseconds


async def test_reading_ahead_is_bounded(
    memory: MemoryServer, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "AHEAD_BYTES", 1)
    async with a_pipeline(log, BY_TWENTY) as pipeline:
        fill(memory, 3 * READ_ENTRIES)
        released = hold(pipeline, monkeypatch)
        for _ in range(10):
            await pipeline.turn(asyncio.Event(), 0.02)
        assert 0 < pipeline.pending.examples < 20 * READ_ENTRIES
        released.set()
        await until(pipeline, lambda: pipeline.replica.state.version == 3 * READ_ENTRIES)


async def test_an_error_of_the_systems_in_a_step_is_not_taken_for_the_logs(
    memory: MemoryServer, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_pipeline(log, BY_TWENTY) as pipeline:
        apply = pipeline.replica.apply

        def fail(cut: Cut, batch: Batch | None) -> None:
            if batch is not None:
                raise OSError("the device is gone")
            apply(cut, batch)

        monkeypatch.setattr(pipeline.replica, "apply", fail)
        fill(memory, 1)
        with pytest.raises(OSError, match="the device is gone"):
            await until(pipeline, lambda: False)


async def test_a_learner_that_leaves_with_its_promotion_is_refused_before_that_is_applied(
    memory: MemoryServer, log: MemoryLog
) -> None:
    """A cut that promotes a learner which is gone could never be replayed."""
    replica, worker, orders = a_replica(), Worker("step"), Orders()
    pending = await replica.recover(log, False, keep_lease)
    unshadowed = replica.state.hyperparameters
    replica.state.set_hyperparameters(replace(unshadowed, shadow=("adam",)))
    replica.state.promote("adam")
    replica.state.set_hyperparameters(unshadowed)  # no setting names it now
    pipeline = Pipeline(replica, log, pending, BY_TWENTY, worker, StillClock(), orders)
    back, again = (orders.give(Promote("ops", 1, name)) for name in ("original", "adam"))
    await until(pipeline, lambda: back.done() and again.done() and not replica.state.promoted)
    assert back.result() == replica.progress.cut
    with pytest.raises(UnknownLearnerError, match="no learner 'adam', only original"):
        again.result()
    await pipeline.close()
    worker.end()


async def test_when_closed_the_state_stands_still(
    memory: MemoryServer, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_pipeline(log, BY_TWENTY) as pipeline:
        released = hold(pipeline, monkeypatch)
        fill(memory, 1)
        await until(pipeline, lambda: not pipeline.is_quiet)
        closing = asyncio.create_task(pipeline.close())
        await asyncio.sleep(0)
        assert not closing.done()
        released.set()
        await closing
        assert pipeline.replica.state.version == 1
