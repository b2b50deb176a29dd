"""The work of a client, apart from sending: generators that yield tries and are sent the answers.

`Client` and `AsyncClient` send the same tries, the one with and the other without waiting for each
in its thread.
"""

import logging
import random
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import numpy.typing as npt
import orjson

from streams.client import merging
from streams.client.answers import Labelled, Learned, Model, Predictions, Readiness, Schema
from streams.client.backoff import PATIENCE, Backoff
from streams.client.dense import Dense
from streams.client.encoding import JSON, to_json
from streams.client.errors import InvalidExamples, ServiceError, code_of, error_of
from streams.client.examples import Body, Examples, fitting
from streams.client.keys import Keys
from streams.client.records import Records
from streams.client.table import Table
from streams.client.transport import Answer, Request, way_to
from streams.client.values import Tensor, Values, array_of, list_of
from streams.errors import FunnelError

logger = logging.getLogger("funnel.client")

TIMEOUT = 60.0
WAIT_SECONDS = 60.0
"""How long a service lets a request wait for its examples to be learned."""
LEAST_SECONDS = 1.0
"""For which the last try waits for an answer, at least."""
MAX_ASKED = 8_192
"""Most examples that one request asks for: answers are longer than questions."""
MAX_EXPLAINED = 1_000
TOO_LARGE = 413


class AddressError(FunnelError, ValueError):
    """An address is not one of a service."""


class Frame(Protocol):
    """A frame of pandas or polars, or anything else that hands out streams of Arrow."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Return the stream (https://arrow.apache.org/docs/format/CDataInterface)."""


Inputs = Frame | Mapping[str, object] | Sequence[Mapping[str, object]] | Tensor | npt.ArrayLike
"""Examples: a frame, one row or a list of rows as dictionaries, or an array of features [n, d]."""


@dataclass(frozen=True)
class Try:
    """One try of a request."""

    request: Request
    wait: float
    """Seconds to wait before it."""
    seconds: float
    """Seconds to wait for its answer."""


T = TypeVar("T")
Call = Generator[Try, Answer, T]


class Calls:
    """The calls of a client.

    Args:
        url: of the service, http:// or https://.
        timeout: seconds for which one request is tried.
        keys: of the service.

    Raises:
        AddressError: the URL is not an address of a service.
    """

    def __init__(self, url: str, timeout: float, keys: Keys) -> None:
        scheme, _, rest = url.partition("://")
        if scheme not in ("http", "https") or not rest.strip("/"):
            raise AddressError(
                f"{url!r} must be the address of a service, as http://127.0.0.1:8000"
            )
        self._address, self._timeout, self._keys = way_to(url), timeout, keys
        self._jitter = random.Random()

    def learn(self, x: Inputs, labels: Values, weights: Values | None, wait: bool) -> Call[Learned]:
        """Do as `Client.learn` says."""
        examples = _read(x).labelled(labels, weights)
        call, n = uuid.uuid4().hex, len(examples)

        def request(start: int, stop: int) -> Request:
            # A retry has the same key, so that nothing is learned twice.
            key = {"Idempotency-Key": f"{call}-{start}-{stop}"}
            query = {"wait": "applied"} if wait and stop == n else {}
            headers = self._keys.to_learn() | key
            return _post("/learn", examples.body(start, stop), headers, query)

        parts = yield from self._in_parts(n, examples.most, request)
        return merging.learned([cast(merging.AcceptedAnswer, part) for part in parts])

    def predict(
        self, x: Inputs, ids: Values | None, track: bool, explain: int
    ) -> Call[Predictions]:
        """Do as `Client.predict` says."""
        examples, own = _read(x), None
        if track and ids is not None:
            raise InvalidExamples("give ids, or let track=True make them", field="ids")
        if track:  # made here, so that a retry asks the same questions
            ids = [uuid.uuid4().hex for _ in range(len(examples))]
        if ids is not None:
            examples, own = examples.identified(ids)
        headers = self._keys.to_predict() if own is None else self._keys.to_ask()
        query = {"explain": str(explain)} if explain else {}

        def request(start: int, stop: int) -> Request:
            return _post("/predict", examples.body(start, stop), headers, query)

        most = min(examples.most, MAX_EXPLAINED if explain else MAX_ASKED)
        parts = yield from self._in_parts(len(examples), most, request)
        return merging.predictions(
            [cast(merging.PredictionAnswer, part) for part in parts],
            cast("list[str | int] | None", own),
            bool(explain),
        )

    def label(
        self, ids: Values, labels: Values, weights: Values | None, wait: bool
    ) -> Call[Labelled]:
        """Do as `Client.label` says."""
        own = list_of(ids, None, "ids")
        found = {"ids": own, "labels": list_of(labels, len(own), "labels")}
        if weights is not None:
            found["weights"] = list_of(weights, len(own), "weights")
        query = {"wait": "applied"} if wait else {}

        def request(start: int, stop: int) -> Request:
            content = {use: values[start:stop] for use, values in found.items()}
            body = Body(to_json(content, "labels"), JSON)
            return _post("/labels", body, self._keys.to_learn(), query)

        size = len(to_json(found, "labels")) / max(1, len(own))
        parts = yield from self._in_parts(len(own), fitting(size), request)
        return merging.labelled([cast(merging.AcceptedAnswer, part) for part in parts])

    def schema(self) -> Call[Schema]:
        """Do as `Client.schema` says."""
        return cast(Schema, (yield from self._fetched("/schema")))

    def model(self) -> Call[Model]:
        """Do as `Client.model` says."""
        return cast(Model, (yield from self._fetched("/model")))

    def ready(self) -> Call[Readiness]:
        """Do as `Client.ready` says."""
        answer = yield Try(self._get("/health/ready"), 0.0, self._timeout)
        return self._readiness(answer)

    def wait_until_ready(self, seconds: float) -> Call[Readiness]:
        """Do as `Client.wait_until_ready` says."""
        answer = yield from self._answer(self._get("/health/ready"), seconds)
        if not answer.is_fine:
            raise self._error(answer)
        return self._readiness(answer)

    def _readiness(self, answer: Answer) -> Readiness:
        if not answer.is_fine:
            return Readiness(False, reason=str(self._error(answer)))
        found = orjson.loads(answer.content)
        return Readiness(True, found["role"], found["learning"], found["reason"])

    def _fetched(self, path: str) -> Call[object]:
        answer = yield from self._answer(self._get(path), self._timeout)
        if not answer.is_fine:
            raise self._error(answer)
        return cast(object, orjson.loads(answer.content))

    def _get(self, path: str) -> Request:
        return Request("GET", path, headers=self._keys.to_predict())

    def _in_parts(
        self, n: int, most: int, request: Callable[[int, int], Request]
    ) -> Call[list[object]]:
        """Send examples in order, in as few requests as the service takes; return the answers.

        Args:
            n: number of examples.
            most: how many to begin with.
            request: returns the request for the examples of a range.

        Raises:
            ServiceError: one of them was refused.
        """
        if not n:
            raise InvalidExamples("there are no examples")
        found: list[object] = []
        start = 0
        while start < n:
            stop = min(n, start + most)
            try:
                asked = request(start, stop)
            except InvalidExamples as error:
                error.accepted = start
                raise
            answer = yield from self._answer(asked, self._timeout)
            if answer.status == TOO_LARGE and stop - start > 1:
                most = (stop - start + 1) // 2
                continue
            if not answer.is_fine:
                raise self._error(answer, start)
            found.append(orjson.loads(answer.content))
            start = stop
        return found

    def _answer(self, request: Request, timeout: float) -> Call[Answer]:
        """Try a request until it is answered for good, or for so many seconds."""
        backoff, wait = Backoff(self._jitter), 0.0
        end = time.monotonic() + timeout
        waits = WAIT_SECONDS if "wait" in request.query else 0.0
        while True:
            left = end - time.monotonic() - wait
            answer = yield Try(request, wait, max(LEAST_SECONDS, left) + waits)
            if not answer.is_busy or code_of(answer) == "learning_halted":
                return answer
            wait = backoff.next(answer.after)
            if time.monotonic() + wait > end:
                return answer
            if backoff.retries == PATIENCE:
                logger.warning("trying again for up to %g s: %s", timeout, self._error(answer))

    def _error(self, answer: Answer, first: int = 0) -> ServiceError:
        return error_of(answer, self._address, first)


def _post(path: str, body: Body, headers: Mapping[str, str], query: Mapping[str, str]) -> Request:
    own = {"Content-Type": body.kind}
    return Request("POST", path, body.content, {**headers, **own}, {**body.query, **query})


def _read(x: Inputs) -> Examples:
    """Return examples of any kind.

    Raises:
        InvalidExamples: they are none.
    """
    if hasattr(x, "__arrow_c_stream__") or hasattr(x, "__arrow_c_array__"):
        return Table.of(x)
    if isinstance(x, Mapping):
        return Records([x])
    if isinstance(x, Tensor):
        return Dense.of(array_of(x))
    if isinstance(x, Sequence) and x and isinstance(x[0], Mapping):
        return Records(cast("Sequence[Mapping[str, object]]", x))
    return Dense.of(cast(npt.ArrayLike, x))
