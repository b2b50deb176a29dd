"""Requests that wait for their examples to be learned, and how many of them may."""

from collections.abc import Iterator
from contextlib import contextmanager

from service.http.connection import most_connections
from service.monitoring.status import Condition, Status

MAX_WAITING = 1_024
"""Most requests that wait for their examples to be learned; others keep half the connections."""


class Waits:
    """Counts the requests that wait."""

    def __init__(self) -> None:
        self._waiting = 0

    @contextmanager
    def one_more(self, status: Status) -> Iterator[str]:
        """Count a request that waits for its examples; yield why it may not, or nothing.

        Args:
            status: of the trainer that would learn them.
        """
        if status.condition == Condition.PAUSED:
            yield "learning is paused"
            return
        most = min(MAX_WAITING, most_connections() // 2)
        if self._waiting >= most:
            yield f"{most} other requests wait for their examples already"
            return
        self._waiting += 1
        try:
            yield ""
        finally:
            self._waiting -= 1
