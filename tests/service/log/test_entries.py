"""Cuts: which examples form a batch is decided once, and repeats."""

import json
import logging
import re
from collections.abc import Callable
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.log import entries
from service.log.cuts import Cut, Pending
from service.log.entries import MAX_JSON, Entry, read_entry
from service.log.errors import LogUnavailable
from service.log.position import ORIGIN, TOP, EntryId, Position
from streams.batch import Batch, concatenate


def numbered(start: int, n: int) -> Batch:
    return Batch(np.arange(start, start + n, dtype=np.float32)[:, None], np.zeros(n, np.int64))


def a_log(sizes: list[int]) -> list[Entry]:
    """Entries of these sizes, whose examples count on; size 0 is one that is dead."""
    starts = np.cumsum([0, *sizes])
    return [
        Entry(EntryId(k, 0), numbered(int(start), n) if n else None, "http", n, "" if n else "bad")
        for k, (start, n) in enumerate(zip(starts, sizes, strict=False), 1)
    ]


def numbers(batch: Batch | None) -> list[int]:
    return [] if batch is None else [int(x) for x in batch.features[:, 0]]


logs = st.lists(st.integers(0, 7), max_size=12).map(a_log)


@given(logs, st.lists(st.integers(1, 9), min_size=1, max_size=40), st.data())
def test_every_example_is_cut_once_in_order(
    log: list[Entry], sizes: list[int], data: st.DataObject
) -> None:
    """However reading and cutting interleave."""
    pending, read, seen, dead = Pending(Position(ORIGIN), 0), 0, [], []
    for size in sizes:
        more = data.draw(st.integers(0, len(log) - read))
        for entry in log[read : read + more]:
            pending.add(entry)
        read += more
        held = pending.examples
        cut, batch = pending.take(size)
        assert cut.examples == len(numbers(batch)) == min(size, held)
        assert pending.examples == held - cut.examples
        seen += numbers(batch)
        dead += cut.dead
        assert cut.entries == len([e for e in log if cut.position.covers(e.id)])
        assert pending.seen == read
    assert seen == list(range(len(seen)))
    covered = [e for e in log if pending.position.covers(e.id)]
    assert dead == [e.id for e in covered if e.batch is None]


@given(logs, st.lists(st.integers(1, 9), min_size=1, max_size=30), st.data())
def test_recorded_cuts_repeat_from_any_of_them(
    log: list[Entry], sizes: list[int], data: st.DataObject
) -> None:
    first = Pending(Position(ORIGIN), 0)
    for entry in log:
        first.add(entry)
    taken = [first.take(size) for size in sizes]
    start = data.draw(st.integers(0, len(taken) - 1))
    before = taken[start - 1][0] if start else Cut(Position(ORIGIN))
    again = Pending(before.position, before.entries)
    rest = [e for e in log if not before.position.covers(e.id)]
    for cut, batch in taken[start:]:
        while rest and (not again or again.newest < cut.position.entry):
            again.add(rest.pop(0))
        repeated, same = again.take(cut.examples, cut)
        assert (repeated.position, repeated.examples, repeated.entries) == (
            cut.position,
            cut.examples,
            cut.entries,
        )
        assert numbers(same) == numbers(batch)


def test_an_entry_that_a_cut_names_dead_stays_dead_for_every_later_reader() -> None:
    entries = a_log([2, 2, 2])
    recorded = Pending(Position(ORIGIN), 0)
    for entry in [
        entries[0],
        entries[1]._replace(batch=None, examples=0, reason="bad"),
        entries[2],
    ]:
        recorded.add(entry)
    cut, batch = recorded.take(4)
    assert list(cut.dead) == [entries[1].id]
    lenient = Pending(Position(ORIGIN), 0)
    for entry in entries:
        lenient.add(entry)
    _, again = lenient.take(4, cut)
    assert numbers(again) == numbers(batch) == [0, 1, 4, 5]


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.none() | st.integers(0, 99))
def test_positions_survive_their_text(ms: int, sequence: int, taken: int | None) -> None:
    position = Position(EntryId(ms, sequence), taken)
    assert Position.parse(str(position)) == position
    assert Position.parse(str(position).encode()) == position


def test_a_position_inside_an_entry_does_not_cover_it() -> None:
    entry = EntryId(5, 1)
    assert Position(entry).covers(entry)
    assert not Position(entry, 3).covers(entry)
    assert Position(EntryId(5, 2), 0).covers(entry)
    assert not Position(EntryId(5, 0)).covers(entry)
    assert Position(TOP).covers(entry)


JSON_ENTRY = json.dumps({"features": [[1, 2]], "labels": [1]}).encode()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "no field 'batch' or 'json'"),
        ({b"btach": b""}, "btach"),
        ({b"batch": b""}, "safetensors"),
        ({b"json": b"{"}, "JSON"),
        ({b"json": b" " * (MAX_JSON + 1)}, f"{MAX_JSON + 1} bytes of JSON, more than"),
        ({b"json": b'{"features": [[1]], "labels": [1]}'}, "has 1 features, expected 2"),
        ({b"json": b'{"features": [[1, 2]], "labels": [9]}'}, "0…2"),
        ({b"json": b'{"features": [[1, 2], [1, true]], "labels": [0, 0]}'}, "example 1"),
    ],
)
def test_a_poison_entry_says_why(fields: dict[bytes, bytes], reason: str) -> None:
    entry = read_entry(EntryId(1, 0), fields, (2, 3))
    assert entry.batch is None
    assert re.search(reason, entry.reason)


@pytest.mark.parametrize("name", [b"batch", b"json"])
def test_no_flipped_bit_of_an_entry_with_a_checksum_is_learned(name: bytes) -> None:
    raw = JSON_ENTRY if name == b"json" else numbered(1, 2).to_bytes()
    width = 2 if name == b"json" else 1
    fields = {name: raw, b"crc32": b"%d" % crc32(raw)}
    assert read_entry(EntryId(1, 0), fields, (width, 3)).batch is not None
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        entry = read_entry(EntryId(1, 0), fields | {name: bytes(flipped)}, (width, 3))
        assert entry.batch is None
        assert entry.is_damaged
        assert "CRC-32" in entry.reason


def test_an_entry_without_a_checksum_is_learned() -> None:
    assert read_entry(EntryId(1, 0), {b"json": JSON_ENTRY}, (2, 3)).examples == 1
    other = read_entry(EntryId(1, 0), {b"crc32": b"1"}, (2, 3))
    assert not other.is_damaged
    assert "no field" in other.reason


def test_an_entry_knows_where_it_came_from() -> None:
    by_hand = read_entry(EntryId(1, 0), {b"json": JSON_ENTRY}, (2, 3))
    by_http = read_entry(EntryId(1, 0), {b"json": JSON_ENTRY, b"source": b"http"}, (2, 3))
    assert (by_hand.source, by_http.source) == ("redis", "http")
    assert concatenate([b for b in (by_hand.batch, by_http.batch) if b]).features.shape == (2, 2)


def failing(error: Exception) -> Callable[..., Batch]:
    def decode(*_: object, **__: object) -> Batch:
        raise error

    return decode


DEFECTS = (ValueError("no"), OverflowError("no"), AssertionError(), RecursionError(), KeyError(1))


@pytest.mark.parametrize("error", DEFECTS)
@pytest.mark.parametrize("field", ["batch", "json"])
def test_whatever_a_decoder_raises_the_entry_is_a_dead_letter_with_a_traceback_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, field: str
) -> None:
    for name in ("decode", "from_json"):
        monkeypatch.setattr(entries, name, failing(error))
    with caplog.at_level(logging.ERROR):
        entry = read_entry(EntryId(7, 1), {field.encode(): b"x"}, (2, 3))
    assert (entry.batch, entry.examples) == (None, 0)
    assert entry.reason == f"a decoder failed: {error!r}"
    (record,) = caplog.records
    assert "7-1" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError()])
def test_an_entry_is_read_again_later_if_the_machine_is_to_blame(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(entries, "decode", failing(error))
    with pytest.raises(LogUnavailable, match="entry 7-1 cannot be decoded now"):
        read_entry(EntryId(7, 1), {b"batch": b"x"}, (2, 3))


def test_a_document_too_long_for_the_memory_is_a_dead_letter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entries, "from_json", failing(MemoryError("too long")))
    assert "too long" in read_entry(EntryId(7, 1), {b"json": b"x"}, (2, 3)).reason
