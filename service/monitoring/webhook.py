"""Telling another service of drift events; it cannot hold up learning."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

logger = logging.getLogger("funnel")
logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every address, secrets and all

TIMEOUT_SECONDS = 5.0
MAX_WAITING = 100
TRIES = 4


class Webhook:
    """Posts JSON, one at a time, in order; follows no redirects. Used in one event loop.

    Args:
        url: may hold secrets; only its scheme and host are logged.
        failed: called for each that was given up.
        pause_seconds: before the second try; doubled before each further one.
    """

    def __init__(
        self, url: SecretStr, failed: Callable[[], object], pause_seconds: float = 1.0
    ) -> None:
        self._url, self._failed, self._pause = url.get_secret_value(), failed, pause_seconds
        parts = urlsplit(self._url)
        self._shown = f"{parts.scheme}://{parts.hostname}"
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_WAITING)

    def tell(self, event: dict[str, Any]) -> None:
        """Queue an event; drops it if too many wait."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._give_up("too many events wait")

    async def run(self) -> None:
        """Post what is queued, until cancelled."""
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, follow_redirects=False) as client:
            while True:
                await self._post(client, await self._queue.get())
                self._queue.task_done()

    async def settled(self) -> None:
        """Wait until every queued event has been posted or given up; `run` must be running."""
        await self._queue.join()

    async def _post(self, client: httpx.AsyncClient, event: dict[str, Any]) -> None:
        reason = ""
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(self._pause * 2 ** (attempt - 1))
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    status = (await client.post(self._url, json=event)).status_code
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
                reason = type(error).__name__
                continue
            except Exception as error:  # whatever the address brings about, learning goes on
                reason = repr(error)
                break
            if 200 <= status < 300:
                return
            reason = f"it answered {status}"
            if status < 500 and status != 429:
                break
        self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        logger.warning("the webhook at %s was not told of a drift event: %s", self._shown, reason)
        self._failed()
