"""A stream of NATS JetStream: one partition, whose offsets are the stream's sequence numbers."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nats
import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from service.commands.sources.reader import AwayError, Bounds, Message, Reader, SourceError

CONNECT_SECONDS = 5
UNUSED_SECONDS = 60.0
"""After so long without a request the server removes a consumer."""
QUIET_SECONDS = 15.0
"""After so long without a message the consumer is made again: it may be gone."""
AT_ONCE = 256
"""Messages of one request: they come to memory however large they are."""


class NatsReader(Reader):
    """Reads a stream in order, with a consumer that the server forgets.

    Args:
        server: ``nats://host:4222`` or ``tls://…``, with user and password if need be.
        stream: its name.
        name: of the source, as the log keeps it.
        credentials: file of credentials; None for none.
    """

    def __init__(self, server: str, stream: str, name: str, credentials: Path | None) -> None:
        self.title = stream
        self._server, self._stream, self._name = server, stream, name
        self._credentials = credentials
        self._client: Client | None = None
        self._messages: JetStreamContext.PullSubscription | None = None
        self._consumed = 0
        """Sequence number of the last message among those of the consumer."""
        self._waiting: int | None = None
        self._heard_at = time.monotonic()

    async def bounds(self) -> dict[str, Bounds]:
        try:
            state = (await (await self._connected()).stream_info(self._stream)).state
        except NotFoundError as error:
            raise SourceError(f"there is no stream {self._stream!r}") from error
        except ModuleNotFoundError as error:
            raise SourceError(f"--config: credentials need the package {error.name}") from error
        except (nats.errors.Error, OSError) as error:
            raise AwayError(f"{self._stream}: {_reason(error)}") from error
        before = max(state.first_seq, 1) - 1
        return {self._name: Bounds(before, max(before, state.last_seq))}

    async def _connected(self) -> JetStreamContext:
        """Return the present connection, or a new one where that has ended."""
        if self._client is None or not self._client.is_connected:
            await self.close()
            files = {} if self._credentials is None else {"user_credentials": self._credentials}
            self._client = await nats.connect(
                self._server,
                allow_reconnect=False,
                connect_timeout=CONNECT_SECONDS,
                reconnect_time_wait=0,
                error_cb=_ignored,
                **files,
            )
        return self._client.jetstream()

    async def seek(self, after: Mapping[str, int]) -> None:
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after[self._name] + 1,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=UNUSED_SECONDS,
            mem_storage=True,
            num_replicas=1,
        )
        try:
            stream = await self._connected()
            if self._messages is not None:
                await self._messages.unsubscribe()
            made = await stream.add_consumer(self._stream, config)
            self._messages = await stream.pull_subscribe_bind(made.name, self._stream)
        except (nats.errors.Error, OSError) as error:
            raise AwayError(f"{self._stream}: {_reason(error)}") from error
        self._consumed, self._waiting = 0, made.num_pending
        self._heard_at = time.monotonic()

    async def read(self, most: int, seconds: float) -> Sequence[Message] | None:
        if self._messages is None:
            return None
        # A request returns once it has all that it asks for, or time is over.
        count = max(1, min(most, AT_ONCE, self._waiting or 0))
        try:
            raw = await self._messages.fetch(count, seconds)
        except TimeoutError as error:
            if self._client is None or not self._client.is_connected:
                raise AwayError(f"{self._stream}: the connection was lost") from error
            return None if time.monotonic() - self._heard_at > QUIET_SECONDS else []
        except (nats.errors.Error, OSError) as error:
            raise AwayError(f"{self._stream}: {_reason(error)}") from error
        found = []
        for message in raw:
            place = message.metadata
            if place.sequence.consumer != self._consumed + 1:
                raise AwayError(f"{self._stream}: messages were lost on their way")
            self._consumed = place.sequence.consumer
            self._waiting = place.num_pending
            found.append(Message(self._name, place.sequence.stream, message.data))
        self._heard_at = time.monotonic()
        return found

    def lag(self) -> int | None:
        return self._waiting

    async def close(self) -> None:
        client, self._client, self._messages = self._client, None, None
        if client is not None and not client.is_closed:
            await client.close()


async def _ignored(error: Exception) -> None:
    """Take an error of the connection, which the next request raises again."""


def _reason(error: Exception) -> str:
    if isinstance(error, APIError) and error.description:
        return error.description
    return str(error) or type(error).__name__
