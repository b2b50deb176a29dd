"""A service of all families, as a user meets it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.harness import serving, wait_for
from tests.support.metrics import sample, scrape

FAMILIES = {"linear", "mlp", "trees", "neighbours", "frequencies"}


def rows_of(seed: int, n: int = 100) -> tuple[list[dict[str, object]], list[str]]:
    """Return rows whose label is an exclusive or: no weight of one column alone says anything."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    labels: list[str] = []
    for _ in range(n):
        plan, age = ("basic", "vip")[rng.integers(2)], float(rng.uniform(20, 60))
        rows.append({"plan": plan, "age": age if rng.random() < 0.95 else None})
        labels.append("stay" if (plan == "vip") ^ (age > 40) else "churn")
    return rows, labels


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    path: Path = tmp_path_factory.mktemp("auto")
    with (
        serving(path, model="auto", effort="full", predict_ms=0) as service,
        service.client() as client,
    ):
        for k in range(25):
            rows, labels = rows_of(k)
            body = {"rows": rows, "labels": labels}
            client.post("/learn?wait=applied", json=body).raise_for_status()
        yield client


def test_it_learns_what_no_column_says_alone(client: httpx.Client) -> None:
    rows, labels = rows_of(1_000, 300)
    answer = client.post("/predict", json={"rows": rows}).raise_for_status().json()
    right = [a == b for a, b in zip(answer["labels"], labels, strict=True)]
    assert np.mean(right) > 0.85
    assert all(abs(sum(own.values()) - 1.0) < 1e-4 for own in answer["probabilities"])


def test_it_says_who_carries_the_answer(client: httpx.Client) -> None:
    wait_for(lambda: client.get("/optimizer").json()["family_weights"])
    found = client.get("/optimizer").json()
    assert found["family_weights"].keys() == FAMILIES
    assert sum(found["family_weights"].values()) == pytest.approx(1.0, abs=1e-4)
    assert found["family_weights"]["trees"] > found["family_weights"]["linear"]
    shown = scrape(client)
    trees = sample(shown, "funnel_family_weight", family="trees")
    assert trees == pytest.approx(found["family_weights"]["trees"], abs=0.2)
    assert sample(shown, "funnel_fast_batches_total") == 0


@pytest.mark.parametrize("task", ["regression", "quantile:0.1,0.5,0.9"])
def test_it_learns_numbers_that_no_column_says_alone(tmp_path: Path, task: str) -> None:
    options = {"model": "auto", "effort": "full", "task": task}
    with serving(tmp_path, **options) as service, service.client() as client:
        for k in range(25):
            rows, labels = rows_of(k)
            numbers = [100.0 if label == "stay" else 20.0 for label in labels]
            body = {"rows": rows, "labels": numbers}
            client.post("/learn?wait=applied", json=body).raise_for_status()
        rows, labels = rows_of(1_000, 300)
        answer = client.post("/predict", json={"rows": rows}).raise_for_status().json()
        found = client.get("/optimizer").json()["family_weights"]
    wanted = np.array([100.0 if label == "stay" else 20.0 for label in labels])
    assert np.abs(np.array(answer["values"]) - wanted).mean() < 16.0
    assert found.keys() == {"linear", "mlp", "trees", "neighbours", "recent"}


def test_the_weights_of_its_linear_experts_can_be_read(client: httpx.Client) -> None:
    wait_for(lambda: client.get("/features").json()["features"])


def test_an_explanation_names_the_columns_without_which_the_answer_changes(
    client: httpx.Client,
) -> None:
    body = {"rows": [{"plan": "vip", "age": 55.0, "colour": "red"}, {"age": 25.0, "plan": "vip"}]}
    answer = client.post("/predict?explain=3", json=body).raise_for_status().json()
    plain = client.post("/predict", json=body).raise_for_status().json()
    assert answer["labels"] == plain["labels"]
    for parts, probabilities in zip(answer["explanations"], plain["probabilities"], strict=True):
        assert {part["feature"] for part in parts} == {"plan", "age"}
        assert parts[0]["nats"] > 0.3, "without it the answer is less sure"
        assert parts[0]["nats"] >= abs(parts[1]["nats"])
        assert max(probabilities.values()) > 0.8


def test_the_parts_of_an_answer_are_what_it_loses_without_a_column(client: httpx.Client) -> None:
    row = {"plan": "vip", "age": 55.0}

    def odds(found: dict[str, object], label: str) -> float:
        body = {"rows": [found]}
        answer = client.post("/predict", json=body).raise_for_status().json()
        logs = {name: np.log(p) for name, p in answer["probabilities"][0].items()}
        return float(logs[label] - np.mean(list(logs.values())))

    answer = client.post("/predict?explain=2", json={"rows": [row]}).raise_for_status().json()
    label = answer["labels"][0]
    for part in answer["explanations"][0]:
        lost = odds(row, label) - odds(row | {part["feature"]: None}, label)
        assert part["nats"] == pytest.approx(lost, abs=1e-3)


def test_no_explanation_computes_more_numbers_than_there_is_room_for(tmp_path: Path) -> None:
    with serving(tmp_path, model="auto", effort="full") as service, service.client() as client:
        rows = [{"a": k, "b": k % 7, "c": k % 3} for k in range(1_000)]
        body = {"rows": rows[:700], "labels": [f"label {k}" for k in range(700)]}
        client.post("/learn?wait=applied", json=body).raise_for_status()
        answer = client.post("/predict?explain=1", json={"rows": rows})
        assert answer.status_code == 413
        assert "at most 952 rows of 3 columns" in answer.json()["error"]["message"]
        client.post("/predict?explain=1", json={"rows": rows[:2]}).raise_for_status()
