"""The intake: an acknowledged entry is in the log once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.log import intake
from service.log.errors import LogUnavailable
from service.log.intake import Intake, KeyInFlightError, KeyReusedError
from service.log.server import connect
from tests.support.harness import RedisProcess

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def an_intake(url: str, model: str) -> AsyncIterator[Intake]:
    """An intake that writes for a while."""
    intake = Intake(connect(url), model)
    writing = asyncio.create_task(intake.run())
    try:
        yield intake
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await intake.redis.aclose()


@pytest.fixture
async def appender(server: RedisProcess, model: str) -> AsyncIterator[Intake]:
    async with an_intake(server.url, model) as intake:
        yield intake


async def test_entries_are_written_in_the_order_they_came(appender: Intake) -> None:
    sent = [str(k).encode() for k in range(300)]
    ids = await asyncio.gather(*(appender.append(p) for p in sent))
    found = await appender.redis.xrange(appender.keys.log)
    assert [str(i).encode() for i in ids] == [i for i, _ in found]
    assert [fields[b"batch"] for _, fields in found] == sent
    assert appender.added == 300


async def test_entries_that_exceed_one_group_are_written_too(
    appender: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "GROUP_ENTRIES", 7)

    sent = [str(k).encode() for k in range(50)]
    async with asyncio.timeout(20):
        await asyncio.gather(*(appender.append(p) for p in sent))
    found = await appender.redis.xrange(appender.keys.log)
    assert [fields[b"batch"] for _, fields in found] == sent


async def test_a_key_is_remembered_for_an_hour(appender: Intake) -> None:
    await appender.append(b"a", "key")
    [key] = await appender.redis.keys(appender.keys.idempotency("*"))
    assert 3_500 < await appender.redis.ttl(key) <= 3_600


async def test_a_key_makes_one_entry_of_many_requests(appender: Intake) -> None:
    first = await appender.append(b"a", "key")
    assert await appender.append(b"a", "key") == first
    assert await appender.append(b"a", "another") != first
    assert await appender.redis.xlen(appender.keys.log) == 2
    with pytest.raises(KeyReusedError):
        await appender.append(b"b", "key")
    assert await appender.redis.xlen(appender.keys.log) == 2


async def test_a_key_that_is_being_handled_is_refused(appender: Intake) -> None:
    one = asyncio.create_task(appender.append(b"a", "key"))
    await asyncio.sleep(0)
    with pytest.raises(KeyInFlightError):
        await appender.append(b"a", "key")
    assert await appender.append(b"a", "key") == await one if one.done() else await one
    assert await appender.redis.xlen(appender.keys.log) == 1


async def test_a_client_that_leaves_frees_its_key_once_the_entry_is_written(
    appender: Intake,
) -> None:
    left = asyncio.create_task(appender.append(b"a", "key"))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    other = await appender.append(b"z")  # written after it
    entry = await appender.append(b"a", "key")
    assert entry < other
    assert await appender.redis.xlen(appender.keys.log) == 2


async def test_without_a_server_nothing_is_acknowledged(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path).start()
    try:
        async with an_intake(redis.url, "model") as appender:
            await appender.append(b"a")
            redis.kill()
            with pytest.raises(LogUnavailable):
                await appender.append(b"b", "key")
            redis.start()
            await appender.append(b"b", "key")
            found = await appender.redis.xrange(appender.keys.log)
            assert [fields[b"batch"] for _, fields in found] == [b"a", b"b"]
    finally:
        redis.kill()


async def test_a_log_of_another_type_fails_each_request_and_not_the_writer(
    appender: Intake,
) -> None:
    await appender.redis.set(appender.keys.log, "x")
    with pytest.raises(LogUnavailable, match="WRONGTYPE"):
        await appender.append(b"a")
    with pytest.raises(LogUnavailable, match="WRONGTYPE"):
        await appender.append(b"a", "key")
    await appender.redis.delete(appender.keys.log)
    await appender.append(b"a", "key")
