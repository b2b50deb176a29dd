"""Shared by the parts of the service benchmark: examples, a flat-out sender, medians, tables."""

import contextlib
import functools
import multiprocessing
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx
import orjson

from streams.batch import Batch
from streams.sources.catalog import get
from tests.benchmarks.parts.load import BYTES, send_flat_out

spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Plan:
    """The length of a benchmark."""

    seconds: float
    """Seconds of one measurement."""
    repeats: int
    """Number of rounds; each measures every contender once."""
    memory_examples: int

    def rounds(self, part: str) -> Iterator[int]:
        """Yield the numbers of the rounds, and show them."""
        for number in range(self.repeats):
            progress(f"{part}: round {number + 1} of {self.repeats}")
            yield number
        progress("")


def progress(text: str) -> None:
    """Show the progress, if standard error is a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")


@functools.cache
def batches(size: int) -> list[Batch]:
    """Return 50,000 examples of the stream `abrupt`, or 1,000 batches of it."""
    joined = next(get("abrupt", 50_000).batches(50_000))
    return [joined.part(k, k + size) for k in range(0, min(50_000, 1000 * size), size)]


def encoded(found: Sequence[Batch], kind: str = BYTES) -> list[bytes]:
    """Return batches as request bodies."""
    if kind == BYTES:
        return [b.to_bytes() for b in found]
    return [
        orjson.dumps({"features": (b.features / 255).tolist(), "labels": b.labels.tolist()})
        for b in found
    ]


@contextlib.contextmanager
def flat_out(
    url: str, bodies: Sequence[bytes], kind: str = BYTES, connections: int = 2
) -> Iterator[None]:
    """Send from a separate process inside the block."""
    stop = spawn.Event()
    sender = spawn.Process(target=send_flat_out, args=(url, bodies, kind, connections, stop))
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join()
    if sender.exitcode:
        raise RuntimeError("the sender failed")


def learned(client: httpx.Client) -> int:
    """Return the examples that a service has learned."""
    return int(client.get("/model").json()["examples_learned"])


def show(values: Sequence[float], form: str) -> str:
    """Return median, lowest and highest as text."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def ratios(values: Sequence[float], to: Sequence[float]) -> str:
    """Return median, lowest and highest of the ratios in each round as text."""
    return show([a / b for a, b in zip(values, to, strict=True)], ".3g")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
