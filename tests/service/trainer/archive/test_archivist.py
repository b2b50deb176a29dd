"""The log is archived before it is trimmed, and the archive repeats it bit for bit."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.trainer.archive import archivist as archivists
from service.trainer.archive.archive import DAY, Archive, Limits
from service.trainer.archive.archivist import Archivist
from service.trainer.archive.recording import chain_of
from service.trainer.archive.replay import Place, Replay, Target, UnreachableError
from service.trainer.archive.segment import DamagedSegmentError
from service.trainer.checkpoint import Checkpoint
from service.trainer.disk import SystemDisk
from service.trainer.worker import Worker
from service.trainer.writer import CheckpointWriter
from tests.support.checkpoints import PROGRESS, a_copy, kept
from tests.support.clock import StillClock
from tests.support.memory_log import MemoryLog, MemoryServer
from tests.support.replicas import a_replica, fill, keep_lease, learn

pytestmark = pytest.mark.anyio


class Disk(SystemDisk):
    """A disk that can be away."""

    is_away = False

    def put(self, path: Path, raw: bytes) -> None:
        if self.is_away:
            raise OSError("the store is away")
        super().put(path, raw)


class Bench:
    """A replica with its checkpoints and its archive."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.clock, self.disk = StillClock(), Disk()
        self.memory = MemoryServer(self.clock)
        self.log, self.warnings = MemoryLog(self.memory), list[str]()
        self.archive = Archive(
            folder / "archive", self.disk, limits or Limits(), self.clock, self.warnings.append
        )
        self.store, worker = kept(folder)[0], Worker("checkpoint")
        self.archivist = Archivist(self.archive, worker, self.clock, lambda: None)
        self.writer = CheckpointWriter(
            self.store, worker, 1e12, 0, self.clock, lambda: None, self.archivist
        )
        self.replica = a_replica(self.clock)
        self.digests: dict[int, str] = {}

    async def begin(self) -> None:
        self.pending = await self.replica.recover(self.log, False, keep_lease)

    async def learn(self, size: int = 20) -> None:
        if self.pending.examples < size:
            fill(self.memory, 2)
        await self.learn_next(size)

    async def learn_next(self, size: int = 20) -> None:
        await learn(self.replica, self.log, self.pending, size)
        copy = Checkpoint.of(self.replica.state, self.replica.progress)
        self.digests[self.replica.progress.cut] = copy.sha256()

    async def write(self) -> None:
        """Write a checkpoint, archive the log up to it, and trim it."""
        requested = self.writer.request()
        await self.writer.tend(self.replica, self.log)
        await asyncio.wrap_future(requested)
        await self.writer.tend(self.replica, self.log)
        self.clock.now += archivists.SEGMENT_SECONDS
        await self.archived()

    async def archived(self) -> None:
        await self.writer.tend(self.replica, self.log)
        if (task := self.archivist._task) is not None:
            await asyncio.wait({task})
        await self.writer.tend(self.replica, self.log)

    async def replayed(self, target: Target, is_whole: bool = False) -> tuple[str, Replay]:
        place = Place(self.archive, self.store)
        replay = Replay(place, target, torch.device("cpu"), self.clock, is_whole=is_whole)
        return (await replay.run()).sha256(), replay


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.begin()
    yield bench
    bench.writer.close("the end")


async def test_every_version_is_replayed_bit_for_bit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archivists, "SEGMENT_BYTES", 2_000)
    for _ in range(5):
        for size in (7, 20, 13):  # cuts end within entries, and so do segments
            await bench.learn(size)
        await bench.write()
    assert len(bench.archive.segments()) > 5
    assert (await bench.log.cut_range())[0] > 2, "the log is trimmed"
    for cut, digest in bench.digests.items():
        assert (await bench.replayed(Target(cut), is_whole=True))[0] == digest
        assert (await bench.replayed(Target(cut)))[0] == digest
    version = bench.replica.state.version - 1
    assert (await bench.replayed(Target(version=version)))[1].state.version == version
    with pytest.raises(UnreachableError, match="the archive ends at cut 16"):
        await bench.replayed(Target(17))


async def test_the_log_is_not_trimmed_before_it_is_archived(bench: Bench) -> None:
    bench.disk.is_away = True
    await bench.learn()
    first = (await bench.log.extent()).first
    for _ in range(5):
        await bench.learn()
        await bench.write()
    assert (await bench.log.extent()).first == first
    assert bench.archivist.summary.failed == 5
    bench.disk.is_away = False
    bench.clock.now += archivists.RETRY_SECONDS
    await bench.archived()
    oldest = bench.store.oldest()
    assert oldest is not None
    assert (await bench.log.extent()).first == oldest.position.entry
    assert (await bench.replayed(Target()))[0] == bench.digests[7]


async def test_after_a_restart_the_archive_goes_on_where_it_ended(bench: Bench) -> None:
    for _ in range(2):
        await bench.learn()
        await bench.write()
        bench.archivist.stop()
    for _ in range(2):
        await bench.learn()
        await bench.write()
    names = bench.archive.segments()
    assert [(name.first, name.last) for name in names] == [(1, 2), (3, 3), (4, 4), (5, 5)]
    assert chain_of(bench.archive) == names


async def test_an_archive_that_begins_late_begins_after_a_checkpoint(
    tmp_path: Path, bench: Bench
) -> None:
    for _ in range(6):
        await bench.learn()
        await bench.write()
    for path in (tmp_path / "archive").iterdir():
        path.unlink()
    bench.archivist.stop()
    await bench.learn()
    await bench.write()
    first = bench.archive.segments()[0].first
    assert first > 1
    assert next(name.cut for name in bench.archive.checkpoints()) == first - 1
    for cut in range(first, 9):
        assert (await bench.replayed(Target(cut), is_whole=True))[0] == bench.digests[cut]
    with pytest.raises(UnreachableError, match="begins at cut"):
        await bench.replayed(Target(2))


async def test_after_entries_are_lost_the_archive_goes_on(bench: Bench) -> None:
    await bench.learn()
    await bench.write()
    await bench.learn()
    before = bench.replica.progress.position.entry
    bench.memory.delete(*[entry for entry in bench.memory.entries if entry <= before])
    await bench.write()  # an operator deleted entries that were learned, and not archived
    await bench.learn()
    await bench.write()
    await bench.learn()
    await bench.write()
    assert [name.first for name in bench.archive.segments()] == [1, 5]
    assert [name.first for name in chain_of(bench.archive)] == [5]
    assert (await bench.replayed(Target(), is_whole=True))[0] == bench.digests[5]


async def test_a_gap_that_was_accepted_is_archived(bench: Bench) -> None:
    for _ in range(3):
        await bench.learn(15)
        await bench.write()
    bench.memory.lose()
    fill(bench.memory, 2)
    bench.replica.resign()
    bench.pending = await bench.replica.recover(bench.log, True, keep_lease)
    for _ in range(3):
        await bench.learn(15)
        await bench.write()
    assert (await bench.replayed(Target()))[0] == bench.digests[bench.replica.progress.cut]


async def test_checkpoints_of_each_hour_of_a_day_and_each_day_of_a_week_are_kept(
    bench: Bench,
) -> None:
    bench.archive.limits = Limits(seconds=7 * DAY)
    copy = a_copy(0)
    hours = [*range(0, 8 * 24, 6), *(8 * 24 + half / 2 for half in range(48))]
    for cut, hour in enumerate(hours, 1):
        bench.clock.now = 3_600 * hour
        info = bench.store.write(replace(copy, progress=replace(PROGRESS, cut=cut)))
        bench.archive.keep(bench.store, info)
        bench.archive.prune()
    ages = [(bench.clock.now - name.written) / 3_600 for name in bench.archive.checkpoints()]
    assert sum(age <= 24 for age in ages) == 24
    assert 6 <= sum(age > 24 for age in ages) <= 7
    assert max(ages) <= 7 * 24


async def test_the_oldest_is_removed_while_there_is_too_much(tmp_path: Path, bench: Bench) -> None:
    for _ in range(4):
        bench.clock.now += 3_600
        await bench.learn()
        await bench.write()
    sizes = [path.stat().st_size for path in (tmp_path / "archive").iterdir()]
    bench.archive.limits = Limits(bytes=sum(sizes) // 2)
    bench.archive.prune()
    sizes = [path.stat().st_size for path in (tmp_path / "archive").iterdir()]
    assert bench.archive.bytes == sum(sizes) <= bench.archive.limits.bytes
    assert (await bench.replayed(Target(), is_whole=True))[0] == bench.digests[5]
    with pytest.raises(UnreachableError):
        await bench.replayed(Target(1))
    bench.archive.limits = Limits(bytes=0)
    bench.archive.prune()
    assert len(bench.archive.segments()) == 1, "the newest stays, as the next one follows it"


async def test_a_damaged_segment_is_named(tmp_path: Path, bench: Bench) -> None:
    await bench.learn()
    await bench.write()
    (name,) = bench.archive.segments()
    path = tmp_path / "archive" / str(name)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedSegmentError, match="SHA-256"):
        await bench.replayed(Target(1), is_whole=True)
    bench.archivist.stop()
    await bench.learn()
    await bench.write()
    assert "SHA-256" in bench.warnings[0]
    assert (await bench.replayed(Target()))[0] == bench.digests[3]
