"""The backlog, and the requests that wait for their examples, are bounded under concurrency."""

import resource
import threading
from pathlib import Path

import httpx
import numpy as np

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
