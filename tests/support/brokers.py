"""Brokers on loopback: a real NATS server with JetStream, and librdkafka's mock cluster of Kafka.

The mock cluster keeps offsets and answers fetches as a broker does. It writes nothing to disk,
does not fence an old producer of transactions, and returns messages of transactions that were given
up.
"""

import asyncio
import contextlib
import shutil
import subprocess
import sysconfig
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import nats
import nats.errors
from confluent_kafka import Producer
from nats.aio.client import Client

from tests.support.harness import free_port, wait_for


class MockKafka:
    """A cluster that lives in this process, as long as this object."""

    def __init__(self) -> None:
        usual = {"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 2}
        self.producer = Producer(usual | {"linger.ms": 1})
        [broker] = self.producer.list_topics(timeout=30).brokers.values()
        self.address = f"{broker.host}:{broker.port}"

    def url(self, topic: str) -> str:
        return f"kafka://{self.address}/{topic}"

    def send(self, topic: str, partition: int, contents: Sequence[bytes | None]) -> None:
        """Produce messages to a partition of a topic, which has four, and wait for them."""
        for content in contents:
            self.producer.produce(topic, content, partition=partition)
        assert self.producer.flush(30) == 0

    def commit(self, topic: str, contents: Sequence[bytes]) -> None:
        """Produce messages to partition 0, each in a transaction, whose end has an offset too."""
        own = {"bootstrap.servers": self.address, "transactional.id": topic, "log_level": 2}
        producer = Producer(own)
        producer.init_transactions(30)
        for content in contents:
            producer.begin_transaction()
            producer.produce(topic, content, partition=0)
            producer.commit_transaction(30)


class NatsProcess:
    """A server in its own process; it keeps its streams when it is killed and started again."""

    def __init__(self, directory: Path) -> None:
        self._directory, self.port = directory, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, stream: str) -> str:
        return f"nats://127.0.0.1:{self.port}/{stream}"

    def start(self) -> "NatsProcess":
        program = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
        assert program is not None
        self._process = subprocess.Popen(
            [program, "-js", "-a", "127.0.0.1", "-p", str(self.port), "-sd", self._directory],
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: asyncio.run(self._answers()), 30)
        return self

    async def _answers(self) -> bool:
        with contextlib.suppress(nats.errors.Error, OSError):
            async with self._client() as client:
                await client.jetstream().account_info()
                return True
        return False

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[Client]:
        client = await nats.connect(
            f"127.0.0.1:{self.port}",
            allow_reconnect=False,
            reconnect_time_wait=0,
            error_cb=_ignored,
        )
        try:
            yield client
        finally:
            await client.close()

    def send(self, stream: str, contents: Sequence[bytes]) -> None:
        """Publish messages to a stream, which is made if need be."""

        async def publish() -> None:
            async with self._client() as client:
                context = client.jetstream()
                await context.add_stream(name=stream, subjects=[stream])
                for content in contents:
                    await context.publish(stream, content)

        asyncio.run(publish())

    def remove(self, stream: str, sequence: int) -> None:
        """Remove a message."""

        async def delete() -> None:
            async with self._client() as client:
                await client.jetstream().delete_msg(stream, sequence)

        asyncio.run(delete())

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def purge(self, stream: str) -> None:
        """Remove all messages; the next one has the next sequence number."""

        async def purge() -> None:
            async with self._client() as client:
                await client.jetstream().purge_stream(stream)

        asyncio.run(purge())

    def delete(self, stream: str) -> None:
        """Remove the stream itself."""

        async def delete() -> None:
            async with self._client() as client:
                await client.jetstream().delete_stream(stream)

        asyncio.run(delete())


async def _ignored(error: Exception) -> None:
    """Take an error of the connection, which the next request raises again."""
