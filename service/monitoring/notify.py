"""Notification of drift events: the log of the process, the history, and a webhook."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from service.fold.drift.events import Event
from service.fold.drift.monitor import Monitor
from service.monitoring.history import DRIFT, History
from streams.proxies import ProxyError, async_transport

logger = logging.getLogger("funnel")
logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every address with its secrets

TIMEOUT_SECONDS = 5.0
MAX_WAITING = 100
TRIES = 4


class DriftNews:
    """Notifies once of each drift event, in the trainer's thread.

    Args:
        history: shown every event, and again when it has changed.
        found: called with each event that is detected while learning.
    """

    def __init__(self, history: History, found: Callable[[Event], object]) -> None:
        self._history, self._found = history, found
        self._newest = 0
        """Id of the newest event that needs no notification any more."""

    def skip(self, drift: Monitor) -> None:
        """Skip the events of a replay; each was notified when it was first detected."""
        drift.settle()
        self._newest = sum(drift.counts.values())

    def notify(self, drift: Monitor) -> None:
        """Notify of the events since the last call."""
        drift.settle()
        self._history.note(DRIFT, (event.shown() for event in drift.events))
        for event in drift.events:
            if event.id > self._newest:
                logger.info("drift, %s", event)
                self._found(event)
                self._newest = event.id


class Webhook:
    """Posts drift events as JSON, one at a time, in order, in one event loop.

    It follows no redirects, and a slow or absent receiver does not hold up learning.

    Args:
        url: may hold secrets; only its scheme and host are logged.
        failed: called for each event that is given up.
        pause_seconds: before the second try; doubled before each further one.
    """

    def __init__(
        self, url: SecretStr, failed: Callable[[], object], pause_seconds: float = 1.0
    ) -> None:
        self._url, self._failed, self._pause = url.get_secret_value(), failed, pause_seconds
        parts = urlsplit(self._url)
        self._shown = f"{parts.scheme}://{parts.hostname}"
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_WAITING)

    def post(self, event: Event) -> None:
        """Queue an event; give it up if too many wait."""
        try:
            self._queue.put_nowait(event.shown())
        except asyncio.QueueFull:
            self._give_up("too many events wait")

    async def run(self) -> None:
        """Post the queued events, until cancelled; without a usable proxy, give each up."""
        try:
            transport = async_transport(self._url)
        except ProxyError as error:
            logger.warning("no drift event will be posted: %s", error)
            while True:
                await self._queue.get()
                self._give_up("its proxy cannot be used")
                self._queue.task_done()
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, transport=transport) as client:
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
            except Exception as error:  # whatever the address causes, learning goes on
                reason = type(error).__name__  # its text may hold the address
                continue
            if 200 <= status < 300:
                return
            reason = f"it answered {status}"
            if status < 500 and status != 429:
                break
        self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        logger.warning("the webhook at %s did not get a drift event: %s", self._shown, reason)
        self._failed()
