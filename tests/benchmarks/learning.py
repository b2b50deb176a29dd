"""How fast a service learns, by how examples come; see `tests.benchmarks.service`."""

import contextlib
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch

from service.fold import State, step
from service.settings import Settings
from streams.producer import RedisTarget, produce
from tests.benchmarks.load import BYTES, JSON
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
from tests.service.harness import RedisProcess, serving, wait_for

BACKLOG = 400_000
"""Examples that may wait: more than a learner takes in the second for which a sender is put off."""
DRAIN_SECONDS = 600.0
"""Longest wait until all is learned."""


def bare_fold(batch_size: int, seconds: float) -> float:
    """Return examples a second of the steps alone, in this process."""
    torch.set_num_threads(1)
    defaults = Settings.model_construct()
    state = State(defaults.spec, defaults.rates, torch.device("cpu"))
    taken = batches(batch_size)[:50]
    step(state, taken[0])
    began, before = time.perf_counter(), state.examples
    while time.perf_counter() - began < seconds:
        for batch in taken:
            step(state, batch)
    return (state.examples - before) / (time.perf_counter() - began)


def over_http(size: int, kind: str, seconds: float, connections: int = 2, **settings: Any) -> float:
    """Return examples a second: sent flat out for a while, until the last of them is learned."""
    bodies = encoded(batches(size)[:100] if kind == JSON else batches(size), kind)
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(Path(scratch), max_backlog=BACKLOG, **settings) as service,
        service.client() as client,
    ):
        with flat_out(service.url, bodies, kind, connections):
            wait_for(lambda: learned(client) > 0)
            began, before = time.perf_counter(), learned(client)
            time.sleep(seconds)
        drain(client)
        return (learned(client) - before) / (time.perf_counter() - began)


def drain(client: httpx.Client) -> None:
    """Wait until no full batch is left to learn."""
    batch_size = client.get("/model").json()["hyperparameters"]["batch_size"]
    wait_for(lambda: backlog(client.get("/metrics").text) < batch_size, DRAIN_SECONDS)


def backlog(metrics: str) -> float:
    [line] = [x for x in metrics.splitlines() if x.startswith("funnel_backlog_examples ")]
    return float(line.split()[1])


def catching_up(batch_size: int, seconds: float) -> float:
    """Return examples a second at which a log that was filled beforehand is learned."""
    copies = max(2, round(seconds))
    total = 50_000 * copies
    with tempfile.TemporaryDirectory() as scratch:
        redis = RedisProcess(Path(scratch) / "redis").start()
        try:
            with contextlib.closing(RedisTarget(redis.url, "logistic")) as target:
                produce(batches(1000) * copies, target)
            with (
                serving(Path(scratch), redis_url=redis.url, batch_size=batch_size) as service,
                service.client() as client,
            ):
                began, before = time.perf_counter(), learned(client)
                wait_for(lambda: learned(client) == total, DRAIN_SECONDS)
                return (total - before) / (time.perf_counter() - began)
        finally:
            redis.kill()


def rows(seconds: float) -> dict[tuple[str, str], tuple[int, Callable[[], float]]]:
    """Return what is measured, by how examples come and how they are learned."""

    def http(size: int, batch_size: int, kind: str = BYTES, **more: Any) -> Any:
        return batch_size, partial(over_http, size, kind, seconds, batch_size=batch_size, **more)

    def log(batch_size: int) -> Any:
        return batch_size, partial(catching_up, batch_size, seconds)

    everysec = {"appendfsync": "everysec"}
    return {
        ("safetensors, 1 a request, 16 connections", "100"): http(1, 100, connections=16),
        ("safetensors, 100 a request", "100"): http(100, 100),
        ("safetensors, 1,000 a request", "100"): http(1000, 100),
        ("safetensors, 1,000 a request, fsync everysec", "100"): http(1000, 100, **everysec),
        ("safetensors, 1,000 a request", "1,000"): http(1000, 1000),
        ("safetensors, 1,000 a request, fsync everysec", "1,000"): http(1000, 1000, **everysec),
        ("JSON, 100 a request", "100"): http(100, 100, JSON),
        ("XADD, 1,000 an entry, catching up", "100"): log(100),
        ("XADD, 1,000 an entry, catching up", "1,000"): log(1000),
    }


def run(plan: Plan) -> str:
    """Measure every row, in turn within each round, and return the table."""
    taken = rows(plan.seconds)
    bare: dict[int, list[float]] = {100: [], 1000: []}
    found: dict[tuple[str, str], list[float]] = {key: [] for key in taken}
    for _ in plan.rounds("learn"):
        for batch_size, rates in bare.items():
            rates.append(bare_fold(batch_size, plan.seconds))
        for key, (_, measure) in taken.items():
            found[key].append(measure())
    lines = [
        ("bare fold: the same steps, no log, no HTTP", f"{size:,}", show(rates, ",.0f"), "1")
        for size, rates in bare.items()
    ]
    lines += [
        (*key, show(found[key], ",.0f"), ratios(found[key], bare[size]))
        for key, (size, _) in taken.items()
    ]
    return table(("", "batch", "examples/s learned", "of the bare fold"), lines)
