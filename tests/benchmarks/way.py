"""The way of one request through the code: the files it visits, and its moves between them.

python -m tests.benchmarks.way

A real service runs in this process, warm from one request. Then one `POST /learn?wait=applied` of
20 rows is traced, and in the same way a `POST /predict` and a `GET /metrics`. A visit is a run of
calls to functions of one file, on one thread; a move leads from one visit to the next, or into the
first. Each thread is a leg. Steps are eager, so the figures of the step are those of a model's
first batches; the legs that wait for others vary by a few moves.
"""

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
LEGS = {
    "MainThread": "HTTP to the log",
    "funnel-learner": "log to batch",
    "funnel-step": "batch to weights",
}


@dataclass
class Way:
    """The calls of one request: the file of each, by thread."""

    calls: dict[str, list[str]] = field(default_factory=dict)

    def moves(self, thread: str) -> Counter[str]:
        """Return how often each file is visited on a thread."""
        return Counter(file for file, _ in groupby(self.calls[thread]))


class Tracer:
    """Profiles all threads, and keeps the calls of our own code while a request is under way."""

    def __init__(self) -> None:
        self._way: Way | None = None

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Note a call; `sys.setprofile` calls this."""
        if self._way is not None and event == "call":
            file = frame.f_code.co_filename
            if file.startswith(ROOT) and not file.startswith(ROOT + "tests"):
                name = LEGS.get(threading.current_thread().name, "other threads")
                self._way.calls.setdefault(name, []).append(file.removeprefix(ROOT))

    @contextmanager
    def tracing(self) -> Iterator[Way]:
        """Trace what happens meanwhile."""
        self._way = way = Way()
        try:
            yield way
        finally:
            self._way = None


async def trace(tracer: Tracer, directory: str) -> dict[str, Way]:
    """Return the ways of three requests to a service of its own."""
    service = Service(
        load_settings({"data_dir": directory, "features": 6, "classes": 3, "batch_size": 20})
    )
    model = await service.start()
    await asyncio.to_thread(model.trainer.caught_up.wait)
    assert model.status.condition == Condition.LEARNING
    batch = a_batch(0)
    body = {"features": batch.features.tolist(), "labels": batch.labels.tolist()}
    ways = {}
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://way") as client:
        await client.post("/learn?wait=applied", json=body)
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
    for leg in sorted(way.calls, key=[*LEGS.values(), "other threads"].index):
        visits = way.moves(leg)
        most = ", ".join(f"{file} {n}" for file, n in visits.most_common(6))
        print(f"{leg:18} {len(visits):5} {visits.total():5} {len(way.calls[leg]):5}  {most}")
    files = {file for calls in way.calls.values() for file in calls}
    moves = sum(way.moves(leg).total() for leg in way.calls)
    print(f"{'all':18} {len(files):5} {moves:5} {sum(map(len, way.calls.values())):5}")


def main() -> None:
    """Trace and report."""
    tracer = Tracer()
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    with tempfile.TemporaryDirectory() as directory:
        for name, way in asyncio.run(trace(tracer, directory)).items():
            report(name, way)


if __name__ == "__main__":
    main()
