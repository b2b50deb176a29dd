"""Clients that put load on a service, for separate processes without torch."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from urllib.parse import urlsplit

BYTES, JSON = "application/octet-stream", "application/json"


@dataclass(frozen=True)
class Answer:
    """The answer of a server."""

    status: int
    retry_after: float
    body: bytes

    def expect(self, status: int) -> None:
        """Raise unless the status is this one."""
        if self.status != status:
            raise RuntimeError(f"{self.status}: {self.body[:200]!r}")


class Client:
    """A connection that posts to one path, at a fifth of the cost of ``http.client``.

    On two cores, the server lacks every second of CPU that the client takes.
    """

    def __init__(self, url: str, path: str, content_type: str) -> None:
        host = urlsplit(url)
        self._socket = socket.create_connection((host.hostname, host.port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {host.netloc}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: "
        ).encode()

    def post(self, body: bytes) -> Answer:
        """Send a body and return the answer, which must have a Content-Length."""
        self._socket.sendall(self._head + b"%d\r\n\r\n" % len(body) + body)
        status = int(self._file.readline().split()[1])
        headers: dict[bytes, bytes] = {}
        while (line := self._file.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            headers[name.lower()] = value
        length = int(headers[b"content-length"])
        return Answer(status, float(headers.get(b"retry-after", 0)), self._file.read(length))

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()


def send_flat_out(
    url: str, bodies: Sequence[bytes], content_type: str, connections: int, stop: Event
) -> None:
    """Post bodies to ``/learn`` in a loop, as fast as the service accepts them."""

    def run(start: int) -> None:
        with contextlib.closing(Client(url, "/learn", content_type)) as client:
            index = start
            while not stop.is_set():
                answer = client.post(bodies[index % len(bodies)])
                if answer.status == 429:
                    stop.wait(answer.retry_after)
                else:
                    answer.expect(202)
                    index += connections

    at_once(run, connections)


def latencies(
    url: str, body: bytes, rate: float, seconds: float, connections: int = 16
) -> tuple[list[float], float]:
    """Post a body to ``/predict`` at a fixed rate.

    The load is open: a slow answer does not delay the next request, and a request that waits for a
    free connection counts that wait (G. Tene, 'How NOT to measure latency').

    Returns:
        Seconds from each intended send time to the answer, and answered requests per second.
    """
    found: list[float] = []
    lock = threading.Lock()
    began = 0.0

    def begin() -> None:
        nonlocal began
        began = time.perf_counter()

    def intended() -> Iterator[float]:
        for number in range(round(rate * seconds)):
            yield began + number / rate

    connected, times = threading.Barrier(connections, begin), intended()

    def run(_: int) -> None:
        with contextlib.closing(Client(url, "/predict?probabilities=false", BYTES)) as client:
            client.post(body).expect(200)
            connected.wait(60)
            while True:
                with lock:
                    at = next(times, None)
                if at is None:
                    return
                time.sleep(max(0.0, at - time.perf_counter()))
                client.post(body).expect(200)
                found.append(time.perf_counter() - at)

    at_once(run, connections)
    return found, len(found) / (time.perf_counter() - began)


def at_once(run: Callable[[int], None], threads: int) -> None:
    """Call with 0, 1, …, each in a thread; wait for all, and raise the first of their errors."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(threads)))
