"""How far the log reaches, and whether that is far enough: XREAD is silent about gaps."""

from dataclasses import dataclass, field

import orjson

from service.log.errors import ForeignError, GapError, LogFullError
from service.log.position import ORIGIN, TOP, EntryId, Progress


@dataclass(frozen=True)
class Extent:
    """How far a log reaches."""

    uuid: str
    length: int
    added: int
    """Entries ever added."""
    last: EntryId
    """The highest id ever given."""
    first: EntryId | None
    """Id of the oldest entry that is still there."""
    asked: EntryId = ORIGIN
    """The highest id ever given to questions."""
    time: int = field(default=0, compare=False)
    """The server's Unix time, in milliseconds."""

    @classmethod
    def of(cls, reply: bytes, key: str) -> "Extent":
        """Read the server's reply to the script DESCRIBE.

        Raises:
            GapError: the log's key holds something else.
            ForeignError: the name of the log is not text.
        """
        try:
            found = orjson.loads(reply)
        except orjson.JSONDecodeError as error:
            raise ForeignError(f"the name of the log {key} is not text: {reply[:80]!r}") from error
        asked, time = EntryId.parse(found.get("asked", "0-0")), int(found.get("time", 0))
        if found["kind"] == "none":
            return cls(found["uuid"], 0, 0, ORIGIN, None, asked, time)
        if found["kind"] != "stream":
            raise GapError(f"the key {key} holds a {found['kind']}, not a stream")
        first, last = found["first-entry"], EntryId.parse(found["last-generated-id"])
        oldest = EntryId.parse(first) if first else None
        added = found["entries-added"]
        return cls(found["uuid"], found["length"], added, last, oldest, asked, time)


def check_reach(extent: Extent, progress: Progress) -> None:
    """Make sure that the log still holds every entry after a model's position.

    Raises:
        GapError: entries are missing, or it is another log.
    """
    position = progress.position
    if extent.uuid != progress.log:
        raise GapError(
            "this is another log than the model was learned from (it was flushed, restored or "
            f"replaced): its uuid is {extent.uuid}, expected {progress.log}"
        )
    if extent.last < position.entry:
        raise GapError(f"the log ends at {extent.last}, before the model's position {position}")
    if extent.last == TOP:
        raise LogFullError
    waiting = extent.added - progress.entries
    if waiting < 0:
        raise GapError(
            f"the log was reset to an older state: {extent.added} entries were ever added, the "
            f"model has learned {progress.entries}"
        )
    if extent.first is None or extent.first > position.entry:
        if position.taken is not None:
            raise GapError(f"entry {position.entry}, which is learned in part, is gone")
        if extent.length != waiting:
            raise GapError(
                f"{waiting - extent.length} entries after the model's position {position} are "
                f"gone; the log now begins at {extent.first or extent.last}"
            )
