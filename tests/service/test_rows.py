"""A service that learns named rows: in every format, by name, and exactly through kills."""

import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import orjson
import pandas as pd
import pyarrow as pa
import pytest

from tests.support.harness import RedisProcess, ServiceProcess, free_port, serving, wait_for
from tests.support.metrics import sample, samples
from tests.support.named import records

OPTIONS = {"schema": "auto", "table_bits": 12, "batch_size": 50, "lease_seconds": 1.0}
ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that has learned 2,000 rows."""
    with serving(tmp_path_factory.mktemp("rows"), **OPTIONS) as service:
        with service.client() as client:
            for k in range(40):
                learn(client, k)
            wait_for(lambda: client.get("/model").json()["examples_learned"] == 2_000)
        yield service


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def learn(client: httpx.Client, seed: int, late: bool = False, n: int = 50) -> httpx.Response:
    rows, labels = records(seed, n, late)
    answer = client.post("/learn", json={"rows": rows, "labels": labels})
    return answer.raise_for_status()


def frame(seed: int, n: int = 50) -> pd.DataFrame:
    rows, labels = records(seed, n)
    found = pd.DataFrame(rows)
    found["at"] = pd.to_datetime(found["at"])
    return found.assign(label=[str(label) for label in labels])


def as_arrow(found: pd.DataFrame) -> bytes:
    table, sink = pa.Table.from_pandas(found, preserve_index=False), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_predictions_are_by_name_and_right(client: httpx.Client) -> None:
    rows, labels = records(1_000, 400)
    shuffled = [dict(sorted(row.items(), reverse=True)) for row in rows]
    answer = client.post("/predict", json={"rows": shuffled}).raise_for_status().json()
    hits = [a == b for a, b in zip(answer["labels"], labels, strict=True)]
    assert sum(hits) / len(hits) > 0.75
    assert set(answer["probabilities"][0]) == {"stay", "churn", "7"}
    assert sum(answer["probabilities"][0].values()) == pytest.approx(1.0, abs=1e-5)


def test_every_format_gives_the_same_predictions(client: httpx.Client) -> None:
    found = frame(2_000, 20).drop(columns="label")
    rows = orjson.loads(found.to_json(orient="records", date_format="iso"))
    bodies = {
        "application/json": orjson.dumps({"rows": rows}),
        "application/x-ndjson": b"\n".join(orjson.dumps({"row": row}) for row in rows),
        "text/csv": found.to_csv(index=False).encode(),
        ARROW: as_arrow(found),
    }
    answers = [
        client.post("/predict", content=body, headers={"Content-Type": kind}).raise_for_status()
        for kind, body in bodies.items()
    ]
    assert len({str(answer.json()["labels"]) for answer in answers}) == 1
    first, *others = ([*row.values()] for row in (a.json()["probabilities"][0] for a in answers))
    for other in others:
        assert other == pytest.approx(first, abs=1e-6)


def test_every_format_is_learned(client: httpx.Client) -> None:
    found = frame(3_000)
    rows, labels = records(3_001, 5)
    bodies = {
        "application/x-ndjson": b"\n".join(
            orjson.dumps({"row": row, "label": label})
            for row, label in zip(rows, labels, strict=True)
        ),
        "text/csv": found.to_csv(index=False).encode(),
        ARROW: as_arrow(found),
    }
    for kind, body in bodies.items():
        headers = {"Content-Type": kind, "Idempotency-Key": kind}
        answer = client.post("/learn?wait=applied", content=body, headers=headers)
        assert answer.status_code == 200, answer.text
    renamed = found.rename(columns={"label": "outcome"}).to_csv(index=False).encode()
    answer = client.post(
        "/learn?label=outcome", content=renamed, headers={"Content-Type": "text/csv"}
    )
    assert answer.status_code == 202, answer.text
    one = client.post("/learn", json={"row": rows[0], "label": labels[0]})
    assert one.json()["accepted"] == 1


def test_a_column_of_weights_is_no_feature_in_any_format(client: httpx.Client) -> None:
    found = frame(3_500).assign(w=0.0)
    rows = orjson.loads(found.drop(columns="label").to_json(orient="records", date_format="iso"))
    lines = [
        orjson.dumps({"row": row, "label": label})
        for row, label in zip(rows, found["label"], strict=True)
    ]
    bodies = {
        "application/json": orjson.dumps({"rows": rows, "labels": [*found["label"]]}),
        "application/x-ndjson": b"\n".join(lines),
        "text/csv": found.to_csv(index=False).encode(),
        ARROW: as_arrow(found),
    }
    question = {"rows": rows[:5]}
    for row in question["rows"]:
        del row["w"]
    learned = found.drop(columns="w")  # so that the statistics of the inputs are those of all rows
    sent = client.post(
        "/learn?wait=applied", content=as_arrow(learned), headers={"Content-Type": ARROW}
    )
    assert sent.status_code == 200, sent.text
    before = client.post("/predict", json=question).json()["probabilities"]
    for kind, body in bodies.items():
        headers = {"Content-Type": kind, "Idempotency-Key": f"weights {kind}"}
        answer = client.post("/learn?wait=applied&weight=w", content=body, headers=headers)
        assert answer.status_code == 200, answer.text
    after = client.post("/predict", json=question).json()["probabilities"]
    for old, new in zip(before, after, strict=True):
        # the statistics of the inputs follow all examples, whatever their weights
        assert [*new.values()] == pytest.approx([*old.values()], abs=0.05)
    assert "w" not in {column["name"] for column in client.get("/schema").json()["columns"]}
    wrong = client.post("/learn?weight=plan", json={"rows": [{"plan": "pro"}], "labels": [7]})
    assert wrong.status_code == 422
    assert "must be numbers" in wrong.json()["error"]["message"]
    none = client.post("/learn?weight=x", json={"rows": [{"plan": "pro"}], "labels": [7]})
    assert "?weight=COLUMN" in none.json()["error"]["message"]


def has_learned(client: httpx.Client, examples: int) -> bool:
    return bool(client.get("/model").json()["examples_learned"] == examples)


def test_large_requests_are_learned_and_refused_like_small_ones(tmp_path: Path) -> None:
    found = frame(5_000, 3_000).assign(w=0.5)
    sent = [found, found.assign(device="desk"), found]
    wrong = found.assign(age="old")
    headers, digests = {"Content-Type": ARROW}, []
    for size in (3_000, 100):
        options = OPTIONS | {"max_wait_ms": 600_000}
        with serving(tmp_path / f"{size}", **options) as service, service.client() as client:
            for whole in sent:
                for start in range(0, 3_000, size):
                    body = as_arrow(whole.iloc[start : start + size])
                    answer = client.post("/learn?weight=w", content=body, headers=headers)
                    assert answer.status_code == 202, answer.text
                body = as_arrow(wrong.iloc[:size])
                error = client.post("/learn?weight=w", content=body, headers=headers)
                assert error.status_code == 422
                shown = error.json()["error"]
                assert (shown["field"], shown["index"]) == ("age", 0)
            wait_for(partial(has_learned, client, 9_000))
            digests.append(client.post("/checkpoint").json()["sha256"])
    assert digests[0] == digests[1]


REFUSED = {
    "a bare list of rows": ("/predict", [{"age": 3}], None, None),
    "a bare list of rows to learn": ("/learn", [{"age": 3}], None, None),
    "a weight that is text": (
        "/learn?weight=w",
        {"rows": [{"w": None}, {"w": 1}, {"w": "heavy"}], "labels": [7, 7, 7]},
        "w",
        2,
    ),
    "a wrong kind": ("/learn", {"rows": [{"age": 3}, {"age": "old"}], "labels": [7, 7]}, "age", 1),
    "no label": ("/learn", {"rows": [{"age": 3}], "labels": [None]}, "label", 0),
    "fewer labels": ("/learn", {"rows": [{"age": 3}], "labels": []}, "labels", None),
    "dense features": ("/learn", {"features": [[1.0]], "labels": [1]}, None, None),
    "a list as a value": ("/predict", {"rows": [{"age": [1]}]}, "age", 0),
    "no rows": ("/predict", {"rows": []}, None, None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_learned_is_refused_by_row_and_column_and_moves_nothing(
    client: httpx.Client, case: str
) -> None:
    path, body, field, index = REFUSED[case]
    before = client.post("/checkpoint").json()["sha256"]
    answer = client.post(path, json=body)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    if field is not None:
        assert error["field"] == field, error
    assert error.get("index") == index, error
    assert client.post("/checkpoint").json()["sha256"] == before


def test_a_bare_list_of_rows_is_answered_with_what_to_send(client: httpx.Client) -> None:
    records = frame(0, 2).drop(columns="label").to_json(orient="records", date_format="iso")
    headers = {"Content-Type": "application/json"}
    shown = client.post("/predict", content=records, headers=headers).json()["error"]["message"]
    assert shown.endswith('send this list as {"rows": [{…}, …]}')
    shown = client.post("/learn", content=records, headers=headers).json()["error"]["message"]
    assert shown.endswith('send this list as {"rows": [{…}, …], "labels": […]}')
    body = f'{{"rows": {records}}}'
    assert client.post("/predict", content=body, headers=headers).status_code == 200


def test_a_bare_list_of_labelled_rows_is_learned(client: httpx.Client) -> None:
    rows = orjson.loads(
        frame(0, 2).drop(columns="label").to_json(orient="records", date_format="iso")
    )
    pairs = [{"row": row, "label": "stay"} for row in rows]
    answer = client.post("/learn?wait=applied", json=pairs).raise_for_status().json()
    assert answer["accepted"] == 2


def test_one_column_cannot_hold_both_labels_and_weights(client: httpx.Client) -> None:
    table, headers = frame(0).to_csv(index=False), {"Content-Type": "text/csv"}
    for query in ("label=age&weight=age", "weight=label"):
        answer = client.post(f"/learn?{query}", content=table, headers=headers)
        assert answer.status_code == 422
        assert "cannot hold both the labels and the weights" in answer.json()["error"]["message"]


def test_the_schema_and_the_columns_are_shown(client: httpx.Client) -> None:
    shown = client.get("/schema").raise_for_status().json()
    kinds = {column["name"]: column["kind"] for column in shown["columns"]}
    assert kinds == {"plan": "category", "city": "category", "at": "time", "age": "number"}
    assert set(shown["labels"]) == {"stay", "churn", 7}
    assert 0.05 < next(c for c in shown["columns"] if c["name"] == "age")["missing_ratio"] < 0.15
    model = client.get("/model").json()
    assert (model["hyperparameters"]["features"], model["hyperparameters"]["classes"]) == (4, 3)
    metrics = client.get("/metrics").text
    assert "funnel_columns 4.0" in metrics
    assert re.search(r'funnel_column_missing_ratio\{column="age"\} 0\.\d+', metrics)
    new = sample(samples(metrics), "funnel_new_keys_total", column="plan")
    assert new == len({"basic", "pro", "vip"}), "the key of a missing plan has not come yet"
    assert re.search(r'funnel_class_recall\{class="stay"\} 0\.\d+', metrics)
    assert "funnel_key_collision_ratio" in metrics


def test_the_features_that_matter_are_named_with_their_weights(client: httpx.Client) -> None:
    shown = client.get("/features?top=1000").raise_for_status().json()
    weights = {feature["name"]: feature["weights"] for feature in shown["features"]}
    assert len(client.get("/features?top=12").json()["features"]) == 12
    assert weights["plan=vip"]["stay"] > 0.2
    assert weights["age"]["stay"] > 0.2
    assert sum(weights["plan=vip"].values()) == pytest.approx(0.0, abs=1e-4)
    assert client.get("/features?top=0").status_code == 422


def test_features_tell_how_often_they_came_and_their_gain(client: httpx.Client) -> None:
    shown = client.get("/features?top=1000").raise_for_status().json()
    features = {feature["name"]: feature for feature in shown["features"]}
    learned = client.get("/model").json()["examples_learned"]
    plans = [features[f"plan={plan}"]["count"] for plan in ("basic", "pro", "vip")]
    assert min(plans) > 0.2 * learned
    assert sum(plans) == learned
    assert features["age"]["count"] + features["age is missing"]["count"] == learned
    assert features["at:age"]["count"] == learned
    assert 0.01 < features["age"]["gain"] < 100
    assert len({feature["gain"] for feature in shown["features"]}) > 10


def test_the_columns_show_what_is_missing_and_new_and_how_means_move(client: httpx.Client) -> None:
    def block() -> dict[str, dict[str, object]]:
        learn(client, 4_000)
        learn(client, 4_001)
        columns = client.get("/features?top=1").raise_for_status().json()["columns"]
        return {column["name"]: column for column in columns}

    wait_for(lambda: block()["age"]["missing"] is not None)
    found = block()
    assert list(found) == ["plan", "city", "at", "age"]
    assert [column["kind"] for column in found.values()] == [
        "category",
        "category",
        "time",
        "number",
    ]
    assert 0 < found["age"]["missing"] < 0.3
    assert 0 < found["age"]["missing_before"] < 0.3
    assert found["plan"]["new_keys"] is not None
    assert (found["plan"]["shift"], found["at"]["shift"]) == (None, None)
    assert found["age"]["shift"] is not None
    assert not any(column["is_drifting"] for column in found.values())


def test_a_model_with_hidden_layers_shows_its_columns_without_features(tmp_path: Path) -> None:
    options = OPTIONS | {"model": "mlp", "hidden": "4"}
    with serving(tmp_path, **options) as service, service.client() as client:
        assert client.get("/features").json()["columns"] == []
        learn(client, 0)
        wait_for(lambda: client.get("/features").json()["columns"])
        shown = client.get("/features").raise_for_status().json()
        assert shown["features"] == []
        assert {"plan", "age"} <= {column["name"] for column in shown["columns"]}


def test_an_answer_is_explained_by_its_largest_parts(client: httpx.Client) -> None:
    rows = [{"plan": "vip", "age": 20}, {"plan": "basic", "age": 75}]
    answer = client.post("/predict?explain=3", json={"rows": rows}).raise_for_status().json()
    assert answer["labels"] == ["stay", "stay"]
    first, second = answer["explanations"]
    assert [len(first), len(second)] == [3, 3]
    assert next(part for part in first if part["feature"] == "plan=vip")["nats"] > 0
    assert second[0]["feature"] == "age"
    assert second[0]["nats"] > 0


def test_a_request_that_changes_the_schema_is_answered_after_it_has_changed(tmp_path: Path) -> None:
    with serving(tmp_path, **OPTIONS | {"max_wait_ms": 200}) as service, service.client() as client:
        assert client.post("/predict", json={"rows": [{"age": 1}]}).status_code == 503
        assert client.get("/features").raise_for_status().json()["features"] == []
        learn(client, 0)
        learn(client, 1, late=True, n=5)
        names = [column["name"] for column in client.get("/schema").json()["columns"]]
        assert "device" in names
        assert client.post("/predict", json={"rows": [{"device": "phone"}]}).status_code == 200


def test_a_model_of_dense_features_has_no_schema(tmp_path: Path) -> None:
    with serving(tmp_path, features=2, classes=2) as service, service.client() as client:
        answer = client.get("/schema")
        assert answer.status_code == 404
        assert "another --data-dir" in answer.json()["error"]["message"]
        rows = client.post("/learn", json={"rows": [{"age": 1}], "labels": [1]})
        assert rows.status_code == 422


def test_kill_restart_and_takeover_across_schema_changes_leave_the_same_digest(
    tmp_path: Path,
) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    options = OPTIONS | {"redis_url": redis.url, "max_wait_ms": 600_000, "experts": 2}
    try:
        with serving(tmp_path / "one", **options, checkpoint_every_seconds=0.3) as first:
            other = ServiceProcess(first.directory, first.options, free_port()).start()
            with first.client() as client:
                for k in range(6):
                    learn(client, k, late=k > 3)
            with other.client() as client:
                wait_for(lambda: client.get("/features").json()["features"])
                shown = client.get("/features").json()["features"]
                assert {feature["gain"] for feature in shown} == {None}, "a standby reads no state"
            first.kill(server=False)
            with other.client() as client:
                wait_for(lambda: client.get("/model").json()["role"] == "learner")
                for k in range(6, 10):
                    learn(client, k, late=True)
                wait_for(lambda: client.get("/model").json()["examples_learned"] == 500)
                survived = client.post("/checkpoint").json()["sha256"]
            other.kill(server=False)
    finally:
        redis.kill()
    uninterrupted = OPTIONS | {"max_wait_ms": 600_000, "experts": 2}
    with serving(tmp_path / "alone", **uninterrupted) as alone, alone.client() as client:
        for k in range(10):
            learn(client, k, late=k > 3)
        wait_for(lambda: client.get("/model").json()["examples_learned"] == 500)
        assert client.post("/checkpoint").json()["sha256"] == survived


def test_a_large_table_survives_a_kill_in_chunks_of_which_a_standby_reads_on(
    tmp_path: Path,
) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    options = OPTIONS | {"table_bits": 18, "batch_size": 1_000, "max_wait_ms": 600_000}

    def learn_users(client: httpx.Client, first: int, count: int, learned: int) -> None:
        numbers = range(first, first + count)
        users = pd.DataFrame({"user": [f"user {k}" for k in numbers]})
        labels = [("stay", "churn")[k % 2] for k in numbers]
        body = as_arrow(users.assign(label=labels))
        headers = {"Content-Type": ARROW}
        client.post("/learn", content=body, headers=headers).raise_for_status()
        wait_for(lambda: client.get("/model").json()["examples_learned"] == learned)

    try:
        with serving(tmp_path / "one", **options, redis_url=redis.url) as first:
            other = ServiceProcess(first.directory, first.options, free_port()).start()
            with first.client() as client:
                learn_users(client, 0, 20_000, 20_000)
                base = [client.post("/checkpoint").json()["bytes"]]
                learn_users(client, 0, 1_000, 21_000)
                base.append(client.post("/checkpoint").json()["bytes"])
                assert min(base) > 20_000 * 200, "both sides are written whole"
                learn_users(client, 500, 1_000, 22_000)
                assert client.post("/checkpoint").json()["bytes"] < 0.3 * min(base)
                learn_users(client, 20_000, 1_000, 23_000)
            first.kill(server=False)
            with other.client() as client:
                wait_for(lambda: client.get("/model").json()["role"] == "learner")
                learn_users(client, 0, 1_000, 24_000)
                survived = client.post("/checkpoint").json()
            other.kill(server=False)
            assert list((first.directory / "data/checkpoints").rglob("chunk-*"))
    finally:
        redis.kill()
    with serving(tmp_path / "alone", **options) as alone, alone.client() as client:
        for first_user, count, learned in (
            (0, 20_000, 20_000), (0, 1_000, 21_000), (500, 1_000, 22_000),
            (20_000, 1_000, 23_000), (0, 1_000, 24_000),
        ):  # fmt: skip
            learn_users(client, first_user, count, learned)
        assert client.post("/checkpoint").json()["sha256"] == survived["sha256"]


def test_a_declaration_may_be_edited_and_the_service_started_again(tmp_path: Path) -> None:
    declared = tmp_path / "shop.toml"
    declared.write_text('new_columns = "reject"\n[columns]\nplan = "category"\nage = "number"\n')
    options = OPTIONS | {"schema": str(declared), "max_wait_ms": 20}
    rows = [{"plan": "vip", "age": 30}, {"plan": "pro", "age": 50}] * 25
    body = {"rows": rows, "labels": ["stay", "go"] * 25}
    with serving(tmp_path, **options) as service:
        with service.client() as client:
            named = [column["name"] for column in client.get("/schema").json()["columns"]]
            assert named == ["plan", "age"]
            assert client.post("/learn?wait=applied", json=body).status_code == 200
            more = {"rows": [{"plan": "vip", "city": "Ulm"}], "labels": ["stay"]}
            assert client.post("/learn", json=more).status_code == 422
        service.terminate()
        declared.write_text('[columns]\nplan = "category"\nage = "category"\ncity = "category"\n')
        service.start()
        with service.client() as client:
            wait_for(lambda: client.get("/health/ready").status_code == 200)
            assert client.get("/model").json()["examples_learned"] == 50
            assert client.post("/learn?wait=applied", json=more).status_code == 200
            shown = client.get("/schema").json()
            assert shown["new_columns"] == "add"
            assert {column["name"]: column["kind"] for column in shown["columns"]} == {
                "plan": "category",
                "age": "category",
                "city": "category",
            }
            text = {"rows": [{"plan": "vip", "age": "unknown"}], "labels": ["stay"]}
            assert client.post("/learn?wait=applied", json=text).status_code == 200


def test_rows_that_come_during_replay_wait_for_the_schema_that_is_replayed(tmp_path: Path) -> None:
    """Before, they were checked against the declared schema alone, and refused for good."""
    declared = tmp_path / "shop.toml"
    declared.write_text('[columns]\nplan = "category"\n')
    rows = [{"plan": ("pro", "vip")[k % 2], "n": k} for k in range(1_000)]
    labels = ["stay", "go"] * 500
    with serving(tmp_path, **OPTIONS | {"schema": str(declared), "max_wait_ms": 20}) as service:
        with service.client() as client:
            for _ in range(10):
                client.post("/learn", json={"rows": rows, "labels": labels}).raise_for_status()
            wait_for(lambda: client.get("/model").json()["examples_learned"] == 10_000)
        service.kill()
        declared.write_text('new_columns = "reject"\n[columns]\nplan = "category"\n')
        service.start()
        answers: list[httpx.Response] = []
        good = {"row": {"plan": "pro", "n": 1}, "label": "stay"}
        wrong = {"row": {"plan": "pro", "n": "abc"}, "label": "stay"}
        with service.client() as client:

            def is_taken() -> bool:
                assert client.post("/learn", json=wrong).status_code in (422, 503)
                answers.append(client.post("/learn", json=good))
                return answers[-1].status_code == 202

            wait_for(is_taken)
            assert {answer.status_code for answer in answers} <= {202, 503}
            assert all("Retry-After" in a.headers for a in answers if a.status_code == 503)
            assert client.post("/learn", json=wrong).status_code == 422
            extra = {"row": {"plan": "pro", "city": "Ulm"}, "label": "stay"}
            assert client.post("/learn", json=extra).status_code == 422


def test_what_is_given_twice_or_names_no_column_of_the_model_is_refused(
    client: httpx.Client, tmp_path: Path
) -> None:
    body = {"rows": [{"plan": "pro", "w": 1}], "labels": [7], "weights": [1]}
    twice = client.post("/learn?weight=w", json=body)
    assert (twice.status_code, twice.json()["error"]["field"]) == (422, "weights")
    del body["weights"]
    labels = client.post("/learn?label=plan", json=body)
    assert (labels.status_code, labels.json()["error"]["field"]) == (422, "label")
    dense = {"features": [[0.5, 0.5]], "labels": [1]}
    with serving(tmp_path, features=2, classes=2) as service, service.client() as other:
        for query in ("weight=w", "label=w"):
            assert other.post(f"/learn?{query}", json=dense).status_code == 422
        assert other.post("/learn", json=dense).status_code == 202


def test_the_label_column_may_be_in_a_table_that_is_predicted(tmp_path: Path) -> None:
    declared = tmp_path / "shop.toml"
    declared.write_text('new_columns = "reject"\n[columns]\nplan = "category"\n')
    table = "plan,label\npro,stay\nvip,go\n"
    options = OPTIONS | {"schema": str(declared), "max_wait_ms": 20}
    with serving(tmp_path, **options) as service, service.client() as client:
        client.headers["Content-Type"] = "text/csv"
        assert client.post("/learn?wait=applied", content=table).status_code == 200
        assert client.post("/predict", content=table).status_code == 200
        assert client.post("/predict", content="plan,x\npro,1\n").status_code == 422
