"""What one service process learns and answers on this machine, its clients beside it.

    python -m tests.benchmarks.service

Logistic regression 784 × 10, single Funnel, batches of 100. What is learned is counted by the
service itself while two connections send flat out; the share is of the bare fold, the same steps
in one process without log and HTTP, measured in the same run. Latencies are of one-row requests at
a fixed rate, from the intended send time. Each row is measured several times: median (lowest to
highest).

What bounds the figures on two cores. A step costs its dispatch: some hundred small operators. The
learner is a thread, and takes the interpreter lock again after each of them, so it gives way to
the HTTP side's Python. Catching up with a log that is there already does without that side and
without clients: that row bounds what a process for the learner could gain. A thread it is all the
same: snapshots are swapped by reference, and weights on a GPU stay there. Small requests cost one
fsync and one walk through the web framework each, JSON the reading of 784 numbers an example.
"""

import argparse
import contextlib
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import orjson
import torch
from safetensors.numpy import save

from service.fold import Rates, Spec, State, step
from streams.batch import Batch
from streams.catalog import get
from streams.producer import RedisTarget, produce
from tests.benchmarks.load import latencies, send_flat_out
from tests.service.harness import RedisProcess, ServiceProcess, serving

SPEC = Spec("logistic", 784, 10, (), "funnel", True, 0)
RATES = Rates(0.03, 0.0, 0.03, 0.03)
BYTES, JSON = "application/octet-stream", "application/json"
PREDICT_RATE = 100.0
spawn = multiprocessing.get_context("spawn")


def bare_fold(batches: list[Batch], seconds: float) -> float:
    """Return examples a second of steps alone."""
    torch.set_num_threads(1)
    state = State(SPEC, RATES, torch.device("cpu"))
    with torch.no_grad():
        step(state, batches[0])
        began, before = time.perf_counter(), state.examples
        while time.perf_counter() - began < seconds:
            for batch in batches[:50]:
                step(state, batch)
    return (state.examples - before) / (time.perf_counter() - began)


def encoded(batches: list[Batch], kind: str) -> list[bytes]:
    if kind == BYTES:
        return [b.to_bytes() for b in batches]
    return [
        orjson.dumps({"features": (b.features / 255).tolist(), "labels": b.labels.tolist()})
        for b in batches
    ]


@contextlib.contextmanager
def flat_out(url: str, bodies: list[bytes], kind: str) -> Iterator[None]:
    """Send in a process of its own for a while."""
    stop = spawn.Event()
    sender = spawn.Process(target=send_flat_out, args=(url, bodies, kind, stop))
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join()


def learned(client: httpx.Client) -> int:
    return int(client.get("/model").json()["examples_learned"])


def learning_rate(service: ServiceProcess, bodies: list[bytes], kind: str, seconds: float) -> float:
    """Return examples a second that the service learns while it is sent more than that."""
    with service.client() as client, flat_out(service.url, bodies, kind):
        before = learned(client)
        while learned(client) == before:
            time.sleep(0.05)
        time.sleep(0.5)  # until the flow is steady
        began, before = time.perf_counter(), learned(client)
        time.sleep(seconds)
        after, ended = learned(client), time.perf_counter()
    drain(service)
    return (after - before) / (ended - began)


def catching_up(service: ServiceProcess, batches: list[Batch]) -> float:
    """Return examples a second at which a log that was filled beforehand is learned."""
    total = sum(map(len, batches))
    with (
        contextlib.closing(RedisTarget(service.options["redis_url"], "logistic")) as target,
        service.client() as client,
    ):
        before = learned(client)
        produce(batches, target)
        began, first = time.perf_counter(), learned(client)
        while (now := learned(client)) < before + total:
            time.sleep(0.1)
    return (now - first) / (time.perf_counter() - began)


def drain(service: ServiceProcess) -> None:
    """Wait until all is learned."""
    with service.client() as client:
        while "\nfunnel_backlog_examples 0.0\n" not in client.get("/metrics").text:
            time.sleep(0.1)


def percentiles(service: ServiceProcess, body: bytes, seconds: float) -> tuple[float, float]:
    """Return p50 and p99 of predictions in milliseconds."""
    with spawn.Pool(1) as pool:
        found = pool.apply(latencies, (service.url, body, PREDICT_RATE, seconds))
    return tuple(1000 * np.percentile(found, [50, 99]))


def show(values: list[float], form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def measured(what: Callable[[], float], repeats: int) -> list[float]:
    return [what() for _ in range(repeats)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement [5]")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each row [3]")
    options = parser.parse_args()
    seconds, repeats = options.seconds, options.repeats
    examples = list(get("abrupt", 50_000).batches(1000))
    hundreds = [b.part(k, k + 100) for b in examples for k in range(0, 1000, 100)]
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread")
    bare = measured(lambda: bare_fold(hundreds, seconds), repeats)
    print(f"{'bare fold':<44} {show(bare, ',.0f')} examples/s")
    rows = (
        ("safetensors, 1,000 a request, fsync always", BYTES, examples, "always"),
        ("safetensors, 1,000 a request, fsync everysec", BYTES, examples, "everysec"),
        ("safetensors, 100 a request, fsync always", BYTES, hundreds, "always"),
        ("JSON, 100 a request, fsync always", JSON, hundreds[:100], "always"),
    )
    for name, kind, batches, fsync in rows:
        bodies = encoded(batches[:100], kind)
        with (
            tempfile.TemporaryDirectory() as scratch,
            serving(Path(scratch), appendfsync=fsync, max_backlog=100_000) as service,
        ):
            rates = measured(partial(learning_rate, service, bodies, kind, seconds), repeats)
        share = statistics.median(rates) / statistics.median(bare)
        print(f"{name:<44} {show(rates, ',.0f')} examples/s, {share:.2f} of the bare fold")
    with tempfile.TemporaryDirectory() as scratch:
        redis = RedisProcess(Path(scratch) / "redis").start()
        with serving(Path(scratch), redis_url=redis.url) as service:
            rates = measured(lambda: catching_up(service, examples * 4), repeats)
        redis.kill()
    share = statistics.median(rates) / statistics.median(bare)
    name = "XADD, 1,000 an entry, catching up"
    print(f"{name:<44} {show(rates, ',.0f')} examples/s, {share:.2f} of the bare fold")
    row = save({"features": examples[0].features[:1]})
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(Path(scratch), max_backlog=100_000) as service,
    ):
        idle, busy = [], []
        for _ in range(repeats):
            idle.append(percentiles(service, row, seconds))
            with flat_out(service.url, encoded(examples, BYTES), BYTES):
                time.sleep(1.0)  # until the flow is steady
                busy.append(percentiles(service, row, seconds))
            drain(service)
    for name, found in (("idle", idle), ("while learning flat out", busy)):
        middle, tail = zip(*found, strict=True)
        print(
            f"/predict at {PREDICT_RATE:g}/s, {name:<26} "
            f"p50 {show(list(middle), '.1f')} ms, p99 {show(list(tail), '.1f')} ms"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
