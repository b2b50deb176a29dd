"""A waiting caller gets the report of the batch in which its entry ends, and no other."""

import itertools
from concurrent.futures import Future

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.fold.report import Report
from service.log.errors import Stopped
from service.log.position import ORIGIN, EntryId, Position
from service.trainer.replica import AppliedBatch
from service.trainer.waiters import RECENT, Applied, Waiters


def report(version: int) -> Report:
    return Report(version, torch.tensor(0.5), torch.tensor(float(version)), torch.tensor(True))


def applied(begin: Position, end: Position, report: Report) -> AppliedBatch:
    return AppliedBatch(begin, end, report, 0.0, 20)


def answer(future: "Future[Applied | None]") -> Applied:
    found = future.result(0)
    assert found is not None
    return found


@given(st.lists(st.tuples(st.integers(1, 9), st.none() | st.integers(1, 5)), max_size=12))
def test_the_batch_in_which_an_entry_ends_answers(steps: list[tuple[int, int | None]]) -> None:
    waiters, ends, at = Waiters(), [Position(ORIGIN)], 0
    for step, taken in steps:
        at += step
        ends.append(Position(EntryId(at, 0), taken))
    futures = {e: waiters.wait(EntryId(e, 0)) for e in range(1, at + 1)}
    for version, (begin, end) in enumerate(itertools.pairwise(ends), 1):
        waiters.remember(applied(begin, end, report(version)))
    waiters.answer(ends[-1])
    for entry, future in futures.items():
        covering = [k for k, end in enumerate(ends) if end.covers(EntryId(entry, 0))]
        if covering:
            assert answer(future).model_version == covering[0]
        else:
            assert not future.done()


def test_an_entry_learned_too_long_ago_is_not_answered_with_another_batch() -> None:
    waiters = Waiters()
    for k in range(RECENT + 10):
        waiters.remember(
            applied(Position(EntryId(k, 0)), Position(EntryId(k + 1, 0)), report(k + 1))
        )
    old, recent = waiters.wait(EntryId(5, 0)), waiters.wait(EntryId(RECENT, 0))
    waiters.answer(Position(EntryId(RECENT + 10, 0)))
    assert answer(recent).model_version == RECENT
    assert old.result(0) is None


def test_an_unscored_batch_has_neither_loss_nor_accuracy() -> None:
    waiters = Waiters()
    future = waiters.wait(EntryId(1, 0))
    skipped = Report(1, torch.tensor(0.0), torch.tensor(float("nan")), torch.tensor(False))
    waiters.remember(applied(Position(ORIGIN), Position(EntryId(1, 0)), skipped))
    waiters.answer(Position(EntryId(1, 0)))
    assert (answer(future).accuracy, answer(future).loss) == (None, None)


def test_a_caller_that_has_left_harms_nobody() -> None:
    waiters = Waiters()
    gone, here = waiters.wait(EntryId(1, 0)), waiters.wait(EntryId(1, 0))
    gone.cancel()
    waiters.remember(applied(Position(ORIGIN), Position(EntryId(1, 0)), report(1)))
    waiters.answer(Position(EntryId(1, 0)))
    assert answer(here).model_version == 1
    waiters.wait(EntryId(2, 0)).cancel()
    last = waiters.wait(EntryId(2, 0))
    waiters.give_up("the end")
    with pytest.raises(Stopped, match="the end"):
        last.result(0)
