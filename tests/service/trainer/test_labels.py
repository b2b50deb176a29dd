"""Labels that come later: which question each meets, whatever interrupts the trainer."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river.stream import simulate_qa

from service.fold.state import State
from service.fold.step import Fold
from service.log.cuts import Cut
from service.log.entries import Fields
from service.log.errors import FencedError, GapError
from service.log.labels import Join, Place, Result, hash_of
from service.log.position import EntryId, Position, Progress
from service.trainer import replica
from service.trainer.checkpoint import Checkpoint, decode, encode
from service.trainer.joining import index, joiner
from service.trainer.joining.joins import Joins
from streams.batch import Batch
from streams.batch import decode as decode_batch
from streams.examples import joined
from streams.rows.rows import Chunk, Rows
from tests.support.clock import StillClock
from tests.support.lives import Life, a_life, cuts_of
from tests.support.memory_log import MemoryServer
from tests.support.named import a_row_spec, a_row_state, records, some_rows
from tests.support.questions import ask, features_of, fields_of, label, questions
from tests.support.states import CPU, HYPERPARAMETERS, a_batch, a_spec, a_state

pytestmark = pytest.mark.anyio


def expected_digest(server: MemoryServer, truth: dict[str, int]) -> str:
    """Fold the recorded cuts straight, and find the questions by their ids alone.

    Args:
        server: with everything that was ever added.
        truth: the label that is learned with each id.
    """
    state = a_state()
    fold, ids, left = Fold(state), {hash_of(text): text for text in truth}, dict(truth)
    plain = {entry: own for entry, own in server.entries.items() if b"batch" in own}

    def asked(place: Place | None) -> Batch:
        assert place is not None
        hashes = server.asked[place.entry][b"ids"]
        text = ids[hashes[16 * place.row : 16 * place.row + 16]]
        return Batch(features_of(text)[None], np.array([left.pop(text)]))

    for cut in cuts_of(server):
        parts = [(e, decode_batch(own[b"batch"])) for e, own in plain.items() if covers(cut, e)]
        plain = {entry: own for entry, own in plain.items() if not covers(cut, entry)}
        for entry, joins in cut.joins.items():
            parts += [(entry, asked(join.place)) for join in joins if join.place is not None]
        parts.sort(key=lambda part: part[0])
        batches = [batch for _, batch in parts] + [asked(join.place) for join in cut.met]
        assert sum(map(len, batches)) == cut.examples
        if batches:
            report = fold.step(joined(batches))
            state.drift.note(report, cut.examples, state.examples, cut.position)
    assert not left, "each question with a label is learned"
    return Checkpoint.of(state, Progress()).sha256()


def covers(cut: Cut, entry: EntryId) -> bool:
    return cut.position.covers(entry)


IDS = [f"q{k}" for k in range(8)]
TEXTS = st.sampled_from(IDS)
ASK = st.tuples(st.just("ask"), st.lists(TEXTS, min_size=1, max_size=3, unique=True))
LABEL = st.tuples(st.just("label"), st.dictionaries(TEXTS, st.integers(0, 2), min_size=1))
REST = st.tuples(st.sampled_from(["learn", "turn", "keep", "again"]), st.none())


@settings(max_examples=60, deadline=None)
@given(st.lists(ASK | LABEL | REST | REST, min_size=10, max_size=40))
def test_any_interleaving_learns_each_question_once_with_its_first_label(
    actions: list[tuple[str, Any]],
) -> None:
    async def run() -> None:
        life = await a_life()
        asked: set[str] = set()
        first: dict[str, int] = {}
        for kind, what in actions:
            life.clock.now += 0.01
            if kind == "ask" and (new := [text for text in what if text not in asked]):
                asked.update(new)
                ask(life.server, *new)
            elif kind == "label":
                label(life.server, **what)
                first = what | first
            elif kind == "learn":
                life.server.add({b"batch": a_batch(len(life.server.entries), 1).to_bytes()})
            elif kind == "turn":
                await life.turn(2)
            elif kind == "keep":
                await life.stand_still()
                life.keep()
            elif kind == "again":
                await life.again()
        await life.settle()
        truth = {text: own for text, own in first.items() if text in asked}
        digest = life.keep().sha256()
        life.last = None
        await life.again()
        replayed = life.keep()
        await life.end()
        assert replayed.sha256() == digest
        assert replayed.joins.counts[Result.JOINED] == len(truth)
        assert {*replayed.joins.waiting} == {hash_of(text) for text in first.keys() - asked}
        assert expected_digest(life.server, truth) == digest

    asyncio.run(run())


WAIT = st.tuples(st.just("wait"), st.integers(1, 15))


@settings(max_examples=40, deadline=None)
@given(st.lists(ASK | LABEL | REST | WAIT, min_size=10, max_size=40), st.booleans())
def test_whatever_times_out_or_is_evicted_replays_to_the_same_state(
    actions: list[tuple[str, Any]], learns_last: bool
) -> None:
    """Ids are asked again at any time, labels come late or never, and memory is short."""

    async def run() -> None:
        limits = {"ttl": 30.0, "grace": 10.0, "timeout": 20.0, "default": "0", "most_bytes": 2_000}
        life = await a_life(keeps="last" if learns_last else "first", **limits)
        for kind, what in actions:
            life.clock.now += 0.01
            if kind == "ask":
                ask(life.server, *what)
            elif kind == "label":
                label(life.server, **what)
            elif kind == "learn":
                life.server.add({b"batch": a_batch(len(life.server.entries), 1).to_bytes()})
            elif kind == "turn":
                await life.turn(2)
            elif kind == "wait":
                life.clock.now += what
                await life.watch()
            elif kind == "keep":
                await life.stand_still()
                life.keep()
                asked = life.replica.progress.asked
                life.server.trim(Position(EntryId(0, 0)), 0, asked)
            elif kind == "again":
                await life.again()
        await life.settle()
        digest, joins = life.keep().sha256(), life.replica.joins.copy()
        await life.again()
        assert (life.keep().sha256(), life.replica.joins) == (digest, joins)
        await life.end()
        cuts = cuts_of(life.server)
        each = [join for cut in cuts for own in (*cut.joins.values(), cut.met) for join in own]
        places = [j.place for j in each if j.place is not None and j.result != Result.CONFLICT]
        assert len(places) == len(set(places)), "no question is learned twice"

    asyncio.run(run())


async def test_an_entry_of_labels_larger_than_a_batch_is_cut_anywhere() -> None:
    life = await a_life()
    ids = [f"q{k}" for k in range(8)]
    ask(life.server, *ids)
    entry = label(life.server, x=0, **{text: k % 3 for k, text in enumerate(ids)})
    await life.settle()
    shown = [[str(j.result)[0] for j in cut.joins[entry]] for cut in cuts_of(life.server)[1:]]
    assert ["".join(results) for results in shown] == ["wjjj", "jjj", "jj"]
    digest = life.keep().sha256()
    for number in (2, 3):  # one died with a part of the entry learned
        part = await a_life()
        part.server.entries, part.server.last = dict(life.server.entries), life.server.last
        part.server.asked, part.server.added = dict(life.server.asked), life.server.added
        part.server.cuts = {n: t for n, t in life.server.cuts.items() if n <= number}
        part.server.last_cut = number
        part.server.every_cut = []
        await part.again()
        await part.settle()
        assert part.keep().sha256() == digest
        assert part.replica.joins.counts == life.replica.joins.counts
        await part.end()
    await life.end()


async def test_a_label_that_comes_first_waits_and_then_is_unknown() -> None:
    life = await a_life(grace=60.0)
    assert await life.decided(a=1) == ["waiting"]
    assert await life.decided(a=1) == ["duplicate"]
    assert await life.decided(a=2) == ["conflict"]
    await life.pass_time(30)
    ask(life.server, "a")
    await life.settle()
    assert life.replica.joins.counts[Result.JOINED] == 1
    assert await life.decided(b=1) == ["waiting"]
    await life.pass_time(61)
    assert (life.replica.joins.counts[Result.UNKNOWN], life.replica.joins.waiting) == (1, {})
    ask(life.server, "b")
    await life.settle()
    assert life.replica.state.examples == 1
    await life.end()


async def test_no_more_labels_wait_than_memory_is_meant_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joiner, "MOST_WAITING", 2)
    life = await a_life()
    assert await life.decided(a=1, b=1, c=1) == ["waiting", "waiting", "unknown"]
    await life.end()


async def test_without_grace_a_label_before_its_question_is_unknown() -> None:
    life = await a_life(grace=0.0)
    assert await life.decided(a=1) == ["unknown"]
    await life.end()


@pytest.mark.parametrize(("learns_last", "examples"), [(False, 1), (True, 2)])
async def test_a_second_label_that_differs_is_a_conflict(learns_last: bool, examples: int) -> None:
    life = await a_life(keeps="last" if learns_last else "first")
    ask(life.server, "a")
    assert await life.decided(a=1) == ["joined"]
    assert await life.decided(a=1) == ["duplicate"]
    assert await life.decided(a=2) == ["conflict"]
    assert await life.decided(a=2) == ["duplicate" if learns_last else "conflict"]
    assert life.replica.state.examples == examples
    digest = life.keep().sha256()
    life.last = None
    await life.again()
    assert life.keep().sha256() == digest
    await life.end()


async def test_a_question_is_closed_after_its_time_and_its_label_is_late() -> None:
    life = await a_life(ttl=120.0)
    old = ask(life.server, "old")
    await life.pass_time(60)
    new = ask(life.server, "new")
    assert await life.decided(other=0) == ["waiting"]
    await life.pass_time(64)
    assert life.replica.progress.asked == new
    assert await life.decided(old=1, new=1) == ["late", "joined"]
    assert life.replica.joiner.summary[:3] == (0, life.replica.joiner.summary.bytes, 1)
    life.server.trim(Position(EntryId(0, 0)), 0, life.keep().progress.asked)
    assert [*life.server.asked] == [new] != [old]
    await life.again()
    assert await life.decided(new=1) == ["duplicate"]
    await life.pass_time(121)
    assert life.replica.joiner.summary[:3] == (0, 0, 0)
    assert not life.replica.joins.used
    await life.end()


@pytest.mark.parametrize("seconds", [None, 20.0])
async def test_nothing_is_held_of_questions_that_were_closed_long_ago(
    seconds: float | None,
) -> None:
    life = await a_life(ttl=60.0, timeout=seconds, default="0")
    for k in range(20):
        ask(life.server, f"{k}", f"{k}-")
        life.clock.now += 10.0
        await life.watch()
    await life.pass_time(200)
    await life.pass_time(5)
    assert life.replica.joiner._index.held == 0
    assert not life.replica.joiner._index._places
    await life.end()


async def test_a_question_that_is_read_between_two_looks_at_the_time_has_its_whole_time() -> None:
    life = await a_life(ttl=4.0)
    await life.settle()
    life.clock.now += 3.0
    ask(life.server, "a")
    label(life.server, other=1)  # it reads the questions
    await life.replica.read(life.log, life.pipeline.pending, None, True)
    life.clock.now += 3.5
    await life.settle()
    assert await life.decided(a=1) == ["joined"]
    await life.end()


async def test_labels_that_wait_to_be_read_are_in_time() -> None:
    """The trainer was away; what came meanwhile is learned before anything is closed."""
    life = await a_life(ttl=600.0)
    ask(life.server, "a")
    await life.settle()
    life.clock.now += 30
    entry = label(life.server, a=1)
    life.clock.now += 900
    await life.again()
    await life.settle()
    assert life.results[entry] == ["joined"]
    assert await life.decided(a=1) == ["late"]
    assert life.delays == [30.0]
    await life.end()


@pytest.mark.parametrize("jump", [-7_200.0, 7_200.0])
async def test_a_jump_of_the_servers_clock_closes_nothing(jump: float) -> None:
    life = await a_life(ttl=60.0)
    server = life.server.clock = StillClock(100_000.0)
    ask(life.server, "a")
    await life.settle()
    for step in (1.0, jump, 1.0, 1.0):
        server.now += step
        life.clock.now += 1.0
        await life.settle()
    ask(life.server, "b")
    assert await life.decided(a=1, b=2) == ["joined", "joined"]
    await life.end()


async def test_an_id_that_is_asked_again_is_that_of_the_newer_question() -> None:
    life = await a_life()
    ask(life.server, "a", "b")
    newer = ask(life.server, "a")
    assert await life.decided(a=1, b=1) == ["joined", "joined"]
    assert Place(newer, 0) in life.replica.joins.used
    ask(life.server, "a")
    assert await life.decided(a=1) == ["duplicate"]
    assert life.replica.joiner.summary.open == 0
    await life.again()
    assert await life.decided(a=2) == ["conflict"]
    await life.end()


async def test_a_question_that_is_read_while_others_are_fetched_is_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life = await a_life()
    ask(life.server, "a")
    await life.watch()
    fetch, joiner, rules = life.log.questions, life.replica.joiner, life.replica._rules
    asked = []

    async def meanwhile(entries: Sequence[EntryId]) -> list[Fields]:
        found = await fetch(entries)
        if not asked:
            asked.append(ask(life.server, "b"))
            await joiner.catch_up(life.log, rules)
        return found

    monkeypatch.setattr(life.log, "questions", meanwhile)
    assert await life.decided(a=1, b=2) == ["joined", "joined"]
    assert asked
    await life.end()


async def test_other_work_goes_on_while_many_labels_are_decided_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joiner, "AT_ONCE", 2)
    life = await a_life(timeout=1.0, default="0")
    ids = [f"q{k}" for k in range(20)]
    ask(life.server, *ids)
    await life.watch()
    entry = label(life.server, **dict.fromkeys(ids[:10], 1))
    reading = asyncio.create_task(life.replica.read(life.log, life.pipeline.pending, None, True))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        if life.replica.joiner.is_deciding:
            turns += 1
            assert life.pipeline._cut() == [], "nothing is recorded of what is half decided"
    assert turns >= 5
    await life.settle()
    assert life.results[entry] == ["joined"] * 10
    await life.pass_time(2)
    assert life.replica.joins.counts["timeout"] == 10
    await (await life.replayed()).end()


async def test_a_look_at_the_questions_does_not_wait_for_the_end_of_a_long_join(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica, "REST_SECONDS", 0.01)
    life = await a_life()
    own = life.replica.joiner
    asked = ask(life.server, "a")
    own.rests.clear()
    await life.watch()
    assert own.newest < asked
    own.rests.set()
    await life.watch()
    assert own.newest == asked
    await life.end()


async def test_more_questions_than_a_look_may_read_are_left_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica, "READ_QUESTIONS", 4)
    life = await a_life(grace=1.0)
    entry = label(life.server, q9=1)
    await life.settle()
    asked = [ask(life.server, f"q{k}") for k in range(10)]
    newest = []
    for _ in range(3):
        life.clock.now += 2.0  # more than the grace of a label, whose question is there
        await life.turn()
        newest.append(life.replica.joiner.newest)
    assert newest == [asked[3], asked[7], asked[9]]
    await life.settle()
    assert life.results[entry] == ["waiting"]
    assert life.replica.joins.counts["joined"] == 1
    await (await life.replayed()).end()


async def test_other_work_goes_on_while_many_questions_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joiner, "AT_ONCE", 1)
    life = await a_life()
    ids = [f"q{k}" for k in range(20)]
    for own in ids:
        ask(life.server, own)
    label(life.server, **dict.fromkeys(ids, 1))
    own, turns = life.replica.joiner, 0
    reading = asyncio.create_task(life.replica.read(life.log, life.pipeline.pending, None, True))
    while not reading.done():
        await asyncio.sleep(0)
        turns += not own.rests.is_set()
    assert turns > 20
    await life.settle()
    assert life.replica.joins.counts["joined"] == 20
    await life.end()


async def test_many_questions_are_closed_and_forgotten_one_part_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index, "CLOSED_AT_ONCE", 2)
    life = await a_life(ttl=60.0)
    asked = [ask(life.server, f"q{k}") for k in range(6)]
    await life.watch()
    life.clock.now += 61.0
    await life.settle()
    closed = [cut.closed for cut in cuts_of(life.server) if cut.closed != EntryId(0, 0)]
    assert closed[:2] == [asked[2], asked[4]]
    assert closed[2] > asked[5]
    assert len(closed) == 3
    await life.pass_time(130)
    await life.pass_time(2)
    assert life.replica.joiner._index.held == 0
    await (await life.replayed()).end()


async def test_entries_with_too_many_labels_for_one_read_are_left_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica, "READ_LABELS", 4)
    life = await a_life()
    ids = [f"q{k}" for k in range(12)]
    ask(life.server, *ids)
    entries = [label(life.server, **dict.fromkeys(ids[k : k + 3], 1)) for k in range(0, 12, 3)]
    life.server.add({b"batch": a_batch(0, 1).to_bytes()})
    pending = life.pipeline.pending
    await life.replica.read(life.log, pending, None, True)
    assert pending.newest == entries[1]
    await life.settle()
    assert [life.results[entry] for entry in entries] == [["joined"] * 3] * 4
    assert life.replica.state.examples == 13
    await (await life.replayed()).end()


@pytest.mark.parametrize(("learns_last", "default"), [(False, "0"), (True, "0")])
async def test_a_label_supersedes_a_default_that_is_not_recorded_yet(
    learns_last: bool, default: str
) -> None:
    life = await a_life(keeps="last" if learns_last else "first", timeout=60.0, default=default)
    ask(life.server, "a", "b")
    await life.settle()
    life.clock.now += 61.0
    await life.watch()
    assert life.replica.joiner.met_since is not None
    entry = label(life.server, a=1, b=0)
    assert life.pipeline._reading is not None
    await life.pipeline._reading
    await life.settle()
    assert life.results[entry] == ["waiting", "duplicate"]
    assert [join.label for cut in cuts_of(life.server) for join in cut.met] == [1, 0]
    digest = life.keep().sha256()
    life.last = None
    await life.again()
    assert life.keep().sha256() == digest
    assert life.replica.state.examples == 2
    await life.end()


HURT: dict[str, Callable[[Fields], Fields]] = {
    "other features": lambda own: own | {b"batch": fields_of(questions(["z"]))[b"batch"]},
    "no checksum": lambda own: {k: v for k, v in own.items() if k != b"crc32"},
    "no features": lambda own: {k: v for k, v in own.items() if k != b"batch"},
    "a text for a checksum": lambda own: own | {b"crc32": b"x"},
    "no ids": lambda own: {k: v for k, v in own.items() if k != b"ids"},
    "half an id": lambda own: own | {b"ids": own[b"ids"][:9]},
    "nothing": lambda own: {b"a": b"b"},
    "rows": lambda own: fields_of(questions(["a"], some_rows(0, 1))),
    "other width": lambda own: fields_of(questions(["a"], np.zeros((1, 9), np.float32))),
}


@pytest.mark.parametrize("kind", HURT)
async def test_a_question_that_was_edited_by_hand_is_counted_and_not_learned(kind: str) -> None:
    life = await a_life(grace=0.0)
    life.server.ask(HURT[kind](fields_of(questions(["a"]))))
    ask(life.server, "b")
    assert await life.decided(a=1, b=1) == ["unknown", "joined"]
    assert life.replica.joiner.summary.damaged == 1
    assert life.replica.state.examples == 1
    await life.end()


async def test_a_question_that_was_deleted_is_unknown() -> None:
    life = await a_life()
    entry = ask(life.server, "a")
    await life.watch()
    del life.server.asked[entry]
    assert await life.decided(a=1) == ["unknown"]
    await life.end()


@pytest.mark.parametrize("step", [1.0, -5.0, -7_200.0])
@pytest.mark.parametrize("restarts", [False, True])
async def test_questions_after_their_stream_was_deleted_are_read_although_the_clock_went_back(
    step: float, restarts: bool
) -> None:
    life = await a_life(ttl=60.0)
    server = life.server.clock = StillClock(100_000.0)
    ask(life.server, "old", "open")
    assert await life.decided(old=1) == ["joined"]
    for _ in range(70):
        server.now += 1.0
        life.clock.now += 1.0
        await life.watch()
    await life.settle()
    ask(life.server, "new")
    await life.settle()
    life.keep()
    life.server.asked, life.server.last_asked = {}, EntryId(0, 0)
    server.now += step
    if step > -60.0:
        ask(life.server, "at once")
    if restarts:
        await life.again()
    await life.watch()
    ask(life.server, "later")
    assert await life.decided(later=1) == ["joined"]
    if step > -60.0:
        assert await life.decided(**{"at once": 1}) == ["joined"]
    assert life.replica.state.examples == (2 if step == -7_200.0 else 3)
    await life.end()


async def test_questions_that_come_while_the_log_is_looked_at_are_no_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    life = await a_life()
    ask(life.server, "a")
    extent = await life.log.extent()
    ask(life.server, "b")
    await life.watch()
    await life.replica.watch_questions(life.log, extent, False)
    assert await life.decided(a=1, b=2) == ["joined", "joined"]
    assert "were deleted" not in caplog.text
    await life.end()


async def test_a_question_that_a_recorded_cut_needs_and_that_is_gone_is_a_gap() -> None:
    life = await a_life()
    entry = ask(life.server, "a")
    assert await life.decided(a=1) == ["joined"]
    del life.server.asked[entry]
    await life.end()
    with pytest.raises(GapError, match="of the questions that it learns is gone"):
        await life.begin()


BAD = {
    "not JSON": b"{",
    "not unicode": b'{"ids": ["\xff"], "labels": [1]}',
    "half a pair of surrogates": b'{"ids": ["\\ud800"], "labels": [1]}',
    "an empty id": b'{"ids": [""], "labels": [1]}',
    "an id of 10,000 bytes": b'{"ids": ["%s"], "labels": [1]}' % (b"x" * 10_000),
    "no ids": b'{"ids": [], "labels": []}',
    "an id that is a list": b'{"ids": [["a"]], "labels": [1]}',
    "a boolean for an id": b'{"ids": [true], "labels": [1]}',
    "fewer labels": b'{"ids": ["a", "b"], "labels": [1]}',
    "a label outside": b'{"ids": ["a"], "labels": [3]}',
    "a text for a label": b'{"ids": ["a"], "labels": ["x"]}',
    "a weight below 0": b'{"ids": ["a"], "labels": [1], "weights": [-1]}',
    "another field": b'{"ids": ["a"], "labels": [1], "rows": []}',
    "a key twice": b'{"ids": ["a"], "ids": ["a"], "labels": [1]}',
    "a short hash": b'{"hashes": ["00"], "labels": [1]}',
    "a list": b"[]",
}


@pytest.mark.parametrize("kind", BAD)
async def test_labels_that_cannot_be_read_are_a_dead_letter(kind: str) -> None:
    life = await a_life()
    ask(life.server, "a")
    entry = life.server.add({b"labels": BAD[kind]})
    assert await life.decided(a=1) == ["joined"]
    [letter] = life.server.dead
    assert letter[b"entry"] == str(entry).encode()
    assert letter[b"reason"]
    assert (life.replica.progress.dead, life.replica.state.examples) == (1, 1)
    await life.end()


async def test_weights_come_with_labels_and_integers_are_ids() -> None:
    life = await a_life()
    ask(life.server, "7", "a")
    entry = life.server.add(
        {b"labels": b'{"ids": [7, "a"], "labels": [1, 2], "weights": [0.5, 1]}'}
    )
    await life.settle()
    assert life.results[entry] == ["joined", "joined"]
    [pair] = [joins for cut in cuts_of(life.server) for joins in cut.joins.values()]
    assert len(pair) == 2
    digest = life.keep().sha256()
    life.last = None
    await life.again()
    assert life.keep().sha256() == digest
    await life.end()


async def test_a_standby_takes_over_with_open_questions() -> None:
    first = await a_life()
    ask(first.server, "a", "b", "c")
    assert await first.decided(a=1, d=1) == ["joined", "waiting"]
    second = await Life(first.server, first.clock, first.keep()).begin()
    label(first.server, b=2)
    await second.settle()
    with pytest.raises(FencedError):
        await first.settle()
    await first.end()
    ask(first.server, "d")
    assert await second.decided(a=1, b=2, c=0) == ["duplicate", "duplicate", "joined"]
    counts = second.replica.joins.counts
    assert (counts[Result.JOINED], second.replica.state.examples) == (4, 4)
    await second.end()


async def test_the_accuracy_of_given_answers_is_that_of_the_time_of_the_question() -> None:
    life = await a_life()
    life.server.ask(fields_of(questions(["a", "b", "c"], answers=[1, 1, 2])))
    await life.decided(a=1, b=0, c=2)
    joins = life.replica.joins
    assert (joins.scored, joins.correct, [*joins.recent]) == (3, 2, [True, False, True])
    life.keep()
    await life.again()
    assert life.replica.joins == joins
    await life.end()


@pytest.mark.parametrize("restarts", [False, True])
async def test_rows_meet_labels_that_bring_new_classes(restarts: bool) -> None:
    def state() -> State:
        return a_row_state(a_row_spec(optimizer="sgd", bits=8), HYPERPARAMETERS)

    life = await a_life(make=state)
    rows, labels = records(0, 20)
    life.server.add({b"rows": orjson.dumps(rows), b"labels": orjson.dumps(labels)})
    await life.settle()
    own = Rows(tuple(Chunk(chunk.own) for chunk in some_rows(1, 3).chunks))
    life.server.ask(fields_of(questions(["a", "b", "c"], own)))
    assert await life.decided(z="stay") == ["waiting"]
    if restarts:
        await life.again()
    assert await life.decided(a="stay", b=7, c="new") == ["joined"] * 3
    assert "new" in life.replica.state.schema.labels
    life.server.ask(fields_of(questions(["z"], own.part(0, 1))))
    await life.settle()
    assert life.replica.joins.counts[Result.JOINED] == 4
    digest = life.keep().sha256()
    life.last = None
    await life.again()
    assert life.keep().sha256() == digest
    await life.end()


async def test_numbers_are_labels_too() -> None:
    def state() -> State:
        spec = replace(a_spec(optimizer="pool"), classes=0, task="regression")
        return State(spec, HYPERPARAMETERS, CPU)

    life = await a_life(make=state)
    ask(life.server, "a", "b")
    assert await life.decided(a=1.5, b=2) == ["joined", "joined"]
    assert await life.decided(a=1.5, b=2.0) == ["duplicate", "duplicate"]
    digest = life.keep().sha256()
    assert life.replica.joins.scored == 0
    life.last = None
    await life.again()
    assert life.keep().sha256() == digest
    await life.end()


async def test_a_question_without_a_label_is_learned_with_the_default_once_its_time_is_over() -> (
    None
):
    life = await a_life(timeout=60.0, default="2")
    ask(life.server, "a", "b", "c", "d", "e")
    assert await life.decided(b=1) == ["joined"]
    await life.pass_time(59)
    assert life.replica.state.examples == 1
    ask(life.server, "later")
    await life.pass_time(2)
    assert life.replica.state.examples == 5
    assert life.replica.joins.counts[Result.TIMEOUT] == 4
    shown = [(join.label, join.result) for cut in cuts_of(life.server) for join in cut.met]
    assert shown == [(2, "timeout")] * 4
    assert await life.decided(a=2, c=0) == ["duplicate", "conflict"]
    await life.pass_time(30)
    await life.again()
    assert life.replica.state.examples == 5
    await life.pass_time(31)
    assert life.replica.state.examples == 6
    digest = life.keep().sha256()
    life.last = None
    await life.again()
    assert life.keep().sha256() == digest
    await life.end()


async def test_a_label_that_waits_to_be_read_comes_before_the_default() -> None:
    life = await a_life(timeout=60.0, default="0")
    ask(life.server, "a", "b")
    await life.settle()
    entry = label(life.server, a=1)
    life.clock.now += 600
    await life.again()
    await life.settle()
    assert life.results[entry] == ["joined"]
    assert life.replica.joins.counts[Result.TIMEOUT] == 1
    await life.end()


@pytest.mark.parametrize("default", ["no", "3", "1.5", "-1"])
async def test_a_default_that_is_no_label_of_the_model_is_not_learned(default: str) -> None:
    life = await a_life(timeout=1.0, default=default)
    ask(life.server, "a")
    await life.pass_time(5)
    assert life.replica.state.examples == 0
    assert await life.decided(a=1) == ["joined"]
    await life.end()


async def test_an_id_that_is_asked_again_times_out_once() -> None:
    life = await a_life(timeout=60.0, default="0")
    ask(life.server, "a")
    await life.pass_time(30)
    ask(life.server, "a")
    await life.pass_time(40)
    assert life.replica.state.examples == 0
    await life.pass_time(30)
    assert life.replica.state.examples == 1
    await life.end()


async def test_the_oldest_questions_are_closed_if_they_take_too_many_bytes() -> None:
    size = sum(map(len, fields_of(questions(["a"])))) + sum(
        map(len, fields_of(questions(["a"])).values())
    )
    life = await a_life(most_bytes=3 * size + 20)
    entries = [ask(life.server, text) for text in "abc"]
    assert await life.decided(a=1) == ["joined"]
    ask(life.server, "d")
    ask(life.server, "e")
    await life.settle()
    joins = life.replica.joins
    assert (joins.closed, joins.evicted) == (entries[2], 1)
    summary = life.replica.joiner.summary
    assert (summary.open, summary.labelled) == (3, 0)
    assert summary.bytes <= 3 * size + 20
    assert life.replica.joiner.evicted_bytes == pytest.approx(2 * size, abs=20)
    assert await life.decided(b=1, c=1) == ["late", "joined"]
    digest = life.keep().sha256()
    await life.again()
    assert life.replica.joins == joins
    life.last = None
    await life.again()
    assert (life.keep().sha256(), life.replica.joins) == (digest, joins)
    await life.end()


async def test_what_is_evicted_is_forgotten_before_memory_grows() -> None:
    life = await a_life(most_bytes=2_000)
    for k in range(200):
        ask(life.server, f"{k}")
        if k % 20 == 0:
            await life.settle()
    await life.settle()
    index = life.replica.joiner._index
    assert life.replica.joins.evicted > 180
    assert len(index._places) < 20
    await life.end()


@pytest.mark.parametrize("delay", [1, 4, 20, 100])
async def test_a_constant_delay_gives_the_order_of_rivers_questions_and_answers(delay: int) -> None:
    life = await a_life()
    data = [({"k": k}, k % 3) for k in range(40)]
    answered = []
    for number, _, truth, *_ in simulate_qa(data, None, delay):
        if truth is None:
            ask(life.server, f"q{number}")
        else:
            answered.append(hash_of(f"q{number}"))
            label(life.server, **{f"q{number}": truth})
        life.clock.now += 1.0
        if number % 7 == 0:
            await life.turn()
    await life.settle()
    cuts = cuts_of(life.server)
    places = [join.place for cut in cuts for own in cut.joins.values() for join in own]
    asked = life.server.asked
    assert [asked[place.entry][b"ids"] for place in places if place is not None] == answered
    assert life.replica.state.examples == len(answered) == 40
    await life.end()


def test_a_cut_without_labels_has_the_bytes_that_it_had() -> None:
    cut = Cut(Position(EntryId(5, 0)), 20, 3, sources={"http": 20}, fold=5)
    assert cut.to_json() == (
        '{"position":"5-0","examples":20,"entries":3,"dead":[],"command":"",'
        '"sources":{"http":20},"fold":5}'
    )


def test_a_cut_with_labels_is_read_as_it_was_written() -> None:
    place = Place(EntryId(4, 1), 2)
    cut = Cut(
        Position(EntryId(5, 0), 3),
        joins={
            EntryId(5, 0): (
                Join(Result.JOINED, place),
                Join(Result.LATE),
                Join(Result.CONFLICT, place),
            )
        },
        met=(
            Join(Result.JOINED, place, label="x", weight=0.5),
            Join(Result.TIMEOUT, place, label=2),
        ),
        evicted=3,
        unknown=(hash_of("a"),),
        closed=EntryId(3, 0),
        now=77,
        repeats=((place, Place(EntryId(6, 0), 1)),),
    )
    assert Cut.from_json(1, cut.to_json().encode()) == cut


def test_a_checkpoint_without_labels_has_the_format_that_it_had() -> None:
    copy = Checkpoint.of(a_state(), Progress("log"))
    metadata = decode(encode(copy, copy.sha256(), {})).metadata
    assert metadata["format"] == 5
    assert "asked" not in metadata["log"]
    joined_copy = replace(copy, joins=Joins(now=5))
    again = decode(encode(joined_copy, copy.sha256(), {}))
    assert (again.metadata["format"], again.copy.joins, again.copy.sha256()) == (
        7,
        Joins(now=5),
        copy.sha256(),
    )


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_question_that_repeats_a_labelled_one_is_not_learned_when_that_is_closed(
    restarts: bool,
) -> None:
    """Nothing is known of the closed one after a restart: the server has let it go."""
    life = await a_life(ttl=60.0, timeout=50.0, default="0")
    first = ask(life.server, "a")
    assert await life.decided(a=1) == ["joined"]
    await life.pass_time(30)
    ask(life.server, "a")
    await life.pass_time(20)
    ask(life.server, "a")
    await life.pass_time(15)
    assert life.replica.joins.closed > first
    if restarts:
        life.keep()
        del life.server.asked[first]
        await life.again()
    assert await life.decided(a=1) == ["duplicate"]
    assert await life.decided(a=2) == ["conflict"]
    await life.pass_time(30)
    await life.again()
    await life.pass_time(40)
    assert life.replica.state.examples == 1
    await life.end()
