"""The log on a real server: bytes, durability, and harm that others do to it."""

import re
import shlex
from collections.abc import Awaitable, Callable
from zlib import crc32

import pytest
from redis.exceptions import RedisError

from service.log import log as logs
from service.log.cuts import Cut
from service.log.errors import ForeignError, GapError, LogError, LogUnavailable
from service.log.extent import check_reach
from service.log.log import Log
from service.log.position import EntryId, Position, Progress
from service.log.server import SOCKET_SECONDS, check_server, connect
from service.trainer.pipeline import BLOCK_MS
from tests.support.harness import RedisProcess
from tests.support.logs import RedisStore, fill, redis_log
from tests.support.losing import losing_answers
from tests.support.replicas import a_replica, keep_lease, learn
from tests.support.states import a_batch

pytestmark = pytest.mark.anyio


async def test_the_bytes_of_a_cut_are_those_of_earlier_versions(
    server: RedisProcess, model: str
) -> None:
    cut = Cut(Position(EntryId(5, 0), 3), 10, 4, {EntryId(4, 0): "why"}, None, {"http": 10})
    async with redis_log(server.url, model) as log:
        await log.append_cuts(await log.take_epoch(0), 7, [cut])
        [(number, fields)] = await log.redis.xrange(log.keys.cuts)
    assert number == b"7-0"
    text = (
        b'{"position":"5-0+3","examples":10,"entries":4,"dead":["4-0"],"command":"",'
        b'"sources":{"http":10},"fold":1}'
    )
    assert fields == {b"cut": text, b"crc32": b"%d" % crc32(text)}


CUT = Cut(Position(EntryId(5, 0)), 10, 4, {}, None, {"http": 10}).to_json().encode()


async def test_a_cut_of_an_earlier_version_has_no_checksum_and_is_read(
    server: RedisProcess, model: str
) -> None:
    async with redis_log(server.url, model) as log:
        await log.redis.xadd(log.keys.cuts, {"cut": CUT}, id="1-0")
        assert [cut.examples for _, cut in await log.cuts_after(0)] == [10]


async def test_no_flipped_bit_of_a_cut_is_read_as_another_decision(
    server: RedisProcess, model: str
) -> None:
    async with redis_log(server.url, model) as log:
        for bit in range(8 * len(CUT)):
            flipped = bytearray(CUT)
            flipped[bit // 8] ^= 1 << bit % 8
            await log.redis.delete(log.keys.cuts)
            fields = {"cut": bytes(flipped), "crc32": crc32(CUT)}
            await log.redis.xadd(log.keys.cuts, fields, id="1-0")
            with pytest.raises(LogError, match=r"damaged: cut 1-0: its CRC-32 does not match"):
                await log.cuts_after(0)


FOREIGN_CUTS: dict[str, tuple[dict[str, bytes], str]] = {
    "other fields": ({"user": b"7"}, "no field 'cut'"),
    "no JSON": ({"cut": b"hello"}, "Invalid JSON"),
    "not UTF-8": ({"cut": b"\xff\xfe"}, "Invalid JSON"),
    "a list": ({"cut": b"[1]"}, "object"),
    "no position": ({"cut": b"{}"}, "position"),
    "another type": ({"cut": CUT.replace(b"10,", b'"10",')}, "examples"),
    "an odd position": ({"cut": CUT.replace(b"5-0", b"x")}, "invalid literal"),
    "huge": ({"cut": bytes(8 << 20)}, "Invalid JSON"),
}


@pytest.mark.parametrize("kind", FOREIGN_CUTS)
async def test_a_foreign_record_among_the_cuts_is_named_with_a_cure_that_works(
    server: RedisProcess, model: str, kind: str
) -> None:
    fields, why = FOREIGN_CUTS[kind]
    async with redis_log(server.url, model) as log:
        epoch = await log.take_epoch(0)
        await log.append_cuts(epoch, 1, [Cut(Position(EntryId(5, 0)))])
        await log.redis.xadd(log.keys.cuts, fields)
        with pytest.raises(ForeignError, match=why) as caught:
            await log.cuts_after(1)
        await carry_out(log, str(caught.value))
        await log.append_cuts(epoch, 2, [Cut(Position(EntryId(6, 0)))])
        assert [number for number, _ in await log.cuts_after(0)] == [1, 2]


async def test_a_foreign_record_between_cuts_is_removed_alone(
    server: RedisProcess, model: str
) -> None:
    async with redis_log(server.url, model) as log:
        for entry in ("1-0", "1-7", "2-0"):
            await log.redis.xadd(log.keys.cuts, {"cut": CUT}, id=entry)
        with pytest.raises(ForeignError, match="record 1-7 of") as caught:
            await log.cuts_after(0)
        await carry_out(log, str(caught.value))
        assert [number for number, _ in await log.cuts_after(0)] == [1, 2]


async def test_numbers_of_removed_records_are_named_with_a_cure_that_works(
    server: RedisProcess, model: str
) -> None:
    async with redis_log(server.url, model) as log:
        await fill_batches(log, 2)
        first, again = a_replica(), a_replica()
        await learn(first, log, await first.recover(log, False, keep_lease), 20)
        await log.redis.xdel(log.keys.cuts, await log.redis.xadd(log.keys.cuts, {"user": b"7"}))
        with pytest.raises(ForeignError, match="was given out") as caught:
            await a_replica().recover(log, False, keep_lease)
        await carry_out(log, str(caught.value))
        await learn(again, log, await again.recover(log, False, keep_lease), 20)
        assert (await log.cut_range())[1] == again.progress.cut == 3


FOREIGN_KEYS: dict[str, tuple[Callable[[Log], str], tuple[str, ...]]] = {
    "the log is a string": (lambda log: log.keys.log, ("SET", "{}", "x")),
    "the log is a list": (lambda log: log.keys.log, ("RPUSH", "{}", "x")),
    "the cuts are a hash": (lambda log: log.keys.cuts, ("HSET", "{}", "x", "y")),
    "the questions are a string": (lambda log: log.keys.asked, ("SET", "{}", "x")),
    "the dead letters are a string": (lambda log: log.keys.dead, ("SET", "{}", "x")),
    "the newest keys are a set": (lambda log: log.keys.newest, ("SADD", "{}", "x")),
    "the epoch is a stream": (lambda log: log.keys.epoch, ("XADD", "{}", "*", "x", "y")),
    "the epoch is a word": (lambda log: log.keys.epoch, ("SET", "{}", "first")),
    "the epoch is no whole number": (lambda log: log.keys.epoch, ("SET", "{}", "1e300")),
    "the epoch is huge": (lambda log: log.keys.epoch, ("SET", "{}", "9" * 400)),
    "the version is a word": (lambda log: log.keys.aside, ("SET", "{}", "x")),
    "the lease is a list": (lambda log: log.keys.lease, ("RPUSH", "{}", "x")),
    "the name is a list": (lambda log: log.keys.uuid, ("RPUSH", "{}", "x")),
    "the name is no text": (lambda log: log.keys.uuid, ("SET", "{}", b"\xff\xfe")),
}


@pytest.mark.parametrize("kind", FOREIGN_KEYS)
async def test_a_key_of_another_program_is_named_with_a_cure_that_works(
    server: RedisProcess, model: str, kind: str
) -> None:
    name, command = FOREIGN_KEYS[kind]
    async with redis_log(server.url, model) as log:
        key = name(log)
        await log.redis.execute_command(*(key if part == "{}" else part for part in command))
        with pytest.raises(ForeignError, match=re.escape(key)) as caught:
            await log.check_server()
        await carry_out(log, str(caught.value))
        assert await log.check_server() == []
        assert await log.redis.exists(f"{key}:foreign")
        await fill_batches(log, 1)
        replica = a_replica()
        await learn(replica, log, await replica.recover(log, False, keep_lease), 20)
        assert await log.take_lease("me", 90_000, "") == 1


async def test_a_lease_that_never_expires_is_no_lease(server: RedisProcess, model: str) -> None:
    async with redis_log(server.url, model) as log:
        await log.redis.set(log.keys.lease, "mine")
        assert await log.take_lease("me", 90_000, "") == 1
        assert await log.take_lease("another", 90_000, "") == 0


async def test_a_name_that_is_no_text_is_an_error_of_the_log(
    server: RedisProcess, model: str
) -> None:
    async with redis_log(server.url, model) as log:
        await log.redis.set(log.keys.uuid, b"\xff\xfe")
        with pytest.raises(ForeignError, match="not text"):
            await log.extent()


async def fill_batches(log: Log, n: int) -> None:
    """Add entries of 20 examples."""
    for k in range(n):
        await log.redis.xadd(log.keys.log, {"batch": a_batch(k).to_bytes()})


async def carry_out(log: Log, cure: str) -> None:
    """Run the command that a message gives."""
    [command] = re.findall(r"redis-cli (.*?)   ", cure)
    await log.redis.execute_command(*shlex.split(command))


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
