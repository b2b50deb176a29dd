"""How far the partitions of a source are in the log.

An entry and the offset of its message are written by one script, so that each message is in the log
exactly once: whatever breaks, and however many sources carry one partition. Offsets may have gaps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.log.errors import LogUnavailable
from service.log.keys import Keys
from service.log.scripts import BEGIN_PARTITIONS, CARRY
from streams.errors import FunnelError

CARRIED_AT_ONCE, CARRIED_BYTES = 64, 1 << 20
"""Most messages of one script, and bytes of them, which the last may exceed: the server answers no
other client meanwhile."""


class HoleError(FunnelError):
    """Messages before these are not in the log: it has lost its end, or refused a part."""


@dataclass(frozen=True)
class Carried:
    """One message, as an entry of the log."""

    partition: str
    offset: int
    fields: Mapping[str, bytes | int]
    """The entry's."""

    @property
    def bytes(self) -> int:
        """The size of its values."""
        return sum(len(value) for value in self.fields.values() if isinstance(value, bytes))


class Offsets:
    """The last offset of each partition in a model's log, and what appends above it.

    Args:
        redis: a client from `service.log.server.connect`.
        model: the model's name.
    """

    def __init__(self, redis: Redis, model: str) -> None:
        self._redis, self._keys = redis, Keys(model)
        self._last: dict[str, int] = {}

    async def begin(
        self, bounds: Mapping[str, tuple[int, int]], is_latest: bool = False
    ) -> dict[str, int]:
        """Return the last offset of each partition, and let messages after it follow.

        Args:
            bounds: by partition, the offset before its first message, and that of its last one.
                They count only for one that the log does not know.
            is_latest: whether partitions begin after their last message, if the log knows none.

        Raises:
            LogUnavailable: the log cannot be reached.
        """
        pairs = [str(part) for name, own in bounds.items() for part in (name, *own)]
        choice = "latest" if is_latest else "earliest"
        try:
            found = await self._redis.eval(BEGIN_PARTITIONS, 1, self._keys.sources, choice, *pairs)
        except (RedisError, OSError) as error:
            raise LogUnavailable(f"the log cannot be reached: {error}") from error
        last = dict(zip(bounds, map(int, found), strict=True))
        self._last |= last
        return last

    async def append(self, messages: Sequence[Carried]) -> int:
        """Append the messages that are not in the log, and return how many those were.

        Args:
            messages: in the order of each partition, after those that were given before.

        Raises:
            HoleError: there is a hole before them; call `begin`, and read again from there.
            LogUnavailable: the log did not confirm; some may be in it. Do the same.
        """
        last = dict(self._last)
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for part in _parts(messages):
                    own = part[0].partition
                    arguments: list[str | bytes | int] = [own, last[own]]
                    for message in part:
                        pairs = [part for pair in message.fields.items() for part in pair]
                        arguments += [message.offset, len(pairs), *pairs]
                    keys = (self._keys.log, self._keys.sources)
                    pipe.eval(CARRY, len(keys), *keys, *arguments)
                    last[own] = part[-1].offset
                replies = await pipe.execute()
        except (RedisError, OSError) as error:
            raise LogUnavailable(f"the log did not confirm: {error}") from error
        if any(added < 0 for added, _ in replies):
            raise HoleError("the log lacks messages that were carried before")
        self._last = last
        return sum(added for added, _ in replies)


def _parts(messages: Sequence[Carried]) -> list[list[Carried]]:
    """Return the messages in parts of one partition each, in the order of each partition."""
    parts: list[list[Carried]] = []
    newest: dict[str, tuple[list[Carried], int]] = {}
    for message in messages:
        part, size = newest.get(message.partition, ([], CARRIED_BYTES))
        if size >= CARRIED_BYTES or len(part) >= CARRIED_AT_ONCE:
            part, size = [], 0
            parts.append(part)
        part.append(message)
        newest[message.partition] = part, size + message.bytes
    return parts
