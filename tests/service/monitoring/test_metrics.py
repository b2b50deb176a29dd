"""The metrics of the contract, as Prometheus reads them."""

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.monitoring.metrics import MAX_CLASSES, MAX_TENSORS, _optimizer
from tests.support.harness import SAFETENSORS, serving, wait_for
from tests.support.metrics import CONTRACT, CONTRACT_OF_ROWS, sample, samples, scrape
from tests.support.named import records
from tests.support.prometheus import prometheus, query
from tests.support.states import a_batch, a_state, statistics_of

SMALL = {"features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 50}

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        serving(tmp_path_factory.mktemp("service"), **SMALL, shadow="adagrad") as service,
        service.client() as client,
    ):
        for k in range(60):
            client.post("/learn?wait=applied", content=a_batch(k).to_bytes(), headers=SAFETENSORS)
        client.post("/predict", json={"features": a_batch(0).features.tolist()})
        assert client.post("/learn", content=b"x", headers=JSON).status_code == 422
        client.post("/checkpoint")
        client.get("/nothing/here/1")
        client.get("/nothing/here/2")
        wait_for(lambda: sample(scrape(client), "funnel_model_version") == 60)
        yield client.get("/metrics").text


def test_every_name_and_label_of_the_contract_exists(text: str) -> None:
    found: dict[str, set[str]] = {}
    for name, labels in samples(text):
        found.setdefault(name, set()).update(key for key, _ in labels)
    assert {name: found.get(name) for name in CONTRACT} == CONTRACT


def test_a_model_of_rows_has_series_of_its_columns(tmp_path: Path, text: str) -> None:
    rows, labels = records(0, 50)
    with (
        serving(tmp_path, schema="auto", table_bits=12, batch_size=50) as service,
        service.client() as client,
    ):
        client.post("/learn?wait=applied", json={"rows": rows, "labels": labels})
        wait_for(lambda: sample(scrape(client), "funnel_model_version") == 1)
        found = scrape(client)
    names = {name: {key for key, _ in labels} for name, labels in found}
    assert {name: names.get(name) for name in CONTRACT_OF_ROWS} == CONTRACT_OF_ROWS
    missing = sum("age" not in row for row in rows)
    assert sample(found, "funnel_missing_values_total", column="age") == missing
    assert sample(found, "funnel_column_missing_ratio", column="age") == missing / 50
    cities = len({row["city"] for row in rows})
    assert sample(found, "funnel_new_keys_total", column="city") == cities
    assert not any(name in text for name in CONTRACT_OF_ROWS), "dense features have no columns"


def test_experts_share_all_the_weight_and_shadows_are_series_of_their_own(text: str) -> None:
    found = samples(text)
    weights = [value for (name, _), value in found.items() if name == "funnel_expert_weight"]
    assert sum(weights) == pytest.approx(1.0)
    ages = [value for (name, _), value in found.items() if name == "funnel_expert_age_batches"]
    assert max(ages) == sample(found, "funnel_batches_total")
    served = sample(found, "funnel_scored_total", learner="served")
    assert sample(found, "funnel_scored_total", learner="adagrad") == served
    assert sample(found, "funnel_scale", learner="adagrad", tensor="weight") == 1.0


def test_no_label_comes_from_a_request(text: str) -> None:
    assert "/nothing" not in text
    assert (
        sample(samples(text), "funnel_http_request_seconds_count", route="other", code="404") == 2
    )


def test_a_model_of_many_classes_and_tensors_has_a_bounded_number_of_series(
    tmp_path: Path,
) -> None:
    options = SMALL | {"model": "mlp", "hidden": "2," * 60 + "2", "classes": 300}
    with serving(tmp_path, **options) as service, service.client() as client:
        client.post("/learn?wait=applied", content=a_batch(0).to_bytes(), headers=SAFETENSORS)
        wait_for(lambda: client.get("/optimizer").json()["model_version"] == 1)
        found = Counter(name for name, _ in scrape(client))
    assert found["funnel_class_recall"] == found["funnel_class_precision"] == MAX_CLASSES
    assert "funnel_confused_total" not in found
    assert found["funnel_scale"] == MAX_TENSORS


def test_the_numbers_are_those_of_the_model(text: str) -> None:
    found = samples(text)
    assert sample(found, "funnel_examples_total", source="http") == 1200
    assert sample(found, "funnel_examples_total", source="redis") == 0
    assert sample(found, "funnel_scored_total", learner="served") == 1200
    assert sample(found, "funnel_batches_total") == 60
    assert sample(found, "funnel_rejected_total", code="invalid") == 1
    assert sample(found, "funnel_checkpoints_total", result="ok") == 1
    assert sample(found, "funnel_backlog_examples") == 0
    assert sample(found, "funnel_snapshot_age_seconds") == 0
    assert sample(found, "funnel_lag_seconds") == 0
    assert sample(found, "funnel_ready") == 1
    correct = sample(found, "funnel_correct_total", learner="served")
    total = sample(found, "funnel_accuracy", learner="served", window="total")
    assert total == pytest.approx(correct / 1200)
    pairs = [(dict(key[1]), n) for key, n in found.items() if key[0] == "funnel_confused_total"]
    confused = {(own["class"], own["predicted"]): n for own, n in pairs}
    assert sum(confused.values()) == 1200
    assert sum(n for (label, predicted), n in confused.items() if label == predicted) == correct
    assert sample(found, "funnel_accuracy", learner="served", window="rolling") > total
    median = sample(found, "funnel_gain", learner="served", tensor="weight", quantile="0.5")
    top = sample(found, "funnel_gain", learner="served", tensor="weight", quantile="1")
    assert 1e-3 <= median <= top <= 1e3
    gains = "funnel_gain_distribution_bucket"
    assert sample(found, gains, learner="served", tensor="weight", le="+Inf") == 18
    assert sample(found, "funnel_step_seconds_count") == 60
    assert sample(found, "funnel_batch_examples_sum") == 1200


def test_gains_at_a_bound_have_the_bound_as_a_label() -> None:
    state = a_state()
    log_gain = state.served.tensors()["optimizer.weight.log_gain"][0]  # of the only expert
    log_gain[0, 0], log_gain[0, 1:3] = -100.0, 100.0
    shares = {
        s.labels["bound"]: s.value
        for family in _optimizer(statistics_of(state))
        for s in family.samples
        if (s.name, s.labels.get("tensor")) == ("funnel_gain_at_bound_ratio", "weight")
    }
    n = log_gain.numel()
    assert shares == {"lower": pytest.approx(1 / n), "upper": pytest.approx(2 / n)}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Prometheus)")
def test_promtool_objects_to_nothing_but_the_contracts_label(text: str) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    objections = set((checked.stdout + checked.stderr).splitlines())
    assert objections <= {'funnel_gain non-summary metrics should not have "quantile" label'}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus")
@pytest.mark.parametrize("key", ["reader", ""])
def test_a_real_prometheus_scrapes_it_with_a_key_and_without_one(tmp_path: Path, key: str) -> None:
    keys = {"api_key": "secret", "predict_key": key} if key else {}
    (tmp_path / "predict_key").write_text(key)
    with serving(tmp_path, **SMALL, **keys) as service:
        job = {
            "job_name": "funnel",
            "authorization": {"credentials_file": "predict_key"},
            "static_configs": [{"targets": [f"127.0.0.1:{service.port}"]}],
        }
        config = {"global": {"scrape_interval": "200ms"}, "scrape_configs": [job]}
        with prometheus(tmp_path, config) as client:
            wait_for(lambda: query(client, "funnel_ready") == [1])
