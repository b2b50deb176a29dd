"""A log of one model on a real server."""

import asyncio
from collections.abc import Awaitable, Callable

from service.log.log import Log, connect
from tests.support.harness import RedisProcess


def with_log(server: RedisProcess, model: str, use: Callable[[Log], Awaitable[None]]) -> None:
    """Run `use` with the log of `model` in an event loop of its own."""

    async def run() -> None:
        redis = connect(server.url)
        try:
            await use(Log(redis, model))
        finally:
            await redis.aclose()

    asyncio.run(run())
