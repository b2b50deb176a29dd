"""Checkpoints are written now and then, and the log is trimmed behind them."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from service.log.entries import Pending
from service.log.log import Log
from service.trainer import keeper as keepers
from service.trainer.checkpoint import Info
from service.trainer.replica import Replica
from service.trainer.writer import CheckpointWriter
from tests.service.log.test_log import with_log
from tests.service.trainer.test_checkpoint import kept
from tests.support.harness import RedisProcess
from tests.support.replicas import Clock, a_replica, fill, go_on, learn

Use = Callable[[CheckpointWriter, Replica, Log, Pending], Awaitable[None]]


def with_keeper(server: RedisProcess, model: str, directory: Path, use: Use) -> None:
    """A keeper of a checkpoint a minute, and a replica behind which six entries wait."""

    async def run(log: Log) -> None:
        await fill(log, 6)
        keeper, replica = CheckpointWriter(kept(directory)[0], 60.0, lambda: None), a_replica()
        pending = await replica.recover(log, False, go_on)
        try:
            async with asyncio.timeout(10):
                await use(keeper, replica, log, pending)
        finally:
            keeper.close("the end")

    with_log(server, model, run)


async def write(keeper: CheckpointWriter, replica: Replica, log: Log) -> Info:
    """Write a checkpoint, and do what follows one."""
    written = keeper.request()
    await keeper.tend(replica.state, replica.at, log)
    info = await asyncio.wrap_future(written)
    await keeper.tend(replica.state, replica.at, log)
    return info


def test_the_log_is_trimmed_behind_the_oldest_checkpoint_and_not_before(
    server: RedisProcess, model: str, tmp_path: Path
) -> None:
    async def use(keeper: CheckpointWriter, replica: Replica, log: Log, pending: Pending) -> None:
        for _ in range(6):
            await learn(replica, log, pending, 20)
            await write(keeper, replica, log)
        oldest = keeper.checkpoints.oldest()
        assert oldest is not None
        assert oldest.cut < replica.at.cut
        assert (await log.extent()).first == oldest.position.entry
        assert (await log.cuts_after(0))[0][0] == oldest.cut

    with_keeper(server, model, tmp_path, use)


def test_a_checkpoint_is_due_some_time_after_the_last_once_something_is_learned(
    server: RedisProcess, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(keepers, "time", clock)

    async def use(keeper: CheckpointWriter, replica: Replica, log: Log, pending: Pending) -> None:
        assert not keeper.is_due(replica.state)
        clock.now += 60
        assert not keeper.is_due(replica.state)
        await learn(replica, log, pending, 20)
        assert keeper.is_due(replica.state)
        await write(keeper, replica, log)
        assert not keeper.is_due(replica.state)
        clock.now += 60
        assert keeper.is_due(replica.state)

    with_keeper(server, model, tmp_path, use)


def test_who_left_before_a_checkpoint_was_written_harms_nobody(
    server: RedisProcess, model: str, tmp_path: Path
) -> None:
    async def use(keeper: CheckpointWriter, replica: Replica, log: Log, pending: Pending) -> None:
        await learn(replica, log, pending, 20)
        keeper.request().cancel()
        assert (await write(keeper, replica, log)).version == 1

    with_keeper(server, model, tmp_path, use)
