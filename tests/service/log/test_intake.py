"""The intake: an acknowledged entry is in the log once."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from zlib import crc32

import pytest

from service.log import intake
from service.log.backlog import Backlog, BacklogFullError, Load
from service.log.errors import LogFullError, LogUnavailable
from service.log.intake import Intake, KeyInFlightError, KeyReusedError
from service.log.position import TOP, EntryId
from service.log.server import connect
from streams.rows.entry import from_bytes, to_bytes
from streams.rows.records import from_json
from streams.rows.rows import Rows, join
from tests.support.harness import RedisProcess
from tests.support.named import some_rows
from tests.support.questions import fields_of, questions

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def an_intake(url: str, model: str, backlog: Backlog | None = None) -> AsyncIterator[Intake]:
    """An intake that writes for a while."""
    intake = Intake(connect(url), model, backlog)
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
    assert appender.backlog.added == 300


async def test_entries_that_exceed_one_group_are_written_too(
    appender: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "GROUP_ENTRIES", 7)

    sent = [str(k).encode() for k in range(50)]
    async with asyncio.timeout(20):
        await asyncio.gather(*(appender.append(p) for p in sent))
    found = await appender.redis.xrange(appender.keys.log)
    assert [fields[b"batch"] for _, fields in found] == sent


async def test_the_newest_keys_are_remembered_whatever_the_time_and_others_for_an_hour(
    appender: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "KEYS_KEPT", 3)
    entries = [await appender.append(b"a", f"key {k}") for k in range(5)]
    lasting = [await appender.redis.ttl(own_key(appender, f"key {k}")) for k in range(5)]
    assert lasting[2:] == [-1] * 3
    assert all(3_500 < ttl <= 3_600 for ttl in lasting[:2])
    assert [await appender.append(b"a", f"key {k}") for k in range(5)] == entries
    assert await appender.redis.xlen(appender.keys.log) == 5
    assert await appender.redis.xlen(appender.keys.newest) == 3


async def test_a_step_of_the_servers_clock_makes_no_entry_twice(appender: Intake) -> None:
    """A step forward is all keys that can expire, expiring."""
    entry = await appender.append(b"a", "key")
    for key in await appender.redis.keys(f"{appender.keys.idempotency('')}*"):
        if await appender.redis.ttl(key) > 0:
            await appender.redis.delete(key)
    assert await appender.append(b"a", "key") == entry


async def test_a_key_of_an_earlier_version_is_still_known(appender: Intake) -> None:
    entry = await appender.append(b"a")
    text = f"{hashlib.sha256(b'a').hexdigest()} {entry}"
    await appender.redis.set(own_key(appender, "key"), text, ex=3_600)
    assert await appender.append(b"a", "key") == entry


def own_key(appender: Intake, key: str) -> str:
    """Return the log's key that remembers an Idempotency-Key."""
    return appender.keys.idempotency(hashlib.sha256(key.encode()).hexdigest())


@pytest.mark.parametrize("text", ["", "x", "{digest} x"])
async def test_a_key_that_another_program_wrote_makes_no_entry(appender: Intake, text: str) -> None:
    digest = hashlib.sha256(b"a").hexdigest()
    await appender.redis.set(own_key(appender, "key"), text.format(digest=digest))
    with pytest.raises(KeyReusedError):
        await appender.append(b"a", "key")
    assert await appender.redis.xlen(appender.keys.log) == 0


@pytest.mark.parametrize("command", [("SET", "x"), ("SADD", "x")])
async def test_newest_keys_of_another_program_make_no_entry_twice(
    appender: Intake, command: tuple[str, str]
) -> None:
    await appender.redis.execute_command(command[0], appender.keys.newest, command[1])
    for _ in range(2):
        with pytest.raises(LogUnavailable, match="WRONGTYPE"):
            await appender.append(b"a", "key")
    assert await appender.redis.xlen(appender.keys.log) == 0


async def test_a_name_of_the_log_that_is_no_text_fails_no_request(appender: Intake) -> None:
    await appender.redis.set(appender.keys.uuid, b"\xff\xfe")
    first = await appender.append(b"a")
    assert await appender.append(b"a") > first


async def test_an_entry_has_the_checksum_of_its_batch(appender: Intake) -> None:
    await appender.append(b"abc")
    await appender.append(b"abc", "key")
    expected = {b"batch": b"abc", b"source": b"http", b"crc32": b"%d" % crc32(b"abc")}
    assert [f for _, f in await appender.redis.xrange(appender.keys.log)] == [expected] * 2


@pytest.mark.parametrize("key", [None, "key"])
async def test_an_entry_that_gets_the_highest_id_is_not_accepted(
    appender: Intake, key: str | None
) -> None:
    last = EntryId(TOP.milliseconds, TOP.sequence - 1)
    await appender.redis.xadd(appender.keys.log, {"json": "x"}, id=str(last))
    with pytest.raises(LogFullError, match="--accept-gap"):
        await appender.append(b"a", key)
    await appender.redis.rename(appender.keys.log, f"{appender.keys.log}:retired")
    assert await appender.append(b"a", key) < last


async def test_many_requests_at_once_exceed_the_backlog_by_one_at_most(
    server: RedisProcess, model: str
) -> None:
    for most in (Load(1_000, 1 << 40), Load(1 << 40, 100 << 10)):
        backlog = Backlog(most)
        async with an_intake(server.url, model, backlog) as appender:
            tried = [appender.append(bytes(10 << 10), None, 100) for _ in range(50)]
            answers = await asyncio.gather(*tried, return_exceptions=True)
            taken = [answer for answer in answers if isinstance(answer, EntryId)]
            assert len(taken) == 10
            assert all(isinstance(a, BacklogFullError) for a in answers if a not in taken)
            assert backlog.waiting() == Load(1_000, 100 << 10)
            await appender.redis.delete(appender.keys.log)


async def test_an_append_that_fails_gives_its_room_back(tmp_path: Path) -> None:
    backlog = Backlog(Load(1, 1 << 40))
    redis = RedisProcess(tmp_path).start()
    redis.kill()
    async with an_intake(redis.url, "model", backlog) as appender:
        for _ in range(3):
            with pytest.raises(LogUnavailable):
                await appender.append(b"a")


async def payloads(appender: Intake) -> list[bytes]:
    found = await appender.redis.xrange(appender.keys.log)
    assert all(fields[b"crc32"] == b"%d" % crc32(fields[b"arrow"]) for _, fields in found)
    return [fields[b"arrow"] for _, fields in found]


def written(rows: Rows) -> list[tuple[dict[str, object], str]]:
    """Return the values that are there, and the label of each row."""
    found = []
    for chunk in rows.chunks:
        for row, label in zip(chunk.columns.to_pylist(), chunk.labels.to_pylist(), strict=True):
            found.append(({k: v for k, v in row.items() if v is not None}, label))
    return found


async def test_small_requests_that_wait_together_share_an_entry_in_their_order(
    appender: Intake,
) -> None:
    parts = [some_rows(k, 1 + k % 3) for k in range(40)]
    ids = await asyncio.gather(*map(appender.append_small, parts))
    found = await payloads(appender)
    assert len(set(ids)) == len(found) == 1
    assert written(from_bytes(found[0])) == written(join(parts))
    assert len(found[0]) < 0.6 * sum(len(to_bytes(part)) for part in parts)
    assert appender.backlog.waiting() == Load(sum(map(len, parts)), len(found[0]))


async def test_a_small_request_that_comes_alone_waits_for_no_other(appender: Intake) -> None:
    parts = [some_rows(k, 2) for k in range(3)]
    ids = [await appender.append_small(part) for part in parts]
    assert len(set(ids)) == 3
    assert await payloads(appender) == [*map(to_bytes, parts)]


async def test_other_entries_keep_their_place_between_small_requests(appender: Intake) -> None:
    one, two, other = some_rows(0, 1), some_rows(1, 1), to_bytes(some_rows(2, 3))
    ids = await asyncio.gather(
        appender.append_small(one),
        appender.append_small(two),
        appender.append(other, None, 3, "arrow"),
        appender.append_small(two),
        appender.append(other, "key", 3, "arrow"),
        appender.append_small(one),
        appender.append_small(one),
    )
    assert ids == sorted(ids)
    assert (ids[0], ids[5]) == (ids[1], ids[6])
    assert len(set(ids)) == 5
    found = await payloads(appender)
    assert found[1:4] == [other, to_bytes(two), other]


async def test_a_shared_entry_is_bounded(appender: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    part = some_rows(0, 5)
    for name, bound in (
        ("JOINED", Load(20, 1 << 20)),
        ("JOINED", Load(1_000, 4 * part.buffer_bytes)),
        ("JOINED_CELLS", 4 * part.cells),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(intake, name, bound)
            ids = await asyncio.gather(*(appender.append_small(part) for _ in range(10)))
        assert [ids.count(one) for one in dict.fromkeys(ids)] == [4, 4, 2]


def test_only_few_and_short_rows_are_small() -> None:
    assert intake.is_small(some_rows(0, 63))
    assert not intake.is_small(some_rows(0, 64))
    long = from_json(b'{"row": {"text": "%s"}, "label": 1}' % (b"x" * 65_536), True)
    assert not intake.is_small(long)


async def test_what_befalls_an_entry_reaches_every_request_that_shares_it(
    appender: Intake,
) -> None:
    last = EntryId(TOP.milliseconds, TOP.sequence - 1)
    await appender.redis.xadd(appender.keys.log, {"json": "x"}, id=str(last))

    async def all_fail(error: type[Exception]) -> None:
        tried = [appender.append_small(some_rows(k, 1)) for k in range(5)]
        answers = await asyncio.gather(*tried, return_exceptions=True)
        assert [type(answer) for answer in answers] == [error] * 5

    await all_fail(LogFullError)
    await appender.redis.delete(appender.keys.log)
    await appender.redis.set(appender.keys.log, "x")
    await all_fail(LogUnavailable)


async def test_when_the_service_stops_every_request_of_a_shared_entry_is_answered(
    server: RedisProcess, model: str
) -> None:
    backlog = Backlog(Load(5, 1 << 40))
    appender = Intake(connect(server.url), model, backlog)  # nobody writes
    tried = [asyncio.create_task(appender.append_small(some_rows(k, 1))) for k in range(7)]
    await asyncio.sleep(0)
    appender.give_up()
    answers = await asyncio.gather(*tried, return_exceptions=True)
    assert [type(answer) for answer in answers] == [LogUnavailable] * 5 + [BacklogFullError] * 2
    backlog.check()
    await appender.redis.aclose()


async def test_a_client_that_leaves_takes_no_other_out_of_a_shared_entry(
    appender: Intake,
) -> None:
    parts = [some_rows(k, 1) for k in range(3)]
    tasks = [asyncio.create_task(appender.append_small(part)) for part in parts]
    await asyncio.sleep(0)
    tasks[1].cancel()
    first, left, last = await asyncio.gather(*tasks, return_exceptions=True)
    assert first == last
    assert isinstance(left, asyncio.CancelledError)
    [found] = await payloads(appender)
    assert len(from_bytes(found)) == 3


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


async def test_questions_are_appended_and_count_towards_no_backlog(
    server: RedisProcess, model: str
) -> None:
    backlog = Backlog(Load(1, 1))
    async with an_intake(server.url, model, backlog) as intake:
        own = questions(["a", "b"])
        for _ in range(3):
            entry = await intake.ask(own.to_fields())
        found = await intake.redis.xrange(intake.keys.asked, str(entry))
        assert found == [(str(entry).encode(), fields_of(own))]
        assert backlog.waiting() == Load(0, 0)
        await intake.redis.xadd(intake.keys.asked, {"x": "y"}, id=str(TOP))
        with pytest.raises(LogUnavailable):
            await intake.ask(own.to_fields())
