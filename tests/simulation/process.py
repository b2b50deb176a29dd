"""A process of the service in a simulation: a trainer, an intake, and their ways to the world."""

import asyncio
import contextvars
import random
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from service.http.codecs.codec import Examples
from service.http.errors import HTTPError
from service.http.routes.learn import _claim
from service.log.entries import inputs_of
from service.log.errors import LogUnavailable
from service.log.intake import Intake
from service.log.lease import Lock
from service.log.position import ORIGIN, EntryId
from service.model import Model
from service.monitoring.status import Condition, Role
from service.settings import Settings
from service.trainer.archive.archive import Archive, Limits
from service.trainer.choice import AnotherModelError
from service.trainer.disk import Storage
from service.trainer.objects.shared import Objects, SharedStore
from service.trainer.store import CheckpointStore
from service.trainer.trainer import Trainer
from service.trainer.waiters import Applied
from streams.batch import InvalidBatchError, check, decode
from streams.errors import FunnelError
from streams.rows.entry import from_bytes
from tests.simulation.bucket import SimulatedBucket
from tests.simulation.chain import ChainState
from tests.simulation.disk import SimulatedDisk
from tests.simulation.loop import OWNER, KilledError, OwnClock, Owner, SimulatedWorker
from tests.simulation.oracle import ViolationError
from tests.simulation.redis import MemoryRedis
from tests.support.memory_log import MemoryLog, Network

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")

FOLDER, ARCHIVE = Path("/checkpoints"), Path("/archive")
TIMEOUT_SECONDS = 1.0
"""After so long a client gives a request up; the server may still execute it."""


class RefusedError(FunnelError):
    """A service refuses examples: they are not of the kind that it learns."""


class FaultyNetwork(Network):
    """One process's connection: it delays, loses, doubles back late, and ends with the process.

    Args:
        process: whose connection it is.
    """

    def __init__(self, process: "Process") -> None:
        self._process, self._rng = process, process.rng
        world = process.world
        self.loss, self.late = (0.0, 0.0) if world.is_over else (world.plan.loss, world.plan.late)
        self.is_cut = False
        self.held: str | None = None
        """Command that is held back; all of them if it is empty."""
        self._may_pass = asyncio.Event()

    async def call(self, command: str, execute: Callable[[], T]) -> T:
        process, rng = self._process, self._rng
        owner, server = OWNER.get(), process.world.server
        assert owner is not None
        process.moment("before", command)
        life = server.life
        await self._travel(command)
        owner.check()
        if self.is_cut or rng.random() < self.loss:
            self._lose("request", command)

        def executed() -> T:
            server.check_up()
            if server.life != life:
                raise LogUnavailable("the connection was reset")
            return execute()

        if rng.random() < self.late:
            asyncio.get_running_loop().call_later(rng.expovariate(0.5), self._execute, executed)
            await asyncio.sleep(TIMEOUT_SECONDS)
            self._lose("late request", command)
        result = executed()
        process.moment("after", command)
        await self._travel(command)
        owner.check()
        if self.is_cut or rng.random() < self.loss:
            self._lose("reply", command)
        return result

    def arrived(self, commands: int) -> int:
        if self._rng.random() < self.loss:
            return self._rng.randint(0, commands)
        return commands

    async def _travel(self, command: str) -> None:
        luck = self._rng.random()
        if luck < 0.2:
            await asyncio.sleep(0.05 * luck)
        while self.held in (command, ""):
            await self._may_pass.wait()

    def _lose(self, what: str, command: str) -> None:
        self._process.world.note(self._process.name, f"{what} lost: {command}", "loss")
        raise LogUnavailable("the connection was lost")

    def _execute(self, executed: Callable[[], object]) -> None:
        try:
            executed()
        except (FunnelError, KilledError) as error:
            self._process.world.note(self._process.name, f"late: {error!r}")

    def hold(self, command: str = "") -> None:
        """Hold a command back, or all of them, and their replies."""
        self.held = command
        self._may_pass.clear()

    def release(self) -> None:
        """Let pass what was held back."""
        self.held = None
        self._may_pass.set()


class SimulatedLock(Lock):
    """A lock that living processes of one machine compete for.

    Args:
        holders: of the locks, by machine.
        machine: where the process runs.
        works: whether the file system has locks.
    """

    def __init__(self, holders: dict[int, Owner | None], machine: int, works: bool) -> None:
        self.name, self.is_held = f"machine {machine}/", False
        self._holders, self._machine, self._works = holders, machine, works

    def take(self) -> bool:
        owner, holder = OWNER.get(), self._holders.get(self._machine)
        if self._works and not self.is_held and (holder is None or holder.is_dead):
            self._holders[self._machine], self.is_held = owner, True
        return self.is_held

    def close(self) -> None:
        if self.is_held:
            self._holders[self._machine], self.is_held = None, False


class Process:
    """A service that can be killed and started again.

    Args:
        world: the log, the disk and the time that it shares with others.
        number: draws of one process do not disturb those of another.
        machine: where it runs.
    """

    def __init__(self, world: "World", number: int, machine: int) -> None:
        self.world, self.number, self.machine = world, number, machine
        self.rng = random.Random(f"{world.plan.seed}/{number}")
        self.clock = OwnClock(world.clock)
        self.lr = 0.03
        self.name = f"process {number}"
        self.owner: Owner | None = None
        self.failure: Exception | None = None
        """Why the last start failed."""
        self.crash_at: tuple[str, str, int] | None = None
        """A moment, an operation, and how often it is still survived."""
        self.lives = 0

    @property
    def is_up(self) -> bool:
        """True while it lives."""
        return self.owner is not None and not self.owner.is_dead

    def moment(self, when: str, operation: str) -> None:
        """Die here, if it is planned; code of a dead process ends here in any case."""
        owner = OWNER.get()
        assert owner is not None
        owner.check()
        if self.crash_at is not None and self.crash_at[:2] == (when, operation):
            left = self.crash_at[2] - 1
            self.crash_at = (when, operation, left)
            if left <= 0:
                self.crash_at = None
                self.world.note(self.name, f"is killed {when} {operation}", f"crash {operation}")
                owner.kill()
                raise KilledError

    def start(self, accept_gap: bool = False) -> None:
        """Start from the newest checkpoint."""
        assert not self.is_up
        self.lives += 1
        self.failure = self.crash_at = None
        self.owner = owner = Owner(f"{self.name}.{self.lives}")
        owner.killed = self._died
        self._died_event = asyncio.Event()
        self.context = contextvars.copy_context()
        self.context.run(OWNER.set, owner)
        self.world.note(self.name, "starts, accepting a gap" if accept_gap else "starts")
        try:
            self.context.run(self._start, accept_gap)
        except KilledError:
            pass
        except (FunnelError, OSError) as error:
            self.world.note(self.name, f"cannot start: {error}")
            self.failure = error
            owner.kill()

    def _start(self, accept_gap: bool) -> None:
        world, loop = self.world, asyncio.get_running_loop()
        self.network = FaultyNetwork(self)
        self.disk = SimulatedDisk(world.platter, self.moment)
        self.workers: list[SimulatedWorker] = []
        self._lock = SimulatedLock(world.locks, self.machine, world.plan.locks)
        owner = self.owner
        assert owner is not None
        self._ends = False
        try:
            self._begin(world.settings.model_copy(update={"accept_gap": accept_gap}))
        except AnotherModelError as error:  # as `service.service.Service.start` does
            self._begin(self.settings.taking(error.spec, error.claimed))
        self.intake = Intake(MemoryRedis(world.server, self.network), "model")  # type: ignore[arg-type]
        self._running = loop.create_task(self._run())
        loop.create_task(self.intake.run())

    def _begin(self, settings: Settings) -> None:
        """Let a trainer begin with a model of these settings."""
        world, owner = self.world, self.owner
        assert owner is not None
        self.settings = settings
        self.state = world.states[owner] = world.new_state(self.lr, settings)
        self.spec = self.state.spec
        self.trainer = Trainer(
            self.state,
            MemoryLog(world.server, self.network),
            self._store(),
            self._lock,
            settings,
            observe=lambda seconds, examples: None,
            clock=self.clock,
            workers=self._worker,
            archive=Archive(ARCHIVE, self._storage(), Limits(), self.clock, self._warn),
        )
        self.trainer.prepare()

    def _warn(self, text: str) -> None:
        self.world.note(self.name, text)

    def _bucket(self, kind: str) -> SimulatedBucket:
        world, owner = self.world, self.owner
        assert owner is not None
        rng = random.Random(f"{world.plan.seed}/{owner.name}/{kind}")
        return SimulatedBucket(world.shelf, self.disk, rng, lambda: world.is_over)

    def _storage(self) -> Storage:
        """Return where the archive is kept."""
        return Objects(self._bucket("archive")) if self.world.plan.is_stored else self.disk

    def _store(self) -> CheckpointStore:
        world, owner = self.world, self.owner
        assert owner is not None
        if not world.plan.is_stored:
            return CheckpointStore(FOLDER, {}, self._warn, self.disk)
        return SharedStore(self._bucket("bucket"), "model", {}, self._warn, by=owner.name)

    async def _run(self) -> None:
        """Run the trainer, and each that takes its place, as `service.service.Service` does."""
        while True:
            await self.trainer.run()
            taken = self.trainer.ended.result()
            if taken is None or self._ends:
                return
            self.world.note(self.name, "takes the kind of the log", "taken")
            try:
                self._begin(taken)
            except (FunnelError, OSError) as error:  # the service ends, and is started again
                self.world.note(self.name, f"cannot go on: {error}")
                self.failure = error
                if self.owner is not None:
                    self.owner.kill()
                return

    async def _refuse(self, payload: bytes, field: str) -> None:
        """Check that examples are of the kind that the service learns, as `POST /learn` does.

        Raises:
            RefusedError: they are not.
            LogUnavailable: it cannot tell yet, or the log cannot be reached.
        """
        trainer, shape = self.trainer, self.spec.shape
        if (trainer.is_open or shape is None) and not trainer.knows_schema:
            raise LogUnavailable("the schema is not known yet")
        if not inputs_of({field.encode(): payload}):
            raise RefusedError("these are no examples")
        try:
            if trainer.is_open:
                await _claim(cast(Model, self), Examples(1, payload, field))
            elif shape is None:
                trainer.schema.check(from_bytes(payload))
            else:
                check(decode(payload), *shape)
        except HTTPError as error:
            if error.status == 422:
                raise RefusedError(str(error)) from error
            raise LogUnavailable(str(error)) from error
        except InvalidBatchError as error:
            raise RefusedError(str(error)) from error

    def _worker(self, _: str) -> SimulatedWorker:
        worker = SimulatedWorker(self.rng, 0.02)
        self.workers.append(worker)
        return worker

    def _died(self) -> None:
        self._died_event.set()

    def kill(self) -> None:
        """Kill -9: nothing that it does reaches the outside any more."""
        if self.owner is not None and self.is_up:
            self.world.note(self.name, "is killed", "kill")
            self.owner.kill()

    async def end(self) -> None:
        """End in order, with a last checkpoint."""
        if not self.is_up:
            return
        owner = self.owner
        assert owner is not None
        self.world.note(self.name, "ends")
        self._ends = True
        self.trainer.end()
        await asyncio.wait(
            {self._running, asyncio.ensure_future(self._died_event.wait())},
            return_when=asyncio.FIRST_COMPLETED,
        )
        self.intake.give_up()
        self._lock.close()
        owner.kill()

    async def _post(self, payload: bytes, key: str | None, field: str) -> EntryId:
        if self.world.plan.is_open:
            await self._refuse(payload, field)
        return await self.intake.append(payload, key, field=field)

    async def append(self, payload: bytes, key: str | None, patience: float, field: str) -> EntryId:
        """Post examples, as a client that gives up after some time.

        Raises:
            LogUnavailable: there is no answer, or the answer is an error.
            RefusedError: the examples are of another kind than the service learns.
            KeyReusedError, KeyInFlightError: as `Intake.append`.
        """
        return await self._answered(self._post(payload, key, field), patience)

    async def ask(self, fields: Mapping[str, bytes | int], patience: float) -> EntryId:
        """Append questions, as a client that gives up after some time.

        Raises:
            LogUnavailable: there is no answer, or the answer is an error.
        """
        if not self.is_up:
            raise LogUnavailable("connection refused")
        return await self._answered(self.intake.ask(fields), patience)

    async def _answered(
        self, request: Coroutine[object, object, EntryId], patience: float
    ) -> EntryId:
        """Return the answer to a request, unless the process dies before it."""
        if not self.is_up:
            request.close()
            raise LogUnavailable("connection refused")
        loop, died = asyncio.get_running_loop(), self._died_event
        posting = loop.create_task(request, context=self.context)
        dying = asyncio.ensure_future(died.wait())
        await asyncio.wait({posting, dying}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        dying.cancel()
        if died.is_set() or not posting.done():
            posting.cancel()
            raise LogUnavailable("there is no answer")
        return posting.result()

    @property
    def has_joined(self) -> bool:
        """True if it has read all questions, each has timed out if it may, no label waits to be
        recorded with its own, and it has applied all cuts."""
        joiner = self.trainer._replica.joiner
        labelling = self.world.plan.labelling
        is_open = bool(labelling and labelling.ends_waits and joiner._index._unlabelled)
        is_read = joiner.newest >= max(self.world.server.asked, default=ORIGIN)
        cut = self.trainer.status.progress.cut
        is_applied = any(tip.cut == cut for tip in self.world.oracle.tips)
        return is_read and joiner.met_since is None and not is_open and is_applied

    def watch(self, entry: EntryId) -> None:
        """Wait until an entry is learned, and check that it is then."""
        owner, trainer, world = self.owner, self.trainer, self.world
        assert owner is not None

        def check(done: "Future[Applied | None]") -> None:
            if owner.is_dead or done.exception() is not None:
                return
            applied = done.result()
            world.events["answered"] += 1
            if not trainer.status.progress.position.covers(entry):
                world.violate(ViolationError(f"{entry} is answered for before it is learned"))
            if applied is not None and trainer.snapshot.version < applied.model_version:
                world.violate(ViolationError(f"{entry} is answered for before it is published"))

        trainer.applied(entry).add_done_callback(check)

    @property
    def is_learning(self) -> bool:
        """True while it learns, as far as it knows."""
        if not self.is_up:
            return False
        status = self.trainer.status
        return (status.role, status.condition) == (Role.LEARNER, Condition.LEARNING)

    @property
    def chain(self) -> bytes:
        """The digest of its state."""
        return self.state.chain if isinstance(self.state, ChainState) else b""

    def covers(self, entry: EntryId) -> bool:
        """Return whether it learns, and has learned everything up to an entry."""
        if not self.is_learning:
            return False
        status = self.trainer.status
        is_published = self.trainer.snapshot.version == status.version
        is_joined = self.world.plan.labelling is None or self.has_joined
        return is_published and is_joined and status.progress.position.covers(entry)

    def __str__(self) -> str:
        if not self.is_up:
            return f"{self.name} is down"
        status = self.trainer.status
        joins = ""
        if self.world.plan.labelling is not None:
            joiner = self.trainer._replica.joiner
            joins = f", questions read to {joiner.newest}, {joiner.summary}"
        at = status.progress.position
        return f"{self.name} is {status.condition} {status.reason!r} at {at}{joins}"
