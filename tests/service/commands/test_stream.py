"""`funnel stream` as a user runs it: what it sends, and what it writes meanwhile."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from service.cli import main
from tests.support.harness import ServiceProcess, free_port, wait_for


@pytest.mark.parametrize(
    ("labels", "is_warned"), [(("apple", "banana"), True), (("2019", "2020"), True), ("01", False)]
)
def test_names_of_classes_do_not_reach_the_service(
    labels: tuple[str, str], is_warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("a,y\n" + "".join(f"1,{label}\n" for label in labels))
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # it answers 501 to any request
    with server, ThreadPoolExecutor(1) as answering:
        answering.submit(server.serve_forever)
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert main(["stream", str(path), "--to", url]) == 1
        finally:
            server.shutdown()
    errors = capsys.readouterr().err
    warning = (
        "the service learns numbers, not names; send other files only if each has all of these"
    )
    assert (warning in errors) == is_warned
    if is_warned:
        assert f"0 = {labels[0]}, 1 = {labels[1]}" in errors


@pytest.mark.parametrize("scheme", ["http", "redis"])
def test_a_dead_address_is_named_at_once(scheme: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("a,y\n1,0\n2,1\n")
    url = f"{scheme}://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "service.cli", "stream", str(path), "--to", url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "trying again" in line)
        finally:
            process.terminate()
    assert f"trying again for up to 120 s: {url}: " in line
    assert "refused" in line


def test_a_file_of_words_waits_for_a_service_that_starts_later(tmp_path: Path) -> None:
    path = tmp_path / "fruits.csv"
    path.write_text("x,y,label\n" + "1,2,apple\n3,4,banana\n" * 20)
    service = ServiceProcess(tmp_path, {"model": None, "max_wait_ms": 20})
    command = [sys.executable, "-m", "service.cli", "stream", str(path), "--to", service.url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert any("trying again" in line for line in process.stderr)
            service.start()
            assert process.wait(60) == 0
            with service.client() as client:
                wait_for(lambda: client.get("/model").json()["examples_learned"] == 40)
                assert client.get("/schema").json()["labels"] == ["apple", "banana"]
        finally:
            process.kill()
            service.kill()
