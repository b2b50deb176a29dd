"""Learning as a pipeline: when a batch is cut, how far it reads ahead, how it ends."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from service.log.entries import Cut
from service.log.log import Log
from service.trainer import pipeline as pipelines
from service.trainer.pipeline import Cutting, Pipeline, Worker
from service.trainer.replica import READ_ENTRIES
from streams.batch import Batch
from tests.service.log.test_log import with_log
from tests.support.harness import RedisProcess
from tests.support.replicas import Clock, a_replica, fill, go_on

BY_TWENTY, HARDLY_EVER = Cutting(20, 0.0), Cutting(1_000, 600.0)


def with_pipeline(
    server: RedisProcess,
    model: str,
    cutting: Cutting,
    use: Callable[[Log, Pipeline], Awaitable[None]],
) -> None:
    async def run(log: Log) -> None:
        replica, worker = a_replica(), Worker("step")
        pending = await replica.recover(log, False, go_on)
        pipeline = Pipeline(replica, log, pending, cutting, worker, lambda: None)
        try:
            await use(log, pipeline)
        finally:
            await pipeline.close()
            worker.end()

    with_log(server, model, run)


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


def test_a_rest_waits_from_its_first_entry_on_whatever_trickles_in(
    server: RedisProcess, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(pipelines, "time", clock)

    async def use(log: Log, pipeline: Pipeline) -> None:
        clock.now += 1_000
        for k in range(1, 4):
            await fill(log, 1)
            await until(pipeline, lambda k=k: pipeline.pending.examples == 20 * k)
            assert pipeline.replica.at.cut == 0
            clock.now += 200
        await until(pipeline, lambda: pipeline.replica.state.version == 1)
        assert pipeline.replica.state.examples == 60

    with_pipeline(server, model, HARDLY_EVER, use)


def test_what_is_all_dead_does_not_wait(server: RedisProcess, model: str) -> None:
    async def use(log: Log, pipeline: Pipeline) -> None:
        await log.redis.xadd(log.keys.log, {"batch": b"poison"})
        await until(pipeline, lambda: pipeline.replica.at.dead == 1)

    with_pipeline(server, model, HARDLY_EVER, use)


def test_what_waits_says_since_when(server: RedisProcess, model: str) -> None:
    async def use(log: Log, pipeline: Pipeline) -> None:
        assert pipeline.waiting_since_ms is None
        [entry] = await fill(log, 1)
        await until(pipeline, lambda: pipeline.pending.examples == 20)
        assert pipeline.waiting_since_ms == entry.milliseconds

    with_pipeline(server, model, HARDLY_EVER, use)


def test_reading_ahead_is_bounded(
    server: RedisProcess, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "AHEAD_BYTES", 1)

    async def use(log: Log, pipeline: Pipeline) -> None:
        await fill(log, 3 * READ_ENTRIES)
        released = hold(pipeline, monkeypatch)
        for _ in range(10):
            await pipeline.turn(asyncio.Event(), 0.02)
        assert 0 < pipeline.pending.examples < 20 * READ_ENTRIES
        released.set()
        await until(pipeline, lambda: pipeline.replica.state.version == 3 * READ_ENTRIES)

    with_pipeline(server, model, BY_TWENTY, use)


def test_an_error_of_the_systems_in_a_step_is_not_taken_for_the_logs(
    server: RedisProcess, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(log: Log, pipeline: Pipeline) -> None:
        apply = pipeline.replica.apply

        def fail(cut: Cut, batch: Batch | None) -> None:
            if batch is not None:
                raise OSError("the device is gone")
            apply(cut, batch)

        monkeypatch.setattr(pipeline.replica, "apply", fail)
        await fill(log, 1)
        with pytest.raises(RuntimeError, match="the device is gone"):
            await until(pipeline, lambda: False)

    with_pipeline(server, model, BY_TWENTY, use)


def test_when_closed_the_state_stands_still(
    server: RedisProcess, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(log: Log, pipeline: Pipeline) -> None:
        released = hold(pipeline, monkeypatch)
        await fill(log, 1)
        await until(pipeline, lambda: not pipeline.is_quiet)
        closing = asyncio.create_task(pipeline.close())
        await asyncio.wait({closing}, timeout=0.1)
        assert not closing.done()
        released.set()
        await closing
        assert pipeline.replica.state.version == 1

    with_pipeline(server, model, BY_TWENTY, use)
