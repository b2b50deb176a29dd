"""Requests of one row to one process and to several, a part of `tests.benchmarks.service`.

The clients are a process of their own on the same cores. The CPU of a request is that of all
processes of the service, without the log's server and the clients.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save

from streams.batch import Batch
from tests.benchmarks.measure import Plan, ratios, show, spawn, table
from tests.benchmarks.parts.load import BYTES, Client, at_once
from tests.support.harness import SAFETENSORS, ServiceProcess, serving, wait_for
from tests.support.metrics import sample, scrape

FEATURES, CONNECTIONS = 10, 32
OPTIONS = {
    "features": FEATURES, "classes": 2, "batch_size": 1_000, "max_wait_ms": 50,
    "snapshot_every": "1s",
}  # fmt: skip
TICK = os.sysconf("SC_CLK_TCK")


class Found(NamedTuple):
    """What was measured of one arrangement of processes."""

    rate: float
    """Answered requests a second."""
    micros: float
    """Microseconds of CPU of a request."""


def run(plan: Plan) -> str:
    """Measure requests of one row for `/learn` and `/predict`."""
    ways: dict[tuple[str, str], Callable[[], contextlib.AbstractContextManager[Served]]] = {
        (path, name): way
        for path in ("/learn", "/predict")
        for name, way in (("one process", alone), ("WORKERS=2", with_a_worker))
    } | {("/predict", "two of ROLE=predict"): two_predictors}
    found: dict[tuple[str, str], list[Found]] = {way: [] for way in ways}
    for _ in plan.rounds("processes"):
        for way, serve in ways.items():
            with serve() as served:
                found[way].append(_measured(served, way[0], plan.seconds))
    lines = []
    for (path, name), own in found.items():
        one = [each.rate for each in found[path, "one process"]]
        rates = [each.rate for each in own]
        micros = show([each.micros for each in own], ",.0f")
        lines.append((path, name, show(rates, ",.0f"), ratios(rates, one), micros))
    head = ("route", "processes", "requests/s", "of one process's", "CPU of a request, µs")
    return table(head, lines)


class Served(NamedTuple):
    """Processes that serve."""

    urls: Sequence[str]
    """Their addresses, which the connections of the clients share."""
    pids: Sequence[int]


def a_batch(rows: int) -> bytes:
    """Return examples as safetensors."""
    features = np.random.default_rng(0).normal(size=(rows, FEATURES)).astype(np.float32)
    return Batch(features, (features[:, 0] > 0).astype(np.int64)).to_bytes()


@contextlib.contextmanager
def _begun(workers: int) -> Iterator[ServiceProcess]:
    """Run a service that has learned something."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as scratch,
        serving(Path(scratch), **OPTIONS, workers=workers) as service,
        service.client() as client,
    ):
        client.post(
            "/learn?wait=applied", content=a_batch(1_000), headers=SAFETENSORS
        ).raise_for_status()
        yield service


@contextlib.contextmanager
def alone() -> Iterator[Served]:
    """Run one process."""
    with _begun(1) as service:
        yield Served([service.url], [service.process.pid])


@contextlib.contextmanager
def with_a_worker() -> Iterator[Served]:
    """Run a process with a worker."""
    with _begun(2) as service, service.client() as client:
        wait_for(lambda: sample(scrape(client), "funnel_workers") == 2)
        own = service.process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
        workers = [pid for pid, command in commands.items() if b"service.worker" in command]
        yield Served([service.url], [own, *workers])


@contextlib.contextmanager
def two_predictors() -> Iterator[Served]:
    """Run two processes that only answer, on the folder of a learner that is idle."""
    with _begun(1) as learner, tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        with learner.client() as client:
            client.post("/checkpoint").raise_for_status()
        options = {"role": "predict", "data_dir": str(learner.directory / "data")}
        with (
            serving(Path(scratch) / "a", **options) as one,
            serving(Path(scratch) / "b", **options) as other,
        ):
            yield Served([one.url, other.url], [one.process.pid, other.process.pid])


def _measured(served: Served, path: str, seconds: float) -> Found:
    """Post one row in a loop on many connections, and count the answers."""
    stop, count = spawn.Event(), spawn.Value("q", 0)
    body = a_batch(1) if path == "/learn" else save({"features": np.zeros((1, FEATURES), "f4")})
    client = spawn.Process(target=_post, args=(list(served.urls), path, body, stop, count))
    client.start()
    try:
        wait_for(lambda: count.value > 500)
        began, before, cpu = time.perf_counter(), count.value, _cpu(served.pids)
        time.sleep(seconds)
        answered, spent = count.value - before, time.perf_counter() - began
        used = _cpu(served.pids) - cpu
    finally:
        stop.set()
        client.join()
    if client.exitcode:
        raise RuntimeError("the client failed")
    return Found(answered / spent, 1e6 * used / answered)


def _cpu(pids: Sequence[int]) -> float:
    """Return the seconds of CPU that processes have used."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def _post(
    urls: Sequence[str], path: str, body: bytes, stop: Event, count: "Synchronized[int]"
) -> None:
    """Post a body on many connections, and count the answers; a full backlog is one, too."""

    def run(number: int) -> None:
        url = urls[number % len(urls)]
        with contextlib.closing(Client(url, path, BYTES)) as client:
            while not stop.is_set():
                answer = client.post(body)
                if answer.status == 429:
                    stop.wait(answer.retry_after)
                    continue
                answer.expect(202 if path == "/learn" else 200)
                with count.get_lock():
                    count.value += 1

    at_once(run, CONNECTIONS)
