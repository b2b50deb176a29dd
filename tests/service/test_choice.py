"""A service without settings: its first examples, or what it finds recorded, decide its model."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from redis.typing import EncodableT, FieldT

from service.log.errors import LogError
from service.log.keys import Keys
from streams.batch import Batch
from tests.support.harness import SAFETENSORS, RedisProcess, ServiceProcess, serving, wait_for
from tests.support.named import records

OPTIONS: dict[str, Any] = {"batch_size": 50, "max_wait_ms": 200}
DENSE = Batch(np.full((3, 784), 0.5, np.float32), np.array([1, 2, 3]))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    redis = RedisProcess(tmp_path / "redis").start()
    yield redis
    redis.kill()


def rows(seed: int, n: int = 50) -> dict[str, object]:
    found, labels = records(seed, n)
    return {"rows": found, "labels": labels}


def send_dense(client: httpx.Client) -> httpx.Response:
    return client.post("/learn", content=DENSE.to_bytes(), headers=SAFETENSORS)


def inputs(client: httpx.Client) -> str:
    return str(client.get("/model").raise_for_status().json()["inputs"])


def learned(client: httpx.Client, examples: int) -> None:
    wait_for(lambda: client.get("/model").json()["examples_learned"] == examples)


def digest(client: httpx.Client) -> str:
    return str(client.post("/checkpoint").raise_for_status().json()["sha256"])


def test_the_first_rows_make_a_model_of_rows_and_nothing_else_stops(tmp_path: Path) -> None:
    with serving(tmp_path, **OPTIONS) as service, service.client() as client:
        shown = client.get("/model").json()
        assert (shown["inputs"], shown["hyperparameters"]["features"]) == ("features", 784)
        assert client.get("/schema").status_code == 404
        question = {"features": [[0.5] * 784]}
        assert client.post("/predict", json=question).status_code == 200
        assert client.post("/predict", json={"rows": [{"age": 1}]}).status_code == 503
        wrong = client.post("/learn", json={"rows": [{"age": [1]}], "labels": [1]})
        assert (wrong.status_code, wrong.json()["error"]["field"]) == (422, "age")
        assert inputs(client) == "features", "what is refused decides nothing"
        with client.stream("GET", "/events") as events:
            answer = client.post("/learn?wait=applied", json=rows(0))
            assert answer.status_code == 200, answer.text
            assert answer.json()["model_version"] == 1
            assert any('"version":1,' in line for line in events.iter_lines())
        assert inputs(client) == "rows"
        decided = "the model begins to learn rows with named columns, task multiclass"
        assert service.log.count(decided) == 1
        names = {column["name"] for column in client.get("/schema").json()["columns"]}
        assert names == {"plan", "city", "at", "age"}
        wait_for(lambda: "funnel_columns 4.0" in client.get("/metrics").text)
        assert client.get("/").status_code == 200
        assert client.get("/health/ready").json()["learning"] == "learning"
        assert client.post("/predict", json={"rows": [{"plan": "vip"}]}).status_code == 200
        assert client.post("/learn", json=question | {"labels": [1]}).status_code == 422
        assert client.post("/predict", json=question).status_code == 422
        assert service.terminate() == 0


@pytest.mark.parametrize("kind", ["text/csv", "application/x-ndjson"])
def test_rows_decide_in_every_format(tmp_path: Path, kind: str) -> None:
    bodies = {
        "text/csv": b"plan,age,label\npro,4,stay\nvip,,go\n",
        "application/x-ndjson": b'{"label": "features", "row": {"features": 3}}\n',
    }
    with serving(tmp_path, **OPTIONS) as service, service.client() as client:
        headers = {"Content-Type": kind}
        answer = client.post("/learn", content=bodies[kind], headers=headers)
        assert answer.status_code == 202, answer.text
        assert client.get("/schema").status_code == 200, "it is answered once it is of rows"


def test_a_request_waits_for_a_replay_that_a_lost_lease_needs(
    tmp_path: Path, redis: RedisProcess
) -> None:
    with (
        serving(tmp_path, **OPTIONS, redis_url=redis.url, lease_seconds=1) as service,
        service.client() as client,
        redis.client() as direct,
    ):
        client.post("/learn?wait=applied", json=rows(0)).raise_for_status()
        for k in range(1, 6):
            direct.delete(Keys("logistic").lease)
            wait_for(lambda k=k: service.log.count("the lease ran out") == k)
            answer = client.post("/learn", json=rows(k))
            assert answer.status_code == 202, answer.text
        wait_for(lambda: client.get("/model").json()["examples_learned"] == 300)


def test_the_first_dense_features_keep_rows_out(tmp_path: Path) -> None:
    with serving(tmp_path, **OPTIONS) as service, service.client() as client:
        assert send_dense(client).status_code == 202
        answer = client.post("/learn", json=rows(0))
        assert answer.status_code == 422, answer.text
        learned(client, 3)
        assert inputs(client) == "features"
        assert "--data-dir" in client.get("/schema").json()["error"]["message"]
        before = digest(client)
        service.kill()
        service.start()
        assert digest(client) == before


def at_once(service: ServiceProcess, clients: int) -> list[tuple[str, httpx.Response]]:
    """Send rows and features by turns, each from a client of its own; return kinds and answers."""
    start = threading.Barrier(clients)

    def send(number: int) -> tuple[str, httpx.Response]:
        with service.client() as client:
            client.get("/health/live")
            start.wait()
            if number % 2:
                return "features", send_dense(client)
            return "rows", client.post("/learn?wait=applied", json=rows(number, 3))

    with ThreadPoolExecutor(clients) as threads:
        return list(threads.map(send, range(clients)))


def test_of_rows_and_features_at_once_only_one_kind_is_accepted_and_all_of_that_is_learned(
    tmp_path: Path,
) -> None:
    for k in range(3):
        with serving(tmp_path / str(k), **OPTIONS) as service:
            answers = at_once(service, 8)
            assert {answer.status_code for _, answer in answers} <= {200, 202, 415, 422, 503}
            accepted = [kind for kind, answer in answers if answer.is_success]
            assert len(set(accepted)) == 1
            with service.client() as client:
                learned(client, 3 * len(accepted))
                assert inputs(client) == accepted[0]
                wait_for(lambda: "funnel_dead_entries_total 0.0" in client.get("/metrics").text)


def test_rows_by_xadd_decide_and_what_holds_no_examples_does_not(
    tmp_path: Path, redis: RedisProcess
) -> None:
    key = "funnel:{logistic}:log"
    options = OPTIONS | {"redis_url": redis.url}
    with (
        redis.client() as producer,
        serving(tmp_path / "one", **options) as service,
        service.client() as client,
    ):
        producer.xadd(key, {"nonsense": "1"})
        wait_for(lambda: "funnel_backlog_examples 1.0" in client.get("/metrics").text)
        assert inputs(client) == "features"
        assert producer.exists("funnel:{logistic}:cuts") == 0
        many: dict[FieldT, EncodableT] = {k: orjson.dumps(value) for k, value in rows(0).items()}
        producer.xadd(key, many)
        learned(client, 50)
        assert inputs(client) == "rows"
        wait_for(lambda: "funnel_dead_entries_total 1.0" in client.get("/metrics").text)
        assert send_dense(client).status_code == 415


def test_a_kill_right_after_the_decision_loses_nothing_and_changes_no_bit(tmp_path: Path) -> None:
    with serving(tmp_path / "one", **OPTIONS | {"max_wait_ms": 600_000}) as service:
        with service.client() as client:
            client.post("/checkpoint").raise_for_status()  # of what has learned nothing
            client.post("/learn", json=rows(0, 50)).raise_for_status()
        service.kill()
        service.start()
        with service.client() as client:
            learned(client, 50)
            client.post("/learn", json=rows(1, 50)).raise_for_status()
            learned(client, 100)
            survived = digest(client)
    told = OPTIONS | {"max_wait_ms": 600_000, "schema": "auto"}
    with serving(tmp_path / "two", **told) as service, service.client() as client:
        for k in range(2):
            client.post("/learn", json=rows(k, 50)).raise_for_status()
        learned(client, 100)
        assert digest(client) == survived


def test_rows_that_are_in_the_log_decide_at_the_next_start(
    tmp_path: Path, redis: RedisProcess
) -> None:
    with redis.client() as producer:
        producer.xadd("funnel:{logistic}:log", {"row": '{"plan": "pro"}', "label": "stay"})
    options = OPTIONS | {"redis_url": redis.url}
    with serving(tmp_path / "one", **options) as service, service.client() as client:
        assert inputs(client) == "rows", "before it serves"
        learned(client, 1)


def test_standbys_without_settings_take_the_leaders_model(
    tmp_path: Path, redis: RedisProcess
) -> None:
    options = OPTIONS | {"redis_url": redis.url}
    with (
        serving(tmp_path / "one", **options) as first,
        first.client() as client,
        serving(tmp_path / "one", **options) as early,
        early.client() as standby,
    ):
        assert inputs(standby) == "features"
        client.post("/learn?wait=applied", json=rows(0)).raise_for_status()
        wait_for(lambda: inputs(standby) == "rows")
        with serving(tmp_path / "elsewhere", **options) as late, late.client() as third:
            assert inputs(third) == "rows", "it has read the first cut"
        before = digest(client)
        wait_for(lambda: standby.get("/model").json()["examples_learned"] == 50)
        first.kill()
        wait_for(lambda: standby.get("/model").json()["role"] == "learner")
        assert digest(standby) == before
        standby.post("/learn?wait=applied", json=rows(1)).raise_for_status()


RECORDED = {
    "rows": {"schema": "auto", "table_bits": 10, "seed": 3, "experts": 2},
    "features": {"features": 4, "classes": 3, "optimizer": "funnel"},
}


@pytest.mark.parametrize("kind", RECORDED)
def test_what_is_recorded_is_taken_from_checkpoint_or_log_and_what_is_set_must_agree(
    tmp_path: Path, kind: str
) -> None:
    with serving(tmp_path, **OPTIONS, **RECORDED[kind]) as service:
        with service.client() as client:
            body = rows(0) if kind == "rows" else {"features": [[0.5] * 4] * 50, "labels": [2] * 50}
            client.post("/learn?wait=applied", json=body).raise_for_status()
        service.kill()  # there is only the log yet
        service.options = dict(OPTIONS)
        service.start()
        with service.client() as client:
            assert client.get("/model").json()["examples_learned"] == 50
            assert inputs(client) == kind
            before = digest(client)
        service.terminate()
        service.start()
        with service.client() as client:
            assert inputs(client) == kind
            assert digest(client) == before
        service.terminate()
        for options in ({"seed": 5}, {"features": 7}):
            service.options = OPTIONS | options
            with pytest.raises(LogError, match="is of another model") as refused:
                service.start()
            [name] = options
            assert f"{name} is" in str(refused.value)


PRICES = {
    "rows": [{"size": 1.5, "town": "a"}, {"size": 2.0, "town": "b"}],
    "labels": [310.25, 275],
}


def task(client: httpx.Client) -> str:
    return str(client.get("/model").raise_for_status().json()["task"])


@pytest.mark.parametrize("options", [{}, {"schema": "auto"}])
def test_labels_with_fractions_make_rows_a_model_of_numbers(
    tmp_path: Path, options: dict[str, str]
) -> None:
    with serving(tmp_path, **OPTIONS, **options) as service:
        with service.client() as client:
            assert task(client) == "multiclass"
            assert client.post("/learn?wait=applied", json=PRICES).status_code == 200
            assert (inputs(client), task(client)) == ("rows", "regression")
            answer = client.post("/predict", json={"rows": [{"size": 1.0}]}).json()
            assert 200 < answer["values"][0] < 400
            word = {"row": {"size": 1.0}, "label": "cheap"}
            assert client.post("/learn", json=word).status_code == 422
            before = digest(client)
        service.kill()
        service.start()
        with service.client() as client:
            wait_for(lambda: client.get("/model").json()["condition"] == "learning")
            assert (task(client), digest(client)) == ("regression", before)


def test_labels_with_fractions_make_dense_features_a_model_of_numbers(tmp_path: Path) -> None:
    body = {"features": [[0.0, 1.0], [1.0, 0.0]], "labels": [0.5, -2.5]}
    with serving(tmp_path, **OPTIONS, features=2) as service, service.client() as client:
        many = {"features": [[0.0, 1.0]], "labels": [10]}
        refused = client.post("/learn", json=many)
        assert refused.json()["error"]["message"] == "label 10 is outside 0…9"
        assert client.post("/learn?wait=applied", json=body).status_code == 200
        assert task(client) == "regression"
        assert set(client.post("/predict", json={"features": [[0, 0]]}).json()) >= {"values", "std"}
        assert client.post("/learn?wait=applied", json=many).status_code == 200


@pytest.mark.parametrize("model", ["auto", "logistic"])
def test_a_deviation_is_unknown_until_two_numbers_differ(model: str, tmp_path: Path) -> None:
    options = OPTIONS | {"model": model, "task": "regression", "features": 2, "batch_size": 1}
    asked = {"features": [[0.0, 1.0], [1.0, 0.0]]}
    with serving(tmp_path, **options) as service, service.client() as client:

        def after(label: float) -> list[float | None]:
            body = {"features": [0.0, 1.0], "label": label}
            client.post("/learn?wait=applied", json=body).raise_for_status()
            found: list[float | None] = client.post("/predict", json=asked).json()["std"]
            return found

        assert after(5.46) == after(5.46) == [None, None]
        assert all(std is not None and 0.01 < std < 10.0 for std in after(7.0))


def test_whole_labels_are_classes_and_stay_so(tmp_path: Path) -> None:
    classes = {"features": [[0.0, 1.0], [1.0, 0.0]], "labels": [0, 1]}
    with serving(tmp_path, **OPTIONS, features=2) as service, service.client() as client:
        assert client.post("/learn?wait=applied", json=classes).status_code == 200
        assert task(client) == "multiclass"
        late = client.post("/learn", json=classes | {"labels": [0.5, 1]})
        assert late.status_code == 422
        assert "must be an integer" in late.json()["error"]["message"]


def test_numbers_by_xadd_decide_too(tmp_path: Path, redis: RedisProcess) -> None:
    options = OPTIONS | {"redis_url": redis.url}
    with serving(tmp_path, **options) as service, service.client() as client:
        document = orjson.dumps({"features": [[0.5] * 784] * 2, "labels": [1.5, 2.25]})
        with redis.client() as producer:
            producer.xadd("funnel:{logistic}:log", {"json": document})
        wait_for(lambda: task(client) == "regression")
        learned(client, 2)


def test_a_task_that_is_set_is_kept_whatever_the_labels(tmp_path: Path) -> None:
    with serving(tmp_path, **OPTIONS, task="multiclass") as service, service.client() as client:
        assert client.post("/learn?wait=applied", json=PRICES).status_code == 200
        assert (inputs(client), task(client)) == ("rows", "multiclass")
        assert client.get("/schema").json()["labels"] == [310.25, 275]


def test_of_classes_and_numbers_at_one_moment_one_is_accepted(tmp_path: Path) -> None:
    classes = {"features": [[0.5] * 784], "labels": [3]}
    with serving(tmp_path, **OPTIONS) as service:
        with ThreadPoolExecutor(8) as threads, service.client() as client:

            def send(k: int) -> tuple[bool, int]:
                body = classes | {"labels": [2.5]} if k % 2 else classes
                return bool(k % 2), client.post("/learn", json=body).status_code

            answers = list(threads.map(send, range(8)))
        accepted = {are_numbers for are_numbers, status in answers if status == 202}
        assert len(accepted) == 1
        count = sum(status == 202 for _, status in answers)
        with service.client() as client:
            learned(client, count)
            assert (task(client) == "regression") == accepted.pop()
            assert "funnel_dead_entries_total 0.0" in client.get("/metrics").text
