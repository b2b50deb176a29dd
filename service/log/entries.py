"""Log entries and cuts: what they mean, and how batches are taken from entries.

An entry is a batch of examples; a cut says where a batch of the learner ends. Entries that cannot
be decoded are dead: a cut names them, so that replay skips them whatever the reader then thinks.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from service.log.position import EntryId, Position
from streams.batch import Batch, InvalidBatchError, check, concatenate, decode
from streams.json_batch import from_json

MAX_JSON = 32 << 20
"""Longest document in an entry, in bytes: of 200 MB the parser lets no other thread run for longer
than a lease lasts."""
SOURCES = ("http", "redis")


class Dead(NamedTuple):
    """An entry that cannot be learned, and why."""

    entry: EntryId
    reason: str


@dataclass(frozen=True)
class Cut:
    """A decision of the learner, recorded before it is carried out."""

    position: Position
    """Where it ends."""
    examples: int = 0
    """Examples of the batch; 0 if the cut only moves the position, or gives a command."""
    entries: int = 0
    """Entries that lie wholly before the position, counted from the start of the log."""
    dead: tuple[Dead, ...] = ()
    """Entries put aside since the cut before."""
    command: str = ""
    """JSON of an operator's command, carried out after the batch."""
    sources: Mapping[str, int] = field(default_factory=dict)
    """Examples of the batch by where they came from."""


class Entry(NamedTuple):
    """An entry as read: its examples, or why it has none."""

    id: EntryId
    batch: Batch | None
    source: str
    reason: str = ""


def read_entry(entry: EntryId, fields: dict[bytes, bytes], width: int, classes: int) -> Entry:
    """Decode and check an entry; what is wrong with it becomes its reason."""
    source = "http" if fields.get(b"source") == b"http" else "redis"
    try:
        if b"batch" in fields:
            batch = decode(fields[b"batch"])
        elif b"json" in fields:
            if (size := len(fields[b"json"])) > MAX_JSON:
                raise InvalidBatchError(f"{size} bytes of JSON, more than {MAX_JSON}")
            batch = from_json(fields[b"json"], width)
        else:
            names = sorted(fields)[:4]
            raise InvalidBatchError(f"no field 'batch' or 'json', only {names}")
        check(batch, width, classes)
    except InvalidBatchError as error:
        where = "" if error.index is None else f" (example {error.index})"
        return Entry(entry, None, source, f"{error}{where}"[:500])
    return Entry(entry, batch, source)


class Pending:
    """Entries read but not yet cut, in log order; takes batches off their front.

    Args:
        position: where the last cut ended.
        entries: its count of entries.
    """

    def __init__(self, position: Position, entries: int) -> None:
        self.position, self.entries = position, entries
        self.examples = 0
        """Examples waiting to be cut."""
        self._queue: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __bool__(self) -> bool:
        return bool(self._queue)

    @property
    def newest(self) -> EntryId:
        """Id of the last entry that was read."""
        return self._queue[-1].id if self._queue else self.position.entry

    @property
    def seen(self) -> int:
        """Entries up to and with `newest`, since the log began."""
        in_part = not self._queue and self.position.taken is not None
        return self.entries + len(self._queue) + in_part

    @property
    def oldest(self) -> EntryId:
        """Id of the first entry that is not wholly cut; only while there is one."""
        return self._queue[0].id

    def add(self, entry: Entry) -> None:
        """Queue the next entry of the log."""
        if entry.id == self.position.entry and entry.batch is not None:
            entry = entry._replace(batch=_rest(entry.batch, self.position.taken or 0))
        self._queue.append(entry)
        self.examples += len(entry.batch) if entry.batch is not None else 0

    def take(self, size: int, recorded: Cut | None = None) -> tuple[Cut, Batch | None]:
        """Cut off up to ``size`` examples, with the dead entries before and right behind them.

        Args:
            size: number of examples.
            recorded: the cut to repeat: it ends where that ends, and what is dead is what that
                calls dead.
        """
        named = None if recorded is None else {d.entry for d in recorded.dead}
        parts: list[Batch] = []
        dead: list[Dead] = []
        sources: dict[str, int] = {}
        left = size
        while self._queue and (recorded is None or self.position != recorded.position):
            entry = self._queue[0]
            if entry.batch is None if named is None else entry.id in named:
                dead.append(Dead(entry.id, entry.reason))
                self._pass(entry)
                continue
            if left == 0 or entry.batch is None:
                break
            n = min(left, len(entry.batch))
            parts.append(entry.batch.part(0, n))
            sources[entry.source] = sources.get(entry.source, 0) + n
            left -= n
            if n == len(entry.batch):
                self._pass(entry)
            else:
                self.examples -= n
                self._queue[0] = entry._replace(batch=_rest(entry.batch, n))
                before = self.position.taken if self.position.entry == entry.id else 0
                self.position = Position(entry.id, (before or 0) + n)
        cut = Cut(self.position, size - left, self.entries, tuple(dead), sources=sources)
        return cut, concatenate(parts) if parts else None

    def _pass(self, entry: Entry) -> None:
        self._queue.popleft()
        self.examples -= 0 if entry.batch is None else len(entry.batch)
        self.position = Position(entry.id)
        self.entries += 1


def _rest(batch: Batch, taken: int) -> Batch:
    return batch.part(taken, len(batch))
