"""Named rows: speed, memory and log loss, a part of `tests.benchmarks.service`.

The rows are those of `tests.benchmarks.parts.clicks`, on a table of 2^20 slots. Vowpal Wabbit
learns the same rows in this process, by its own driver; it reads text, or a cache of parsed
examples that was written before the clock started.
"""

import contextlib
import functools
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import torch
from vowpalwabbit import Workspace

from funnel.pool.tables.index import KeyIndex
from service.fold.schema.encode import encode
from service.fold.state import State
from service.fold.step import Fold
from service.http.codecs.rows import ARROW
from service.settings import load_settings
from streams.batch import Batch
from streams.rows.rows import Rows
from tests.benchmarks.measure import Plan, learned, ratios, show, table
from tests.benchmarks.parts.clicks import Clicks, clicks
from tests.benchmarks.parts.learning import DRAIN_SECONDS, measured, rate_of
from tests.benchmarks.parts.load import BYTES, JSON, Client
from tests.benchmarks.parts.memory import status
from tests.support.harness import serving, wait_for

BITS = 20
COUNT = 200_000
"""Rows of the stream; a sender begins again at its end."""
WIDTH = 20
"""Numbers in a row without categories."""
VOWPAL = "-b 20 --loss_function logistic --quiet"
WARM_EXAMPLES, WARM_ROUNDS = 20_000, 10
"""Rows that are learned before anything is measured, and how often they come before memory counts:
code and traces are loaded then, and the heap is as large as requests in this number need."""
LOOKS = 20
BACKLOG = 50_000
"""Limit of waiting rows: more than a service learns in the second that a sender must wait."""
FEW = 5_000
"""The same for all families, so that what is left when senders stop is learned soon."""
MB = 1e6


def ipc(rows: Rows) -> bytes:
    """Return labelled rows as an Arrow IPC stream."""
    sink = io.BytesIO()
    for chunk in rows.chunks:
        batch = chunk.columns.append_column("label", chunk.labels)
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
    return sink.getvalue()


def json(rows: Rows) -> bytes:
    """Return labelled rows as JSON."""
    [chunk] = rows.chunks
    return orjson.dumps({"rows": chunk.columns.to_pylist(), "labels": chunk.labels.to_pylist()})


@functools.cache
def stream() -> Clicks:
    """Return the stream of the measurements."""
    return clicks(COUNT)


def bodies(write: Callable[[Rows], bytes], size: int, count: int) -> list[bytes]:
    """Return so many requests of so many rows."""
    head = next(stream().parts(size * count))
    return [write(part.rows()) for part in head.parts(size)]


def speed(plan: Plan) -> str:
    """Measure each format and size of request and batch in turn in each round."""
    sent = {
        ("Arrow, 1,000 per request", ARROW): bodies(ipc, 1_000, COUNT // 1_000),
        ("JSON, 1,000 per request", JSON): bodies(json, 1_000, 60),
        ("JSON, 100 per request", JSON): bodies(json, 100, 600),
    }
    found: dict[tuple[str, str, int], list[float]] = {
        (*key, size): [] for key in sent for size in (1_000, 100)
    }
    for _ in plan.rounds("rows"):
        for (what, kind, size), rates in found.items():
            measured = rate_of(
                sent[what, kind], kind, plan.seconds, schema="auto", table_bits=BITS,
                batch_size=size, max_backlog=BACKLOG,
            )  # fmt: skip
            rates.append(measured)
    lines = [(what, f"{size:,}", show(rates, ",.0f")) for (what, _, size), rates in found.items()]
    return table(("rows over HTTP, the pool", "batch", "rows/s learned"), lines)


def folded(batches: Sequence[Rows]) -> tuple[float, float]:
    """Return the rows per second of the steps alone, and the progressive log loss."""
    torch.set_num_threads(1)
    settings = load_settings({"model": "logistic", "schema": "auto", "table_bits": BITS})
    state = State(settings.spec, settings.hyperparameters, torch.device("cpu"))
    state.reshape(state.schema.changes_for(batches[0]))
    fold, total, began = Fold(state), 0.0, time.perf_counter()
    for batch in batches:
        total += float(fold.step(batch).loss) * len(batch)
    return state.examples / (time.perf_counter() - began), total / state.examples


def vowpal(options: str, count: int) -> tuple[float, float]:
    """Return the examples per second and the progressive log loss of Vowpal Wabbit's driver."""
    began = time.perf_counter()
    workspace = Workspace(f"{VOWPAL} {options}")
    spent = time.perf_counter() - began
    assert workspace.get_weighted_examples() == count, "it has not read all examples"
    loss = workspace.get_sum_loss() / count
    workspace.finish()
    return count / spent, loss


def one_by_one(lines: Sequence[str]) -> tuple[float, float]:
    """Return the same for lines that its Python package learns."""
    workspace, began = Workspace(VOWPAL), time.perf_counter()
    for line in lines:
        workspace.learn(line)
    spent = time.perf_counter() - began
    loss = workspace.get_sum_loss() / len(lines)
    workspace.finish()
    return len(lines) / spent, loss


def loss(plan: Plan) -> str:
    """Measure Funnel and Vowpal Wabbit on the same stream in turn in each round."""
    found = stream()
    batches = {size: [part.rows() for part in found.parts(size)] for size in (1_000, 100)}
    lines = found.lines()
    with tempfile.TemporaryDirectory() as scratch:
        text, cache = Path(scratch) / "clicks.txt", Path(scratch) / "clicks.cache"
        text.write_text("\n".join(lines) + "\n")
        vowpal(f"-d {text} --cache_file {cache}", COUNT)
        contenders: dict[str, Callable[[], tuple[float, float]]] = {
            "Funnel, the pool, steps of 1,000": partial(folded, batches[1_000]),
            "Funnel, the pool, steps of 100": partial(folded, batches[100]),
            "Vowpal Wabbit, its driver, parsed examples": partial(
                vowpal, f"-d {text} --cache_file {cache}", COUNT
            ),
            "Vowpal Wabbit, its driver, text": partial(vowpal, f"-d {text}", COUNT),
            "Vowpal Wabbit, learn(text)": partial(one_by_one, lines),
        }
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for _ in plan.rounds("log loss"):
            for name, measure in contenders.items():
                results[name].append(measure())
    rates = {name: [rate for rate, _ in own] for name, own in results.items()}
    own = rates["Funnel, the pool, steps of 1,000"]
    shown = [
        (name, f"{results[name][0][1]:.4f}", show(rates[name], ",.0f"), ratios(rates[name], own))
        for name in contenders
    ]
    shown.append(("the truth", f"{found.entropy():.4f}", "", ""))
    head = ("learner", "progressive log loss, nats", "rows/s", "× the pool's at 1,000")
    return table(head, shown)


def table_bytes(count: int) -> tuple[int, int]:
    """Return the bytes of the numbers of the rows in use after the first rows of the stream, and
    those of the table, which also has a key and a count of visits for each row."""
    settings = load_settings({"model": "logistic", "schema": "auto", "table_bits": BITS})
    state = State(settings.spec, settings.hyperparameters, torch.device("cpu"))
    index = KeyIndex(BITS)
    for part in stream().parts(1_000):
        rows = part.rows()
        if not state.schema.columns:
            state.reshape(state.schema.changes_for(rows))
        index.admit(encode(state.schema, rows).keys)
        count -= len(rows)
        if count <= 0:
            break
    assert state.served.table is not None
    rows_of = state.served.table.rows
    numbers = index.used * 4 * (rows_of.weights.shape[1] + rows_of.state.shape[1])
    return numbers, numbers + index.keys.nbytes + index.row_visits.nbytes


def memory(plan: Plan) -> str:
    """Measure in each round how the resident memory of a new service grows while its table does."""
    sent = bodies(ipc, 1_000, COUNT // 1_000)
    found = [grown(sent) for _ in plan.rounds("memory")]
    ends, starts = table_bytes(COUNT), table_bytes(WARM_EXAMPLES)
    numbers, whole = ((end - start) / MB for end, start in zip(ends, starts, strict=True))
    before, after, peak = ([one[k] for one in found] for k in range(3))
    grew = [end - start for start, end in zip(before, after, strict=True)]
    line = (
        f"{WARM_EXAMPLES:,} to {COUNT:,}", f"{whole:,.1f}", show(before, ",.0f"),
        show(after, ",.0f"), show(grew, ",.0f"), show([one / whole for one in grew], ".3g"),
        show([one / numbers for one in grew], ".3g"), show(peak, ",.0f"),
    )  # fmt: skip
    head = ("different rows learned", "table grew by, MB", "resident before", "after", "grew by",
            "× the table", "× its numbers", "peak")  # fmt: skip
    return table(head, [line])


def grown(sent: Sequence[bytes]) -> tuple[float, float, float]:
    """Return the resident memory of a service before and after it learns rows, and its peak, MB.

    Args:
        sent: requests of 1,000 rows each.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(
            Path(scratch), schema="auto", table_bits=BITS, batch_size=1_000, max_backlog=COUNT
        ) as service,
        service.client() as client,
    ):

        def resident(bodies: Sequence[bytes]) -> float:
            before = learned(client)
            with contextlib.closing(Client(service.url, "/learn", ARROW)) as sender:
                for body in bodies:
                    sender.post(body).expect(202)
            wait_for(lambda: learned(client) == before + 1_000 * len(bodies), DRAIN_SECONDS)
            client.post("/checkpoint").raise_for_status()  # none is being written from here on
            time.sleep(1)  # what learning has freed goes back to the system meanwhile
            looks = []
            for _ in range(LOOKS):
                looks.append(status(service.process.pid, "VmRSS"))
                time.sleep(0.1)  # apart, as memory is taken and given back between the looks
            return float(np.median(looks))

        warm = WARM_EXAMPLES // 1_000
        before = resident(sent[:warm] * WARM_ROUNDS)
        return before, resident(sent[warm:]), status(service.process.pid, "VmHWM")


def dense(plan: Plan) -> str:
    """Measure rows of numbers alone against the same numbers as dense features."""
    random = np.random.default_rng(0)
    numbers = random.normal(size=(100_000, WIDTH)).astype(np.float32)
    labels = (numbers[:, 0] + random.normal(size=len(numbers)) > 0).astype(np.int64)
    named, plain = [], []
    for start in range(0, len(numbers), 1_000):
        own = slice(start, start + 1_000)
        columns = {f"n{k}": pa.array(numbers[own, k]) for k in range(WIDTH)}
        batch = pa.RecordBatch.from_pydict(columns | {"label": pa.array(labels[own])})
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        named.append(sink.getvalue())
        plain.append(Batch(numbers[own], labels[own]).to_bytes())
    cases = [("auto", 100), ("logistic", 1_000), ("logistic", 100)]
    found: dict[tuple[str, str, int], list[tuple[float, float]]] = {
        (what, *case): [] for case in cases for what in ("rows", "features")
    }
    for _ in plan.rounds("numbers"):
        for (what, model, size), rates in found.items():
            options: dict[str, Any] = {"model": model, "effort": "full", "batch_size": size}
            if model == "auto":
                options |= {"max_backlog": FEW, "warm": FEW}
            else:
                options |= {"max_backlog": BACKLOG, "warm": WARM_EXAMPLES}
            if what == "rows":
                rate = measured(named, ARROW, plan.seconds, schema="auto", **options)
            else:
                rate = measured(plain, BYTES, plan.seconds, features=WIDTH, classes=2, **options)
            rates.append(rate)
    lines = []
    for model, size in cases:
        rates, spent = (
            [[one[k] for one in found[what, model, size]] for what in ("rows", "features")]
            for k in (0, 1)
        )
        shown = [
            [show(own, form) for own in both] for both, form in ((rates, ",.0f"), (spent, ".1f"))
        ]
        lines.append(
            (model, f"{size:,}", *shown[0], ratios(*rates), *shown[1], ratios(spent[1], spent[0]))
        )
    head = ("model", "batch", "rows (Arrow), rows/s", "features (safetensors)", "ratio",
            "rows, ms of CPU per 1,000", "features", "ratio")  # fmt: skip
    return table(head, lines)


MEASUREMENTS = {"speed": speed, "loss": loss, "memory": memory, "dense": dense}


def run(plan: Plan) -> str:
    """Measure all, and return the tables."""
    return "\n".join(measure(plan) for measure in MEASUREMENTS.values())
