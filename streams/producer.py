"""Send a stream to a service over HTTP, or directly into its log in Redis, at a chosen rate."""

import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import urlsplit
from zlib import crc32

import httpx
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from streams.batch import (
    BATCH,
    DEFAULT_MODEL,
    FORMER_MODEL,
    Batch,
    log_key,
    questions_to_bytes,
)
from streams.client.backoff import PATIENCE, Backoff
from streams.client.transport import (
    CONNECT_SECONDS,
    NO_ANSWER,
    Answer,
    Request,
    Transport,
    shown,
    way_to,
)
from streams.errors import FunnelError

if TYPE_CHECKING:  # dense features need no pyarrow
    from streams.examples import AnyBatch

GIVE_UP_SECONDS = 120.0
ANSWER_SECONDS = 60.0
"""How long one try waits for its answer."""
REMINDER_SECONDS = 10.0
"""From one notice of a batch to the next."""
DENSE = "application/octet-stream"
"""Content-Type of dense features."""
STARTING = "starting"
"""Error code of a service that cannot answer yet."""
OPEN = "undecided"
"""Error code of ``GET /schema`` while the first examples decide what a service learns."""
ARROW, CRC32 = "arrow", "crc32"
"""Fields of an entry: rows, and their checksum."""
NO_ROWS = (
    "the service learns dense features, and these are rows with names; start one for them: "
    "funnel serve --data-dir DIRECTORY"
)
T = TypeVar("T")


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


class NothingLearnedError(FunnelError):
    """The service has learned nothing, and cannot answer a question."""


class Target(Protocol):
    """A receiver of batches."""

    def send(self, batch: "AnyBatch", key: str) -> None:
        """Send one batch; a second send under the same key must not add it twice.

        Raises:
            RetryLaterError: the batch may be accepted later.
            ProducerError: the batch will not be accepted.
        """

    def takes_rows(self) -> bool:
        """Return whether it takes rows with names alone.

        Raises:
            RetryLaterError: it does not answer now.
        """

    def prefers_rows(self, width: int) -> bool:
        """Return whether it takes both, but not so many dense features.

        Raises:
            RetryLaterError: it does not answer now.
        """

    def close(self) -> None:
        """Close the connection."""


class HTTPTarget:
    """``POST /learn`` of a service, as safetensors, with an Idempotency-Key.

    Args:
        url: of the service.
        api_key: bearer token; empty for none.
        predict_key: the one of questions, where the other may not ask; empty for none.

    Raises:
        ProxyError: the proxy of the environment for the URL cannot be used.
    """

    def __init__(self, url: str, api_key: str = "", predict_key: str = "") -> None:
        self._asking: dict[str, str] = {}
        if predict_key:
            self._asking = {"Authorization": f"Bearer {predict_key}", "Funnel-Learn-Key": api_key}
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._transport = Transport(url)
        self._shown, self._way = shown(url), way_to(url)

    def send(self, batch: "AnyBatch", key: str) -> None:
        """Send one batch, as `Target` demands."""
        content, kind, query = _request(batch)
        self._learn(content, kind, query, key, (202,))

    def learn(self, batch: "AnyBatch", key: str) -> None:
        """Send one batch as `send` does, and wait until it is learned, or for a minute."""
        content, kind, query = _request(batch)
        self._learn(content, kind, query | {"wait": "applied"}, key, (200, 202))

    def ask(self, batch: "AnyBatch", ids: Sequence[str]) -> list[object]:
        """Send ``POST /predict`` with the examples of a batch, and return the answers, [n].

        Args:
            batch: examples; rows in one chunk. Its labels are not sent.
            ids: by which the labels come later, [n].

        Returns:
            The labels or numbers that were predicted.

        Raises:
            NothingLearnedError: the service has learned nothing, and cannot answer.
            RetryLaterError, ProducerError: as for `send`.
        """
        content, kind, query = _question(batch, ids)
        answer = self._post("/predict", content, kind, query, self._asking)
        if answer.status == 503 and _code(answer) == STARTING and self._is_new():
            raise NothingLearnedError
        self._check(answer, (200,))
        found: dict[str, list[object]] = json.loads(answer.content)
        return found["labels"] if "labels" in found else found["values"]

    def label(
        self,
        ids: Sequence[str],
        labels: Sequence[object],
        weights: Sequence[float] | None,
        waits: bool = False,
    ) -> None:
        """Send ``POST /labels``.

        Args:
            ids: with which examples were asked, [n].
            labels: of these, [n].
            weights: how much each counts, [n]; None for 1.
            waits: whether to wait until they are learned, or for a minute.

        Raises:
            RetryLaterError, ProducerError: as for `send`.
        """
        body = {"ids": ids, "labels": labels} | ({"weights": weights} if weights else {})
        content, query = json.dumps(body).encode(), {"wait": "applied"} if waits else {}
        self._check(self._post("/labels", content, "application/json", query, {}), (200, 202))

    def _learn(
        self, content: bytes, kind: str, query: dict[str, str], key: str, statuses: Sequence[int]
    ) -> None:
        answer = self._post("/learn", content, kind, query, {"Idempotency-Key": key})
        if answer.status == 415 and kind != DENSE:
            raise ProducerError(NO_ROWS)
        self._check(answer, statuses)

    def _is_new(self) -> bool:
        """Return whether the service has learned nothing; if it does not answer, that is False."""
        answer = self._try(Request("GET", "/model"))
        return answer.status == 200 and not json.loads(answer.content)["examples_learned"]

    def _post(
        self, path: str, content: bytes, kind: str, query: dict[str, str], headers: dict[str, str]
    ) -> Answer:
        return self._sent(Request("POST", path, content, {"Content-Type": kind, **headers}, query))

    def _check(self, answer: Answer, statuses: Sequence[int]) -> None:
        """Make sure that an answer has one of some statuses.

        Raises:
            RetryLaterError: it may be later.
            ProducerError: it was refused.
        """
        self._check_busy(answer)
        if answer.status not in statuses:
            raise ProducerError(f"the service answered {answer.status}: {answer.text[:500]}")

    def takes_rows(self) -> bool:
        """Return whether the service learns rows, as `Target` demands."""
        return self._get("/schema").status == 200

    def prefers_rows(self, width: int) -> bool:
        """Return whether the service has learned nothing, and expects another number of features.

        It takes rows then, if it was not told otherwise.

        Raises:
            RetryLaterError: it does not answer now.
        """
        answer, schema = self._get("/model"), self._get("/schema")
        if answer.status != 200:
            return False
        if json.loads(schema.content).get("error", {}).get("code") != OPEN:
            return False
        expected: int = json.loads(answer.content)["hyperparameters"]["features"]
        return expected != width

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def _get(self, path: str) -> Answer:
        """Return the answer to a read.

        Raises:
            RetryLaterError: there is none now.
        """
        answer = self._sent(Request("GET", path))
        self._check_busy(answer)
        return answer

    def _check_busy(self, answer: Answer) -> None:
        """Raise RetryLaterError if the same request may be accepted later."""
        if answer.is_busy:
            raise RetryLaterError(
                f"{self._shown} answered {answer.status}: {answer.text[:200]}", answer.after
            )

    def _sent(self, request: Request) -> Answer:
        """Return the answer to a request, whatever its status.

        Raises:
            RetryLaterError: there is none.
        """
        answer = self._try(request)
        if answer.status == NO_ANSWER:
            raise RetryLaterError(f"{self._way}: {answer.fault}", is_absent=answer.is_absent)
        return answer

    def _try(self, request: Request) -> Answer:
        headers = {**self._headers, **request.headers}
        return self._transport.send(replace(request, headers=headers), ANSWER_SECONDS)


class RedisTarget:
    """XADD to a model's log.

    An entry whose reply is lost may be added twice: Redis alone has no idempotency keys.

    Args:
        url: of the server, ``redis://``, ``rediss://`` or ``unix://``.
        model: the model's name; empty for that of the model which a service without settings
            continues or begins.
    """

    def __init__(self, url: str, model: str) -> None:
        self._redis = Redis.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=CONNECT_SECONDS
        )
        self._shown, self._model = shown(url), model

    @cached_property
    def key(self) -> str:
        """The key of the log, once the server has said which one it has."""
        if self._model:
            return log_key(self._model)
        former, default = log_key(FORMER_MODEL), log_key(DEFAULT_MODEL)
        has_former = self._redis.exists(former, former.removesuffix("log") + "uuid")
        return former if has_former else default

    def send(self, batch: "AnyBatch", key: str) -> None:
        """Send one batch, as `Target` demands."""
        if isinstance(batch, Batch):
            field, content = BATCH, batch.to_bytes()
        else:
            from streams.rows.entry import to_bytes

            field, content = ARROW, to_bytes(batch)
        try:
            self._redis.xadd(self.key, {field: content, CRC32: crc32(content)})
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise RetryLaterError(f"{self._shown}: {error}", is_absent=True) from error
        except RedisError as error:
            raise ProducerError(f"the server refused the entry: {error}") from error

    def takes_rows(self) -> bool:
        """Return whether the model has a schema, as `Target` demands."""
        try:
            return bool(self._redis.exists(self.key.removesuffix("log") + "schema"))
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise RetryLaterError(f"{self._shown}: {error}", is_absent=True) from error
        except RedisError as error:
            raise ProducerError(f"the server refused a read: {error}") from error

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
        return batch.to_bytes(), DENSE, {}
    from streams.rows.ipc.arrow import to_ipc

    [chunk] = batch.chunks
    content, query = to_ipc(chunk)
    return content, "application/vnd.apache.arrow.stream", query


def _question(batch: "AnyBatch", ids: Sequence[str]) -> tuple[bytes, str, dict[str, str]]:
    """Return what `_request` does for examples without their labels, with ids."""
    if isinstance(batch, Batch):
        return questions_to_bytes(batch.features, ids), DENSE, {}
    from streams.rows.ipc.arrow import to_ipc
    from streams.rows.rows import Chunk

    [chunk] = batch.chunks
    content, query = to_ipc(Chunk(chunk.own), ids)
    return content, "application/vnd.apache.arrow.stream", query


def _code(answer: Answer) -> str:
    """Return the code of an error; nothing if it has none."""
    try:
        return str(json.loads(answer.content)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""


@dataclass(frozen=True)
class Sent:
    """The result of sending a stream."""

    examples: int
    seconds: float
    retries: int


def make_target(url: str, model: str = "", api_key: str = "", predict_key: str = "") -> Target:
    """Return the target for a URL.

    Args:
        url: of a service, or of a log's server.
        model: the model's name, for a log's server; see `RedisTarget`.
        api_key: for a service.
        predict_key: that may ask the service, where the other may not; empty for none.

    Raises:
        ProducerError: the URL has another scheme, or is not an address.
        ProxyError: the proxy of the environment for it cannot be used.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https"):
            if not parts.hostname:
                raise ProducerError(f"{url!r} names no host")
            return HTTPTarget(url, api_key, predict_key)
        if parts.scheme in ("redis", "rediss", "unix"):
            return RedisTarget(url, model)
    except (httpx.InvalidURL, ValueError) as error:
        raise ProducerError(f"{url!r} is not an address: {error}") from error
    raise ProducerError(f"{url!r} is neither http:// nor redis://, rediss:// or unix://")


def insist(
    attempt: Callable[[], T],
    key: str,
    away: Callable[[str], object] = lambda reason: None,
    give_up_seconds: float = GIVE_UP_SECONDS,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[T, int]:
    """Try until it succeeds, with exponential back-off and jitter.

    Args:
        attempt: what is tried.
        key: the jitter depends on it.
        away, give_up_seconds, sleep: as for `produce`.

    Returns:
        What the attempt returned, and the number of retries.

    Raises:
        ProducerError: the attempt raised it, or RetryLaterError for too long.
    """
    began = notice = time.monotonic()
    backoff = Backoff(random.Random(key))
    while True:
        try:
            return attempt(), backoff.retries
        except RetryLaterError as error:
            now = time.monotonic()
            if now - began > give_up_seconds:
                raise ProducerError(
                    f"gave up after {give_up_seconds:g} s; last answer: {error}"
                ) from error
            wait = backoff.next(error.after)
            if now >= notice and (error.is_absent or backoff.retries >= PATIENCE):
                away(str(error))
                notice = now + REMINDER_SECONDS
            sleep(wait)


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

    began = time.monotonic()
    examples = retries = 0
    for index, batch in enumerate(batches):
        if rate is not None:
            sleep(max(0.0, began + examples / rate - time.monotonic()))
        try:
            key = f"{name}-{index}"
            _, tries = insist(partial(target.send, batch, key), key, away, give_up_seconds, sleep)
            retries += tries
        except ProducerError as error:
            if not examples:
                raise
            raise ProducerError(f"{error} ({examples:,} examples before it were sent)") from error
        examples += len(batch)
        progress(len(batch))
    return Sent(examples, time.monotonic() - began, retries)
