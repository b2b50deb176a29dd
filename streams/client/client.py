"""A client of a service."""

import time
from types import TracebackType
from typing import Self, TypeVar

from streams.client.answers import Labelled, Learned, Model, Predictions, Readiness, Schema
from streams.client.calls import TIMEOUT, Call, Calls, Inputs
from streams.client.keys import Keys
from streams.client.transport import Transport
from streams.client.values import Values

T = TypeVar("T")


class Client:
    """A client of a service; threads may share it.

    Examples, n of them, are rows with named columns, or dense features:

    - a frame of pandas or polars, or a table or record batch of Arrow;
    - a dictionary, which is one row, or a list of them. None and NaN are missing values;
    - an array or a tensor of features, [n, d], or [d] for one example. uint8 0…255 stands for
      [0, 1].

    Large inputs are split into requests, which are sent in order. A request that a busy or absent
    service does not take is sent again, with waits that double; nothing is learned twice.

    Args:
        url: of the service, such as ``http://127.0.0.1:8000``.
        api_key: the key that may do everything.
        learn_key: a key that may learn and label.
        predict_key: a key that may predict and read. Without any of the three, the environment has
            them as for ``funnel stream``: ``FUNNEL_API_KEY``, ``FUNNEL_LEARN_KEY`` and
            ``FUNNEL_PREDICT_KEY``, or ``…_FILE``.
        timeout: seconds for which each request is tried; a minute more where it waits for learning.

    Raises:
        AddressError: the URL is not the address of a service.
        ProxyError: the proxy of the environment for it cannot be used.
        PathError: a file of the environment holds no key.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        learn_key: str | None = None,
        predict_key: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._calls = Calls(url, timeout, Keys.of(api_key, learn_key, predict_key))
        self._transport = Transport(url)

    def learn(
        self, x: Inputs, labels: Values, *, weights: Values | None = None, wait: bool = False
    ) -> Learned:
        """Append labelled examples to the log, from which they are learned in their order.

        Args:
            x: the examples, n of them.
            labels: [n]: words or numbers for rows, classes from 0 or numbers to predict for dense
                features. A text is the name of the column that holds them; for a single row
                without such a column it is the label.
            weights: how much each example counts, [n], from 0 to 1,000,000, or the name of a
                column; None for 1.
            wait: whether to return when the last example is learned. A service makes a request
                wait for a minute at most; `Learned.model_version` is None then.

        Raises:
            InvalidExamples: an example, a label or a weight is wrong; `index` and `field` say
                which, and `accepted` how many examples before it are in the log.
            ServiceError: the service did not take them; see `streams.client.errors`.
        """
        return self._run(self._calls.learn(x, labels, weights, wait))

    def predict(
        self, x: Inputs, *, ids: Values | None = None, track: bool = False, explain: int = 0
    ) -> Predictions:
        """Return predictions of the newest model, which does not change.

        Args:
            x: the examples, n of them.
            ids: texts or integers, [n], or the name of a column, under which `label` may name the
                examples later. That also needs a key that may learn.
            track: whether to make such ids; `Predictions.ids` has them.
            explain: how many of the largest parts of each answer to return, for rows.

        Raises:
            InvalidExamples: an example or an id is wrong; `index` and `field` say which.
            ServiceError: the service did not predict; see `streams.client.errors`.
        """
        return self._run(self._calls.predict(x, ids, track, explain))

    def label(
        self, ids: Values, labels: Values, *, weights: Values | None = None, wait: bool = False
    ) -> Labelled:
        """Give the labels of examples that were asked with ids; they are learned then.

        It is safe to give labels twice. After a retry, `Labelled.results` may say ``duplicate``
        where the first try was ``joined``.

        Args:
            ids: of the examples, [n], or a single one.
            labels: [n], as for `learn`.
            weights: as for `learn`.
            wait: whether to return when each label is decided on, with `Labelled.results`.

        Raises:
            InvalidExamples: a label, a weight or an id is wrong.
            ServiceError: the service did not take them; see `streams.client.errors`.
        """
        return self._run(self._calls.label(ids, labels, weights, wait))

    def schema(self) -> Schema:
        """Return the names and kinds of the columns, and the labels, of a model of rows.

        Raises:
            NotFound: the model takes dense features, or nothing has decided that yet.
            ServiceError: the service did not answer.
        """
        return self._run(self._calls.schema())

    def model(self) -> Model:
        """Return what is served, and how far it has come.

        Raises:
            ServiceError: the service did not answer.
        """
        return self._run(self._calls.model())

    def ready(self) -> Readiness:
        """Return whether predictions are served now, and whether the service learns.

        Nothing is raised if nobody answers: the service is not ready then.
        """
        return self._run(self._calls.ready())

    def wait_until_ready(self, seconds: float = TIMEOUT) -> Readiness:
        """Return once predictions are served.

        Args:
            seconds: to wait at most.

        Raises:
            Unavailable: the service was not ready within that time.
        """
        return self._run(self._calls.wait_until_ready(seconds))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def _run(self, call: Call[T]) -> T:
        """Send the tries of a call, and return what it returns."""
        try:
            step = next(call)
            while True:
                time.sleep(step.wait)
                step = call.send(self._transport.send(step.request, step.seconds))
        except StopIteration as end:
            found: T = end.value
            return found
