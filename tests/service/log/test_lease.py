"""The lease: one holder at a time, and nobody gives away what another holds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.log.lease import Lease, Lock
from service.process import SystemClock
from tests.support.clock import StillClock
from tests.support.logs import Store

pytestmark = pytest.mark.anyio


@pytest.fixture
def locks(tmp_path: Path) -> Iterator[list[Lock]]:
    """The locks of two machines."""
    made = [Lock(tmp_path / name) for name in "ab"]
    yield made
    for lock in made:
        lock.close()


async def test_a_holder_that_lost_the_lease_does_not_release_that_of_another(
    store: Store, locks: list[Lock]
) -> None:
    old, new = (Lease(store.log, lock, 90.0, SystemClock()) for lock in locks)
    assert await old.take()
    assert not await new.take()
    await store.end_lease()
    assert await new.take()
    await old.release()
    assert not await old.take()
    await new.release()
    assert await old.take()
    assert not await new.renew()


async def test_a_lease_is_renewed_long_before_it_ends(store: Store, locks: list[Lock]) -> None:
    clock = StillClock()
    lease = Lease(store.log, locks[0], 90.0, clock)
    assert lease.due_in < 0
    assert await lease.take()
    assert lease.due_in == 30
    clock.now += 40
    assert lease.due_in == -10
    assert await lease.renew()
    assert lease.due_in == 30


async def test_a_lease_that_ran_out_was_not_renewed(store: Store, locks: list[Lock]) -> None:
    lease = Lease(store.log, locks[0], 90.0, SystemClock())
    assert await lease.take()
    await store.end_lease()
    assert not await lease.renew()
    assert await lease.renew()


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    one, other = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert one.name == other.name
    assert one.take()
    assert not other.take()
    one.close()
    assert other.take()
    other.close()
