"""The log that an archive holds, as replay reads it."""

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence

from service.log.cuts import Cut
from service.log.entries import Fields, RawEntry
from service.log.errors import GapError
from service.log.keys import Keys
from service.log.log import Log, Recording
from service.log.position import EntryId
from service.trainer.archive.archive import Archive
from service.trainer.archive.segment import Name, Segment

Load = Callable[[Name], Awaitable[Segment]]
"""Returns a segment by its name."""


def chain_of(archive: Archive, last: int | None = None) -> list[Name]:
    """Return the names of the segments that follow one another, oldest first.

    Args:
        archive: with the segments.
        last: number of a cut of the last of them; None for the newest there is.

    Raises:
        OSError, DamagedSegmentError: the archive cannot be read.
    """
    names = archive.segments()
    ends = [name for name in names if last is None or name.first <= last <= name.last]
    chain = ends[-1:]
    while chain:
        first = chain[-1].first
        found = [name for name in names if name.last == first - 1]
        if len(found) > 1:
            before = archive.read(chain[-1]).before
            found = [name for name in found if str(name) == before]
        if not found:
            break
        chain += found
    return chain[::-1]


class ArchivedLog(Recording):
    """Segments that follow one another, as a log that ends.

    Args:
        keys: of the log, for messages.
        names: of the segments, oldest first.
        load: returns one of them.
        last: number of the cut with which it ends.
    """

    def __init__(self, keys: Keys, names: Sequence[Name], load: Load, last: int) -> None:
        self.keys, self._names, self._load, self.last = keys, names, load, last
        self._own: tuple[Name, Segment] | None = None
        """The segment that was read last."""
        self._ids: list[EntryId] = []
        """Ids of its entries."""

    async def cuts_after(self, number: int) -> list[tuple[int, Cut]]:
        names = [name for name in self._names if name.first <= number + 1 <= name.last]
        if number >= self.last or not names:
            return []
        if self._own is None or self._own[0] != names[0]:
            await self._read(names[0])
        assert self._own is not None, "it was just read"
        return [
            (own, Cut.from_json(own, text.encode()))
            for own, text in self._own[1].cuts.items()
            if number < own <= self.last
        ]

    async def _read(self, name: Name) -> None:
        """Read a segment.

        Raises:
            GapError: it does not begin where the one before it ends.
        """
        segment, before = await self._load(name), self._own
        if before is not None and before[0].last == name.first - 1:
            old, new = before[1].end, segment.begin
            if (old.log, old.position) != (new.log, new.position):
                raise GapError(f"{name} does not follow {before[0]}")
        self._own, self._ids = (name, segment), [entry for entry, _ in segment.entries]

    async def read(
        self, after: EntryId, count: int, size: int, block_ms: int | None
    ) -> list[RawEntry]:
        found = list[RawEntry]()
        if self._own is not None:
            start = bisect_right(self._ids, after)
            for one in self._own[1].entries[start : start + count]:
                if size <= 0:
                    break
                found.append(one)
                size -= sum(map(len, one[1].values()))
        return found

    async def read_one(self, entry: EntryId) -> RawEntry | None:
        start = bisect_right(self._ids, entry)
        is_there = self._own is not None and start > 0 and self._ids[start - 1] == entry
        return self._own[1].entries[start - 1] if self._own is not None and is_there else None

    async def questions(self, entries: Sequence[EntryId]) -> list[Fields]:
        questions = self._own[1].questions if self._own is not None else {}
        return [questions.get(entry, {}) for entry in entries]


class ContinuedLog(Recording):
    """An archive, and the log that goes on after it.

    Args:
        archived: the archive; None if nothing is archived.
        live: the log.
    """

    def __init__(self, archived: ArchivedLog | None, live: Log) -> None:
        self.keys, self._archived, self._live = live.keys, archived, live
        self._own: Recording = live
        """The one that has the last cut which was read."""

    async def cuts_after(self, number: int) -> list[tuple[int, Cut]]:
        if self._archived is not None and (found := await self._archived.cuts_after(number)):
            self._own = self._archived
            return found
        self._own = self._live
        return await self._live.cuts_after(number)

    async def read(
        self, after: EntryId, count: int, size: int, block_ms: int | None
    ) -> list[RawEntry]:
        return await self._own.read(after, count, size, block_ms)

    async def read_one(self, entry: EntryId) -> RawEntry | None:
        return await self._own.read_one(entry)

    async def questions(self, entries: Sequence[EntryId]) -> list[Fields]:
        return await self._own.questions(entries)
