"""The lease: one holder at a time, and nobody gives away what another holds."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from service.log.lease import Lease, Lock
from service.log.log import connect
from tests.support.harness import RedisProcess

Use = Callable[[Lease, Lease, Callable[[], Awaitable[object]]], Awaitable[None]]


def with_leases(server: RedisProcess, model: str, directory: Path, use: Use) -> None:
    """Two services on machines of their own, each with its lock, and what ends a lease."""

    async def run() -> None:
        redis, locks = connect(server.url), [Lock(directory / name) for name in "ab"]
        one, other = (Lease(redis, f"{model}:lease", lock, 90.0) for lock in locks)
        try:
            await use(one, other, lambda: redis.delete(f"{model}:lease"))
        finally:
            for lock in locks:
                lock.close()
            await redis.aclose()

    asyncio.run(run())


def test_who_lost_the_lease_does_not_give_away_that_of_another(
    server: RedisProcess, model: str, tmp_path: Path
) -> None:
    async def use(old: Lease, new: Lease, run_out: Callable[[], Awaitable[object]]) -> None:
        assert await old.take()
        assert not await new.take()
        await run_out()
        assert await new.take()
        await old.release()
        assert not await old.take()
        await new.release()
        assert await old.take()

    with_leases(server, model, tmp_path, use)


def test_a_lease_is_renewed_long_before_it_ends(
    server: RedisProcess, model: str, tmp_path: Path
) -> None:
    async def use(lease: Lease, _: Lease, __: Callable[[], Awaitable[object]]) -> None:
        assert lease.due_in < 0
        assert await lease.take()
        assert 0 < lease.due_in <= 30
        assert await lease.renew()

    with_leases(server, model, tmp_path, use)
