"""The memory that requests and their answers share.

A client may send a body without completing it, or ask for an answer without reading it. Both are
counted here, so that no number of clients takes more.
"""

import math
from types import TracebackType

from service.http.errors import unavailable

MEMORY = 512 << 20
"""Bytes of all bodies and answers together, or twice the largest body that is allowed."""
SMALL, MEDIUM = 64 << 10, 1 << 20
SHARES = ((SMALL, 1.0), (MEDIUM, 7 / 8), (math.inf, 3 / 4))
"""How much of the memory may be held once an item of up to so many bytes is added: large items
leave room for smaller ones."""


class Budget:
    """Counts the bytes of bodies and answers; used in one event loop.

    Args:
        total: bytes that may be held.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self.held = 0
        """Bytes that are reserved."""

    def limit(self, size: int) -> int:
        """Return how many bytes may be held in all once an item of this size is added."""
        return int(self._total * next(share for most, share in SHARES if size <= most))

    def reserve(self, size: int = 0) -> "Reservation":
        """Reserve bytes until the context that is returned ends.

        Raises:
            HTTPError: 503 there is no room.
        """
        reservation = Reservation(self)
        reservation.grow(size)
        return reservation


class Reservation:
    """A part of a budget: a context that gives it back."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.size = 0
        """Bytes reserved."""

    @property
    def most(self) -> int:
        """The largest reservation of all that can succeed."""
        return self._budget.limit(self._budget.limit(0))

    def grow(self, size: int) -> None:
        """Reserve further bytes.

        Raises:
            HTTPError: 503 there is no room.
        """
        if self._budget.held + size > self._budget.limit(self.size + size):
            raise unavailable(
                "too_busy", "the bodies and answers of other requests fill the memory"
            )
        self.change(self.size + size)

    def change(self, size: int) -> None:
        """Count so many bytes from now on, which are in memory already."""
        self._budget.held += size - self.size
        self.size = size

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.change(0)
