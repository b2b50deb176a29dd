"""The backlog of the log, and the bounds that back pressure keeps on it.

An intake knows the size of each entry that it appended. Entries of others, and those from before it
started, count as much as the recent ones that the trainer has read.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from service.log.position import BEGINNING, ORIGIN, EntryId, Position
from streams.errors import FunnelError

CHUNKS = 1_024
"""Most sums of own entries that are kept; beyond that, neighbours are added up."""


class Load(NamedTuple):
    """An amount of the log."""

    examples: int
    bytes: int


UNBOUNDED = Load(1 << 62, 1 << 62)


@dataclass(frozen=True)
class Learned:
    """How far a trainer has come, and the size of the entries that it has read."""

    position: Position = BEGINNING
    entries: int = 0
    """Entries wholly before the position, since the log began."""
    added: int = 0
    """Entries ever added to the log, as far as it knows."""
    mean_examples: float = 0.0
    mean_bytes: float = 0.0
    """Mean size of an entry, on recent average; 0 before the first."""

    def waiting(self, entries: int) -> Load:
        """Estimate what so many entries hold; before the first was read, an example each."""
        return Load(round(entries * (self.mean_examples or 1.0)), round(entries * self.mean_bytes))


class BacklogFullError(FunnelError):
    """As much waits to be learned as may; the message says how much that is."""


@dataclass
class _Chunk:
    """Own entries that follow one another, with entries of others between them."""

    last: EntryId
    entries: int
    examples: int
    bytes: int

    def add(self, other: "_Chunk") -> None:
        """Take in the chunk that follows."""
        self.last = other.last
        self.entries += other.entries
        self.examples += other.examples
        self.bytes += other.bytes


class Backlog:
    """The backlog as one intake sees it; used in one thread.

    A reservation comes before its entry is written, so that many requests at once exceed the bounds
    by one request at most.

    Args:
        most: examples and bytes from which on nothing more is accepted.
        learned: tells how far the trainer is.
    """

    def __init__(self, most: Load = UNBOUNDED, learned: Callable[[], Learned] = Learned) -> None:
        self.added = 0
        """Entries ever added to the log, as of the last append here."""
        self._most, self._learned = most, learned
        self._reserved_examples = self._reserved_bytes = 0
        self._chunks: deque[_Chunk] = deque()
        self._grain = 1
        """Entries in a chunk."""
        self._own = _Chunk(ORIGIN, 0, 0, 0)
        """The sum of the chunks, and the newest entry that was ever noted."""

    def waiting(self) -> Load:
        """Estimate what is in the log and not learned yet."""
        learned, own = self._learned(), self._own
        while self._chunks and learned.position.covers(self._chunks[0].last):
            gone = self._chunks.popleft()
            own.entries -= gone.entries
            own.examples -= gone.examples
            own.bytes -= gone.bytes
        entries = max(learned.added, self.added) - learned.entries - own.entries
        others = learned.waiting(max(0, entries))
        examples = own.examples + others.examples - (learned.position.taken or 0)
        return Load(max(0, examples), own.bytes + others.bytes)

    def follow(self, learned: Callable[[], Learned]) -> None:
        """Ask another trainer from now on how far it is."""
        self._learned = learned

    def check(self) -> None:
        """Make sure that there is room for more.

        Raises:
            BacklogFullError: there is none.
        """
        waiting = self.waiting()
        examples = waiting.examples + self._reserved_examples
        size = waiting.bytes + self._reserved_bytes
        if examples >= self._most.examples:
            raise BacklogFullError(
                f"about {examples} examples wait to be learned "
                f"(FUNNEL_MAX_BACKLOG is {self._most.examples})"
            )
        if size >= self._most.bytes:
            raise BacklogFullError(
                f"about {size} bytes wait to be learned "
                f"(FUNNEL_MAX_BACKLOG_BYTES is {self._most.bytes})"
            )

    def reserve(self, load: Load) -> None:
        """Count what is about to be written, until `release`.

        Raises:
            BacklogFullError: there is no room; nothing is reserved.
        """
        self.check()
        self._reserved_examples += load.examples
        self._reserved_bytes += load.bytes

    def release(self, load: Load) -> None:
        """Count a reservation no longer: its entry was noted, or was not confirmed."""
        self._reserved_examples -= load.examples
        self._reserved_bytes -= load.bytes

    def note(self, entry: EntryId, load: Load) -> None:
        """Count an entry that was written, unless it was noted before."""
        if entry <= self._own.last:
            return
        chunk = _Chunk(entry, 1, load.examples, load.bytes)
        self._own.add(chunk)
        if not self._chunks:
            self._grain = 1
        elif self._chunks[-1].entries < self._grain:
            self._chunks[-1].add(chunk)
            return
        self._chunks.append(chunk)
        if len(self._chunks) > CHUNKS:
            self._coarsen()

    def _coarsen(self) -> None:
        """Add up neighbours."""
        chunks, self._chunks = self._chunks, deque()
        while chunks:
            first = chunks.popleft()
            if chunks:
                first.add(chunks.popleft())
            self._chunks.append(first)
        self._grain *= 2
