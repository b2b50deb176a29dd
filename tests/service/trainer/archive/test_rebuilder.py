"""A model is rebuilt without some examples, or as it was, and every replay follows that."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from service.log.cuts import Rebuild
from service.log.errors import FencedError, LogError
from service.trainer.archive.archive import RebuiltName
from service.trainer.archive.rebuilder import Ask, Outcome, Rebuilder
from service.trainer.archive.replay import Place, Target, UnreachableError
from service.trainer.archive.rules import Rule, RuleError
from service.trainer.checkpoint import Checkpoint
from service.trainer.replica import Replica
from service.trainer.worker import Worker
from tests.service.trainer.archive.test_archivist import Bench
from tests.support.memory_log import MemoryLog
from tests.support.replicas import a_replica, keep_lease
from tests.support.states import a_batch, same_tensors, step

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.replica = follower(bench)
    await bench.begin()
    return bench


def follower(bench: Bench) -> Replica:
    replica = a_replica(bench.clock)
    replica._rebuilt = bench.archive.rebuilt
    return replica


async def add(bench: Bench, *seeds: int, source: str = "") -> None:
    """Let each of some batches be an entry, learn it, and archive all."""
    await more(bench, *seeds, source=source)
    await bench.write()


async def more(bench: Bench, *seeds: int, source: str = "") -> None:
    for seed in seeds:
        bench.clock.now += 1
        fields = {b"batch": a_batch(seed).to_bytes()}
        bench.memory.add(fields | ({b"source": source.encode()} if source else {}))
        await bench.learn_next()


def digest_of(replica: Replica) -> str:
    return Checkpoint.of(replica.state, replica.progress).sha256()


async def rebuild(bench: Bench, rule: Rule, is_dry: bool = False) -> Outcome:
    rebuilder = Rebuilder(Place(bench.archive, bench.store), Worker("rebuild"), bench.clock)
    ask = Ask(rule, partial(Rebuild, "ops", 1), is_dry)
    return await rebuilder.rebuild(bench.replica, bench.log, ask, keep_lease)


def seeds_learned(bench: Bench, *seeds: int) -> bool:
    """Return whether the model is that of these batches alone, in their order."""
    other = a_replica().state
    for seed in seeds:
        step(other, a_batch(seed))
    own = bench.replica.state.tensors()
    return all(
        bool((own[name] == tensor).all())
        for name, tensor in other.tensors().items()
        if name.startswith("model.")
    )


async def test_a_source_is_skipped_and_later_examples_stay_learned(bench: Bench) -> None:
    await add(bench, 1, 2)
    begin = round(1_000 * bench.clock.now)
    await add(bench, 3, 4, source="bad")
    await add(bench, 5, source="good")
    end = round(1_000 * (bench.clock.now + 1))
    await add(bench, 6)
    rule = Rule(source="bad", since=begin, until=end)
    dry = await rebuild(bench, rule, is_dry=True)
    assert (dry.cut, dry.examples, dry.batches, dry.version) == (0, 40, 2, 6)
    assert seeds_learned(bench, 1, 2, 3, 4, 5, 6)
    outcome = await rebuild(bench, rule)
    assert outcome == replace(dry, cut=8)
    assert seeds_learned(bench, 1, 2, 5, 6)
    assert (bench.replica.state.version, bench.replica.state.examples) == (8, 80)
    assert await rebuild(bench, rule) == replace(dry, version=8), "once is enough"


async def test_every_replay_goes_on_from_the_state_that_was_put_in_place(bench: Bench) -> None:
    await add(bench, *range(1, 6))
    entries = list(bench.memory.entries)
    await rebuild(bench, Rule(entries=(str(entries[-1]),)))
    await more(bench, 6)
    digest = digest_of(bench.replica)
    heir = follower(bench)
    assert heir.load(bench.store), "a checkpoint from before the rebuild"
    await heir.recover(bench.log, False, keep_lease)
    assert digest_of(heir) == digest
    await bench.write()
    assert (await bench.replayed(Target(), is_whole=True))[0] == digest
    cut = bench.replica.commands[-1].cut
    assert (await bench.replayed(Target(version=cut)))[1].state.version == cut
    assert (await bench.replayed(Target(version=5)))[0] == bench.digests[6]


async def test_a_model_goes_back_to_a_version_and_on_from_the_position(bench: Bench) -> None:
    await add(bench, *range(1, 7))
    position = bench.replica.progress.position
    outcome = await rebuild(bench, Rule(version=3))
    assert (outcome.cut, outcome.examples, outcome.batches, outcome.version) == (8, 60, 3, 6)
    assert seeds_learned(bench, 1, 2, 3)
    assert bench.replica.progress.position == position
    await more(bench, 7)
    assert seeds_learned(bench, 1, 2, 3, 7)
    assert bench.replica.state.version == 9
    with pytest.raises(UnreachableError, match="never had version 7, but 6"):
        await rebuild(bench, Rule(version=7))
    with pytest.raises(UnreachableError, match="has version 9"):
        await rebuild(bench, Rule(version=10))


async def test_a_rebuild_holds_in_later_ones(bench: Bench) -> None:
    await more(bench, *range(1, 5))
    entries = list(map(str, bench.memory.entries))
    await bench.write()
    await rebuild(bench, Rule(entries=(entries[1],)))
    await add(bench, 5, 6)
    await rebuild(bench, Rule(entries=(entries[0],)))
    assert seeds_learned(bench, 3, 4, 5, 6)
    await add(bench, 7)
    await rebuild(bench, Rule(version=4))
    assert seeds_learned(bench, 3, 4), "what was skipped stays so when it goes back before that"
    await add(bench, 8)
    await rebuild(bench, Rule(entries=(entries[3],)))
    assert seeds_learned(bench, 3, 8), "what it has gone back from stays away"


async def test_a_kill_in_between_leaves_the_history_as_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await add(bench, *range(1, 4))
    entry, before = str(next(iter(bench.memory.entries))), bench.replica.progress

    async def fenced(*_: object, **__: object) -> None:
        raise FencedError("another trainer has taken over")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryLog, "append_cuts", fenced)
        with pytest.raises(FencedError):
            await rebuild(bench, Rule(entries=(entry,)))
    assert bench.replica.progress == before
    assert seeds_learned(bench, 1, 2, 3)
    assert any(map(RebuiltName.parse, (path.name for path in (tmp_path / "archive").iterdir())))
    heir = follower(bench)
    heir.load(bench.store)
    await heir.recover(bench.log, False, keep_lease)
    assert same_tensors(heir.state.tensors(), bench.replica.state.tensors())


async def test_without_its_file_a_replay_halts_and_names_it(bench: Bench, tmp_path: Path) -> None:
    await add(bench, *range(1, 4))
    await rebuild(bench, Rule(entries=(str(next(iter(bench.memory.entries))),)))
    bench.archive.limits = replace(bench.archive.limits, bytes=0)
    bench.archive.prune()
    (path,) = [one for one in (tmp_path / "archive").iterdir() if RebuiltName.parse(one.name)]
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    for damaged in (True, False):
        if damaged:
            path.write_bytes(raw)
        else:
            path.unlink()
        heir = follower(bench)
        heir.load(bench.store)
        with pytest.raises(LogError, match=path.name):
            await heir.recover(bench.log, False, keep_lease)


async def test_what_is_too_old_cannot_be_skipped(bench: Bench, tmp_path: Path) -> None:
    for seed in range(1, 8):
        await add(bench, seed)
    for path in (tmp_path / "archive").iterdir():
        path.unlink()
    with pytest.raises(UnreachableError, match="no checkpoint is kept that is older"):
        await rebuild(bench, Rule(since=1, until=1 << 40))


@pytest.mark.parametrize(
    "rule",
    [
        lambda: Rule(),
        lambda: Rule(entries=("x",)),
        lambda: Rule(source="bad"),
        lambda: Rule(since=5, until=5),
        lambda: Rule(version=-1),
    ],
)
def test_a_rule_names_something(rule: Callable[[], Rule]) -> None:
    with pytest.raises(RuleError):
        rule()


async def test_a_damaged_archive_is_an_error_of_the_request_alone(
    bench: Bench, tmp_path: Path
) -> None:
    for seed in range(1, 8):
        await add(bench, seed)
    entry, before = str(bench.archive.read(bench.archive.segments()[0]).entries[0][0]), 8
    for path in (tmp_path / "archive").glob("segment-*"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnreachableError, match=r"cannot be replayed: the SHA-256 of segment-"):
        await rebuild(bench, Rule(entries=(entry,)))
    assert bench.replica.progress.cut == before
