"""Small requests with rows: speed, entries and bytes, a part of `tests.benchmarks.service`."""

import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from service.log.keys import Field, Keys
from streams.rows.entry import from_bytes
from tests.benchmarks.measure import Plan, flat_out, learned, ratios, show, table
from tests.benchmarks.parts.clicks import clicks
from tests.benchmarks.parts.learning import drain
from tests.benchmarks.parts.load import JSON
from tests.benchmarks.parts.named import BITS, json
from tests.support.harness import RedisProcess, serving, wait_for

COUNT = 4_000
"""Different rows."""
SHOWN_ENTRIES = 500
"""Newest entries whose rows and bytes are counted."""


class Found(NamedTuple):
    """What was measured of one way to send rows."""

    rate: float
    """Rows a second."""
    rows: float
    """Rows in an entry, on average."""
    bytes: float
    """Bytes of a row in the log, without the server's own."""


def small(plan: Plan) -> str:
    """Measure requests of one row on several connections against large requests."""
    head = next(clicks(COUNT).parts(COUNT))
    sent = {size: [json(part.rows()) for part in head.parts(size)] for size in (1, 1_000)}
    ways = [(1, 1), (1, 16), (1, 64), (1_000, 4)]
    found: dict[tuple[int, int], list[Found]] = {way: [] for way in ways}
    for _ in plan.rounds("small requests"):
        for (size, connections), own in found.items():
            own.append(_measured(sent[size], connections, plan.seconds))
    large = [one.rate for one in found[1_000, 4]]
    lines = []
    for (size, connections), own in found.items():
        rates = [one.rate for one in own]
        lines.append(
            (
                f"{size:,}",
                f"{connections}",
                show(rates, ",.0f"),
                ratios(rates, large),
                show([one.rows for one in own], ",.1f"),
                show([one.bytes for one in own], ",.0f"),
            )
        )
    head_line = ("rows per request (JSON)", "connections", "rows/s learned",
                 "of the large requests'", "rows an entry", "bytes a row")  # fmt: skip
    return table(head_line, lines)


def _measured(bodies: Sequence[bytes], connections: int, seconds: float) -> Found:
    options = {
        "schema": "auto", "table_bits": BITS, "batch_size": 1_000,
        "checkpoint_every_seconds": 3_600, "max_backlog": 50_000,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        redis = RedisProcess(Path(scratch) / "redis").start()
        stack.callback(redis.kill)
        service = stack.enter_context(serving(Path(scratch), **options, redis_url=redis.url))
        client = stack.enter_context(service.client())
        client.post(
            "/learn", content=json(next(clicks(COUNT).parts(2_000)).rows()),
            headers={"Content-Type": JSON},
        ).raise_for_status()  # fmt: skip
        with flat_out(service.url, bodies, JSON, connections):
            wait_for(lambda: learned(client) > 2_000)
            began, before = time.perf_counter(), learned(client)
            time.sleep(seconds)
        drain(client)
        spent = time.perf_counter() - began
        log = redis.client()
        key = Keys(client.get("/model").json()["model"]).log
        count = learned(client) - before
        newest = log.xrevrange(key, count=min(SHOWN_ENTRIES, int(log.xlen(key)) - 1))
    written = [fields[Field.ARROW.encode()] for _, fields in newest]
    rows = sum(len(from_bytes(payload)) for payload in written)
    return Found(count / spent, rows / len(written), sum(map(len, written)) / rows)
