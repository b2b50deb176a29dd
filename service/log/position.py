"""Positions in the log, and the progress of a state along it."""

from dataclasses import dataclass
from typing import NamedTuple


class EntryId(NamedTuple):
    """Id of a Redis stream entry; ids sort as pairs do."""

    milliseconds: int
    sequence: int

    @classmethod
    def parse(cls, text: str | bytes) -> "EntryId":
        """Read ``<milliseconds>-<sequence>``.

        Raises:
            ValueError: it is something else.
        """
        head, _, tail = (text.decode() if isinstance(text, bytes) else text).partition("-")
        return cls(int(head), int(tail))

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.sequence}"


ORIGIN = EntryId(0, 0)
TOP = EntryId((1 << 64) - 1, (1 << 64) - 1)


class Position(NamedTuple):
    """A place in the log: behind ``entry``, or behind the first ``taken`` examples of it."""

    entry: EntryId
    taken: int | None = None

    @classmethod
    def parse(cls, text: str | bytes) -> "Position":
        """Read ``<entry>`` or ``<entry>+<taken>``.

        Raises:
            ValueError: it is something else.
        """
        head, plus, tail = (text.decode() if isinstance(text, bytes) else text).partition("+")
        return cls(EntryId.parse(head), int(tail) if plus else None)

    def __str__(self) -> str:
        return str(self.entry) if self.taken is None else f"{self.entry}+{self.taken}"

    def covers(self, entry: EntryId) -> bool:
        """Say whether the whole of ``entry`` lies before this position."""
        return self.entry > entry or (self.entry == entry and self.taken is None)


@dataclass(frozen=True)
class Progress:
    """Where in which log a state is, and what was counted on the way there."""

    log: str
    """uuid of the log."""
    epoch: int
    cut: int
    """Number of the last cut that was applied."""
    position: Position
    entries: int
    """Entries wholly before the position, since the log began."""
    dead: int
    """Entries put aside as dead."""
    http: int
    """Examples learned that came over HTTP."""
    redis: int
    """Examples learned that came by XADD."""
