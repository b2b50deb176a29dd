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
    with serving(path, model="auto", effort="full") as service, service.client() as client:
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


def test_the_weights_of_its_linear_experts_can_be_read(client: httpx.Client) -> None:
    wait_for(lambda: client.get("/features").json()["features"])


def test_an_explanation_is_refused_by_name(client: httpx.Client) -> None:
    rows, _ = rows_of(7, 2)
    answer = client.post("/predict?explain=3", json={"rows": rows})
    assert answer.status_code == 422
    assert "answers of the model auto are not sums" in answer.json()["error"]["message"]
