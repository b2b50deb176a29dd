"""The carrier: it reads a source after what is in the log, and appends what it reads.

The log alone knows how far the source is carried. Whenever the log or the source was away, the
carrier asks the log, and reads again from there.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.commands.sources.content import contents_of
from service.commands.sources.reader import AwayError, Bounds, Reader, SourceError
from service.log.backlog import Backlog, BacklogFullError, Learned, Load
from service.log.errors import LogUnavailable
from service.log.log import RedisLog
from service.log.position import BEGINNING
from service.log.server import has_log
from service.log.sources.offsets import Carried, HoleError, Offsets
from streams.batch import DEFAULT_MODEL, FORMER_MODEL
from streams.client.backoff import PATIENCE, Backoff
from streams.producer import REMINDER_SECONDS

READ_AT_ONCE, READ_SECONDS = 256, 0.5
"""Most messages that are carried at a time, and the longest wait for the first."""
READ_BYTES = 8 << 20
"""Bytes of entries that go to the log at a time; the last may exceed them."""
FULL_SECONDS = 0.2
"""From one look at a full backlog to the next."""


@dataclass
class Counts:
    """The work of a carrier so far."""

    messages: int = 0
    """Messages that it appended."""
    examples: int = 0
    unread: int = 0
    """Messages that could not be read, which become dead letters."""
    known: int = 0
    """Messages that were in the log already."""


class Carrier:
    """Carries a source into a log, until it is stopped.

    Args:
        reader: of the source.
        log: of the model.
        offsets: of the same log.
        most: examples and bytes that may wait to be learned.
        label: name of the column of labels; None for none.
        is_earliest: whether a source that the log does not know begins with its oldest messages, or
            with the next ones.
        accepts_gap: whether to go on if the source has lost messages that are not in the log.
        progress: called with the number of examples, and with the messages that wait in the source,
            after each append.
        notify: called with what is away, full or cannot be read.
    """

    def __init__(
        self,
        reader: Reader,
        log: RedisLog,
        offsets: Offsets,
        most: Load,
        label: str | None = None,
        is_earliest: bool = True,
        accepts_gap: bool = False,
        progress: Callable[[int, int | None], object] = lambda examples, lag: None,
        notify: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.counts = Counts()
        self._reader, self._log, self._offsets, self._label = reader, log, offsets, label
        self._is_earliest, self._accepts_gap = is_earliest, accepts_gap
        self._progress, self._notify = progress, notify
        self._learned = Learned()
        self._most = most
        self._backlog = Backlog(most, lambda: self._learned)
        self._bytes = 0
        self._noticed: dict[str, float] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Carry until the event is set; then what was read is in the log, or is read again.

        Raises:
            SourceError: the source cannot be carried.
        """
        backoff = Backoff(random.Random())
        while not stop.is_set():
            done = self.counts.messages
            try:
                await self._follow(stop)
            except (AwayError, LogUnavailable, HoleError) as error:
                if self.counts.messages > done:
                    backoff = Backoff(random.Random())
                self._note(type(error).__name__, f"trying again: {error}")
                await _pause(stop, backoff.next())

    async def _follow(self, stop: asyncio.Event) -> None:
        """Carry until the event is set, or the source may have other partitions."""
        bounds = await self._reader.bounds()
        places = {name: (own.before, own.last) for name, own in bounds.items()}
        last = await self._offsets.begin(places, is_latest=not self._is_earliest)
        self._is_earliest = True  # a file that comes later is read from its beginning
        for name, own in bounds.items():
            self._check(name, last[name], own)
        await self._reader.seek({name: max(last[name], own.before) for name, own in bounds.items()})
        while not stop.is_set():
            if not (room := await self._room()):
                await _pause(stop, FULL_SECONDS)
                continue
            messages = await self._reader.read(min(room, READ_AT_ONCE), READ_SECONDS)
            if messages is None:
                return
            examples, size, part = 0, 0, list[Carried]()
            contents = contents_of(messages, self._label)
            for message, found in zip(messages, contents, strict=True):
                if found.fault:
                    self.counts.unread += 1
                    place = f"{message.partition}@{message.offset}"
                    self._note("fault", f"{place} becomes a dead letter: {found.fault}")
                part.append(Carried(message.partition, message.offset, found.fields))
                examples, size = examples + found.examples, size + part[-1].bytes
                if size >= READ_BYTES:
                    await self._append(part, examples)
                    examples, size, part = 0, 0, []
            if part:
                await self._append(part, examples)
            else:
                self._progress(0, self._reader.lag())

    async def _append(self, part: list[Carried], examples: int) -> None:
        """Append messages in order; the examples count as if none of them was in the log."""
        added = await self._offsets.append(part)
        own = examples if added == len(part) else examples * added // len(part)
        self.counts.messages += added
        self.counts.examples += own
        self.counts.known += len(part) - added
        self._bytes += sum(message.bytes for message in part) * added // len(part)
        self._progress(own, self._reader.lag())

    async def _room(self) -> int:
        """Return how many messages may follow before as much waits to be learned as may."""
        heard, extent = await self._log.heard(), await self._log.extent()
        cut, sent = heard.cut, max(1, self.counts.messages)
        learned = self._learned = Learned(
            cut[1].position if cut else BEGINNING,
            cut[1].entries if cut else 0,
            extent.added,
            self.counts.examples / sent,
            self._bytes / sent,
        )
        try:
            self._backlog.check()
        except BacklogFullError as error:
            self._note("full", f"waiting: {error}")
            return 0
        one, waiting = learned.waiting(1), self._backlog.waiting()
        return max(1, (self._most.examples - waiting.examples) // max(1, one.examples))

    def _check(self, name: str, last: int, own: Bounds) -> None:
        """Check that a partition still has the messages after one.

        Raises:
            SourceError: it has not.
        """
        if last > own.last:
            raise SourceError(
                f"{name} ends at offset {own.last}, but the log has it up to {last}: it was made "
                "again, or has lost its end; with another --name its messages are new ones"
            )
        if last < own.before and not self._accepts_gap:
            raise SourceError(
                f"{name} has lost offsets {last + 1} to {own.before} before they were carried; to "
                "go on without them, start once with --accept-gap"
            )

    def _note(self, kind: str, text: str) -> None:
        """Notify, of each kind at most once in some seconds."""
        now = time.monotonic()
        if now >= self._noticed.get(kind, now):
            self._noticed[kind] = now + REMINDER_SECONDS
            self._notify(text)


async def model_at(url: str, stop: asyncio.Event, notify: Callable[[str], object]) -> str:
    """Return the name of the model whose log a server has; of none, what a new one is called.

    Args:
        url: of the server, for which it waits.
        stop: ends the wait.
        notify: called with the reason while the server is away.
    """
    backoff = Backoff(random.Random())
    while not stop.is_set():
        try:
            return FORMER_MODEL if await has_log(url, FORMER_MODEL) else DEFAULT_MODEL
        except LogUnavailable as error:
            if backoff.retries in (0, PATIENCE):
                notify(f"trying again: {error}")
            await _pause(stop, backoff.next())
    return DEFAULT_MODEL


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait for some seconds, or until the event is set."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
