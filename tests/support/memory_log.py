"""A log in memory that behaves like `service.log.log.Log`: epochs, fencing, trims, gaps, lease.

`MemoryServer` is what a server keeps; each `MemoryLog` is one process's connection to it. What
happens on the way is a `Network`'s business, so that a test can delay, lose or cut it.
"""

import asyncio
import itertools
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from service.log.cuts import Cut
from service.log.entries import Fields, RawEntry
from service.log.errors import FencedError, LogUnavailable
from service.log.extent import Extent
from service.log.keys import Inputs, Keys
from service.log.log import ASKED_AT_ONCE, COUNTED_AT_ONCE, CUTS_A_READ, DEAD_BYTES, DEAD_KEPT, Log
from service.log.position import ORIGIN, TOP, EntryId, Position
from service.log.questions import IDS, Asked
from service.process import Clock, SystemClock

T = TypeVar("T")

FULL = "command not allowed when used memory > 'maxmemory'."
READ_ONLY = "You can't write against a read only replica."


class Network:
    """The way to a server and back; this one loses and delays nothing."""

    async def call(self, command: str, execute: Callable[[], T]) -> T:
        """Let the server execute a command, and return its reply.

        Raises:
            LogUnavailable: the reply does not come, whether or not the command was executed.
        """
        return execute()

    def arrived(self, commands: int) -> int:
        """Return how many of the commands that are sent at once reach the server."""
        return commands


@dataclass
class _Lease:
    text: str
    ends: float
    identity: str


class MemoryServer:
    """What a server keeps of one log.

    Args:
        clock: gives the entries their ids, and ends leases.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.entries: dict[EntryId, Fields] = {}
        self.last, self.added = ORIGIN, 0
        self.asked: dict[EntryId, Fields] = {}
        """The questions."""
        self.last_asked = ORIGIN
        self.cuts: dict[int, str] = {}
        self.every_cut: list[tuple[int, str]] = []
        """The numbers and texts of all cuts that were ever recorded."""
        self.last_cut = 0
        """The highest number of a cut that was ever recorded."""
        self.dead: list[Fields] = []
        self.uuid: str | None = None
        self.schema = ""
        """The schema of rows, as JSON."""
        self.inputs = ""
        """What the log is claimed for."""
        self.epoch = self.aside = 0
        self.lease: _Lease | None = None
        self.keys: dict[str, bytes] = {}
        """What is remembered of Idempotency-Keys, and until when."""
        self.is_full = False
        """No memory is left: nothing new is kept but what the trainer writes."""
        self.is_read_only = False
        """It refuses whatever may write, as a replica does."""
        self.arrived = asyncio.Event()
        """Set when the next entry is added, or the server ends; then replaced by another."""
        self.life = 0
        """How often it has ended: a connection does not outlast it."""

    def end(self) -> None:
        """End, and with it all connections."""
        self.life += 1
        self._notify()

    def _notify(self) -> None:
        arrived, self.arrived = self.arrived, asyncio.Event()
        arrived.set()

    def check_writable(self) -> None:
        """Raise LogUnavailable if it is read-only."""
        if self.is_read_only:
            raise LogUnavailable(f"the log cannot be reached: {READ_ONLY}")

    def add(self, fields: Fields, entry: EntryId | None = None) -> EntryId:
        """Append an entry, under an id of the clock's unless one is given.

        Raises:
            LogUnavailable: there is no memory, it is read-only, or the id is too small.
        """
        self.check_writable()
        if self.is_full:
            raise LogUnavailable(f"the log cannot be reached: {FULL}")
        now = EntryId(int(1000 * self.clock.time()), 0)
        last = self.last
        entry = entry or max(now, EntryId(last.milliseconds, last.sequence + 1))
        if entry <= last or entry > TOP:
            raise LogUnavailable("the log cannot be reached: the stream has exhausted its ids")
        self.entries[entry], self.last = fields, entry
        self.added += 1
        self._notify()
        return entry

    def ask(self, fields: Fields) -> EntryId:
        """Append an entry of questions.

        Raises:
            LogUnavailable: there is no memory, or it is read-only.
        """
        self.check_writable()
        if self.is_full:
            raise LogUnavailable(f"the log cannot be reached: {FULL}")
        now, last = EntryId(int(1000 * self.clock.time()), 0), self.last_asked
        entry = max(now, EntryId(last.milliseconds, last.sequence + 1))
        self.asked[entry], self.last_asked = fields, entry
        return entry

    def take_epoch(self, at_least: int) -> int:
        """Begin a new epoch."""
        self.epoch = max(self.epoch, at_least) + 1
        return self.epoch

    def trim(self, position: Position, cut: int, asked: EntryId = ORIGIN) -> None:
        """Delete what lies before a position and a cut, and the questions before an entry."""
        self.asked = {i: fields for i, fields in self.asked.items() if i >= asked}
        if any(i >= position.entry for i in self.entries):
            self.delete(*[i for i in self.entries if i < position.entry])
        self.cuts = {n: text for n, text in self.cuts.items() if n >= cut}

    def claim(self, inputs: str) -> str:
        """Keep what the log is claimed for, unless it is claimed; return it."""
        first = next(iter(self.entries.values()), {})
        kind = Inputs.FEATURES if {b"batch", b"json"} & first.keys() else ""
        kind = Inputs.ROWS if {b"arrow", b"rows", b"row"} & first.keys() else kind
        self.inputs = self.inputs or (inputs if inputs.startswith(kind) else kind)
        return self.inputs

    def archive(self) -> None:
        """Begin a new log."""
        self.lose()
        self.cuts, self.last_cut, self.uuid, self.aside = {}, 0, None, 0

    def record(self, epoch: int, number: int, cut: Cut) -> None:
        """Keep a cut of the present epoch."""
        self.cuts[number], self.last_cut = cut.to_json(), number
        self.every_cut.append((number, self.cuts[number]))

    def bury(self, letter: Fields) -> None:
        """Keep a dead letter."""
        self.dead.append(letter)
        del self.dead[:-DEAD_KEPT]

    def delete(self, *entries: EntryId) -> None:
        """Delete some entries."""
        for entry in entries:
            self.entries.pop(entry, None)

    def lose(self) -> None:
        """Lose the stream of entries."""
        self.entries, self.last, self.added = {}, ORIGIN, 0

    def after(self, entry: EntryId) -> list[RawEntry]:
        """Return the entries after an id."""
        return [(i, fields) for i, fields in self.entries.items() if i > entry]


class MemoryLog(Log):
    """One process's connection to a server.

    Args:
        server: may be shared.
        network: the way there and back.
    """

    def __init__(
        self, server: MemoryServer, network: Network | None = None, model: str = "model"
    ) -> None:
        self.server, self.network, self.keys = server, network or Network(), Keys(model)

    async def extent(self) -> Extent:
        server = self.server

        def extent() -> Extent:
            if server.uuid is None:
                server.check_writable()
                if server.is_full:
                    raise LogUnavailable(f"the log cannot be reached: {FULL}")
                server.uuid = uuid.uuid4().hex
            first = next(iter(server.entries), None)
            now = int(1000 * server.clock.time())
            ends = server.last, first, server.last_asked, now
            return Extent(server.uuid, len(server.entries), server.added, *ends)

        return await self._ask("extent", extent)

    async def take_epoch(self, at_least: int) -> int:
        return await self._write("take_epoch", lambda: self.server.take_epoch(at_least))

    async def claim(self, inputs: str) -> str:
        return await self._write("claim", lambda: self.server.claim(inputs))

    async def read(
        self, after: EntryId, count: int, size: int, block_ms: int | None
    ) -> list[RawEntry]:
        server = self.server

        def read() -> list[RawEntry]:
            found, left = [], size
            for entry in itertools.islice(server.after(after), count):
                if left <= 0:
                    break
                found.append(entry)
                left -= _bytes(entry[1], names=bool(found[1:]) or block_ms is None)
            return found

        life = server.life
        found = await self._ask("read", read)
        if found or block_ms is None:
            return found
        try:
            async with asyncio.timeout(block_ms / 1000):
                while not server.after(after) and server.life == life:
                    await server.arrived.wait()
        except TimeoutError:
            return []
        if server.life != life:
            raise LogUnavailable("the connection was lost")
        return await self._ask("read", read)

    async def read_one(self, entry: EntryId) -> RawEntry | None:
        entries = self.server.entries
        return await self._ask(
            "read_one", lambda: (entry, entries[entry]) if entry in entries else None
        )

    async def count_after(self, after: EntryId, last: EntryId) -> tuple[int, EntryId]:
        def count() -> tuple[int, EntryId]:
            found = [i for i, _ in self.server.after(after) if i <= last][:COUNTED_AT_ONCE]
            return len(found), found[-1] if found else after

        return await self._ask("count_after", count)

    async def asked_after(self, after: EntryId) -> list[Asked]:
        def find() -> list[Asked]:
            later = [(i, fields) for i, fields in self.server.asked.items() if i > after]
            return [
                Asked(i, fields.get(IDS, b""), _bytes(fields, names=True))
                for i, fields in later[:ASKED_AT_ONCE]
            ]

        return await self._ask("asked_after", find)

    async def questions(self, entries: Sequence[EntryId]) -> list[Fields]:
        asked = self.server.asked
        return await self._ask("questions", lambda: [asked.get(entry, {}) for entry in entries])

    async def raise_asked(self, entry: EntryId) -> None:
        server = self.server

        def rise() -> None:
            server.last_asked = max(server.last_asked, entry)

        await self._write("raise_asked", rise)

    async def append_cuts(
        self, epoch: int, first: int, cuts: Sequence[Cut], schema: str = ""
    ) -> None:
        server = self.server

        def append() -> None:
            if epoch != server.epoch:
                raise FencedError(
                    "another trainer has taken over this log "
                    f"(FENCED epoch {server.epoch}; mine is {epoch})"
                )
            if first <= server.last_cut:
                raise LogUnavailable(f"the id of cut {first} is equal or smaller than the top")
            for number, cut in enumerate(cuts, first):
                server.record(epoch, number, cut)
                for entry, reason in cut.dead.items():
                    fields, room = {b"entry": _text(entry), b"reason": _text(reason)}, DEAD_BYTES
                    for name, value in server.entries.get(entry, {}).items():
                        if len(name) >= room or len(fields) >= 2000:
                            break
                        fields[name] = value[: room - len(name)]
                        room -= len(name) + len(fields[name])
                    server.bury(fields)
            server.schema = schema or server.schema

        await self._write("append_cuts", append)

    async def record_skipped(self, batches: Sequence[Sequence[str]]) -> None:
        names = (b"version", b"begin", b"end", b"examples", b"reason")

        def record() -> None:
            for batch in batches:
                if int(batch[0]) > self.server.aside:
                    self.server.bury(dict(zip(names, map(_text, batch), strict=True)))
                    self.server.aside = int(batch[0])

        await self._write("record_skipped", record)

    async def forget_skipped(self, version: int) -> None:
        def forget() -> None:
            self.server.aside = min(self.server.aside, version)

        await self._write("forget_skipped", forget)

    async def cuts_after(self, number: int) -> list[tuple[int, Cut]]:
        def find() -> list[tuple[int, Cut]]:
            later = [(n, text) for n, text in self.server.cuts.items() if n > number]
            return [(n, Cut.from_json(n, text.encode())) for n, text in later[:CUTS_A_READ]]

        return await self._ask("cuts_after", find)

    async def cut_range(self) -> tuple[int, int]:
        def cut_range() -> tuple[int, int]:
            return min(self.server.cuts, default=0), self.server.last_cut

        return await self._ask("cut_range", cut_range)

    async def trim(self, position: Position, cut: int, asked: EntryId = ORIGIN) -> None:
        await self._write("trim", lambda: self.server.trim(position, cut, asked))

    async def archive(self) -> None:
        await self._write("archive", self.server.archive)

    async def take_lease(
        self, holder: str, milliseconds: int, lock: str, identity: str = ""
    ) -> int:
        server = self.server

        def take() -> int:
            now, held, mine = server.clock.time(), server.lease, False
            if held is not None and held.ends > now:
                mine = held.text.endswith(holder)
                if not mine and not (lock and held.text.startswith(lock)):
                    return 0
            told = held.identity if held is not None and mine else identity
            server.lease = _Lease(lock + holder, now + milliseconds / 1000, told)
            return 2 if mine else 1

        return await self._write("take_lease", take)

    async def release_lease(self, holder: str) -> None:
        def release() -> None:
            if self.server.lease is not None and self.server.lease.text.endswith(holder):
                self.server.lease = None

        await self._write("release_lease", release)

    async def learner(self) -> str:
        def learner() -> str:
            held = self.server.lease
            return "" if held is None or held.ends <= self.server.clock.time() else held.identity

        return await self._ask("learner", learner)

    async def check_server(self) -> list[str]:
        return await self._ask("check_server", list)

    async def close(self) -> None:
        """Nothing is open."""

    async def _ask(self, command: str, execute: Callable[[], T]) -> T:
        return await self.network.call(command, execute)

    async def _write(self, command: str, execute: Callable[[], T]) -> T:
        def write() -> T:
            self.server.check_writable()
            return execute()

        return await self._ask(command, write)


def _text(value: object) -> bytes:
    return str(value).encode()


def _bytes(fields: Fields, names: bool) -> int:
    return sum(map(len, fields.values())) + (sum(map(len, fields)) if names else 0)
