"""A log on a real server and one in memory, for tests that both must pass."""

from collections.abc import AsyncIterator

import pytest

from tests.support.harness import RedisProcess
from tests.support.logs import MemoryStore, RedisStore, Store, redis_log
from tests.support.memory_log import MemoryServer


@pytest.fixture(params=["redis", "memory"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore(MemoryServer())
        return
    server: RedisProcess = request.getfixturevalue("server")
    async with redis_log(server.url, request.getfixturevalue("model")) as log:
        yield RedisStore(log)
