"""Send mutated requests to every route: no 5xx, every error as JSON, the state's digest unchanged.

python -m tests.service.fuzz --requests 200000

Among them are tensors of any shape, answers of every size, and, on connections of their own, bodies
that come slowly or never end, trailers without end, and clients that read nothing. Meanwhile the
service stays below MOST_MEMORY, and ``/health/live`` answers within LIVE_SECONDS.

Batches are never full and never late here, so that what a mutation leaves valid is taken into the
log but not learned. `test_openapi.py` beside it goes by the documentation.
"""

import argparse
import contextlib
import http.client
import json
import math
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
from safetensors.numpy import save
from tqdm import tqdm

from tests.support.harness import ServiceProcess, serving
from tests.support.states import a_batch

OPTIONS = {
    "features": 6, "classes": 3, "batch_size": 1_000_000, "max_wait_ms": 86_400_000,
    "max_body_bytes": 500_000,
}  # fmt: skip
MOST_MEMORY = 1 << 30
LIVE_SECONDS = 1.0
BATCH = a_batch(0, 5)
LINES = [
    {"features": x, "label": y}
    for x, y in zip(BATCH.features.tolist(), BATCH.labels.tolist(), strict=True)
]
JSON, NDJSON, BYTES = "application/json", "application/x-ndjson", "application/octet-stream"
WHOLE = {"features": BATCH.features.tolist(), "labels": BATCH.labels.tolist()}
SEEDS = (
    ("/learn", JSON, json.dumps(WHOLE).encode()),
    ("/learn", NDJSON, "\n".join(map(json.dumps, LINES)).encode()),
    ("/learn", BYTES, BATCH.to_bytes()),
    ("/learn", BYTES, save({"features": BATCH.features.astype("f2"), "labels": BATCH.labels})),
    ("/predict", JSON, json.dumps({"features": BATCH.features.tolist()}).encode()),
    ("/predict", BYTES, save({"features": BATCH.features})),
)
MANY = save({"features": np.zeros((65_536, 6), np.uint8)})
TOKENS = (
    b"NaN", b"-Infinity", b"1e999", b"1e39", b"-0", b"true", b"null", b'"1"', b"[]", b"{}", b"1.5",
    b"18446744073709551616", b"\xff\xfe", b"\x00", b"\\ud800", b"[" * 2000, b'{"a":' * 500,
    b'"features"', b'"labels"', b"\n", b",", b"F32", b"I64", b"BOOL", b"U8", b"[9999999999999]",
)  # fmt: skip
TYPES = (
    JSON, NDJSON, BYTES, "text/plain", f"{JSON}; charset=utf-16", "multipart/form-data", "", "éé",
)  # fmt: skip
PATHS = (
    "/learn?wait=x", "/predict?probabilities=2", "/model", "/optimizer", "/metrics", "/checkpoint",
    "/health/live", "/health/ready", "/drift", "/learn/../model", "/%00", "/learn?" + "a=1&" * 200,
)  # fmt: skip
DIMENSIONS = (0, 1 << 31, 1 << 62, 1 << 63, (1 << 64) - 1)
"""Sizes of tensors that a header may claim, and no reader may believe."""
DTYPES = ("F32", "F16", "U8", "I64", "F64", "BF16", "BOOL", "X")
SITES = (b"null", b"http://localhost", b"http://[", b"cross-site", b"same-origin", b"h2c", b"\xff")
METHODS = ("POST", "GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH")


def shaped(
    features: Sequence[int],
    labels: Sequence[int] | None,
    dtype: str = "F32",
    data: bytes = b"",
    labels_at: tuple[int, int] | None = None,
) -> bytes:
    """Return a safetensors file that claims these shapes, whatever its data are.

    The labels, if any, lie behind the features unless ``labels_at`` says where they begin and end.
    """
    end = min(len(data), 4 * math.prod(features))
    tensors = {"features": {"dtype": dtype, "shape": features, "data_offsets": [0, end]}}
    if labels is not None:
        at = list(labels_at or (end, len(data)))
        tensors["labels"] = {"dtype": "I64", "shape": labels, "data_offsets": at}
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header + data


def any_shape(rng: random.Random) -> bytes:
    """Return a safetensors file whose header claims anything."""
    sizes = (*DIMENSIONS, 1, 5, 6)
    features = [rng.choice(sizes) for _ in range(rng.choice((1, 2, 2, 2, 3)))]
    labels = rng.choice((None, [rng.choice(sizes)], [features[0]], [0, rng.choice(sizes)]))
    data = bytes(rng.choice((0, 0, 24, 120, 160)))
    at = rng.choice((None, (0, len(data)), (0, 1 << 63), (1 << 63, 0)))
    return shaped(features, labels, rng.choice(DTYPES), data, at)


def mutated(rng: random.Random, seed: bytes) -> bytes:
    """Return a body that was valid once."""
    body = bytearray(seed)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(body) + 1)
        match rng.randrange(6):
            case 0 if body:
                body[at % len(body)] ^= 1 << rng.randrange(8)
            case 1:
                del body[at:]
            case 2:
                body[at:at] = rng.choice(TOKENS)
            case 3:
                body[at : at + rng.randrange(1, 9)] = rng.choice(TOKENS)
            case 4:
                body[at:at] = rng.randbytes(rng.randrange(1, 20))
            case _:
                start = rng.randrange(len(body) + 1)
                body[at:at] = body[start : start + rng.randrange(200)]
    return bytes(body)


def fuzz(service: ServiceProcess, requests: int, seed: int) -> Counter[int]:
    """Send mutated requests and return how often each status came.

    Raises:
        AssertionError: an answer was a 5xx without Retry-After, or an error without the contract's
            body.
    """
    rng, statuses = random.Random(seed), Counter[int]()
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    for number in tqdm(range(requests), unit=" requests", disable=requests < 5_000):
        method = "POST"
        path, kind, body = rng.choice(SEEDS)
        body = mutated(rng, body)
        if rng.random() < 0.1:
            method, path = rng.choice(METHODS), rng.choice(PATHS)
        if rng.random() < 0.1:
            kind = rng.choice(TYPES)
        if rng.random() < 0.1:
            path, kind, body = rng.choice(("/learn", "/predict")), BYTES, any_shape(rng)
        if rng.random() < 0.005:
            path, kind, body = "/predict", BYTES, save({"features": np.zeros(any_size(rng), "u1")})
        headers = {"Content-Type": kind.encode("latin-1")}
        if rng.random() < 0.2:
            headers["Idempotency-Key"] = rng.randbytes(rng.randrange(4)).hex().encode()
        if rng.random() < 0.05:
            headers[rng.choice(("Origin", "Sec-Fetch-Site", "Upgrade"))] = rng.choice(SITES)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
        except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
            connection.close()  # refused before all was sent
            continue
        what = (seed, number, method, path, body[:200], headers, answer.status, text[:200])
        statuses[answer.status] += 1
        assert answer.status < 500 or (answer.status == 503 and answer.headers["Retry-After"]), what
        if answer.status >= 400 and method != "HEAD":
            assert json.loads(text)["error"]["code"], what
    connection.close()
    return statuses


def any_size(rng: random.Random) -> tuple[int, int]:
    """Return a number of examples, few or many, and their width."""
    return int(2 ** rng.uniform(0, 16)), OPTIONS["features"]


class Rude(threading.Thread):
    """Clients that do not behave, a few new ones at a time, until `done` is set."""

    def __init__(self, port: int, seed: int, held: int = 32) -> None:
        super().__init__(daemon=True)
        self._port, self._rng, self._held = port, random.Random(seed), held
        self.done = threading.Event()
        self.count = 0
        """Clients so far."""

    def run(self) -> None:
        """Open connections, keep the newest, and send something on each now and then."""
        held: deque[tuple[socket.socket, bytes]] = deque()
        while not self.done.wait(0.2):
            if len(held) == self._held:
                held.popleft()[0].close()
            with contextlib.suppress(OSError):
                held.append(self._new())
                self.count += 1
            for raw, more in held:
                with contextlib.suppress(OSError):  # it is full, or was cut off
                    raw.send(more)
        while held:
            held.pop()[0].close()

    def _new(self) -> tuple[socket.socket, bytes]:
        """Return a connection on which a request was begun, and what may follow without end."""
        raw = socket.create_connection(("127.0.0.1", self._port), timeout=5)
        path = self._rng.choice((b"GET /health/live", b"POST /learn", b"POST /predict", b"GET /"))
        head = path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
        begin, more = self._rng.choice(
            (
                (b"", b"\r\n" * 500),
                (head, b"X:y\r\n" * 500),
                (head + b"Content-Length: 90000\r\n\r\n", b"x"),
                (head + b"Content-Length: 90000\r\n\r\n" + bytes(89_000), b""),
                (chunked, b"1\r\nx\r\n"),
                (chunked + b"1;", b"x" * 1_000),
                (chunked + b"0\r\n", b"X:y\r\n" * 1_000),
                (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50, b""),
                (post(b"/predict", MANY), b""),
            )
        )
        raw.sendall(begin)
        raw.setblocking(False)
        return raw, more


def post(path: bytes, body: bytes) -> bytes:
    """Return a request; nobody reads its answer."""
    return (
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Length: %d\r\n\r\n" % (path, len(body))
    ) + body


class Watch(threading.Thread):
    """Asks for the service's health, and notes its memory, until `done` is set."""

    def __init__(self, service: ServiceProcess) -> None:
        super().__init__(daemon=True)
        self._service = service
        self.done = threading.Event()
        self.slowest = 0.0
        """Seconds of the slowest answer."""
        self.memory = 0
        """Most bytes in memory."""
        self.failure = ""

    def run(self) -> None:
        """Ask ten times a second."""
        status = Path(f"/proc/{self._service.process.pid}/status")
        while not self.done.wait(0.1):
            began = time.monotonic()
            try:
                answer = httpx.get(f"{self._service.url}/health/live", timeout=30)
                if answer.status_code != 200:
                    self.failure = answer.text
            except httpx.HTTPError as error:
                self.failure = repr(error)
            self.slowest = max(self.slowest, time.monotonic() - began)
            if status.exists():  # on Linux
                (line,) = (row for row in status.read_text().splitlines() if "VmHWM" in row)
                self.memory = 1024 * int(line.split()[1])


def run(directory: Path, requests: int, seed: int, seconds: float = LIVE_SECONDS) -> Counter[int]:
    """Fuzz a service of its own, and make sure that it is as it was.

    Args:
        directory: of the service.
        requests: number of mutated requests; rude clients come besides.
        seed: of all choices.
        seconds: within which its health must be answered.
    """
    with serving(directory, **OPTIONS) as service, service.client() as client:
        before = client.post("/checkpoint").json()["sha256"]
        rude, watch = Rude(service.port, seed), Watch(service)
        for thread in (rude, watch):
            thread.start()
        try:
            statuses = fuzz(service, requests, seed)
        except Exception as error:
            error.add_note(service.log[-2_000:])
            raise
        finally:
            for thread in (rude, watch):
                thread.done.set()
                thread.join()
        assert client.post("/checkpoint").json()["sha256"] == before
        assert client.get("/health/ready").json()["learning"] == "learning"
        learned = client.post("/predict", json={"features": BATCH.features.tolist()})
        assert learned.status_code == 200
    assert not watch.failure, watch.failure
    assert watch.slowest < seconds, f"/health/live took {watch.slowest:.2f} s"
    assert watch.memory < MOST_MEMORY, f"the service took {watch.memory >> 20} MB"
    assert rude.count
    return statuses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        statuses = run(Path(scratch), options.requests, options.seed)
    print(", ".join(f"{status}: {n}" for status, n in sorted(statuses.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
