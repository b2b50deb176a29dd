"""The backlog: what an intake knows of it, however its entries mix with those of others."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.log import backlog as backlogs
from service.log.backlog import Backlog, BacklogFullError, Learned, Load
from service.log.position import EntryId, Position


class Trainer:
    """What a trainer publishes; a test moves it."""

    def __init__(self, learned: Learned | None = None) -> None:
        self.learned = learned or Learned()

    def learn(self, position: Position, entries: int) -> None:
        self.learned = replace(self.learned, position=position, entries=entries)


entries = st.lists(st.tuples(st.booleans(), st.integers(1, 500)), max_size=60)


@given(entries, st.data())
def test_own_entries_count_as_they_are_and_those_of_others_as_the_mean(
    log: list[tuple[bool, int]], data: st.DataObject
) -> None:
    trainer = Trainer(Learned(added=len(log), mean_examples=7.0, mean_bytes=90.0))
    backlog = Backlog(learned=lambda: trainer.learned)
    for k, (is_own, n) in enumerate(log, 1):
        if is_own:
            backlog.note(EntryId(k, 0), Load(n, 10 * n))
    for at in data.draw(st.lists(st.integers(0, len(log)), max_size=4).map(sorted)):
        trainer.learn(Position(EntryId(at, 0)), at)
        own = [n for is_own, n in log[at:] if is_own]
        others = len(log) - at - len(own)
        assert backlog.waiting() == Load(sum(own) + 7 * others, 10 * sum(own) + 90 * others)


def test_what_is_learned_of_an_entry_does_not_wait() -> None:
    trainer = Trainer()
    backlog = Backlog(learned=lambda: trainer.learned)
    backlog.note(EntryId(1, 0), Load(30, 300))
    trainer.learn(Position(EntryId(1, 0), 10), 0)
    assert backlog.waiting().examples == 20


def test_an_entry_that_is_noted_again_counts_once() -> None:
    backlog = Backlog()
    for _ in range(2):
        backlog.note(EntryId(1, 0), Load(30, 300))
    assert backlog.waiting() == Load(30, 300)


def test_many_entries_take_little_memory_and_are_known_to_a_part_in_five_hundred() -> None:
    n, trainer = 100_000, Trainer()
    backlog = Backlog(learned=lambda: trainer.learned)
    for k in range(1, n + 1):
        backlog.note(EntryId(k, 0), Load(1, 10))
    assert len(backlog._chunks) <= backlogs.CHUNKS
    for at in range(0, n, 997):
        trainer.learn(Position(EntryId(at, 0)), at)
        examples, size = backlog.waiting()
        assert n - at <= examples <= n - at + n / 500
        assert size == 10 * examples
    trainer.learn(Position(EntryId(n, 0)), n)
    assert backlog.waiting() == Load(0, 0)


@pytest.mark.parametrize(
    ("most", "message"),
    [(Load(100, 1 << 40), "FUNNEL_MAX_BACKLOG is 100"), (Load(1 << 40, 1_000), "_BYTES is 1000")],
)
def test_a_reservation_counts_until_it_is_released(most: Load, message: str) -> None:
    backlog, load = Backlog(most), Load(50, 500)
    backlog.reserve(load)
    backlog.reserve(load)
    for refuse in (backlog.check, lambda: backlog.reserve(load)):
        with pytest.raises(BacklogFullError, match=message):
            refuse()
    backlog.release(load)
    backlog.reserve(load)
    backlog.note(EntryId(1, 0), load)
    with pytest.raises(BacklogFullError, match=message):
        backlog.check()


def test_a_request_larger_than_the_bound_is_taken_when_nothing_waits() -> None:
    Backlog(Load(1, 1)).reserve(Load(65_536, 32 << 20))
