"""Appends to the log: one writer that pipelines whatever is queued (group commit)."""

import asyncio
import contextlib
import hashlib
import uuid
from collections import deque
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.log.errors import GapError, LogUnavailable
from service.log.extent import Extent
from service.log.keys import Field, Keys
from service.log.position import EntryId
from service.log.scripts import APPEND_ONCE, DESCRIBE
from streams.errors import FunnelError

GROUP_BYTES = 8 << 20
GROUP_ENTRIES = 512
KEY_SECONDS = 3_600
"""How long an Idempotency-Key is remembered."""


class KeyReusedError(FunnelError, ValueError):
    """An Idempotency-Key came again with another payload."""


class KeyInFlightError(FunnelError, RuntimeError):
    """A request with the same Idempotency-Key is still being handled."""


_Command = tuple[str | bytes | int, ...]


@dataclass(frozen=True)
class _Entry:
    command: _Command
    size: int
    answer: "asyncio.Future[bytes]"


class Intake:
    """Appends entries in the order of the calls.

    Args:
        redis: a client that does not retry (see `service.log.server.connect`).
        model: the model's name.
    """

    def __init__(self, redis: Redis, model: str) -> None:
        self.redis, self.keys = redis, Keys(model)
        self.added = 0
        """Entries ever added to the log, as of the last append here."""
        self._queue: deque[_Entry] = deque()
        self._arrived = asyncio.Event()
        self._in_flight: set[str] = set()
        self._group_under_way: list[_Entry] = []

    async def append(self, payload: bytes, key: str | None = None) -> EntryId:
        """Append an entry and return its id once the server has confirmed it.

        Args:
            payload: the bytes of a checked batch (see `streams.batch`).
            key: an Idempotency-Key: within KEY_SECONDS the same key and payload make one entry.

        Raises:
            LogUnavailable: the server did not confirm; with a key, try again.
            KeyReusedError: the key was used for another payload.
            KeyInFlightError: a request with the key is being handled now.
        """
        if key in self._in_flight:
            raise KeyInFlightError("a request with this Idempotency-Key is still being handled")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        digest, fields = "", (Field.BATCH, payload, Field.SOURCE, "http")
        command: _Command = ("XADD", self.keys.log, "*", *fields)
        if key is not None:
            self._in_flight.add(key)
            answer.add_done_callback(lambda _: self._in_flight.discard(key))
            digest, own = _digest(payload), self.keys.idempotency(_digest(key.encode()))
            command = ("EVAL", APPEND_ONCE, 2, self.keys.log, own, digest, KEY_SECONDS, payload)
        self._queue.append(_Entry(command, len(payload), answer))
        self._arrived.set()
        reply = await asyncio.shield(answer)
        known, _, entry = reply.rpartition(b" ")
        if known != digest.encode():
            raise KeyReusedError("this Idempotency-Key was used for another payload")
        return EntryId.parse(entry)

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
            size += group[-1].size
        return group

    async def _write(self, group: list[_Entry]) -> None:
        try:
            async with self.redis.pipeline(transaction=False) as pipe:
                for entry in group:
                    pipe.execute_command(*entry.command)
                pipe.eval(DESCRIBE, 2, self.keys.log, self.keys.uuid, uuid.uuid4().hex)
                *replies, described = await pipe.execute(raise_on_error=False)
            with contextlib.suppress(GapError):  # the trainer reports it
                if not isinstance(described, Exception):
                    self.added = Extent.of(described, self.keys.log).added
        except (RedisError, OSError) as error:
            replies = [error] * len(group)
        for entry, reply in zip(group, replies, strict=True):
            if entry.answer.done():
                continue
            if isinstance(reply, Exception):
                entry.answer.set_exception(LogUnavailable(f"the log did not confirm: {reply}"))
            else:
                entry.answer.set_result(reply)


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
