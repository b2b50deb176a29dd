"""One model's log as its trainer sees it, on Redis Streams.

`service.log.keys` lists the streams.
"""

import uuid
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.log import scripts
from service.log.cuts import Cut, checksum, read_cut
from service.log.entries import Fields, RawEntry
from service.log.errors import (
    CutError,
    DamagedCutError,
    FencedError,
    ForeignError,
    LogUnavailable,
    damaged,
)
from service.log.extent import Extent
from service.log.keys import Inputs, Keys
from service.log.position import ORIGIN, EntryId, Position
from service.log.questions import Asked
from service.log.server import check_server

KNOWN_INPUTS = tuple(
    inputs + end for inputs in (Inputs.FEATURES, Inputs.ROWS) for end in ("", Inputs.OF_NUMBERS)
)
DEAD_KEPT = 10_000
"""Number of dead letters that are kept, approximately."""
DEAD_BYTES = 4_096
"""Bytes of a dead entry's fields that its letter keeps."""
CUTS_A_READ = 1_000
DIGITS = 15
"""Most digits of a number that a key holds; Lua's numbers are exact so far."""
ASKED_AT_ONCE, ASKED_BYTES = 1_000, 8 << 20
"""Entries of questions, and bytes of them, that the server looks through in one go."""
COUNTED_AT_ONCE = 1_024
"""Entries that one `Log.count_after` counts; the server answers no other client meanwhile."""


class Heard(NamedTuple):
    """The knowledge of a process that only takes examples about its log."""

    learner: str
    """The identity that the last learner published; empty before the first."""
    schema: str
    """The schema of rows, as JSON; empty without."""
    is_led: bool
    """True while a process holds the lease."""
    cut: tuple[int, Cut] | None
    """The newest recorded cut, and its number; None before the first."""


class Recording(Protocol):
    """One model's log, as replay sees it.

    Every method raises `LogUnavailable` if the log cannot be reached.
    """

    keys: Keys

    async def read(
        self, after: EntryId, count: int, size: int, block_ms: int | None
    ) -> list[RawEntry]:
        """Return the next entries after an id.

        Args:
            after: an id.
            count: most entries.
            size: most bytes; the last entry may exceed them.
            block_ms: longest wait for the first entry, in milliseconds; None does not wait.
        """

    async def read_one(self, entry: EntryId) -> RawEntry | None:
        """Return one entry, or None if it is gone."""

    async def questions(self, entries: Sequence[EntryId]) -> list[Fields]:
        """Return the fields of some entries of questions; none of an entry that is gone."""

    async def cuts_after(self, number: int) -> list[tuple[int, Cut]]:
        """Return the next recorded cuts after cut ``number``, at most some hundreds.

        Raises:
            ForeignError: one of the records is no cut.
            LogError: one is damaged, or this version does not know its command.
        """


class Log(Recording, Protocol):
    """One model's log, as its trainer sees it.

    Every method raises `LogUnavailable` if the log cannot be reached or does not confirm.
    """

    async def extent(self) -> Extent:
        """Return how far the log reaches; give it a uuid if it has none.

        Raises:
            GapError: its key holds something else.
        """

    async def take_epoch(self, at_least: int) -> int:
        """Return a new epoch above ``at_least``; every trainer of an earlier one is fenced off."""

    async def claim(self, inputs: str) -> str:
        """Claim the log for dense features or rows, unless that was done before.

        Args:
            inputs: one of KNOWN_INPUTS; or nothing, to ask.

        Returns:
            What the log is claimed for; nothing if it is for neither.
        """

    async def count_after(self, after: EntryId, last: EntryId) -> tuple[int, EntryId]:
        """Count entries after an id up to another; return the id of the last one counted, too.

        It counts at most COUNTED_AT_ONCE: if that is the count, call again from the returned id.
        """

    async def asked_after(self, after: EntryId) -> list[Asked]:
        """Return the next entries of questions after an id, at most some hundreds."""

    async def raise_asked(self, entry: EntryId) -> None:
        """Let the ids of later questions be higher than one, if they are not anyway."""

    async def append_cuts(
        self, epoch: int, first: int, cuts: Sequence[Cut], schema: str = ""
    ) -> None:
        """Record cuts ``first``, ``first`` + 1, … in order, all or none.

        Args:
            epoch: of the caller.
            first: number of the first cut.
            cuts: to record.
            schema: of rows after them, as JSON, if they change it: it is kept for all processes.

        Raises:
            FencedError: another trainer has taken a later epoch.
        """

    async def record_skipped(self, batches: Sequence[Sequence[str]]) -> None:
        """Record the ranges of skipped batches, each of them once.

        Args:
            batches: version, begin, end, number of examples and reason of each, in order.
        """

    async def forget_skipped(self, version: int) -> None:
        """Let `record_skipped` record batches after a version, whatever it recorded before."""

    async def cut_range(self) -> tuple[int, int]:
        """Return the number of the oldest cut that is still there, and the highest ever recorded.

        Each is 0 if there is none.
        """

    async def trim(self, position: Position, cut: int, asked: EntryId = ORIGIN) -> None:
        """Remove entries before a position, cuts before a cut and questions before an entry of
        theirs; these themselves stay.

        A log that ends before the position has lost its end: all its entries stay.
        """

    async def archive(self) -> None:
        """Rename the present streams, and begin new ones."""

    async def take_lease(
        self, holder: str, milliseconds: int, lock: str, identity: str = ""
    ) -> int:
        """Take or renew the lease (see `service.log.lease`).

        Args:
            holder: unique name of the caller.
            milliseconds: how long the lease lasts from now on.
            lock: name of the lock that the caller holds, or empty: a lease taken with the same
                lock is inherited.
            identity: what the caller publishes of itself; kept when it takes the lease.

        Returns:
            0 if another process holds the lease, 1 if the caller holds it from now on, 2 if it
            held it before.
        """

    async def release_lease(self, holder: str) -> None:
        """Give the lease up, if it is the caller's."""

    async def learner(self) -> str:
        """Return what the holder of the lease published of itself; nothing without a holder."""

    async def check_server(self) -> list[str]:
        """Return warnings about the durability of the server.

        Raises:
            LogError: it is too old, or evicts streams when its memory is full.
            ForeignError: a key holds what another program wrote.
        """

    async def close(self) -> None:
        """Close the connection."""


class RedisLog(Log):
    """A log on Redis Streams.

    Args:
        redis: a client from `service.log.server.connect`, which `close` closes.
        model: the model's name.
    """

    def __init__(self, redis: Redis, model: str) -> None:
        self.redis, self.keys = redis, Keys(model)

    async def extent(self) -> Extent:
        keys = [self.keys.log, self.keys.uuid, self.keys.asked]
        return Extent.of(await self._eval(scripts.DESCRIBE, keys, uuid.uuid4().hex), keys[0])

    async def take_epoch(self, at_least: int) -> int:
        return int(await self._eval(scripts.TAKE_EPOCH, [self.keys.epoch], at_least))

    async def claim(self, inputs: str) -> str:
        keys = [self.keys.inputs, self.keys.log]
        found: bytes = await self._eval(scripts.CLAIM_INPUTS, keys, inputs)
        return found.decode(errors="replace")

    async def read(
        self, after: EntryId, count: int, size: int, block_ms: int | None
    ) -> list[RawEntry]:
        first = []
        if block_ms is not None:
            wait = self.redis.xread({self.keys.log: str(after)}, count=1, block=block_ms)
            if not (streams := await _reply(wait)):
                return []
            first = _entries(streams[0][1])
            after, count = first[0][0], count - 1
            size -= sum(map(len, first[0][1].values()))
        found = await self._eval(scripts.READ, [self.keys.log], str(after), count, size)
        return first + [
            (EntryId.parse(i), dict(zip(fields[::2], fields[1::2], strict=True)))
            for i, fields in found
        ]

    async def read_one(self, entry: EntryId) -> RawEntry | None:
        found = await _reply(self.redis.xrange(self.keys.log, str(entry), str(entry)))
        return _entries(found)[0] if found else None

    async def count_after(self, after: EntryId, last: EntryId) -> tuple[int, EntryId]:
        count, newest = await self._eval(
            scripts.COUNT, [self.keys.log], str(after), str(last), COUNTED_AT_ONCE
        )
        return int(count), EntryId.parse(newest)

    async def asked_after(self, after: EntryId) -> list[Asked]:
        arguments = (str(after), ASKED_AT_ONCE, ASKED_BYTES)
        found = await self._eval(scripts.ASKED, [self.keys.asked], *arguments)
        return [Asked(EntryId.parse(entry), hashes, size) for entry, hashes, size in found]

    async def questions(self, entries: Sequence[EntryId]) -> list[Fields]:
        found: list[Fields] = []
        while len(found) < len(entries):
            ids = map(str, entries[len(found) : len(found) + ASKED_AT_ONCE])
            raw = await self._eval(scripts.FETCH, [self.keys.asked], ASKED_BYTES, *ids)
            found += [dict(zip(own[::2], own[1::2], strict=True)) for own in raw]
        return found

    async def raise_asked(self, entry: EntryId) -> None:
        await self._eval(scripts.RAISE_ASKED, [self.keys.asked], str(entry))

    async def append_cuts(
        self, epoch: int, first: int, cuts: Sequence[Cut], schema: str = ""
    ) -> None:
        rows = [
            [f"{number}-0", text, [(str(e), why) for e, why in cut.dead.items()], checksum(text)]
            for number, cut in enumerate(cuts, first)
            for text in [cut.to_json()]
        ]
        own = self.keys
        keys = [own.epoch, own.cuts, own.dead, own.log, own.schema]
        arguments = (epoch, DEAD_KEPT, DEAD_BYTES, orjson.dumps(rows), schema)
        if theirs := await self._eval(scripts.APPEND_CUTS, keys, *arguments):
            raise FencedError(
                "another trainer has taken over this log "
                f"(FENCED epoch {theirs.decode()}; mine is {epoch})"
            )

    async def record_skipped(self, batches: Sequence[Sequence[str]]) -> None:
        keys = [self.keys.dead, self.keys.aside]
        await self._eval(scripts.RECORD_SKIPPED, keys, DEAD_KEPT, orjson.dumps(batches), "")

    async def forget_skipped(self, version: int) -> None:
        keys = [self.keys.dead, self.keys.aside]
        await self._eval(scripts.RECORD_SKIPPED, keys, DEAD_KEPT, b"[]", version)

    async def cuts_after(self, number: int) -> list[tuple[int, Cut]]:
        after = f"({number}-0"
        found = await _reply(self.redis.xrange(self.keys.cuts, after, "+", count=CUTS_A_READ))
        cuts = []
        for entry, fields in _entries(found):
            try:
                if entry.sequence:
                    raise CutError("its id does not end with -0")
                cuts.append((entry.milliseconds, read_cut(entry.milliseconds, fields)))
            except DamagedCutError as error:
                raise damaged(f"cut {entry}: {error}", self.keys.log, self.keys.cuts) from error
            except CutError as error:
                raise await self._foreign_cut(entry, error) from error
        return cuts

    async def heard(self) -> Heard:
        """Return what a process that only takes examples has to know of the log.

        Raises:
            LogUnavailable: the log cannot be reached.
            CutError: the newest cut cannot be read.
        """
        keys = [self.keys.lease, self.keys.learner, self.keys.schema]
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.mget(keys)
            pipe.xrevrange(self.keys.cuts, count=1)
            (lease, learner, schema), found = await _reply(pipe.execute())
        cut = None
        for entry, fields in _entries(found):
            cut = entry.milliseconds, read_cut(entry.milliseconds, fields)
        identity = (learner or b"").partition(b" ")[2].decode(errors="replace")
        return Heard(identity, (schema or b"").decode(errors="replace"), bool(lease), cut)

    async def _foreign_cut(self, entry: EntryId, error: CutError) -> ForeignError:
        """Return the error of a record that is no cut, with a way to get rid of it."""
        key = self.keys.cuts
        later = await _reply(self.redis.xrange(key, f"({entry}", "+", count=1))
        removal = f"XDEL '{key}' {entry}" if later else drop_from(key, entry)
        return ForeignError(
            f"record {entry} of {key} cannot be read as a cut: {error}. If another program wrote "
            f"it, remove it: redis-cli {removal}   Otherwise restore the log from its backup"
        )

    async def cut_range(self) -> tuple[int, int]:
        oldest = _entries(await _reply(self.redis.xrange(self.keys.cuts, count=1)))
        last = EntryId.parse(await self._eval(scripts.LAST_ID, [self.keys.cuts]))
        return (oldest[0][0].milliseconds if oldest else 0), last.milliseconds

    async def trim(self, position: Position, cut: int, asked: EntryId = ORIGIN) -> None:
        keys = [self.keys.log, self.keys.cuts, self.keys.asked]
        await self._eval(scripts.TRIM, keys, str(position.entry), f"{cut}-0", str(asked))

    async def archive(self) -> None:
        mark = uuid.uuid4().hex[:8]
        for key in (self.keys.log, self.keys.cuts):
            if await _reply(self.redis.exists(key)):
                await _reply(self.redis.rename(key, f"{key}:retired:{mark}"))
        await _reply(self.redis.delete(self.keys.uuid, self.keys.aside))

    async def take_lease(
        self, holder: str, milliseconds: int, lock: str, identity: str = ""
    ) -> int:
        keys = [self.keys.lease, self.keys.learner]
        arguments = (holder, milliseconds, lock, identity)
        return int(await self._eval(scripts.TAKE_LEASE, keys, *arguments))

    async def release_lease(self, holder: str) -> None:
        keys = [self.keys.lease, self.keys.learner]
        await self._eval(scripts.TAKE_LEASE, keys, holder, 0, "", "")

    async def learner(self) -> str:
        keys = [self.keys.lease, self.keys.learner]
        held, published = await _reply(self.redis.mget(keys))
        holder, _, identity = (published or b"").partition(b" ")
        return identity.decode(errors="replace") if held and held.endswith(holder) else ""

    async def check_server(self) -> list[str]:
        warnings: list[str] = await _reply(check_server(self.redis))
        await self._check_keys()
        return warnings

    async def _check_keys(self) -> None:
        """Raise ForeignError if a key holds what no service writes there."""
        keys = self.keys
        streams = (keys.log, keys.asked, keys.cuts, keys.dead, keys.newest)
        numbers = (keys.aside, keys.epoch)
        strings = (*numbers, keys.uuid, keys.lease, keys.inputs, keys.learner)
        expected = dict.fromkeys(streams, "stream") | dict.fromkeys(strings, "string")
        expected[keys.sources] = "hash"
        async with self.redis.pipeline(transaction=False) as pipe:
            for key in expected:
                pipe.type(key)
            types = [kind.decode() for kind in await _reply(pipe.execute())]
            for (key, kind), found in zip(expected.items(), types, strict=True):
                if found not in (kind, "none"):
                    raise _foreign(key, f"a {found}", f"a {kind}")
            for key in strings:
                pipe.getrange(key, 0, 255)
            values = dict(zip(strings, await _reply(pipe.execute()), strict=True))
        for key in numbers:
            if values[key] and not (values[key].isdigit() and len(values[key]) <= DIGITS):
                raise _foreign(key, repr(values[key][:40]), "a number")
        if values[keys.inputs].decode(errors="replace") not in ("", *KNOWN_INPUTS):
            expected_inputs = " or ".join(KNOWN_INPUTS)
            raise _foreign(keys.inputs, repr(values[keys.inputs][:40]), expected_inputs)
        if not values[keys.uuid].isascii():
            raise _foreign(keys.uuid, repr(values[keys.uuid][:40]), "the name of the log")

    async def close(self) -> None:
        await self.redis.aclose()

    async def _eval(self, script: str, keys: list[str], *arguments: str | int | bytes) -> Any:
        return await _reply(self.redis.eval(script, len(keys), *keys, *arguments))


async def _reply(command: Awaitable[Any]) -> Any:
    """Return a reply of the server.

    Raises:
        LogUnavailable: there is none, or it is an error.
    """
    try:
        return await command
    except (RedisError, OSError) as error:
        raise LogUnavailable(f"the log cannot be reached: {error}") from error


def _foreign(key: str, found: str, expected: str) -> ForeignError:
    return ForeignError(
        f"the key {key} holds {found}, not {expected}: another program wrote it. Move it away: "
        f"redis-cli RENAME '{key}' '{key}:foreign'   If that was the log itself or its name, put "
        "back what it held, or start once with --accept-gap"
    )


def drop_from(key: str, entry: EntryId) -> str:
    """Return the command that drops a record of a stream and all after it, and their ids."""
    return f"EVAL \"{scripts.DROP_FROM}\" 1 '{key}' {entry}"


def _entries(found: Iterable[tuple[bytes, Fields | None]]) -> list[RawEntry]:
    return [(EntryId.parse(i), fields or {}) for i, fields in found]
