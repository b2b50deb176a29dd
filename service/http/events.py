"""The history as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

A viewer gets what the ring holds whenever it is ready for more; nothing is queued for it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.http.errors import unavailable
from service.monitoring.history import History
from service.service import Service, StoppedError

MAX_VIEWERS = 32
CHUNK = 64
"""Most items in one piece."""
HEARTBEAT_SECONDS = 10.0
MAX_DIGITS = 20
"""Most digits of an event's number; `int` refuses thousands."""
HEARTBEAT = b": alive\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class EventStream(Response):
    """The items after a given event, then each new one, until either side ends the stream.

    Args:
        service: counts its viewers, and ends the stream when it drains.
        history: of the model.
        last: id of the last event that the viewer has; without a valid one, ``reset`` comes first.
    """

    def __init__(self, service: Service, history: History, last: str) -> None:
        super().__init__()
        self._service, self._history, self._last = service, history, last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        service = self._service
        if service.viewers >= MAX_VIEWERS:
            error = unavailable("too_many_viewers", f"{MAX_VIEWERS} viewers are watching")
            service.metrics.rejected.labels(error.code).inc()
            await error.answer()(scope, receive, send)
            return
        service.viewers += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._send_all(send))
                with suppress(StoppedError):
                    await service.unless_stopped(_disconnected(receive))
                sending.cancel()
            await send({"type": "http.response.body", "body": b""})
        finally:
            service.viewers -= 1

    async def _send_all(self, send: Send) -> None:
        async for body in self._pieces():
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _pieces(self) -> AsyncIterator[bytes]:
        history, news, loop = self._history, asyncio.Event(), asyncio.get_running_loop()
        stop = history.listen(lambda: loop.call_soon_threadsafe(news.set))
        number = _number(history, self._last)
        try:
            while True:
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
                        await asyncio.wait_for(news.wait(), HEARTBEAT_SECONDS)
                    except TimeoutError:
                        yield HEARTBEAT
        finally:
            stop()


def _number(history: History, last: str) -> int:
    """Return the number in an event's id, or -1, which no ring reaches back to."""
    run, _, number = last.partition("-")
    is_number = number.isdecimal() and len(number) < MAX_DIGITS
    return int(number) if run == history.run and is_number else -1


def _event(kind: str, run: str, number: int, json: bytes) -> bytes:
    return f"event: {kind}\nid: {run}-{number}\ndata: ".encode() + json + b"\n\n"


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
