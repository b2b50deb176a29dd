"""The learner: reads the log, cuts, steps, publishes, checkpoints. Knows nothing of HTTP.

It runs in a thread with an event loop of its own. Torch lets go of the interpreter in every
operation, so the HTTP side goes on beside it.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import orjson
import torch
from redis.exceptions import RedisError

from service.checkpoint import Checkpoints, Copy, Info, Place
from service.entries import ORIGIN, Cut, EntryId, Pending, Position, read_entry
from service.fold import Rates, Report, State, step
from service.log import GapError, Log, LogError, check_reach
from service.snapshot import Snapshot
from service.statistics import Statistics, read_statistics
from streams.batch import Batch

logger = logging.getLogger("funnel")

PUBLISH_SECONDS = 0.05
"""Snapshots are at most this old while batches stream in; without a backlog they are new."""
STATISTICS_SECONDS = 1.0
PAUSE_SECONDS = 0.25
"""Time between statistics when learning has paused and they are not of its end."""
BLOCK_MS = 2_000
READ_BYTES = 4 << 20
"""Aim of one read of the log."""
GROUP = 32
"""Batches whose cuts are recorded in one call."""
RECENT = 4_096
"""Reports kept for those who wait for an entry to be applied."""
RETRY_SECONDS = 0.5


@dataclass(frozen=True)
class Applied:
    """What became of an entry."""

    model_version: int
    accuracy: float
    """Of the batch in which its last example fell, before the update."""
    loss: float


@dataclass(frozen=True)
class Cutting:
    """How batches are cut and checkpoints timed."""

    batch_size: int
    max_wait_seconds: float
    checkpoint_seconds: float
    accept_gap: bool = False


class Learner:
    """Folds the log into the state.

    Args:
        state: as built; `run` loads the newest checkpoint into it.
        rates: those to go on with, if the checkpoint has others.
        open_log: connects; called in the learner's own loop.
        checkpoints: where states are kept.
        cutting: sizes and times.
        observe: told the seconds and the examples of each step.
    """

    def __init__(
        self,
        state: State,
        open_log: Callable[[], Log],
        checkpoints: Checkpoints,
        cutting: Cutting,
        observe: Callable[[float, int], None],
    ) -> None:
        self.state, self.checkpoints, self.cutting = state, checkpoints, cutting
        self._open_log, self._observe = open_log, observe
        self._rates = state.rates
        self.place: Place | None = None
        self.snapshot: Snapshot | None = None
        self.statistics: Statistics | None = None
        self.condition = "starting"
        """One of starting, replaying, learning, waiting (for the log), halted, stopped."""
        self.reason = ""
        """Why it waits or is halted."""
        self.checkpoint_results = {"ok": 0, "failed": 0}
        self.checkpoint_at: float | None = None
        self.mean_entry = 1.0
        """Examples in an entry, on recent average."""
        self._epoch: int | None = None
        self._recent: deque[tuple[Position, Report]] = deque(maxlen=RECENT)
        self._waiters: list[tuple[EntryId, Future[Applied]]] = []
        self._requests: list[Future[Info]] = []
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="funnel-checkpoint")
        self._writing: asyncio.Future[Info] | None = None
        self._started = threading.Event()
        self.caught_up = threading.Event()
        """Set once the recorded cuts are repeated, or the learner has halted or stopped."""
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="funnel-learner", daemon=True)
        self.failed: Callable[[BaseException], None] = lambda error: None
        """Called from the learner's thread when it halts for good."""

    def start(self) -> None:
        """Load the newest checkpoint and start the thread.

        Raises:
            DamagedError: there are checkpoints, but no good one.
            LogError: the newest is of another model.
        """
        self._load()
        self.snapshot = Snapshot.of(self.state)
        self._thread.start()
        self._started.wait()

    def stop(self, timeout: float) -> bool:
        """Finish the batch at hand, write a checkpoint, end the thread; say whether it ended."""
        self._stopping = True
        self._poke()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def applied(self, entry: EntryId) -> "Future[Applied]":
        """Return a future of what becomes of an entry of the log."""
        future: Future[Applied] = Future()
        with self._lock:
            self._waiters.append((entry, future))
        self._poke()
        return future

    def checkpoint(self) -> "Future[Info]":
        """Return a future of a checkpoint of the state as it is now or soon."""
        future: Future[Info] = Future()
        with self._lock:
            self._requests.append(future)
        self._poke()
        return future

    def _poke(self) -> None:
        if self._loop is not None and self._wake is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    def _load(self) -> None:
        copy = self.checkpoints.load()
        if copy is None:
            return
        if copy.spec != self.state.spec:
            mine, theirs = asdict(self.state.spec), asdict(copy.spec)
            differing = ", ".join(
                f"{k} is {theirs[k]} there and {mine[k]} here" for k in mine if mine[k] != theirs[k]
            )
            raise LogError(
                f"the checkpoint in {self.checkpoints.directory} is of another model: {differing}. "
                "Use its settings, or another DATA_DIR"
            )
        self.state.load(copy.tensors, copy.version, copy.examples)
        self.state.set_rates(copy.rates)
        self.place = copy.place
        self.checkpoint_at = time.monotonic()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            logger.exception("the learner failed")
            self._halt(error)
        finally:
            self._started.set()
            self._give_up()
            self.caught_up.set()
            self._writer.shutdown()

    async def _main(self) -> None:
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        log = self._open_log()
        warned = False
        try:
            while not self._stopping:
                try:
                    if not warned:
                        for warning in await log.check_server():
                            logger.warning("%s", warning)
                        warned = True
                    pending = await self._recover(log)
                    await self._learn(log, pending)
                except (RedisError, OSError) as error:
                    if self.condition != "waiting":
                        logger.warning("the log cannot be reached: %r; learning waits", error)
                    self.condition, self.reason = "waiting", f"the log cannot be reached: {error}"
                    await self._sleep(RETRY_SECONDS)
                except LogError as error:
                    logger.error("learning is halted: %s", error)
                    self._halt(error)
                    break
            await self._last_checkpoint(log)
        finally:
            await log.redis.aclose()

    def _halt(self, error: BaseException) -> None:
        self.condition, self.reason = "halted", str(error) or repr(error)
        self.failed(error)

    async def _sleep(self, seconds: float) -> None:
        assert self._wake is not None
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    # Recovery: the place is checked against the log, then every recorded cut is repeated.

    async def _recover(self, log: Log) -> Pending:
        name, extent = await log.name(), await log.extent()
        if self.place is None:
            self.place = Place(name, 0, 0, Position(ORIGIN), 0, 0, 0, 0)
        try:
            check_reach(extent, self.place.log, self.place.position, self.place.entries)
        except GapError as error:
            if self._epoch is not None or not self.cutting.accept_gap:
                raise GapError(
                    f"{error}. Entries that were acknowledged are missing; to go on without them, "
                    "start once with --accept-gap"
                ) from error
            logger.warning("gap accepted: %s", error)
            await self._accept_gap(log)
        if self._epoch is None:
            self._epoch = await log.take_epoch(self.place.epoch)
            self.place = replace(self.place, epoch=self._epoch)
        await self._replay(log)
        if self.state.rates != self._rates:
            await self._command({"rates": asdict(self._rates)}, log)
        self.condition, self.reason = "learning", ""
        self.caught_up.set()
        self._publish()
        self.statistics = read_statistics(self.state, self.place, await log.extent())
        return Pending(self.place.position, self.place.entries)

    async def _accept_gap(self, log: Log) -> None:
        """Move the place to the oldest entry that the log still has, and record that."""
        assert self.place is not None
        extent = await log.extent()
        if extent.last.milliseconds == (1 << 64) - 1:
            await log.retire()
        name, extent = await log.name(), await log.extent()
        entries = extent.added - extent.length
        behind = Position(extent.first, 0) if extent.first else Position(extent.last)
        cut = max(self.place.cut, await log.last_cut())
        self._epoch = await log.take_epoch(self.place.epoch)
        self.place = replace(
            self.place, log=name, epoch=self._epoch, cut=cut, position=behind, entries=entries
        )
        await self._record(log, [Cut(behind, entries=entries, command='{"gap": true}')])
        self.place = replace(self.place, cut=cut + 1)

    async def _replay(self, log: Log) -> None:
        assert self.place is not None
        pending = Pending(self.place.position, self.place.entries)
        while cuts := await log.cuts_after(self.place.cut):
            for number, cut in cuts:
                if number != self.place.cut + 1:
                    raise GapError(f"cut {self.place.cut + 1} is missing; the next is {number}")
                if self.condition == "starting":
                    self.condition, self.reason = "replaying", f"from cut {number}"
                while pending.position != cut.position and (
                    not pending or pending.newest < cut.position.entry
                ):
                    if not await self._read(log, pending, None):
                        raise GapError(f"entries before {cut.position} of cut {number} are missing")
                again, batch = pending.take(cut.examples, cut)
                if (again.position, again.examples) != (cut.position, cut.examples):
                    raise GapError(f"cut {number} ends at {cut.position}, not at {again.position}")
                self._apply(cut, batch)
            if self._stopping:
                return

    async def _command(self, command: dict[str, object], log: Log) -> None:
        assert self.place is not None
        cut = Cut(
            self.place.position,
            entries=self.place.entries,
            command=orjson.dumps(command, option=orjson.OPT_SORT_KEYS).decode(),
        )
        await self._record(log, [cut])
        self._apply(cut, None)

    # Learning.

    async def _learn(self, log: Log, pending: Pending) -> None:
        assert self._wake is not None
        reading: asyncio.Task[bool] | None = None
        waited_since = time.monotonic()
        statistics_at = time.monotonic()
        stale = False
        try:
            while not self._stopping:
                self._wake.clear()
                await self._serve_requests(log)
                paused = pending.examples < self.cutting.batch_size
                if time.monotonic() - statistics_at >= (
                    PAUSE_SECONDS if paused and stale else STATISTICS_SECONDS
                ):
                    statistics_at = time.monotonic()
                    await self._watch(log, pending)
                if pending.examples >= self.cutting.batch_size:
                    await self._cut_full(log, pending)
                    waited_since = time.monotonic()
                    await asyncio.sleep(0)
                    continue
                self._publish()
                stale = self.statistics is None or self.statistics.version != self.state.version
                wait = PAUSE_SECONDS if stale else STATISTICS_SECONDS
                if pending:
                    left = waited_since + self.cutting.max_wait_seconds - time.monotonic()
                    wait = min(wait, left)
                    if left <= 0 or not pending.examples:
                        await self._cut_rest(log, pending)
                        continue
                else:
                    waited_since = time.monotonic()
                reading = reading or asyncio.create_task(self._read(log, pending, BLOCK_MS))
                woken = asyncio.create_task(self._wake.wait())
                await asyncio.wait(
                    {reading, woken}, timeout=wait,
                    return_when=asyncio.FIRST_COMPLETED,
                )  # fmt: skip
                woken.cancel()
                if reading.done():
                    reading.result()
                    reading = None
        finally:
            if reading is not None:
                reading.cancel()

    async def _read(self, log: Log, pending: Pending, block_ms: int | None) -> bool:
        """Read some entries behind the newest pending one; say whether there were any."""
        spec = self.state.spec
        found: list[tuple[EntryId, dict[bytes, bytes]]] = []
        if not pending and pending.position.taken is not None:
            one = await log.read_one(pending.position.entry)
            if one is None:
                raise GapError(f"entry {pending.position.entry}, learned in part, is gone")
            found = [one]
        else:
            entry_bytes = self.mean_entry * spec.features
            count = int(min(max(READ_BYTES / entry_bytes, 1), 1_000))
            found = await log.read(pending.newest, count, block_ms)
        for entry_id, fields in found:
            entry = read_entry(entry_id, fields, spec.features, spec.classes)
            if entry.batch is not None:
                self.mean_entry += 0.05 * (len(entry.batch) - self.mean_entry)
            pending.add(entry)
        return bool(found)

    async def _cut_full(self, log: Log, pending: Pending) -> None:
        taken: list[tuple[Cut, Batch | None]] = []
        while pending.examples >= self.cutting.batch_size and len(taken) < GROUP:
            taken.append(pending.take(self.cutting.batch_size))
        await self._carry_out(log, taken)

    async def _cut_rest(self, log: Log, pending: Pending) -> None:
        await self._carry_out(log, [pending.take(pending.examples)])

    async def _carry_out(self, log: Log, taken: list[tuple[Cut, Batch | None]]) -> None:
        await self._record(log, [cut for cut, _ in taken])
        for cut, batch in taken:
            for dead in cut.dead:
                logger.warning("entry %s is put aside as dead: %s", dead.entry, dead.reason)
            self._apply(cut, batch)
            if self._waiters or self._publish_is_due():
                self._publish()

    async def _record(self, log: Log, cuts: list[Cut]) -> None:
        assert self.place is not None
        assert self._epoch is not None
        await log.append_cuts(self._epoch, self.place.cut + 1, cuts)

    def _apply(self, cut: Cut, batch: Batch | None) -> None:
        """Carry out a recorded cut: the batch, then the command."""
        assert self.place is not None
        if batch is not None:
            began = time.perf_counter()
            with torch.no_grad():
                report = step(self.state, batch)
            self._observe(time.perf_counter() - began, len(batch))
            self._recent.append((cut.position, report))
        if cut.command:
            command = orjson.loads(cut.command)
            if "rates" in command:
                self.state.set_rates(Rates(**command["rates"]))
        self.place = replace(
            self.place,
            cut=self.place.cut + 1,
            position=cut.position,
            entries=cut.entries,
            dead=self.place.dead + len(cut.dead),
            http=self.place.http + cut.sources.get("http", 0),
            redis=self.place.redis + cut.sources.get("redis", 0),
        )

    def _publish_is_due(self) -> bool:
        snapshot = self.snapshot
        return snapshot is None or time.monotonic() - snapshot.made >= PUBLISH_SECONDS

    def _publish(self) -> None:
        """Swap in a snapshot of the state, then answer those who wait for what is in it."""
        if self.snapshot is None or self.snapshot.version != self.state.version:
            self.snapshot = Snapshot.of(self.state)
        if not self._waiters or self.place is None:
            return
        position = self.place.position
        with self._lock:
            ready = [w for w in self._waiters if position.covers(w[0])]
            self._waiters = [w for w in self._waiters if not position.covers(w[0])]
        for entry, future in ready:
            report = next((r for p, r in self._recent if p.covers(entry)), None)
            if not future.set_running_or_notify_cancel():
                continue
            if report is None:
                future.set_exception(LogError(f"entry {entry} was applied long ago, or is dead"))
            else:
                future.set_result(
                    Applied(report.version, float(report.accuracy), float(report.loss))
                )

    async def _watch(self, log: Log, pending: Pending) -> None:
        """About once a second: look at the log's extent, read the statistics off the device."""
        assert self.place is not None
        extent = await log.extent()
        check_reach(extent, self.place.log, self.place.position, self.place.entries)
        newest = pending.newest
        if extent.last == newest and extent.added != pending.entries + len(pending):
            raise GapError(
                f"entries were deleted before they were learned: {extent.added} were added up to "
                f"{newest}, {pending.entries + len(pending)} were read"
            )
        waiting_since = pending.oldest.milliseconds if pending else None
        self.statistics = read_statistics(self.state, self.place, extent, waiting_since)

    # Checkpoints.

    async def _serve_requests(self, log: Log) -> None:
        """Start a checkpoint if one is due or asked for; never more than one at a time."""
        if self._writing is not None:
            if self._writing.done():
                await self._after_writing(log)
            return
        due = self.checkpoint_at is None or (
            time.monotonic() - self.checkpoint_at >= self.cutting.checkpoint_seconds
        )
        if not (due or self._requests) or self.place is None:
            return
        if self.checkpoint_at is None and not self._requests and not self.state.version:
            self.checkpoint_at = time.monotonic()
            return
        self._begin_writing()

    def _begin_writing(self) -> None:
        assert self.place is not None
        assert self._loop is not None
        with self._lock:
            requests, self._requests = self._requests, []
        copy = Copy.of(self.state, self.place)
        self.checkpoint_at = time.monotonic()
        self._writing = self._loop.run_in_executor(self._writer, self.checkpoints.write, copy)

        def answer(done: "asyncio.Future[Info]") -> None:
            error = done.exception()
            self.checkpoint_results["failed" if error else "ok"] += 1
            if error:
                logger.error("the checkpoint could not be written: %s", error)
            for request in requests:
                if request.set_running_or_notify_cancel():
                    if error:
                        request.set_exception(error)
                    else:
                        request.set_result(done.result())
            if self._wake is not None:
                self._wake.set()

        self._writing.add_done_callback(answer)

    async def _after_writing(self, log: Log) -> None:
        assert self._writing is not None
        writing, self._writing = self._writing, None
        oldest = self.checkpoints.oldest()
        if writing.exception() is None and oldest and self.place and oldest.log == self.place.log:
            await log.trim(oldest.position, oldest.cut)

    async def _last_checkpoint(self, log: Log) -> None:
        if self._writing is not None:
            await asyncio.wait({self._writing})
            self._writing = None
        if self.place is None or self._epoch is None:
            return
        self._begin_writing()
        assert self._writing is not None
        await asyncio.wait({self._writing})
        if self.condition != "learning":
            return
        try:
            await self._after_writing(log)
        except (RedisError, OSError) as error:
            logger.warning("the log was not trimmed: %r", error)

    def _give_up(self) -> None:
        """Tell those who still wait that nothing more will happen."""
        if self.condition != "halted":
            self.condition, self.reason = "stopped", "the service is shutting down"
        with self._lock:
            futures = [f for _, f in self._waiters] + [*self._requests]
            self._waiters, self._requests = [], []
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(LogError(f"the learner is {self.condition}: {self.reason}"))
