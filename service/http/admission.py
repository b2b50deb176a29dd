"""Bounds of ``/learn``: the examples that wait to be learned, and requests that wait for them."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from service.http.connection import most_connections
from service.http.errors import RETRY_SECONDS, HTTPError
from service.log.position import EntryId, Position
from service.model import Model

MAX_WAITING = 1_024
"""Most requests that wait for their examples to be learned; others keep half the connections."""
GROUPS = 1_000
"""The entries of a full backlog are remembered in about so many groups."""


class Admission:
    """Counts the examples that were let in exactly, where the backlog is an estimate."""

    def __init__(self) -> None:
        self._entering = 0
        self._entered: deque[tuple[EntryId, int]] = deque()
        """Groups of entries that are not learned: the id of the last, and the examples of all."""
        self._waiting = 0

    def check(self, model: Model) -> None:
        """Check, before a body is read, that any examples can be let in.

        Raises:
            HTTPError: 429 MAX_BACKLOG examples wait already.
        """
        self._check(model, 1)

    @contextmanager
    def examples(self, model: Model, count: int) -> Iterator[list[EntryId]]:
        """Let examples in; the list takes the id of their entry once they are in the log.

        Raises:
            HTTPError: 429 more than MAX_BACKLOG examples would wait.
        """
        self._check(model, count)
        self._entering += count
        entries: list[EntryId] = []
        try:
            yield entries
        finally:
            self._entering -= count
            for entry in entries:
                self._remember(entry, count, model.settings.max_backlog // GROUPS)

    @contextmanager
    def wait(self) -> Iterator[str]:
        """Count a request that waits for its examples; yield why it may not, or nothing."""
        most = min(MAX_WAITING, most_connections() // 2)
        if self._waiting >= most:
            yield f"{most} other requests wait for their examples already"
            return
        self._waiting += 1
        try:
            yield ""
        finally:
            self._waiting -= 1

    def _check(self, model: Model, count: int) -> None:
        most, learned = model.settings.max_backlog, model.status.progress.position
        backlog = self._entering + max(model.backlog(), self._not_learned(learned))
        if backlog >= most or backlog + count > most >= count:
            raise HTTPError(
                429,
                "backlog_full",
                f"about {backlog} examples wait to be learned (FUNNEL_MAX_BACKLOG is {most}); send "
                "these again later",
                retry=RETRY_SECONDS,
            )

    def _not_learned(self, position: Position) -> int:
        while self._entered and position.covers(self._entered[0][0]):
            self._entered.popleft()
        return sum(count for _, count in self._entered)

    def _remember(self, entry: EntryId, count: int, group: int) -> None:
        if self._entered and self._entered[-1][1] + count <= group:
            last, before = self._entered.pop()
            entry, count = max(last, entry), before + count
        self._entered.append((entry, count))
