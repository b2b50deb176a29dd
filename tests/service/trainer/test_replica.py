"""A replica at its position in the log: what it repeats, and what it refuses to repeat."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import orjson
import pytest

from service.fold.spec import FOLD_VERSION, Hyperparameters, Spec
from service.fold.step import Fold
from service.log.cuts import Begin, Change, Cut, Gap, Upgrade
from service.log.entries import RawEntry
from service.log.errors import (
    FencedError,
    GapError,
    LogError,
    LogFullError,
    LogUnavailable,
    Stopped,
)
from service.log.position import ORIGIN, TOP, EntryId, Position
from service.trainer import replica as replicas
from service.trainer.checkpoint import Checkpoint
from service.trainer.replica import READ_BYTES
from service.trainer.store import UnreadableError
from tests.support.checkpoints import a_copy, kept
from tests.support.memory_log import MemoryLog, MemoryServer, Network
from tests.support.replicas import a_replica, fill, keep_lease, learn
from tests.support.states import a_batch, same_tensors

T = TypeVar("T")

pytestmark = pytest.mark.anyio


async def test_a_cut_that_no_longer_fits_its_entries_is_not_repeated(
    memory: MemoryServer, log: MemoryLog
) -> None:
    entries, replica = fill(memory, 4), a_replica()
    pending = await replica.recover(log, False, keep_lease)
    await learn(replica, log, pending, 20)
    await replica.record(log, [pending.take(40)[0]])
    memory.delete(entries[2])
    replica.resign()
    with pytest.raises(GapError, match=r"cut 3 .* entries of it are gone"):
        await replica.recover(log, False, keep_lease)
    assert replica.state.examples == 20


async def test_an_entry_learned_in_part_that_is_gone_is_skipped_and_replay_agrees(
    memory: MemoryServer, log: MemoryLog
) -> None:
    entries, replica, again = fill(memory, 3), a_replica(), a_replica()
    pending = await replica.recover(log, False, keep_lease)
    await learn(replica, log, pending, 30)
    before = replica.progress
    memory.delete(entries[1])
    replica.resign()
    pending = await replica.recover(log, True, keep_lease)
    await learn(replica, log, pending, 20)
    assert (replica.progress.position, replica.progress.entries) == (Position(entries[2]), 3)
    again.progress = before
    await again.recover(log, False, keep_lease)
    assert again.progress == replace(replica.progress, epoch=again.progress.epoch)


async def test_a_gap_among_recorded_cuts_is_accepted_and_what_is_there_is_repeated(
    memory: MemoryServer, log: MemoryLog, tmp_path: Path
) -> None:
    """The entry at the position is still there, so that nothing seems to be missing before it."""
    entries, replica, store = fill(memory, 4), a_replica(), kept(tmp_path)[0]
    pending = await replica.recover(log, False, keep_lease)
    await learn(replica, log, pending, 20)
    store.write(Checkpoint.of(replica.state, replica.progress))
    for _ in range(2):
        await learn(replica, log, pending, 20)
    memory.delete(entries[2], entries[3])
    heir, other = a_replica(), a_replica()
    assert heir.load(store)
    assert other.load(store)
    with pytest.raises(GapError, match="cut 4 is not applied yet"):
        await other.recover(log, False, keep_lease)
    pending = await heir.recover(log, True, keep_lease)
    assert (heir.state.examples, heir.progress.position) == (40, Position(entries[1]))
    assert pending.entries == 4


async def test_cuts_without_any_entries_are_a_gap_that_can_be_accepted(
    memory: MemoryServer, log: MemoryLog
) -> None:
    fill(memory, 1)
    replica = a_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 20)
    memory.lose()
    with pytest.raises(GapError, match="its entries are gone"):
        await a_replica().recover(log, False, keep_lease)
    heir = a_replica()
    pending = await heir.recover(log, True, keep_lease)
    fill(memory, 1)
    await learn(heir, log, pending, 20)
    assert (heir.state.examples, heir.progress.entries) == (20, 1)


async def test_after_a_gap_at_the_end_of_the_cuts_every_replica_agrees(
    memory: MemoryServer, log: MemoryLog
) -> None:
    """An entry that no cut has learned is gone; those that were learned are not learned again."""
    entries, replica = fill(memory, 4), a_replica()
    pending = await replica.recover(log, False, keep_lease)
    await learn(replica, log, pending, 20)
    await learn(replica, log, pending, 20)
    memory.delete(entries[2])
    replica.resign()
    heir = a_replica()
    pending = await heir.recover(log, True, keep_lease)
    await learn(heir, log, pending, 20)
    other = a_replica()
    await other.recover(log, True, keep_lease)
    assert heir.state.examples == other.state.examples == 60
    assert same_tensors(heir.state.tensors(), other.state.tensors())


async def test_a_model_that_begins_after_a_gap_records_its_hyperparameters(
    memory: MemoryServer, log: MemoryLog
) -> None:
    entries, replica = fill(memory, 3), a_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 20)
    memory.delete(entries[0])
    memory.cuts.pop(1)
    heir = a_replica()
    await heir.recover(log, True, keep_lease)
    (_, gap), (_, change) = (await log.cuts_after(2))[:2]
    assert isinstance(gap.command, Gap)
    assert isinstance(change.command, Change)
    recorded = Hyperparameters.of(dict(change.command.hyperparameters))
    assert recorded == heir.state.hyperparameters


async def test_an_entry_learned_in_part_that_is_gone_is_noticed_whatever_the_count_of_entries(
    memory: MemoryServer, log: MemoryLog
) -> None:
    entries, replica = fill(memory, 3), a_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 30)
    memory.delete(entries[1])
    memory.added -= 1  # as if a server had lost its end, and others had written as much again
    replica.resign()
    pending = await replica.recover(log, True, keep_lease)
    assert pending.position == Position(entries[1])
    await learn(replica, log, pending, 20)


async def test_a_replica_that_is_further_than_an_accepted_gap_repeats_nothing_after_it(
    memory: MemoryServer, log: MemoryLog
) -> None:
    """Another one has accepted the gap, and has learned entries that this one had learned."""
    entries, replica = fill(memory, 4), a_replica()
    pending = await replica.recover(log, False, keep_lease)
    for _ in range(4):
        await learn(replica, log, pending, 20)
    memory.delete(entries[0])
    heir = a_replica()
    pending = await heir.recover(log, True, keep_lease)
    assert pending.position.entry < entries[3]
    await learn(heir, log, pending, 20)
    replica.resign()
    with pytest.raises(GapError, match="learned again"):
        await replica.recover(log, False, keep_lease)
    assert replica.state.examples == 80


async def test_a_gap_counts_as_accepted_once_its_record_is_confirmed(
    memory: MemoryServer, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries, replica = fill(memory, 3), a_replica()
    pending = await replica.recover(log, False, keep_lease)
    for _ in range(2):
        await learn(replica, log, pending, 20)
    memory.delete(entries[1])
    heir = a_replica()

    async def lose(*_: object) -> None:
        raise LogUnavailable("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(log, "append_cuts", lose)
        with pytest.raises(LogUnavailable):
            await heir.recover(log, True, keep_lease)
    assert heir.progress.cut == 2
    await heir.recover(log, True, keep_lease)
    cuts = [cut for _, cut in await log.cuts_after(0)]
    assert [cut.command for cut in cuts[3:]] == [Gap()]
    assert heir.progress.cut == len(cuts)


class LosingOne(Network):
    """A network that loses the first record of a cut."""

    def __init__(self) -> None:
        self.left = 1

    async def call(self, command: str, execute: Callable[[], T]) -> T:
        if command == "append_cuts" and self.left:
            self.left -= 1
            raise LogUnavailable("the connection was lost")
        return execute()


async def test_a_gap_that_was_not_recorded_is_accepted_again_and_loses_nothing(
    memory: MemoryServer, log: MemoryLog
) -> None:
    """The ids of the new log are lower than the model's position in the old one."""
    memory.add({b"batch": a_batch(0).to_bytes()}, EntryId(1 << 60, 0))
    replica = a_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 20)
    memory.lose()
    memory.uuid = None
    replica.resign()
    faulty = MemoryLog(memory, LosingOne())
    with pytest.raises(LogUnavailable):
        await replica.recover(faulty, True, keep_lease)
    fill(memory, 2)
    pending = await replica.recover(faulty, True, keep_lease)
    for _ in range(2):
        await learn(replica, faulty, pending, 20)
    assert (replica.state.examples, replica.progress.entries) == (60, 2)


async def test_a_replica_that_reconnects_takes_an_epoch_of_its_own_again(
    memory: MemoryServer, log: MemoryLog
) -> None:
    """Another one may have recorded cuts meanwhile, and may still believe that it owns the log."""
    fill(memory, 2)
    one, other = a_replica(), a_replica()
    await learn(one, log, await one.recover(log, False, keep_lease), 20)
    pending = await other.recover(log, False, keep_lease)
    await other.record(log, [pending.take(20)[0]])
    await one.recover(log, False, keep_lease)
    assert one.progress.cut == 3
    assert one.progress.epoch > other.progress.epoch
    with pytest.raises(FencedError):
        await learn(other, log, pending, 20)


async def test_a_replay_that_is_interrupted_names_no_later_epoch_than_its_cuts(
    memory: MemoryServer, log: MemoryLog
) -> None:
    """Otherwise its checkpoint would count as newer than those that lie further ahead."""
    fill(memory, 2)
    replica, heir = a_replica(), a_replica()
    pending = await replica.recover(log, False, keep_lease)
    for _ in range(2):
        await learn(replica, log, pending, 20)
    parts = 0

    async def stop() -> None:
        nonlocal parts
        parts += 1
        if parts == 3:
            raise Stopped("the service is shutting down")

    with pytest.raises(Stopped):
        await heir.recover(log, False, stop)
    assert 0 < heir.progress.cut < replica.progress.cut
    assert heir.progress.epoch < replica.progress.epoch


async def test_a_gap_is_accepted_at_the_start_alone(memory: MemoryServer, log: MemoryLog) -> None:
    fill(memory, 1)
    replica = a_replica()
    await learn(replica, log, await replica.recover(log, True, keep_lease), 20)
    memory.lose()
    memory.uuid = None
    with pytest.raises(GapError, match="another log"):
        await replica.recover(log, True, keep_lease)


async def test_with_a_gap_to_accept_entries_are_counted_from_within_one(
    memory: MemoryServer, log: MemoryLog
) -> None:
    entries, replica = fill(memory, 5), a_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 30)
    memory.delete(entries[3])
    replica.resign()
    pending = await replica.recover(log, True, keep_lease)
    assert (pending.position, pending.entries) == (Position(entries[1], 10), 2)


async def test_long_work_ends_when_the_lease_is_lost(memory: MemoryServer, log: MemoryLog) -> None:
    async def lost() -> None:
        raise FencedError("the lease ran out")

    fill(memory, 2)
    replica = a_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 20)
    for accept_gap in (False, True):
        with pytest.raises(FencedError):
            await a_replica().recover(log, accept_gap, lost)


async def test_a_replay_that_is_stopped_may_still_be_checkpointed(
    memory: MemoryServer, log: MemoryLog
) -> None:
    asked = 0

    async def stop_at_the_third() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise Stopped("the service is shutting down")

    fill(memory, 5)
    replica, again = a_replica(), a_replica()
    pending = await replica.recover(log, False, keep_lease)
    for _ in range(5):
        await learn(replica, log, pending, 20)
    with pytest.raises(Stopped):
        await again.recover(log, False, stop_at_the_third)
    assert again.is_owner
    assert not again.has_recovered
    assert again.progress.cut == 2


async def test_every_takeover_has_an_epoch_of_its_own(log: MemoryLog) -> None:
    taken = [a_replica() for _ in range(3)]
    for replica in taken:
        await replica.recover(log, False, keep_lease)
    assert [replica.progress.epoch for replica in taken] == [1, 2, 3]


async def test_after_a_log_is_deleted_skipped_batches_are_recorded_again(
    memory: MemoryServer, log: MemoryLog
) -> None:
    fill(memory, 2)
    replica = a_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 20)
    await log.record_skipped([["7", "0-0", "1-0", "20", "why"]])
    memory.lose()  # as a damaged log's error advises
    memory.cuts, memory.last_cut = {}, 0
    fill(memory, 1)
    await a_replica().recover(log, True, keep_lease)
    await log.record_skipped([["1", "0-0", "1-0", "20", "why"]])
    assert [letter[b"version"] for letter in memory.dead] == [b"7", b"1"]


async def test_a_log_of_large_entries_is_not_read_in_one_go(memory: MemoryServer) -> None:
    """However many entries wait, a read asks for about READ_BYTES."""
    read: list[int] = []

    class Watched(MemoryLog):
        async def read(self, *arguments: Any) -> list[RawEntry]:
            found = await super().read(*arguments)
            read.append(sum(len(fields[b"batch"]) for _, fields in found))
            return found

    replica, log = a_replica(), Watched(memory)
    for k in range(40):  # small ones at first must not mislead
        memory.add({b"batch": a_batch(0, 40_000 if k > 2 else 1).to_bytes()})
    pending = await replica.recover(log, False, keep_lease)
    while await replica.read(log, pending, None):
        pass
    assert pending.examples == 37 * 40_000 + 3
    assert max(read) <= READ_BYTES + len(a_batch(0, 40_000).to_bytes())


LATER = FOLD_VERSION + 1


def set_version(monkeypatch: pytest.MonkeyPatch, version: int, *replayed: int) -> None:
    monkeypatch.setattr(replicas, "FOLD_VERSION", version)
    monkeypatch.setattr(Fold, "can_replay", lambda _, v: v in (version, *replayed))


async def test_a_log_names_the_version_of_the_fold_that_learns(
    memory: MemoryServer, log: MemoryLog
) -> None:
    fill(memory, 2)
    replica = a_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 20)
    (_, begin), (_, first) = await log.cuts_after(0)
    assert isinstance(begin.command, Begin)
    assert begin.fold == first.fold == FOLD_VERSION


async def test_a_later_version_replays_older_cuts_and_records_the_upgrade_once(
    memory: MemoryServer, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(memory, 3)
    old = a_replica()
    await learn(old, log, await old.recover(log, False, keep_lease), 20)
    set_version(monkeypatch, LATER, FOLD_VERSION)
    new = a_replica()
    pending = await new.recover(log, False, keep_lease)
    assert new.state.examples == 20
    await learn(new, log, pending, 20)
    cuts = [cut for _, cut in await log.cuts_after(2)]
    assert [(cut.command, cut.fold) for cut in cuts] == [(Upgrade(LATER), LATER), (None, LATER)]
    await a_replica().recover(log, False, keep_lease)
    assert (await log.cut_range())[1] == 4


async def test_version_0_1_0_halts_at_an_upgrade_that_it_does_not_know(
    memory: MemoryServer, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked into each command for a spec and compared that, whatever else was there."""
    fill(memory, 2)
    old = a_replica()
    await learn(old, log, await old.recover(log, False, keep_lease), 20)
    set_version(monkeypatch, LATER, FOLD_VERSION)
    new = a_replica()
    await new.recover(log, False, keep_lease)
    command = orjson.loads(orjson.loads(memory.cuts[3])["command"])
    compared = Spec.of(command["spec"])
    assert replace(compared, model=new.state.spec.model) == new.state.spec != compared
    assert "learned by a later version of Funnel" in compared.model
    [(_, cut)] = await log.cuts_after(2)
    assert cut.command == Upgrade(LATER)


async def test_a_log_of_a_later_version_is_refused_by_name(
    memory: MemoryServer, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(memory, 2)
    with monkeypatch.context() as later:
        set_version(later, LATER)
        replica = a_replica()
        await learn(replica, log, await replica.recover(log, False, keep_lease), 20)
    old = a_replica()
    with pytest.raises(LogError, match=f"cut 1 was learned by version {LATER}") as refused:
        await old.recover(log, False, keep_lease)
    assert f"executes version {FOLD_VERSION}. Run the version that recorded" in str(refused.value)
    assert old.state.examples == 0


async def test_a_command_that_this_version_does_not_know_is_refused_by_name(
    log: MemoryLog, memory: MemoryServer
) -> None:
    memory.cuts[1] = (
        Cut(Position(ORIGIN))
        .to_json()
        .replace('"command":""', '"command":"{\\"promote\\": \\"adam\\"}"')
    )
    with pytest.raises(LogError, match=r"cut 1 carries a command .*promote.* then upgrade"):
        await a_replica().recover(log, False, keep_lease)


def test_a_checkpoint_of_a_later_version_is_not_loaded(tmp_path: Any) -> None:
    store, _ = kept(tmp_path)
    store.write(replace(a_copy(), fold=FOLD_VERSION + 1))
    replica = a_replica()
    with pytest.raises(UnreadableError, match=f"version {FOLD_VERSION + 1} of the fold"):
        replica.load(kept(tmp_path)[0])
    assert replica.state.version == 0


async def test_an_entry_learned_in_part_does_not_count_as_waiting_twice(
    memory: MemoryServer, log: MemoryLog
) -> None:
    fill(memory, 3)
    replica = a_replica()
    await learn(replica, log, await replica.recover(log, False, keep_lease), 30)
    assert replica.progress.position == Position(EntryId(*list(memory.entries)[1]), 10)
    assert replica.progress.entries == 1


def summed(raw: bytes) -> dict[bytes, bytes]:
    """Fields of an entry with a checksum."""
    return {b"batch": raw, b"crc32": b"%d" % crc32(raw)}


def flip_a_bit(memory: MemoryServer, entry: EntryId) -> None:
    """Damage the last number of an entry's features."""
    fields = memory.entries[entry]
    raw = fields[b"batch"]
    memory.entries[entry] = fields | {b"batch": raw[:-2] + bytes([raw[-2] ^ 1]) + raw[-1:]}


async def test_a_damaged_entry_is_a_dead_letter_and_counted_once(
    memory: MemoryServer, log: MemoryLog
) -> None:
    entries = [memory.add(summed(a_batch(k).to_bytes())) for k in range(3)]
    flip_a_bit(memory, entries[1])
    replica = a_replica()
    for _ in range(2):  # it is read again after a reconnection
        pending = await replica.recover(log, False, keep_lease)
        await replica.read(log, pending, None)
    await learn(replica, log, pending, 40)
    assert replica.damaged_entries == 1
    assert replica.state.examples == 40
    assert replica.progress.dead == 1
    [letter] = memory.dead
    assert b"CRC-32" in letter[b"reason"]


async def test_an_entry_that_was_damaged_after_it_was_learned_is_not_replayed(
    memory: MemoryServer, log: MemoryLog
) -> None:
    [entry] = [memory.add(summed(a_batch(0).to_bytes()))]
    first, again = a_replica(), a_replica()
    await learn(first, log, await first.recover(log, False, keep_lease), 20)
    flip_a_bit(memory, entry)
    with pytest.raises(LogError, match=f"cut 2 has learned entry {entry}, but now its CRC-32"):
        await again.recover(log, False, keep_lease)
    assert again.state.examples == 0


async def test_an_entry_with_the_highest_id_is_not_learned(
    memory: MemoryServer, log: MemoryLog
) -> None:
    replica = a_replica()
    pending = await replica.recover(log, False, keep_lease)
    memory.add({b"batch": a_batch(0).to_bytes()}, TOP)
    with pytest.raises(LogFullError, match="can take no more entries"):
        await replica.read(log, pending, None)


async def test_the_mean_size_of_entries_follows_the_reads(
    memory: MemoryServer, log: MemoryLog
) -> None:
    replica = a_replica()
    pending = await replica.recover(log, False, keep_lease)
    for n, mean in ((10, 10), (30, 11)):
        memory.add({b"batch": a_batch(n, n).to_bytes()})
        await replica.read(log, pending, None)
        assert replica.mean_entry == pytest.approx(mean)
