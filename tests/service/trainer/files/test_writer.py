"""Checkpoints are written now and then, and the log is trimmed before the oldest."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.log.position import EntryId
from service.trainer import writer as writers
from service.trainer.replica import Replica
from service.trainer.store import Info
from service.trainer.worker import Worker
from service.trainer.writer import LOG_BYTES, CheckpointWriter
from tests.support.checkpoints import kept
from tests.support.clock import StillClock
from tests.support.memory_log import MemoryLog, MemoryServer
from tests.support.replicas import a_replica, fill, keep_lease, learn
from tests.support.states import a_batch

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def writer(tmp_path: Path, clock: StillClock) -> Iterator[CheckpointWriter]:
    """A writer of a checkpoint a minute."""
    store, worker = kept(tmp_path)[0], Worker("checkpoint")
    writer = CheckpointWriter(store, worker, 60.0, 0, clock, lambda: None)
    yield writer
    writer.close("the end")


async def write(writer: CheckpointWriter, replica: Replica, log: MemoryLog) -> Info:
    """Write a checkpoint, and do what follows one."""
    requested = writer.request()
    await writer.tend(replica, log)
    info = await asyncio.wrap_future(requested)
    await writer.tend(replica, log)
    return info


async def test_the_log_is_trimmed_before_the_oldest_checkpoint_and_no_further(
    writer: CheckpointWriter, memory: MemoryServer, log: MemoryLog
) -> None:
    fill(memory, 6)
    replica = a_replica()
    pending = await replica.recover(log, False, keep_lease)
    for _ in range(6):
        await learn(replica, log, pending, 20)
        await write(writer, replica, log)
    oldest = writer.checkpoints.oldest()
    assert oldest is not None
    assert oldest.cut < replica.progress.cut
    assert (await log.extent()).first == oldest.position.entry
    assert (await log.cut_range())[0] == oldest.cut


async def test_after_a_gap_the_log_is_trimmed_to_the_lowest_position_of_all_checkpoints(
    writer: CheckpointWriter, memory: MemoryServer, log: MemoryLog
) -> None:
    """The stream was deleted, the server's clock went back, and then it went on: entries of the
    new stream lie below the positions of the old checkpoints, and others above them."""
    memory.add({b"batch": a_batch(0).to_bytes()}, EntryId(1 << 50, 0))
    replica = a_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 20)
    await write(writer, replica, log)
    memory.lose()
    fill(memory, 1)
    replica.resign()
    replica.has_recovered = False
    pending = await replica.recover(log, True, keep_lease)
    kept_entries = fill(memory, 3)
    memory.add({b"batch": a_batch(0).to_bytes()}, EntryId((1 << 50) + 1, 0))
    await learn(replica, log, pending, 20)
    await write(writer, replica, log)
    assert (await log.extent()).first is not None
    assert set(kept_entries) <= set(memory.entries)


async def test_a_checkpoint_is_due_after_so_many_bytes_of_the_log_too(
    tmp_path: Path, clock: StillClock, memory: MemoryServer, log: MemoryLog
) -> None:
    size = len(a_batch(0).to_bytes())
    writer = CheckpointWriter(
        kept(tmp_path)[0], Worker("checkpoint"), 60.0, 2 * size, clock, lambda: None
    )
    replica = a_replica()
    pending = await replica.recover(log, False, keep_lease)
    was_due = []
    for _ in range(6):
        fill(memory, 1)
        await learn(replica, log, pending, 20)
        was_due.append(writer.is_due(replica))
        if was_due[-1]:
            await write(writer, replica, log)
    assert was_due == [False, True] * 3
    writer.close("the end")


async def test_by_default_a_checkpoint_is_a_quarter_of_the_log_between_two_at_most(
    writer: CheckpointWriter, memory: MemoryServer, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "LOG_BYTES", 1)
    fill(memory, 1)
    replica = a_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 20)
    info = await write(writer, replica, log)
    replica.read_bytes += 4 * info.bytes - 1
    assert not writer.is_due(replica)
    replica.read_bytes += 1
    assert writer.is_due(replica)
    monkeypatch.setattr(writers, "LOG_BYTES", 1 << 40)
    assert not writer.is_due(replica)


async def test_what_a_recovery_has_read_counts_unless_a_checkpoint_was_loaded(
    writer: CheckpointWriter, memory: MemoryServer, log: MemoryLog
) -> None:
    fill(memory, 1)
    replica = a_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 20)
    replica.read_bytes = LOG_BYTES
    assert writer.is_due(replica)
    writer.restart(replica.read_bytes)
    assert not writer.is_due(replica)


async def test_a_checkpoint_is_due_some_time_after_the_last_once_something_is_learned(
    writer: CheckpointWriter, clock: StillClock, memory: MemoryServer, log: MemoryLog
) -> None:
    fill(memory, 1)
    replica = a_replica()
    pending = await replica.recover(log, False, keep_lease)
    assert writer.age is None
    assert not writer.is_due(replica)
    clock.now += 60
    assert writer.age == 60
    assert not writer.is_due(replica)
    await learn(replica, log, pending, 20)
    assert writer.is_due(replica)
    await write(writer, replica, log)
    assert writer.summary.ok == 1
    assert writer.summary.newest_at == clock.now
    assert not writer.is_due(replica)
    clock.now += 60
    assert writer.is_due(replica)


async def test_a_caller_that_left_before_a_checkpoint_was_written_harms_nobody(
    writer: CheckpointWriter, memory: MemoryServer, log: MemoryLog
) -> None:
    fill(memory, 1)
    replica = a_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 20)
    writer.request().cancel()
    assert (await write(writer, replica, log)).version == 1
