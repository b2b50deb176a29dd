"""Futures of entries: callers wait here until an entry of the log has been learned."""

import math
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from service.fold.report import Report
from service.log.errors import Stopped
from service.log.position import EntryId, Position
from service.trainer.replica import AppliedBatch
from service.trainer.worker import promise

RECENT = 4_096
"""Reports kept for callers that come late."""
LABELLED = 256
"""Entries with labels of questions whose results are kept for the same."""


@dataclass(frozen=True)
class Applied:
    """The result of learning an entry."""

    model_version: int
    accuracy: float | None
    """Accuracy, before the update, on the batch that holds its last example; None if that is not
    finite, or the model raised."""
    loss: float | None
    """Mean cross-entropy on the same batch, in nats."""
    results: tuple[str, ...] = ()
    """Results of the labels of the entry, if it holds labels of questions."""


class Waiters:
    """Futures of entries; any thread may ask, the trainer's thread answers."""

    def __init__(self) -> None:
        self._lock, self._ended = threading.Lock(), ""
        self._waiting: list[tuple[EntryId, Future[Applied | None]]] = []
        self._recent: deque[AppliedBatch] = deque(maxlen=RECENT)
        self._joined: dict[EntryId, Applied] = {}
        """Results of the labels of recent entries, oldest first."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, entry: EntryId) -> "Future[Applied | None]":
        """Return a future of what becomes of an entry.

        It is None for an entry that is dead, or was learned too long ago to be remembered. It
        raises `Stopped` if the trainer stops before.
        """
        future: Future[Applied | None] = promise()
        with self._lock:
            if self._ended:
                future.set_exception(Stopped(self._ended))
            else:
                self._waiting.append((entry, future))
        return future

    def remember(self, applied: AppliedBatch) -> None:
        """Remember a batch; they come in order."""
        self._recent.append(applied)

    def remember_labels(self, entry: EntryId, results: Sequence[str], version: int) -> None:
        """Remember what became of the next labels of an entry, and the model's version then."""
        before = self._joined[entry].results if entry in self._joined else ()
        self._joined[entry] = Applied(version, None, None, (*before, *results))
        if len(self._joined) > LABELLED:
            del self._joined[next(iter(self._joined))]

    def answer(self, position: Position) -> None:
        """Answer for all entries before a position; wait for the device if there are any."""
        with self._lock:
            ready = [w for w in self._waiting if position.covers(w[0])]
            self._waiting = [w for w in self._waiting if not position.covers(w[0])]
        for entry, future in ready:
            found = self._result_of(entry)
            if (joined := self._joined.get(entry)) is not None:
                found = replace(found or joined, results=joined.results)
            future.set_result(found)

    def _result_of(self, entry: EntryId) -> Applied | None:
        """Return the result of the batch in which an entry ends, if it is remembered."""
        for batch in reversed(self._recent):
            if not batch.begin.covers(entry):
                return _read(batch.report) if batch.end.covers(entry) else None
        return None

    def close(self, reason: str) -> None:
        """Fail all futures, and those to come."""
        with self._lock:
            self._ended = reason
        self.give_up(reason)

    def give_up(self, reason: str) -> None:
        """Fail all futures."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            future.set_exception(Stopped(reason))


def _read(report: Report) -> Applied:
    loss = float(report.loss)
    if not math.isfinite(loss):
        return Applied(report.version, None, None)
    return Applied(report.version, float(report.accuracy), loss)
