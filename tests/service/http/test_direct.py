"""Requests that the middleware answers itself: as FastAPI would, and without it."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import save
from starlette.types import Scope

from service.http.direct import arguments_of
from streams.batch import Batch
from tests.support.harness import ServiceProcess, serving
from tests.support.metrics import sample, scrape

JSON, BYTES = "application/json", "application/octet-stream"
FEATURES, CLASSES = 3, 2
LARGEST = 4_096
X = np.eye(2, FEATURES, dtype=np.float32)
GOOD = {"features": [[1, 0, 0], [0, 1, 0]], "labels": [0, 1]}
BODIES = {
    "json": (JSON, json.dumps(GOOD).encode()),
    "json of one": (JSON, b'{"features": [[1, 0, 0]], "labels": [1]}'),
    "safetensors": (BYTES, Batch(X, np.array([0, 1])).to_bytes()),
    "questions": (BYTES, save({"features": X})),
    "ids": (JSON, b'{"features": [[1, 0, 0]], "ids": ["a"]}'),
    "labels": (JSON, b'{"ids": ["a", "b"], "labels": [0, 1]}'),
    "nothing": (JSON, b""),
    "an array": (JSON, b"[1]"),
    "cut off": (JSON, b'{"features": [[1, 0'),
    "too narrow": (JSON, b'{"features": [[1, 0]], "labels": [0]}'),
    "an unknown class": (JSON, b'{"features": [[1, 0, 0]], "labels": [2]}'),
    "not finite": (JSON, b'{"features": [[1, 0, 1e999]], "labels": [1]}'),
    "too long": (JSON, b" " * (LARGEST + 1)),
    "text": ("text/plain", b"1,0,0"),
}
DIFFERENT = ("entry", "ids", "model_version", "accuracy", "loss", "probabilities")
"""Members of answers that depend on when a request is answered."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    options = {"features": FEATURES, "classes": CLASSES, "max_body_bytes": LARGEST}
    with serving(Path(tmp_path_factory.mktemp("direct")), model="logistic", **options) as service:
        yield service


def shape_of(answer: httpx.Response) -> tuple[int, object, list[str]]:
    """Return what two equal requests have in common: status, body and names of headers."""
    document = answer.json()
    for name in DIFFERENT:
        if name in document:
            document[name] = type(document[name]).__name__
    return answer.status_code, document, sorted(answer.headers)


@pytest.mark.parametrize("path", ["/learn", "/predict", "/labels"])
@pytest.mark.parametrize("body", BODIES)
def test_a_direct_answer_is_that_of_fastapi(service: ServiceProcess, path: str, body: str) -> None:
    kind, content = BODIES[body]
    once = [("Content-Type", kind)]
    with service.client() as client:
        direct = client.post(path, content=content, headers=once)
        long = client.post(path, content=content, headers=once * 2)  # the same value is no error
    assert shape_of(direct) == shape_of(long)


@pytest.mark.parametrize("path", ["/learn", "/labels"])
def test_a_direct_answer_waits_until_examples_are_applied(
    service: ServiceProcess, path: str
) -> None:
    kind, content = BODIES["json" if path == "/learn" else "labels"]
    headers = {"Content-Type": kind}
    with service.client() as client:
        answer = client.post(f"{path}?wait=applied", content=content, headers=headers)
    assert answer.status_code == 200
    assert "model_version" in answer.json()


def test_a_direct_retry_with_an_idempotency_key_is_learned_once(service: ServiceProcess) -> None:
    kind, content = BODIES["json"]
    headers = {"Content-Type": kind, "Idempotency-Key": "direct"}
    with service.client() as client:
        first, again = (client.post("/learn", content=content, headers=headers) for _ in "ab")
        other = client.post("/learn", content=BODIES["json of one"][1], headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 422)
    assert first.json()["entry"] == again.json()["entry"]
    assert other.json()["error"]["code"] == "key_reused"


def test_direct_requests_are_counted_by_route_and_status(service: ServiceProcess) -> None:
    def counted(client: httpx.Client, status: int) -> float:
        labels = {"route": "/predict", "code": str(status)}
        return sample(scrape(client), "funnel_http_request_seconds_count", **labels)

    with service.client() as client:

        def ask() -> None:
            for name, status in (("questions", 200), ("an array", 422)):
                kind, content = BODIES[name]
                answer = client.post("/predict", content=content, headers={"Content-Type": kind})
                assert answer.status_code == status

        ask()
        before = {status: counted(client, status) for status in (200, 422)}
        ask()
        assert all(counted(client, status) == n + 1 for status, n in before.items())


def scope(path: str, query: bytes = b"", *headers: tuple[bytes, bytes]) -> Scope:
    return {
        "type": "http", "method": "POST", "path": path, "query_string": query,
        "headers": [(b"content-type", b"application/json"), *headers],
    }  # fmt: skip


def test_usual_requests_are_answered_directly() -> None:
    key = (b"idempotency-key", b"k")
    assert arguments_of(scope("/learn")) == {}
    assert arguments_of(scope("/learn", b"wait=applied", key)) == {
        "wait": "applied", "idempotency_key": "k"
    }  # fmt: skip
    assert arguments_of(scope("/predict", b"probabilities=false")) == {"probabilities": False}
    assert arguments_of(scope("/labels", b"wait=applied")) == {"wait": "applied"}


@pytest.mark.parametrize(
    "unusual",
    [
        scope("/model"),
        scope("/learn/"),
        scope("/learn", b"wait=never"),
        scope("/learn", b"wait=applied&wait=applied"),
        scope("/predict", b"probabilities=0"),
        scope("/learn", b"", (b"idempotency-key", b"")),
        scope("/learn", b"", (b"idempotency-key", b"k" * 256)),
        scope("/learn", b"", (b"idempotency-key", b"k"), (b"idempotency-key", b"l")),
        scope("/predict", b"", (b"content-type", b"text/csv")),
        scope("/predict") | {"method": "GET"},
        {"type": "lifespan"},
    ],
)
def test_what_could_be_refused_for_its_parameters_goes_to_fastapi(unusual: Scope) -> None:
    assert arguments_of(unusual) is None
