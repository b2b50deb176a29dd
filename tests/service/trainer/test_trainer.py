"""The trainer, run in one event loop on simulated time: the status that it publishes."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

from service.fold.report import Report
from service.log.errors import LogUnavailable, Stopped
from service.log.extent import Extent
from service.log.lease import Lock
from service.log.position import BEGINNING, EntryId
from service.monitoring.status import Condition, Role
from service.settings import load_settings
from service.trainer.replica import AppliedBatch
from service.trainer.trainer import ANOTHER_LEARNS, Trainer
from tests.simulation.loop import SimulatedClock, SimulatedLoop, SimulatedWorker
from tests.support.checkpoints import kept
from tests.support.memory_log import MemoryLog, MemoryServer, Network
from tests.support.replicas import fill
from tests.support.states import a_batch, a_state

T = TypeVar("T")

SETTINGS = load_settings(
    {
        "model": "logistic",
        "batch_size": 20,
        "max_wait_ms": 600_000,
        "checkpoint_every_seconds": 60.0,
        "lease_seconds": 10.0,
    }
)


class Away(Network):
    """A network that a test can take away."""

    is_away = False

    async def call(self, command: str, execute: Callable[[], T]) -> T:
        if self.is_away:
            raise LogUnavailable("the log cannot be reached: it is away")
        return execute()


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def runner(clock: SimulatedClock) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(clock)) as runner:
        yield runner


@contextmanager
def a_trainer(
    server: MemoryServer, directory: Path, clock: SimulatedClock, network: Network | None = None
) -> Iterator[Trainer]:
    lock = Lock(directory / f"lock-{clock.now}")
    trainer = Trainer(
        a_state(),
        MemoryLog(server, network),
        kept(directory)[0],
        lock,
        SETTINGS,
        lambda seconds, examples: None,
        clock=clock,
        workers=lambda name: SimulatedWorker(Random(0), 0.01),
    )
    trainer.prepare()
    yield trainer
    lock.close()


def test_a_status_follows_learning_and_is_replaced_not_changed(
    tmp_path: Path, clock: SimulatedClock, runner: asyncio.Runner
) -> None:
    server = MemoryServer(clock)
    with a_trainer(server, tmp_path, clock) as trainer:

        async def use() -> None:
            first = trainer.status
            assert (first.condition, first.role) == (Condition.STARTING, Role.STANDBY)
            running = asyncio.create_task(trainer.run())
            entries = fill(server, 3)
            applied = await asyncio.wrap_future(trainer.applied(entries[-1]))
            assert applied is not None
            assert applied.model_version == 3
            status = trainer.status
            assert (status.condition, status.role) == (Condition.LEARNING, Role.LEARNER)
            assert (status.version, status.examples, status.backlog()) == (3, 60, 0)
            assert trainer.snapshot.version == 3
            assert first.version == 0
            info = await asyncio.wrap_future(trainer.checkpoint())
            assert (info.version, trainer.status.checkpoints.ok) == (3, 1)
            trainer.end()
            await running
            assert trainer.status.condition == Condition.STOPPED
            assert trainer.status.role == Role.STANDBY

        runner.run(use())


def test_a_standby_answers_with_each_version_that_its_status_names(
    tmp_path: Path, clock: SimulatedClock, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = MemoryServer(clock)
    extent = MemoryLog.extent
    with a_trainer(server, tmp_path, clock) as learner:
        clock.now += 1
        with a_trainer(server, tmp_path, clock) as standby:
            seen: list[tuple[int, int]] = []

            async def watched(log: MemoryLog) -> Extent:
                seen.append((standby.status.version, standby.snapshot.version))
                return await extent(log)

            async def use() -> None:
                running = [asyncio.create_task(learner.run())]
                await asyncio.sleep(1)
                running.append(asyncio.create_task(standby.run()))
                await asyncio.wrap_future(learner.applied(fill(server, 3)[-1]))
                monkeypatch.setattr(MemoryLog, "extent", watched)
                await asyncio.wrap_future(learner.checkpoint())
                await asyncio.sleep(1)
                monkeypatch.setattr(MemoryLog, "extent", extent)
                for trainer, ends in zip((standby, learner), running[::-1], strict=True):
                    trainer.end()
                    await ends

            runner.run(use())
            assert (3, 3) in seen
            assert all(version <= answering for version, answering in seen)


def test_a_standby_answers_that_another_learns(
    tmp_path: Path, clock: SimulatedClock, runner: asyncio.Runner
) -> None:
    server = MemoryServer(clock)
    with a_trainer(server, tmp_path, clock) as learner:
        clock.now += 1
        with a_trainer(server, tmp_path, clock) as standby:

            async def use() -> None:
                running = [asyncio.create_task(learner.run())]
                await asyncio.sleep(1)
                running.append(asyncio.create_task(standby.run()))
                await asyncio.sleep(1)
                assert standby.status.condition == Condition.STANDBY
                assert standby.status.reason == ANOTHER_LEARNS
                with pytest.raises(Stopped, match="another service learns"):
                    await asyncio.wrap_future(standby.applied(EntryId(1, 0)))
                with pytest.raises(Stopped, match="another service learns"):
                    await asyncio.wrap_future(standby.checkpoint())
                fill(server, 2)
                learner.end()
                await running[0]
                await asyncio.sleep(1)
                assert standby.status.role == Role.LEARNER
                assert standby.status.examples == 40
                standby.end()
                await running[1]

            runner.run(use())


def test_a_halted_trainer_says_why_and_no_longer_learns(
    tmp_path: Path, clock: SimulatedClock, runner: asyncio.Runner
) -> None:
    server = MemoryServer(clock)
    with a_trainer(server, tmp_path, clock) as trainer:

        async def use() -> None:
            running = asyncio.create_task(trainer.run())
            fill(server, 2)
            await asyncio.sleep(2)
            server.lose()
            server.uuid = "another"
            await running

        runner.run(use())
        status = trainer.status
        assert (status.condition, status.role) == (Condition.HALTED, Role.STANDBY)
        assert "another log" in status.reason
        with pytest.raises(Stopped, match="halted"):
            trainer.checkpoint().result(0)


def test_learning_waits_while_the_log_cannot_be_reached(
    tmp_path: Path, clock: SimulatedClock, runner: asyncio.Runner
) -> None:
    server, network = MemoryServer(clock), Away()
    with a_trainer(server, tmp_path, clock, network) as trainer:

        async def use() -> None:
            running = asyncio.create_task(trainer.run())
            fill(server, 1)
            await asyncio.sleep(2)
            network.is_away = True
            await asyncio.sleep(5)
            assert trainer.status.condition == Condition.WAITING
            assert "it is away" in trainer.status.reason
            network.is_away = False
            fill(server, 1)
            await asyncio.sleep(2)
            assert trainer.status.condition == Condition.LEARNING
            assert trainer.status.examples == 40
            trainer.end()
            await running

        runner.run(use())


def test_entries_deleted_at_the_end_of_the_log_halt_an_idle_trainer(
    tmp_path: Path, clock: SimulatedClock, runner: asyncio.Runner
) -> None:
    """No later entry has to come before anybody notices."""
    server, network = MemoryServer(clock), Away()
    with a_trainer(server, tmp_path, clock, network) as trainer:

        async def use() -> None:
            running = asyncio.create_task(trainer.run())
            fill(server, 1)
            await asyncio.sleep(2)
            network.is_away = True
            await asyncio.sleep(1)
            server.delete(*fill(server, 2))
            network.is_away = False
            await running

        runner.run(use())
        assert trainer.status.condition == Condition.HALTED
        assert "entries were deleted before they were learned: 3 were" in trainer.status.reason


class NoLetters(Network):
    """A network that loses the records of skipped batches."""

    async def call(self, command: str, execute: Callable[[], T]) -> T:
        if command == "record_skipped":
            raise LogUnavailable("the log cannot be reached")
        return execute()


def test_no_last_checkpoint_lies_after_a_skipped_batch_that_is_not_recorded(
    tmp_path: Path, clock: SimulatedClock, runner: asyncio.Runner
) -> None:
    """A process that starts from it would never record the batch."""
    server, entry = MemoryServer(clock), {b"batch": a_batch(0).to_bytes()}
    with a_trainer(server, tmp_path, clock, NoLetters()) as trainer:

        async def use() -> None:
            running = asyncio.create_task(trainer.run())
            await asyncio.sleep(0.1)
            trainer._rejections.remember(
                AppliedBatch(BEGINNING, BEGINNING, Report(1, 0.5, 1.0, False), 0.0, 20)
            )
            server.add(entry)
            await asyncio.sleep(0.1)
            trainer.end()
            await running

        runner.run(use())
        assert kept(tmp_path)[0].files() == []
