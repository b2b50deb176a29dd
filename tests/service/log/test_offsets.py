"""An entry and its offset are written together: no message is doubled, and none is passed."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from service.log.errors import LogUnavailable
from service.log.keys import Keys
from service.log.server import connect
from service.log.sources.offsets import CARRIED_AT_ONCE, Carried, HoleError, Offsets
from tests.support.harness import RedisProcess

FIRST = {"kafka:t/0": (-1, 9)}
pytestmark = pytest.mark.anyio


@pytest.fixture
async def redis(server: RedisProcess) -> AsyncIterator[Redis]:
    client = connect(server.url)
    yield client
    await client.aclose()


def messages(*offsets: int, partition: str = "kafka:t/0") -> list[Carried]:
    return [Carried(partition, own, {"row": b"%d" % own, "label": b"x"}) for own in offsets]


async def sources(redis: Redis, model: str) -> list[str]:
    found = await redis.xrange(Keys(model).log)
    return [fields[b"source"].decode() for _, fields in found]


async def begun(redis: Redis, model: str) -> Offsets:
    offsets = Offsets(redis, model)
    await offsets.begin(FIRST)
    return offsets


async def test_only_offsets_above_the_last_are_appended(redis: Redis, model: str) -> None:
    one, two = await begun(redis, model), await begun(redis, model)
    assert await one.append(messages(0, 1, 5)) == 3
    assert await two.append(messages(0, 1, 5, 9)) == 1
    assert await one.append(messages(9, 11)) == 1
    places = [f"kafka:t/0@{own}" for own in (0, 1, 5, 9, 11)]
    assert await sources(redis, model) == places


async def test_the_first_source_decides_where_a_partition_begins(redis: Redis, model: str) -> None:
    offsets = Offsets(redis, model)
    assert await offsets.begin({"a": (7, 9), "b": (-1, 9)}) == {"a": 7, "b": -1}
    assert await offsets.begin({"b": (4, 9), "a": (9, 9)}) == {"b": -1, "a": 7}


async def test_only_a_source_that_is_new_as_a_whole_begins_with_its_latest_messages(
    redis: Redis, model: str
) -> None:
    offsets = Offsets(redis, model)
    assert await offsets.begin({"a": (7, 9), "b": (-1, 4)}, is_latest=True) == {"a": 9, "b": 4}
    younger = {"a": (7, 12), "b": (-1, 4), "c": (-1, 3)}
    assert await offsets.begin(younger, is_latest=True) == {"a": 9, "b": 4, "c": -1}


async def test_messages_after_a_hole_are_refused(redis: Redis, model: str) -> None:
    offsets = await begun(redis, model)
    await offsets.append(messages(0, 1, 2))
    await redis.hset(Keys(model).sources, "kafka:t/0", "1")  # the log has lost its end
    with pytest.raises(HoleError):
        await offsets.append(messages(3))
    assert await offsets.begin(FIRST) == {"kafka:t/0": 1}
    assert await offsets.append(messages(2, 3)) == 2
    await redis.delete(Keys(model).sources)
    with pytest.raises(HoleError):
        await offsets.append(messages(4))


async def test_offsets_are_exact_beyond_the_numbers_of_lua(redis: Redis, model: str) -> None:
    offsets = await begun(redis, model)
    high = [(1 << 53) + 1, (1 << 53) + 2, 10**19, (1 << 64) - 1]
    assert await offsets.append(messages(*high)) == 4
    assert await offsets.append(messages(high[1])) == 0
    assert await (await begun(redis, model)).append(messages(*high)) == 0


async def test_partitions_are_in_order_each_however_they_are_mixed(
    redis: Redis, model: str
) -> None:
    names = ("a", "b")
    offsets = Offsets(redis, model)
    await offsets.begin(dict.fromkeys(names, (-1, -1)))
    mixed = [
        own for k in range(3 * CARRIED_AT_ONCE) for name in names
        for own in messages(k, partition=name)
    ]  # fmt: skip
    assert await offsets.append(mixed) == len(mixed)
    found = await sources(redis, model)
    for name in names:
        own = [place for place in found if place.startswith(name)]
        assert own == [f"{name}@{k}" for k in range(3 * CARRIED_AT_ONCE)]


async def test_a_server_without_memory_appends_nothing_and_leaves_no_hole(
    redis: Redis, model: str
) -> None:
    offsets = await begun(redis, model)
    await offsets.append(messages(0))
    try:
        await redis.config_set("maxmemory", 1)
        with pytest.raises(LogUnavailable, match="memory"):
            await offsets.append(messages(1, 2))
    finally:
        await redis.config_set("maxmemory", 0)
    with pytest.raises(HoleError):
        await _skipping(redis, model).append(messages(3))
    await offsets.begin(FIRST)
    assert await offsets.append(messages(1, 2, 3)) == 3


def _skipping(redis: Redis, model: str) -> Offsets:
    """Offsets that believe that messages were appended which were not."""
    other = Offsets(redis, model)
    other._last = {"kafka:t/0": 2}
    return other
