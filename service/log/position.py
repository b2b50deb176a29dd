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
            ValueError: the text is something else.
        """
        head, _, tail = (text.decode() if isinstance(text, bytes) else text).partition("-")
        return cls(int(head), int(tail))

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.sequence}"


ORIGIN = EntryId(0, 0)
TOP = EntryId((1 << 64) - 1, (1 << 64) - 1)


class Position(NamedTuple):
    """A place in the log: after ``entry``, or after the first ``taken`` examples of it."""

    entry: EntryId
    taken: int | None = None

    @classmethod
    def parse(cls, text: str | bytes) -> "Position":
        """Read ``<entry>`` or ``<entry>+<taken>``.

        Raises:
            ValueError: the text is something else.
        """
        head, plus, tail = (text.decode() if isinstance(text, bytes) else text).partition("+")
        return cls(EntryId.parse(head), int(tail) if plus else None)

    def __str__(self) -> str:
        return str(self.entry) if self.taken is None else f"{self.entry}+{self.taken}"

    def is_after(self, other: "Position") -> bool:
        """Return whether it is further along the log than another position."""
        return (self.entry, self.taken is None, self.taken or 0) > (
            other.entry,
            other.taken is None,
            other.taken or 0,
        )

    def covers(self, entry: EntryId) -> bool:
        """Return whether the whole of ``entry`` lies before this position."""
        return self.entry > entry or (self.entry == entry and self.taken is None)


BEGINNING = Position(ORIGIN)


@dataclass(frozen=True)
class Progress:
    """How far a state has come along which log, and what was counted on the way."""

    log: str = ""
    """uuid of the log; empty until the log was first seen."""
    epoch: int = 0
    cut: int = 0
    """Number of the last cut that was applied."""
    position: Position = BEGINNING
    entries: int = 0
    """Entries wholly before the position, since the log began."""
    dead: int = 0
    """Entries discarded as dead."""
    http: int = 0
    """Examples learned that came over HTTP."""
    redis: int = 0
    """Examples learned that came by XADD."""
    asked: EntryId = ORIGIN
    """Questions before this entry of theirs are closed: no later label meets them."""
