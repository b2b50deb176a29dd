"""The contract of the routes, over real HTTP."""

import base64
import fcntl
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from service.http.budget import MEMORY
from service.http.guard import BASIC
from tests.support.harness import SAFETENSORS, ServiceProcess, serving, wait_for
from tests.support.metrics import sample, scrape
from tests.support.states import a_batch

SMALL = {"features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 50}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with serving(tmp_path_factory.mktemp("service"), **SMALL) as running:
        yield running


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def as_json(seed: int, n: int = 20) -> dict[str, list[object]]:
    batch = a_batch(seed, n)
    return {"features": batch.features.tolist(), "labels": batch.labels.tolist()}


def test_learning_shows_in_predictions(client: httpx.Client) -> None:
    for k in range(30):
        client.post("/learn", json=as_json(k)).raise_for_status()
    learned = client.post("/learn?wait=applied", json=as_json(30))
    assert learned.status_code == 200
    assert learned.json()["accepted"] == 20
    probe = as_json(99, 200)
    answer = client.post("/predict", json={"features": probe["features"]})
    assert answer.status_code == 200
    predicted = answer.json()
    assert np.mean(np.array(predicted["labels"]) == probe["labels"]) > 0.8
    assert predicted["model_version"] >= learned.json()["model_version"]
    probabilities = np.array(predicted["probabilities"])
    assert probabilities.shape == (200, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == predicted["labels"]).all()


def test_the_three_types_of_body_are_equivalent(client: httpx.Client, tmp_path: Path) -> None:
    batch = a_batch(5)
    lines = "\n".join(
        json.dumps({"features": x, "label": y})
        for x, y in zip(batch.features.tolist(), batch.labels.tolist(), strict=True)
    )
    bodies = {
        "application/json": json.dumps(as_json(5)).encode(),
        "application/json; charset=utf-8": json.dumps(as_json(5)).encode(),
        "application/x-ndjson": lines.encode(),
        "application/octet-stream": batch.to_bytes(),
    }
    for kind, body in bodies.items():
        answer = client.post("/learn", content=body, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["accepted"]) == (202, 20)
    learned = client.post("/learn?wait=applied", json=as_json(6)).json()["model_version"]
    by_json = client.post("/predict", json={"features": batch.features.tolist()}).json()
    by_bytes = client.post(
        "/predict", content=save({"features": batch.features}), headers=SAFETENSORS
    ).json()
    assert by_json["model_version"] == by_bytes["model_version"] == learned
    np.testing.assert_allclose(by_json["probabilities"], by_bytes["probabilities"], rtol=1e-5)
    bare = client.post(
        "/predict?probabilities=false", json={"features": batch.features.tolist()}
    ).json()
    assert bare.keys() == {"labels", "model_version"}


def test_wait_applied_returns_the_scores_of_its_batch(client: httpx.Client) -> None:
    before = client.get("/model").json()
    answers = [client.post("/learn?wait=applied", json=as_json(k)).json() for k in range(3)]
    versions = [a["model_version"] for a in answers]
    assert versions == sorted(versions)
    assert versions[0] > before["model_version"]
    for answer in answers:
        assert answer.keys() == {"accepted", "entry", "model_version", "accuracy", "loss"}
        assert 0 <= answer["accuracy"] <= 1
        assert answer["loss"] > 0


def test_a_small_batch_is_learned_after_max_wait(client: httpx.Client) -> None:
    before = client.get("/model").json()["examples_learned"]
    answer = client.post("/learn?wait=applied", json=as_json(3, 2))
    assert answer.status_code == 200
    assert client.get("/model").json()["examples_learned"] == before + 2


def test_requests_with_one_idempotency_key_make_one_entry(client: httpx.Client) -> None:
    key = {"Idempotency-Key": "again"}
    before = client.get("/model").json()["examples_learned"]
    first = client.post("/learn?wait=applied", json=as_json(1), headers=key)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: client.post("/learn", json=as_json(1), headers=key), range(16))
        )
    assert {a.status_code for a in answers} <= {202, 409}
    entries = {a.json()["entry"] for a in answers if a.status_code == 202}
    assert entries == {first.json()["entry"]}
    other = client.post("/learn", json=as_json(2), headers=key)
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "key_reused"
    client.post("/learn?wait=applied", json=as_json(3)).raise_for_status()
    assert client.get("/model").json()["examples_learned"] == before + 40


def test_model_optimizer_and_checkpoint_answer(client: httpx.Client) -> None:
    client.post("/learn?wait=applied", json=as_json(1)).raise_for_status()
    model = client.get("/model").json()
    assert model.keys() >= {
        "model", "model_version", "examples_learned", "position", "optimizer", "hyperparameters",
        "device", "role",
    }  # fmt: skip
    one, other = client.post("/checkpoint"), client.post("/checkpoint")
    assert one.status_code == other.status_code == 201
    assert one.json() == other.json()
    assert one.json().keys() == {"model_version", "position", "bytes", "sha256"}
    assert one.json()["model_version"] == model["model_version"]
    wait_for(lambda: client.get("/optimizer").json()["model_version"] == model["model_version"])
    weight = client.get("/optimizer").json()["tensors"]["weight"]
    assert weight["scale"] > 0
    assert list(weight["gain_quantiles"]) == ["0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"]


def test_predicting_changes_nothing(client: httpx.Client) -> None:
    before = client.post("/checkpoint").json()
    for k in range(50):
        client.post("/predict", json={"features": as_json(k)["features"]}).raise_for_status()
    assert client.post("/checkpoint").json() == before


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/learn", 405, "method_not_allowed"),
        ("POST", "/learn?wait=never", 422, "invalid"),
        ("POST", "/predict?probabilities=perhaps", 422, "invalid"),
    ],
)
def test_other_errors_are_json_too(
    client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_the_documentation_describes_bodies_and_errors(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    learn = paths["/learn"]["post"]
    assert learn["requestBody"]["content"].keys() == {
        "application/json", "application/x-ndjson", "application/octet-stream",
    }  # fmt: skip
    assert learn["responses"].keys() >= {"200", "202", "409", "413", "415", "422", "429", "503"}
    assert paths["/predict"]["post"]["requestBody"]["content"].keys() == {
        "application/json", "application/x-ndjson", "application/octet-stream",
    }  # fmt: skip
    assert paths.keys() >= {"/model", "/optimizer", "/checkpoint", "/health/live", "/metrics"}


def test_the_documentation_shows_where_a_key_is_needed(
    client: httpx.Client, locked: ServiceProcess
) -> None:
    assert "security" not in client.get("/openapi.json").json()
    with locked.client(Authorization="Bearer secret") as holder:
        document = holder.get("/openapi.json").json()
    assert document["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    reads = {path: found["get"] for path, found in document["paths"].items() if "get" in found}
    is_open = [path for path, operation in reads.items() if operation.get("security") == []]
    assert is_open == ["/health/live", "/health/ready"]


def test_every_read_answers_head_too(client: httpx.Client) -> None:
    for path in ("/", "/health/live", "/health/ready", "/metrics", "/model", "/docs"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
    assert client.head("/learn").status_code == 405
    assert client.head("/events").status_code == 405
    counted = client.get("/metrics").text
    assert 'funnel_http_request_seconds_count{code="200",route="/health/live"}' in counted


def test_a_prediction_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    options = {"features": 2, "classes": 3, "model": "tests.support.states:Logarithm"}
    with serving(tmp_path, **options, optimizer="sgd") as service, service.client() as client:
        assert client.post("/predict", json={"features": [[1, 2]]}).status_code == 200
        refused = client.post("/predict", json={"features": [[1, 2], [-9, 2]]})
        assert refused.status_code == 422
        error = refused.json()["error"]
        assert (error["code"], error["field"], error["index"]) == ("no_prediction", "features", 1)


def test_an_example_at_which_a_users_model_raises_fails_no_other_request(tmp_path: Path) -> None:
    model = "tests.service.fold.own_models:Embedded"
    options = {"features": 3, "classes": 3, "model": model, "standardize": False}
    good, bad = {"features": [[0, 1, 2]]}, {"features": [[0, 1, 2], [0, 1, 99]]}
    with serving(tmp_path, **options) as service, service.client() as client:
        with ThreadPoolExecutor(16) as pool:
            bodies = [bad if k % 4 == 0 else good for k in range(120)]
            answers = list(pool.map(lambda body: client.post("/predict", json=body), bodies))
        for answer, body in zip(answers, bodies, strict=True):
            assert answer.headers.get("connection") != "close"
            if body is good:
                assert answer.status_code == 200
                continue
            assert answer.status_code == 422
            error = answer.json()["error"]
            assert (error["code"], error["field"], error["index"]) == (
                "no_prediction",
                "features",
                1,
            )
            assert "IndexError" in error["message"]
        log = service.log
        assert log.count("Traceback") == log.count("a prediction failed") == 1


def test_health_shows_the_condition(client: httpx.Client) -> None:
    assert client.get("/health/live").status_code == 200
    ready = client.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["learning"] == "learning"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    options = SMALL | {"api_key": "secret", "max_backlog": 1, "max_wait_ms": 600_000}
    with serving(tmp_path_factory.mktemp("locked"), **options) as running:
        yield running


def test_with_a_key_only_health_is_open(locked: ServiceProcess) -> None:
    with locked.client() as client:
        for path in ("/health/live", "/health/ready"):
            assert client.get(path).status_code == 200
        for path in ("/model", "/optimizer", "/metrics", "/docs", "/openapi.json", "/nothing"):
            answer = client.get(path)
            assert answer.status_code == 401, path
            assert answer.headers.get_list("WWW-Authenticate") == ["Bearer", BASIC]
            assert answer.json()["error"]["code"] == "unauthorized"
        for given in (
            "Bearer wrong",
            "secret",
            "Bearer secrets",
            "Basic secret",
            "Bearer schlüssel",
        ):
            headers = {b"Authorization": given.encode()}
            assert client.get("/model", headers=headers).status_code == 401
        for given in ("Bearer secret", "bearer secret", "BEARER  secret"):
            assert client.get("/model", headers={"Authorization": given}).status_code == 200


def basic(text: str) -> dict[bytes, bytes]:
    return {b"Authorization": b"Basic " + base64.b64encode(text.encode())}


def test_reads_accept_the_key_as_a_password_too(locked: ServiceProcess) -> None:
    with locked.client() as client:
        for path in ("/model", "/", "/page/page.js", "/history"):
            assert client.get(path, headers=basic("anybody:secret")).status_code == 200
        for text in ("secret:", ":secrets", "secret", ":", ":schlüssel", "a:b:secret"):
            assert client.get("/model", headers=basic(text)).status_code == 401
        for raw in (b"Basic", b"Basic =", b"Basic \xff\xfe", b"basic !!!!"):
            assert client.get("/model", headers={b"Authorization": raw}).status_code == 401
        for path in ("/checkpoint", "/learn", "/predict"):
            refused = client.post(path, headers=basic("anybody:secret"))
            assert refused.status_code == 401
            assert refused.headers.get_list("WWW-Authenticate") == ["Bearer"]


def test_without_the_key_no_body_is_read(locked: ServiceProcess) -> None:
    with socket.create_connection(("127.0.0.1", locked.port)) as raw:
        raw.sendall(
            b"POST /learn HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000000\r\n\r\n"
        )
        raw.settimeout(5)
        assert b"401" in raw.recv(200)


def test_a_full_backlog_is_429_with_retry_after(locked: ServiceProcess) -> None:
    with locked.client(Authorization="Bearer secret") as client:
        assert client.post("/learn", json=as_json(0, 3)).status_code == 202
        refused = client.post("/learn", json=as_json(1, 3))
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "backlog_full"
        assert int(refused.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("bound", ["max_backlog", "max_backlog_bytes"])
def test_many_requests_at_once_exceed_the_backlog_by_one_at_most(
    tmp_path: Path, bound: str
) -> None:
    body = a_batch(0, 500).to_bytes()
    most = {"max_backlog": 5_000, "max_backlog_bytes": 10 * len(body)}[bound]
    options = SMALL | {bound: most, "batch_size": 1_000_000, "max_wait_ms": 600_000}
    with serving(tmp_path, **options) as service, service.client() as client:

        def send(_: int) -> httpx.Response:
            return client.post("/learn", content=body, headers=SAFETENSORS)

        with ThreadPoolExecutor(30) as pool:
            answers = list(pool.map(send, range(60)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(answers) - len(refused) == 10
        assert {answer.json()["error"]["code"] for answer in refused} == {"backlog_full"}
        assert all(bound.upper() in answer.json()["error"]["message"] for answer in refused)
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        found = scrape(client)
        assert sample(found, "funnel_backlog_examples") == 5_000
        assert sample(found, "funnel_backlog_bytes") == 10 * len(body)


def test_the_budget_of_an_answered_body_is_free_again(client: httpx.Client) -> None:
    large = save({"features": np.zeros((MEMORY // 17 // 6, 6), np.uint8)})
    for _ in range(18):
        refused = client.post("/predict", content=large, headers=SAFETENSORS)
        assert refused.json()["error"]["code"] == "too_many_examples"
    features = {"features": as_json(0)["features"]}
    assert client.post("/predict", json=features).status_code == 200


def test_a_lost_log_is_503_until_it_is_back(tmp_path: Path) -> None:
    key = {"Idempotency-Key": "one"}
    with serving(tmp_path, **SMALL) as service, service.client() as client:
        sent = client.post("/learn?wait=applied", json=as_json(0)).json()
        with server_kept_down(service):
            for _ in range(5):
                for path in ("/learn", "/checkpoint"):
                    refused = client.post(path, json=as_json(1), headers=key)
                    assert refused.status_code == 503
                    assert refused.json()["error"]["code"] == "log_unavailable"
                    assert int(refused.headers["Retry-After"]) >= 1
                assert client.get("/health/ready").status_code == 200
                features = {"features": as_json(0)["features"]}
                assert client.post("/predict", json=features).status_code == 200
        wait_for(lambda: client.post("/learn", json=as_json(1), headers=key).status_code == 202)
        after = client.post("/learn?wait=applied", json=as_json(2))
        assert after.status_code == 200
        assert after.json()["model_version"] == sent["model_version"] + 2
        assert client.get("/model").json()["examples_learned"] == 60


@contextmanager
def server_kept_down(service: ServiceProcess) -> Iterator[None]:
    """Kill the embedded server and hold its lock, so that the service cannot start it again."""
    with (service.directory / "data/log/lock").open() as lock:
        service.kill_server()
        wait_for(lambda: try_lock(lock.fileno()))
        yield


def try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def test_the_accuracy_of_the_model_is_of_the_examples_that_it_shows(tmp_path: Path) -> None:
    """Each batch is learned at once, and no statistics are read in between."""
    options = {"features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 5}
    with serving(tmp_path, **options) as service, service.client() as client:
        right = 0.0
        for seed in range(10):
            answer = client.post("/learn?wait=applied", json=as_json(seed)).json()
            right += 20 * answer["accuracy"]
            shown = client.get("/model").json()
            assert shown["examples_learned"] == 20 * (seed + 1)
            assert shown["accuracy"] == pytest.approx(right / shown["examples_learned"])
