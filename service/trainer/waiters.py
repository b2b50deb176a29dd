"""Those who wait until an entry of the log has been learned."""

import math
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

from service.fold.report import Report
from service.log.log import LogError
from service.log.position import EntryId, Position

RECENT = 4_096
"""Reports kept for those who come late."""


@dataclass(frozen=True)
class Applied:
    """What became of an entry."""

    model_version: int
    accuracy: float | None
    """Of the batch in which its last example fell, before the update; None if that is not finite,
    or the model raised."""
    loss: float | None


class Waiters:
    """Futures of entries; asked for in any thread, answered in the learner's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[EntryId, Future[Applied]]] = []
        self._recent: deque[tuple[Position, Position, Report]] = deque(maxlen=RECENT)
        """Where a batch begins and ends in the log, and its report; in order."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, entry: EntryId) -> "Future[Applied]":
        """Return a future of what becomes of an entry."""
        future: Future[Applied] = Future()
        with self._lock:
            self._waiting.append((entry, future))
        return future

    def note(self, begin: Position, end: Position, report: Report) -> None:
        """Remember the report of a batch."""
        self._recent.append((begin, end, report))

    def answer(self, position: Position) -> None:
        """Answer all whose entries lie before a position; waits for the device if there are any."""
        with self._lock:
            ready = [w for w in self._waiting if position.covers(w[0])]
            self._waiting = [w for w in self._waiting if not position.covers(w[0])]
        for entry, future in ready:
            report = self._report_of(entry)
            if not future.set_running_or_notify_cancel():
                continue
            if report is None:
                future.set_exception(LogError(f"entry {entry} was applied long ago, or is dead"))
            else:
                loss = float(report.loss)
                scored = math.isfinite(loss)
                accuracy = float(report.accuracy) if scored else None
                future.set_result(Applied(report.version, accuracy, loss if scored else None))

    def _report_of(self, entry: EntryId) -> Report | None:
        """Return that of the batch in which an entry ends, if it is remembered."""
        for begin, end, report in reversed(self._recent):
            if not begin.covers(entry):
                return report if end.covers(entry) else None
        return None

    def give_up(self, reason: str) -> None:
        """Tell all that nothing more will happen."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(LogError(reason))
