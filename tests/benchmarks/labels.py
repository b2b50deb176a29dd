"""How fast labels meet their questions, how long an answer with ids takes, and what memory.

    python -m tests.benchmarks.labels [--labels 100000] [--rounds 3]
    python -m tests.benchmarks.labels --memory 10000000

- **joins**: a service has questions of 10 features in its log, asked 1,000 at a time. Labels
  follow, 1,000 an entry: all of them in the log at once, as a producer writes them, or over HTTP,
  one request after another. The clock stops when the last one is learned. The model is `logistic`,
  in batches of 1,000, so the time is that of joining and learning.
- **latency**: one client asks one question after another on an idle service: without ids, with ids,
  and with ids and ``TRACK=async``, in turn, so that what else the machine does meets all of them.
  The client writes to its socket itself; httpx would take longer than the service.
- **memory**: so many questions are appended to the stream of a service, 1,000 an entry, as it does
  itself, with ``LABEL_TTL=1s``. One in a hundred gets a label at once. A checkpoint is written
  each second, and the streams are trimmed. The table has the medians of each tenth. Caches fill in
  the first two. It fails if the resident memory of the service grows by more than 2 % after them,
  or if less than 99 % of the labels are joined.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import orjson
from redis import Redis

from service.log.keys import Keys
from service.log.labels import HASH_BYTES, hash_of
from service.log.questions import Questions
from streams.batch import log_key, questions_to_bytes
from tests.benchmarks.measure import learned, ratios, show, table
from tests.benchmarks.parts.load import JSON, Client
from tests.benchmarks.parts.memory import status
from tests.support.harness import SAFETENSORS, ServiceProcess, serving, wait_for
from tests.support.metrics import sample, scrape

FEATURES, CLASSES = 10, 10
OPTIONS = {
    "features": FEATURES, "classes": CLASSES, "batch_size": 1_000, "max_wait_ms": 100,
    "max_backlog": 10_000_000,
}  # fmt: skip
AT_ONCE = 1_000
"""Questions of a request, and labels of an entry."""
FIRST = 10_000
"""Labels that are learned before the clock starts."""
WARM, TIMED = 100, 1_500
"""Questions of the latency that do not count, and that do, in a round."""
GROUP, LABELLED = 10_000, 100
"""Questions that are appended in one go where memory is shown, and those of them with a label."""
GROWTH, JOINED = 0.02, 0.99
"""Most growth of the memory, and least share of the labels that are joined."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=100_000, help="that join, in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=0, help="questions to show the memory of")
    options = parser.parse_args()
    if options.memory:
        return memory(options.memory)
    rounds = range(options.rounds)
    rows = []
    for way in ("from the log", "over HTTP"):
        found = [joins(options.labels, way == "over HTTP") for _ in rounds]
        rates, cpu = zip(*found, strict=True)
        rows.append((way, show(rates, ",.0f"), show(cpu, ".0f")))
    print(table(("labels", "joined and learned a second", "CPU of the service, µs a label"), rows))
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in rounds:
        for name, own in latency().items():
            times.setdefault(name, []).append(own)
    plain = [p99 for _, p99 in times["without ids"]]
    rows = [
        (name, show(p50, ".2f"), show(p99, ".2f"), ratios(p99, plain))
        for name, own in times.items()
        for p50, p99 in [tuple(zip(*own, strict=True))]
    ]
    print(table(("", "p50, ms", "p99, ms", "p99 / that without ids"), rows))
    return 0


@contextlib.contextmanager
def running(**options: object) -> Iterator[tuple[ServiceProcess, httpx.Client, Redis]]:
    """Run a service on an embedded log for a while."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,
        serving(Path(directory), **OPTIONS | options) as service,
        service.client() as client,
        Redis.from_url(f"unix://{directory}/data/log/valkey.sock") as redis,
    ):
        yield service, client, redis


def ask(client: httpx.Client, start: int) -> None:
    """Ask AT_ONCE questions; their ids are numbers from ``start`` on."""
    features = np.random.default_rng(start).normal(size=(AT_ONCE, FEATURES)).astype(np.float32)
    body = questions_to_bytes(features, list(map(str, range(start, start + AT_ONCE))))
    where = "/predict?probabilities=false"
    client.post(where, content=body, headers=SAFETENSORS).raise_for_status()


def append(redis: Redis, start: int) -> list[int]:
    """Append GROUP questions to their stream; return the ids of those that are labelled."""
    rng = np.random.default_rng(start)
    labelled = [*range(start, start + GROUP, GROUP // LABELLED)]
    with redis.pipeline(transaction=False) as pipe:
        for k in range(start, start + GROUP, AT_ONCE):
            hashes = bytearray(rng.bytes(HASH_BYTES * AT_ONCE))
            for own in range(k, k + AT_ONCE, GROUP // LABELLED):
                at = HASH_BYTES * (own - k)
                hashes[at : at + HASH_BYTES] = hash_of(str(own))
            features = rng.normal(size=(AT_ONCE, FEATURES)).astype(np.float32)
            answers = np.full((AT_ONCE, CLASSES), 1 / CLASSES, np.float16)
            labels = np.zeros(AT_ONCE, np.int64)
            fields = Questions(features, bytes(hashes), labels, answers, 1).to_fields()
            pipe.xadd(Keys("logistic").asked, fields)
        pipe.execute()
    return labelled


def send_labels(client: httpx.Client, document: bytes, query: str = "") -> None:
    headers = {"Content-Type": "application/json"}
    client.post(f"/labels{query}", content=document, headers=headers).raise_for_status()


def labels_of(start: int, count: int) -> bytes:
    """Return labels of questions, as JSON."""
    ids = range(start, start + count)
    return orjson.dumps({"ids": [*ids], "labels": [own % CLASSES for own in ids]})


def joins(labels: int, is_http: bool) -> tuple[float, float]:
    """Return labels that are joined and learned a second, and µs of CPU time for each."""
    key = log_key("logistic")
    with running() as (service, client, redis):
        for k in range(0, FIRST + labels, AT_ONCE):
            ask(client, k)

        def send(start: int, stop: int) -> None:
            for k in range(start, stop, AT_ONCE):
                document = labels_of(k, AT_ONCE)
                if is_http:
                    send_labels(client, document)
                else:
                    redis.xadd(key, {"labels": document})
            wait_for(lambda: learned(client) == stop, 300)

        send(0, FIRST)
        before, began = cpu_seconds(service), time.perf_counter()
        send(FIRST, FIRST + labels)
        seconds = time.perf_counter() - began
        return labels / seconds, 1e6 * (cpu_seconds(service) - before) / labels


def cpu_seconds(service: ServiceProcess) -> float:
    """Return the CPU time that a service has taken, in seconds."""
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def latency() -> dict[str, tuple[float, float]]:
    """Return the median and the 99th percentile of the time of an answer, in milliseconds."""
    names = ("without ids", "with ids, async", "with ids, sync")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with (
        running(track="async") as (later, _, _),
        running(track="sync") as (sooner, _, _),
        contextlib.closing(Client(later.url, "/predict", JSON)) as of_later,
        contextlib.closing(Client(sooner.url, "/predict", JSON)) as of_sooner,
    ):
        for k in range(WARM + TIMED):
            for name in names:
                body: dict[str, object] = {"features": [[0.5] * FEATURES]}
                if name != "without ids":
                    body["ids"] = [k]
                document = orjson.dumps(body)
                client = of_sooner if name == "with ids, sync" else of_later
                began = time.perf_counter()
                client.post(document).expect(200)
                seconds[name].append(time.perf_counter() - began)
    found = {}
    for name, own in seconds.items():
        p50, p99 = np.percentile(own[WARM:], [50, 99]) * 1_000
        found[name] = float(p50), float(p99)
    return found


def memory(questions: int) -> int:
    """Print the memory of questions most of which never get a label; return 1 if it grows."""
    part = max(GROUP, questions // 10 // GROUP * GROUP)
    found: list[float] = []
    print(f"| questions | service, MB | its log's server, MB | open | joined |\n{'|---' * 5}|")
    options = {"label_ttl": "1s", "checkpoint_every_seconds": 1.0, "max_wait_ms": 10}
    with running(**options) as (service, client, redis):
        began = time.perf_counter()
        own, server = list[float](), list[float]()
        for k in range(0, questions, GROUP):
            ids = append(redis, k)
            document = orjson.dumps({"ids": ids, "labels": [k // GROUP % CLASSES] * len(ids)})
            send_labels(client, document, "?wait=applied")
            own.append(status(service.process.pid, "VmRSS"))
            server.append(redis.info("memory")["used_memory"] / 1e6)
            if (k + GROUP) % part == 0:
                found.append(statistics.median(own))
                shown = scrape(client)
                open_ = sample(shown, "funnel_open_questions")
                joined = sample(shown, "funnel_labels_total", result="joined")
                values = f"{found[-1]:,.1f} | {statistics.median(server):,.1f} | {open_:,.0f}"
                print(f"| {k + GROUP:,} | {values} | {joined:,.0f} |", flush=True)
                own.clear()
                server.clear()
        seconds = time.perf_counter() - began
        labels_sent = questions // GROUP * LABELLED

        def share() -> float:
            shown = scrape(client)
            return sample(shown, "funnel_labels_total", result="joined") / labels_sent

        with contextlib.suppress(TimeoutError):
            wait_for(lambda: share() == 1, 10)
        joined_share = share()
    _, warm, *rest = found
    growth = max(rest) / warm - 1
    print(
        f"\n{questions:,} questions in {seconds:,.0f} s; {joined_share:.2%} of {labels_sent:,} "
        f"labels were joined; the service takes {growth:+.1%} after the second tenth"
    )
    return int(growth > GROWTH or joined_share < JOINED)


if __name__ == "__main__":
    sys.exit(main())
