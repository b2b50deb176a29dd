"""How fast labels meet their questions, how long an answer with ids takes, and what memory.

    python -m tests.benchmarks.labels [--questions 40000]
    python -m tests.benchmarks.labels --memory 10000000

- **joins**: a service has questions of 20 features in its log, asked 1 or 100 at a time. A client
  sends labels, 1,000 a request, and the clock stops when the last one is learned. The model is
  logistic regression with the pool, in batches of 1,000; so the time is that of joining and
  learning.
- **latency**: one client asks one question after another, without ids, with ids, and with ids and
  ``TRACK=async``, on an idle service whose log is synced before it answers.
- **memory**: so many questions are asked, 100 at a time, and one in a hundred gets a label. The
  questions that wait are bounded by ``JOIN_BYTES=4MB``, and a checkpoint is written each second.
  The resident memory of the service and of its log's server is shown on the way. From the middle
  on it should not grow.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np

from tests.benchmarks.parts.memory import status
from tests.support.harness import serving, wait_for
from tests.support.metrics import sample, scrape

FEATURES, CLASSES = 20, 10
OPTIONS = {
    "features": FEATURES, "classes": CLASSES, "batch_size": 1_000, "max_wait_ms": 100,
    "max_backlog": 10_000_000,
}  # fmt: skip
LABELS, ROWS = 1_000, 100
WARM, TIMED = 100, 2_000
"""Questions of the latency that do not count, and that do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=40_000)
    parser.add_argument("--memory", type=int, default=0, help="questions to show the memory of")
    options = parser.parse_args()
    if options.memory:
        memory(options.memory)
        return
    questions = options.questions
    print("| questions in a request | asked a second | joined and learned a second |")
    print("|---|---|---|")
    for rows in (1, 100):
        asked, joined = joins(questions if rows > 1 else questions // 4, rows)
        print(f"| {rows} | {asked:,.0f} | {joined:,.0f} |")
    print("\n| | p50, ms | p99, ms |\n|---|---|---|")
    for name, has_ids, track in (
        ("without ids", False, "sync"),
        ("with ids, async", True, "async"),
        ("with ids, sync", True, "sync"),
    ):
        p50, p99 = latency(has_ids, track)
        print(f"| {name} | {p50:.2f} | {p99:.2f} |")


def joins(questions: int, rows: int) -> tuple[float, float]:
    """Return questions asked, and labels joined and learned, a second."""
    features = np.random.default_rng(0).normal(size=(rows, FEATURES)).tolist()
    with running() as client:
        began = time.perf_counter()
        for k in range(0, questions, rows):
            body = {"features": features, "ids": list(range(k, k + rows))}
            client.post("/predict", json=body).raise_for_status()
        asked = questions / (time.perf_counter() - began)
        began = time.perf_counter()
        for k in range(0, questions, LABELS):
            ids = list(range(k, k + LABELS))
            body = {"ids": ids, "labels": [own % CLASSES for own in ids]}
            client.post("/labels", json=body).raise_for_status()
        wait_for(lambda: learned(client) == questions)
        return asked, questions / (time.perf_counter() - began)


def memory(questions: int) -> None:
    """Print the memory that questions take, most of which never get a label."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(ROWS, FEATURES)).tolist()
    options = OPTIONS | {"join_bytes": "4MB", "checkpoint_every_seconds": 1.0}
    found: list[float] = []
    print(
        "| questions | service, MB | its log's server, MB | open | evicted |\n|---|---|---|---|---|"
    )
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,
        serving(Path(directory), **options) as service,
        service.client() as client,
    ):
        began, part = time.perf_counter(), max(ROWS, questions // 10 // ROWS * ROWS)
        for k in range(0, questions, ROWS):
            ids = list(range(k, k + ROWS))
            client.post("/predict", json={"features": features, "ids": ids}).raise_for_status()
            body = {"ids": ids[:1], "labels": [k // ROWS % CLASSES]}
            client.post("/labels", json=body).raise_for_status()
            if (k + ROWS) % part == 0:
                shown = scrape(client)
                pids = service.process.pid, service.server_pid()
                own, server = (status(pid, "VmRSS") for pid in pids if pid is not None)
                found.append(own)
                open_ = sample(shown, "funnel_open_questions")
                evicted = sample(shown, "funnel_evicted_questions_total")
                print(
                    f"| {k + ROWS:,} | {own:.0f} | {server:.0f} | {open_:,.0f} | {evicted:,.0f} |",
                    flush=True,
                )
        seconds = time.perf_counter() - began
        joined = sample(scrape(client), "funnel_labels_total", result="joined")
    middle = len(found) // 2
    print(
        f"\n{questions:,} questions in {seconds:.0f} s, {joined:,.0f} labels joined; the service "
        f"takes {max(found[middle:]) / found[middle - 1] - 1:+.1%} from the middle on"
    )


@contextlib.contextmanager
def running(**options: object) -> Iterator[httpx.Client]:
    """Run a service on an embedded log for a while."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,
        serving(Path(directory), **OPTIONS, **options) as service,
        service.client() as client,
    ):
        yield client


def learned(client: httpx.Client) -> int:
    return int(client.get("/model").json()["examples_learned"])


def latency(has_ids: bool, track: str) -> tuple[float, float]:
    """Return the median and the 99th percentile of the time of an answer, in milliseconds."""
    seconds = []
    with running(track=track) as client:
        for k in range(WARM + TIMED):
            body: dict[str, object] = {"features": [[0.5] * FEATURES]}
            if has_ids:
                body["ids"] = [k]
            began = time.perf_counter()
            client.post("/predict", json=body).raise_for_status()
            seconds.append(time.perf_counter() - began)
    p50, p99 = np.percentile(seconds[WARM:], [50, 99]) * 1_000
    return float(p50), float(p99)


if __name__ == "__main__":
    main()
