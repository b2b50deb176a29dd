"""Logs for tests: the same handful of interventions, on a real server and in memory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol, cast

from redis.asyncio import Redis

from service.log.entries import Fields
from service.log.log import Log, RedisLog
from service.log.position import EntryId
from service.log.server import connect
from tests.simulation.redis import MemoryRedis
from tests.support.memory_log import MemoryLog, MemoryServer


class Store(Protocol):
    """A log, and what others than its trainer do to it."""

    log: Log

    async def add(self, fields: Fields, entry: EntryId | None = None) -> EntryId:
        """Append an entry."""

    async def ask(self, fields: Fields) -> EntryId:
        """Append an entry of questions."""

    async def delete(self, *entries: EntryId) -> None:
        """Delete entries."""

    async def lose(self) -> None:
        """Lose the stream of entries."""

    async def rename(self, uuid: str) -> None:
        """Give the log another name."""

    async def letters(self) -> list[Fields]:
        """Return the dead letters."""

    async def end_lease(self) -> None:
        """Let the lease run out."""

    async def set_full(self, is_full: bool) -> None:
        """Leave the server without memory, or give it some."""

    async def set_read_only(self, is_read_only: bool) -> None:
        """Make the server a replica, or the primary."""

    def client(self) -> Redis:
        """Return a client for an intake of the same log."""


class RedisStore(Store):
    def __init__(self, log: Log) -> None:
        self.log, self._redis, self._keys = log, log.redis, log.keys

    async def add(self, fields: Fields, entry: EntryId | None = None) -> EntryId:
        added = await self._redis.xadd(self._keys.log, dict(fields), id=str(entry or "*"))
        return EntryId.parse(added)

    async def ask(self, fields: Fields) -> EntryId:
        return EntryId.parse(await self._redis.xadd(self._keys.asked, dict(fields)))

    async def delete(self, *entries: EntryId) -> None:
        await self._redis.xdel(self._keys.log, *map(str, entries))

    async def lose(self) -> None:
        await self._redis.delete(self._keys.log)

    async def rename(self, uuid: str) -> None:
        await self._redis.set(self._keys.uuid, uuid)

    async def letters(self) -> list[Fields]:
        return [fields for _, fields in await self._redis.xrange(self._keys.dead)]

    async def end_lease(self) -> None:
        await self._redis.delete(self._keys.lease)

    async def set_full(self, is_full: bool) -> None:
        await self._redis.config_set("maxmemory", int(is_full))

    async def set_read_only(self, is_read_only: bool) -> None:
        nowhere = ("127.0.0.1", "1") if is_read_only else ("NO", "ONE")
        await self._redis.execute_command("REPLICAOF", *nowhere)

    def client(self) -> Redis:
        return self._redis


class MemoryStore(Store):
    def __init__(self, server: MemoryServer) -> None:
        self.log, self._server = MemoryLog(server), server

    async def add(self, fields: Fields, entry: EntryId | None = None) -> EntryId:
        return self._server.add(fields, entry)

    async def ask(self, fields: Fields) -> EntryId:
        return self._server.ask(fields)

    async def delete(self, *entries: EntryId) -> None:
        self._server.delete(*entries)

    async def lose(self) -> None:
        self._server.lose()

    async def rename(self, uuid: str) -> None:
        self._server.uuid = uuid

    async def letters(self) -> list[Fields]:
        return self._server.dead

    async def end_lease(self) -> None:
        self._server.lease = None

    async def set_full(self, is_full: bool) -> None:
        self._server.is_full = is_full

    async def set_read_only(self, is_read_only: bool) -> None:
        self._server.is_read_only = is_read_only

    def client(self) -> Redis:
        return cast(Redis, MemoryRedis(self._server))


@asynccontextmanager
async def redis_log(url: str, model: str) -> AsyncIterator[Log]:
    """Connect to a log on a real server for a while."""
    log = RedisLog(connect(url), model)
    try:
        yield log
    finally:
        await log.close()


async def fill(store: Store, n: int) -> list[EntryId]:
    """Add entries that hold a single byte."""
    return [await store.add({b"batch": b"x"}) for _ in range(n)]
