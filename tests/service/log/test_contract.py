"""What a log does when it is full, read-only or at its end: on a real server and in memory.

Schedules of the simulator run on the log in memory, so it must fail as the real one does.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from service.log.cuts import Cut
from service.log.errors import FencedError, LogError, LogUnavailable
from service.log.intake import Intake, KeyReusedError
from service.log.log import Log
from service.log.position import ORIGIN, TOP, EntryId, Position
from tests.support.logs import Store, fill

pytestmark = pytest.mark.anyio

SKIPPED = [["1", "0-0", "1-0", "20", "why"]]
Call = Callable[[Log], Awaitable[object]]
READS: dict[str, Call] = {
    "extent": lambda log: log.extent(),
    "read": lambda log: log.read(ORIGIN, 10, 1 << 20, None),
    "read_one": lambda log: log.read_one(EntryId(1, 0)),
    "count_after": lambda log: log.count_after(ORIGIN, TOP),
    "cuts_after": lambda log: log.cuts_after(0),
    "cut_range": lambda log: log.cut_range(),
    "asked_after": lambda log: log.asked_after(ORIGIN),
    "questions": lambda log: log.questions([EntryId(1, 0)]),
}
WRITES: dict[str, Call] = {
    "take_epoch": lambda log: log.take_epoch(0),
    "append_cuts": lambda log: log.append_cuts(1, 2, [Cut(Position(EntryId(1, 0)), 0, 1)]),
    "record_skipped": lambda log: log.record_skipped(SKIPPED),
    "forget_skipped": lambda log: log.forget_skipped(0),
    "claim": lambda log: log.claim("rows"),
    "raise_asked": lambda log: log.raise_asked(EntryId(1, 0)),
    "trim": lambda log: log.trim(Position(ORIGIN), 1),
    "take_lease": lambda log: log.take_lease("a", 90_000, ""),
    "release_lease": lambda log: log.release_lease("a"),
}


@asynccontextmanager
async def an_intake(store: Store) -> AsyncIterator[Intake]:
    """An intake of the same log, which writes for a while."""
    intake = Intake(store.client(), store.log.keys.log.split("{")[1].split("}")[0])
    writing = asyncio.create_task(intake.run())
    try:
        yield intake
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def begin(store: Store) -> None:
    """Take the first epoch, and record a cut of one entry."""
    [entry] = await fill(store, 1)
    await store.log.extent()
    await store.log.append_cuts(await store.log.take_epoch(0), 1, [Cut(Position(entry), 0, 1)])


@pytest.mark.parametrize("kind", ["features", "rows"])
async def test_the_first_claim_stays(store: Store, kind: str) -> None:
    other = "rows" if kind == "features" else "features"
    assert await store.log.claim("") == ""
    await store.add({b"nonsense": b"1"})
    assert await store.log.claim("") == ""
    assert await store.log.claim(kind) == kind
    await store.add({b"row": b"{}"} if other == "rows" else {b"json": b"{}"})
    assert await store.log.claim(other) == kind
    assert await store.log.claim("") == kind


async def test_the_first_entry_claims_a_log_before_anybody(store: Store) -> None:
    await store.add({b"source": b"http", b"arrow": b"x"})
    assert await store.log.claim("features") == "rows"
    await store.lose()
    assert await store.log.claim("features") == "rows", "it is kept"


@pytest.mark.parametrize("call", READS | WRITES)
async def test_without_memory_the_trainer_reads_and_writes(store: Store, call: str) -> None:
    await begin(store)
    await store.set_full(True)
    try:
        await (READS | WRITES)[call](store.log)
    finally:
        await store.set_full(False)


async def test_without_memory_nothing_new_is_added(store: Store) -> None:
    async with an_intake(store) as intake:
        first = await intake.append(b"a", "key")
        await store.set_full(True)
        try:
            for key in (None, "another"):
                with pytest.raises(LogUnavailable, match="maxmemory"):
                    await intake.append(b"b", key)
            assert await intake.append(b"a", "key") == first
        finally:
            await store.set_full(False)
        assert await intake.append(b"b", "another") > first
    assert (await store.log.extent()).added == 2


async def test_a_log_that_is_archived_without_memory_waits_for_some(store: Store) -> None:
    await begin(store)
    await store.set_full(True)
    try:
        await store.log.archive()
        with pytest.raises(LogUnavailable, match="maxmemory"):
            await store.log.extent()
    finally:
        await store.set_full(False)
    assert (await store.log.extent()).added == 0


@pytest.mark.parametrize("call", READS)
async def test_a_read_only_server_answers(store: Store, call: str) -> None:
    await begin(store)
    await store.set_read_only(True)
    try:
        await READS[call](store.log)
    finally:
        await store.set_read_only(False)


@pytest.mark.parametrize("call", WRITES | {"archive": lambda log: log.archive()})
async def test_a_read_only_server_changes_nothing(store: Store, call: str) -> None:
    await begin(store)
    before = await store.log.extent(), await store.log.cuts_after(0)
    await store.set_read_only(True)
    try:
        with pytest.raises(LogUnavailable, match="read only"):
            await (WRITES | {"archive": lambda log: log.archive()})[call](store.log)
    finally:
        await store.set_read_only(False)
    assert (await store.log.extent(), await store.log.cuts_after(0)) == before
    assert await store.letters() == []
    assert await store.log.take_epoch(0) == 2


async def test_a_read_only_server_confirms_only_what_it_has(store: Store) -> None:
    async with an_intake(store) as intake:
        first = await intake.append(b"a", "key")
        await store.set_read_only(True)
        try:
            for key in (None, "another"):
                with pytest.raises(LogUnavailable, match="read only"):
                    await intake.append(b"b", key)
            assert await intake.append(b"a", "key") == first
        finally:
            await store.set_read_only(False)
    assert (await store.log.extent()).added == 1


async def test_a_key_makes_one_entry_and_has_one_payload(store: Store) -> None:
    async with an_intake(store) as intake:
        first, other = await asyncio.gather(intake.append(b"a", "key"), intake.append(b"b"))
        assert await intake.append(b"a", "key") == first < other
        with pytest.raises(KeyReusedError):
            await intake.append(b"b", "key")
    found = await store.log.read(ORIGIN, 10, 1 << 20, None)
    assert [(entry, fields[b"batch"], fields[b"source"]) for entry, fields in found] == [
        (first, b"a", b"http"),
        (other, b"b", b"http"),
    ]


async def test_after_the_highest_id_a_stream_takes_no_entries(store: Store) -> None:
    await store.add({b"batch": b"x"}, TOP)
    async with an_intake(store) as intake:
        for key in (None, "key"):
            with pytest.raises(LogError):
                await intake.append(b"a", key)
    assert (await store.log.extent()).added == 1
    assert [entry for entry, _ in await store.log.read(ORIGIN, 10, 1 << 20, None)] == [TOP]
    assert await store.log.read(TOP, 10, 1 << 20, None) == []
    assert await store.log.count_after(ORIGIN, TOP) == (1, TOP)


async def test_cuts_that_are_refused_leave_nothing(store: Store) -> None:
    [entry] = await fill(store, 1)
    epoch = await store.log.take_epoch(0)
    cut = Cut(Position(entry), 0, 1, {entry: "why"})
    await store.log.append_cuts(epoch, 1, [Cut(Position(ORIGIN)), Cut(Position(ORIGIN))])
    with pytest.raises(LogUnavailable, match="equal or smaller"):
        await store.log.append_cuts(epoch, 2, [cut, cut])
    await store.log.take_epoch(0)
    with pytest.raises(FencedError):
        await store.log.append_cuts(epoch, 3, [cut])
    assert await store.log.cut_range() == (1, 2)
    assert await store.letters() == []
