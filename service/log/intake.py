"""Appends to the log: one writer that pipelines whatever is queued (group commit)."""

import asyncio
import contextlib
import hashlib
import uuid
from collections import deque
from dataclasses import dataclass
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

GROUP_BYTES = 8 << 20
GROUP_ENTRIES = 512
KEY_SECONDS = 3_600
"""How long an Idempotency-Key is remembered once it is no longer among the newest."""
KEYS_KEPT = 65_536
"""The newest Idempotency-Keys are remembered however old they are; they take about 20 MB."""


class KeyReusedError(FunnelError, ValueError):
    """An Idempotency-Key came again with another payload."""


class KeyInFlightError(FunnelError, RuntimeError):
    """A request with the same Idempotency-Key is still being handled."""


_Command = tuple[str | bytes | int, ...]


@dataclass(frozen=True)
class _Entry:
    command: _Command
    load: Load
    answer: "asyncio.Future[bytes]"


class Intake:
    """Appends entries in the order of the calls.

    Args:
        redis: a client that does not retry (see `service.log.server.connect`).
        model: the model's name.
        backlog: keeps the bounds; there are none by default.
    """

    def __init__(self, redis: Redis, model: str, backlog: Backlog | None = None) -> None:
        self.redis, self.keys, self.backlog = redis, Keys(model), backlog or Backlog()
        self._queue: deque[_Entry] = deque()
        self._arrived = asyncio.Event()
        self._in_flight: set[str] = set()
        self._group_under_way: list[_Entry] = []

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
        load = Load(examples, len(payload))
        self.backlog.reserve(load)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self.backlog.release(load))
        digest, checksum = "", crc32(payload)
        fields = (field, payload, Field.SOURCE, "http", Field.CRC32, checksum)
        command: _Command = ("XADD", self.keys.log, "*", *fields)
        if key is not None:
            self._in_flight.add(key)
            answer.add_done_callback(lambda _: self._in_flight.discard(key))
            digest, own = _digest(payload), self.keys.idempotency(_digest(key.encode()))
            keys = (self.keys.log, own, self.keys.newest)
            arguments = (digest, KEY_SECONDS, payload, checksum, KEYS_KEPT, field)
            command = ("EVAL", APPEND_ONCE, len(keys), *keys, *arguments)
        self._queue.append(_Entry(command, load, answer))
        self._arrived.set()
        reply = await asyncio.shield(answer)
        known, _, entry = reply.rpartition(b" ")
        if known != digest.encode():
            raise KeyReusedError("this Idempotency-Key was used for another payload")
        try:
            accepted = EntryId.parse(entry)
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
            found: bytes = await self.redis.eval(CLAIM_INPUTS, len(keys), *keys, inputs)
        except (RedisError, OSError) as error:
            raise LogUnavailable(f"the log did not confirm: {error}") from error
        return found.decode(errors="replace")

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                self._group_under_way = self._group()
                await self._write(self._group_under_way)
                self._group_under_way = []

    def give_up(self) -> None:
        """Fail every append that the log has not confirmed."""
        error = LogUnavailable("the service is stopping, and the log has not confirmed")
        for entry in (*self._group_under_way, *self._queue):
            if not entry.answer.done():
                entry.answer.set_exception(error)

    def _group(self) -> list[_Entry]:
        group: list[_Entry] = []
        size = 0
        while self._queue and len(group) < GROUP_ENTRIES and size < GROUP_BYTES:
            group.append(self._queue.popleft())
            size += group[-1].load.bytes
        return group

    async def _write(self, group: list[_Entry]) -> None:
        try:
            async with self.redis.pipeline(transaction=False) as pipe:
                for entry in group:
                    pipe.execute_command(*entry.command)
                pipe.eval(DESCRIBE, 2, self.keys.log, self.keys.uuid, uuid.uuid4().hex)
                *replies, described = await pipe.execute(raise_on_error=False)
            with contextlib.suppress(LogError):  # the trainer reports it
                if not isinstance(described, Exception):
                    self.backlog.added = Extent.of(described, self.keys.log).added
        except (RedisError, OSError) as error:
            replies = [error] * len(group)
        for entry, reply in zip(group, replies, strict=True):
            if entry.answer.done():
                continue
            if isinstance(reply, Exception):
                entry.answer.set_exception(LogUnavailable(f"the log did not confirm: {reply}"))
            else:
                with contextlib.suppress(ValueError):  # `append` reports it
                    self.backlog.note(EntryId.parse(reply.rpartition(b" ")[2]), entry.load)
                entry.answer.set_result(reply)


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
