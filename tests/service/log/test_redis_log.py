"""The log on a real server: bytes, durability, and harm that others do to it."""

from collections.abc import Awaitable, Callable

import pytest
from redis.exceptions import RedisError

from service.log import log as logs
from service.log.cuts import Cut
from service.log.errors import GapError, LogError, LogUnavailable
from service.log.extent import check_reach
from service.log.log import Log
from service.log.position import EntryId, Position, Progress
from service.log.server import SOCKET_SECONDS, check_server, connect
from service.trainer.pipeline import BLOCK_MS
from tests.support.harness import RedisProcess
from tests.support.logs import RedisStore, fill, redis_log
from tests.support.losing import losing_answers

pytestmark = pytest.mark.anyio


async def test_the_bytes_of_a_cut_are_those_of_earlier_versions(
    server: RedisProcess, model: str
) -> None:
    cut = Cut(Position(EntryId(5, 0), 3), 10, 4, {EntryId(4, 0): "why"}, None, {"http": 10})
    async with redis_log(server.url, model) as log:
        await log.append_cuts(await log.take_epoch(0), 7, [cut])
        [(number, fields)] = await log.redis.xrange(log.keys.cuts)
    assert number == b"7-0"
    assert fields == {
        b"cut": b'{"position":"5-0+3","examples":10,"entries":4,"dead":["4-0"],"command":"",'
        b'"sources":{"http":10},"fold":1}'
    }


Harm = Callable[[Log], Awaitable[object]]
HARMS: dict[str, tuple[Harm, str]] = {
    "flushed": (lambda log: log.redis.flushdb(), "another log"),
    "another type": (
        lambda log: log.redis.pipeline().delete(log.keys.log).set(log.keys.log, "x").execute(),
        "holds a string",
    ),
    "trimmed by a producer": (
        lambda log: log.redis.xadd(log.keys.log, {"batch": b"x"}, maxlen=1, approximate=False),
        "2 entries after",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
async def test_a_log_that_others_harm_is_refused(
    server: RedisProcess, model: str, harm: str
) -> None:
    cause, message = HARMS[harm]
    async with redis_log(server.url, model) as log:
        uuid, entries = (await log.extent()).uuid, await fill(RedisStore(log), 5)
        await cause(log)
        with pytest.raises(GapError, match=message):
            check_reach(await log.extent(), Progress(uuid, 0, 0, Position(entries[2]), 3))


async def test_a_server_that_evicts_is_refused_and_one_that_forgets_is_named(
    server: RedisProcess, model: str
) -> None:
    async with redis_log(server.url, model) as log:
        redis = log.redis
        assert await log.check_server() == []
        try:
            await redis.config_set("appendfsync", "everysec")
            assert "power cut" in (await log.check_server())[0]
            await redis.config_set("maxmemory-policy", "volatile-lru")
            assert "Idempotency-Keys" in (await log.check_server())[0]
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
                await log.check_server()
        finally:
            await redis.config_set("maxmemory-policy", "noeviction")
            await redis.config_set("appendfsync", "always")


async def test_a_dead_letter_of_an_entry_with_repeated_fields_is_small(
    server: RedisProcess, model: str
) -> None:
    async with redis_log(server.url, model) as log:
        raw = await log.redis.execute_command("XADD", log.keys.log, "*", *["", ""] * 4_500)
        entry = EntryId.parse(raw)
        dead = Cut(Position(entry), 0, 1, {entry: "poison"})
        await log.append_cuts(await log.take_epoch(0), 1, [dead])
        [(_, letter)] = await log.redis.xrange(log.keys.dead)
        assert letter[b"entry"] == raw


async def test_dead_letters_are_bounded_in_number(
    server: RedisProcess, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "DEAD_KEPT", 100)
    async with redis_log(server.url, model) as log:
        [entry] = await fill(RedisStore(log), 1)
        many = Cut(Position(entry), 0, 1, {EntryId(1, k): "why" for k in range(1000)})
        await log.append_cuts(await log.take_epoch(0), 1, [many])
        assert 100 <= await log.redis.xlen(log.keys.dead) < 300
        await log.record_skipped([[str(k), "0-0", "0-0", "1", "why"] for k in range(1, 1001)])
        assert 100 <= await log.redis.xlen(log.keys.dead) < 300


async def test_a_command_whose_answer_is_lost_is_not_sent_again(
    server: RedisProcess, model: str
) -> None:
    with losing_answers(server.port) as url:
        redis = connect(url)
        with pytest.raises((RedisError, OSError)):
            await redis.xadd(model, {"batch": b"x"})
        await redis.aclose()
    with server.client() as direct:
        assert direct.xlen(model) == 1


async def test_a_server_that_is_gone_is_called_unavailable() -> None:
    async with redis_log("redis://127.0.0.1:1", "model") as log:
        with pytest.raises(LogUnavailable, match="cannot be reached"):
            await log.extent()


def test_no_read_waits_longer_than_the_connection() -> None:
    assert SOCKET_SECONDS > 2 * BLOCK_MS / 1000
