"""The history as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

A viewer gets what the ring holds whenever it is ready for more; nothing is queued for it.
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Depends

from service.http.dependencies import AnyService
from service.http.errors import unavailable
from service.log.errors import Stopped
from service.monitoring.history import History
from service.service import Service

MAX_VIEWERS = 32
CHUNK = 64
"""Most items in one piece."""
HEARTBEAT_SECONDS = 10.0
MAX_DIGITS = 20
"""Most digits of an event's number; `int` refuses thousands."""
HEARTBEAT = b": alive\n\n"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def _viewer(service: AnyService) -> AsyncIterator[None]:
    if service.viewers >= MAX_VIEWERS:
        raise unavailable("too_many_viewers", f"{MAX_VIEWERS} viewers are watching")
    service.viewers += 1
    try:
        yield
    finally:
        service.viewers -= 1


Viewer = Depends(_viewer)
"""Counts a viewer until its answer has been sent; 503 for one too many."""


async def events_after(service: Service, history: History, last: str) -> AsyncIterator[bytes]:
    """Yield the items after a given event, then each new one, until the service drains.

    Args:
        service: ends the stream when it drains.
        history: of the model.
        last: id of the last event that the viewer has; without a valid one, ``reset`` comes first.
    """
    news, loop = asyncio.Event(), asyncio.get_running_loop()
    stop = history.listen(lambda: loop.call_soon_threadsafe(news.set))
    number = _number(history, last)
    try:
        while not service.draining.is_set():
            news.clear()
            items = history.after(number, CHUNK)
            if items is None:
                number = history.floor
                yield _event("reset", history.run, number, b"{}")
            elif items:
                number = items[-1].number
                yield b"".join(
                    _event(item.kind, history.run, item.number, item.json) for item in items
                )
            else:
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await service.unless_stopped(news.wait())
                except TimeoutError:
                    yield HEARTBEAT
                except Stopped:
                    return
    finally:
        stop()


def _number(history: History, last: str) -> int:
    """Return the number in an event's id, or -1, which no ring reaches back to."""
    run, _, number = last.partition("-")
    is_number = number.isdecimal() and len(number) < MAX_DIGITS
    return int(number) if run == history.run and is_number else -1


def _event(kind: str, run: str, number: int, json: bytes) -> bytes:
    return f"event: {kind}\nid: {run}-{number}\ndata: ".encode() + json + b"\n\n"
