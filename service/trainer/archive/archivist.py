"""Writes the archive while learning goes on, before the log is trimmed.

Segments end at cuts that lie before a checkpoint, so that a log which loses its end has never more
in its archive than a checkpoint knows. Cuts that are not archived yet are not trimmed: while the
store is away, the log grows, and nothing is lost.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from service.log.cuts import Cut, Gap
from service.log.entries import Fields, RawEntry
from service.log.errors import GapError
from service.log.log import Log
from service.log.position import EntryId, Position, Progress
from service.monitoring.status import Archiving
from service.process import Clock
from service.trainer.archive.archive import Archive
from service.trainer.archive.segment import Segment
from service.trainer.store import CheckpointStore, Info
from service.trainer.worker import Worker
from streams.errors import FunnelError

T = TypeVar("T")
logger = logging.getLogger("funnel")

SEGMENT_BYTES = 64 << 20
"""Bytes of the log in a segment; its last cut may exceed them."""
SEGMENT_SECONDS = 600.0
"""Time after which a smaller one is written."""
RETRY_SECONDS = 10.0
"""Time between attempts while the store is away."""
FINISH_SECONDS = 5.0
"""Longest wait for the last segment when the service stops."""
READ_ENTRIES, READ_BYTES = 100, 4 << 20
"""Limits of one read of the log; the last entry may exceed the bytes."""


@dataclass
class _Draft:
    """A segment that is being gathered."""

    begin: Progress
    before: str
    end: Progress = field(init=False)
    newest: EntryId = field(init=False)
    """Id of the last entry that was read."""
    cuts: dict[int, Cut] = field(default_factory=dict)
    entries: list[RawEntry] = field(default_factory=list)
    questions: dict[EntryId, Fields] = field(default_factory=dict)
    ahead: deque[RawEntry] = field(default_factory=deque)
    """Entries that were read, and lie after the last cut."""
    size: int = 0
    """Bytes of cuts, entries and questions."""

    def __post_init__(self) -> None:
        self.end, self.newest = self.begin, self.begin.position.entry

    def segment(self) -> Segment:
        """Return the segment."""
        texts = {number: cut.to_json() for number, cut in self.cuts.items()}
        return Segment(self.begin, self.end, texts, self.entries, self.questions, self.before)

    async def add(self, log: Log, number: int, cut: Cut) -> None:
        """Add the next cut, with the entries and the questions that it needs.

        Raises:
            GapError: some are gone.
        """
        if isinstance(cut.command, Gap):  # nothing before its position is needed
            self.newest = cut.position.entry
            await self._take_part(log, cut.position)
        elif not self.cuts:
            await self._take_part(log, self.begin.position)
        await self._take_to(log, number, cut.position.entry)
        joins = (*(join for own in cut.joins.values() for join in own), *cut.met)
        asked = {join.place.entry for join in joins if join.place is not None}
        wanted = sorted(asked - self.questions.keys())
        for entry, fields in zip(wanted, await log.questions(wanted), strict=True):
            self.questions[entry] = fields
            self.size += sum(map(len, fields.values()))
        self.cuts[number] = cut
        self.size += len(cut.to_json())
        self.end = replace(
            self.end,
            cut=number,
            position=cut.position,
            entries=cut.entries,
            asked=max(self.end.asked, cut.closed),
        )

    async def _take_part(self, log: Log, position: Position) -> None:
        """Take the entry within which a position is, as the next cut needs it."""
        if position.taken is not None and (one := await log.read_one(position.entry)) is not None:
            self._take(one)

    async def _take_to(self, log: Log, number: int, last: EntryId) -> None:
        """Take the entries up to an id."""
        while True:
            while self.ahead and self.ahead[0][0] <= last:
                self._take(self.ahead.popleft())
            if self.ahead or self.newest >= last:
                return
            found = await log.read(self.newest, READ_ENTRIES, READ_BYTES, None)
            if not found:
                raise GapError(f"entries of cut {number} are gone")
            self.ahead.extend(found)
            self.newest = found[-1][0]

    def _take(self, one: RawEntry) -> None:
        self.entries.append(one)
        self.size += sum(map(len, one[1].values()))


class Archivist:
    """Writes an archive; used in the trainer's event loop, and writes in a worker.

    Args:
        archive: that it writes.
        worker: writes.
        clock: measures times.
        written: called in the event loop after each attempt.
        bytes: of the log after which a segment is written; 0: SEGMENT_BYTES, which are the most.
    """

    def __init__(
        self,
        archive: Archive,
        worker: Worker,
        clock: Clock,
        written: Callable[[], None],
        bytes: int = 0,
    ) -> None:
        self.archive, self._worker = archive, worker
        self._bytes = min(bytes or SEGMENT_BYTES, SEGMENT_BYTES)
        self._clock, self._written = clock, written
        self.end: Progress | None = None
        """Where the archive ends; None before that is known."""
        self._before = ""
        """Name of its last segment."""
        self.summary = Archiving(0, 0, 0, clock.monotonic())
        """The archive so far."""
        self._begun_bytes, self._tries_at = 0, clock.monotonic()
        self._is_hurried = True
        """True if the next checkpoint is to be archived at once."""
        self._task: asyncio.Task[None] | None = None
        self._failure = ""
        self._lost = False
        """True if the log has lost what comes next."""

    def hurry(self) -> None:
        """Archive what there is with the next checkpoint: the log's server needs room."""
        self._is_hurried = True

    def tend(self, log: Log, store: CheckpointStore, info: Info, read_bytes: int) -> bool:
        """Begin a segment if one is due; return whether an attempt has ended since.

        Args:
            log: with the entries.
            store: of the checkpoints.
            info: of the newest checkpoint, up to which the log may be archived.
            read_bytes: bytes of the log that were read so far.
        """
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            if (error := task.exception()) is not None:
                raise error
            return True
        if self._task is None and self._is_due(info, read_bytes):
            self._tries_at = self._clock.monotonic() + SEGMENT_SECONDS
            self._begun_bytes, self._is_hurried = read_bytes, False
            self._task = asyncio.create_task(self._advance(log, store, info))
        return False

    def _is_due(self, info: Info, read_bytes: int) -> bool:
        if self.end is not None and self.end.cut >= info.progress.cut:
            self.summary = replace(self.summary, newest_at=self._clock.monotonic())
            return False
        is_large = read_bytes - self._begun_bytes >= self._bytes and not self._failure
        return is_large or self._is_hurried or self._clock.monotonic() >= self._tries_at

    def reach(self, oldest: Progress) -> Progress | None:
        """Return how far the log may be trimmed; None if it may not.

        Args:
            oldest: the progress that checkpoints need.
        """
        end = self.end
        if end is None or end.log != oldest.log:
            return None
        return replace(
            oldest,
            cut=min(oldest.cut, end.cut),
            position=min(oldest.position, end.position, key=lambda at: at.entry),
            asked=min(oldest.asked, end.asked),
        )

    async def finish(self, log: Log, store: CheckpointStore, info: Info) -> None:
        """Archive what there is up to a last checkpoint, unless that takes long."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=FINISH_SECONDS)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._advance(log, store, info))
            await asyncio.wait({self._task}, timeout=FINISH_SECONDS)

    def stop(self) -> None:
        """Do nothing more with the log: another trainer may have it."""
        if self._task is not None:
            self._task.cancel()
        self._task, self.end, self._is_hurried = None, None, True

    async def _advance(self, log: Log, store: CheckpointStore, info: Info) -> None:
        """Archive the log up to a checkpoint."""
        try:
            end = self.end
            if end is None or end.log != info.progress.log:
                end = await self._begin(log, store, info)
            while end.cut < info.progress.cut:
                draft = await self._gather(log, end, info.progress.cut)
                name = await self._do(partial(self.archive.add, draft.segment()))
                self.end, self._before, end = draft.end, str(name), draft.end
                written = self.summary.written + name.size
                self.summary = replace(self.summary, written=written)
            await self._do(partial(self.archive.keep, store, info))
            await self._do(self.archive.prune)
        except GapError as error:
            logger.warning("%s; the archive has a gap, after which it goes on", error)
            self._lost = True
            self.end, self._is_hurried = None, True
        except (OSError, FunnelError) as error:
            self._tries_at = self._clock.monotonic() + RETRY_SECONDS
            if str(error) != self._failure:
                logger.error("the log could not be archived, and is not trimmed: %s", error)
            self._failure = str(error) or repr(error)
            self.summary = replace(self.summary, failed=self.summary.failed + 1)
        else:
            now, self._failure = self._clock.monotonic(), ""
            self.summary = replace(self.summary, bytes=self.archive.bytes, newest_at=now)
        self._written()

    async def _begin(self, log: Log, store: CheckpointStore, info: Info) -> Progress:
        """Find where the archive goes on, or let a new part of it begin.

        A part begins with the log, or after a checkpoint that is kept for it.
        """
        uuid, newest = info.progress.log, await self._do(self.archive.newest)
        first, _ = await log.cut_range()
        if newest is not None and not self._lost and newest[1].end.log == uuid:
            name, segment = newest
            last = dict((await log.cuts_after(name.last - 1))[:1]).get(name.last)
            if last is not None and last.to_json() == segment.cuts[name.last]:
                self._before, self.end = str(name), segment.end
                return segment.end
        self._before, lost, self._lost = "", self._lost, False
        if first == 1 and not lost:
            self.end = Progress(uuid)
            return self.end
        known = [] if lost else await self._do(store.known)
        own = (one for one in known if one.progress.log == uuid and one.progress.cut >= first)
        oldest = next(own, info)
        logger.info("the archive begins after cut %d", oldest.progress.cut)
        await self._do(partial(self.archive.keep, store, oldest, is_needed=True))
        self.end = oldest.progress
        return self.end

    async def _gather(self, log: Log, begin: Progress, most: int) -> "_Draft":
        """Return the next segment, up to a cut at most.

        Raises:
            GapError: the log has lost some of it.
        """
        draft = _Draft(begin, self._before)
        while draft.end.cut < most:
            found = await log.cuts_after(draft.end.cut)
            if not found or found[0][0] != draft.end.cut + 1:
                raise GapError(f"cut {draft.end.cut + 1} is gone")
            for number, cut in found:
                is_apart = isinstance(cut.command, Gap) and draft.cuts
                if number > most or is_apart or draft.size >= SEGMENT_BYTES:
                    return draft
                await draft.add(log, number, cut)
        return draft

    async def _do(self, work: Callable[[], T]) -> T:
        """Return the result of work in the worker."""
        return await asyncio.wrap_future(self._worker.start(work))
