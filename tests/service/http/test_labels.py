"""Questions with ids over HTTP, and what is answered to their labels."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest
from safetensors.numpy import save

from service.log.labels import MAX_ID
from tests.support.harness import RedisProcess, ServiceProcess, serving, wait_for
from tests.support.metrics import sample, scrape
from tests.support.named import records

SMALL = {"features": 2, "classes": 3, "batch_size": 4, "max_wait_ms": 10}
ASKED = "funnel:{logistic}:asked"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    process = RedisProcess(tmp_path_factory.mktemp("redis")).start()
    yield process
    process.kill()


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, redis: RedisProcess
) -> Iterator[ServiceProcess]:
    with serving(tmp_path_factory.mktemp("labels"), **SMALL, redis_url=redis.url) as running:
        yield running


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    with service.client() as own:
        yield own


def ask(client: httpx.Client, *ids: object) -> httpx.Response:
    features = [[k / 7, 1.0] for k in range(len(ids))]
    return client.post("/predict", json={"features": features, "ids": ids})


def label(client: httpx.Client, **labels: object) -> httpx.Response:
    body = {"ids": [*labels], "labels": [*labels.values()]}
    return client.post("/labels?wait=applied", json=body)


def test_a_label_meets_its_question_and_each_result_is_named(client: httpx.Client) -> None:
    version = client.get("/model").json()["model_version"]
    assert ask(client, "one", "two").status_code == 200
    answer = label(client, one=1, two=2, three=0)
    assert answer.status_code == 200
    found = answer.json()
    assert found["results"] == ["joined", "joined", "waiting"]
    assert (found["accepted"], found["model_version"]) == (3, version + 1)
    assert label(client, one=1, two=1).json()["results"] == ["duplicate", "conflict"]
    assert client.get("/model").json()["model_version"] == version + 1


def test_the_answer_with_ids_is_the_same_and_it_is_kept(
    client: httpx.Client, redis: RedisProcess
) -> None:
    without = client.post("/predict", json={"features": [[0.0, 1.0]]}).json()
    assert ask(client, "kept").json() == without
    with redis.client() as direct:
        [(_, fields)] = direct.xrevrange(ASKED, count=1)
    assert sorted(fields) == [b"batch", b"crc32", b"given", b"ids", b"version"]
    assert b"kept" not in orjson.dumps([value.hex() for value in fields.values()])
    assert int(fields[b"version"]) == without["model_version"]


def test_without_waiting_labels_are_accepted(client: httpx.Client) -> None:
    answer = client.post("/labels", json={"ids": ["nobody"], "labels": [1], "weights": [0.5]})
    assert (answer.status_code, answer.json()["accepted"]) == (202, 1)


def test_ids_are_not_in_the_log_of_labels_that_come_over_http(
    client: httpx.Client, redis: RedisProcess
) -> None:
    client.post("/labels", json={"ids": ["secret"], "labels": [1]}).raise_for_status()
    with redis.client() as direct:
        [(_, fields)] = direct.xrevrange("funnel:{logistic}:log", count=1)
    assert sorted(fields) == [b"crc32", b"labels", b"source"]
    assert b"secret" not in fields[b"labels"]


def test_a_producer_appends_labels_by_hand(client: httpx.Client, redis: RedisProcess) -> None:
    ask(client, "by hand").raise_for_status()
    before = client.get("/model").json()["examples_learned"]
    with redis.client() as direct:
        document = orjson.dumps({"ids": ["by hand"], "labels": [2]})
        direct.xadd("funnel:{logistic}:log", {"labels": document})
    wait_for(lambda: client.get("/model").json()["examples_learned"] == before + 1)


@pytest.mark.parametrize(
    ("ids", "index"),
    [
        ([""], 0),
        (["a", "x" * 10_000], 1),
        (["a", None], 1),
        (["a", True], 1),
        (["a", 1.5], 1),
        (["a", ["b"]], 1),
        (["a", 2**64], 1),
        (["a", "a"], 1),
        (["a"], None),
        ("ab", None),
    ],
)
def test_bad_ids_are_refused_and_nothing_is_asked(
    client: httpx.Client, redis: RedisProcess, ids: object, index: int | None
) -> None:
    with redis.client() as direct:
        before = direct.xlen(ASKED)
        answer = client.post("/predict", json={"features": [[0, 1], [1, 0]][:2], "ids": ids})
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert (error["code"], error["field"]) == ("invalid", "ids")
        assert error.get("index") in (index, None)
        assert direct.xlen(ASKED) == before


def test_an_integer_of_more_than_64_bits_is_no_id(client: httpx.Client) -> None:
    assert client.post("/labels", json={"ids": [2**64 - 1], "labels": [1]}).status_code == 202
    error = client.post("/labels", json={"ids": [2**64], "labels": [1]}).json()["error"]
    assert "at most 64 bits" in error["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"ids": ["\xff"], "labels": [1]}', None),
        (b'{"ids": ["\\ud800"], "labels": [1]}', None),
        (b'{"ids": [""], "labels": [1]}', "ids"),
        (b'{"ids": ["%s"], "labels": [1]}' % (b"x" * (MAX_ID + 1)), "ids"),
        (b'{"ids": ["a"], "labels": [3]}', "labels"),
        (b'{"ids": ["a"], "labels": ["x"]}', "labels"),
        (b'{"ids": ["a"], "labels": [1, 2]}', "labels"),
        (b'{"ids": ["a"], "labels": [1], "weights": [-1]}', "weights"),
        (b'{"ids": [], "labels": []}', "ids"),
        (b'{"labels": [1]}', "ids"),
        (b"[1]", None),
    ],
)
def test_bad_labels_are_refused(client: httpx.Client, body: bytes, field: str | None) -> None:
    answer = client.post("/labels", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"].get("field") == field


def test_large_requests_with_ids_are_read_by_another_process(client: httpx.Client) -> None:
    ids = [f"large-{k:0100}" for k in range(1_500)]
    assert ask(client, *ids).status_code == 200
    results = label(client, **dict.fromkeys(ids, 1)).json()["results"]
    assert results == ["joined"] * 1_500


def test_what_becomes_of_labels_is_counted(client: httpx.Client) -> None:
    before = scrape(client)
    ask(client, "c1", "c2", "c3")
    label(client, c1=1)
    label(client, c1=1, never=1)

    def counted() -> bool:
        found = scrape(client)

        def more(name: str, **labels: str) -> float:
            return sample(found, name, **labels) - sample(before, name, **labels)

        return (
            more("funnel_asked_total") == 3
            and more("funnel_labels_total", result="joined") == 1
            and more("funnel_labels_total", result="duplicate") == 1
            and more("funnel_labels_total", result="waiting") == 1
            and more("funnel_open_questions") == 2
            and more("funnel_label_delay_seconds_count") == 1
            and 0 < sample(found, "funnel_label_coverage") < 1
            and 0 <= sample(found, "funnel_given_accuracy", window="rolling") <= 1
            and sample(found, "funnel_open_bytes") > 0
            and sample(found, "funnel_oldest_question_seconds") > 0
        )

    wait_for(counted)


def test_rows_are_asked_with_ids_and_labelled(tmp_path: Path) -> None:
    rows, labels = records(0, 20)
    with serving(tmp_path, batch_size=20, max_wait_ms=10) as running, running.client() as client:
        body = {"ids": ["a"], "labels": ["stay"]}
        assert client.post("/labels", json=body).status_code == 503
        client.post("/learn?wait=applied", json={"rows": rows, "labels": labels})
        one = {"row": rows[0], "id": "one"}
        assert client.post("/predict", json=one).status_code == 200
        two = {"rows": rows[:3], "ids": ["a", "b", 7]}
        answer = client.post("/predict", json=two)
        assert "labels" in answer.json()
        body = {"ids": ["one", "a", "b", 7], "labels": ["stay", "stay", "new", 7]}
        answer = client.post("/labels?wait=applied", json=body)
        assert answer.json()["results"] == ["joined"] * 4
        assert "new" in client.get("/schema").text
        refused = client.post("/labels", json={"ids": ["a"], "labels": [None]})
        assert refused.status_code == 422


def test_numbers_are_labelled(tmp_path: Path) -> None:
    options = {"features": 2, "task": "regression", "batch_size": 2, "max_wait_ms": 10}
    with serving(tmp_path, **options) as running, running.client() as client:
        ask(client, "a", "b").raise_for_status()
        assert label(client, a=1.5, b=2).json()["results"] == ["joined", "joined"]
        assert np.isfinite(client.post("/predict", json={"features": [[0, 1]]}).json()["values"][0])


def test_asking_with_ids_needs_the_key_that_may_learn(tmp_path: Path) -> None:
    keys = {"api_key": "all", "learn_key": "may-learn", "predict_key": "may-predict"}
    with serving(tmp_path, **SMALL, **keys) as running:

        def status(key: str, **more: str) -> int:
            with running.client(Authorization=f"Bearer {key}", **more) as client:
                return ask(client, "a").status_code

        assert status("all") == 200
        assert status("may-learn") == 403
        assert status("may-predict") == 403
        header = {"Funnel-Learn-Key": "may-learn"}
        assert status("may-predict", **header) == 200
        assert status("wrong", **header) == 401
        assert status("may-predict", **{"Funnel-Learn-Key": "wrong"}) == 403
        with running.client(Authorization="Bearer may-predict") as client:
            assert "Funnel-Learn-Key" in ask(client, "a").json()["error"]["message"]
            assert label(client, a=1).status_code == 403
        with running.client(Authorization="Bearer may-learn") as client:
            assert label(client, a=1).status_code == 200


def test_a_question_is_not_answered_while_the_log_is_away(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    try:
        with serving(tmp_path, **SMALL, redis_url=redis.url) as running, running.client() as client:
            ask(client, "a").raise_for_status()
            redis.kill()
            answer = ask(client, "b")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "log_unavailable")
            without = client.post("/predict", json={"features": [[0, 1]]})
            assert without.status_code == 200
    finally:
        redis.kill()


def test_ids_are_made_on_request(client: httpx.Client) -> None:
    body = {"features": [[0, 1], [1, 0]]}
    answer = client.post("/predict?track=true", json=body).json()
    assert len(set(answer["ids"])) == 2
    assert label(client, **dict.fromkeys(answer["ids"], 1)).json()["results"] == ["joined"] * 2
    assert client.post("/predict?track=true", json=body | {"ids": ["a", "b"]}).status_code == 422
    assert "ids" not in client.post("/predict?track=false", json=body).json()


def test_a_column_of_rows_holds_the_ids(tmp_path: Path) -> None:
    rows, labels = records(0, 20)
    with serving(tmp_path, batch_size=20, max_wait_ms=10) as running, running.client() as client:
        client.post("/learn?wait=applied", json={"rows": rows, "labels": labels})
        body = "order,plan,age\n1,vip,41\n2,basic,30\n"
        csv = {"Content-Type": "text/csv"}
        answer = client.post("/predict?id=order", content=body, headers=csv)
        assert (answer.status_code, len(answer.json()["labels"])) == (200, 2)
        found = label(client, **{"1": "stay", "2": "churn"}).json()["results"]
        assert found == ["joined", "joined"]
        assert "order" not in client.get("/schema").text
        for query, text, field in [
            ("order", "order,age\n1,2\n1,3\n", "ids"),
            ("order", "order,age\n,2\n1,3\n", "order"),
            ("nothing", "order,age\n1,2\n", "nothing"),
        ]:
            refused = client.post(f"/predict?id={query}", content=text, headers=csv)
            assert (refused.status_code, refused.json()["error"]["field"]) == (422, field)
        both = {"rows": [{"order": 1}], "ids": ["a"]}
        assert client.post("/predict?id=order", json=both).status_code == 422
        more = orjson.dumps({"row": rows[0] | {"order": "x"}})
        lines = {"Content-Type": "application/x-ndjson"}
        assert client.post("/predict?id=order", content=more, headers=lines).status_code == 200
        assert label(client, x="stay").json()["results"] == ["joined"]


def test_dense_features_have_no_column_of_ids(client: httpx.Client) -> None:
    assert client.post("/predict?id=a", json={"features": [[0, 1]]}).status_code == 422


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/octet-stream"])
def test_dense_features_are_asked_with_ids_in_every_format(client: httpx.Client, kind: str) -> None:
    features, ids = np.array([[0, 1], [1, 0]], np.float32), [f"{kind} 1", f"{kind} 2"]
    if kind == "application/x-ndjson":
        each = zip(features.tolist(), ids, strict=True)
        body = b"\n".join(orjson.dumps({"features": row, "id": own}) for row, own in each)
    else:
        filled_up = np.array([own.encode() for own in ids]).view(np.uint8).reshape(2, -1)
        body = save({"features": features, "ids": filled_up})
    answer = client.post("/predict", content=body, headers={"Content-Type": kind})
    assert answer.json() == client.post("/predict", json={"features": features.tolist()}).json()
    found = label(client, **dict.fromkeys(ids, 1)).json()["results"]
    assert found == ["joined", "joined"]


def test_before_anything_is_learned_nothing_can_be_asked_or_labelled(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    lines = {"Content-Type": "application/x-ndjson"}
    try:
        with serving(tmp_path, redis_url=redis.url) as running, running.client() as client:
            dense, rows = [[0.5] * 784], [{"age": 41, "order": "a"}]
            line = orjson.dumps({"row": rows[0], "id": "a"})
            refused = [
                client.post("/predict", json={"features": dense, "ids": ["a"]}),
                client.post("/predict?track=true", json={"features": dense}),
                client.post("/predict", json={"rows": rows, "ids": ["a"]}),
                client.post("/predict?id=order", json={"rows": rows}),
                client.post("/predict", content=line, headers=lines),
                client.post("/labels", json={"ids": ["a"], "labels": [1]}),
            ]
            for answer in refused:
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")
                assert "nothing is learned yet" in answer.json()["error"]["message"]
            with redis.client() as direct:
                early = orjson.dumps({"ids": ["a"], "labels": ["stay"]})
                direct.xadd("funnel:{auto}:log", {"labels": early})
            found, labels = records(0, 20)
            client.post("/learn?wait=applied", json={"rows": found, "labels": labels})
            wait_for(lambda: client.get("/model").json()["examples_learned"] == 20)
            assert client.post("/predict", json={"rows": rows, "ids": ["b"]}).status_code == 200
            assert label(client, b="stay").json()["results"] == ["joined"]
    finally:
        redis.kill()


def test_with_async_an_answer_does_not_wait_for_the_log(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    options = SMALL | {"track": "async", "redis_url": redis.url}
    try:
        with serving(tmp_path, **options) as running, running.client() as client:
            ask(client, "a").raise_for_status()
            with redis.client() as direct:
                wait_for(lambda: direct.xlen(ASKED) == 1)
            assert label(client, a=1).json()["results"] == ["joined"]
            redis.kill()
            assert ask(client, "b", "c").status_code == 200
            wait_for(lambda: sample(scrape(client), "funnel_lost_questions_total") == 2)
    finally:
        redis.kill()


def test_a_question_times_out_over_http(tmp_path: Path) -> None:
    options = SMALL | {"label_timeout": "1s:2"}
    with serving(tmp_path, **options) as running, running.client() as client:
        ask(client, "a", "b").raise_for_status()
        wait_for(lambda: client.get("/model").json()["examples_learned"] == 2)
        assert sample(scrape(client), "funnel_labels_total", result="timeout") == 2


def test_the_stream_of_questions_stays_within_its_bytes(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    options = SMALL | {"join_bytes": "100kB", "redis_url": redis.url}
    try:
        with serving(tmp_path, **options) as running, running.client() as client:
            for k in range(0, 1_200, 3):
                ask(client, f"{k}", f"{k + 1}", f"{k + 2}").raise_for_status()
            with redis.client() as direct:
                wait_for(lambda: sample(scrape(client), "funnel_open_bytes") <= 100 << 10)
                for k in range(1_200, 2_100, 3):
                    ask(client, f"{k}", f"{k + 1}", f"{k + 2}").raise_for_status()
                wait_for(lambda: (direct.memory_usage(ASKED) or 0) < 300 << 10)
            evicted = "funnel_evicted_questions_total"
            wait_for(lambda: sample(scrape(client), evicted) > 400)
            assert label(client, **{"2099": 1, "0": 1}).json()["results"][0] == "joined"
    finally:
        redis.kill()
