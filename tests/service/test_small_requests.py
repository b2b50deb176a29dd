"""Small requests with rows share entries: each row is learned once, and in the order it came."""

import contextlib
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from streams.rows.entry import from_bytes
from tests.benchmarks.parts.load import JSON, Client
from tests.support.harness import RedisProcess, ServiceProcess, serving, wait_for

OPTIONS = {
    "schema": "auto",
    "table_bits": 12,
    "batch_size": 50,
    "checkpoint_every_seconds": 3_600,
    "max_wait_ms": 50,
}
CLIENTS, REQUESTS = 50, 20


def body(client: int, k: int) -> bytes:
    # now and then a number is whole, or a key is missing
    row: dict[str, object] = {"client": f"client {client}", "k": k, "x": k / 4}
    if k % 7 == 3:
        del row["x"]
    return orjson.dumps({"row": row, "label": "odd" if k % 2 else "even"})


def first_row(service: ServiceProcess) -> None:
    """Let the schema know all columns and labels."""
    rows = {"rows": [{"client": "", "k": 0, "x": 0.5}] * 2, "labels": ["odd", "even"]}
    with service.client() as client:
        client.post("/learn?wait=applied", json=rows).raise_for_status()


def logged(redis: RedisProcess) -> tuple[int, dict[str, list[int]]]:
    """Return the number of entries, and what each client has in the log, in its order."""
    found = defaultdict(list)
    [key] = redis.client().keys("funnel:*:log")
    entries = redis.client().xrange(key)
    for _, fields in entries[1:]:
        for chunk in from_bytes(fields[b"arrow"]).chunks:
            for row, label in zip(chunk.columns.to_pylist(), chunk.labels.to_pylist(), strict=True):
                assert label == ("odd" if row["k"] % 2 else "even")
                assert row.get("x") == (None if row["k"] % 7 == 3 else row["k"] / 4)
                found[row["client"]].append(int(row["k"]))
    return len(entries) - 1, dict(found)


def test_a_thousand_requests_of_one_row_share_entries_and_are_learned_once_in_order(
    tmp_path: Path,
) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    try:
        with serving(tmp_path, **OPTIONS, redis_url=redis.url) as service:
            first_row(service)

            def send(number: int) -> int:
                path = "/learn?wait=applied" if number % 5 == 0 else "/learn"
                with contextlib.closing(Client(service.url, path, JSON)) as client:
                    answers = [client.post(body(number, k)) for k in range(REQUESTS)]
                assert {answer.status for answer in answers} == {200 if number % 5 == 0 else 202}
                assert all(orjson.loads(answer.body)["accepted"] == 1 for answer in answers)
                return len({orjson.loads(answer.body)["entry"] for answer in answers})

            with ThreadPoolExecutor(CLIENTS) as pool:
                assert [*pool.map(send, range(CLIENTS))] == [REQUESTS] * CLIENTS
            with service.client() as client:
                wait_for(lambda: client.get("/model").json()["examples_learned"] == 1_002)
            entries, found = logged(redis)
            assert entries < 500
            assert found == {f"client {c}": [*range(REQUESTS)] for c in range(CLIENTS)}
    finally:
        redis.kill()


def test_a_kill_loses_no_row_of_a_shared_entry_that_was_acknowledged(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    half = threading.Semaphore(0)
    try:
        with serving(tmp_path, **OPTIONS, redis_url=redis.url) as service:
            first_row(service)
            acknowledged: dict[str, list[int]] = defaultdict(list)

            def send(number: int) -> None:
                with contextlib.closing(Client(service.url, "/learn", JSON)) as client:
                    for k in range(REQUESTS):
                        try:
                            answer = client.post(body(number, k))
                        except (OSError, IndexError):
                            return
                        assert answer.status == 202
                        acknowledged[f"client {number}"].append(k)
                        half.release()

            with ThreadPoolExecutor(CLIENTS) as pool:
                sending = [pool.submit(send, number) for number in range(CLIENTS)]
                for _ in range(CLIENTS * REQUESTS // 2):
                    assert half.acquire(timeout=60)
                service.kill(server=False)
                for one in sending:
                    one.result()
            assert sum(map(len, acknowledged.values())) < CLIENTS * REQUESTS
            service.start()
            _, found = logged(redis)
            for name, own in acknowledged.items():
                assert found[name] in (own, [*own, len(own)]), "one request may lack its answer"
            total = sum(map(len, found.values())) + 2
            with service.client() as client:
                wait_for(lambda: client.get("/model").json()["examples_learned"] == total)
    finally:
        redis.kill()
