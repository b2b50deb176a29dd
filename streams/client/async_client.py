"""A client of a service for asyncio."""

import asyncio
from types import TracebackType
from typing import Self, TypeVar

from streams.client.answers import Labelled, Learned, Model, Predictions, Readiness, Schema
from streams.client.calls import TIMEOUT, Call, Calls, Inputs
from streams.client.keys import Keys
from streams.client.transport import AsyncTransport
from streams.client.values import Values

T = TypeVar("T")


class AsyncClient:
    """A client of a service for asyncio; all else is as in `streams.client.client.Client`.

    A frame is converted in the event loop's thread.
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
        self._transport = AsyncTransport(url)

    async def learn(
        self, x: Inputs, labels: Values, *, weights: Values | None = None, wait: bool = False
    ) -> Learned:
        """Append labelled examples to the log, as `streams.client.client.Client.learn` does."""
        return await self._run(self._calls.learn(x, labels, weights, wait))

    async def predict(
        self, x: Inputs, *, ids: Values | None = None, track: bool = False, explain: int = 0
    ) -> Predictions:
        """Return predictions, as `streams.client.client.Client.predict` does."""
        return await self._run(self._calls.predict(x, ids, track, explain))

    async def label(
        self, ids: Values, labels: Values, *, weights: Values | None = None, wait: bool = False
    ) -> Labelled:
        """Give labels that come later, as `streams.client.client.Client.label` does."""
        return await self._run(self._calls.label(ids, labels, weights, wait))

    async def schema(self) -> Schema:
        """Return columns and labels, as `streams.client.client.Client.schema` does."""
        return await self._run(self._calls.schema())

    async def model(self) -> Model:
        """Return what is served, as `streams.client.client.Client.model` does."""
        return await self._run(self._calls.model())

    async def ready(self) -> Readiness:
        """Return whether predictions are served, as `streams.client.client.Client.ready` does."""
        return await self._run(self._calls.ready())

    async def wait_until_ready(self, seconds: float = TIMEOUT) -> Readiness:
        """Return once they are, as `streams.client.client.Client.wait_until_ready` does."""
        return await self._run(self._calls.wait_until_ready(seconds))

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.close()

    async def _run(self, call: Call[T]) -> T:
        """Send the tries of a call, and return what it returns."""
        try:
            step = next(call)
            while True:
                await asyncio.sleep(step.wait)
                step = call.send(await self._transport.send(step.request, step.seconds))
        except StopIteration as end:
            found: T = end.value
            return found
