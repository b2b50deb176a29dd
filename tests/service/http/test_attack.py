"""Malicious and broken clients harm only themselves."""

import contextlib
import json
import re
import resource
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.http.connection import HEAD_BYTES, HEAD_SECONDS
from tests.service.fuzz import run
from tests.support.harness import RedisProcess, ServiceProcess, serving, wait_for
from tests.support.metrics import scrape

SMALL = {"features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 50}
EXAMPLE = {"features": [[0.0] * 6], "labels": [0]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with serving(tmp_path_factory.mktemp("service"), **SMALL) as running:
        yield running


def connect(service: ServiceProcess) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", service.port))
    raw.settimeout(HEAD_SECONDS + 10)
    return raw


def answer(raw: socket.socket) -> tuple[int, str]:
    """Return the status and error code of the answer, once the other side has closed."""
    found = b""
    while chunk := raw.recv(65_536):
        found += chunk
    head, _, body = found.partition(b"\r\n\r\n")
    return int(head.split()[1]), str(json.loads(body)["error"]["code"])


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"G", b"POST /learn HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_slow_head_is_cut_off(service: ServiceProcess, sent: bytes) -> None:
    with connect(service) as raw:
        began = time.monotonic()
        raw.sendall(sent)
        assert answer(raw) == (408, "head_too_slow")
        assert HEAD_SECONDS - 1 < time.monotonic() - began < HEAD_SECONDS + 5


@pytest.mark.slow
def test_dripping_headers_do_not_extend_the_time(service: ServiceProcess) -> None:
    with connect(service) as raw:
        began = time.monotonic()
        raw.sendall(b"GET /model HTTP/1.1\r\nHost: localhost\r\n")
        raw.settimeout(0.2)
        found = b""
        while not found and time.monotonic() - began < HEAD_SECONDS + 5:
            try:
                found = raw.recv(65_536)
            except TimeoutError:
                raw.sendall(b"X-Drip: 1\r\n")
        assert b"408" in found
        assert time.monotonic() - began < HEAD_SECONDS + 5


@pytest.mark.parametrize("what", ["header", "headers", "path"])
def test_an_endless_head_is_cut_off(service: ServiceProcess, what: str) -> None:
    head = {
        "header": b"GET /model HTTP/1.1\r\nX: " + b"y" * (4 * HEAD_BYTES),
        "headers": b"GET /model HTTP/1.1\r\n" + b"X: y\r\n" * HEAD_BYTES,
        "path": b"GET /" + b"y" * (4 * HEAD_BYTES),
    }[what]
    with connect(service) as raw:
        try:
            raw.sendall(head)
            status, _ = answer(raw)
        except ConnectionError:
            return  # cut off before all was sent
        assert status in (400, 431)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /learn HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /learn HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_a_request_that_is_not_http_is_answered_and_closed(
    service: ServiceProcess, sent: bytes
) -> None:
    with connect(service) as raw:
        raw.sendall(sent)
        assert answer(raw)[0] == 400


def test_hanging_connections_do_not_keep_others_out(service: ServiceProcess) -> None:
    hanging = [connect(service) for _ in range(200)]
    try:
        for raw in hanging:
            raw.sendall(b"POST /learn HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        with service.client() as client:
            assert client.get("/health/ready").status_code == 200
            assert client.post("/predict", json={"features": [[0.0] * 6]}).status_code == 200
    finally:
        for raw in hanging:
            raw.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [
        "GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
        "POST /learn HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: 1000\r\n\r\n",
        "",
    ],
    ids=["answered", "uploading", "idle"],
)
def test_more_dripping_connections_than_files_keep_nobody_out(tmp_path: Path, head: str) -> None:
    with serving(tmp_path, **SMALL) as service, contextlib.ExitStack() as clients:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (256, hard))
        files = Path(f"/proc/{service.process.pid}/fd")
        dripping: deque[socket.socket] = deque(maxlen=300)
        for k in range(600):
            raw = clients.enter_context(connect(service))
            raw.sendall(head.encode())
            dripping.append(raw)
            if k % 20 == 19:
                for one in dripping:
                    with contextlib.suppress(OSError):  # it was closed
                        one.send(b"x" if head else b"\r\n")
                with service.client() as client:
                    assert client.get("/health/live").status_code == 200
                    assert client.post("/learn", json=EXAMPLE).status_code == 202
                    assert len(list(files.iterdir())) < 256 - 32
        with service.client() as client:
            assert client.post("/checkpoint").status_code == 201


@pytest.mark.slow
def test_stalled_uploads_leave_room_for_short_requests_and_are_cut_off(tmp_path: Path) -> None:
    head = (
        b"POST /learn HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n"
    )
    size = 32 << 20
    with serving(tmp_path, **SMALL) as service, contextlib.ExitStack() as clients:
        stalled = [clients.enter_context(connect(service)) for _ in range(17)]
        for raw in stalled:
            with contextlib.suppress(ConnectionError):  # it was refused
                raw.sendall(head % size + bytes(size - 10))
        with service.client() as client:
            for _ in range(10):
                assert client.post("/learn", json=EXAMPLE).status_code == 202
                assert client.post("/predict", json={"features": [[0.0] * 6]}).status_code == 200
        ends = Counter[tuple[int, str]]()
        for raw in stalled:
            with contextlib.suppress(ConnectionError):
                ends[answer(raw)] += 1
        assert ends.keys() <= {(408, "body_too_slow"), (503, "too_busy")}
        assert ends[(408, "body_too_slow")]


def test_endless_trailers_after_a_refusal_end_the_connection(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL, api_key="secret") as service:
        for path in ("/health/live", "/learn"):
            with connect(service) as raw, pytest.raises(ConnectionError):  # noqa: PT012
                raw.sendall(
                    f"GET {path} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n".encode()
                )
                for _ in range(1_000):
                    raw.sendall(b"X:y\r\n" * 20_000)


def test_several_requests_share_a_connection(service: ServiceProcess) -> None:
    with connect(service) as raw:
        for _ in range(3):
            raw.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            found = b""
            while not found.endswith(b"}"):
                found += raw.recv(65_536)
            assert b"200 OK" in found


def test_a_key_of_redis_cannot_be_injected(tmp_path: Path, server: RedisProcess) -> None:
    one = {"features": [[0.0] * 6], "labels": [0]}
    keys = ("a:b}{c", "*", "x" * 255, "funnel:{logistic}:log", "a\tb", "\\r\\nFLUSHALL", "é")
    with (
        serving(tmp_path, **SMALL, redis_url=server.url) as service,
        service.client() as client,
        server.client() as redis,
    ):
        client.post("/learn?wait=applied", json=one).raise_for_status()
        before = set(redis.keys())
        for key in keys:
            headers = {b"Idempotency-Key": key.encode()}
            assert client.post("/learn", json=one, headers=headers).status_code == 202
        made = [name.decode() for name in set(redis.keys()) - before - {b"funnel:{logistic}:keys"}]
    assert len(made) == len(keys)
    assert all(re.fullmatch(r"funnel:\{logistic\}:key:[0-9a-f]{64}", name) for name in made)


def strange_requests(client: httpx.Client, name: str) -> None:
    """Send every kind of request that can carry a name of its own."""
    one = {"features": [[0.0] * 6], "labels": [0]}
    for method in ("GET", "POST", "PROPFIND", "OPTIONS"):
        client.request(method, f"/{name}", headers={"User-Agent": name, "Host": name})
        client.request(method, f"/model/{name}?{name}={name}")
    client.post("/learn", json=one, headers={"Idempotency-Key": name}).raise_for_status()
    client.post("/learn", json={name: name})
    client.post("/learn", content=name.encode(), headers={"Content-Type": f"text/{name}"})
    client.post("/learn", json=one, headers={"Content-Encoding": name})
    client.post(f"/learn?wait={name}", json=one)
    client.post(f"/predict?probabilities={name}", json=one)
    client.delete("/learn")


def test_what_clients_send_adds_no_series(service: ServiceProcess) -> None:
    with service.client() as client:
        strange_requests(client, "x")
        client.post("/checkpoint").raise_for_status()
        wait_for(lambda: client.get("/optimizer").json()["model_version"])
        scrape(client)
        before = set(scrape(client))
        for number in range(30):
            strange_requests(client, f"name-{number}")
        after = set(scrape(client))
    assert after == before
    assert not any("name" in value for _, labels in after for _, value in labels)


def test_mutated_requests_are_answered_and_change_nothing(tmp_path: Path) -> None:
    statuses = run(tmp_path, requests=1_500, seed=1, seconds=60)  # others may use this machine
    assert statuses.total() > 1_400
    assert statuses[202] > 50
    assert statuses[422] > 500
