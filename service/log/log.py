"""The log on Redis Streams: entries, cuts, dead letters, and whether it is still whole.

Keys carry the model's name in literal braces, so that a Redis Cluster keeps them in one slot:

- ``funnel:{model}:log``   entries, with a field ``batch`` (safetensors) or ``json``;
- ``funnel:{model}:cuts``  the learner's decisions; cut k has the id ``k-0``;
- ``funnel:{model}:dead``  entries that could not be decoded, with ``entry`` and ``reason``, and
  batches that were left out, with their ``version``, ``begin``, ``end``, ``examples``, ``reason``;
- ``funnel:{model}:aside`` the version of the last of those batches;
- ``funnel:{model}:uuid``  made with the log, gone with it;
- ``funnel:{model}:epoch`` counts the learners; only the newest may append cuts;
- ``funnel:{model}:lease`` says who is the learner, for some seconds (see `service.log.lease`);
- ``funnel:{model}:key:…`` one for each Idempotency-Key of the last hour.
"""

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from service.log.entries import Cut, Dead
from service.log.position import ORIGIN, EntryId, Position
from service.log.scripts import (
    APPEND_CUTS,
    COUNT,
    DESCRIBE,
    NAME,
    NOTE_FROM,
    PUT_ASIDE,
    READ,
    TAKE_EPOCH,
)

DEAD_KEPT = 10_000
"""Dead letters kept, about."""
DEAD_BYTES = 4_096
"""Of the fields of a dead entry, what its letter keeps of them."""
SOCKET_SECONDS = 15.0
"""Time-out of the connection; longer than any BLOCK."""
CUTS_A_READ = 1_000
COUNTED_AT_ONCE = 1_024
"""Entries in a step of `Log.behind`; nothing else is served meanwhile."""


class LogError(RuntimeError):
    """The log cannot be used as it is; the message says why and what to do."""


class GapError(LogError):
    """The log does not reach back to where the model is."""

    ADVICE = (
        "Entries that were acknowledged are missing; to go on without them, start once with "
        "--accept-gap"
    )

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what}. {self.ADVICE}")


class BlankError(GapError):
    """There is no model yet, and the log no longer holds what one was learned from.

    Args:
        cut: the last that was recorded.
    """

    ADVICE = (
        "Is DATA_DIR mounted, and the one that it was? Put its checkpoints back, or those of a "
        "backup; --accept-gap would begin with an empty model"
    )

    def __init__(self, cut: int) -> None:
        super().__init__(
            f"there is no checkpoint, but the log was learned up to cut {cut}, and trimmed"
        )


class FencedError(LogError):
    """Another learner has taken the log over."""


@dataclass(frozen=True)
class Keys:
    """Names of a model's keys."""

    model: str

    def __getattr__(self, name: str) -> str:
        return f"funnel:{{{self.model}}}:{name}"


@dataclass(frozen=True)
class Extent:
    """How far the log reaches."""

    uuid: str | None
    length: int
    added: int
    """Entries ever added."""
    last: EntryId
    """The highest id ever given."""
    first: EntryId | None
    """Id of the oldest entry that is still there."""


def connect(url: str) -> Redis:
    """Return a client that never repeats a command by itself.

    redis-py would send an XADD whose reply got lost once more, and make two entries of one.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, with user and password if need be.
    """
    return Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        socket_timeout=SOCKET_SECONDS,
        socket_connect_timeout=5,
        health_check_interval=0,
        client_name="funnel",
        protocol=2,
    )


class Log:
    """One model's log, as its learner sees it.

    Args:
        redis: a client from `connect`.
        model: the model's name.
    """

    def __init__(self, redis: Redis, model: str) -> None:
        self.redis, self.keys = redis, Keys(model)

    async def name(self) -> str:
        """Return the log's uuid, giving it one if it has none."""
        found: bytes = await self.redis.eval(NAME, 1, self.keys.uuid, uuid.uuid4().hex)
        return found.decode()

    async def extent(self) -> Extent:
        """Ask how far the log reaches.

        Raises:
            GapError: something else has taken its key.
        """
        kind, name, *rest = await self.redis.eval(DESCRIBE, 2, self.keys.log, self.keys.uuid)
        name = name.decode() if name else None
        if kind == b"none":
            return Extent(name, 0, 0, ORIGIN, None)
        if kind != b"stream":
            raise GapError(f"the key {self.keys.log} holds a {kind.decode()}, not a stream")
        length, last, added, first = rest
        return Extent(
            name, length, added, EntryId.parse(last), EntryId.parse(first) if first else None
        )

    async def take_epoch(self, at_least: int) -> int:
        """Become the one learner of this log; every earlier one is fenced off."""
        return int(await self.redis.eval(TAKE_EPOCH, 1, self.keys.epoch, at_least))

    async def read(
        self, after: EntryId, count: int, size: int, block_ms: int | None
    ) -> list[tuple[EntryId, dict[bytes, bytes]]]:
        """Return entries behind ``after``; waits for the first if told to.

        Args:
            after: an id.
            count: most entries.
            size: most bytes; the last entry may go beyond.
            block_ms: longest wait, in milliseconds.
        """
        first = []
        if block_ms is not None:
            came: Any = await self.redis.xread({self.keys.log: str(after)}, count=1, block=block_ms)
            if not came:
                return []
            first = _entries(came[0][1])
            after, count = first[0][0], count - 1
            size -= sum(map(len, first[0][1].values()))
        found = await self.redis.eval(READ, 1, self.keys.log, str(after), count, size)
        return first + [
            (EntryId.parse(i), dict(zip(fields[::2], fields[1::2], strict=True)))
            for i, fields in found
        ]

    async def read_one(self, entry: EntryId) -> tuple[EntryId, dict[bytes, bytes]] | None:
        """Return one entry, or None if it is gone."""
        found = _entries(await self.redis.xrange(self.keys.log, str(entry), str(entry)))
        return found[0] if found else None

    async def behind(
        self, position: Position, last: EntryId, may_go_on: Callable[[], Awaitable[bool]]
    ) -> int:
        """Return how many entries there are from a position on, up to an id.

        Raises:
            FencedError: it may not go on.
        """
        found, after = 0, str(position.entry)
        if position.taken is not None and await self.read_one(position.entry) is not None:
            found = 1
        while True:
            if not await may_go_on():
                raise FencedError("told to stop")
            n, after = await self.redis.eval(
                COUNT, 1, self.keys.log, after, str(last), COUNTED_AT_ONCE
            )
            found += int(n)
            if n < COUNTED_AT_ONCE:
                return found

    async def append_cuts(self, epoch: int, first: int, cuts: Sequence[Cut]) -> None:
        """Record cuts ``first``, ``first`` + 1, … in order.

        Raises:
            FencedError: the epoch is over.
        """
        rows = [
            [f"{number}-0", _cut_to_json(cut), [[str(d.entry), d.reason] for d in cut.dead]]
            for number, cut in enumerate(cuts, first)
        ]
        keys = (self.keys.epoch, self.keys.cuts, self.keys.dead, self.keys.log)
        try:
            await self.redis.eval(
                APPEND_CUTS, len(keys), *keys, epoch, DEAD_KEPT, DEAD_BYTES, orjson.dumps(rows)
            )
        except ResponseError as error:
            if "FENCED" in str(error):
                raise FencedError(
                    f"another learner has taken over this log ({error}; mine is {epoch})"
                ) from error
            raise

    async def put_aside(self, batches: Sequence[Sequence[str]]) -> None:
        """Write down the ranges of batches that were left out, each one once.

        Args:
            batches: version, begin, end, number of examples and reason of each, in order.
        """
        await self.redis.eval(
            PUT_ASIDE, 2, self.keys.dead, self.keys.aside, DEAD_KEPT, orjson.dumps(batches)
        )

    async def note_from(self, version: int) -> None:
        """Let `put_aside` write down what comes after a version, if it has been beyond."""
        await self.redis.eval(NOTE_FROM, 1, self.keys.aside, version)

    async def cuts_after(self, number: int) -> list[tuple[int, Cut]]:
        """Return the next recorded cuts behind cut ``number``, some at a time."""
        found = await self.redis.xrange(self.keys.cuts, f"({number}-0", "+", count=CUTS_A_READ)
        return [(i.milliseconds, _cut_from_json(fields[b"cut"])) for i, fields in _entries(found)]

    async def first_cut(self) -> int:
        """Return the number of the oldest cut that is still recorded, 0 if there is none."""
        found = _entries(await self.redis.xrange(self.keys.cuts, count=1))
        return found[0][0].milliseconds if found else 0

    async def last_cut(self) -> int:
        """Return the number of the newest recorded cut, 0 if there is none."""
        found = _entries(await self.redis.xrevrange(self.keys.cuts, count=1))
        return found[0][0].milliseconds if found else 0

    async def trim(self, position: Position, cut: int) -> None:
        """Forget what lies before a position and before a cut; both themselves stay."""
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.xtrim(self.keys.log, minid=str(position.entry), approximate=False)
            pipe.xtrim(self.keys.cuts, minid=f"{cut}-0", approximate=False)
            await pipe.execute()

    async def retire(self) -> None:
        """Set the present log aside and begin a new one."""
        mark = uuid.uuid4().hex[:8]
        for key in (self.keys.log, self.keys.cuts):
            if await self.redis.exists(key):
                await self.redis.rename(key, f"{key}:retired:{mark}")
        await self.redis.delete(self.keys.uuid, self.keys.aside)


def _entries(found: Any) -> list[tuple[EntryId, dict[bytes, bytes]]]:
    return [(EntryId.parse(i), fields or {}) for i, fields in found]


def _cut_to_json(cut: Cut) -> str:
    return orjson.dumps(
        {
            "position": str(cut.position),
            "examples": cut.examples,
            "entries": cut.entries,
            "dead": [str(d.entry) for d in cut.dead],
            "command": cut.command,
            "sources": dict(cut.sources),
        }
    ).decode()


def _cut_from_json(raw: bytes) -> Cut:
    found = orjson.loads(raw)
    return Cut(
        Position.parse(found["position"]),
        found["examples"],
        found["entries"],
        tuple(Dead(EntryId.parse(d), "") for d in found["dead"]),
        found["command"],
        found["sources"],
    )
