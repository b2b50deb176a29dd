"""A real Prometheus scrapes a real service: every panel and every alert has data."""

import contextlib
import json
import math
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from streams.batch import Batch
from tests.support.harness import SAFETENSORS, ServiceProcess, serving, wait_for
from tests.support.named import records
from tests.support.prometheus import prometheus, query
from tests.support.states import a_batch

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads(
    (ROOT / "docker/grafana/provisioning/dashboards/funnel.json").read_text(encoding="utf-8")
)
CONFIG = ROOT / "docker/prometheus/prometheus.yml"
RULES = ROOT / "docker/prometheus/rules/funnel.yml"

OPTIONS = {
    "features": 6,
    "classes": 3,
    "batch_size": 20,
    "max_wait_ms": 50,
    "max_backlog": 1,
    "shadow": "adagrad",
}
OF_NUMBERS = {"features": 3, "task": "regression", "batch_size": 20, "max_wait_ms": 50}
OF_QUANTILES = OF_NUMBERS | {"task": "quantile:0.1,0.9"}
OF_ROWS = {"schema": "auto", "table_bits": 12, "batch_size": 20, "max_wait_ms": 50}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus"),
]


@dataclass(frozen=True)
class Watched:
    """A Prometheus, and the addresses of the services that it scrapes."""

    client: httpx.Client
    instances: list[str]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("prometheus")
    rules = directory / "rules.yml"
    rules.write_text(yaml.safe_dump(wakened(yaml.safe_load(RULES.read_text()))))
    shutil.copy(CONFIG.parent / "predict_key", directory)
    with (
        serving(directory / "dense", **OPTIONS) as service,
        serving(directory / "rows", **OF_ROWS) as of_rows,
        serving(directory / "numbers", **OF_NUMBERS) as of_numbers,
        serving(directory / "quantiles", **OF_QUANTILES) as of_quantiles,
        recovered(service),
        busy(service),
        busy_with_rows(of_rows),
        busy_with_numbers(of_numbers),
        busy_with_numbers(of_quantiles),
        serving(directory / "predictor", **predictor_of(service)) as predictor,
    ):
        all_of_them = service, of_rows, of_numbers, of_quantiles, predictor
        instances = [f"127.0.0.1:{one.port}" for one in all_of_them]
        with prometheus(directory, hurried(instances, rules)) as client:
            yield Watched(client, instances)


def predictor_of(service: ServiceProcess) -> dict[str, object]:
    """Return the settings of a process that answers with the checkpoints of a service."""
    with service.client() as client:
        client.post("/checkpoint").raise_for_status()
    return {"role": "predict", "data_dir": str(service.directory / "data")}


def hurried(instances: list[str], rules: Path) -> dict[str, Any]:
    """Return the configuration of the containers, for other addresses and with less patience."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    config["rule_files"] = [str(rules)]
    config["scrape_configs"][0]["static_configs"] = [{"targets": instances}]
    return config


def wakened(rules: dict[str, Any]) -> dict[str, Any]:
    """Return the rules such that an alert fires as soon as all that it compares is there.

    With ``bool`` a comparison is 0 or 1 instead of nothing where it does not hold; what is but
    excepted, whatever it is, would then except all. There is no data from minutes ago.
    """
    for rule in rules["groups"][0]["rules"]:
        expr = re.split(r"\sunless on ", rule["expr"])[0]
        rule["expr"] = re.sub(
            r"\{[^}]*\}|([=!]=|[<>]=?)",
            lambda found: found[0] + (" bool" if found[1] else ""),
            re.sub(r" offset \w+", "", expr),
        )
        rule.pop("for", None)
    return rules


@contextlib.contextmanager
def recovered(service: ServiceProcess) -> Iterator[None]:
    """Learn, let labels mean nothing for a while, and go on until that is recovered from."""
    rng = np.random.default_rng(0)
    with service.client() as client:
        for k in range(400):
            batch = a_batch(k, n=100)
            if 40 <= k < 50:
                batch = Batch(batch.features, rng.permutation(batch.labels))
            client.post("/learn?wait=applied", content=batch.to_bytes(), headers=SAFETENSORS)
            if any(event["recovery_examples"] for event in client.get("/drift").json()["events"]):
                break
        else:
            raise AssertionError(client.get("/drift").text)
    yield


@contextlib.contextmanager
def busy(service: ServiceProcess) -> Iterator[None]:
    """Learn, predict, ask, and send what is wrong or too much, until somebody is done."""

    def work(client: httpx.Client, k: int) -> None:
        batch, few = a_batch(k), a_batch(k, n=5)
        client.post("/predict", json={"features": batch.features.tolist()})
        asked = {"features": batch.features[:2].tolist(), "ids": [f"{k}-0", f"{k}-1"]}
        client.post("/predict", json=asked)
        client.post("/labels", json={"ids": [f"{k}-0"], "labels": batch.labels[:1].tolist()})
        for body in (b"x", few.to_bytes(), few.to_bytes()):
            client.post("/learn", content=body, headers=SAFETENSORS)
        client.post("/learn?wait=applied", content=batch.to_bytes(), headers=SAFETENSORS)

    with repeated(service, work):
        yield


@contextlib.contextmanager
def busy_with_rows(service: ServiceProcess) -> Iterator[None]:
    """Learn rows until somebody is done."""

    def work(client: httpx.Client, k: int) -> None:
        rows, labels = records(k)
        client.post("/learn?wait=applied", json={"rows": rows, "labels": labels})

    with repeated(service, work):
        yield


@contextlib.contextmanager
def busy_with_numbers(service: ServiceProcess) -> Iterator[None]:
    """Learn numbers until somebody is done."""

    def work(client: httpx.Client, k: int) -> None:
        features = np.random.default_rng(k).normal(size=(20, 3))
        body = {"features": features.tolist(), "labels": features.sum(axis=1).tolist()}
        client.post("/learn?wait=applied", json=body)

    with repeated(service, work):
        yield


@contextlib.contextmanager
def repeated(
    service: ServiceProcess, work: Callable[[httpx.Client, int], object]
) -> Iterator[None]:
    done = threading.Event()

    def run() -> None:
        with service.client() as client:
            for k in count(1):
                if done.wait(0.05):
                    return
                work(client, k)

    worker = threading.Thread(target=run)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()


def label_values(client: httpx.Client, definition: str) -> list[str]:
    """Return what Grafana offers for a template variable."""
    found = re.fullmatch(r"label_values\((\w+(?:\{.*\})?), (\w+)\)", definition)
    assert found is not None
    metric, label = found.groups()
    answer = client.get(f"/api/v1/label/{label}/values", params={"match[]": metric})
    return list(answer.json()["data"])


def filled_in(client: httpx.Client, expr: str) -> str:
    """Return an expression as Grafana would send it, with everything chosen that can be."""
    expr = expr.replace("$__rate_interval", "10s")
    for variable in DASHBOARD["templating"]["list"]:
        values = label_values(client, variable["definition"].replace("$model", ".+"))
        assert values, variable["definition"]
        chosen = "|".join(values) if variable["multi"] else values[0]
        expr = expr.replace(f"${variable['name']}", chosen)
    return expr


EXPRESSIONS = [
    *(target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])),
    *(annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]),
]


def test_every_expression_of_the_dashboard_has_data(watched: Watched) -> None:
    wait_for(lambda: query(watched.client, 'funnel_accuracy{learner="adagrad"}'))
    empty: set[str] = set(EXPRESSIONS)

    def is_filled() -> bool:
        nonlocal empty
        values = {e: query(watched.client, filled_in(watched.client, e)) for e in EXPRESSIONS}
        empty = {e for e, found in values.items() if all(map(math.isnan, found))}
        return not empty

    with contextlib.suppress(TimeoutError):
        wait_for(is_filled, 20)
    assert empty == set()


def test_the_row_of_numbers_is_empty_for_classes(watched: Watched) -> None:
    dense, rows, *of_numbers, _ = watched.instances
    found = [panel["title"] for panel in DASHBOARD["panels"]]
    start = found.index("User: how far off are numbers?")
    panels = DASHBOARD["panels"][start + 1 : found.index("User: do labels come?")]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(expressions) > 5
    for expr in expressions:
        own = expr.replace("$learner", ".+")
        for instance in (dense, rows):
            assert query(watched.client, own.replace("$instance", instance)) == [], expr
        of_all = "|".join(of_numbers)
        wait_for(partial(query, watched.client, own.replace("$instance", of_all)))


def test_every_alert_has_data_to_judge_by(watched: Watched) -> None:
    names = {rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
    active: list[dict[str, Any]] = []

    def all_are_active() -> bool:
        nonlocal active
        active = watched.client.get("/api/v1/alerts").json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in active} == names

    with contextlib.suppress(TimeoutError):
        wait_for(all_are_active, 20)
    assert {alert["labels"]["alertname"] for alert in active} == names
    for alert in active:
        assert any(one in alert["annotations"]["summary"] for one in watched.instances)
        assert "no value" not in str(alert["annotations"])
        assert "error" not in str(alert["annotations"])
