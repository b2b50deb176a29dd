"""A source, as its carrier sees it: its partitions, and their messages in order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from streams.errors import FunnelError


class SourceError(FunnelError, RuntimeError):
    """The source cannot be carried; the message says why."""


class AwayError(FunnelError):
    """The source does not answer now; it may later."""


@dataclass(frozen=True)
class Message:
    """A message of a source."""

    partition: str
    """Name of its partition, as the log keeps it."""
    offset: int
    """Its place in the partition: higher than that of the message before, with gaps."""
    content: bytes
    header: bytes = b""
    """The line with the names of the columns, if the content is a line of CSV."""


@dataclass(frozen=True)
class Bounds:
    """The messages that a partition has."""

    before: int
    """The offset before that of the oldest."""
    last: int
    """The offset of the newest; that before the oldest if there is none."""


class Reader(Protocol):
    """Reads a source.

    Each method raises `AwayError` if the source does not answer now, and `SourceError` if waiting
    does not help.
    """

    title: str
    """Name of the source, for people."""

    async def bounds(self) -> dict[str, Bounds]:
        """Return the bounds of each partition that there is now."""

    async def seek(self, after: Mapping[str, int]) -> None:
        """Read on after these offsets, one of each partition."""

    async def read(self, most: int, seconds: float) -> Sequence[Message] | None:
        """Return the next messages; none if there were none for so many seconds.

        None asks the caller to look at the bounds, as there may be other partitions now, and to
        `seek`.
        """

    def lag(self) -> int | None:
        """Return about how many messages wait in the source; None if that is not known."""

    async def close(self) -> None:
        """Close the connections."""
