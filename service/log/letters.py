"""The dead letters of a log: entries and batches that were not learned, and why."""

from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.log.entries import Fields
from service.log.errors import LogUnavailable
from service.log.keys import Keys
from service.log.position import EntryId

OWN = ("entry", "reason", "version", "begin", "end", "examples")
"""Fields that the service writes; the others of an entry's letter are the entry's."""


@dataclass(frozen=True)
class Letter:
    """One dead letter."""

    id: str
    time: float
    """Unix time in seconds at which it was written, by the clock of the log's server."""
    begin: str
    """Id of the entry; of a skipped batch, the position in the log at which it begins."""
    end: str
    """The same as ``begin``; of a skipped batch, the position at which it ends."""
    examples: int | None
    """Examples of a skipped batch; None for an entry, which could not be read."""
    reason: str
    fields: list[str]
    """Names of the fields of the entry, of which the log keeps the first 4 kB."""


async def newest_letters(redis: Redis, keys: Keys, count: int) -> list[Letter]:
    """Return the newest dead letters, the newest first.

    Args:
        redis: connected to the log's server.
        keys: of the model.
        count: most letters.

    Raises:
        LogUnavailable: the server does not answer.
    """
    try:
        found = await redis.xrevrange(keys.dead, count=count)
    except (RedisError, OSError) as error:
        raise LogUnavailable(f"the log cannot be reached: {error}") from error
    return [_letter(id, fields) for id, fields in cast(list[tuple[bytes, Fields]], found)]


def _letter(id: bytes, fields: Fields) -> Letter:
    text = {name: value.decode(errors="replace") for name, value in fields.items()}
    named = {name.decode(errors="replace"): value for name, value in text.items()}
    entry, examples = named.get("entry", ""), named.get("examples", "")
    return Letter(
        id.decode(),
        EntryId.parse(id).milliseconds / 1000,
        entry or named.get("begin", ""),
        entry or named.get("end", ""),
        int(examples) if examples.isdigit() and not entry else None,
        named.get("reason", ""),
        [name for name in named if name not in OWN] if entry else [],
    )
