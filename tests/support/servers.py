"""HTTP servers that run in a thread of the test's process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer

import uvicorn
import uvloop
from starlette.types import ASGIApp

from service.http import server as served
from service.http.connection import Connection
from tests.support.harness import wait_for


@contextmanager
def answering(
    *statuses: int, headers: list[Message] | None = None
) -> Iterator[tuple[str, list[bytes]]]:
    """Answer each POST with the next status and the last one from then on.

    Yields the address and the list of bodies received so far; `headers` gets those of each POST.
    A body that is cut short, as its sender was killed, is not received.
    """
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:
                self.close_connection = True
                return
            if headers is not None:
                headers.append(self.headers)
            bodies.append(body)
            self.send_response(statuses[min(len(bodies), len(statuses)) - 1])
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook?token=secret", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def running(app: ASGIApp) -> Iterator[tuple[served.Server, Callable[[], float]]]:
    """Serve `app`; yield the server and a function that stops it and returns the seconds taken."""
    config = uvicorn.Config(
        app, port=0, http=Connection, ws="none", log_config=None, lifespan="off",
        timeout_graceful_shutdown=served.GRACE_SECONDS,
    )  # fmt: skip
    server = served.Server(config)
    thread = threading.Thread(target=lambda: uvloop.run(server.serve()))
    thread.start()

    def stop() -> float:
        began = time.monotonic()
        server.should_exit = True
        thread.join()
        return time.monotonic() - began

    try:
        wait_for(lambda: server.started)
        yield server, stop
    finally:
        stop()
