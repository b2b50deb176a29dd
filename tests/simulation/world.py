"""A world of processes that learn from one log while a schedule of faults, drawn from a seed, runs.

It runs the real `Trainer`, `Pipeline` and `Replica` on a log in memory and on simulated time. The
promise that it checks: no acknowledged example is lost or learned twice, and the last checkpoint
has the digest of an uninterrupted fold of the recorded cuts.
"""

import asyncio
import contextlib
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from service.fold.spec import Hyperparameters, Spec
from service.fold.state import State
from service.log.cuts import Cut
from service.log.errors import LogUnavailable
from service.log.lease import Lock
from service.log.position import Progress
from service.monitoring.status import Condition, Role
from service.process import SystemClock
from service.settings import load_settings
from service.trainer.checkpoint import Checkpoint
from service.trainer.replica import Replica
from service.trainer.store import CheckpointStore
from service.trainer.trainer import Trainer
from streams.batch import Batch, concatenate
from tests.simulation.loop import SimulatedClock, SimulatedLoop, SimulatedWorker
from tests.support.memory_log import MemoryLog, MemoryServer, Network

SPEC = Spec("logistic", 4, 3, (), "sgd", True, 0)
HYPERPARAMETERS = Hyperparameters(lr=0.03, momentum=0.0, gain_lr=0.03, scale_lr=0.03)
BATCH = 16
LEASE_SECONDS = 3.0
FAULTS = ("kill", "kill", "restart", "pause", "late append", "outage")
SETTLE_SECONDS = 600.0
"""Simulated time within which all must be learned once no more faults happen."""


@dataclass
class Plan:
    """What happens in one run, drawn from its seed."""

    seed: int
    processes: int = 1
    entries: int = 24
    faults: int = 6
    loss: float = 0.0
    """Probability that a request or a reply is lost."""
    max_wait_ms: int = 5_000

    @classmethod
    def of(cls, seed: int) -> "Plan":
        """Return the plan of a seed."""
        rng = random.Random(seed)
        return cls(
            seed,
            processes=rng.choice((1, 2)),
            entries=rng.randint(5, 14),
            faults=rng.randint(1, 6),
            loss=rng.choice((0.0, 0.02, 0.1)),
            max_wait_ms=rng.choice((0, 500, 5_000)),
        )


@dataclass
class Outcome:
    """How a run ended."""

    examples: int
    cuts: int
    seconds: float
    """Of simulated time."""
    events: Counter[str] = field(default_factory=Counter)


class FaultyNetwork(Network):
    """One process's connection: it delays, loses, stands still, and ends with the process.

    Args:
        rng: draws delays and losses.
        loss: probability that a request or a reply is lost.
    """

    def __init__(self, rng: random.Random, loss: float, events: Counter[str]) -> None:
        self.loss, self.is_cut = loss, False
        self._rng, self._events = rng, events
        self._held = ""
        self._may_pass = asyncio.Event()
        self._may_pass.set()

    async def request(self, command: str) -> None:
        await self._travel("request", command)

    async def reply(self, command: str) -> None:
        await self._travel("reply", command)

    async def _travel(self, what: str, command: str) -> None:
        await asyncio.sleep(self._rng.expovariate(1 / 0.002))
        if self._held in (command, ""):
            await self._may_pass.wait()
        if self.is_cut or self._rng.random() < self.loss:
            self._events[f"{what} lost: {command}"] += 1
            raise LogUnavailable("the connection was lost")

    def pause(self, command: str = "") -> None:
        """Hold a command back, or all of them, and their replies."""
        self._held = command
        self._may_pass.clear()

    def resume(self) -> None:
        """Let the commands pass that were held back."""
        self._may_pass.set()


class Process:
    """A service's trainer, which can be killed and started again.

    Args:
        world: the log, the checkpoints and the time that it shares with others.
        number: draws of one process do not disturb those of another.
    """

    def __init__(self, world: "World", number: int) -> None:
        self._world, self._rng = world, random.Random(f"{world.plan.seed}/{number}")
        self._workers: list[SimulatedWorker] = []
        self.start()

    def start(self) -> None:
        """Start from the newest checkpoint."""
        world = self._world
        self.network = FaultyNetwork(self._rng, world.plan.loss, world.events)
        self._lock = Lock(world.directory / "lock")
        self.trainer = Trainer(
            State(SPEC, HYPERPARAMETERS, torch.device("cpu")),
            MemoryLog(world.server, self.network),
            CheckpointStore(world.directory, {}, lambda _: None),
            self._lock,
            load_settings(
                {
                    "batch_size": BATCH,
                    "max_wait_ms": world.plan.max_wait_ms,
                    "checkpoint_every_seconds": 4.0,
                    "lease_seconds": LEASE_SECONDS,
                }
            ),
            observe=lambda seconds, examples: None,
            clock=world.clock,
            workers=self._worker,
        )
        self.trainer.prepare()
        self._task = asyncio.create_task(self.trainer.run())

    def _worker(self, _: str) -> SimulatedWorker:
        worker = SimulatedWorker(lambda: self._rng.expovariate(1 / 0.02))
        self._workers.append(worker)
        return worker

    async def kill(self) -> None:
        """Kill -9: nothing reaches the log any more, and nothing is written."""
        self.network.is_cut = True
        self.network.resume()
        for worker in self._workers:
            worker.crash()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._lock.close()

    async def end(self) -> None:
        """End in order, with a last checkpoint."""
        self.trainer.end()
        await self._task
        self._lock.close()


class World:
    """One run.

    Args:
        plan: what happens.
        directory: for checkpoints and the lock.
        clock: of the loop that it runs in.
    """

    def __init__(self, plan: Plan, directory: Path, clock: SimulatedClock) -> None:
        self.plan, self.directory, self.clock = plan, directory, clock
        self.server = MemoryServer(clock)
        self.events: Counter[str] = Counter()
        self._rng = random.Random(plan.seed)
        self._sent: list[Batch] = []

    async def run(self) -> Outcome:
        """Let entries arrive and faults happen; then check the promise.

        Raises:
            AssertionError: it is broken.
        """
        processes = [Process(self, number) for number in range(self.plan.processes)]
        producing = asyncio.create_task(self._produce())
        for _ in range(self.plan.faults):
            await asyncio.sleep(self._rng.expovariate(1 / 2.0))
            learning = [p for p in processes if p.trainer.status.role == Role.LEARNER]
            await self._fault(self._rng.choice(learning or processes))
        await producing
        total = sum(map(len, self._sent))
        for process in processes:
            process.network.loss = 0.0
        await self._learned(processes, total)
        for process in processes:
            await process.end()
        last = Process(self, self.plan.processes)  # it may have to replay what others learned
        last.network.loss = 0.0
        await self._learned([last], total)
        await last.end()
        return self._check(total)

    async def _learned(self, processes: list[Process], total: int) -> None:
        """Wait until one of the processes has learned everything."""
        async with asyncio.timeout(SETTLE_SECONDS):
            while max(p.trainer.status.examples for p in processes) < total:
                for status in (p.trainer.status for p in processes):
                    assert status.condition != Condition.HALTED, status.reason
                await asyncio.sleep(0.5)  # simulated: a status has no event

    async def _produce(self) -> None:
        pause = 5.0 * self.plan.faults / self.plan.entries  # so that entries arrive between faults
        for k in range(self.plan.entries):
            await asyncio.sleep(self._rng.expovariate(1 / pause))
            if self._rng.random() < 0.1:
                self.server.add({b"batch": b"poison"})
                continue
            batch = a_batch(1000 * self.plan.seed + k, self._rng.randint(1, 2 * BATCH))
            self.server.add({b"batch": batch.to_bytes(), b"source": b"http"})
            self._sent.append(batch)

    async def _fault(self, process: Process) -> None:
        kind = self._rng.choice(FAULTS)
        self.events[kind] += 1
        seconds = self._rng.expovariate(1 / 3.0)
        match kind:
            case "kill":
                await process.kill()
                await asyncio.sleep(seconds)
                process.start()
            case "restart":
                await process.end()
                await asyncio.sleep(seconds)
                process.start()
            case "pause":  # a process that stands still: its lease may run out
                process.network.pause()
                await asyncio.sleep(seconds * LEASE_SECONDS)
                process.network.resume()
            case "late append":  # a cut arrives after another trainer may have taken over
                process.network.pause("append_cuts")
                await asyncio.sleep(seconds * LEASE_SECONDS)
                process.network.resume()
            case "outage":
                loss, process.network.loss = process.network.loss, 1.0
                await asyncio.sleep(seconds)
                process.network.loss = loss

    def _check(self, total: int) -> Outcome:
        cuts = [Cut.from_json(n, text.encode()) for n, text in self.server.every_cut]
        assert [n for n, _ in self.server.every_cut] == list(range(1, len(cuts) + 1))
        assert sum(cut.examples for cut in cuts) == total, "every example is cut once"
        newest = CheckpointStore(self.directory, {}, lambda _: None).load()
        assert newest is not None
        assert newest.examples == total, "every example is learned once"
        assert newest.sha256() == fold(self._sent, cuts), "the digest is that of one fold"
        return Outcome(total, len(cuts), self.clock.now, self.events)


def a_batch(seed: int, n: int) -> Batch:
    """Gaussian examples in float32."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, SPEC.features)).astype(np.float32)
    return Batch(features, rng.integers(0, SPEC.classes, n))


def fold(sent: list[Batch], cuts: list[Cut]) -> str:
    """Return the digest of an uninterrupted fold, which knows nothing of entries or replay."""
    state = State(SPEC, HYPERPARAMETERS, torch.device("cpu"))
    replica, whole, at = Replica(state, lambda *_: None, SystemClock()), concatenate(sent), 0
    for cut in cuts:
        replica.apply(cut, whole.part(at, at + cut.examples) if cut.examples else None)
        at += cut.examples
    return Checkpoint.of(state, Progress()).sha256()


def simulate(plan: Plan) -> Outcome:
    """Run one world from beginning to end, on simulated time.

    Raises:
        AssertionError: the promise is broken.
    """
    clock = SimulatedClock()
    with _quiet(), tempfile.TemporaryDirectory(dir=_scratch()) as directory:
        world = World(plan, Path(directory), clock)
        with asyncio.Runner(loop_factory=lambda: SimulatedLoop(clock)) as runner:
            return runner.run(world.run())


def _scratch() -> str | None:
    """Return a directory in memory, where the machine has one: a run writes many checkpoints."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("funnel")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
