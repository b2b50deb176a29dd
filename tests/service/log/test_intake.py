"""The way into the log: an acknowledged entry is in it once."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from service.log import intake
from service.log.errors import LogUnavailable
from service.log.intake import Intake, KeyInFlightError, KeyReusedError
from service.log.server import connect
from tests.support.harness import RedisProcess


def with_intake(url: str, model: str, use: Callable[[Intake], Awaitable[None]]) -> None:
    async def run() -> None:
        intake = Intake(connect(url), model)
        writing = asyncio.create_task(intake.run())
        try:
            await use(intake)
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await intake.redis.aclose()

    asyncio.run(run())


def test_entries_are_written_in_the_order_they_came(server: RedisProcess, model: str) -> None:
    async def use(intake: Intake) -> None:
        sent = [str(k).encode() for k in range(300)]
        ids = await asyncio.gather(*(intake.append(p, 1) for p in sent))
        found = await intake.redis.xrange(intake.keys.log)
        assert [str(i).encode() for i in ids] == [i for i, _ in found]
        assert [fields[b"batch"] for _, fields in found] == sent
        assert intake.added == 300

    with_intake(server.url, model, use)


def test_what_does_not_fit_one_group_is_written_too(
    server: RedisProcess, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "GROUP_ENTRIES", 7)

    async def use(intake: Intake) -> None:
        sent = [str(k).encode() for k in range(50)]
        async with asyncio.timeout(20):
            await asyncio.gather(*(intake.append(p, 1) for p in sent))
        found = await intake.redis.xrange(intake.keys.log)
        assert [fields[b"batch"] for _, fields in found] == sent

    with_intake(server.url, model, use)


def test_the_mean_size_of_entries_follows_what_is_appended(
    server: RedisProcess, model: str
) -> None:
    async def use(intake: Intake) -> None:
        await intake.append(b"a", 10)
        assert intake.mean_entry == 10
        await intake.append(b"b", 30, "key")
        assert intake.mean_entry == pytest.approx(11)

    with_intake(server.url, model, use)


def test_a_key_is_remembered_for_an_hour(server: RedisProcess, model: str) -> None:
    async def use(intake: Intake) -> None:
        await intake.append(b"a", 1, "key")
        [key] = await intake.redis.keys(intake.keys.idempotency("*"))
        assert 3_500 < await intake.redis.ttl(key) <= 3_600

    with_intake(server.url, model, use)


def test_a_key_makes_one_entry_of_many_requests(server: RedisProcess, model: str) -> None:
    async def use(intake: Intake) -> None:
        first = await intake.append(b"a", 1, "key")
        assert await intake.append(b"a", 1, "key") == first
        assert await intake.append(b"a", 1, "another") != first
        assert await intake.redis.xlen(intake.keys.log) == 2
        with pytest.raises(KeyReusedError):
            await intake.append(b"b", 1, "key")
        assert await intake.redis.xlen(intake.keys.log) == 2

    with_intake(server.url, model, use)


def test_a_key_that_is_being_handled_is_refused(server: RedisProcess, model: str) -> None:
    async def use(intake: Intake) -> None:
        one = asyncio.create_task(intake.append(b"a", 1, "key"))
        await asyncio.sleep(0)
        with pytest.raises(KeyInFlightError):
            await intake.append(b"a", 1, "key")
        assert await intake.append(b"a", 1, "key") == await one if one.done() else await one
        assert await intake.redis.xlen(intake.keys.log) == 1

    with_intake(server.url, model, use)


def test_a_client_that_leaves_frees_its_key_once_the_entry_is_written(
    server: RedisProcess, model: str
) -> None:
    async def use(intake: Intake) -> None:
        left = asyncio.create_task(intake.append(b"a", 1, "key"))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        other = await intake.append(b"z", 1)  # written behind it
        entry = await intake.append(b"a", 1, "key")
        assert entry < other
        assert await intake.redis.xlen(intake.keys.log) == 2

    with_intake(server.url, model, use)


def test_without_a_server_nothing_is_acknowledged(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path).start()

    async def use(intake: Intake) -> None:
        await intake.append(b"a", 1)
        redis.kill()
        with pytest.raises(LogUnavailable):
            await intake.append(b"b", 1, "key")
        redis.start()
        await intake.append(b"b", 1, "key")
        assert [f[b"batch"] for _, f in await intake.redis.xrange(intake.keys.log)] == [b"a", b"b"]

    try:
        with_intake(redis.url, "model", use)
    finally:
        redis.kill()


def test_a_log_of_another_type_fails_each_request_and_not_the_writer(
    server: RedisProcess, model: str
) -> None:
    async def use(intake: Intake) -> None:
        await intake.redis.set(intake.keys.log, "x")
        with pytest.raises(LogUnavailable, match="WRONGTYPE"):
            await intake.append(b"a", 1)
        with pytest.raises(LogUnavailable, match="WRONGTYPE"):
            await intake.append(b"a", 1, "key")
        await intake.redis.delete(intake.keys.log)
        await intake.append(b"a", 1, "key")

    with_intake(server.url, model, use)
