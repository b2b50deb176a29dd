"""The log on a real server: cuts are fenced, and what is missing is noticed."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import chain

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from service.log import log as logs
from service.log.entries import Cut, Dead
from service.log.extent import check_reach
from service.log.log import (
    COUNTED_AT_ONCE,
    DEAD_BYTES,
    SOCKET_SECONDS,
    FencedError,
    GapError,
    Log,
    LogError,
    connect,
)
from service.log.position import ORIGIN, TOP, EntryId, Position
from service.log.server import check_server
from service.trainer.pipeline import BLOCK_MS
from tests.support.harness import RedisProcess
from tests.support.losing import losing_answers


def with_log(server: RedisProcess, model: str, use: Callable[[Log], Awaitable[None]]) -> None:
    async def run() -> None:
        redis = connect(server.url)
        try:
            await use(Log(redis, model))
        finally:
            await redis.aclose()

    asyncio.run(run())


async def fill(log: Log, n: int) -> list[EntryId]:
    return [EntryId.parse(await log.redis.xadd(log.keys.log, {"batch": b"x"})) for _ in range(n)]


def test_keys_share_one_cluster_slot_by_their_braces(server: RedisProcess, model: str) -> None:
    async def use(log: Log) -> None:
        assert log.keys.log == f"funnel:{{{model}}}:log"
        assert log.keys.cuts == f"funnel:{{{model}}}:cuts"
        assert log.keys.dead == f"funnel:{{{model}}}:dead"

    with_log(server, model, use)


def test_cuts_come_back_as_they_were_recorded(server: RedisProcess, model: str) -> None:
    cuts = [
        Cut(Position(EntryId(5, 0), 3), 10, 4, (Dead(EntryId(4, 0), ""),), "", {"http": 10}),
        Cut(Position(EntryId(6, 0)), 0, 6, command='{"rates": {}}'),
    ]

    async def use(log: Log) -> None:
        await fill(log, 1)
        epoch = await log.take_epoch(0)
        await log.append_cuts(epoch, 1, cuts)
        assert await log.cuts_after(0) == list(enumerate(cuts, 1))
        assert await log.cuts_after(1) == [(2, cuts[1])]
        assert await log.last_cut() == 2

    with_log(server, model, use)


def test_a_learner_of_an_older_epoch_writes_nothing(server: RedisProcess, model: str) -> None:
    async def use(log: Log) -> None:
        old = await log.take_epoch(0)
        new = await log.take_epoch(0)
        assert new == old + 1
        with pytest.raises(FencedError, match=str(new)):
            await log.append_cuts(old, 1, [Cut(Position(ORIGIN))])
        assert await log.last_cut() == 0
        await log.append_cuts(new, 1, [Cut(Position(ORIGIN))])
        assert await log.take_epoch(50) == 51

    with_log(server, model, use)


def test_a_cut_is_recorded_once(server: RedisProcess, model: str) -> None:
    async def use(log: Log) -> None:
        epoch = await log.take_epoch(0)
        await log.append_cuts(epoch, 1, [Cut(Position(ORIGIN))])
        with pytest.raises(ResponseError, match="equal or smaller"):
            await log.append_cuts(epoch, 1, [Cut(Position(ORIGIN))])

    with_log(server, model, use)


def test_a_dead_entry_is_kept_with_its_reason(server: RedisProcess, model: str) -> None:
    async def use(log: Log) -> None:
        [entry] = await fill(log, 1)
        epoch = await log.take_epoch(0)
        await log.append_cuts(epoch, 1, [Cut(Position(entry), 0, 1, (Dead(entry, "why"),))])
        [(_, letter)] = await log.redis.xrange(log.keys.dead)
        assert letter == {b"entry": str(entry).encode(), b"reason": b"why", b"batch": b"x"}

    with_log(server, model, use)


async def reach(log: Log, uuid: str, position: Position, entries: int) -> None:
    check_reach(await log.extent(), uuid, position, entries)


def test_a_whole_log_is_accepted_wherever_the_model_is(server: RedisProcess, model: str) -> None:
    async def use(log: Log) -> None:
        uuid = await log.name()
        await reach(log, uuid, Position(ORIGIN), 0)
        entries = await fill(log, 5)
        for k, entry in enumerate(entries):
            await reach(log, uuid, Position(entry, 1), k)
            await reach(log, uuid, Position(entry), k + 1)
        await log.trim(Position(entries[2]), 0)
        await reach(log, uuid, Position(entries[2], 1), 2)
        await reach(log, uuid, Position(entries[4]), 5)

    with_log(server, model, use)


Damage = Callable[[Log, list[EntryId]], Awaitable[object]]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "flushed": (lambda log, _: log.redis.flushdb(), "another log"),
    "deleted": (lambda log, _: log.redis.delete(log.keys.log), "ends at 0-0"),
    "another server": (lambda log, _: log.redis.set(log.keys.uuid, "else"), "another log"),
    "trimmed by a producer": (
        lambda log, _: log.redis.xadd(log.keys.log, {"batch": b"x"}, maxlen=1, approximate=False),
        "2 entries behind",
    ),
    "entries deleted": (
        lambda log, entries: log.redis.xdel(log.keys.log, *map(str, entries[:4])),
        "gone",
    ),
    "another type": (
        lambda log, _: log.redis.pipeline().delete(log.keys.log).set(log.keys.log, "x").execute(),
        "holds a string",
    ),
    "full by its highest id": (
        lambda log, _: log.redis.xadd(log.keys.log, {"batch": b"x"}, id=str(TOP)),
        "full",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_log_that_lost_entries_is_refused(server: RedisProcess, model: str, damage: str) -> None:
    cause, message = DAMAGES[damage]

    async def use(log: Log) -> None:
        uuid, entries = await log.name(), await fill(log, 5)
        at = Position(entries[2])
        await reach(log, uuid, at, 3)
        await cause(log, entries)
        with pytest.raises(GapError, match=message):
            await reach(log, uuid, at, 3)

    with_log(server, model, use)


def test_an_entry_learned_in_part_must_still_be_there(server: RedisProcess, model: str) -> None:
    async def use(log: Log) -> None:
        uuid, entries = await log.name(), await fill(log, 3)
        await log.redis.xdel(log.keys.log, str(entries[0]), str(entries[1]))
        await reach(log, uuid, Position(entries[1]), 2)
        with pytest.raises(GapError, match="in part"):
            await reach(log, uuid, Position(entries[1], 4), 1)

    with_log(server, model, use)


def test_a_server_that_evicts_is_refused_and_one_that_forgets_is_named(
    server: RedisProcess, model: str
) -> None:
    async def use(log: Log) -> None:
        redis: Redis = log.redis
        assert await check_server(redis) == []
        try:
            await redis.config_set("appendfsync", "everysec")
            assert "power cut" in (await check_server(redis))[0]
            await redis.config_set("maxmemory-policy", "volatile-lru")
            assert "Idempotency-Keys" in (await check_server(redis))[0]
            await redis.execute_command(
                "ACL", "SETUSER", "guest", "on", ">secret", "~*", "+@all", "-config"
            )
            guest = connect(server.url.replace("://", "://guest:secret@"))
            shy, evicts = await check_server(guest)
            await guest.aclose()
            assert "does not show its configuration" in shy
            assert "Idempotency-Keys" in evicts
            await redis.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(LogError, match="noeviction"):
                await check_server(redis)
        finally:
            await redis.config_set("maxmemory-policy", "noeviction")
            await redis.config_set("appendfsync", "always")

    with_log(server, model, use)


@pytest.mark.parametrize("block_ms", [None, 1])
def test_a_read_is_bounded_in_bytes_whatever_came_before(
    server: RedisProcess, model: str, block_ms: int | None
) -> None:
    async def use(log: Log) -> None:
        sizes = [10] * 3 + [1 << 20] * 9 + [10] * 3
        for size in sizes:
            await log.redis.xadd(log.keys.log, {"batch": bytes(size), "source": "http"})
        after, found = ORIGIN, []
        while entries := await log.read(after, 100, 4 << 20, block_ms):
            found.append([len(fields[b"batch"]) for _, fields in entries])
            after = entries[-1][0]
        assert list(map(len, found)) == [7, 4, 4]
        assert list(chain.from_iterable(found)) == sizes
        assert len(await log.read(ORIGIN, 2, 4 << 20, 1)) == 2
        assert await log.read(after, 100, 4 << 20, 1) == []

    with_log(server, model, use)


def test_a_dead_letter_keeps_little_of_a_large_entry(server: RedisProcess, model: str) -> None:
    async def use(log: Log) -> None:
        entries = [
            await log.redis.xadd(log.keys.log, {"note": "by hand", "batch": bytes(1 << 20)}),
            await log.redis.xadd(log.keys.log, {f"field {k}": "x" * 100 for k in range(5_000)}),
            await log.redis.execute_command("XADD", log.keys.log, "*", *["", ""] * 4_500),
        ]
        dead = tuple(Dead(EntryId.parse(entry), "poison") for entry in entries)
        epoch = await log.take_epoch(0)
        await log.append_cuts(epoch, 1, [Cut(Position(dead[-1].entry), 0, 3, dead)])
        letters = [fields for _, fields in await log.redis.xrange(log.keys.dead)]
        assert [letter[b"entry"] for letter in letters] == entries
        assert letters[0][b"note"] == b"by hand"
        for letter in letters:
            assert sum(map(len, (*letter.keys(), *letter.values()))) < DEAD_BYTES + 100

    with_log(server, model, use)


def test_dead_letters_are_bounded_in_number(
    server: RedisProcess, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "DEAD_KEPT", 100)

    async def use(log: Log) -> None:
        [entry] = await fill(log, 1)
        epoch = await log.take_epoch(0)
        await log.append_cuts(epoch, 1, [Cut(Position(entry), 0, 1, (Dead(entry, "why"),) * 1000)])
        assert 100 <= await log.redis.xlen(log.keys.dead) < 300
        await log.put_aside([[str(k), "0-0", "0-0", "1", "why"] for k in range(1, 1001)])
        assert 100 <= await log.redis.xlen(log.keys.dead) < 300

    with_log(server, model, use)


def test_in_a_new_log_versions_begin_anew(server: RedisProcess, model: str) -> None:
    async def use(log: Log) -> None:
        await log.put_aside([["7", "0-0", "1-0", "20", "why"]])
        await log.retire()
        await log.put_aside([["1", "0-0", "1-0", "20", "why"]])
        assert [n[b"version"] for _, n in await log.redis.xrange(log.keys.dead)] == [b"7", b"1"]

    with_log(server, model, use)


def test_a_command_whose_answer_is_lost_is_not_sent_again(server: RedisProcess, model: str) -> None:
    async def run(url: str) -> None:
        redis = connect(url)
        with pytest.raises((RedisError, OSError)):
            await redis.xadd(model, {"batch": b"x"})
        await redis.aclose()

    with losing_answers(server.port) as url:
        asyncio.run(run(url))
    with server.client() as direct:
        assert direct.xlen(model) == 1


def test_no_read_waits_longer_than_the_connection() -> None:
    assert SOCKET_SECONDS > 2 * BLOCK_MS / 1000


def test_entries_behind_a_position_are_counted(server: RedisProcess, model: str) -> None:
    async def use(log: Log) -> None:
        entries = await fill(log, 50)
        await log.redis.xdel(log.keys.log, str(entries[30]))

        async def behind(position: Position, last: EntryId) -> int:
            async def may_go_on() -> bool:
                asked.append(True)
                return True

            return await log.behind(position, last, may_go_on)

        async def may_not() -> bool:
            return False

        asked: list[bool] = []
        assert await behind(Position(ORIGIN), entries[-1]) == 49
        assert await behind(Position(entries[9]), entries[-1]) == 39
        assert await behind(Position(entries[9], 1), entries[-1]) == 40
        assert await behind(Position(entries[9]), entries[20]) == 11
        assert await behind(Position(entries[30], 1), entries[-1]) == 19
        asked.clear()
        await fill(log, 3 * COUNTED_AT_ONCE)
        assert await behind(Position(ORIGIN), TOP) == 49 + 3 * COUNTED_AT_ONCE
        assert len(asked) == 4
        with pytest.raises(FencedError):
            await log.behind(Position(ORIGIN), TOP, may_not)

    with_log(server, model, use)


def test_where_a_model_goes_back_to_batches_left_out_are_noted_again(
    server: RedisProcess, model: str
) -> None:
    async def use(log: Log) -> None:
        for version, back in ((7, 9), (7, 2), (2, 2), (3, 3)):
            await log.put_aside([[str(version), "0-0", "1-0", "20", "why"]])
            await log.note_from(back)
        noted = [n[b"version"] for _, n in await log.redis.xrange(log.keys.dead)]
        assert noted == [b"7", b"3"]

    with_log(server, model, use)
