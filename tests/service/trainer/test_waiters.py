"""Who waits for an entry is told of the batch in which it ends, and of no other."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.fold.report import Report
from service.log.log import LogError
from service.log.position import ORIGIN, EntryId, Position
from service.trainer.waiters import RECENT, Waiters


def report(version: int) -> Report:
    return Report(version, torch.tensor(0.5), torch.tensor(float(version)), torch.tensor(True))


@given(st.lists(st.tuples(st.integers(1, 9), st.none() | st.integers(1, 5)), max_size=12))
def test_the_batch_in_which_an_entry_ends_answers(steps: list[tuple[int, int | None]]) -> None:
    waiters, ends, at = Waiters(), [Position(ORIGIN)], 0
    for step, taken in steps:
        at += step
        ends.append(Position(EntryId(at, 0), taken))
    futures = {e: waiters.wait(EntryId(e, 0)) for e in range(1, at + 1)}
    for version, (begin, end) in enumerate(itertools.pairwise(ends), 1):
        waiters.note(begin, end, report(version))
    waiters.answer(ends[-1])
    for entry, future in futures.items():
        covering = [k for k, end in enumerate(ends) if end.covers(EntryId(entry, 0))]
        if covering:
            assert future.result(0).model_version == covering[0]
        else:
            assert not future.done()


def test_an_entry_learned_too_long_ago_is_not_answered_with_another_batch() -> None:
    waiters = Waiters()
    for k in range(RECENT + 10):
        waiters.note(Position(EntryId(k, 0)), Position(EntryId(k + 1, 0)), report(k + 1))
    old, recent = waiters.wait(EntryId(5, 0)), waiters.wait(EntryId(RECENT, 0))
    waiters.answer(Position(EntryId(RECENT + 10, 0)))
    assert recent.result(0).model_version == RECENT
    with pytest.raises(LogError, match="long ago"):
        old.result(0)


def test_what_was_not_scored_has_neither_loss_nor_accuracy() -> None:
    waiters = Waiters()
    future = waiters.wait(EntryId(1, 0))
    left_out = Report(1, torch.tensor(0.0), torch.tensor(float("nan")), torch.tensor(False))
    waiters.note(Position(ORIGIN), Position(EntryId(1, 0)), left_out)
    waiters.answer(Position(EntryId(1, 0)))
    assert (future.result(0).accuracy, future.result(0).loss) == (None, None)


def test_who_has_left_harms_nobody() -> None:
    waiters = Waiters()
    gone, here = waiters.wait(EntryId(1, 0)), waiters.wait(EntryId(1, 0))
    gone.cancel()
    waiters.note(Position(ORIGIN), Position(EntryId(1, 0)), report(1))
    waiters.answer(Position(EntryId(1, 0)))
    assert here.result(0).model_version == 1
    waiters.wait(EntryId(2, 0)).cancel()
    waiters.give_up("the end")
