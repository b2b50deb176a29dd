"""A service starts and stops as a whole, and stops nothing that another one needs."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from service.fold.networks import ModelError
from service.log.errors import LogError
from streams.producer import HTTPTarget, produce
from tests.support.harness import (
    SAFETENSORS,
    ServiceProcess,
    free_port,
    processes_naming,
    serving,
    wait_for,
)
from tests.support.states import a_batch

ROOT = Path(__file__).parents[2]
SMALL = {"features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 20}
LIMIT_SECONDS = 50.0
"""Longest time to stop; a platform kills after 60."""


@contextlib.contextmanager
def command(directory: Path, *more: str, cwd: Path = ROOT) -> Iterator["subprocess.Popen[str]"]:
    """Run `funnel serve` as an operator does."""
    arguments = ["--data-dir", str(directory), "--features", "6", "--classes", "3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "funnel_stream", "serve", "--port", "0", *arguments,
         *more],
        stderr=subprocess.PIPE, text=True, cwd=cwd,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'service/entry'}"},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def learning(service: ServiceProcess) -> Iterator[Counter[int]]:
    """Send batches meanwhile; yield the counts of the statuses of the answers."""
    statuses: Counter[int] = Counter()
    done = threading.Event()

    def send() -> None:
        with service.client() as client:
            while not done.is_set():
                answer = client.post("/learn", content=a_batch(0).to_bytes(), headers=SAFETENSORS)
                statuses[answer.status_code] += 1

    sender = threading.Thread(target=send)
    sender.start()
    try:
        wait_for(lambda: statuses[202] > 10)
        yield statuses
        before = statuses[202]
        wait_for(lambda: statuses[202] > before + 10)
    finally:
        done.set()
        sender.join()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with serving(tmp_path_factory.mktemp("first"), **SMALL) as running:
        with running.client() as client:
            client.post("/learn?wait=applied", content=a_batch(0).to_bytes(), headers=SAFETENSORS)
            client.post("/checkpoint").raise_for_status()
        yield running


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"classes": 4}, LogError),
        ({"seed": 5}, LogError),
        ({"model": "nosuch:x"}, ModelError),
        ({"device": "cuda:99"}, ModelError),
    ],
)
def test_a_twin_that_cannot_start_leaves_the_log_of_the_first_alone(
    wrong: dict[str, object], error: type[Exception], first: ServiceProcess
) -> None:
    server = first.server_pid()
    twin = ServiceProcess(first.directory, SMALL | wrong, free_port())
    with learning(first) as statuses, pytest.raises(error):
        twin.start()
    assert set(statuses) == {202}
    assert first.server_pid() == server


def test_a_twin_that_is_stopped_while_it_starts_leaves_the_log_of_the_first_alone(
    first: ServiceProcess, tmp_path: Path
) -> None:
    """Its model is built for as long as a pipe is open, and its log is there meanwhile."""
    (tmp_path / "slow.py").write_text(
        "from pathlib import Path\n"
        "def model(features, classes):\n"
        "    Path('building').touch()\n"
        "    Path('pipe').read_text()\n"
        "    raise RuntimeError('no model')\n"
    )
    os.mkfifo(tmp_path / "pipe")
    server, data = first.server_pid(), first.directory / "data"
    with learning(first) as statuses, command(data, "--model", "slow:model", cwd=tmp_path) as twin:
        wait_for((tmp_path / "building").exists)
        twin.send_signal(signal.SIGTERM)
        assert twin.stderr is not None
        assert any("stopped before" in line for line in twin.stderr)
        (tmp_path / "pipe").write_text("")
        assert twin.wait(60) == 0
    assert set(statuses) == {202}
    assert first.server_pid() == server


def test_a_standby_that_is_stopped_leaves_the_log_of_the_first_alone(
    first: ServiceProcess,
) -> None:
    server = first.server_pid()
    twin = replace(first, port=free_port()).start()
    with learning(first) as statuses:
        assert twin.terminate() == 0
    assert set(statuses) == {202}
    assert first.server_pid() == server


def test_a_twin_of_another_spec_is_refused_before_there_is_a_checkpoint(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL, checkpoint_every_seconds=3600) as first:
        with first.client() as client:
            client.post("/learn?wait=applied", content=a_batch(0).to_bytes(), headers=SAFETENSORS)
        assert not list((tmp_path / "data/checkpoints").rglob("*.safetensors"))
        twin = ServiceProcess(tmp_path, SMALL | {"features": 7}, free_port())
        with (
            learning(first) as statuses,
            pytest.raises(LogError, match="FEATURES is 6 there and 7 here"),
        ):
            twin.start()
        assert set(statuses) == {202}


def test_a_start_that_fails_alone_ends_its_log_and_does_not_say_that_it_stops(
    tmp_path: Path,
) -> None:
    with command(tmp_path / "data", "--model", "nosuch:x") as failing:
        _, errors = failing.communicate(timeout=60)
    assert failing.returncode == 1
    assert "stopping" not in errors
    assert "Traceback" not in errors
    assert processes_naming(tmp_path) == set()


@pytest.mark.parametrize("seconds", [0.15, 0.4, 0.8, 1.5, 2.5])
def test_sigterm_during_the_start_is_an_orderly_end(seconds: float, tmp_path: Path) -> None:
    """The moment is chosen by time: imports notify nobody."""
    with command(tmp_path / "data") as starting:
        with contextlib.suppress(subprocess.TimeoutExpired):
            starting.wait(seconds)
        starting.send_signal(signal.SIGTERM)
        _, errors = starting.communicate(timeout=60)
    assert starting.returncode in (0, -signal.SIGTERM)  # the interpreter itself had not started
    assert "Traceback" not in errors
    assert processes_naming(tmp_path) == set()


@pytest.mark.slow
def test_a_hung_log_does_not_hold_up_the_end_for_longer_than_a_platform_waits(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, **SMALL) as service:
        with service.client() as client:
            client.post("/learn?wait=applied", content=a_batch(0).to_bytes(), headers=SAFETENSORS)
        server = service.server_pid()
        assert server is not None
        os.kill(server, signal.SIGSTOP)
        began = time.monotonic()
        os.kill(service.process.pid, signal.SIGTERM)
        service.process.join(LIMIT_SECONDS + 10)
        assert time.monotonic() - began < LIMIT_SECONDS
        assert service.process.exitcode == 0
        assert service.server_pid() is None


def test_a_request_that_is_sent_in_part_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL) as service:
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(
                b"POST /learn HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            wait_for(lambda: is_read(client))
            began = time.monotonic()
            assert service.terminate() == 0
            assert time.monotonic() - began < 5
        assert "Traceback" not in service.log
        assert "ERROR" not in service.log


def is_read(client: socket.socket) -> bool:
    """Return whether the other end has taken all that was sent; Linux only."""
    import fcntl
    import termios

    unsent = fcntl.ioctl(client.fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(unsent, sys.byteorder) == 0


def test_every_interface_is_reached_by_both_kinds_of_address(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL, host="::") as service:
        assert f"serving logistic on http://[::]:{service.port}" in service.log
        for host in ("127.0.0.1", "[::1]", "localhost"):
            url = f"http://{host}:{service.port}"
            assert httpx.get(f"{url}/health/live").status_code == 200
            with contextlib.closing(HTTPTarget(url)) as target:
                assert produce([a_batch(0)], target).examples == 20


def test_the_loopback_of_ipv6_has_brackets_in_its_address(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL, host="[::1]") as service:
        assert f"serving logistic on http://[::1]:{service.port}" in service.log
        assert httpx.get(f"http://[::1]:{service.port}/health/live").status_code == 200


def test_only_the_owner_may_look_into_the_data_folder(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL) as service, service.client() as client:
        client.post("/learn?wait=applied", content=a_batch(0).to_bytes(), headers=SAFETENSORS)
        client.post("/checkpoint").raise_for_status()
        data = tmp_path / "data"
        found = [data, *data.rglob("*")]
        readable = [p for p in found if not p.is_socket() and p.stat().st_mode & 0o077]
        assert {p.name for p in found} >= {"checkpoints", "log", "lock", "valkey.log"}
        assert readable == []


def test_a_service_may_use_as_many_descriptors_as_its_system_allows(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL) as service:
        limits = Path(f"/proc/{service.process.pid}/limits").read_text()
        (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
        soft, hard = line.split()[3:5]
        assert soft == hard or int(soft) >= 1 << 20


def test_a_terminal_that_closes_ends_a_service_in_order_with_its_log(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL) as service:
        with service.client() as client:
            client.post("/learn?wait=applied", content=a_batch(0).to_bytes(), headers=SAFETENSORS)
        server = service.server_pid()
        assert server is not None
        os.kill(service.process.pid, signal.SIGHUP)
        service.process.join(LIMIT_SECONDS)
        assert service.process.exitcode == 0
        assert service.server_pid() is None
        wait_for(lambda: not Path(f"/proc/{server}").exists())
