"""The cost of telemetry to learning.

    python -m tests.benchmarks.telemetry

The first part measures the time in which the trainer reads its statistics and adds a point to the
history, which it does once a second. In the second part a service learns flat out, in turn without
a viewer and with one, who scrapes its metrics, follows its events, and requests gains and newest
inputs as the page does.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import torch

from service.fold.snapshot import Snapshot
from service.fold.state import State
from service.monitoring.history import History
from service.monitoring.pictures import Newest
from service.process import SystemClock
from service.settings import load_settings
from tests.benchmarks.measure import batches, encoded, flat_out, learned, ratios, show, table
from tests.support.harness import serving, wait_for
from tests.support.states import statistics_of, step

PATHS = ("/metrics", "/optimizer/gains", "/newest", "/model")
SETTLED = 20_000
"""Examples to learn before the flow is steady."""


def own_seconds(repeats: int) -> float:
    """Return the median seconds of the trainer's work for viewers, which it does once a second."""
    settings = load_settings({"model": "logistic"})
    torch.set_num_threads(settings.threads)
    state = State(settings.spec, settings.hyperparameters, torch.device("cpu"))
    clock = SystemClock()
    newest, history = Newest(state, clock), History(clock)
    found = []
    for batch in batches(100)[:repeats]:
        began = time.perf_counter()
        newest._due = 0.0
        newest.note(Snapshot.of(state), batch)
        history.add_point(statistics_of(state), 0, 1.0)
        found.append(time.perf_counter() - began)
        step(state, batch)
    return statistics.median(found)


@contextlib.contextmanager
def viewer(url: str) -> Iterator[None]:
    """Follow the events, and request the other paths once a second, in threads."""
    stop = threading.Event()

    def follow() -> None:
        with httpx.Client(base_url=url, timeout=60) as client, client.stream("GET", "/events") as a:
            for _ in a.iter_bytes():
                if stop.is_set():
                    return

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.wait(1.0):
                for path in PATHS:
                    client.get(path).raise_for_status()

    threads = [threading.Thread(target=follow), threading.Thread(target=ask)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def rates(seconds: float, rounds: int) -> dict[str, list[float]]:
    """Return the examples learned per second in each round, alone and watched."""
    found: dict[str, list[float]] = {"alone": [], "watched": []}
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch, serving(Path(scratch)) as service:
        bodies = encoded(batches(100))
        with flat_out(service.url, bodies), service.client() as client:
            wait_for(lambda: learned(client) > SETTLED)
            for number in range(2 * rounds):
                kind = ("alone", "watched", "watched", "alone")[number % 4]
                with viewer(service.url) if kind == "watched" else contextlib.nullcontext():
                    before, began = learned(client), time.perf_counter()
                    time.sleep(seconds)
                    after, took = learned(client), time.perf_counter() - began
                found[kind].append((after - before) / took)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one measurement [6]")
    parser.add_argument("--rounds", type=int, default=8, help="[8]")
    options = parser.parse_args()
    own = own_seconds(100)
    found = rates(options.seconds, options.rounds)
    rows = [
        ["examples learned per second, no viewer", show(found["alone"], ",.0f")],
        ["examples learned per second, one viewer", show(found["watched"], ",.0f")],
        ["watched to alone", ratios(found["watched"], found["alone"])],
        ["statistics and history, share of the trainer's time", f"{own:.2%}"],
    ]
    sys.stdout.write(table(["telemetry", "median (range)"], rows))


if __name__ == "__main__":
    main()
