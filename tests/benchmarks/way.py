"""The way of one request through the code: the files it visits, and its moves between them.

python -m tests.benchmarks.way --warm 1

A real service runs in this process, warm from some requests. One `POST /learn?wait=applied` of 20
rows is traced, then a `POST /predict` and a `GET /metrics`. Each thread is a leg of the way. A
visit is a run of calls to functions of one file in one leg, and a move leads to a visit. After one
request the step is eager; after 30 it is the traced step that a service runs nearly always. The leg
from the log to the batch varies, because its thread also tends to the lease and the statistics.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import FrameType

import httpx

from service.http.app import create_app
from service.model import Model
from service.monitoring.status import Condition
from service.service import Service
from service.settings import load_settings
from tests.support.states import a_batch

ROOT = str(Path(__file__).parents[2]) + os.sep
OWN = tuple(ROOT + package + os.sep for package in ("funnel", "service", "streams"))
LEGS = {
    "MainThread": "HTTP to the log",
    "funnel-learner": "log to batch",
    "funnel-trainer": "log to batch",
    "funnel-step": "batch to weights",
}
OTHERS = "other threads"
FORMATTER = argparse.RawDescriptionHelpFormatter


@dataclass
class Way:
    """The calls of one request: the file of each, by leg."""

    calls: dict[str, list[str]] = field(default_factory=dict)

    def visits(self, leg: str) -> Counter[str]:
        """Return how often each file is visited in a leg."""
        return Counter(file for file, _ in groupby(self.calls[leg]))


class Tracer:
    """Profiles all threads, and keeps the calls of this repository's code during a request."""

    def __init__(self) -> None:
        self._way: Way | None = None

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Keep a call; `sys.setprofile` calls this."""
        if self._way is not None and event == "call":
            file = frame.f_code.co_filename
            if file.startswith(OWN):
                thread = threading.current_thread().name.partition("_")[0]
                self._way.calls.setdefault(LEGS.get(thread, OTHERS), []).append(
                    file.removeprefix(ROOT)
                )

    @contextmanager
    def tracing(self) -> Iterator[Way]:
        """Yield the way of the request that is made meanwhile."""
        self._way = way = Way()
        try:
            yield way
        finally:
            self._way = None


async def trace(tracer: Tracer, directory: str, warm: int) -> dict[str, Way]:
    """Return the ways of three requests to a service of its own, after so many others."""
    service = Service(
        load_settings(
            {
                "model": "logistic",
                "data_dir": directory,
                "features": 6,
                "classes": 3,
                "batch_size": 20,
            }
        )
    )
    model = await service.start()
    await asyncio.to_thread(model.trainer.caught_up.wait)
    assert model.status.condition == Condition.LEARNING
    batch = a_batch(0)
    body = {"features": batch.features.tolist(), "labels": batch.labels.tolist()}
    ways = {}
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for _ in range(warm):
            (await client.post("/learn?wait=applied", json=body)).raise_for_status()
        for method, path, json in (
            ("POST", "/learn?wait=applied", body),
            ("POST", "/predict", {"features": body["features"][:1]}),
            ("GET", "/metrics", None),
        ):
            await wait_for_statistics(model)
            with tracer.tracing() as ways[f"{method} {path}"]:
                (await client.request(method, path, json=json)).raise_for_status()
    await service.stop()
    return ways


async def wait_for_statistics(model: Model) -> None:
    """Wait until the history shows the model's version; its points are made with the statistics."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()
    stop = model.history.listen(lambda: loop.call_soon_threadsafe(news.set))
    while not model.history.points(since=model.status.version - 1):
        await news.wait()
        news.clear()
    stop()


def report(name: str, way: Way) -> None:
    """Print the legs of a way, and their sum."""
    print(f"\n{name}\n{'leg':18} files moves calls  visited most")
    for leg in sorted(way.calls, key=[*LEGS.values(), OTHERS].index):
        visits = way.visits(leg)
        most = ", ".join(f"{file} {n}" for file, n in visits.most_common(6))
        print(f"{leg:18} {len(visits):5} {visits.total():5} {len(way.calls[leg]):5}  {most}")
    files = {file for calls in way.calls.values() for file in calls}
    moves = sum(way.visits(leg).total() for leg in way.calls)
    print(f"{'all':18} {len(files):5} {moves:5} {sum(map(len, way.calls.values())):5}")


def main() -> None:
    """Trace and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=FORMATTER)
    parser.add_argument("--warm", type=int, default=1, metavar="N", help="requests before [1]")
    warm = parser.parse_args().warm
    tracer = Tracer()
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    with tempfile.TemporaryDirectory() as directory:
        for name, way in asyncio.run(trace(tracer, directory, warm)).items():
            report(name, way)


if __name__ == "__main__":
    main()
