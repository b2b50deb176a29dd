"""Each request has an id, in its answer and in what is logged meanwhile."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.monitoring.logs import REQUEST, JSONFormatter, TextFormatter
from tests.support.cli import environment
from tests.support.harness import ServiceProcess, free_port, serving, wait_for


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("ids")
    with serving(directory, features=2, classes=2, api_key="hush") as running:
        yield running


def id_of(answer: httpx.Response) -> str:
    [found] = answer.headers.get_list("X-Request-ID")
    return found


@pytest.mark.parametrize(("path", "status"), [("/health/ready", 200), ("/model", 401)])
def test_a_short_id_of_the_client_is_returned_with_answers_and_errors(
    service: ServiceProcess, path: str, status: int
) -> None:
    with service.client() as client:
        answer = client.get(path, headers={"X-Request-ID": "order-17/3"})
        assert (answer.status_code, id_of(answer)) == (status, "order-17/3")


@pytest.mark.parametrize("sent", [None, "", "a b", "x" * 65, "caf\u00e9"])
def test_other_requests_get_a_new_id(service: ServiceProcess, sent: str | None) -> None:
    headers = {} if sent is None else {"X-Request-ID": sent.encode()}
    with service.client() as client:
        first, again = (id_of(client.get("/health/live", headers=headers)) for _ in range(2))
    assert first != again
    assert len(first) == 32
    assert first.isalnum()


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("funnel", logging.WARNING, __file__, 1, message, ("x",), None)


def test_json_logs_are_an_object_a_line_with_the_request() -> None:
    token = REQUEST.set("order-17")
    try:
        line = JSONFormatter().format(record("two\nlines, %s"))
        text = TextFormatter().format(record("said %s"))
    finally:
        REQUEST.reset(token)
    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "warning", "logger": "funnel", "message": "two\nlines, x", "request": "order-17",
    }  # fmt: skip
    assert text.endswith("WARNING said x [request order-17]")
    assert "request" not in json.loads(JSONFormatter().format(record("%s")))


@pytest.mark.parametrize(("level", "is_shown"), [("info", True), ("error", False)])
def test_a_service_writes_json_logs_from_its_level_on(
    tmp_path: Path, level: str, is_shown: bool
) -> None:
    port, log = free_port(), tmp_path / "log"
    options = {"model": "logistic", "features": 2, "log-format": "json", "log-level": level}
    options |= {"port": port, "data-dir": tmp_path / "data"}
    serve = [f"--{name}={value}" for name, value in options.items()]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", *serve],
            stderr=file, env=environment(),
        )  # fmt: skip

    def is_serving() -> bool:
        return '"serving logistic on ' in log.read_text()

    try:
        wait_for(lambda: is_ready(port) and is_serving() >= is_shown)  # logged after it is ready
    finally:
        process.terminate()
        assert process.wait(60) == 0
    assert is_serving() == is_shown
    assert all(json.loads(line)["message"] for line in log.read_text().splitlines())


def is_ready(port: int) -> bool:
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/health/ready").json()
    except httpx.TransportError:
        return False
    return answer.get("learning") == "learning"
