"""The log, on a real server and in memory: cuts are fenced, and missing entries are noticed."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import chain

import pytest

from service.log import log as logs
from service.log.cuts import Begin, Change, Cut, Gap, Upgrade
from service.log.errors import FencedError, GapError, LogUnavailable
from service.log.extent import check_reach
from service.log.labels import hash_of
from service.log.log import COUNTED_AT_ONCE, DEAD_BYTES
from service.log.position import ORIGIN, TOP, EntryId, Position, Progress
from tests.support.logs import Store, fill
from tests.support.questions import fields_of, questions

pytestmark = pytest.mark.anyio

BEGIN = [Cut(Position(ORIGIN))]


def skipped(version: int) -> list[list[str]]:
    return [[str(version), "0-0", "1-0", "20", "why"]]


async def test_cuts_come_back_as_they_were_recorded(store: Store) -> None:
    log = store.log
    cuts = [
        Cut(Position(EntryId(5, 0), 3), 10, 4, {EntryId(4, 0): ""}, None, {"http": 10}),
        Cut(Position(EntryId(6, 0)), 0, 6, command=Begin({"model": "x"}, {"lr": 0.5}), fold=3),
        Cut(Position(EntryId(6, 0)), 0, 6, command=Change({"lr": 0.25})),
        Cut(Position(EntryId(6, 0)), 0, 6, command=Gap()),
        Cut(Position(EntryId(6, 0)), 0, 6, command=Upgrade(2), fold=2),
        Cut(Position(EntryId(7, 0)), 10, 7, is_fast=True),
    ]
    await fill(store, 1)
    await log.append_cuts(await log.take_epoch(0), 1, cuts)
    assert await log.cuts_after(0) == list(enumerate(cuts, 1))
    assert await log.cuts_after(1) == list(enumerate(cuts[1:], 2))
    assert await log.cut_range() == (1, 6)


async def test_a_trainer_of_an_older_epoch_writes_nothing(store: Store) -> None:
    log = store.log
    old, new = await log.take_epoch(0), await log.take_epoch(0)
    assert new == old + 1
    with pytest.raises(FencedError, match=str(new)):
        await log.append_cuts(old, 1, BEGIN)
    assert await log.cut_range() == (0, 0)
    await log.append_cuts(new, 1, BEGIN)
    assert await log.take_epoch(50) == 51


async def test_a_cut_is_recorded_once(store: Store) -> None:
    epoch = await store.log.take_epoch(0)
    await store.log.append_cuts(epoch, 1, BEGIN)
    with pytest.raises(LogUnavailable, match="equal or smaller"):
        await store.log.append_cuts(epoch, 1, BEGIN)


async def test_a_dead_entry_is_kept_with_its_reason(store: Store) -> None:
    [entry] = await fill(store, 1)
    epoch = await store.log.take_epoch(0)
    await store.log.append_cuts(epoch, 1, [Cut(Position(entry), 0, 1, {entry: "why"})])
    [letter] = await store.letters()
    assert letter == {b"entry": str(entry).encode(), b"reason": b"why", b"batch": b"x"}


async def test_later_questions_get_higher_ids_than_the_one_that_is_named(store: Store) -> None:
    high = EntryId(int(1000 * time.time()) + 3_600_000, 5)
    await store.log.raise_asked(high)
    assert (await store.log.extent()).asked == high
    assert await store.log.asked_after(ORIGIN) == []
    await store.log.raise_asked(EntryId(7, 0))
    entry = await store.ask(fields_of(questions(["a"])))
    assert entry == EntryId(high.milliseconds, high.sequence + 1)
    assert [one.id for one in await store.log.asked_after(ORIGIN)] == [entry]


async def test_questions_are_read_in_order_by_their_hashes_and_whole(store: Store) -> None:
    assert (await store.log.extent()).asked == ORIGIN
    assert await store.log.asked_after(ORIGIN) == []
    fields = [fields_of(questions([f"{k}", f"{k}-"])) for k in range(3)]
    entries = [await store.ask(own) for own in fields]
    foreign = await store.ask({b"x": b"y"})
    found = await store.log.asked_after(ORIGIN)
    assert [one.id for one in found] == [*entries, foreign]
    assert [one.hashes for one in found] == [*(own[b"ids"] for own in fields), b""]
    sizes = [sum(map(len, own)) + sum(map(len, own.values())) for own in fields]
    assert [one.size for one in found] == [*sizes, 2]
    assert await store.log.asked_after(entries[1]) == found[2:]
    gone = EntryId(1, 1)
    asked = [entries[2], gone, entries[0]]
    assert await store.log.questions(asked) == [fields[2], {}, fields[0]]
    assert await store.log.questions([]) == []
    extent = await store.log.extent()
    assert (extent.asked, extent.last) == (foreign, ORIGIN)
    assert abs(extent.time / 1000 - time.time()) < 60
    await store.log.trim(Position(ORIGIN), 0, entries[1])
    assert await store.log.asked_after(ORIGIN) == found[1:]
    await store.log.trim(Position(ORIGIN), 0)
    assert await store.log.asked_after(ORIGIN) == found[1:]
    assert (await store.log.extent()).asked == foreign


async def test_many_questions_are_fetched_in_several_calls(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ASKED_AT_ONCE", 4)
    monkeypatch.setattr(logs, "ASKED_BYTES", 700)
    entries = [await store.ask(fields_of(questions([f"{k}"]))) for k in range(11)]
    found = await store.log.questions(entries)
    assert [own[b"ids"] for own in found] == [hash_of(f"{k}") for k in range(11)]


async def reach(store: Store, uuid: str, position: Position, entries: int) -> None:
    check_reach(await store.log.extent(), Progress(uuid, position=position, entries=entries))


async def test_a_whole_log_is_accepted_wherever_the_model_is(store: Store) -> None:
    uuid = (await store.log.extent()).uuid
    await reach(store, uuid, Position(ORIGIN), 0)
    entries = await fill(store, 5)
    for k, entry in enumerate(entries):
        await reach(store, uuid, Position(entry, 1), k)
        await reach(store, uuid, Position(entry), k + 1)
    await store.log.trim(Position(entries[2]), 0)
    await reach(store, uuid, Position(entries[2], 1), 2)
    await reach(store, uuid, Position(entries[4]), 5)


async def trim_by_hand(store: Store, entries: list[EntryId]) -> None:
    await fill(store, 1)
    await store.delete(*entries)


Damage = Callable[[Store, list[EntryId]], Awaitable[object]]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "deleted": (lambda store, _: store.lose(), "ends at 0-0"),
    "another log": (lambda store, _: store.rename("another"), "another log"),
    "trimmed by a producer": (trim_by_hand, "2 entries after"),
    "entries deleted": (lambda store, entries: store.delete(*entries[:4]), "gone"),
    "full by its highest id": (lambda store, _: store.add({b"batch": b"x"}, TOP), "full"),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_log_that_lost_entries_is_refused(store: Store, damage: str) -> None:
    cause, message = DAMAGES[damage]
    uuid, entries = (await store.log.extent()).uuid, await fill(store, 5)
    at = Position(entries[2])
    await reach(store, uuid, at, 3)
    await cause(store, entries)
    with pytest.raises(GapError, match=message):
        await reach(store, uuid, at, 3)


async def test_an_entry_learned_in_part_must_still_be_there(store: Store) -> None:
    uuid, entries = (await store.log.extent()).uuid, await fill(store, 3)
    await store.delete(*entries[:2])
    await reach(store, uuid, Position(entries[1]), 2)
    with pytest.raises(GapError, match="in part"):
        await reach(store, uuid, Position(entries[1], 4), 1)


@pytest.mark.parametrize("block_ms", [None, 1])
async def test_a_read_is_bounded_in_bytes_whatever_came_before(
    store: Store, block_ms: int | None
) -> None:
    sizes = [10] * 3 + [1 << 20] * 9 + [10] * 3
    for size in sizes:
        await store.add({b"batch": bytes(size), b"source": b"http"})
    after, found = ORIGIN, []
    while entries := await store.log.read(after, 100, 4 << 20, block_ms):
        found.append([len(fields[b"batch"]) for _, fields in entries])
        after = entries[-1][0]
    assert list(map(len, found)) == [7, 4, 4]
    assert list(chain.from_iterable(found)) == sizes
    assert len(await store.log.read(ORIGIN, 2, 4 << 20, 1)) == 2
    assert await store.log.read(after, 100, 4 << 20, 1) == []


async def test_a_read_that_blocks_returns_the_next_entry(store: Store) -> None:
    reading = asyncio.create_task(store.log.read(ORIGIN, 10, 1 << 20, 10_000))
    await asyncio.sleep(0)
    [entry] = await fill(store, 1)
    assert await reading == [(entry, {b"batch": b"x"})]
    assert await store.log.read_one(entry) == (entry, {b"batch": b"x"})


async def test_a_dead_letter_keeps_little_of_a_large_entry(store: Store) -> None:
    entries = [
        await store.add({b"note": b"by hand", b"batch": bytes(1 << 20)}),
        await store.add({b"field %d" % k: b"x" * 100 for k in range(5_000)}),
    ]
    dead = dict.fromkeys(entries, "poison")
    epoch = await store.log.take_epoch(0)
    await store.log.append_cuts(epoch, 1, [Cut(Position(entries[-1]), 0, 2, dead)])
    letters = await store.letters()
    assert [letter[b"entry"].decode() for letter in letters] == list(map(str, entries))
    assert letters[0][b"note"] == b"by hand"
    for letter in letters:
        assert sum(map(len, (*letter.keys(), *letter.values()))) < DEAD_BYTES + 100


async def test_in_a_new_log_versions_begin_at_one(store: Store) -> None:
    await store.log.record_skipped(skipped(7))
    await store.log.archive()
    await store.log.record_skipped(skipped(1))
    assert [n[b"version"] for n in await store.letters()] == [b"7", b"1"]


async def test_after_a_model_goes_back_skipped_batches_are_recorded_again(store: Store) -> None:
    for version, back in ((7, 9), (7, 2), (2, 2), (3, 3)):
        await store.log.record_skipped(skipped(version))
        await store.log.forget_skipped(back)
    assert [n[b"version"] for n in await store.letters()] == [b"7", b"3"]


async def test_an_archived_log_is_followed_by_an_empty_one(store: Store) -> None:
    log = store.log
    uuid = (await log.extent()).uuid
    await fill(store, 3)
    await log.append_cuts(await log.take_epoch(0), 1, BEGIN)
    await log.archive()
    extent = await log.extent()
    assert extent.uuid != uuid
    assert (extent.length, await log.cut_range()) == (0, (0, 0))
    await log.append_cuts(await log.take_epoch(0), 1, BEGIN)


async def test_trimming_keeps_the_entry_and_the_cut_it_is_given(store: Store) -> None:
    log, entries = store.log, await fill(store, 4)
    cuts = [Cut(Position(entry)) for entry in entries]
    await log.append_cuts(await log.take_epoch(0), 1, cuts)
    await log.trim(Position(entries[2]), 3)
    assert (await log.extent()).first == entries[2]
    assert await log.cut_range() == (3, 4)


async def test_a_log_that_lost_its_end_is_not_trimmed(store: Store) -> None:
    """After a step of the server's clock, its new entries have lower ids than those it lost."""
    entries = await fill(store, 2)
    await store.log.trim(Position(EntryId(entries[1].milliseconds + 60_000, 0)), 1)
    assert (await store.log.extent()).first == entries[0]


async def test_entries_after_a_position_are_counted_in_steps(store: Store) -> None:
    entries = await fill(store, 50)
    await store.delete(entries[30])
    assert await store.log.count_after(ORIGIN, entries[-1]) == (49, entries[-1])
    assert await store.log.count_after(entries[9], entries[20]) == (11, entries[20])
    await fill(store, COUNTED_AT_ONCE)
    count, newest = await store.log.count_after(ORIGIN, TOP)
    assert count == COUNTED_AT_ONCE
    assert await store.log.count_after(newest, TOP) == (49, (await store.log.extent()).last)


async def test_the_highest_number_of_a_cut_outlives_the_cut(store: Store) -> None:
    log = store.log
    await log.append_cuts(await log.take_epoch(0), 1, [Cut(Position(EntryId(5, 0)))] * 3)
    await log.trim(Position(EntryId(5, 0)), 4)
    assert await log.cut_range() == (0, 3)


async def test_a_lease_has_one_holder_until_it_ends(store: Store) -> None:
    log = store.log
    assert await log.take_lease("a", 90_000, "") == 1
    assert await log.take_lease("a", 90_000, "") == 2
    assert await log.take_lease("b", 90_000, "") == 0
    await log.release_lease("b")
    assert await log.take_lease("b", 90_000, "") == 0
    await store.end_lease()
    assert await log.take_lease("b", 90_000, "") == 1
    await log.release_lease("b")
    assert await log.take_lease("a", 90_000, "") == 1


async def test_a_lease_is_inherited_with_the_lock(store: Store) -> None:
    assert await store.log.take_lease("dead", 90_000, "lock/") == 1
    assert await store.log.take_lease("stranger", 90_000, "") == 0
    assert await store.log.take_lease("heir", 90_000, "lock/") == 1
