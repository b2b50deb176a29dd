"""Processes that answer, and take examples, in front of one learner."""

import asyncio
import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from service.http.server import ListenError, check_free, listeners
from service.http.workers.forward import FORWARDED, PEER, Forwarded
from tests.support.harness import (
    SAFETENSORS,
    RedisProcess,
    ServiceProcess,
    free_port,
    serving,
    wait_for,
)
from tests.support.metrics import sample, samples, scrape
from tests.support.states import CLASSES, a_batch

SMALL = {
    "features": 6, "classes": CLASSES, "batch_size": 20, "max_wait_ms": 100, "lease_seconds": 1.0,
    "snapshot_every": "50ms",
}  # fmt: skip
QUESTIONS = {"features": a_batch(77).features.tolist()}


def learn(client: httpx.Client, seed: int, wait: str = "?wait=applied") -> None:
    body = a_batch(seed).to_bytes()
    client.post(f"/learn{wait}", content=body, headers=SAFETENSORS).raise_for_status()


def answer(client: httpx.Client) -> dict[str, object]:
    found: dict[str, object] = client.post("/predict", json=QUESTIONS).raise_for_status().json()
    return found


def listens(service: ServiceProcess) -> bool:
    try:
        return fresh(service, "/health/live").is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    process = RedisProcess(tmp_path / "redis").start()
    yield process
    process.kill()


def test_a_predictor_needs_the_state_alone_and_answers_as_the_learner_does(
    tmp_path: Path, redis: RedisProcess
) -> None:
    state = {"state": f"file://{tmp_path}/state"}
    options = SMALL | state | {"redis_url": redis.url}
    learner = ServiceProcess(tmp_path / "learner", options, free_port())
    asked = state | {"role": "predict", "model": None}
    predictor = ServiceProcess(tmp_path / "predictor", asked, free_port())
    try:
        with ThreadPoolExecutor(1) as pool, predictor.client() as client:
            starting = pool.submit(predictor.start)
            wait_for(lambda: listens(predictor))
            wait_for(lambda: "no model is in file://" in client.get("/health/ready").text)
            learner.start()
            with learner.client() as own:
                for k in range(4):
                    learn(own, k)
                starting.result()
                wait_for(lambda: client.get("/health/ready").json()["version"] == 4)
                assert answer(client) == answer(own), "the same bits at the same version"
                assert client.get("/health/ready").json()["role"] == "predictor"
            refused = client.post("/learn", json=QUESTIONS | {"labels": [0] * 20})
            assert refused.json()["error"]["code"] == "wrong_role"
            assert "role predict" in refused.json()["error"]["message"]
            asked_with_id = client.post("/predict?track=true", json=QUESTIONS)
            assert "FUNNEL_REDIS_URL" in asked_with_id.json()["error"]["message"]
            before = answer(client)
            learner.kill()
            assert answer(client) == before, "the learner is dead, and the answer is there"
            learner.start()
            with learner.client() as own:
                learn(own, 4)
                wait_for(lambda: client.get("/health/ready").json()["version"] == 5)
                assert answer(client) == answer(own)
        assert predictor.terminate() == 0
    finally:
        for service in (learner, predictor):
            if service.process is not None and service.process.is_alive():
                service.kill(server=False)


def test_questions_to_a_predictor_meet_their_labels_at_the_learner(
    tmp_path: Path, redis: RedisProcess
) -> None:
    options = SMALL | {"redis_url": redis.url}
    with serving(tmp_path / "learner", **options) as learner, learner.client() as own:
        learn(own, 0)
        asked = {"role": "predict", "data_dir": str(learner.directory / "data")}
        with serving(tmp_path / "predictor", **asked, redis_url=redis.url) as predictor:
            with predictor.client() as client:
                found = client.post("/predict?track=true", json=QUESTIONS).json()
            labels = {"ids": found["ids"], "labels": a_batch(77).labels.tolist()}
            own.post("/labels?wait=applied", json=labels).raise_for_status()
            assert own.get("/model").json()["examples_learned"] == 40


def test_an_intake_needs_the_log_alone_and_takes_examples_while_nobody_learns(
    tmp_path: Path, redis: RedisProcess
) -> None:
    learner = ServiceProcess(tmp_path / "learner", SMALL | {"redis_url": redis.url}, free_port())
    asked = {"role": "intake", "redis_url": redis.url, "model": None}
    intake = ServiceProcess(tmp_path / "intake", asked, free_port())
    try:
        with ThreadPoolExecutor(1) as pool, intake.client() as client:
            starting = pool.submit(intake.start)
            wait_for(lambda: listens(intake))
            wait_for(lambda: "nothing was learned" in client.get("/health/ready").text)
            learner.start()
            with learner.client() as own:
                learn(own, 0)
            starting.result()
            ready = client.get("/health/ready").json()
            assert (ready["role"], ready["learning"]) == ("intake", "learning")
            learn(client, 1, wait="")
            refused = client.post("/predict", json=QUESTIONS).json()["error"]
            assert refused["code"] == "wrong_role"
            wrong = client.post("/learn", json={"features": [[1.0, 2.0]], "labels": [0]})
            assert wrong.status_code == 422, "it knows the shape"
            for path in ("/pause", "/checkpoint"):
                assert client.post(path).json()["error"]["code"] == "wrong_role"
            learner.kill()
            wait_for(lambda: "no process learns" in client.get("/health/ready").json()["reason"])
            for k in range(2, 6):
                learn(client, k, wait="")
            learner.start()
            wait_for(lambda: fresh(learner, "/model").json()["examples_learned"] == 120)
        assert intake.terminate() == 0
        assert not (intake.directory / "data").exists(), "it keeps nothing"
    finally:
        for service in (learner, intake):
            if service.process is not None and service.process.is_alive():
                service.kill(server=False)


def test_an_intake_of_rows_knows_the_schema(tmp_path: Path, redis: RedisProcess) -> None:
    options = {"batch_size": 4, "max_wait_ms": 50, "redis_url": redis.url, "model": "logistic"}
    rows = {"rows": [{"age": k, "plan": "ab"[k % 2]} for k in range(4)], "labels": list("xyxy")}
    wrong = {"rows": [{"age": "old", "plan": "a"}], "labels": ["x"]}
    with serving(tmp_path / "learner", **options, schema="auto") as learner:
        with learner.client() as own:
            own.post("/learn?wait=applied", json=rows).raise_for_status()
            refused = own.post("/learn", json=wrong)
        with (
            serving(tmp_path / "intake", **options, role="intake", workers=2) as intake,
            intake.client() as client,
        ):
            wait_for(lambda: sample(scrape(client), "funnel_workers") == 2)
            client.post("/learn", json=rows).raise_for_status()
            assert client.post("/learn", json=wrong).text == refused.text
        wait_for(lambda: fresh(learner, "/model").json()["examples_learned"] == 8)


ADMIN = {"Authorization": "Bearer secret"}
KEYS = {"api_key": "secret", "predict_key": "ask"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service with a worker that takes requests, and one batch learned."""
    with serving(tmp_path_factory.mktemp("shared"), **SMALL, **KEYS, workers=2) as service:
        with service.client(**ADMIN) as client:
            learn(client, 0)
        wait_for(lambda: workers(service) == 2)
        yield service


def fresh(service: ServiceProcess, path: str) -> httpx.Response:
    """Return the answer on a connection of its own, which any of the processes may take."""
    with service.client(**ADMIN) as client:
        return client.get(path)


def workers(service: ServiceProcess) -> float:
    return sample(samples(fresh(service, "/metrics").text), "funnel_workers")


def worker_pids(service: ServiceProcess) -> list[int]:
    """Return the children of the service that are workers."""
    path = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
    children = map(int, path.read_text().split())
    return [
        pid for pid in children if b"service.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def counted(service: ServiceProcess, route: str) -> float:
    """Return how many requests for a route all processes have answered."""
    found = samples(fresh(service, "/metrics").text)
    name, label = "funnel_http_request_seconds_count", ("route", route)
    return sum(value for (own, labels), value in found.items() if own == name and label in labels)


def test_every_request_has_the_same_answer_whichever_process_takes_it(
    shared: ServiceProcess,
) -> None:
    asked, sent = counted(shared, "/predict"), counted(shared, "/learn")
    with shared.client(**ADMIN) as client:
        learn(client, 1)
        version = client.get("/model").json()["model_version"]
        learned = client.get("/model").json()["examples_learned"]
    seen: Counter[object] = Counter()
    for _ in range(30):
        with shared.client(**ADMIN) as client:
            seen[answer(client)["model_version"]] += 1
            seen[client.get("/model").json()["role"]] += 1
            assert client.get("/nothing").status_code == 404
            assert client.head("/health/live").status_code == 200
            assert client.get("/").text.startswith("<!doctype html>")
    assert seen["learner"] == 30, "what a worker cannot answer, the learner does"
    assert seen[version] + seen[version - 1] == 30, "a worker may be a snapshot old"
    for k in range(3):
        with shared.client(**ADMIN) as client:
            learn(client, k, wait="")
    wait_for(lambda: fresh(shared, "/model").json()["examples_learned"] == learned + 60)
    wait_for(lambda: counted(shared, "/predict") == asked + 30)
    wait_for(lambda: counted(shared, "/learn") == sent + 4)


def test_a_key_is_asked_for_by_every_process(shared: ServiceProcess) -> None:
    for _ in range(12):
        with shared.client() as client:
            assert client.post("/predict", json=QUESTIONS).status_code == 401
            assert client.get("/model").status_code == 401
        with shared.client(Authorization="Bearer ask") as client:
            assert client.post("/predict", json=QUESTIONS).status_code == 200
            assert client.post("/learn", json=QUESTIONS).status_code == 403
            assert client.post("/pause").status_code == 403


def test_unusual_requests_have_the_same_answer_whichever_process_takes_them(
    shared: ServiceProcess,
) -> None:
    key = b"Authorization: Bearer secret\r\n"
    body = a_batch(5).to_bytes()
    learned = b"POST /learn?w%61it=applied HTTP/1.1\r\nHost: localhost\r\n" + key
    learned += b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    for request, status in (
        (b"GET /model HTTP/1.0\r\n" + key + b"\r\n", b"200"),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n" + key + b"Connection: close\r\n\r\n", b"404"),
        (learned.replace(b"\r\n\r\n", b"\r\nContent-Type: application/octet-stream\r\n\r\n") + body,
         b"200"),
    ):  # fmt: skip
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", shared.port), timeout=60) as raw:
                raw.sendall(request)
                assert raw.makefile("rb").readline().split()[1] == status, request[:40]


def test_only_the_socket_of_the_workers_gives_a_request_the_address_of_another() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def nothing(*_: object) -> Message:
        raise AssertionError("nothing is read or sent")

    headers = [(b"host", b"localhost"), (PEER, b"127.0.0.1")]
    for state in ({}, {FORWARDED: True}):
        scope = {"type": "http", "client": None, "headers": headers, "state": state}
        asyncio.run(Forwarded(app)(scope, nothing, nothing))
    assert [scope["client"] for scope in seen] == [None, ("127.0.0.1", 0)]
    assert all(scope["headers"] == headers[:1] for scope in seen)


def test_a_port_is_taken_if_one_of_its_addresses_is() -> None:
    [other] = listeners("0.0.0.0", 0, is_shared=True)
    with other, pytest.raises(ListenError, match="Choose another --port"):
        check_free("::", other.getsockname()[1])


def test_no_acknowledged_example_is_lost_when_a_worker_is_killed(shared: ServiceProcess) -> None:
    [victim] = worker_pids(shared)
    before, accepted = fresh(shared, "/model").json()["examples_learned"], 0
    for k in range(60):
        if k == 20:
            os.kill(victim, signal.SIGKILL)
        with contextlib.suppress(httpx.TransportError), shared.client(**ADMIN) as client:
            learn(client, k, wait="")
            accepted += 1
    assert accepted >= 50, "only connections that the worker held are cut"
    wait_for(lambda: worker_pids(shared) not in ([victim], []) and workers(shared) == 2)
    wait_for(lambda: fresh(shared, "/model").json()["examples_learned"] >= before + 20 * accepted)
    assert "worker 1 has ended with status -9" in shared.log


def test_workers_end_with_the_learner_however_that_ends(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL, workers=2) as service:
        wait_for(lambda: worker_pids(service))
        [pid] = worker_pids(service)
        with service.client() as client:
            learn(client, 3, wait="")
        service.kill()
        wait_for(lambda: not Path(f"/proc/{pid}").exists())
        service.start()
        wait_for(lambda: fresh(service, "/model").json()["examples_learned"] == 20)
        wait_for(lambda: worker_pids(service))
        [pid] = worker_pids(service)
        assert service.terminate() == 0
        assert not Path(f"/proc/{pid}").exists()


def test_a_port_that_is_taken_is_refused_although_processes_share_it(
    tmp_path: Path, shared: ServiceProcess
) -> None:
    other = ServiceProcess(tmp_path / "other", SMALL | {"workers": 2}, shared.port)
    with pytest.raises(OSError, match="cannot listen on"):
        other.start()
