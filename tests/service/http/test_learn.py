"""The backlog, and the requests that wait for their examples, are bounded under concurrency."""

import resource
import threading
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from streams.batch import Batch
from tests.service.fuzz import BYTES
from tests.support.harness import ServiceProcess, serving, wait_for
from tests.support.states import a_batch

NEVER = {"features": 6, "classes": 3, "batch_size": 1_000_000, "max_wait_ms": 86_400_000}
ONE = {"features": [[0.0] * 6], "labels": [0]}


def learn(service: ServiceProcess, examples: int) -> httpx.Response:
    with service.client() as client:
        return client.post(
            "/learn", content=a_batch(0, examples).to_bytes(), headers={"Content-Type": BYTES}
        )


def test_what_is_learned_leaves_the_backlog(tmp_path: Path) -> None:
    options = NEVER | {"batch_size": 10, "max_backlog": 100}
    with serving(tmp_path, **options) as service:
        for _ in range(10):
            wait_for(lambda: learn(service, 100).status_code == 202)
        with service.client() as client:
            wait_for(lambda: client.get("/model").json()["examples_learned"] == 1_000)


def test_a_request_larger_than_the_backlog_is_let_in_alone(tmp_path: Path) -> None:
    with serving(tmp_path, **NEVER, max_backlog=10) as service:
        assert learn(service, 20).status_code == 202
        assert learn(service, 1).status_code == 429


def test_too_many_requests_that_wait_are_answered_early_with_the_reason(tmp_path: Path) -> None:
    with serving(tmp_path, **NEVER) as service:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (256, hard))
        most, early, lock = 64, [], threading.Lock()

        def wait() -> None:
            with service.client() as client:
                answer = client.post("/learn?wait=applied", json=ONE)
                with lock:
                    early.append(answer)

        waiting = [threading.Thread(target=wait, daemon=True) for _ in range(most + 6)]
        for thread in waiting:
            thread.start()
        wait_for(lambda: len(early) == 6)
        assert {answer.status_code for answer in early} == {202}
        reason = f"{most} other requests wait for their examples already"
        assert {answer.json()["reason"] for answer in early} == {reason}
        with service.client() as client:
            rows = np.zeros((1, 6)).tolist()
            assert client.post("/predict", json={"features": rows}).status_code == 200
            assert "reason" not in client.post("/learn", json=ONE).json()
        assert service.terminate() == 0
        for thread in waiting:
            thread.join()
        assert len(early) == most + 6


def test_examples_of_weight_zero_are_not_learned_in_any_format(tmp_path: Path) -> None:
    """Each example is sent with its label, and again with the other one and weight 0."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 3)).round(3).astype(np.float32)
    right = (features[:, 0] > 0).astype(np.int64)
    twice = Batch(
        features.repeat(2, 0),
        np.stack([right, 1 - right], 1).flatten(),
        np.tile(np.array([1, 0], np.float32), 200),
    )
    assert twice.weights is not None
    records = [
        {"features": x, "label": y, "weight": w}
        for x, y, w in zip(
            twice.features.tolist(), twice.labels.tolist(), twice.weights.tolist(), strict=True
        )
    ]
    document = {
        "features": twice.features.tolist(),
        "labels": twice.labels.tolist(),
        "weights": twice.weights.tolist(),
    }
    bodies = {
        "application/octet-stream": twice.to_bytes(),
        "application/json": orjson.dumps(document),
        "application/x-ndjson": b"\n".join(map(orjson.dumps, records)),
    }
    shas = set()
    for number, (kind, body) in enumerate(bodies.items()):
        directory = tmp_path / str(number)
        directory.mkdir()
        with serving(directory, features=3, classes=2) as service, service.client() as client:
            for _ in range(5):
                answer = client.post(
                    "/learn?wait=applied", content=body, headers={"Content-Type": kind}
                )
                assert answer.status_code == 200, answer.text
            found = client.post("/predict", json={"features": features.tolist()}).json()["labels"]
            assert (np.array(found) == right).mean() > 0.95
            assert client.get("/model").json()["accuracy"] == pytest.approx(0.5)
            shas.add(client.post("/checkpoint").json()["sha256"])
    assert len(shas) == 1
