"""Send a stream to a service over HTTP, or directly into its log in Redis, at a chosen rate."""

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit
from zlib import crc32

import httpx
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from streams.batch import BATCH, Batch, log_key
from streams.errors import FunnelError
from streams.proxies import proxy_for, transport

if TYPE_CHECKING:  # dense features need no pyarrow
    from streams.examples import AnyBatch

FIRST_WAIT = 0.1
MAX_WAIT = 5.0
GIVE_UP_SECONDS = 120.0
CONNECT_SECONDS = 5.0
PATIENCE = 3
"""Tries of a batch before the user is notified: a busy receiver refuses one now and then."""
REMINDER_SECONDS = 10.0
"""From one notice of a batch to the next."""
OPEN = "undecided"
"""Error code of ``GET /schema`` while the first examples decide what a service learns."""
ARROW, CRC32 = "arrow", "crc32"
"""Fields of an entry: rows, and their checksum."""
NO_ROWS = (
    "the service learns dense features, and these are rows with names; start one for them: "
    "funnel serve --data-dir DIRECTORY"
)
BUSY = (408, 409, 429, 502, 503, 504)


class ProducerError(FunnelError, RuntimeError):
    """The stream cannot be sent; the message says why."""


class RetryLaterError(Exception):
    """The receiver is busy or absent; the batch may be sent again.

    Args:
        reason: the receiver's address, and its answer or the error of the connection.
        after: seconds that the receiver asked to wait, or None.
        is_absent: whether nobody answers there, which is no sign of a busy receiver.
    """

    def __init__(self, reason: str, after: float | None = None, is_absent: bool = False) -> None:
        super().__init__(reason)
        self.after, self.is_absent = after, is_absent


class Target(Protocol):
    """A receiver of batches."""

    def send(self, batch: "AnyBatch", key: str) -> None:
        """Send one batch; a second send under the same key must not add it twice.

        Raises:
            RetryLaterError: the batch may be accepted later.
            ProducerError: the batch will not be accepted.
        """

    def takes_rows(self) -> bool:
        """Return whether it is known to take rows with names alone."""

    def prefers_rows(self, width: int) -> bool:
        """Return whether it is known to take both, but not so many dense features."""

    def close(self) -> None:
        """Close the connection."""


class HTTPTarget:
    """``POST /learn`` of a service, as safetensors, with an Idempotency-Key.

    Args:
        url: of the service.
        api_key: bearer token; empty for none.

    Raises:
        ProxyError: the proxy of the environment for the URL cannot be used.
    """

    def __init__(self, url: str, api_key: str = "") -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(60.0, connect=CONNECT_SECONDS)
        self._client = httpx.Client(
            base_url=url, headers=headers, timeout=timeout, transport=transport(url)
        )
        self._shown = _without_secrets(url)
        self._way = ""
        if proxy := proxy_for(url):
            self._way = f" through the proxy {_without_secrets(proxy)} of the environment"

    def send(self, batch: "AnyBatch", key: str) -> None:
        """Send one batch, as `Target` demands."""
        content, kind, query = _request(batch)
        try:
            answer = self._client.post(
                "/learn",
                content=content,
                params=query,
                headers={"Content-Type": kind, "Idempotency-Key": key},
            )
        except httpx.TransportError as error:
            is_absent = isinstance(error, httpx.ConnectError | httpx.TimeoutException)
            reason = f"{self._shown}{self._way}: {str(error) or type(error).__name__}"
            raise RetryLaterError(reason, is_absent=is_absent) from error
        if answer.status_code in BUSY:
            after = answer.headers.get("Retry-After", "")
            raise RetryLaterError(
                f"{self._shown} answered {answer.status_code}: {answer.text[:200]}",
                float(after) if after.isdigit() else None,
            )
        if answer.status_code == 415 and not isinstance(batch, Batch):
            raise ProducerError(NO_ROWS)
        if answer.status_code != 202:
            raise ProducerError(f"the service answered {answer.status_code}: {answer.text[:500]}")

    def takes_rows(self) -> bool:
        """Return whether the service learns rows; if it does not answer now, that is not known."""
        try:
            return self._client.get("/schema").status_code == 200
        except httpx.TransportError:
            return False

    def prefers_rows(self, width: int) -> bool:
        """Return whether the service has learned nothing, and expects another number of features.

        It takes rows then, if it was not told otherwise.
        """
        try:
            answer = self._client.get("/model")
            schema = self._client.get("/schema")
        except httpx.TransportError:
            return False
        if answer.status_code != 200 or schema.json().get("error", {}).get("code") != OPEN:
            return False
        expected: int = answer.json()["hyperparameters"]["features"]
        return expected != width

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class RedisTarget:
    """XADD to a model's log.

    An entry whose reply is lost may be added twice: Redis alone has no idempotency keys.

    Args:
        url: of the server, ``redis://``, ``rediss://`` or ``unix://``.
        model: the model's name.
    """

    def __init__(self, url: str, model: str) -> None:
        self._redis = Redis.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=CONNECT_SECONDS
        )
        self._shown = _without_secrets(url)
        self._key = log_key(model)

    def send(self, batch: "AnyBatch", key: str) -> None:
        """Send one batch, as `Target` demands."""
        if isinstance(batch, Batch):
            field, content = BATCH, batch.to_bytes()
        else:
            from streams.rows.entry import to_bytes

            field, content = ARROW, to_bytes(batch)
        try:
            self._redis.xadd(self._key, {field: content, CRC32: crc32(content)})
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise RetryLaterError(f"{self._shown}: {error}", is_absent=True) from error
        except RedisError as error:
            raise ProducerError(f"the server refused the entry: {error}") from error

    def takes_rows(self) -> bool:
        """Return whether the model has a schema."""
        try:
            return bool(self._redis.exists(self._key.removesuffix("log") + "schema"))
        except RedisError:
            return False

    def prefers_rows(self, width: int) -> bool:
        """Return False: the log does not say what its service expects."""
        return False

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()


def _request(batch: "AnyBatch") -> tuple[bytes, str, dict[str, str]]:
    """Return the body of a request with a batch, its Content-Type and its query.

    Rows lie in one chunk.
    """
    if isinstance(batch, Batch):
        return batch.to_bytes(), "application/octet-stream", {}
    from streams.rows.ipc.arrow import to_ipc

    [chunk] = batch.chunks
    content, query = to_ipc(chunk)
    return content, "application/vnd.apache.arrow.stream", query


def _without_secrets(url: str) -> str:
    """Return a URL for messages, without its user, password and query."""
    scheme, _, address = url.partition("?")[0].partition("://")
    return f"{scheme}://{address.rpartition('@')[2]}"


@dataclass(frozen=True)
class Sent:
    """The result of sending a stream."""

    examples: int
    seconds: float
    retries: int


def make_target(url: str, model: str = "logistic", api_key: str = "") -> Target:
    """Return the target for a URL.

    Raises:
        ProducerError: the URL has another scheme, or is not an address.
        ProxyError: the proxy of the environment for it cannot be used.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https"):
            if not parts.hostname:
                raise ProducerError(f"{url!r} names no host")
            return HTTPTarget(url, api_key)
        if parts.scheme in ("redis", "rediss", "unix"):
            return RedisTarget(url, model)
    except (httpx.InvalidURL, ValueError) as error:
        raise ProducerError(f"{url!r} is not an address: {error}") from error
    raise ProducerError(f"{url!r} is neither http:// nor redis://, rediss:// or unix://")


def produce(
    batches: "Iterable[AnyBatch]",
    target: Target,
    rate: float | None = None,
    name: str = "",
    progress: Callable[[int], object] = lambda examples: None,
    away: Callable[[str], object] = lambda reason: None,
    give_up_seconds: float = GIVE_UP_SECONDS,
    sleep: Callable[[float], object] = time.sleep,
) -> Sent:
    """Send every batch in order; each exactly once if the target has idempotency keys.

    Args:
        batches: the stream; rows in one chunk each.
        target: the receiver.
        rate: examples a second; None for as fast as the target accepts them.
        name: name of the stream, from which keys are made. Two runs of one name are one stream.
        progress: called with the number of examples of each batch that was sent.
        away: called with the reason when a batch has been tried PATIENCE times, or at once if
            the receiver is absent; then again every REMINDER_SECONDS at most.
        give_up_seconds: longest time that one batch is tried.
        sleep: waits for so many seconds, before each batch too if there is a rate; what it raises
            ends the stream.

    Raises:
        ProducerError: a batch was refused, or the target was absent for too long.
    """

    def send(batch: "AnyBatch", key: str) -> int:
        """Send one batch with exponential back-off and jitter; return the number of retries."""
        began, wait, retries = time.monotonic(), FIRST_WAIT, 0
        notice = began
        jitter = random.Random(key)
        while True:
            try:
                target.send(batch, key)
            except RetryLaterError as error:
                now = time.monotonic()
                if now - began > give_up_seconds:
                    raise ProducerError(
                        f"gave up after {give_up_seconds:g} s; last answer: {error}"
                    ) from error
                retries += 1
                if now >= notice and (error.is_absent or retries >= PATIENCE):
                    away(str(error))
                    notice = now + REMINDER_SECONDS
                sleep(error.after if error.after is not None else wait * jitter.uniform(0.5, 1))
                wait = min(2 * wait, MAX_WAIT)
            else:
                return retries

    began = time.monotonic()
    examples = retries = 0
    for index, batch in enumerate(batches):
        if rate is not None:
            sleep(max(0.0, began + examples / rate - time.monotonic()))
        try:
            retries += send(batch, f"{name}-{index}")
        except ProducerError as error:
            if not examples:
                raise
            raise ProducerError(f"{error} ({examples:,} examples before it were sent)") from error
        examples += len(batch)
        progress(len(batch))
    return Sent(examples, time.monotonic() - began, retries)
