"""Clients that press on a service; for processes of their own, without torch."""

import http.client
import threading
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Event
from urllib.parse import urlsplit


def send_flat_out(
    url: str, bodies: Sequence[bytes], content_type: str, stop: Event, connections: int = 2
) -> None:
    """Post bodies to ``/learn`` over and over, as fast as they are taken."""

    def run(start: int) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        index = start
        while not stop.is_set():
            body = bodies[index % len(bodies)]
            connection.request("POST", "/learn", body, {"Content-Type": content_type})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status == 429:
                time.sleep(0.02)  # the backlog is full: there is always more than enough
            elif answer.status != 202:
                raise RuntimeError(f"{answer.status}: {text[:200]!r}")
            index += connections
        connection.close()

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def latencies(
    url: str, body: bytes, rate: float, seconds: float, connections: int = 16
) -> list[float]:
    """Post a body to ``/predict`` at a fixed rate; return seconds from each intended send time.

    The load is open: a slow answer does not put off the next request, and one that had to wait for
    a free connection counts its waiting (G. Tene, 'How NOT to measure latency').
    """
    total = round(rate * seconds)
    found: list[float] = []
    lock = threading.Lock()
    numbers = iter(range(total))
    began = time.perf_counter() + 0.2

    def run() -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        headers = {"Content-Type": "application/octet-stream"}
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            intended = began + number / rate
            time.sleep(max(0.0, intended - time.perf_counter()))
            connection.request("POST", "/predict?probabilities=false", body, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {text[:200]!r}")
            with lock:
                found.append(time.perf_counter() - intended)
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
