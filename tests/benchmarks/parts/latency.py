"""The latency of predictions, idle and while learning: a part of `tests.benchmarks.service`."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from safetensors.numpy import save

from tests.benchmarks.measure import (
    Plan,
    batches,
    encoded,
    flat_out,
    learned,
    ratios,
    show,
    spawn,
    table,
)
from tests.benchmarks.parts.learning import backlog
from tests.benchmarks.parts.load import latencies
from tests.benchmarks.parts.peers import INSTALL
from tests.support.harness import free_port, serving, wait_for

REQUEST_RATES = (100, 1_000)
"""Requests per second."""
SETTLED = 50_000
"""Examples to learn before the flow is steady."""
FILL_SECONDS = 120.0
"""Longest wait in seconds until the log holds enough examples."""
BATCH = 100
WARM_SECONDS = 1.0
"""Seconds of requests that do not count, because a server's first answers are slower."""
IDLE, PEER = "Funnel, idle", "LitServe, which does not learn"
BUSY, LOG = "Funnel, learning flat out, senders pressing", "Funnel, learning its log flat out"
LEARNED = 60_000
"""Examples to put into the log per second of measurement; more than a service learns."""


@dataclass(frozen=True)
class Found:
    """One measurement; times in milliseconds."""

    answered: float
    """Answered requests per second."""
    p50: float
    p99: float
    learned: float = 0.0
    """Examples learned per second meanwhile."""


def measure(url: str, rate: float, seconds: float) -> Found:
    """Send requests from a separate process, and return what they took."""
    body = save({"features": batches(1000)[0].features[:1]})
    with spawn.Pool(1) as pool:
        times, answered = pool.apply(latencies, (url, body, rate, seconds))
    p50, p99 = 1000 * np.percentile(times, [50, 99])
    return Found(answered, p50, p99)


def measure_busy(url: str, client: httpx.Client, rate: float, seconds: float) -> Found:
    """Measure while the service learns."""
    began, before = time.perf_counter(), learned(client)
    found = measure(url, rate, seconds)
    speed = (learned(client) - before) / (time.perf_counter() - began)
    return Found(found.answered, found.p50, found.p99, speed)


def ask_funnel(seconds: float) -> Iterator[tuple[tuple[str, int], Found]]:
    """Measure a service idle, under pressing senders, and while it learns the rest of its log."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(Path(scratch), max_backlog=10 * LEARNED * round(seconds + 2)) as service,
        service.client() as client,
    ):
        measure(service.url, REQUEST_RATES[0], WARM_SECONDS)
        for rate in REQUEST_RATES:
            yield (IDLE, rate), measure(service.url, rate, seconds)
        with flat_out(service.url, encoded(batches(1000))):
            wait_for(lambda: learned(client) > SETTLED)
            for rate in REQUEST_RATES:
                yield (BUSY, rate), measure_busy(service.url, client, rate, seconds)
            # Each measurement also starts a client process, which takes a second or two.
            enough = LEARNED * len(REQUEST_RATES) * (seconds + 2)
            wait_for(lambda: backlog(client.get("/metrics").text) > enough, FILL_SECONDS)
        for rate in REQUEST_RATES:
            yield (LOG, rate), measure_busy(service.url, client, rate, seconds)
        if backlog(client.get("/metrics").text) < BATCH:
            raise RuntimeError("the log was empty before the measurement ended")


@contextlib.contextmanager
def litserve() -> Iterator[str]:
    """Run the peer, and yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.litserve_peer", str(port)]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError("LitServe ended; run it by hand: " + " ".join(command[1:]))
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/health").is_success
        return False

    try:
        wait_for(is_ready)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask_litserve(seconds: float) -> Iterator[tuple[tuple[str, int], Found]]:
    """Measure the peer."""
    with litserve() as url:
        measure(url, REQUEST_RATES[0], WARM_SECONDS)
        for rate in REQUEST_RATES:
            yield (PEER, rate), measure(url, rate, seconds)


def run(plan: Plan) -> str:
    """Measure Funnel and LitServe in turn in each round, and return the table."""
    has_peer = importlib.util.find_spec("litserve") is not None
    found: dict[tuple[str, int], list[Found]] = {}
    for _ in plan.rounds("latency"):
        for key, one in ask_funnel(plan.seconds):
            found.setdefault(key, []).append(one)
        for key, one in ask_litserve(plan.seconds) if has_peer else ():
            found.setdefault(key, []).append(one)
    lines = []
    for rate in REQUEST_RATES:
        peers = [one.p99 for one in found.get((PEER, rate), [])]
        for name in (IDLE, LOG, BUSY, PEER):
            if ones := found.get((name, rate)):
                p99 = [one.p99 for one in ones]
                lines.append(
                    (
                        name,
                        f"{rate:,}",
                        show([one.answered for one in ones], ",.0f"),
                        show([one.p50 for one in ones], ".1f"),
                        show(p99, ".1f"),
                        ratios(p99, peers) if peers else "",
                        show([one.learned for one in ones], ",.0f") if name in (LOG, BUSY) else "",
                    )
                )
            else:
                lines.append((name, f"{rate:,}", INSTALL, "", "", "", ""))
    head = ("`/predict`, one row", "requests/s", "answered/s", "p50, ms", "p99, ms")
    return table((*head, "p99 × LitServe's", "examples/s learned"), lines)
