"""The effort of all families: which batches they skip stands in the cuts, and replay repeats it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
import pytest

from service.fold.state import State
from service.log.cuts import Cut
from service.log.position import EntryId, Position
from service.settings import load_settings
from service.trainer.pipeline import BEHIND_SECONDS, Pipeline
from service.trainer.replica import Replica
from service.trainer.worker import Worker
from streams.batch import Batch
from tests.support.clock import StillClock
from tests.support.memory_log import MemoryLog, MemoryServer
from tests.support.replicas import fill, keep_lease
from tests.support.states import CPU, same_tensors

pytestmark = pytest.mark.anyio

OPTIONS = {"model": "auto", "hidden": (4,), "features": 6, "classes": 3, "batch_size": 20}
NUMERIC = ("regression", "quantile:0.1,0.5,0.9")


def a_replica(task: str = "multiclass") -> Replica:
    own = {k: v for k, v in OPTIONS.items() if k != "classes"} if task in NUMERIC else OPTIONS
    settings = load_settings(own | {"task": task})
    return Replica(
        State(settings.spec, settings.hyperparameters, CPU), lambda *_: None, StillClock()
    )


@asynccontextmanager
async def a_pipeline(log: MemoryLog, effort: str) -> AsyncIterator[Pipeline]:
    replica, worker = a_replica(), Worker("step")
    pending = await replica.recover(log, False, keep_lease)
    settings = load_settings(OPTIONS | {"effort": effort})
    pipeline = Pipeline(replica, log, pending, settings, worker, StillClock())
    try:
        yield pipeline
    finally:
        await pipeline.close()
        worker.end()


async def until(pipeline: Pipeline, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await pipeline.turn(asyncio.Event(), 0.02)


def has_reached(replica: Replica, version: int) -> bool:
    return replica.state.version == version


def skipped(replica: Replica) -> int:
    families = replica.state.served.families
    assert families is not None
    return int(families.skipped)


@pytest.mark.parametrize(("effort", "expected"), [("full", 0), ("fast", 8), ("auto", 0)])
async def test_the_setting_decides_which_batches_are_skipped(
    memory: MemoryServer, log: MemoryLog, effort: str, expected: int
) -> None:
    async with a_pipeline(log, effort) as pipeline:
        fill(memory, 8)
        await until(pipeline, lambda: pipeline.replica.state.version == 8)
        assert skipped(pipeline.replica) == expected
    cuts = [cut for _, cut in await log.cuts_after(0) if cut.examples]
    assert sum(cut.is_fast for cut in cuts) == expected


async def test_families_skip_batches_while_too_much_waits(
    memory: MemoryServer, log: MemoryLog
) -> None:
    async with a_pipeline(log, "auto") as pipeline:
        pipeline._whole_seconds = BEHIND_SECONDS / 4  # on this machine a batch takes so long
        fill(memory, 12)
        await pipeline.replica.read(log, pipeline.pending, None, is_new=True)
        await until(pipeline, lambda: pipeline.replica.state.version == 12)
    cuts = [cut for _, cut in await log.cuts_after(0) if cut.examples]
    effort = [cut.is_fast for cut in cuts]
    assert effort[0], "eleven more wait"
    assert not effort[-1], "none waits"
    assert effort == sorted(effort, reverse=True)


async def test_replay_repeats_the_effort_of_each_cut(memory: MemoryServer, log: MemoryLog) -> None:
    for effort in ("full", "fast", "full", "fast", "full"):
        async with a_pipeline(log, effort) as pipeline:
            fill(memory, 3)
            last, wanted = pipeline.replica, pipeline.replica.state.version + 3
            await until(pipeline, partial(has_reached, last, wanted))
    again = a_replica()
    await again.recover(log, False, keep_lease)
    assert skipped(again) == 6
    assert same_tensors(again.state.tensors(), last.state.tensors())


def checkers(k: int) -> Batch:
    """Return a batch whose labels no linear expert learns, but trees do."""
    rng = np.random.default_rng(k)
    features = rng.uniform(-1, 1, (100, 6)).astype(np.float32)
    return Batch(features, (features[:, 0] * features[:, 1] > 0).astype(np.int64))


@pytest.mark.parametrize("task", NUMERIC)
def test_replay_repeats_the_effort_of_numbers(task: str) -> None:
    one, again = a_replica(task), a_replica(task)
    for k in range(12):
        batch = checkers(k)
        numbers = Batch(batch.features, batch.labels.astype(np.float32) * 7.0 + 3.0)
        cut = Cut(Position(EntryId(k + 1, 0)), 100, 1, is_fast=k % 3 == 1)
        one.apply(cut, numbers)
        again.apply(cut, numbers)
    assert skipped(one) == 4
    assert same_tensors(one.state.tensors(), again.state.tensors())


def test_what_the_linear_experts_alone_get_wrong_is_no_drift() -> None:
    replica = a_replica()
    for k in range(50):
        cut = Cut(Position(EntryId(k + 1, 0)), 100, 1, is_fast=25 <= k < 40)
        replica.apply(cut, checkers(k))
    assert replica.state.drift.events == ()
