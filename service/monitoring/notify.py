"""Notification of drift events: the log of the process, the history, and a webhook."""

import asyncio
import base64
import hmac
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import httpx
import orjson
from pydantic import SecretStr

from service.fold.drift.events import Event
from service.fold.drift.monitor import Monitor
from service.monitoring.history import DRIFT, History
from service.settings import WHSEC
from streams.proxies import ProxyError, async_transport

logger = logging.getLogger("funnel")
logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every address with its secrets

TIMEOUT_SECONDS = 5.0
MAX_WAITING = 100
TRIES = 4
SLACK = "hooks.slack.com"
NO_SECRET = SecretStr("")


@dataclass(frozen=True)
class Notice:
    """A drift event that was detected, or from which the model has recovered since."""

    event: Event
    kind: Literal["drift", "recovery"]


class DriftNews:
    """Notifies once of each drift event and of its recovery, in the trainer's thread.

    Args:
        history: shown every event, and again when it has changed.
        found: called with what happens while learning.
    """

    def __init__(self, history: History, found: Callable[[Notice], object]) -> None:
        self._history, self._found = history, found
        self._newest = 0
        """Id of the newest event that needs no notification any more."""
        self._recovered: frozenset[int] = frozenset()
        """Ids of the events from which the model has recovered."""

    def skip(self, drift: Monitor) -> None:
        """Skip the events of a replay; each was notified when it was first detected."""
        drift.settle()
        self._newest = sum(drift.counts.values())
        self._recovered = _recovered(drift)

    def notify(self, drift: Monitor) -> None:
        """Notify of the events since the last call."""
        drift.settle()
        self._history.note(DRIFT, (event.shown() for event in drift.events))
        for event in drift.events:
            if event.id > self._newest:
                logger.info("drift, %s", event)
                self._found(Notice(event, "drift"))
                self._newest = event.id
            if event.recovery_examples is not None and event.id not in self._recovered:
                self._found(Notice(event, "recovery"))
        self._recovered = _recovered(drift)


def _recovered(drift: Monitor) -> frozenset[int]:
    return frozenset(e.id for e in drift.events if e.recovery_examples is not None)


class Webhook:
    """Posts drift events and recoveries as JSON, one at a time, in order, in one event loop.

    It follows no redirects, and a slow or absent receiver does not hold up learning. With a secret
    the requests are signed as https://www.standardwebhooks.com says: HMAC-SHA256 of id, time and
    body. Slack, and what takes messages in its form, gets a sentence.

    Args:
        url: may hold secrets; only its scheme and host are logged.
        failed: called for each event that is given up.
        model: name of the model.
        secret: signs the bodies; empty for no signature.
        form: ``json``, ``slack``, or ``auto`` for that of the host.
        pause_seconds: before the second try; doubled before each further one.
    """

    def __init__(
        self,
        url: SecretStr,
        failed: Callable[[], object],
        model: str,
        secret: SecretStr = NO_SECRET,
        form: str = "auto",
        pause_seconds: float = 1.0,
    ) -> None:
        self._url, self._failed, self._pause = url.get_secret_value(), failed, pause_seconds
        parts = urlsplit(self._url)
        self._shown = f"{parts.scheme}://{parts.hostname}"
        self._is_slack = form == "slack" or (form == "auto" and parts.hostname == SLACK)
        self._model, self._host = model, platform.node()
        self._secret = key_of(secret.get_secret_value())
        self._queue: asyncio.Queue[Notice] = asyncio.Queue(MAX_WAITING)

    def post(self, notice: Notice) -> None:
        """Queue a notice; give it up if too many wait."""
        try:
            self._queue.put_nowait(notice)
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

    def _body(self, notice: Notice) -> bytes:
        if self._is_slack:
            return orjson.dumps({"text": f"{self._model} on {self._host}: {_sentence(notice)}"})
        own = {"kind": notice.kind, "model": self._model, "host": self._host}
        return orjson.dumps(notice.event.shown() | own)

    def _headers(self, name: str, body: bytes) -> dict[str, str]:
        """Return the headers of a try; a later one has another time and the same id."""
        found = {"Content-Type": "application/json", "webhook-id": name}
        if self._secret:
            at = str(int(time.time()))
            signed = hmac.digest(self._secret, f"{name}.{at}.".encode() + body, "sha256")
            signature = base64.b64encode(signed).decode()
            found |= {"webhook-timestamp": at, "webhook-signature": f"v1,{signature}"}
        return found

    async def _post(self, client: httpx.AsyncClient, notice: Notice) -> None:
        reason, body = "", self._body(notice)
        event = notice.event
        name = f"{self._model}-{event.id}-{event.position}-{notice.kind}"
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(self._pause * 2 ** (attempt - 1))
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    headers = self._headers(name, body)
                    answer = await client.post(self._url, content=body, headers=headers)
                    status = answer.status_code
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


def _sentence(notice: Notice) -> str:
    event = notice.event
    if notice.kind == "recovery":
        return (
            f"recovered {event.recovery_examples:,} examples after the drift at {event.examples:,}"
        )
    return (
        f"{event.detector} sees a change for the {event.direction} after {event.examples:,} "
        f"examples: {event.seen}{event.accuracy_before:.1%} → {event.accuracy_after:.1%}"
    )


def key_of(secret: str) -> bytes:
    """Return the bytes of a secret: what base64 after ``whsec_`` stands for, or its text."""
    if secret.startswith(WHSEC):
        return base64.b64decode(secret.removeprefix(WHSEC), validate=True)
    return secret.encode()
