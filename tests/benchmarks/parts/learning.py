"""The speed of learning for each way to send examples: a part of `tests.benchmarks.service`."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch

from service.fold.state import State
from service.settings import load_settings
from streams.producer import RedisTarget, produce
from tests.benchmarks.measure import (
    Plan,
    batches,
    encoded,
    flat_out,
    learned,
    ratios,
    show,
    table,
)
from tests.benchmarks.parts.load import BYTES, JSON
from tests.support.harness import RedisProcess, serving, wait_for
from tests.support.states import step

BACKLOG = 400_000
"""Limit of waiting examples: more than a service learns in the second that a sender must wait."""
TICKS = os.sysconf("SC_CLK_TCK")
DRAIN_SECONDS = 600.0
"""Longest wait in seconds until every example is learned."""


def bare_fold(batch_size: int, optimizer: str, seconds: float) -> float:
    """Return the examples per second of the steps alone, in this process."""
    torch.set_num_threads(1)
    settings = load_settings({"model": "logistic", "optimizer": optimizer})
    state = State(settings.spec, settings.hyperparameters, torch.device("cpu"))
    taken = batches(batch_size)[:50]
    step(state, taken[0])
    began, before = time.perf_counter(), state.examples
    while time.perf_counter() - began < seconds:
        for batch in taken:
            step(state, batch)
    return (state.examples - before) / (time.perf_counter() - began)


def over_http(size: int, kind: str, seconds: float, connections: int = 4, **settings: Any) -> float:
    """Return the examples per second from the first one sent, flat out, to the last one learned."""
    bodies = encoded(batches(size)[:100] if kind == JSON else batches(size), kind)
    return rate_of(bodies, kind, seconds, connections, **settings)


def rate_of(
    bodies: Sequence[bytes], kind: str, seconds: float, connections: int = 4, **settings: Any
) -> float:
    """Return the same for request bodies."""
    return measured(bodies, kind, seconds, connections, **settings)[0]


def measured(
    bodies: Sequence[bytes],
    kind: str,
    seconds: float,
    connections: int = 4,
    warm: int = 0,
    **settings: Any,
) -> tuple[float, float]:
    """Return the same, and the CPU time of the service and what it started, in ms per 1,000.

    Args:
        bodies, kind: of the requests.
        seconds: for which they are sent.
        connections: of the sender.
        warm: examples that are learned before, so that steps are traced and their code is loaded.
        settings: of the service.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(Path(scratch), **{"max_backlog": BACKLOG, **settings}) as service,
        service.client() as client,
    ):
        if warm:
            with flat_out(service.url, bodies, kind, connections):
                wait_for(lambda: learned(client) >= warm)
            drain(client)
        ready = learned(client)
        with flat_out(service.url, bodies, kind, connections):
            wait_for(lambda: learned(client) > ready)
            began, before = time.perf_counter(), learned(client)
            spent = cpu_seconds(service.process.pid)
            time.sleep(seconds)
        drain(client)
        count = learned(client) - before
        spent = cpu_seconds(service.process.pid) - spent
        return count / (time.perf_counter() - began), 1e6 * spent / count


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process and of its children that live."""
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            numbers = path.read_text().rpartition(")")[2].split()
            if process in (int(path.parent.name), int(numbers[1])):
                total += (int(numbers[11]) + int(numbers[12])) / TICKS
    return total


def drain(client: httpx.Client) -> None:
    """Wait until less than a full batch is left to learn."""
    batch_size = client.get("/model").json()["hyperparameters"]["batch_size"]
    wait_for(lambda: backlog(client.get("/metrics").text) < batch_size, DRAIN_SECONDS)


def backlog(metrics: str) -> float:
    [line] = [x for x in metrics.splitlines() if x.startswith("funnel_backlog_examples ")]
    return float(line.split()[1])


def catching_up(batch_size: int, optimizer: str, seconds: float) -> float:
    """Return the examples per second at which a service learns a log filled beforehand."""
    copies = max(2, round(seconds))
    total = 50_000 * copies
    with tempfile.TemporaryDirectory() as scratch:
        redis = RedisProcess(Path(scratch) / "redis").start()
        try:
            with contextlib.closing(RedisTarget(redis.url, "logistic")) as target:
                produce(batches(1000) * copies, target)
            with (
                serving(
                    Path(scratch), redis_url=redis.url, batch_size=batch_size, optimizer=optimizer
                ) as service,
                service.client() as client,
            ):
                began, before = time.perf_counter(), learned(client)
                wait_for(lambda: learned(client) == total, DRAIN_SECONDS)
                return (total - before) / (time.perf_counter() - began)
        finally:
            redis.kill()


Row = tuple[str, str, str]
"""The way to send examples, the optimizer, and the batch size."""


def rows(seconds: float) -> dict[Row, tuple[int, str, Callable[[], float]]]:
    """Return the measurements, each with the batch size and the optimizer of its bare fold."""

    def row(what: str, batch_size: int, measure: Callable[..., float], optimizer: str) -> Any:
        bound = partial(measure, batch_size=batch_size, optimizer=optimizer)
        return (what, optimizer, f"{batch_size:,}"), (batch_size, optimizer, bound)

    def http(
        what: str,
        size: int,
        batch_size: int,
        kind: str = BYTES,
        optimizer: str = "funnel",
        **more: Any,
    ) -> Any:
        return row(what, batch_size, partial(over_http, size, kind, seconds, **more), optimizer)

    def log(batch_size: int, optimizer: str = "funnel") -> Any:
        measure = partial(catching_up, seconds=seconds)
        return row("XADD, 1,000 per entry, catching up", batch_size, measure, optimizer)

    large = "safetensors, 1,000 per request"
    everysec = {"appendfsync": "everysec"}
    return dict(
        (
            http("safetensors, 1 per request, 16 connections", 1, 100, connections=16),
            http("safetensors, 100 per request", 100, 100),
            http(large, 1000, 100),
            http(f"{large}, fsync everysec", 1000, 100, **everysec),
            http(large, 1000, 1000),
            http(f"{large}, fsync everysec", 1000, 1000, **everysec),
            http("JSON, 100 per request, 8 connections", 100, 100, JSON, connections=8),
            log(100),
            log(1000),
            http(large, 1000, 100, optimizer="pool"),
            http(large, 1000, 1000, optimizer="pool"),
            log(1000, "pool"),
        )
    )


def run(plan: Plan) -> str:
    """Measure every row in turn in each round, and return the table."""
    taken = rows(plan.seconds)
    bare: dict[tuple[int, str], list[float]] = {
        (size, optimizer): [] for size, optimizer, _ in taken.values()
    }
    found: dict[Row, list[float]] = {key: [] for key in taken}
    for _ in plan.rounds("learn"):
        for (size, optimizer), rates in bare.items():
            rates.append(bare_fold(size, optimizer, plan.seconds))
        for key, (_, _, measure) in taken.items():
            found[key].append(measure())
    what = "bare fold: the same steps, no log, no HTTP"
    lines = [
        (what, optimizer, f"{size:,}", show(rates, ",.0f"), "1")
        for (size, optimizer), rates in bare.items()
    ]
    lines += [
        (*key, show(found[key], ",.0f"), ratios(found[key], bare[size, optimizer]))
        for key, (size, optimizer, _) in taken.items()
    ]
    return table(("", "optimizer", "batch", "examples/s learned", "of the bare fold"), lines)
