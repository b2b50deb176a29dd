"""Event streams continue where they broke off, are bounded, and do not delay shutdown."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from service.http.events import MAX_VIEWERS
from tests.support.harness import SAFETENSORS, ServiceProcess, serving, wait_for
from tests.support.states import a_batch

SMALL = {"features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 50, "optimizer": "funnel"}


class Event(NamedTuple):
    kind: str
    id: str
    version: int | None


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with serving(tmp_path_factory.mktemp("service"), **SMALL) as running:
        yield running


def events(answer: httpx.Response) -> Iterator[Event]:
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield Event(fields["event"], fields["id"], json.loads(fields["data"]).get("version"))
            fields = {}


def learn(client: httpx.Client, batches: int = 1) -> int:
    """Learn, and return the version when the history shows it."""
    for k in range(batches):
        client.post("/learn?wait=applied", content=a_batch(k).to_bytes(), headers=SAFETENSORS)
    version = int(client.get("/model").json()["model_version"])
    wait_for(lambda: client.get("/history").json()["points"][-1]["version"] == version)
    return version


def watch(client: httpx.Client, until: int, last: bytes = b"") -> list[Event]:
    """Return the events up to the first point of a version."""
    found = []
    with client.stream("GET", "/events", headers={b"Last-Event-ID": last}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for event in events(answer):
            found.append(event)
            if event.version is not None and event.version >= until:
                return found
    raise AssertionError("the stream ended")


def test_a_viewer_gets_the_kept_points_and_then_new_ones(service: ServiceProcess) -> None:
    with service.client() as client, service.client() as other:
        version = learn(client, 3)
        with client.stream("GET", "/events") as answer:
            coming = events(answer)
            assert next(coming).kind == "reset"
            for event in coming:
                assert event.kind == "point"
                if event.version == version:
                    break
            learn(other)
            assert any(event.version == version + 1 for event in islice(coming, 5))


def test_a_stream_continues_without_loss_or_repetition(service: ServiceProcess) -> None:
    with service.client() as client:
        whole = watch(client, learn(client, 2))
        middle = whole[len(whole) // 2]
        rest = watch(client, learn(client), last=middle.id.encode())
        assert rest[0].kind == "point"
        ids = [event.id for event in whole[: whole.index(middle) + 1] + rest]
        numbers = [int(id.rpartition("-")[2]) for id in ids]
        assert numbers == sorted(set(numbers))
        again = watch(client, rest[-1].version or 0)
        assert {e.version for e in again} <= {e.version for e in whole + rest}, "what is kept"
        assert again[-1].version == rest[-1].version


@pytest.mark.parametrize(
    "last", ["nonsense", "0-0", "12345678-3", "-", "x-²", "RUN-" + "1" * 5_000]
)
def test_an_id_of_another_run_begins_with_a_reset(service: ServiceProcess, last: str) -> None:
    with service.client() as client:
        version = learn(client)
        run = watch(client, version)[0].id.partition("-")[0]
        found = watch(client, version, last.replace("RUN", run).encode())
        assert found[0].kind == "reset"


def test_viewers_are_bounded(service: ServiceProcess) -> None:
    with service.client() as client, ExitStack() as open_streams:
        learn(client)
        for _ in range(MAX_VIEWERS):
            viewer = open_streams.enter_context(service.client())
            answer = open_streams.enter_context(viewer.stream("GET", "/events"))
            assert answer.status_code == 200
        refused = client.get("/events")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_viewers")
        assert int(refused.headers["Retry-After"]) >= 1
        open_streams.close()

        def is_admitted() -> bool:
            with client.stream("GET", "/events") as answer:
                return answer.status_code == 200

        wait_for(is_admitted)


@pytest.mark.parametrize("reads", [True, False])
def test_open_streams_do_not_delay_shutdown(tmp_path: Path, reads: bool) -> None:
    with serving(tmp_path, **SMALL) as service, service.client() as client:
        learn(client)
        with socket.create_connection(("127.0.0.1", service.port)) as raw:
            raw.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if reads:
                found = b""
                while b"event: reset" not in found:
                    found += raw.recv(65_536)
            began = time.monotonic()
            assert service.terminate() == 0
            assert time.monotonic() - began < 3
        assert "without completing" not in service.log
