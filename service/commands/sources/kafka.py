"""A topic of Kafka: its partitions are the source's."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from service.commands.sources.reader import AwayError, Bounds, Message, Reader, SourceError
from streams.producer import REMINDER_SECONDS

ANSWER_SECONDS = 5.0
PARTITIONS_SECONDS = 30.0
"""From one look at the number of partitions to the next."""
USUAL: dict[str, str | int | float | bool | None] = {
    "group.id": "funnel-source",
    "isolation.level": "read_committed",
    "queued.max.messages.kbytes": 8_192,
    "log_level": 2,
}
"""Properties that may be set otherwise. The group is a name alone: nothing joins it."""
OWN: dict[str, str | int | float | bool | None] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "allow.auto.create.topics": False,
}


class KafkaReader(Reader):
    """Reads all partitions of a topic, without a group of consumers.

    Args:
        servers: ``host:port``, several with commas.
        topic: its name.
        name: of the source, as the log keeps it.
        properties: of librdkafka, such as ``security.protocol``.
        notify: called with errors of the connection, from any thread.

    Raises:
        SourceError: a property is wrong.
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        name: str,
        properties: Mapping[str, str],
        notify: Callable[[str], object],
    ) -> None:
        self.title = topic
        self._topic, self._name = topic, name
        self._notify, self._told_at = notify, -REMINDER_SECONDS
        own: dict[str, object] = {
            "bootstrap.servers": servers,
            "error_cb": self._tell,
        }
        try:
            self._consumer = Consumer({**USUAL, **properties, **OWN, **own})
        except (KafkaException, ValueError) as error:
            raise SourceError(f"--config: {_reason(error)}") from error
        self._next: dict[int, int] = {}
        self._looked_at = time.monotonic()

    def _tell(self, error: KafkaError) -> None:
        """Notify of an error of the connection, at most once in some seconds."""
        now = time.monotonic()
        if now - self._told_at >= REMINDER_SECONDS:
            self._told_at = now
            self._notify(f"trying again: {error.str()}")

    async def bounds(self) -> dict[str, Bounds]:
        return await asyncio.to_thread(self._bounds)

    def _bounds(self) -> dict[str, Bounds]:
        try:
            found = {}
            for partition in self._partitions():
                of = TopicPartition(self._topic, partition)
                ends = self._consumer.get_watermark_offsets(of, timeout=ANSWER_SECONDS)
                if ends is None:
                    raise AwayError(f"no broker answers for {self._named(partition)}")
                found[self._named(partition)] = Bounds(ends[0] - 1, ends[1] - 1)
            return found
        except KafkaException as error:
            raise AwayError(_reason(error)) from error

    def _partitions(self) -> list[int]:
        """Return the partitions that the topic has now.

        Raises:
            SourceError: there is no such topic, or it may not be read.
        """
        self._looked_at = time.monotonic()
        topic = self._consumer.list_topics(self._topic, ANSWER_SECONDS).topics[self._topic]
        if topic.error is not None:
            if topic.error.retriable() and topic.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise AwayError(topic.error.str())
            raise SourceError(f"the topic {self._topic!r} cannot be read: {topic.error.str()}")
        return sorted(topic.partitions)

    def _named(self, partition: int) -> str:
        return f"{self._name}/{partition}"

    async def seek(self, after: Mapping[str, int]) -> None:
        self._next = {int(name.rpartition("/")[2]): offset + 1 for name, offset in after.items()}
        places = [TopicPartition(self._topic, own, offset) for own, offset in self._next.items()]
        try:
            self._consumer.assign(places)
        except KafkaException as error:
            raise AwayError(_reason(error)) from error

    async def read(self, most: int, seconds: float) -> Sequence[Message] | None:
        return await asyncio.to_thread(self._read, most, seconds)

    def _read(self, most: int, seconds: float) -> Sequence[Message] | None:
        try:
            if time.monotonic() - self._looked_at > PARTITIONS_SECONDS and (
                self._partitions() != sorted(self._next)
            ):
                return None
            first = self._consumer.poll(seconds)
            more = self._consumer.consume(most - 1, 0) if first is not None else []
        except KafkaException as error:
            raise AwayError(_reason(error)) from error
        found = []
        for message in [first, *more] if first is not None else []:
            if (fault := message.error()) is not None:
                kind = SourceError if fault.fatal() else AwayError
                raise kind(f"{self._topic}: {fault.str()}")
            partition, offset, content = message.partition(), message.offset(), message.value()
            assert partition is not None
            assert offset is not None
            self._next[partition] = offset + 1
            if content is not None:  # otherwise it only removes a key
                found.append(Message(self._named(partition), offset, bytes(content)))
        return found

    def lag(self) -> int | None:
        total = 0
        for partition, position in self._next.items():
            of = TopicPartition(self._topic, partition)
            ends = self._consumer.get_watermark_offsets(of, cached=True)
            if ends is None or ends[1] < 0:
                return None
            total += max(0, ends[1] - position)
        return total

    async def close(self) -> None:
        await asyncio.to_thread(self._consumer.close)


def _reason(error: Exception) -> str:
    """Return what librdkafka says of an error."""
    first = error.args[0] if error.args else error
    return first.str() if isinstance(first, KafkaError) else str(first)
