"""The examples that /docs offers work when they are tried, whatever the model."""

from pathlib import Path

import httpx
import pytest

from tests.support.harness import serving

JSON, NDJSON = "application/json", "application/x-ndjson"
MODELS = {
    "dense features": {"features": 5, "classes": 2},
    "numbers": {"features": 3, "task": "regression"},
    "rows": {"schema": "auto", "table_bits": 8},
    "nothing chosen": {"model": None, "families": "linear", "table_bits": 8},
}


def example(client: httpx.Client, path: str, kind: str = JSON) -> object:
    document = client.get("/openapi.json").json()
    return document["paths"][path]["post"]["requestBody"]["content"][kind]["example"]


def learned(client: httpx.Client) -> int:
    found: int = client.get("/model").json()["examples_learned"]
    return found


def try_all(client: httpx.Client) -> None:
    """Try the examples of both routes, as they are offered at that moment."""
    body = example(client, "/learn")
    client.post("/learn?wait=applied", json=body).raise_for_status()
    line = example(client, "/learn", NDJSON)
    assert isinstance(line, str)
    client.post(
        "/learn?wait=applied", content=line.encode(), headers={"Content-Type": NDJSON}
    ).raise_for_status()
    client.post("/predict", json=example(client, "/predict")).raise_for_status()


@pytest.mark.parametrize("name", MODELS)
def test_the_examples_of_learn_and_predict_work(name: str, tmp_path: Path) -> None:
    with serving(tmp_path, **MODELS[name], batch_size=1) as service, service.client() as client:
        try_all(client)
        assert learned(client) == 2


def test_the_examples_of_rows_have_the_columns_and_a_label_of_the_model(tmp_path: Path) -> None:
    csv = b"size,at,fine,label\n1.5,2026-05-01T08:30:00Z,true,7\n2,2026-05-02T08:30:00Z,false,8\n"
    options = {"schema": "auto", "table_bits": 8, "batch_size": 1}
    with serving(tmp_path, **options) as service, service.client() as client:
        client.post(
            "/learn?wait=applied", content=csv, headers={"Content-Type": "text/csv"}
        ).raise_for_status()
        body = example(client, "/learn")
        assert isinstance(body, dict)
        assert [set(row) for row in body["rows"]] == [{"size", "at", "fine"}]
        assert body["labels"] == [7]
        try_all(client)
