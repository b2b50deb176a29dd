"""Appends to the log: one writer that pipelines whatever is queued (group commit).

Small requests with rows that wait while the log confirms others share an entry, in the order in
which they came. The names of their columns are written once, and the log and the trainer handle one
entry. A request that comes alone waits for no other.
"""

import asyncio
import contextlib
import hashlib
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from zlib import crc32

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.log.backlog import Backlog, Load
from service.log.errors import LogError, LogFullError, LogUnavailable
from service.log.extent import Extent
from service.log.keys import Field, Keys
from service.log.position import TOP, EntryId
from service.log.scripts import APPEND_ONCE, CLAIM_INPUTS, DESCRIBE
from streams.errors import FunnelError
from streams.rows.entry import to_bytes
from streams.rows.rows import Rows, join, merged

GROUP_BYTES = 8 << 20
GROUP_ENTRIES = 512
JOINED = Load(256, 1 << 20)
"""Most rows, and bytes of their values, of requests that share an entry."""
JOINED_CELLS = 20_000
"""Most cells of the same: readers take as many whatever the columns are."""
LATER = 64 << 20
"""Most bytes of questions that wait to be written while nobody waits for them."""
SMALL = Load(64, 64 << 10)
"""Requests with fewer rows and bytes of values may share an entry."""
KEY_SECONDS = 3_600
"""How long an Idempotency-Key is remembered once it is no longer among the newest."""
WITHOUT_LOG = "this process has no log: set FUNNEL_REDIS_URL to that of the learner"
KEYS_KEPT = 65_536
"""The newest Idempotency-Keys are remembered however old they are; they take about 20 MB."""


class KeyReusedError(FunnelError, ValueError):
    """An Idempotency-Key came again with another payload."""


class KeyInFlightError(FunnelError, RuntimeError):
    """A request with the same Idempotency-Key is still being handled."""


_Command = tuple[str | bytes | int, ...]


@dataclass
class _Entry:
    load: Load
    """An estimate until rows are encoded."""
    answers: "list[asyncio.Future[bytes]]"
    """One for each request that shares the entry."""
    command: _Command = ()
    rows: list[Rows] = field(default_factory=list)
    """One for each request, until they are encoded."""
    cells: int = 0
    is_question: bool = False
    """True if it is one of the stream of questions, which no backlog counts."""

    def takes(self, other: "_Entry") -> bool:
        """Take in the rows of the entry that follows; return False if they need their own."""
        if not (self.rows and other.rows):
            return False
        load = Load(self.load.examples + other.load.examples, self.load.bytes + other.load.bytes)
        cells = self.cells + other.cells
        if load.examples > JOINED.examples or load.bytes > JOINED.bytes or cells > JOINED_CELLS:
            return False
        self.load, self.cells = load, cells
        self.rows += other.rows
        self.answers += other.answers
        return True

    def fail(self, error: Exception) -> None:
        """Fail the requests that still wait."""
        for answer in self.answers:
            if not answer.done():
                answer.set_exception(error)


class Intake:
    """Appends entries in the order of the calls.

    Args:
        redis: a client that does not retry (see `service.log.server.connect`); None for a process
            without a log, where every append fails.
        model: the model's name.
        backlog: keeps the bounds; there are none by default.
    """

    def __init__(self, redis: Redis | None, model: str, backlog: Backlog | None = None) -> None:
        self.redis, self.keys, self.backlog = redis, Keys(model), backlog or Backlog()
        self._queue: deque[_Entry] = deque()
        self._arrived = asyncio.Event()
        self._in_flight: set[str] = set()
        self._later = 0
        """Bytes of questions for whose confirmation nobody waits."""
        self._group_under_way: list[_Entry] = []

    @property
    def server(self) -> Redis:
        """The client of the log's server.

        Raises:
            LogUnavailable: this process has no log.
        """
        if self.redis is None:
            raise LogUnavailable(WITHOUT_LOG)
        return self.redis

    async def append(
        self,
        payload: bytes,
        key: str | None = None,
        examples: int = 1,
        field: str = Field.BATCH,
    ) -> EntryId:
        """Append an entry and return its id once the server has confirmed it.

        Args:
            payload: the bytes of a checked batch (see `streams.batch` and `streams.rows.entry`).
            key: an Idempotency-Key: within KEY_SECONDS, and while it is among the newest KEYS_KEPT,
                the same key and payload make one entry.
            examples: number of examples in the payload.
            field: field of the entry that holds the payload.

        Raises:
            BacklogFullError: too much waits to be learned; nothing was sent.
            LogFullError: the log takes no more entries; this one is not accepted.
            LogUnavailable: the server did not confirm; with a key, try again.
            KeyReusedError: the key was used for another payload.
            KeyInFlightError: a request with the key is being handled now.
        """
        if key in self._in_flight:
            raise KeyInFlightError("a request with this Idempotency-Key is still being handled")
        entry = self._reserved(Load(examples, len(payload)))
        digest, checksum = "", crc32(payload)
        entry.command = self._addition(payload, field)
        if key is not None:
            self._in_flight.add(key)
            entry.answers[0].add_done_callback(lambda _: self._in_flight.discard(key))
            digest, own = _digest(payload), self.keys.idempotency(_digest(key.encode()))
            keys = (self.keys.log, own, self.keys.newest)
            arguments = (digest, KEY_SECONDS, payload, checksum, KEYS_KEPT, field)
            entry.command = ("EVAL", APPEND_ONCE, len(keys), *keys, *arguments)
        return await self._confirmed(entry, digest)

    async def append_small(self, rows: Rows) -> EntryId:
        """Append rows to an entry that other requests may share, and return its id as `append`.

        Args:
            rows: checked and labelled, as `is_small` wants them.

        Raises:
            BacklogFullError, LogFullError, LogUnavailable: as for `append`.
        """
        entry = self._reserved(Load(len(rows), rows.buffer_bytes))
        entry.rows, entry.cells = [rows], rows.cells
        return await self._confirmed(entry)

    async def ask(self, fields: Mapping[str, bytes | int]) -> EntryId:
        """Append questions, and return the id of their entry once the server has confirmed it.

        Args:
            fields: of the entry (see `service.log.questions`).

        Raises:
            LogUnavailable: the server did not confirm, or has given out its highest id.
        """
        try:
            return await self._confirmed(self._question(fields))
        except LogFullError as error:
            raise LogUnavailable("the stream of questions has given out its highest id") from error

    def ask_later(self, fields: Mapping[str, bytes | int], lost: Callable[[], object]) -> None:
        """Append questions as `ask` does, without waiting.

        Args:
            fields: of the entry.
            lost: called if the server does not confirm, or LATER bytes of others wait for that.
        """
        entry = self._question(fields)
        size = entry.load.bytes
        if self._later + size > LATER:
            lost()
            return
        self._later += size

        def note(answer: "asyncio.Future[bytes]") -> None:
            self._later -= size
            if answer.cancelled() or answer.exception() is not None:
                lost()

        entry.answers[0].add_done_callback(note)
        self._queue.append(entry)
        self._arrived.set()

    def _question(self, fields: Mapping[str, bytes | int]) -> _Entry:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        size = sum(len(value) for value in fields.values() if isinstance(value, bytes))
        pairs = [part for pair in fields.items() for part in pair]
        command = ("XADD", self.keys.asked, "*", *pairs)
        return _Entry(Load(0, size), [answer], command, is_question=True)

    def _reserved(self, load: Load) -> _Entry:
        self.backlog.reserve(load)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self.backlog.release(load))
        return _Entry(load, [answer])

    def _addition(self, payload: bytes, field: str) -> _Command:
        fields = (field, payload, Field.SOURCE, "http", Field.CRC32, crc32(payload))
        return ("XADD", self.keys.log, "*", *fields)

    async def _confirmed(self, entry: _Entry, digest: str = "") -> EntryId:
        self._queue.append(entry)
        self._arrived.set()
        reply = await asyncio.shield(entry.answers[0])
        known, _, text = reply.rpartition(b" ")
        if known != digest.encode():
            raise KeyReusedError("this Idempotency-Key was used for another payload")
        try:
            accepted = EntryId.parse(text)
        except ValueError as error:
            raise KeyReusedError("another program wrote the key of this Idempotency-Key") from error
        if accepted == TOP:
            raise LogFullError
        return accepted

    async def claim(self, inputs: str) -> str:
        """Claim the log as `service.log.log.Log.claim` does; return what it is claimed for.

        Raises:
            LogUnavailable: the server did not confirm.
        """
        keys = (self.keys.inputs, self.keys.log)
        try:
            found: bytes = await self.server.eval(CLAIM_INPUTS, len(keys), *keys, inputs)
        except (RedisError, OSError) as error:
            raise LogUnavailable(f"the log did not confirm: {error}") from error
        return found.decode(errors="replace")

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                self._group_under_way = group = self._group()
                for entry in group:
                    await self._encode(entry)
                await self._write([entry for entry in group if entry.command])
                self._group_under_way = []

    def give_up(self) -> None:
        """Fail every append that the log has not confirmed."""
        error = LogUnavailable("the service is stopping, and the log has not confirmed")
        for entry in (*self._group_under_way, *self._queue):
            entry.fail(error)

    def _group(self) -> list[_Entry]:
        group: list[_Entry] = []
        size = 0
        while self._queue and len(group) < GROUP_ENTRIES and size < GROUP_BYTES:
            entry = self._queue.popleft()
            size += entry.load.bytes
            if not (group and group[-1].takes(entry)):
                group.append(entry)
        return group

    async def _encode(self, entry: _Entry) -> None:
        """Encode the rows of an entry, those of many requests in a thread of their own."""
        if not entry.rows:
            return
        try:
            if len(entry.rows) == 1:
                payload = to_bytes(entry.rows[0])
            else:
                payload = await asyncio.to_thread(_joined, entry.rows)
        except Exception as error:
            entry.fail(error)
            return
        entry.rows, entry.command = [], self._addition(payload, Field.ARROW)
        entry.load = Load(entry.load.examples, len(payload))

    async def _write(self, group: list[_Entry]) -> None:
        try:
            async with self.server.pipeline(transaction=False) as pipe:
                for entry in group:
                    pipe.execute_command(*entry.command)
                if adds := not all(entry.is_question for entry in group):
                    pipe.eval(DESCRIBE, 2, self.keys.log, self.keys.uuid, uuid.uuid4().hex)
                replies = await pipe.execute(raise_on_error=False)
            if adds and not isinstance(described := replies.pop(), Exception):
                with contextlib.suppress(LogError):  # the trainer reports it
                    self.backlog.added = Extent.of(described, self.keys.log).added
        except (RedisError, OSError, LogUnavailable) as error:
            replies = [error] * len(group)
        for entry, reply in zip(group, replies, strict=True):
            if isinstance(reply, Exception):
                entry.fail(LogUnavailable(f"the log did not confirm: {reply}"))
                continue
            if all(answer.done() for answer in entry.answers):
                continue
            with contextlib.suppress(ValueError):  # `append` reports it
                if not entry.is_question:
                    self.backlog.note(EntryId.parse(reply.rpartition(b" ")[2]), entry.load)
            for answer in entry.answers:
                if not answer.done():
                    answer.set_result(reply)


def is_small(rows: Rows) -> bool:
    """Return whether rows may share an entry with those of other requests."""
    is_few = len(rows) < SMALL.examples and rows.cells <= JOINED_CELLS
    return is_few and rows.buffer_bytes < SMALL.bytes


def _joined(parts: list[Rows]) -> bytes:
    return to_bytes(merged(join(parts)))


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
